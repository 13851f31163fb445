/* waiter.h: the waiting ladder, the bells, and the only system calls of the core.
 *
 * Byte table: a bell is one futex word (bell_line.bell) that the broker writes; the sleeper says that it
 * sleeps in a word of its own (lane.sleep_epoch, sleeper.sleep_epoch): odd while asleep.
 * Validity: any value of either word is acceptable; a lying sleeper costs one futex call per turn.
 * Writer (waker): publish (release), full fence, read the sleeper's epoch; if it is odd and was not
 * answered yet: bell + 1, FUTEX_WAKE.
 * Reader (sleeper): seen = bell, epoch odd, full fence, look once more for what it waits for,
 * FUTEX_WAIT(bell, seen) with a bound, epoch even. An event loop does not wait there: it leaves its epoch odd and
 * waits for its socket to be readable (shmq_bell_tell). The two fences make it impossible that both look
 * past each other; a wake between the look and the wait changes the bell, so the wait returns at once.
 * Crash: a dead sleeper leaves its epoch odd: one wake more. A dead waker: the bounded wait ends and the
 * sleeper asks whether its broker lives. Nobody repairs anything. */
#ifndef SHMQ_WAITER_H
#define SHMQ_WAITER_H

#include "atomics.h"
#include "layout.h"
#include "status.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum shmq_wait_policy {
    SHMQ_WAIT_BLOCKING = 0,  /* sleep at once */
    SHMQ_WAIT_ADAPTIVE = 1,  /* pause, yield, then sleep */
    SHMQ_WAIT_BUSY_SPIN = 2, /* pause for ever: only with a core to spare for each spinner */
};

/* Measured on two cores with three processes (docs/decisions/0003): 40 pauses catch a peer that runs on the
 * other core, some hundred yields hand the core to a peer that waits for it, more only burns it. */
#define SHMQ_LADDER_PAUSES 40u
#define SHMQ_LADDER_YIELDS 400u
/* A busy spinner looks up this often to see whether its peer lives. */
#define SHMQ_SPIN_CHECK 65536u

/* A yield that took longer gave the core to somebody who keeps it for a slice of the scheduler (some ms), though the
 * peer may be ready in a moment. Measured beside other work: a synchronous send took 60 to 300 us. So the next
 * climbs pause somewhat longer and then sleep: who is woken is put before those that never slept, some 10 us after
 * it is wanted. */
#define SHMQ_LADDER_LATE_NS 50000u
#define SHMQ_LADDER_LATE_CLIMBS 128u
#define SHMQ_LADDER_LATE_PAUSES 200u

struct shmq_ladder {
    uint32_t policy;
    uint32_t step;
    uint32_t late; /* climbs left without yields */
};

static inline uint64_t shmq_clock_ns(clockid_t clock)
{
    struct timespec now;
    (void)clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* One rung. True: look again. False: time to sleep (or, spinning, to check that the peer lives). */
static inline int shmq_ladder_climb(struct shmq_ladder *ladder)
{
    uint32_t step = ladder->step++;
    if (ladder->policy == SHMQ_WAIT_ADAPTIVE) {
        if (step < SHMQ_LADDER_PAUSES) {
            shmq_cpu_relax();
            return 1;
        }
        if (ladder->late != 0) {
            if (step < SHMQ_LADDER_LATE_PAUSES) {
                shmq_cpu_relax();
                return 1;
            }
            ladder->late -= 1;
            return 0;
        }
        if (step < SHMQ_LADDER_PAUSES + SHMQ_LADDER_YIELDS) {
            uint64_t begin_ns = shmq_clock_ns(CLOCK_MONOTONIC);
            sched_yield();
            if (shmq_clock_ns(CLOCK_MONOTONIC) - begin_ns > SHMQ_LADDER_LATE_NS) {
                ladder->late = SHMQ_LADDER_LATE_CLIMBS;
            }
            return 1;
        }
        return 0;
    }
    if (ladder->policy == SHMQ_WAIT_BUSY_SPIN) {
        shmq_cpu_relax();
        if (step < SHMQ_SPIN_CHECK) {
            return 1;
        }
        ladder->step = 0;
    }
    return 0;
}

/* Waits while *word is `seen`, at most timeout_ns. Works on a read-only shared mapping. 1: all that time. */
static inline int shmq_futex_wait(const shmq_word32 *word, uint32_t seen, uint64_t timeout_ns)
{
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000u),
                               .tv_nsec = (long)(timeout_ns % 1000000000u)};
    return syscall(SYS_futex, word, FUTEX_WAIT, seen, &timeout, NULL, 0) < 0 && errno == ETIMEDOUT;
}

