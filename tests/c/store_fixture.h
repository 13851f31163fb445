/* store_fixture.h: a store's memory in one process, for tests of the core without Python. Everything that
 * would be a shared object is one calloc here; threads stand in for processes. */
#ifndef SHMQ_STORE_FIXTURE_H
#define SHMQ_STORE_FIXTURE_H

#include "shmq/recovery.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_THREAD__)
shmq_word32 shmq_tsan_fence_word;
#endif

#define FIXTURE_SESSIONS 8u
#define FIXTURE_ROWS 64u
#define FIXTURE_SUBSCRIPTIONS 256u

struct fixture {
    struct shmq_append append;
    struct shmq_control *control;
    uint8_t *topics;
    uint8_t *hot[SHMQ_HOT_SLOT_MAX];
    uint8_t *ingress[FIXTURE_SESSIONS];
    uint8_t *completion[FIXTURE_SESSIONS];
    uint8_t *consumer[FIXTURE_SESSIONS];
    uint64_t grants[FIXTURE_ROWS / 64 + 1];
    uint32_t blocks;
};

static inline void *fixture_memory(size_t size)
{
    void *memory = aligned_alloc(SHMQ_PAGE, (size + SHMQ_PAGE - 1) / SHMQ_PAGE * SHMQ_PAGE);
    if (memory == NULL) {
        abort();
    }
    memset(memory, 0, (size + SHMQ_PAGE - 1) / SHMQ_PAGE * SHMQ_PAGE);
    return memory;
}

/* The process-private half: what a successor makes anew around the shared half. */
static inline void fixture_private(struct fixture *f)
{
    struct shmq_append *a = &f->append;
    struct shmq_control_config *config = &f->control->config;
    memset(a, 0, sizeof *a);
    a->control = f->control;
    a->topics = f->topics;
    a->rings = fixture_memory(FIXTURE_SESSIONS * SHMQ_LANE_MAX * sizeof *a->rings);
    a->rows = fixture_memory(FIXTURE_ROWS * sizeof *a->rows);
    a->subscriptions = fixture_memory(FIXTURE_SUBSCRIPTIONS * sizeof *a->subscriptions);
    a->bells = fixture_memory(FIXTURE_SESSIONS * SHMQ_CONSUMER_BELL_MAX * sizeof *a->bells);
    a->marked_bells = fixture_memory(FIXTURE_SESSIONS * SHMQ_CONSUMER_BELL_MAX * sizeof(uint32_t));
    a->touched = fixture_memory(SHMQ_TURN_RECORDS_MAX * sizeof(uint32_t));
    a->pending_rows = fixture_memory(FIXTURE_ROWS * sizeof(uint32_t));
    a->pending_rings = fixture_memory(FIXTURE_SESSIONS * SHMQ_LANE_MAX * sizeof(uint32_t));
    a->staged = fixture_memory(SHMQ_TURN_RECORDS_MAX * sizeof *a->staged);
    a->flush_timeout_ns = 5000000000u;
    a->replica_timeout_ns = 3000000000u;
    a->log.file_size_bytes = config->file_size_bytes;
    a->log.hot_slot_count = config->hot_slot_count;
    a->row_index.slots = fixture_memory(4 * FIXTURE_ROWS * sizeof(uint32_t));
    a->row_index.mask = 4 * FIXTURE_ROWS - 1;
    a->row_index.control = f->control;
    a->row_index.topics = f->topics;
}

static inline void fixture_private_free(struct fixture *f)
{
    struct shmq_append *a = &f->append;
    free(a->rings);
    free(a->rows);
    free(a->subscriptions);
    free(a->bells);
    free(a->marked_bells);
    free(a->touched);
    free(a->pending_rows);
    free(a->pending_rings);
    free(a->staged);
    free(a->row_index.slots);
    free(a->arena.free_blocks);
    a->arena.free_blocks = NULL;
}

