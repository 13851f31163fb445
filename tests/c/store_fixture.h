/* store_fixture.h: a store's memory for tests of the core without Python.
 *
 * The shared half (what would be POSIX objects and memfds) lies in one MAP_SHARED region, so that threads
 * and forked children see the same bytes, and so that a test can take a copy of it at any instant and let
 * a successor adopt the copy (fixture_copy). The private half (struct shmq_append and its arrays) is what a
 * broker process has for itself: fixture_adopt makes it anew, as a successor would. Between two objects of
 * the region lies a page that nobody may touch; under ASan it is poisoned. */
#ifndef SHMQ_STORE_FIXTURE_H
#define SHMQ_STORE_FIXTURE_H

#include "shmq/recovery.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

#ifndef FIXTURE_SESSIONS
#define FIXTURE_SESSIONS 20u
#endif
#define FIXTURE_ROWS 64u
#define FIXTURE_SUBSCRIPTIONS 256u
#define FIXTURE_OBJECTS 128u
#define FIXTURE_BORN_TIMESTAMP 1700000000000

struct fixture_object {
    size_t place;
    size_t size;
};

struct fixture {
    struct shmq_append append; /* private */
    uint8_t *shared;           /* the region */
    size_t shared_size;
    size_t shared_used;
    struct fixture_object objects[FIXTURE_OBJECTS];
    uint32_t object_count;
    struct shmq_control *control;
    uint8_t *topics;
    uint8_t *arena;
    uint8_t *hot[SHMQ_HOT_SLOT_MAX]; /* by hot slot */
    uint8_t *ingress[FIXTURE_SESSIONS];
    uint8_t *completion[FIXTURE_SESSIONS];
    uint8_t *consumer[FIXTURE_SESSIONS];
    uint8_t *chunk[FIXTURE_SESSIONS]; /* NULL unless fixture_chunk gave one */
    uint64_t chunk_size;
    uint64_t grants[FIXTURE_ROWS / 64 + 1];
};

/* ---- memory ----------------------------------------------------------------------------------------- */

static inline void *fixture_private_memory(size_t size)
{
    void *memory = calloc(1, size == 0 ? 1 : size);
    if (memory == NULL) {
        abort();
    }
    return memory;
}

static inline uint8_t *fixture_region(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        abort();
    }
    return memory;
}

/* One more object of the shared half: zeroed, page-aligned, nothing usable behind its last byte. */
static inline uint8_t *fixture_shared(struct fixture *f, size_t size)
{
    size_t place = f->shared_used;
    size_t next = (place + size + SHMQ_PAGE + SHMQ_PAGE - 1) / SHMQ_PAGE * SHMQ_PAGE;
    if (next > f->shared_size || f->object_count == FIXTURE_OBJECTS) {
        abort();
    }
    f->objects[f->object_count++] = (struct fixture_object){place, size};
    f->shared_used = next;
    ASAN_POISON_MEMORY_REGION(f->shared + place + size, next - place - size);
    return f->shared + place;
}

/* The private half, as a process that has just begun has it. */
static inline void fixture_private(struct fixture *f)
{
    struct shmq_append *a = &f->append;
    struct shmq_control_config *config = &f->control->config;
    memset(a, 0, sizeof *a);
    a->control = f->control;
    a->topics = f->topics;
    a->rings = fixture_private_memory(FIXTURE_SESSIONS * SHMQ_LANE_MAX * sizeof *a->rings);
    a->rows = fixture_private_memory(FIXTURE_ROWS * sizeof *a->rows);
    a->subscriptions = fixture_private_memory(FIXTURE_SUBSCRIPTIONS * sizeof *a->subscriptions);
    a->bells = fixture_private_memory(FIXTURE_SESSIONS * SHMQ_CONSUMER_BELL_MAX * sizeof *a->bells);
    a->marked_bells = fixture_private_memory(FIXTURE_SESSIONS * SHMQ_CONSUMER_BELL_MAX * sizeof(uint32_t));
    a->touched = fixture_private_memory(SHMQ_TURN_RECORDS_MAX * sizeof(uint32_t));
    a->pending_rows = fixture_private_memory(FIXTURE_ROWS * sizeof(uint32_t));
    a->pending_rings = fixture_private_memory(FIXTURE_SESSIONS * SHMQ_LANE_MAX * sizeof(uint32_t));
    a->staged = fixture_private_memory(SHMQ_TURN_RECORDS_MAX * sizeof *a->staged);
    a->arena.base = f->arena;
    a->arena.free_blocks = fixture_private_memory(config->arena_block_max * sizeof(uint32_t));
    a->arena.block_count = shmq_load_relaxed32(&f->control->append.arena_block_count);
    a->flush_timeout_ns = 5000000000u;
    a->replica_timeout_ns = 3000000000u;
    a->delay_level_count = 2;
    a->delay_ms[1] = 1000;
    a->delay_ms[2] = 5000;
    a->log.file_size_bytes = config->file_size_bytes;
    a->log.hot_slot_count = config->hot_slot_count;
    a->row_index.slots = fixture_private_memory(4 * FIXTURE_ROWS * sizeof(uint32_t));
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
    memset(a, 0, sizeof *a);
}

