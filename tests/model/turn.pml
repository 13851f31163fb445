/* turn.pml: the turn, its commit point, adoption and resumption, for Spin.
 *
 * One producer, one ring, a broker that is killed before any of its steps, up to CRASHES times, and each
 * time a successor that adopts the memory, takes the ring back and goes on. Records of the ring are 1..SENDS.
 * What is a word of the control segment here is a word there (turn.h); what a broker keeps for itself is local.
 *
 * Exactly once: the committed log is 1, 2, 3, ... with nothing missing, doubled or out of order, at all times.
 * Answered means committed; visible means committed; a service's progress is that of its last committed record.
 * In the end everything that was published before its producer died, or while it lives, is committed and visible.
 *
 * Mutants (-DBUG_x), each of which must be found:
 *   ONE_RECORD       the record of the last turn is the scratch of the next
 *   NO_REDO          the successor trusts the words that are published after the commit
 *   ANSWER_FIRST     completions count before the commit
 *   FREE_FIRST       the read position moves before the commit
 *   PROGRESS_APART   progress is published, but not part of the record
 *   NO_WAIT          the successor does not wait until the predecessor is dead */
#ifndef SENDS
#define SENDS 4
#endif
#ifndef CRASHES
#define CRASHES 2
#endif

typedef turn_record {
    byte number;
    byte log_end;
    byte read_position;
    byte progress;
};

/* shared memory */
byte tail;                  /* the producer's */
byte turn_number;
turn_record records[2];
byte frames[SENDS + 2];     /* the log: which record lies there */
byte committed_position;
byte entries;               /* ConsumeQueue entries */
byte visible_max;
byte read_position;
byte completion_tail;
byte progress;

/* the world */
bool producer_lives = true;
bool producer_done = false;
bool ring_handed = true;    /* the present broker has the ring */
byte brokers = 0;           /* alive at this moment */
bool kill_it = false;
byte crashes = 0;
bool all_over = false;      /* no more crashes will come */

inline check_log()
{
    d_step {
        byte k = 0;
        do
        :: k < committed_position -> assert(frames[k] == k + 1); k++
        :: else -> break
        od;
        k = 0
    }
}

proctype producer()
{
    byte i = 0;
    do
    :: i < SENDS ->
        if
        :: tail = i + 1; i++            /* fills, then publishes: one release store */
        :: producer_lives = false; break /* or dies; what is published stays */
        fi
    :: i == SENDS -> break
    od;
    if
    :: producer_lives ->
        byte answered = 0;
        do
        :: answered < SENDS && completion_tail > answered ->
            answered++;
            assert(committed_position >= answered || records[turn_number % 2].log_end >= answered)
        :: answered == SENDS -> break
        od
    :: else
    fi;
    producer_done = true
}

/* Step 3 of a turn: everything here may be repeated. */
inline publish(r)
{
    entries = records[r].log_end;
    committed_position = records[r].log_end;
    check_log();
    visible_max = records[r].log_end;
    assert(visible_max <= committed_position);
#ifndef BUG_PROGRESS_APART
    progress = records[r].progress;
#endif
    completion_tail = records[r].read_position;
    read_position = records[r].read_position
}

proctype broker()
{
    byte my_turn;
    byte my_log_end;
    byte my_read;
    byte r;
    assert(brokers == 1);
    {
        /* adoption */
        my_turn = turn_number;
        r = my_turn % 2;
        if
        :: my_turn == 0 -> my_log_end = 0; my_read = 0
        :: else ->
#ifdef BUG_NO_REDO
            my_log_end = committed_position;
            my_read = read_position
#else
            assert(records[r].number == my_turn);
            my_log_end = records[r].log_end;
            my_read = records[r].read_position;
            publish(r)
#endif
        fi;
        do
        :: ring_handed && my_read < tail ->
            /* one turn: takes some of what is there */
#ifdef BUG_ONE_RECORD
            r = 0;
#else
            r = (my_turn + 1) % 2;
#endif
            records[r].number = my_turn + 1;
            do
            :: my_read < tail ->
                frames[my_log_end] = my_read + 1;
                my_log_end++;
                my_read++;
                if
                :: break
                :: skip
                fi
            :: else -> break
            od;
            records[r].log_end = my_log_end;
            records[r].read_position = my_read;
            records[r].progress = my_read;
#ifdef BUG_ANSWER_FIRST
            completion_tail = my_read;
#endif
#ifdef BUG_FREE_FIRST
            read_position = my_read;
#endif
            my_turn++;
            turn_number = my_turn; /* THE COMMIT POINT */
            publish(r);
#ifdef BUG_PROGRESS_APART
            progress = my_read
#endif
        :: all_over && (my_read == tail || !ring_handed) && producer_done -> break
        :: all_over && !producer_lives && my_read == tail -> break
        od
    } unless { kill_it };
    brokers--
}

/* Kills, restarts, hands the ring back. */
init
{
    run producer();
    atomic { brokers++; run broker() };
    do
    :: crashes < CRASHES ->
        kill_it = true;
#ifndef BUG_NO_WAIT
        brokers == 0; /* the kernel says so: pidfd, lock */
#endif
        kill_it = false;
        crashes++;
        ring_handed = false;
        atomic { brokers++; run broker() };
        if
        :: producer_lives -> ring_handed = true /* RESUME */
        :: !producer_lives -> skip              /* both dead: nobody has the ring any more */
        fi
    :: all_over = true; break
    od;
    brokers == 0;
    /* at rest */
    check_log();
    assert(entries == committed_position && visible_max == committed_position);
    assert(completion_tail == read_position && read_position == committed_position);
    assert(progress == committed_position);
    if
    :: producer_lives -> assert(committed_position == SENDS)
    :: !producer_lives && ring_handed -> assert(committed_position == tail)
    :: else
    fi
}
