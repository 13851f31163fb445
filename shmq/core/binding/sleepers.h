/* sleepers.h: several threads of one process asleep on one bell.
 *
 * waiter.h has one sleeper per epoch word. Here every thread that lies down makes the epoch a new odd number,
 * so that the waker, which answers an epoch once, answers this one too; the last that gets up makes it even.
 * The bell was read before, so an answer to any later epoch also changes it for those who lay down earlier.
 * A kick gets all of them up that are down now, for reasons of this process (a close, a completion taken):
 * the bell's word is the broker's, so the kicker wakes and looks until they have left. A thread may also lie
 * down on several bells at once, one of each broker it waits for.
 * An event loop cannot sleep on a bell: it is armed there, which makes the epoch odd for as long as it likes, and
 * sleeps on its session's socket. It is nobody's thread, so no kick waits for it to leave. */
#ifndef SHMQ_BINDING_SLEEPERS_H
#define SHMQ_BINDING_SLEEPERS_H

#include "shmq/waiter.h"

#include <pthread.h>

/* Rounds of a kick: each wakes and yields. A sleeper that does not get a processor for so long finds the reason
 * when its own bounded wait ends. */
#define SHMQ_KICK_ROUNDS 1000u
/* The longest sleep on one of several bells where the kernel cannot wait for all. */
#define SHMQ_SLEEP_BLIND_NS UINT64_C(5000000)
/* The longest sleep without a look around. A test makes it longer than its watchdog, so that no slice hides a
 * wake-up that was lost. */
#ifndef SHMQ_SLEEP_SLICE_NS
#define SHMQ_SLEEP_SLICE_NS UINT64_C(1000000000)
#endif

struct shmq_sleepers {
    pthread_mutex_t lock; /* bounds: a few loads and stores */
    uint32_t count;
    uint32_t space_count; /* those of them that wait for space in a ring */
    uint32_t armed_count; /* those of them that are no threads */
    uint32_t kicked;      /* those of them that were down at the last kick and have not left */
    shmq_word32 kicks;
    shmq_word32 late; /* shmq_ladder.late between two rounds; a hint, whichever thread wrote it */
};

/* What a thread waits for; the same memory must stay mapped until shmq_sleepers_sleep returns. */
struct shmq_sleep {
    const struct shmq_bell_line *bell;
    shmq_word32 *sleep_epoch;
    shmq_word32 *sleep_reason; /* NULL: the word has none */
    int for_space;
    uint64_t until_ns; /* monotonic */
    int (*is_over)(void *what); /* is there anything to get up for? Reasons of a kick included */
    void *what;
    int is_quiet; /* the last round slept a whole slice: this one need not look long before it sleeps */
};

/* What a thread that lies down has seen. */
struct shmq_nap {
    uint32_t seen;
    uint32_t kicks;
};

static inline void shmq_sleepers_init(struct shmq_sleepers *self)
{
    (void)pthread_mutex_init(&self->lock, NULL);
}

/* relaxed under the lock: the fence of shmq_sleepers_sleep orders it, any value is acceptable to the waker */
static inline void shmq_sleepers_reason(const struct shmq_sleepers *self, const struct shmq_sleep *sleep)
{
    if (sleep->sleep_reason != NULL) {
        shmq_store_relaxed32(sleep->sleep_reason,
                             SHMQ_SLEEP_DONE | (self->space_count != 0 ? SHMQ_SLEEP_SPACE : 0));
    }
}

static inline void shmq_sleepers_lie_down(struct shmq_sleepers *self, const struct shmq_sleep *sleep,
                                          struct shmq_nap *nap)
{
    nap->seen = shmq_bell_seen(sleep->bell);
    pthread_mutex_lock(&self->lock);
    self->count += 1;
    self->space_count += (uint32_t)(sleep->for_space != 0);
    nap->kicks = shmq_load_relaxed32(&self->kicks);           /* relaxed: under the lock */
    uint32_t epoch = shmq_load_relaxed32(sleep->sleep_epoch); /* relaxed: ours, under the lock */
    shmq_store_relaxed32(sleep->sleep_epoch, (epoch | 1u) + (epoch & 1u) * 2u);
    shmq_sleepers_reason(self, sleep);
    pthread_mutex_unlock(&self->lock);
}

