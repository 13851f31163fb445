/* confirm.pml: a SYNC_MASTER, its slaves, and who is waited for (replica.h, broker/ha_service.py); for Spin.
 *
 * A master appends MESSAGES, SLAVES slaves copy them; each side sleeps as soon as it finds nothing to do, and is woken
 * by nobody but the other. The master's control thread takes slaves into the SyncStateSet and out of it. A slave dies up
 * to CRASHES times; its next life has what it had in files, which may be less. Memory is sequentially consistent here:
 * the fences that make it so are Relacy's business (test_relacy.py).
 *
 * What is told OK is on every slave that was in the SyncStateSet, and there was one; else it is told ALONE.
 * confirmed never goes back, never beyond a slave in the SyncStateSet, nor beyond the log.
 * A slave shows nothing sooner than it is confirmed.
 * Nobody sleeps for ever: in the end the master has told of all, and living slaves have and show all.
 *
 * Mutants (-DBUG_x), each of which must be found:
 *   MASTER_NO_LAST_LOOK   the master does not look again once it has said that it sleeps
 *   SLAVE_NO_LAST_LOOK    nor the slave
 *   WANT_LATE             the master says that it waits only behind its last look
 *   SHOW_UNTOLD           a slave that waits to show messages does not say so
 *   ANSWERED_FOR_EVER     a side that was woken once is not woken again
 *   JOIN_UNSEEN           a slave is in the SyncStateSet before it has all that is confirmed
 *   RELEASE_FIRST         a slave that is gone is waited for no more before sends hear that nobody is
 *   BACK                  confirmed follows a slave that has less */
#ifndef MESSAGES
#define MESSAGES 2
#endif
#ifndef SLAVES
#define SLAVES 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif

/* the master's control segment */
byte committed;
byte confirmed;
bool confirm_wanted;
bool append_sleeps;

/* a slave's control segment */
byte slave_committed[SLAVES];
byte slave_confirmed[SLAVES];
bool slave_wanted[SLAVES];
bool slave_sleeps[SLAVES];

/* the master's own */
bool is_waited_for[SLAVES]; /* shmq_replica.is_in_sync */
bool is_attached[SLAVES];
byte position[SLAVES];      /* as last believed */
bool is_told[SLAVES];       /* this sleep of the slave was answered; in the code an epoch says which */
bool is_answered[SLAVES];   /* likewise the slave's own: the master's sleep */
bool is_alone = true;       /* what sends hear that nobody was waited for */
byte done;                  /* completions given */
bool is_ok[MESSAGES + 1];

/* the kernel */
bool master_event;
bool slave_event[SLAVES];

/* the world */
bool in_set[SLAVES];        /* the SyncStateSet */
bool lives[SLAVES];
bool runs[SLAVES];          /* its process has not ended yet */
byte crashes;
bool is_quiet;              /* no more deaths */

#define HAS_WORK(i) (slave_committed[i] < committed || \
                     (slave_confirmed[i] < slave_committed[i] && confirmed > slave_confirmed[i]))
#define SHOWS_ALL(i) (slave_confirmed[i] == MESSAGES)

/* The least of those that are waited for. */
inline confirm()
{
    d_step {
        byte least = committed;
        byte n = 0;
        moved = false;
        do
        :: n < SLAVES ->
            if
            :: is_attached[n] ->
                if
#ifdef BUG_BACK
                :: slave_committed[n] <= committed -> position[n] = slave_committed[n]
#else
                :: slave_committed[n] > position[n] && slave_committed[n] <= committed ->
                    position[n] = slave_committed[n]
#endif
                :: else
                fi;
                if
                :: is_waited_for[n] && position[n] < least -> least = position[n]
                :: else
                fi
            :: else
            fi;
            n++
        :: else -> break
        od;
        if
#ifdef BUG_BACK
        :: least != confirmed ->
#else
        :: least > confirmed ->
#endif
            assert(least > confirmed && least <= committed);
            confirmed = least;
            moved = true
        :: else
        fi;
        n = 0;
        least = 0
    }
}

/* Completions of what is confirmed. */
inline settle()
{
    d_step {
        byte m = 0;
        do
        :: done < confirmed ->
            done++;
            is_ok[done] = !is_alone;
            m = 0;
            do
            :: m < SLAVES ->
                assert(!is_ok[done] || !in_set[m] || slave_committed[m] >= done);
                m++
            :: else -> break
            od
        :: else -> break
        od;
        m = 0
    }
}

inline wake_slave(i)
{
    is_told[i] = true;
    slave_event[i] = true
}