/* futex_waitv(2), of Linux 5.16; older headers do not have it. */
#define SHMQ_SYS_FUTEX_WAITV 449
#define SHMQ_FUTEX_32 2u
#define SHMQ_FUTEX_WAITV_MAX 128u

struct shmq_futex_waiter {
    uint64_t seen;
    uint64_t word;
    uint32_t flags;
    uint32_t unused;
};

static inline struct shmq_futex_waiter shmq_futex_waiter_of(const shmq_word32 *word, uint32_t seen)
{
    return (struct shmq_futex_waiter){
        .seen = seen, .word = (uint64_t)(uintptr_t)word, .flags = SHMQ_FUTEX_32, .unused = 0};
}

/* Waits while each word is what its waiter has seen, until until_ns (monotonic). 1: all that time; 0: not;
 * -1: this kernel, or whoever filters its calls, does not have it. */
static inline int shmq_futex_wait_any(struct shmq_futex_waiter *waiters, uint32_t count, uint64_t until_ns)
{
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u), .tv_nsec = (long)(until_ns % 1000000000u)};
    if (syscall(SHMQ_SYS_FUTEX_WAITV, waiters, count, 0, &until, CLOCK_MONOTONIC) >= 0) {
        return 0;
    }
    return errno == ENOSYS || errno == EPERM ? -1 : errno == ETIMEDOUT;
}

static inline void shmq_futex_wake(shmq_word32 *word)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE, 0x7fffffff, NULL, NULL, 0);
}

/* Never blocks and never fails for us: the counter is non-blocking and nobody has to read it. */
static inline void shmq_eventfd_signal(int fd)
{
    uint64_t one = 1;
    (void)!write(fd, &one, sizeof one);
}

/* Waker's half for one bell. `answered` is the waker's private memory of the last epoch it answered, so
 * that a sleeper that was woken but has not run yet costs no second system call. The caller has published
 * and fenced. Returns 1 if it rang. */
static inline int shmq_bell_ring(struct shmq_bell_line *line, const shmq_word32 *sleep_epoch,
                                 uint32_t *answered)
{
    /* relaxed: ordered by the full fences on both sides (file head) */
    uint32_t epoch = shmq_load_relaxed32(sleep_epoch);
    if ((epoch & 1) == 0 || epoch == *answered) {
        return 0;
    }
    *answered = epoch;
    /* release: pairs with the sleeper's acquire load of the bell in shmq_bell_seen */
    shmq_store_release32(&line->bell, shmq_load_relaxed32(&line->bell) + 1);
    shmq_futex_wake(&line->bell);
    return 1;
}

/* A byte into the stream socket whose other end is a client's; 0: there is none, else its descriptor + 1. Never
 * blocks: this end's flags are ours alone, and what a client that does not read can fill is a bounded buffer of
 * its own (a pipe's mutex it could hold while it reads, an eventfd it could make blocking). */
static inline void shmq_socket_poke(uint32_t socket)
{
    if (socket != 0) {
        uint8_t byte = 1;
        (void)!send((int)(socket - 1), &byte, sizeof byte, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
}

/* As shmq_bell_ring, for a client that may sleep in an event loop. */
static inline int shmq_bell_tell(struct shmq_bell_line *line, const shmq_word32 *sleep_epoch, uint32_t *answered,
                                 uint32_t socket)
{
    if (!shmq_bell_ring(line, sleep_epoch, answered)) {
        return 0;
    }
    shmq_socket_poke(socket);
    return 1;
}

/* acquire: pairs with the release in shmq_bell_ring; what was published before the ring is visible */
static inline uint32_t shmq_bell_seen(const struct shmq_bell_line *line)
{
    return shmq_load_acquire32(&line->bell);
}

/* Sleeper's halves around its last look. */
static inline void shmq_sleep_begin(shmq_word32 *sleep_epoch)
{
    /* relaxed: the fence behind it orders it before the last look */
    shmq_store_relaxed32(sleep_epoch, shmq_load_relaxed32(sleep_epoch) | 1u);
    shmq_fence_full(); /* pairs with the waker's fence between publishing and shmq_bell_ring */
}

static inline void shmq_sleep_end(shmq_word32 *sleep_epoch)
{
    /* release: pairs with nothing that matters; keeps the epoch from moving before the wait */
    shmq_store_release32(sleep_epoch, (shmq_load_relaxed32(sleep_epoch) | 1u) + 1u);
}

#endif
