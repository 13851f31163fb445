/* sleepers.h of the binding: threads that sleep on one bell, each for a reason of its own. A wake-up that is lost
 * hangs, because no slice ends the sleep before the watchdog does. */
/* shmq-test: threads */
#define _GNU_SOURCE
#define SHMQ_SLEEP_SLICE_NS UINT64_C(3600000000000)
#include "../../shmq/core/binding/sleepers.h"

#include "check.h"

#define SLEEPERS 4u
#define ROUNDS 3000u
#define FOR_EVER (shmq_clock_ns(CLOCK_MONOTONIC) + UINT64_C(3600000000000))

struct bed {
    struct shmq_sleepers sleepers;
    struct shmq_bell_line line;
    shmq_word32 sleep_epoch;
    shmq_word32 sleep_reason;
    shmq_word64 published;
    shmq_word64 arrived; /* sleepers that saw the round */
    shmq_word32 stop;
};

struct look {
    struct bed *bed;
    uint64_t wanted;
};

static int is_there(void *what)
{
    const struct look *look = what;
    /* acquire: pairs with the release in wake_all and in the kicker */
    return shmq_load_acquire(&look->bed->published) >= look->wanted ||
           shmq_load_acquire32(&look->bed->stop) != 0;
}

static void lie_down(struct look *look, uint32_t policy, int for_space)
{
    struct shmq_sleep sleep = {
        .bell = &look->bed->line,
        .sleep_epoch = &look->bed->sleep_epoch,
        .sleep_reason = &look->bed->sleep_reason,
        .for_space = for_space,
        .until_ns = FOR_EVER,
        .is_over = is_there,
        .what = look,
    };
    while (!is_there(look)) {
        shmq_sleepers_round(&look->bed->sleepers, &sleep, policy);
    }
}

struct sleeper {
    pthread_t thread;
    struct bed *bed;
    uint32_t number;
};

static void *sleep_every_round(void *argument)
{
    struct sleeper *self = argument;
    for (uint64_t round = 1; round <= ROUNDS; ++round) {
        struct look look = {self->bed, round};
        lie_down(&look, self->number % 2 == 0 ? SHMQ_WAIT_BLOCKING : SHMQ_WAIT_ADAPTIVE, self->number == 1);
        atomic_fetch_add_explicit(&self->bed->arrived, 1, memory_order_acq_rel); /* pairs with the waker's look */
    }
    return NULL;
}

static void start(struct bed *bed, struct sleeper *sleepers, void *(*function)(void *))
{
    memset(bed, 0, sizeof *bed);
    shmq_sleepers_init(&bed->sleepers);
    for (uint32_t i = 0; i < SLEEPERS; ++i) {
        sleepers[i].bed = bed;
        sleepers[i].number = i;
        CHECK(pthread_create(&sleepers[i].thread, NULL, function, &sleepers[i]) == 0);
    }
}

static void join(struct sleeper *sleepers)
{
    for (uint32_t i = 0; i < SLEEPERS; ++i) {
        CHECK(pthread_join(sleepers[i].thread, NULL) == 0);
    }
}

/* The waker is the core's own (shmq_bell_ring), which answers an epoch once. */
static void test_one_ring_gets_up_all_who_wait_for_it(void)
{
    struct bed bed;
    struct sleeper sleepers[SLEEPERS];
    uint32_t answered = 0;
    start(&bed, sleepers, sleep_every_round);
    for (uint64_t round = 1; round <= ROUNDS; ++round) {
        /* release: pairs with the acquire in is_there */
        shmq_store_release(&bed.published, round);
        shmq_fence_full(); /* pairs with the fence in shmq_sleepers_sleep */
        (void)shmq_bell_ring(&bed.line, &bed.sleep_epoch, &answered);
        /* acquire: pairs with the add in sleep_every_round */
        while (shmq_load_acquire(&bed.arrived) < round * SLEEPERS) {
            sched_yield();
        }
    }
    join(sleepers);
    CHECK_EQUAL(shmq_load_relaxed32(&bed.sleep_epoch) & 1, 0); /* the last one made it even */
    CHECK_EQUAL(bed.sleepers.count, 0);
    CHECK_EQUAL(bed.sleepers.space_count, 0);
    CHECK_EQUAL(shmq_load_relaxed32(&bed.sleep_reason), SHMQ_SLEEP_DONE);
}

