/* waiter.h: the ladder, the bells, and the calls that must never block. Two threads that ring each other are in
 * test_threads.c, all their interleavings in tests/model. */
#define _GNU_SOURCE
#include "store_truth.h"

#include <fcntl.h>
#include <sys/eventfd.h>

static uint32_t rungs(uint32_t policy)
{
    struct shmq_ladder ladder = {.policy = policy};
    uint32_t count = 0;
    while (shmq_ladder_climb(&ladder)) {
        ++count;
    }
    return count;
}

static void test_ladder_climbs_as_its_policy_says(void)
{
    CHECK_EQUAL(rungs(SHMQ_WAIT_BLOCKING), 0);
    uint32_t adaptive = rungs(SHMQ_WAIT_ADAPTIVE); /* fewer if the machine is busy and a yield comes back late */
    CHECK(adaptive <= SHMQ_LADDER_PAUSES + SHMQ_LADDER_YIELDS && adaptive >= SHMQ_LADDER_LATE_PAUSES);
    CHECK_EQUAL(rungs(SHMQ_WAIT_BUSY_SPIN), SHMQ_SPIN_CHECK);
    struct shmq_ladder spinner = {.policy = SHMQ_WAIT_BUSY_SPIN};
    for (uint32_t lap = 0; lap < 3; ++lap) { /* it never sleeps, it only looks up */
        uint32_t count = 0;
        while (shmq_ladder_climb(&spinner)) {
            ++count;
        }
        CHECK_EQUAL(count, SHMQ_SPIN_CHECK);
    }
}

static void test_ladder_does_not_yield_for_a_while_after_a_yield_that_came_back_late(void)
{
    struct shmq_ladder ladder = {.policy = SHMQ_WAIT_ADAPTIVE, .late = 3};
    for (uint32_t climb = 0; climb < 3; ++climb) {
        CHECK_EQUAL(ladder.late, 3 - climb);
        ladder.step = 0;
        uint32_t count = 0;
        while (shmq_ladder_climb(&ladder)) {
            ++count;
        }
        CHECK_EQUAL(count, SHMQ_LADDER_LATE_PAUSES);
    }
    CHECK_EQUAL(ladder.late, 0);
}

static void test_bell_is_rung_once_for_each_sleep(void)
{
    struct shmq_bell_line line = {0};
    shmq_word32 epoch = 0;
    uint32_t answered = 0;
    CHECK_EQUAL(shmq_bell_ring(&line, &epoch, &answered), 0); /* awake */
    for (uint32_t sleep = 1; sleep < 5; ++sleep) {
        shmq_sleep_begin(&epoch);
        CHECK_EQUAL(epoch % 2, 1);
        CHECK_EQUAL(shmq_bell_ring(&line, &epoch, &answered), 1);
        CHECK_EQUAL(shmq_bell_ring(&line, &epoch, &answered), 0); /* it has not run yet: once is enough */
        CHECK_EQUAL(shmq_bell_seen(&line), sleep);
        shmq_sleep_end(&epoch);
        CHECK_EQUAL(epoch % 2, 0);
        CHECK_EQUAL(shmq_bell_ring(&line, &epoch, &answered), 0);
    }
}

/* A sleeper that died asleep, and one whose epoch is nonsense, cost a wake and nothing else. */
static void test_any_value_of_a_sleepers_word_will_do(void)
{
    struct shmq_bell_line line = {0};
    uint32_t answered = 0;
    const uint32_t values[] = {1, 0xffffffffu, 0x80000001u, 7, 0, 2, 0xfffffffeu};
    uint32_t rung = 0;
    for (uint32_t i = 0; i < sizeof values / sizeof *values; ++i) {
        shmq_word32 epoch = values[i];
        rung += (uint32_t)shmq_bell_ring(&line, &epoch, &answered);
        rung += (uint32_t)shmq_bell_ring(&line, &epoch, &answered);
    }
    CHECK_EQUAL(rung, 4);
    shmq_word32 last = 0xffffffffu; /* the epoch goes round */
    shmq_sleep_end(&last);
    CHECK_EQUAL(last, 0);
    shmq_sleep_begin(&last);
    CHECK_EQUAL(last, 1);
}

static void test_wait_returns_at_once_if_the_bell_has_rung_since_the_look(void)
{
    uint8_t *region = fixture_region(SHMQ_PAGE);
    struct shmq_bell_line *line = (struct shmq_bell_line *)(void *)region;
    uint32_t seen = shmq_bell_seen(line);
    shmq_store_release32(&line->bell, seen + 1);
    shmq_futex_wait(&line->bell, seen, UINT64_C(3600) * 1000000000u); /* an hour, if it did wait */
    CHECK_EQUAL(shmq_bell_seen(line), seen + 1);
    munmap(region, SHMQ_PAGE);
}

/* A client has its bell read-only: the kernel must let it wait there, and end the wait in time. */
static void test_bounded_wait_works_on_a_read_only_mapping(void)
{
    int fd = memfd_create("bell", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, SHMQ_PAGE) == 0);
    const shmq_word32 *bell = mmap(NULL, SHMQ_PAGE, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(bell != MAP_FAILED);
    uint64_t before = shmq_clock_ns(CLOCK_MONOTONIC);
    shmq_futex_wait(bell, 0, 20000000u);
    CHECK(shmq_clock_ns(CLOCK_MONOTONIC) - before >= 20000000u);
    munmap((void *)(uintptr_t)bell, SHMQ_PAGE);
    close(fd);
}

/* Nobody reads the eventfd: its counter may be full, and then the signal must not wait either. */
static void test_signal_never_blocks_on_a_full_eventfd(void)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK(fd >= 0);
    uint64_t full = UINT64_MAX - 1;
    CHECK_EQUAL(write(fd, &full, sizeof full), sizeof full);
    shmq_eventfd_signal(fd);
    shmq_eventfd_signal(fd);
    close(fd);
    shmq_eventfd_signal(fd); /* the broker is gone: nothing happens */
    shmq_eventfd_signal(-1);
}

int main(void)
{
    RUN(test_ladder_climbs_as_its_policy_says);
    RUN(test_ladder_does_not_yield_for_a_while_after_a_yield_that_came_back_late);
    RUN(test_bell_is_rung_once_for_each_sleep);
    RUN(test_any_value_of_a_sleepers_word_will_do);
    RUN(test_wait_returns_at_once_if_the_bell_has_rung_since_the_look);
    RUN(test_bounded_wait_works_on_a_read_only_mapping);
    RUN(test_signal_never_blocks_on_a_full_eventfd);
    return 0;
}