/* ---- the store -------------------------------------------------------------------------------------- */

/* A file of the log whose memory is this slot's: appends may go on into it. */
static inline void fixture_ready(struct fixture *f, uint64_t file_position)
{
    uint32_t slot = shmq_commit_log_slot(&f->append.log, file_position);
    shmq_append_ready(&f->append, file_position, f->hot[slot], file_position / f->append.log.file_size_bytes);
}

/* A new store: hot_slots files of file_size bytes ready, blocks - 1 free arena blocks, no queue, nobody
 * attached. Every session may send to every row. */
static inline struct fixture *fixture_open(uint64_t file_size, uint32_t hot_slots, uint32_t blocks)
{
    struct fixture *f = fixture_private_memory(sizeof *f);
    struct shmq_control_config config = {0};
    config.file_size_bytes = file_size;
    config.hot_slot_count = hot_slots;
    config.session_slot_count = FIXTURE_SESSIONS;
    config.queue_row_max = FIXTURE_ROWS;
    config.topic_row_max = FIXTURE_ROWS;
    config.arena_block_max = blocks;
    config.message_size_max = 4u << 20;
    memcpy(config.store_host, "\x7f\0\0\1\0\0\x2a\x9f", 8);
    uint64_t size = shmq_control_place(&config) + FIXTURE_ROWS * sizeof(struct shmq_queue_row);
    f->shared_size = (size_t)64 << 20;
    f->shared_size += hot_slots * (file_size + 2 * SHMQ_PAGE) + (size_t)blocks * SHMQ_BLOCK_SIZE;
    f->shared = fixture_region(f->shared_size);
    f->control = (struct shmq_control *)(void *)fixture_shared(f, size);
    f->control->config = config;
    f->topics = fixture_shared(f, SHMQ_TOPIC_ROWS_PLACE + FIXTURE_ROWS * sizeof(struct shmq_topic_row));
    f->arena = fixture_shared(f, (size_t)blocks * SHMQ_BLOCK_SIZE);
    shmq_store_relaxed32(&f->control->append.arena_block_count, blocks); /* relaxed: nobody else has it yet */
    fixture_private(f);
    for (uint32_t b = blocks; b-- > 1;) {
        shmq_arena_free(&f->append.arena, b);
    }
    for (uint32_t i = 0; i < hot_slots; ++i) {
        f->hot[i] = fixture_shared(f, file_size);
        fixture_ready(f, i * file_size);
    }
    memset(f->grants, 0xff, sizeof f->grants);
    return f;
}

static inline void fixture_close(struct fixture *f)
{
    fixture_private_free(f);
    ASAN_UNPOISON_MEMORY_REGION(f->shared, f->shared_size); /* the addresses will serve others */
    munmap(f->shared, f->shared_size);
    free(f);
}

/* The bytes of every object, from one region to another of the same store. */
static inline void fixture_copy_objects(const struct fixture *f, uint8_t *to, const uint8_t *from)
{
    for (uint32_t i = 0; i < f->object_count; ++i) {
        memcpy(to + f->objects[i].place, from + f->objects[i].place, f->objects[i].size);
    }
}

static inline int fixture_same_objects(const struct fixture *f, const uint8_t *a, const uint8_t *b)
{
    for (uint32_t i = 0; i < f->object_count; ++i) {
        if (memcmp(a + f->objects[i].place, b + f->objects[i].place, f->objects[i].size) != 0) {
            return 0;
        }
    }
    return 1;
}

