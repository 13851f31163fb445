/* retire.pml: hot memory that is retired, left by its readers, and reused; for Spin.
 *
 * A broker fills FILES files one after the other in memory of which it has few pieces; clients map each file and keep
 * views of it for ever. Before the memory of a file is used again every client must have mapped the complete file over
 * it and said so. A client may stop for ever before any step, die, or leave the channel while it lives.
 *
 * A view never changes: memory that a living client has mapped for file f holds file f.
 * The broker never waits for a client: it gets to its last file whatever they do.
 * The budget holds: memory that was unlinked and is still mapped by a client that is still served is bounded.
 *
 * Mutants (-DBUG_x), each of which must be found:
 *   NO_ACK        memory is reused as soon as its file is retired
 *   ACK_FIRST     the client answers before it has mapped the file
 *   NO_TIMEOUT    the broker waits for the answer as long as it takes
 *   LEFT_IS_GONE  who has left the channel counts as one who has left the memory
 *   NO_BUDGET     nobody is ever dropped */
#ifndef FILES
#define FILES 4
#endif
#ifndef CLIENTS
#define CLIENTS 2
#endif
#ifndef BUDGET
#define BUDGET 1
#endif
#define MEMORIES (FILES + 1)
#define NOWHERE 255
#define IN_FILE 254

mtype = { HOT, RETIRED };

typedef client_state {
    byte where[FILES];    /* what it has mapped for each file: NOWHERE, IN_FILE, or a piece of memory */
    bool lives;
    bool served;          /* the broker has its channel */
    bool owes[FILES];     /* asked to leave that file's memory, not answered */
    bool in_hot[FILES];   /* was told of that file's memory */
};
client_state clients[CLIENTS];
byte content[MEMORIES];   /* file + 1 whose bytes lie there */
byte memory_of[FILES];
bool tainted[FILES];      /* somebody who lives has it mapped and will never answer */
bool broker_is_through = false;

chan to_client[CLIENTS] = [2 * FILES] of { mtype, byte, byte };
chan to_broker[CLIENTS] = [FILES] of { byte };

/* No living client sees other bytes than those of the file it looks at. */
inline check_views()
{
    d_step {
        byte c1 = 0;
        byte f1;
        do
        :: c1 < CLIENTS ->
            f1 = 0;
            do
            :: f1 < FILES ->
                if
                :: clients[c1].lives && clients[c1].where[f1] < IN_FILE ->
                    assert(content[clients[c1].where[f1]] == f1 + 1)
                :: else
                fi;
                f1++
            :: else -> break
            od;
            c1++
        :: else -> break
        od;
        c1 = 0; f1 = 0
    }
}

proctype client(byte me)
{
    byte f;
    byte m;
    byte k;
    do
    :: to_client[me]?HOT(f, m) ->
        clients[me].where[f] = m /* mmap */
    :: to_client[me]?RETIRED(f, m) ->
#ifdef BUG_ACK_FIRST
        to_broker[me]!f;
#endif
        if
        :: clients[me].where[f] != NOWHERE -> clients[me].where[f] = IN_FILE /* mmap MAP_FIXED */
        :: else
        fi;
#ifndef BUG_ACK_FIRST
        to_broker[me]!f
#endif
    :: break /* stops here for ever, alive: SIGSTOP, debugger, or a program that closes its channel */
    :: d_step { /* dies: the kernel unmaps, then the socket tells */
            clients[me].lives = false;
            k = 0;
            do
            :: k < FILES -> clients[me].where[k] = NOWHERE; k++
            :: else -> break
            od
        };
        break
    od
}

/* The channel of a client ends: it died, or it is dropped, or it hung up. */
inline lose(c)
{
    d_step {
        clients[c].served = false;
        i = 0;
        do
        :: i < FILES ->
#ifndef BUG_LEFT_IS_GONE
            if /* a death certificate (pidfd) says that nothing is mapped any more; nothing else does */
            :: clients[c].lives && clients[c].in_hot[i] -> tainted[i] = true
            :: else
            fi;
#endif
            clients[c].owes[i] = false;
            i++
        :: else -> break
        od;
        i = 0
    }
}

