/* sleepers.h: several threads of one process asleep on one bell.
 *
 * waiter.h has one sleeper per epoch word. Here every thread that lies down makes the epoch a new odd number,
 * so that the waker, which answers an epoch once, answers this one too; the last that gets up makes it even.
 * The bell was read before, so an answer to any later epoch also changes it for those who lay down earlier.
 * A kick gets all of them up that are down now, for reasons of this process (a close, a completion taken):
 * the bell's word is the broker's, so the kicker wakes and looks until they have left. */
#ifndef SHMQ_BINDING_SLEEPERS_H
#define SHMQ_BINDING_SLEEPERS_H

#include "shmq/waiter.h"

#include <pthread.h>

/* Rounds of a kick: each wakes and yields. A sleeper that does not get a processor for so long finds the reason
 * when its own bounded wait ends. */
#define SHMQ_KICK_ROUNDS 1000u
/* The longest sleep without a look around. A test makes it longer than its watchdog, so that no slice hides a
 * wake-up that was lost. */
#ifndef SHMQ_SLEEP_SLICE_NS
#define SHMQ_SLEEP_SLICE_NS UINT64_C(1000000000)
#endif

struct shmq_sleepers {
    pthread_mutex_t lock; /* bounds: a few loads and stores */
    uint32_t count;
    uint32_t space_count; /* those of them that wait for space in a ring */
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

/* Sleeps until the bell rings, a kick, until_ns, or one slice at most. Call without the GIL. */
static inline void shmq_sleepers_sleep(struct shmq_sleepers *self, const struct shmq_sleep *sleep)
{
    uint32_t seen = shmq_bell_seen(sleep->bell);
    pthread_mutex_lock(&self->lock);
    self->count += 1;
    self->space_count += (uint32_t)(sleep->for_space != 0);
    uint32_t kicks = shmq_load_relaxed32(&self->kicks);             /* relaxed: under the lock */
    uint32_t epoch = shmq_load_relaxed32(sleep->sleep_epoch);       /* relaxed: ours, under the lock */
    shmq_store_relaxed32(sleep->sleep_epoch, (epoch | 1u) + (epoch & 1u) * 2u);
    shmq_sleepers_reason(self, sleep);
    pthread_mutex_unlock(&self->lock);
    shmq_fence_full(); /* pairs with the waker's fence between publishing and shmq_bell_ring */
    uint64_t now_ns = shmq_clock_ns(CLOCK_MONOTONIC);
    /* acquire: pairs with the release in shmq_sleepers_kick */
    if (!sleep->is_over(sleep->what) && shmq_load_acquire32(&self->kicks) == kicks && now_ns < sleep->until_ns) {
        uint64_t left_ns = sleep->until_ns - now_ns;
        shmq_futex_wait(&sleep->bell->bell, seen, left_ns < SHMQ_SLEEP_SLICE_NS ? left_ns : SHMQ_SLEEP_SLICE_NS);
    }
    pthread_mutex_lock(&self->lock);
    self->count -= 1;
    self->space_count -= (uint32_t)(sleep->for_space != 0);
    self->kicked -= (uint32_t)(shmq_load_relaxed32(&self->kicks) != kicks); /* relaxed: under the lock */
    if (self->count == 0) {
        shmq_sleep_end(sleep->sleep_epoch);
    }
    shmq_sleepers_reason(self, sleep);
    pthread_mutex_unlock(&self->lock);
}

/* One round of waiting: climbs the ladder, then sleeps; the caller looks at the clock, at signals and at why it
 * may have been kicked before the next one. Call without the GIL. */
static inline void shmq_sleepers_round(struct shmq_sleepers *self, const struct shmq_sleep *sleep, uint32_t policy)
{
    /* relaxed: a hint */
    struct shmq_ladder ladder = {.policy = policy, .late = shmq_load_relaxed32(&self->late)};
    int is_over;
    do { /* bounded by the ladder */
        is_over = sleep->is_over(sleep->what);
    } while (!is_over && shmq_ladder_climb(&ladder));
    shmq_store_relaxed32(&self->late, ladder.late); /* relaxed: a hint */
    if (is_over) {
        return;
    }
    if (policy != SHMQ_WAIT_BUSY_SPIN) {
        shmq_sleepers_sleep(self, sleep);
    }
}

/* Gets everybody up who is down on this bell now. */
static inline void shmq_sleepers_kick(struct shmq_sleepers *self, const struct shmq_bell_line *bell)
{
    pthread_mutex_lock(&self->lock);
    self->kicked = self->count;
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