/* The same store over another region that holds the same objects; no private half yet (fixture_adopt). */
static inline struct fixture *fixture_over(const struct fixture *f, uint8_t *region)
{
    struct fixture *copy = fixture_private_memory(sizeof *copy);
    *copy = *f;
    memset(&copy->append, 0, sizeof copy->append);
    copy->shared = region;
#define FIXTURE_MOVE(pointer, type)                                                                  \
    (pointer) = (pointer) == NULL ? NULL : (type)(void *)(region + ((uint8_t *)(pointer) - f->shared))
    FIXTURE_MOVE(copy->control, struct shmq_control *);
    FIXTURE_MOVE(copy->topics, uint8_t *);
    FIXTURE_MOVE(copy->arena, uint8_t *);
    for (uint32_t i = 0; i < SHMQ_HOT_SLOT_MAX; ++i) {
        FIXTURE_MOVE(copy->hot[i], uint8_t *);
    }
    for (uint32_t i = 0; i < FIXTURE_SESSIONS; ++i) {
        FIXTURE_MOVE(copy->ingress[i], uint8_t *);
        FIXTURE_MOVE(copy->completion[i], uint8_t *);
        FIXTURE_MOVE(copy->consumer[i], uint8_t *);
        FIXTURE_MOVE(copy->chunk[i], uint8_t *);
    }
#undef FIXTURE_MOVE
    return copy;
}

/* The private half of a successor: it maps what it finds, and changes nothing yet. */
static inline void fixture_succeed(struct fixture *f)
{
    fixture_private_free(f);
    fixture_private(f);
    struct shmq_commit_log *log = &f->append.log;
    for (uint32_t i = 0; i < f->control->config.hot_slot_count; ++i) {
        struct shmq_hot_slot *slot = shmq_control_hot_slot(f->control, i);
        uint32_t state = shmq_load_relaxed32(&slot->state);
        /* a slot that was changing hands holds nothing anybody was told of */
        if ((shmq_load_relaxed(&slot->generation) & 1) != 0 || state == SHMQ_HOT_FREE ||
            state == SHMQ_HOT_RETIRED) {
            continue;
        }
        log->bases[i] = f->hot[i];
        log->file_positions[i] = shmq_load_relaxed(&slot->file_position);
        uint64_t end = log->file_positions[i] + log->file_size_bytes;
        if (end > shmq_load_relaxed(&log->ready_end)) {
            shmq_store_relaxed(&log->ready_end, end);
        }
    }
}

/* What a successor does with the shared half of a dead broker, before the sessions come back. */
static inline int fixture_adopt_shared(struct fixture *f)
{
    uint8_t *marks = fixture_private_memory(f->append.arena.block_count);
    int status = shmq_arena_rebuild(&f->append, marks);
    free(marks);
    return status != SHMQ_OK ? status : shmq_turn_redo(&f->append, 0);
}

static inline int fixture_adopt(struct fixture *f)
{
    fixture_succeed(f);
    return fixture_adopt_shared(f);
}

/* ---- queues and sessions ---------------------------------------------------------------------------- */

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

static inline void fixture_session_memory(struct fixture *f, uint32_t session, struct shmq_session_memory *memory)
{
    memset(memory, 0, sizeof *memory);
    memory->ingress = f->ingress[session];
    memory->completion = f->completion[session];
    memory->consumer = f->consumer[session];
    memory->chunk = f->chunk[session];
    memory->chunk_size = f->chunk[session] == NULL ? 0 : f->chunk_size;
    memory->grants = f->grants;
    memory->grant_rows = FIXTURE_ROWS;
}

/* After fixture_adopt, or after fixture_chunk: the session as its slot describes it. */
static inline void fixture_resume(struct fixture *f, uint32_t session)
{
    struct shmq_session_memory memory;
    fixture_session_memory(f, session, &memory);
    shmq_append_attach(&f->append, session, &memory);
}

static inline void fixture_attach(struct fixture *f, uint32_t session, uint32_t lanes, uint32_t capacity,
                                  uint32_t completions)
{
    struct shmq_session_slot *slot = shmq_control_session_slot(f->control, session);
    slot->generation += 1;
    slot->lane_count = lanes;
    slot->lane_capacity_bytes = capacity;
    slot->completion_capacity = completions;
    f->ingress[session] = fixture_shared(f, shmq_ingress_size(lanes, capacity));
    f->completion[session] = fixture_shared(f, shmq_completion_size(lanes, completions));
    f->consumer[session] = fixture_shared(f, shmq_consumer_size(8));
    shmq_append_clear_rings(&f->append, session);
    fixture_resume(f, session);
}