static inline struct fixture *fixture_open(uint64_t file_size, uint32_t hot_slots, uint32_t blocks)
{
    struct fixture *f = fixture_memory(sizeof *f);
    struct shmq_control_config config = {0};
    config.file_size_bytes = file_size;
    config.hot_slot_count = hot_slots;
    config.session_slot_count = FIXTURE_SESSIONS;
    config.queue_row_max = FIXTURE_ROWS;
    config.topic_row_max = FIXTURE_ROWS;
    config.arena_block_max = blocks;
    config.message_size_max = 4u << 20;
    memcpy(config.store_host, "\x7f\0\0\1\0\0\x2a\x9f", 8);
    uint64_t size = shmq_control_place(&config);
    f->control = fixture_memory(size + FIXTURE_ROWS * sizeof(struct shmq_queue_row));
    f->control->config = config;
    f->topics = fixture_memory(SHMQ_TOPIC_ROWS_PLACE + FIXTURE_ROWS * sizeof(struct shmq_topic_row));
    fixture_private(f);
    f->blocks = blocks;
    f->append.arena.base = fixture_memory((size_t)blocks * SHMQ_BLOCK_SIZE);
    f->append.arena.free_blocks = fixture_memory(blocks * sizeof(uint32_t));
    f->append.arena.block_count = blocks;
    for (uint32_t b = blocks; b-- > 1;) {
        shmq_arena_free(&f->append.arena, b);
    }
    for (uint32_t i = 0; i < hot_slots; ++i) {
        f->hot[i] = fixture_memory(file_size);
        shmq_append_ready(&f->append, i * file_size, f->hot[i], i);
    }
    memset(f->grants, 0xff, sizeof f->grants);
    return f;
}

/* As after the death of the process: the shared half stays, the private half is made anew and adopts. */
static inline int fixture_adopt(struct fixture *f)
{
    uint8_t *arena = f->append.arena.base;
    uint64_t positions[SHMQ_HOT_SLOT_MAX];
    memcpy(positions, f->append.log.file_positions, sizeof positions);
    uint64_t ready_end = shmq_load_relaxed(&f->append.log.ready_end);
    fixture_private_free(f);
    fixture_private(f);
    f->append.arena.base = arena;
    f->append.arena.free_blocks = fixture_memory(f->blocks * sizeof(uint32_t));
    f->append.arena.block_count = f->blocks;
    for (uint32_t i = 0; i < f->control->config.hot_slot_count; ++i) {
        f->append.log.bases[i] = f->hot[i];
        f->append.log.file_positions[i] = positions[i];
    }
    shmq_store_relaxed(&f->append.log.ready_end, ready_end);
    uint8_t *marks = fixture_memory(f->blocks);
    int status = shmq_arena_rebuild(&f->append, marks);
    free(marks);
    return status != SHMQ_OK ? status : shmq_turn_redo(&f->append, 0);
}

static inline void fixture_close(struct fixture *f)
{
    free(f->append.arena.base);
    fixture_private_free(f);
    for (uint32_t i = 0; i < f->control->config.hot_slot_count; ++i) {
        free(f->hot[i]);
    }
    for (uint32_t i = 0; i < FIXTURE_SESSIONS; ++i) {
        free(f->ingress[i]);
        free(f->completion[i]);
        free(f->consumer[i]);
    }
    free(f->topics);
    free(f->control);
    free(f);
}

static inline void fixture_session_memory(struct fixture *f, uint32_t session, struct shmq_session_memory *memory)
{
    memset(memory, 0, sizeof *memory);
    memory->ingress = f->ingress[session];
    memory->completion = f->completion[session];
    memory->consumer = f->consumer[session];
    memory->grants = f->grants;
    memory->grant_rows = FIXTURE_ROWS;
}