static inline int shmq_sleepers_is_up(struct shmq_sleepers *self, const struct shmq_sleep *sleep,
                                      const struct shmq_nap *nap)
{
    /* acquire: pairs with the release in shmq_sleepers_kick */
    return sleep->is_over(sleep->what) || shmq_load_acquire32(&self->kicks) != nap->kicks;
}

static inline void shmq_sleepers_get_up(struct shmq_sleepers *self, const struct shmq_sleep *sleep,
                                        const struct shmq_nap *nap)
{
    pthread_mutex_lock(&self->lock);
    self->count -= 1;
    self->space_count -= (uint32_t)(sleep->for_space != 0);
    self->kicked -= (uint32_t)(shmq_load_relaxed32(&self->kicks) != nap->kicks); /* relaxed: under the lock */
    if (self->count == 0) {
        shmq_sleep_end(sleep->sleep_epoch);
    }
    shmq_sleepers_reason(self, sleep);
    pthread_mutex_unlock(&self->lock);
}

#define SHMQ_ARMED 0x1u
#define SHMQ_ARMED_SPACE 0x2u

/* Counts an event loop among the sleepers, once, and lets the waker answer anew. What is published from now on is
 * told; what was published before, the caller sees when it looks after this. */
static inline void shmq_sleepers_arm(struct shmq_sleepers *self, const struct shmq_sleep *sleep, uint32_t *armed)
{
    pthread_mutex_lock(&self->lock);
    uint32_t is_new = (uint32_t)((*armed & SHMQ_ARMED) == 0);
    self->count += is_new;
    self->armed_count += is_new;
    self->space_count -= (uint32_t)((*armed & SHMQ_ARMED_SPACE) != 0);
    self->space_count += (uint32_t)(sleep->for_space != 0);
    *armed = SHMQ_ARMED | (sleep->for_space != 0 ? SHMQ_ARMED_SPACE : 0);
    uint32_t epoch = shmq_load_relaxed32(sleep->sleep_epoch); /* relaxed: ours, under the lock */
    shmq_store_relaxed32(sleep->sleep_epoch, (epoch | 1u) + (epoch & 1u) * 2u);
    shmq_sleepers_reason(self, sleep);
    pthread_mutex_unlock(&self->lock);
    shmq_fence_full(); /* pairs with the waker's fence between publishing and shmq_bell_ring */
}

static inline void shmq_sleepers_disarm(struct shmq_sleepers *self, const struct shmq_sleep *sleep, uint32_t *armed)
{
    if (*armed == 0) {
        return;
    }
    pthread_mutex_lock(&self->lock);
    self->count -= 1;
    self->armed_count -= 1;
    self->space_count -= (uint32_t)((*armed & SHMQ_ARMED_SPACE) != 0);
    *armed = 0;
    if (self->count == 0) {
        shmq_sleep_end(sleep->sleep_epoch);
    }
    shmq_sleepers_reason(self, sleep);
    pthread_mutex_unlock(&self->lock);
}

/* Sleeps until the bell rings, a kick, until_ns, or one slice at most. Call without the GIL. */
static inline void shmq_sleepers_sleep(struct shmq_sleepers *self, struct shmq_sleep *sleep)
{
    struct shmq_nap nap;
    shmq_sleepers_lie_down(self, sleep, &nap);
    shmq_fence_full(); /* pairs with the waker's fence between publishing and shmq_bell_ring */
    uint64_t now_ns = shmq_clock_ns(CLOCK_MONOTONIC);
    sleep->is_quiet = 0;
    if (!shmq_sleepers_is_up(self, sleep, &nap) && now_ns < sleep->until_ns) {
        uint64_t left_ns = sleep->until_ns - now_ns;
        sleep->is_quiet = shmq_futex_wait(&sleep->bell->bell, nap.seen,
                                          left_ns < SHMQ_SLEEP_SLICE_NS ? left_ns : SHMQ_SLEEP_SLICE_NS);
    }
    shmq_sleepers_get_up(self, sleep, &nap);
}

/* As shmq_sleepers_sleep, on the bells of all `sleeps`, which end at the same time; at most
 * SHMQ_FUTEX_WAITV_MAX. Where the kernel cannot, it sleeps on the first, shortly. */