/* Makes an attached session an internal one: service progress travels with its messages. */
static inline void fixture_service(struct fixture *f, uint32_t session, uint32_t service)
{
    struct shmq_session_slot *slot = shmq_control_session_slot(f->control, session);
    slot->service_id = service + 1;
    slot->property_grants = SHMQ_GRANT_SERVICE;
    fixture_resume(f, session);
}

/* Chunk memory for large bodies; size counts its head page. */
static inline void fixture_chunk(struct fixture *f, uint32_t session, uint64_t size)
{
    f->chunk_size = size;
    f->chunk[session] = fixture_shared(f, size);
    fixture_resume(f, session);
}

static inline struct shmq_bell_line *fixture_consumer_bell(struct fixture *f, uint32_t session, uint32_t bell)
{
    return (struct shmq_bell_line *)(void *)(f->completion[session] + SHMQ_BELLS_PLACE) + SHMQ_LANE_MAX + bell;
}

static inline struct shmq_sleeper *fixture_sleeper(struct fixture *f, uint32_t session, uint32_t bell)
{
    return (struct shmq_sleeper *)(void *)(f->consumer[session] + SHMQ_SLEEPERS_PLACE) + bell;
}

/* ---- producers -------------------------------------------------------------------------------------- */

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
    w->session_generation = slot->generation;
}

/* The same writer over another region (fixture_over): it keeps its private counters, as a producer does
 * that hands its ring to the successor. */
static inline void fixture_writer_over(const struct shmq_lane_writer *w, const struct fixture *from,
                                       const struct fixture *to, struct shmq_lane_writer *out)
{
    *out = *w;
#define FIXTURE_MOVE(member, type)                                                                   \
    out->member = (type)(void *)(to->shared + ((const uint8_t *)w->member - from->shared))
    FIXTURE_MOVE(lane, struct shmq_lane *);
    FIXTURE_MOVE(data, uint8_t *);
    FIXTURE_MOVE(slot, const struct shmq_ring_slot *);
    FIXTURE_MOVE(completions, const struct shmq_completion *);
    FIXTURE_MOVE(bell, const struct shmq_bell_line *);
    FIXTURE_MOVE(append_sleep, const struct shmq_sleep_line *);
#undef FIXTURE_MOVE
}

/* Fills a record's head for a message. */
static inline struct shmq_record fixture_record(uint32_t row, uint32_t generation, uint32_t body_size,
                                                uint32_t properties_size, uint16_t flags)
{
    struct shmq_record record = {0};
    record.size = shmq_record_size(body_size, properties_size);
    record.kind = SHMQ_RECORD_MESSAGE;
    record.flags = flags;
    record.queue_row = row;
    record.row_generation = generation;
    record.born_timestamp = FIXTURE_BORN_TIMESTAMP;
    record.body_size = body_size;
    record.properties_size = properties_size;
    return record;
}

/* Puts a record with that head; returns its sequence or -1 if the lane is full. Does not publish. */
static inline int64_t fixture_put_record(struct shmq_lane_writer *w, const struct shmq_record *record,
                                         const void *body, const char *properties)
{
    uint8_t *at = NULL;
    if (shmq_lane_claim(w, record->size, &at) != SHMQ_OK) {
        return -1;
    }
    memcpy(at, record, sizeof *record);
    at += sizeof *record;
    if (record->kind == SHMQ_RECORD_MESSAGE && record->body_size > 0) {
        memcpy(at, body, record->body_size);
        at += record->body_size;
    }
    memcpy(at, properties, record->properties_size);
    return (int64_t)shmq_lane_commit(w, record->size);
}

/* Puts one message record; returns its sequence or -1 if the lane is full. Does not publish. */
static inline int64_t fixture_put(struct shmq_lane_writer *w, uint32_t row, uint32_t generation,
                                  const void *body, uint32_t body_size, const char *properties,
                                  uint16_t flags)
{
    struct shmq_record record =
        fixture_record(row, generation, body_size, (uint32_t)strlen(properties), flags);
    return fixture_put_record(w, &record, body, properties);
}

#endif