static inline void fixture_attach(struct fixture *f, uint32_t session, uint32_t lanes, uint32_t capacity,
                                  uint32_t completions)
{
    struct shmq_session_slot *slot = shmq_control_session_slot(f->control, session);
    slot->generation += 1;
    slot->lane_count = lanes;
    slot->lane_capacity_bytes = capacity;
    slot->completion_capacity = completions;
    f->ingress[session] = fixture_memory(shmq_ingress_size(lanes, capacity));
    f->completion[session] = fixture_memory(shmq_completion_size(lanes, completions));
    f->consumer[session] = fixture_memory(shmq_consumer_size(8));
    shmq_append_clear_rings(&f->append, session);
    struct shmq_session_memory memory;
    fixture_session_memory(f, session, &memory);
    shmq_append_attach(&f->append, session, &memory);
}

static inline void fixture_resume(struct fixture *f, uint32_t session)
{
    struct shmq_session_memory memory;
    fixture_session_memory(f, session, &memory);
    shmq_append_attach(&f->append, session, &memory);
}

static inline void fixture_writer(struct fixture *f, uint32_t session, uint32_t lane,
                                  struct shmq_lane_writer *w)
{
    struct shmq_session_slot *slot = shmq_control_session_slot(f->control, session);
    memset(w, 0, sizeof *w);
    w->lane = (struct shmq_lane *)(void *)(f->ingress[session] + SHMQ_LANES_PLACE) + lane;
    w->data = f->ingress[session] + SHMQ_RING_DATA_PLACE + (size_t)lane * slot->lane_capacity_bytes;
    w->slot = shmq_control_ring_slot(f->control, session * SHMQ_LANE_MAX + lane);
    w->completions = (struct shmq_completion *)(void *)(f->completion[session] + SHMQ_COMPLETIONS_PLACE) +
                     (size_t)lane * slot->completion_capacity;
    w->bell = (struct shmq_bell_line *)(void *)(f->completion[session] + SHMQ_BELLS_PLACE) + lane;
    w->append_sleep = &f->control->sleep;
    w->event_fd = -1;
    w->capacity = slot->lane_capacity_bytes;
    w->completion_capacity = slot->completion_capacity;
}

static inline void fixture_queue(struct fixture *f, const char *topic, uint32_t queue_id, uint32_t flags,
                                 uint32_t *row, uint32_t *generation)
{
    uint32_t topic_row = UINT32_MAX;
    uint32_t count = shmq_load_relaxed32(&f->control->append.topic_row_count);
    for (uint32_t i = 0; i < count; ++i) {
        const struct shmq_topic_row *t = shmq_topics_row(f->topics, i);
        if (t->topic_size == strlen(topic) && memcmp(t->topic, topic, t->topic_size) == 0) {
            topic_row = i;
        }
    }
    if (topic_row == UINT32_MAX &&
        shmq_append_add_topic(&f->append, f->topics, (const uint8_t *)topic, (uint32_t)strlen(topic),
                              &topic_row) != SHMQ_OK) {
        abort();
    }
    if (shmq_append_add_row(&f->append, topic_row, queue_id, flags, 0, row, generation) != SHMQ_OK) {
        abort();
    }
}

/* Puts one message record; returns its sequence or -1 if the lane is full. Does not publish. */
static inline int64_t fixture_put(struct shmq_lane_writer *w, uint32_t row, uint32_t generation,
                                  const void *body, uint32_t body_size, const char *properties,
                                  uint16_t flags)
{
    uint32_t properties_size = (uint32_t)strlen(properties);
    uint32_t size = shmq_record_size(body_size, properties_size);
    uint8_t *at = NULL;
    if (shmq_lane_claim(w, size, &at) != SHMQ_OK) {
        return -1;
    }
    struct shmq_record record = {0};
    record.size = size;
    record.kind = SHMQ_RECORD_MESSAGE;
    record.flags = flags;
    record.queue_row = row;
    record.row_generation = generation;
    record.born_timestamp = 1700000000000;
    record.body_size = body_size;
    record.properties_size = properties_size;
    memcpy(at, &record, sizeof record);
    memcpy(at + sizeof record, body, body_size);
    memcpy(at + sizeof record + body_size, properties, properties_size);
    return (int64_t)shmq_lane_commit(w, size);
}

#endif