inline receive(c)
{
    do
    :: to_broker[c]?answer -> clients[c].owes[answer] = false; clients[c].in_hot[answer] = false
    :: empty(to_broker[c]) -> break
    od
}

proctype broker()
{
    byte f = 0;
    byte m;
    byte old;
    byte c;
    byte i;
    byte answer;
    byte fresh = 0;           /* pieces of memory made so far */
    byte spare = NOWHERE;
    bool asked;
    bool waiting;
    byte held;
    do
    :: f < FILES ->
        /* the file before the last leaves memory: two are hot at a time */
        if
        :: f >= 2 ->
            old = f - 2;
            c = 0;
            do
            :: c < CLIENTS ->
                if
                :: clients[c].served -> clients[c].owes[old] = true; to_client[c]!RETIRED(old, 0)
                :: else
                fi;
                c++
            :: else -> break
            od;
            /* waits for the answers, with a bound */
            do
            :: c = 0; waiting = false;
                do
                :: c < CLIENTS ->
                    if
                    :: clients[c].served && !clients[c].lives -> lose(c)
                    :: clients[c].served && clients[c].lives -> receive(c)
                    :: else
                    fi;
                    waiting = waiting || (clients[c].served && clients[c].owes[old]);
                    c++
                :: else -> break
                od;
                if
                :: !waiting -> break
#ifndef BUG_NO_TIMEOUT
                :: waiting -> break /* remap_timeout */
#endif
                :: waiting && (len(to_broker[0]) + len(to_broker[1]) > 0 ||
                               (clients[0].served && !clients[0].lives) ||
                               (clients[1].served && !clients[1].lives)) -> skip
                fi
            od;
#ifdef BUG_NO_ACK
            waiting = false;
#endif
            if
            :: !waiting && !tainted[old] -> spare = memory_of[old]
            :: else -> /* unlinked: it lives on as long as somebody has it mapped */
                do
                :: held = 0; c = 0;
                    do
                    :: c < CLIENTS ->
                        i = 0;
                        do
                        :: i < FILES -> held = held + (clients[c].served && clients[c].owes[i]); i++
                        :: else -> break
                        od;
                        c++
                    :: else -> break
                    od;
#ifndef BUG_NO_BUDGET
                    if
                    :: held > BUDGET -> /* the one that owes is dropped */
                        c = 0;
                        do
                        :: c < CLIENTS && clients[c].served && clients[c].owes[old] -> lose(c); break
                        :: c < CLIENTS && !(clients[c].served && clients[c].owes[old]) -> c++
                        :: c == CLIENTS -> break
                        od;
                        if
                        :: c == CLIENTS -> /* it owes older ones only */
                            c = 0;
                            do
                            :: c < CLIENTS && clients[c].served -> lose(c); break
                            :: c < CLIENTS && !clients[c].served -> c++
                            :: c == CLIENTS -> break
                            od
                        :: else
                        fi
                    :: else -> break
                    fi
#else
                    break
#endif
                od;
                assert(held <= BUDGET)
            fi
        :: else
        fi;
        /* memory for the new file */
        if
        :: spare != NOWHERE -> m = spare; spare = NOWHERE
        :: else -> m = fresh; fresh++
        fi;
        memory_of[f] = m;
        content[m] = f + 1; /* the first append overwrites what was there */
        check_views();
        c = 0;
        do
        :: c < CLIENTS ->
            if
            :: clients[c].served -> clients[c].in_hot[f] = true; to_client[c]!HOT(f, m)
            :: else
            fi;
            c++
        :: else -> break
        od;
        f++
    :: else -> break
    od;
    broker_is_through = true
}

init
{
    byte c0 = 0;
    byte f0;
    d_step {
        do
        :: c0 < CLIENTS ->
            clients[c0].lives = true;
            clients[c0].served = true;
            f0 = 0;
            do
            :: f0 < FILES -> clients[c0].where[f0] = NOWHERE; f0++
            :: else -> break
            od;
            c0++
        :: else -> break
        od;
        c0 = 0
    };
    atomic {
        run broker();
        do
        :: c0 < CLIENTS -> run client(c0); c0++
        :: else -> break
        od
    };
    broker_is_through /* whatever the clients do */
}