static inline void shmq_sleepers_sleep_any(struct shmq_sleepers *const *selves, struct shmq_sleep *sleeps,
                                           uint32_t count)
{
    struct shmq_nap naps[SHMQ_FUTEX_WAITV_MAX];
    struct shmq_futex_waiter waiters[SHMQ_FUTEX_WAITV_MAX];
    for (uint32_t i = 0; i < count; ++i) {
        shmq_sleepers_lie_down(selves[i], &sleeps[i], &naps[i]);
        waiters[i] = shmq_futex_waiter_of(&sleeps[i].bell->bell, naps[i].seen);
    }
    shmq_fence_full(); /* as in shmq_sleepers_sleep */
    uint64_t now_ns = shmq_clock_ns(CLOCK_MONOTONIC);
    int is_up = now_ns >= sleeps[0].until_ns;
    for (uint32_t i = 0; i < count && !is_up; ++i) {
        is_up = shmq_sleepers_is_up(selves[i], &sleeps[i], &naps[i]);
    }
    int is_quiet = 0;
    if (!is_up) {
        uint64_t left_ns = sleeps[0].until_ns - now_ns;
        left_ns = left_ns < SHMQ_SLEEP_SLICE_NS ? left_ns : SHMQ_SLEEP_SLICE_NS;
        is_quiet = shmq_futex_wait_any(waiters, count, now_ns + left_ns);
        if (is_quiet < 0) {
            is_quiet = shmq_futex_wait(&sleeps[0].bell->bell, naps[0].seen,
                                       left_ns < SHMQ_SLEEP_BLIND_NS ? left_ns : SHMQ_SLEEP_BLIND_NS);
        }
    }
    for (uint32_t i = 0; i < count; ++i) {
        sleeps[i].is_quiet = is_quiet;
        shmq_sleepers_get_up(selves[i], &sleeps[i], &naps[i]);
    }
}

/* Climbs the ladder until one of the reasons is there: 1; or until it is time to sleep: 0. */
static inline int shmq_sleepers_look(struct shmq_sleepers *const *selves, const struct shmq_sleep *sleeps,
                                     uint32_t count, uint32_t policy)
{
    struct shmq_ladder ladder = {.policy = policy, .late = shmq_load_relaxed32(&selves[0]->late)}; /* relaxed: a hint */
    int is_over;
    do { /* bounded by the ladder */
        is_over = 0;
        for (uint32_t i = 0; i < count && !is_over; ++i) {
            is_over = sleeps[i].is_over(sleeps[i].what);
        }
    } while (!is_over && (policy == SHMQ_WAIT_BUSY_SPIN || !sleeps[0].is_quiet) && shmq_ladder_climb(&ladder));
    shmq_store_relaxed32(&selves[0]->late, ladder.late); /* relaxed: a hint */
    return is_over;
}

/* One round of waiting: climbs the ladder, then sleeps; the caller looks at the clock, at signals and at why it
 * may have been kicked before the next one. Call without the GIL. */
static inline void shmq_sleepers_round(struct shmq_sleepers *self, struct shmq_sleep *sleep, uint32_t policy)
{
    if (!shmq_sleepers_look(&self, sleep, 1, policy) && policy != SHMQ_WAIT_BUSY_SPIN) {
        shmq_sleepers_sleep(self, sleep);
    }
}

/* One round on several bells. */
static inline void shmq_sleepers_round_any(struct shmq_sleepers *const *selves, struct shmq_sleep *sleeps,
                                           uint32_t count, uint32_t policy)
{
    if (!shmq_sleepers_look(selves, sleeps, count, policy) && policy != SHMQ_WAIT_BUSY_SPIN) {
        shmq_sleepers_sleep_any(selves, sleeps, count);
    }
}

/* Gets everybody up who is down on this bell now. */
static inline void shmq_sleepers_kick(struct shmq_sleepers *self, const struct shmq_bell_line *bell)
{
    pthread_mutex_lock(&self->lock);
    self->kicked = self->count - self->armed_count;
    /* release: pairs with the acquire in shmq_sleepers_sleep; the reason for the kick is visible */
    shmq_store_release32(&self->kicks, shmq_load_relaxed32(&self->kicks) + 1);
    uint32_t left = self->kicked;
    pthread_mutex_unlock(&self->lock);
    for (uint32_t round = 0; left != 0 && round < SHMQ_KICK_ROUNDS; ++round) {
        shmq_futex_wake((shmq_word32 *)(uintptr_t)&bell->bell); /* a wake needs no right to write */
        sched_yield();
        pthread_mutex_lock(&self->lock);
        left = self->kicked;
        pthread_mutex_unlock(&self->lock);
    }
}

#endif
