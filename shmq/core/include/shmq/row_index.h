/* row_index.h: topic and queue_id -> queue row, for those who meet frames instead of handles.
 *
 * Byte table: process-private open addressing table of row numbers + 1, a power of two, at most half full.
 * Validity: rebuilt from the rows at start; added to when a row is made, removed from before it is deleted (while
 * its topic row still says its name); never shared.
 * Writer algorithm (append role): linear probing from the hash of topic and queue_id; what follows a removed slot
 * moves up, so that no tombstone is left. Reader algorithm: the same probing.
 * Crash: gone with the process; its successor rebuilds it from the topic and queue rows. */
#ifndef SHMQ_ROW_INDEX_H
#define SHMQ_ROW_INDEX_H

#include "layout.h"

#include <string.h>

struct shmq_row_index {
    uint32_t *slots; /* row + 1, 0 = free */
    uint32_t mask;   /* slots - 1 */
    uint32_t count;
    const struct shmq_control *control;
    const uint8_t *topics; /* base of the topics segment */
};

static inline const struct shmq_topic_row *shmq_topics_row(const uint8_t *topics, uint32_t index)
{
    return (const struct shmq_topic_row *)(const void *)(topics + SHMQ_TOPIC_ROWS_PLACE) + index;
}

/* FNV-1a over the topic, then the queue id: short keys, no hostile chooser (topics are granted). */
static inline uint32_t shmq_row_index_hash(const uint8_t *topic, uint32_t topic_size, uint32_t queue_id)
{
    uint32_t hash = 2166136261u;
    for (uint32_t i = 0; i < topic_size; ++i) {
        hash = (hash ^ topic[i]) * 16777619u;
    }
    hash = (hash ^ (queue_id & 0xffffu)) * 16777619u;
    hash = (hash ^ (queue_id >> 16)) * 16777619u;
    return hash ^ (hash >> 15);
}

static inline const struct shmq_queue_row *shmq_row_index_row(const struct shmq_row_index *index, uint32_t row)
{
    return (const struct shmq_queue_row *)(const void *)((const uint8_t *)index->control +
                                                         index->control->config.queue_rows_place) + row;
}

/* The row of (topic, queue_id), or UINT32_MAX. Deleted rows are not found. */
static inline uint32_t shmq_row_index_find(const struct shmq_row_index *index, const uint8_t *topic,
                                           uint32_t topic_size, uint32_t queue_id)
{
    uint32_t at = shmq_row_index_hash(topic, topic_size, queue_id) & index->mask;
    for (uint32_t step = 0; step <= index->mask; ++step, at = (at + 1) & index->mask) {
        uint32_t entry = index->slots[at];
        if (entry == 0) {
            break;
        }
        const struct shmq_queue_row *row = shmq_row_index_row(index, entry - 1);
        const struct shmq_topic_row *name = shmq_topics_row(index->topics, row->topic_row);
        /* relaxed: only the append role, which calls this, changes rows */
        uint32_t state = shmq_load_relaxed32(&row->state);
        if (row->queue_id == queue_id && (state == SHMQ_ROW_ACTIVE || state == SHMQ_ROW_READ_ONLY) &&
            name->topic_size == topic_size && memcmp(name->topic, topic, topic_size) == 0) {
            return entry - 1;
        }
    }
    return UINT32_MAX;
}

static inline uint32_t shmq_row_index_home(const struct shmq_row_index *index, uint32_t row)
{
    const struct shmq_queue_row *queue = shmq_row_index_row(index, row);
    const struct shmq_topic_row *name = shmq_topics_row(index->topics, queue->topic_row);
    return shmq_row_index_hash(name->topic, name->topic_size, queue->queue_id) & index->mask;
}

/* The caller keeps the table at most half full. */
static inline void shmq_row_index_add(struct shmq_row_index *index, uint32_t row)
{
    uint32_t at = shmq_row_index_home(index, row);
    while (index->slots[at] != 0 && index->slots[at] != row + 1) {
        at = (at + 1) & index->mask;
    }
    if (index->slots[at] == 0) {
        index->slots[at] = row + 1;
        index->count += 1;
    }
}

static inline void shmq_row_index_remove(struct shmq_row_index *index, uint32_t row)
{
    uint32_t at = shmq_row_index_home(index, row);
    while (index->slots[at] != row + 1) {
        if (index->slots[at] == 0) {
            return;
        }
        at = (at + 1) & index->mask;
    }
    index->count -= 1;
    uint32_t next = at;
    for (uint32_t step = 0; step <= index->mask; ++step) {
        next = (next + 1) & index->mask;
        if (index->slots[next] == 0) {
            break;
        }
        /* It may move up to the hole if its home is not behind it. */
        uint32_t home = shmq_row_index_home(index, index->slots[next] - 1);
        if (((next - home) & index->mask) >= ((next - at) & index->mask)) {
            index->slots[at] = index->slots[next];
            at = next;
        }
    }
    index->slots[at] = 0;
}

#endif