/* Sleeper 0 waits for every second round, the others for those between, which they do not sleep for twice. */
static void *sleep_by_turns(void *argument)
{
    struct sleeper *self = argument;
    uint64_t first = self->number == 0 ? 2 : 1;
    for (uint64_t round = first; round <= ROUNDS; round += 2) {
        struct look look = {self->bed, round};
        lie_down(&look, SHMQ_WAIT_BLOCKING, 0);
        atomic_fetch_add_explicit(&self->bed->arrived, 1, memory_order_acq_rel); /* pairs with the waker's look */
        while (self->number != 0 && shmq_load_acquire(&self->bed->published) == round) {
            sched_yield(); /* acquire: pairs with the waker's release; awake until the next round has come */
        }
    }
    return NULL;
}

/* A ring for others gets sleeper 0 up as well; it lies down again while they leave, and must not be taken for
 * awake because they are. */
static void test_sleeper_that_lies_down_again_is_not_forgotten_when_others_leave(void)
{
    struct bed bed;
    struct sleeper sleepers[SLEEPERS];
    uint32_t answered = 0;
    uint64_t arrived = 0;
    start(&bed, sleepers, sleep_by_turns);
    for (uint64_t round = 1; round <= ROUNDS; ++round) {
        /* release: pairs with the acquire in is_there */
        shmq_store_release(&bed.published, round);
        shmq_fence_full(); /* pairs with the fence in shmq_sleepers_sleep */
        (void)shmq_bell_ring(&bed.line, &bed.sleep_epoch, &answered);
        arrived += round % 2 == 0 ? 1 : SLEEPERS - 1;
        /* acquire: pairs with the add in sleep_by_turns */
        while (shmq_load_acquire(&bed.arrived) < arrived) {
            sched_yield();
        }
    }
    join(sleepers);
}

static void *sleep_once(void *argument)
{
    struct sleeper *self = argument;
    struct look look = {self->bed, UINT64_MAX};
    lie_down(&look, SHMQ_WAIT_BLOCKING, 0);
    return NULL;
}

/* Nobody rings here: the reason is this process's own. */
static void test_kick_gets_up_all_who_are_down(void)
{
    for (uint32_t round = 0; round < 300; ++round) {
        struct bed bed;
        struct sleeper sleepers[SLEEPERS];
        start(&bed, sleepers, sleep_once);
        for (uint32_t i = 0; i < round % 50; ++i) {
            sched_yield(); /* some are down, some are about to be */
        }
        shmq_store_release32(&bed.stop, 1); /* release: pairs with the acquire in is_there */
        shmq_sleepers_kick(&bed.sleepers, &bed.line);
        join(sleepers);
        CHECK_EQUAL(bed.sleepers.count, 0);
        CHECK_EQUAL(bed.sleepers.kicked, 0);
    }
}

static void *sleep_until_stopped(void *argument)
{
    struct sleeper *self = argument;
    struct look look = {self->bed, UINT64_MAX};
    lie_down(&look, SHMQ_WAIT_ADAPTIVE, 1);
    return NULL;
}

static void test_reason_says_space_while_one_waits_for_it(void)
{
    struct bed bed;
    struct sleeper sleepers[SLEEPERS];
    start(&bed, sleepers, sleep_until_stopped);
    /* relaxed: a look from outside */
    while (shmq_load_relaxed32(&bed.sleep_reason) != (SHMQ_SLEEP_DONE | SHMQ_SLEEP_SPACE)) {
        sched_yield();
    }
    CHECK_EQUAL(shmq_load_relaxed32(&bed.sleep_epoch) & 1, 1);
    shmq_store_release32(&bed.stop, 1); /* release: pairs with the acquire in is_there */
    shmq_sleepers_kick(&bed.sleepers, &bed.line);
    join(sleepers);
    CHECK_EQUAL(shmq_load_relaxed32(&bed.sleep_reason), SHMQ_SLEEP_DONE);
}

struct event_loop {
    struct bed *bed;
    int socket;
};

