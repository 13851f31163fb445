/* stats.h: counters that nobody decides by: what refusals, syncs and sends there were, for exporters to read.
 *
 * Byte table: layout.h stats_head, refusals, latency, stats_row. The stats object of a broker is made anew with each
 * life of it: what it counts, it counts since the broker began. A producer's latencies lie in its ingress object.
 * Validity: the object, as every segment, by its magic; a row, while its generation is even and its kind not FREE.
 * Writer algorithm: each struct has one writer (layout.h says who), and no word of it is read by a protocol. A row
 * changes hands under an odd generation. What producers count is hostile: the control thread adds what came since
 * its last look to a sum of the broker's, and a count that goes back or leaps adds nothing.
 * Reader algorithm: words are read one by one, relaxed; of a row the generation is loaded before and compared after.
 * Crash: whatever is lost is statistics. A successor makes a new object; the name leads to that. */
#ifndef SHMQ_STATS_H
#define SHMQ_STATS_H

#include "layout.h"
#include "status.h"

#include <string.h>

#define SHMQ_LATENCY_BOUND_COUNT 19u
/* Nanoseconds: 1, 2, 5, 10, ... us to 500 ms, then 1 s. */
#define SHMQ_LATENCY_BOUNDS                                                                        \
    {1000u,     2000u,     5000u,     10000u,    20000u,     50000u,     100000u,                  \
     200000u,   500000u,   1000000u,  2000000u,  5000000u,   10000000u,  20000000u,                \
     50000000u, 100000000u, 200000000u, 500000000u, 1000000000u}
/* More than this many counts or nanoseconds of one lane between two looks is no honest producer. */
#define SHMQ_LATENCY_LEAP_MAX (UINT64_C(1) << 40)

_Static_assert(sizeof(struct shmq_refusals) == 64 * sizeof(uint64_t) && -SHMQ_IN_SYNC_REPLICAS_NOT_ENOUGH < 64,
               "each status has its count");

/* Adds to a word that the caller alone writes. */
static inline void shmq_stats_add(shmq_word64 *word, uint64_t count)
{
    shmq_store_relaxed(word, shmq_load_relaxed(word) + count); /* relaxed: a counter */
}

/* One thing took so long. Its one writer calls it. */
static inline void shmq_latency_add(struct shmq_latency *latency, uint64_t took_ns)
{
    static const uint64_t bounds[SHMQ_LATENCY_BOUND_COUNT] = SHMQ_LATENCY_BOUNDS;
    uint32_t index = 0;
    while (index < SHMQ_LATENCY_BOUND_COUNT && took_ns > bounds[index]) {
        ++index;
    }
    shmq_stats_add(&latency->counts[index], 1);
    shmq_stats_add(&latency->sum_ns, took_ns);
}

/* Adds what a hostile word has grown by since it was `seen`. */
static inline void shmq_stats_take(shmq_word64 *total, const shmq_word64 *hostile, uint64_t *seen)
{
    uint64_t now = shmq_load_relaxed(hostile); /* relaxed: loaded once, and any value will do */
    uint64_t grown = now - *seen;
    if (grown < SHMQ_LATENCY_LEAP_MAX) {
        shmq_stats_add(total, grown);
    }
    *seen = now;
}

/* What the broker has seen of one lane's counts; process-private. */
struct shmq_lane_seen {
    uint64_t counts[SHMQ_LATENCY_BOUND_COUNT + 1];
    uint64_t sum_ns;
    uint64_t full_count;
};

/* Takes what a producer has counted since the last look into the broker's sums. */
static inline void shmq_stats_take_lane(struct shmq_stats *stats, const struct shmq_lane *lane,
                                        const struct shmq_latency *latency, struct shmq_lane_seen *seen)
{
    for (uint32_t i = 0; i <= SHMQ_LATENCY_BOUND_COUNT; ++i) {
        shmq_stats_take(&stats->send.counts[i], &latency->counts[i], &seen->counts[i]);
    }
    shmq_stats_take(&stats->send.sum_ns, &latency->sum_ns, &seen->sum_ns);
    shmq_stats_take(&stats->head.ring_full_count, &lane->full_count, &seen->full_count);
}

static inline struct shmq_stats_row *shmq_stats_row(struct shmq_stats *stats, uint32_t index)
{
    return (struct shmq_stats_row *)((uint8_t *)stats + SHMQ_STATS_ROWS_PLACE) + index;
}

/* Gives a row to something else; FREE with an empty label takes it away. */
static inline void shmq_stats_row_put(struct shmq_stats_row *row, uint32_t kind, uint32_t queue_row,
                                      uint32_t row_generation, const uint8_t *label, uint32_t label_size)
{
    uint32_t generation = shmq_load_relaxed32(&row->generation) | 1u; /* relaxed: own word */
    /* relaxed + fence: who sees a word of the new use sees the odd generation */
    shmq_store_relaxed32(&row->generation, generation);
    shmq_fence_release(); /* pairs with the acquire of the generation in readers, before and after */
    shmq_store_relaxed32(&row->kind, kind); /* relaxed: visible by the release of the even generation */
    shmq_store_relaxed32(&row->queue_row, queue_row);
    shmq_store_relaxed32(&row->row_generation, row_generation);
    shmq_store_relaxed(&row->value, 0);
    shmq_store_relaxed(&row->passed_count, 0);
    shmq_store_relaxed(&row->waiting_since, 0);
    memset(row->label, 0, sizeof row->label);
    memcpy(row->label, label, label_size);
    row->label_size = label_size;
    /* release: pairs with the acquire of readers; the row is whole */
    shmq_store_release32(&row->generation, generation + 1);
}

#endif