proctype master()
{
    bool moved;
    byte k;
    byte before;
    do
    :: done == MESSAGES && is_quiet -> break
    :: else ->
        atomic {
            master_event = false;   /* awake: it looks at everything now */
            before = committed;
            if
            :: committed < MESSAGES -> committed++  /* a turn; its publishing ends with a full fence */
            :: true
            fi;
            confirm();
            settle()
        };
        k = 0;
        do
        :: k < SLAVES ->
            atomic {
                if
                :: is_attached[k] && slave_sleeps[k] && !is_told[k] &&
                   (committed != before || (moved && slave_wanted[k])) -> wake_slave(k)
                :: else
                fi;
                k++
            }
        :: else -> break
        od;
        k = 0;
        if
        :: committed == before && !moved && committed == MESSAGES ->
            /* shmq_replica_set_want, shmq_append_sleep, the last look */
#ifndef BUG_WANT_LATE
            confirm_wanted = (done < committed);
#endif
            d_step {
                append_sleeps = true;
#ifndef BUG_ANSWERED_FOR_EVER
                is_answered[0] = false;
                is_answered[SLAVES - 1] = false
#endif
            };
            if
#ifndef BUG_MASTER_NO_LAST_LOOK
            :: done < committed && ((is_waited_for[0] && slave_committed[0] > position[0]) ||
                  (is_waited_for[SLAVES - 1] && slave_committed[SLAVES - 1] > position[SLAVES - 1])) -> skip
            :: else ->
#else
            :: true ->
#endif
#ifdef BUG_WANT_LATE
                confirm_wanted = (done < committed);
#endif
                if
                :: atomic { master_event -> master_event = false }
                :: done == MESSAGES && is_quiet -> skip     /* nothing is left to be woken for */
                fi
            fi;
            append_sleeps = false
        :: else
        fi
    od
}

proctype slave(byte i)
{
    {
    do
    :: SHOWS_ALL(i) && is_quiet -> break
    :: else ->
        atomic {
            slave_event[i] = false;
            if
            :: slave_committed[i] < committed -> slave_committed[i]++   /* a replica turn */
            :: else
            fi
        };
        d_step {
            if
            :: confirmed < slave_committed[i] && confirmed > slave_confirmed[i] -> slave_confirmed[i] = confirmed
            :: confirmed >= slave_committed[i] && slave_committed[i] > slave_confirmed[i] ->
                slave_confirmed[i] = slave_committed[i]
            :: else
            fi;
            assert(slave_confirmed[i] <= confirmed)
        };
        atomic {
            if
            :: append_sleeps && confirm_wanted && !is_answered[i] -> is_answered[i] = true; master_event = true
            :: else
            fi
        };
        if
        :: !HAS_WORK(i) ->
#ifndef BUG_SHOW_UNTOLD
            slave_wanted[i] = (slave_confirmed[i] < slave_committed[i]);
#endif
            d_step {
                slave_sleeps[i] = true;
#ifndef BUG_ANSWERED_FOR_EVER
                is_told[i] = false
#endif
            };
            if
#ifndef BUG_SLAVE_NO_LAST_LOOK
            :: HAS_WORK(i) -> skip
            :: else ->
#else
            :: true ->
#endif
                if
                :: atomic { slave_event[i] -> slave_event[i] = false }
                :: SHOWS_ALL(i) && is_quiet -> skip
                fi
            fi;
            slave_sleeps[i] = false
        :: else
        fi
    od    } unless { !lives[i] };
    runs[i] = false
}

/* A life of a slave, and what the master's control thread does about it. */
proctype life(byte i)
{
    do
    :: true ->
        atomic {
            lives[i] = true;
            runs[i] = true;
            slave_event[i] = false;
            slave_sleeps[i] = false;
            slave_wanted[i] = false;
            is_told[i] = false;
            is_answered[i] = false;
            position[i] = 0;
            is_attached[i] = true;
            run slave(i)
        };
        /* JOINING: the append role says whether it has all that is confirmed */
        is_waited_for[i] = true;
        master_event = true;
        do
        :: atomic {
#ifdef BUG_JOIN_UNSEEN
               true ->
#else
               slave_committed[i] >= confirmed ->
#endif
               assert(slave_committed[i] >= confirmed); in_set[i] = true; is_alone = false };
           break
        :: crashes < CRASHES -> break
        :: slave_committed[i] < confirmed -> skip
        od;
        if
        :: atomic { crashes < CRASHES -> crashes++; lives[i] = false };
            !runs[i];
            /* its connection has ended: HAService.remove */
#ifdef BUG_RELEASE_FIRST
            atomic { is_waited_for[i] = false; is_attached[i] = false; master_event = true };
            atomic { in_set[i] = false; is_alone = true };
#else
            atomic { in_set[i] = false; is_alone = true };
            atomic { is_waited_for[i] = false; is_attached[i] = false; master_event = true };
#endif
            if
            :: true
            :: d_step { slave_committed[i] > 0 -> slave_committed[i]--;
                        slave_confirmed[i] = (slave_confirmed[i] > slave_committed[i] -> slave_committed[i] : slave_confirmed[i]) }
            fi
        :: break
        fi
    od;
    is_quiet = true
}

init
{
    atomic {
        run master();
        run life(0)
    }
}