/* Arms, looks, and only then waits to read; nothing but a byte gets it up. */
static void *loop_every_round(void *argument)
{
    struct event_loop *self = argument;
    uint32_t armed = 0;
    struct shmq_sleep sleep = {.sleep_epoch = &self->bed->sleep_epoch, .sleep_reason = &self->bed->sleep_reason};
    for (uint64_t round = 1; round <= ROUNDS; ++round) {
        struct look look = {self->bed, round};
        shmq_sleepers_arm(&self->bed->sleepers, &sleep, &armed);
        while (!is_there(&look)) {
            char bytes[64];
            CHECK(recv(self->socket, bytes, sizeof bytes, 0) > 0);
            shmq_sleepers_arm(&self->bed->sleepers, &sleep, &armed);
        }
        atomic_fetch_add_explicit(&self->bed->arrived, 1, memory_order_acq_rel); /* pairs with the waker's look */
    }
    shmq_sleepers_disarm(&self->bed->sleepers, &sleep, &armed);
    CHECK_EQUAL(armed, 0);
    return NULL;
}

/* One bell, threads asleep on it and an event loop armed there. */
static void test_event_loop_is_told_beside_sleeping_threads(void)
{
    struct bed bed;
    struct sleeper sleepers[SLEEPERS];
    pthread_t thread;
    uint32_t answered = 0;
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    start(&bed, sleepers, sleep_every_round);
    struct event_loop loop = {&bed, ends[1]};
    CHECK(pthread_create(&thread, NULL, loop_every_round, &loop) == 0);
    for (uint64_t round = 1; round <= ROUNDS; ++round) {
        /* release: pairs with the acquire in is_there */
        shmq_store_release(&bed.published, round);
        shmq_fence_full(); /* pairs with the fence in shmq_sleepers_sleep and shmq_sleepers_arm */
        (void)shmq_bell_tell(&bed.line, &bed.sleep_epoch, &answered, (uint32_t)ends[0] + 1);
        /* acquire: pairs with the adds of the threads */
        while (shmq_load_acquire(&bed.arrived) < round * (SLEEPERS + 1)) {
            sched_yield();
        }
    }
    join(sleepers);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK_EQUAL(shmq_load_relaxed32(&bed.sleep_epoch) & 1, 0);
    CHECK_EQUAL(bed.sleepers.count + bed.sleepers.armed_count + bed.sleepers.space_count, 0);
    (void)close(ends[0]);
    (void)close(ends[1]);
}

/* A kick is for threads: it does not wait for an event loop to leave. */
static void test_kick_does_not_wait_for_an_event_loop(void)
{
    struct bed bed;
    uint32_t armed = 0;
    memset(&bed, 0, sizeof bed);
    shmq_sleepers_init(&bed.sleepers);
    struct shmq_sleep sleep = {.sleep_epoch = &bed.sleep_epoch, .sleep_reason = &bed.sleep_reason, .for_space = 1};
    shmq_sleepers_arm(&bed.sleepers, &sleep, &armed);
    CHECK_EQUAL(shmq_load_relaxed32(&bed.sleep_reason), SHMQ_SLEEP_DONE | SHMQ_SLEEP_SPACE);
    shmq_sleepers_kick(&bed.sleepers, &bed.line);
    CHECK_EQUAL(bed.sleepers.kicked, 0);
    shmq_sleepers_disarm(&bed.sleepers, &sleep, &armed);
    shmq_sleepers_disarm(&bed.sleepers, &sleep, &armed);
    CHECK_EQUAL(bed.sleepers.count, 0);
    CHECK_EQUAL(shmq_load_relaxed32(&bed.sleep_epoch) & 1, 0);
    CHECK_EQUAL(shmq_load_relaxed32(&bed.sleep_reason), SHMQ_SLEEP_DONE);
}

int main(void)
{
    RUN(test_one_ring_gets_up_all_who_wait_for_it);
    RUN(test_sleeper_that_lies_down_again_is_not_forgotten_when_others_leave);
    RUN(test_kick_gets_up_all_who_are_down);
    RUN(test_event_loop_is_told_beside_sleeping_threads);
    RUN(test_kick_does_not_wait_for_an_event_loop);
    RUN(test_reason_says_space_while_one_waits_for_it);
    return 0;
}
