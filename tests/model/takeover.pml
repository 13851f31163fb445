/* takeover.pml: whose the memory of a dead master is, and which files its flushed position speaks of; for Spin.
 *
 * Two members, A and B, with files of their own. Who holds mastership is killed before any of its steps, up to CRASHES
 * times, and then either of them comes next. While one serves, the other copies some of its log. The steps of a
 * takeover are those of MessageStore.open (shmq/store/succession.py has the table): copy the list, write the record,
 * say that the files are nobody's (files_owner 0), set flushed_position to what the own files hold, say that they are
 * ours, remove the other list. Bytes of the log are counted; memory has those from hot_min to committed.
 *
 * Nothing committed is lost: whoever serves has all of it, below hot_min in its files, the rest in memory.
 * The flushed position never says more than the files of the member it speaks of hold.
 * Whoever can begin does: the last one that served can always serve again.
 *
 * Mutants (-DBUG_x), each of which must be found:
 *   RECORD_FIRST   the record is written before the list that it names
 *   NO_NOBODY      flushed_position is set while the files are still said to be the dead one's
 *   OWNER_FIRST    the files are said to be ours before flushed_position is
 *   UNLINK_FIRST   the dead one's list is removed before the record names ours
 *   TRUST_WORD     flushed_position counts, whoever's files it speaks of
 *   NO_PREFIX      whoever comes goes on with the memory, however far behind its files are */
#ifndef BYTES
#define BYTES 4
#endif
#ifndef CRASHES
#define CRASHES 3
#endif
#define NOBODY 2

/* shared memory */
byte committed = 1;
byte hot_min = 0;
byte flushed_position = 1;
byte files_owner = 0;       /* A */

/* on disk and in the runtime folder */
bool list[2];               /* this member's list names the memory */
byte record = 0;            /* whose list the last master's record names */
byte files[2];              /* how much of the log is in this member's files */

/* the world */
byte crashes = 0;
bool kill_it = false;
byte holders = 0;
byte last = 0;              /* who served last */
bool refused = false;

inline check()
{
    assert(files_owner == NOBODY || flushed_position <= files[files_owner])
}

/* What the member has of the log where it goes on with memory that says so much is flushed. */
inline serve_from(known)
{
    assert(files[me] >= known);      /* else there is a gap that nobody ever fills */
    assert(hot_min <= known)
}

proctype holder(byte me)
{
    byte own_end;
    byte other = 1 - me;
    bool is_ours;
    bool inherits;
    assert(holders == 1);
    {
        refused = false;
        inherits = (record == other && list[other]);
        if
        :: !inherits && !list[me] ->
            /* no list leads to the memory: its own files are all it has */
            assert(committed <= files[me]);
            goto serve
        :: else
        fi;
        is_ours = (!inherits && files_owner == me);
#ifdef BUG_TRUST_WORD
        own_end = flushed_position;
#else
        own_end = files[me];
#endif
        if
        :: is_ours -> goto adopted
        :: else
        fi;
#ifndef BUG_NO_PREFIX
        if
        :: !(hot_min <= own_end && own_end <= committed) ->
            assert(inherits);        /* else it would begin from its files alone */
            assert(last != me);      /* it has what it served */
            refused = true;
            goto out
        :: else
        fi;
#endif
#ifdef BUG_UNLINK_FIRST
        list[other] = false;
#endif
#ifdef BUG_RECORD_FIRST
        record = me;
        list[me] = true;
#else
        list[me] = true;
        record = me;
#endif
#ifdef BUG_OWNER_FIRST
        files_owner = me; check();
        flushed_position = own_end; check();
#else
#ifndef BUG_NO_NOBODY
        files_owner = NOBODY; check();
#endif
        flushed_position = own_end; check();
        files_owner = me; check();
#endif
        list[other] = false;
adopted:
        assert(list[me]);
        serve_from(flushed_position);
        if
        :: is_ours -> record = me
        :: else
        fi;
serve:
        last = me;
        do
        :: committed < BYTES -> committed++
        :: flushed_position < committed -> files[me] = flushed_position + 1; flushed_position++; check()
        :: hot_min < flushed_position -> hot_min++
        :: files[other] < committed && files[other] >= hot_min -> files[other]++   /* its slave copies */
        :: crashes == CRASHES -> break
        od
out:
        skip
    } unless { kill_it };
    holders--
}

init
{
    byte next;
    list[0] = true;
    files[0] = 1;
    atomic { holders++; run holder(0) };
    do
    :: crashes < CRASHES ->
        kill_it = true;
        holders == 0;
        kill_it = false;
        crashes++;
        if
        :: next = 0
        :: next = 1
        fi;
        atomic { holders++; run holder(next) };
        if
        :: holders == 0 && refused ->   /* the other one is told */
            atomic { holders++; run holder(1 - next) }
        :: true
        fi
    :: crashes == CRASHES -> break
    od;
    holders == 0
}
