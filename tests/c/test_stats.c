/* stats.h: counts by bucket, what is believed of a producer's counts, rows that change hands. */
#define _GNU_SOURCE
#include "check.h"

#include <shmq/stats.h>

static const uint64_t BOUNDS[] = SHMQ_LATENCY_BOUNDS;

static void test_each_latency_counts_in_the_first_bucket_whose_bound_it_does_not_pass(void)
{
    struct shmq_latency latency = {0};
    uint64_t sum = 0;
    for (uint32_t i = 0; i < SHMQ_LATENCY_BOUND_COUNT; ++i) {
        CHECK(i == 0 || BOUNDS[i] > BOUNDS[i - 1]);
        shmq_latency_add(&latency, BOUNDS[i]);
        CHECK_EQUAL(latency.counts[i], i == 0 ? 1 : 2); /* and the one that passed the bound before it */
        shmq_latency_add(&latency, BOUNDS[i] + 1);
        CHECK_EQUAL(latency.counts[i + 1], 1);
        sum += 2 * BOUNDS[i] + 1;
    }
    shmq_latency_add(&latency, 0);
    CHECK_EQUAL(latency.counts[0], 2);
    CHECK_EQUAL(latency.sum_ns, sum);
    uint64_t longest = UINT64_MAX - sum;
    shmq_latency_add(&latency, longest);
    CHECK_EQUAL(latency.counts[SHMQ_LATENCY_BOUND_COUNT], 2);
}

static void test_what_a_lane_has_counted_is_taken_once(void)
{
    static _Alignas(SHMQ_LINE) uint8_t memory[SHMQ_PAGE];
    struct shmq_stats *stats = (struct shmq_stats *)(void *)memory;
    struct shmq_lane lane = {0};
    struct shmq_latency latency = {0};
    struct shmq_lane_seen seen = {0};
    for (uint32_t round = 1; round <= 3; ++round) {
        shmq_latency_add(&latency, 3000);
        shmq_latency_add(&latency, 2000000000u);
        shmq_stats_add(&lane.full_count, 5);
        for (uint32_t again = 0; again < 2; ++again) {
            shmq_stats_take_lane(stats, &lane, &latency, &seen);
            CHECK_EQUAL(stats->send.counts[2], round);
            CHECK_EQUAL(stats->send.counts[SHMQ_LATENCY_BOUND_COUNT], round);
            CHECK_EQUAL(stats->send.sum_ns, round * 2000003000ull);
            CHECK_EQUAL(stats->head.ring_full_count, round * 5);
        }
    }
}

static void test_a_count_that_goes_back_or_leaps_adds_nothing(void)
{
    shmq_word64 total = 100;
    shmq_word64 hostile = 7;
    uint64_t seen = 0;
    shmq_stats_take(&total, &hostile, &seen);
    CHECK_EQUAL(total, 107);
    const uint64_t lies[] = {6, 0, SHMQ_LATENCY_LEAP_MAX, UINT64_MAX, 3};
    for (uint32_t i = 0; i < sizeof lies / sizeof *lies; ++i) {
        hostile = lies[i];
        uint64_t before = total;
        uint64_t grown = lies[i] - seen;
        shmq_stats_take(&total, &hostile, &seen);
        CHECK_EQUAL(total - before, grown < SHMQ_LATENCY_LEAP_MAX ? grown : 0);
        CHECK_EQUAL(seen, lies[i]);
    }
    CHECK(total < 107 + 2 * SHMQ_LATENCY_LEAP_MAX);
    uint64_t before = total;
    hostile = 4; /* honest again: what it counts from here on counts */
    shmq_stats_take(&total, &hostile, &seen);
    CHECK_EQUAL(total, before + 1);
}

static void test_a_row_that_changes_hands_is_whole_under_its_next_even_generation(void)
{
    static _Alignas(SHMQ_LINE) uint8_t memory[2 * SHMQ_PAGE];
    struct shmq_stats_row *row = shmq_stats_row((struct shmq_stats *)(void *)memory, 3);
    CHECK_EQUAL((uint8_t *)row - memory, SHMQ_STATS_ROWS_PLACE + 3 * sizeof *row);
    shmq_stats_row_put(row, SHMQ_STATS_VALUE, 0, 0, (const uint8_t *)"a longer label", 14);
    CHECK_EQUAL(row->generation, 2);
    row->value = 9;
    row->passed_count = 8;
    row->waiting_since = 7;
    shmq_stats_row_put(row, SHMQ_STATS_CONSUMER_OFFSET, 11, 12, (const uint8_t *)"group", 5);
    CHECK_EQUAL(row->generation, 4);
    CHECK_EQUAL(row->kind, SHMQ_STATS_CONSUMER_OFFSET);
    CHECK_EQUAL(row->queue_row, 11);
    CHECK_EQUAL(row->row_generation, 12);
    CHECK_EQUAL(row->value | row->passed_count | row->waiting_since, 0);
    CHECK_EQUAL(row->label_size, 5);
    CHECK_BYTES(row->label, "group\0\0\0\0", 10);
    row->generation = 5; /* its writer died in between: the next use is whole all the same */
    shmq_stats_row_put(row, SHMQ_STATS_FREE, 0, 0, (const uint8_t *)"", 0);
    CHECK_EQUAL(row->generation, 6);
    CHECK_EQUAL(row->kind, SHMQ_STATS_FREE);
}

int main(void)
{
    RUN(test_each_latency_counts_in_the_first_bucket_whose_bound_it_does_not_pass);
    RUN(test_what_a_lane_has_counted_is_taken_once);
    RUN(test_a_count_that_goes_back_or_leaps_adds_nothing);
    RUN(test_a_row_that_changes_hands_is_whole_under_its_next_even_generation);
    return 0;
}
