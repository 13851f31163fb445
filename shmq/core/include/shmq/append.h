/* append.h: what the append role does between turns: rows, sessions, grants, subscriptions, hot slots.
 *
 * Byte table: layout.h queue_row, topic_row, session_slot, ring_slot, hot_slot.
 * Validity: a row counts when its state says so, stored last; a session slot likewise.
 * Writer algorithm: the control thread asks the append thread to stand still between two turns, takes over
 * the append role, calls one of these, and lets it go on; so there is one writer at any time.
 * Reader algorithm: (row, generation) is loaded before and compared after.
 * Crash: each verb stores the word that makes it count last, so half of one never was. What was counted
 * and not told to anybody (a row, a session) is found by the successor and kept or freed by its manifest. */
#ifndef SHMQ_APPEND_H
#define SHMQ_APPEND_H

#include "turn.h"

/* Fills a segment's head and stores the magic last. An adopted segment keeps its magic meanwhile, or a death in
 * here would leave the next successor memory that it cannot believe: only its owner changes, and a mix of two
 * owners is as dead as both are. */
static inline void shmq_segment_init(struct shmq_segment_header *header, const struct shmq_segment_header *values,
                                     uint64_t magic)
{
    header->layout_version = SHMQ_LAYOUT_VERSION;
    header->kind = values->kind;
    shmq_store_relaxed(&header->size_bytes, shmq_load_relaxed(&values->size_bytes)); /* relaxed: as above */
    header->store_generation = values->store_generation;
    memcpy(header->boot_id, values->boot_id, sizeof header->boot_id);
    header->owner_pid = values->owner_pid;
    header->owner_uid = values->owner_uid;
    header->owner_start_time = values->owner_start_time;
    header->master_epoch = values->master_epoch;
    header->number = values->number;
    memset(header->reserved, 0, sizeof header->reserved);
    /* release: pairs with the acquire in shmq_segment_check; the head and what it heads are whole */
    shmq_store_release(&header->magic, magic);
}

static inline int shmq_segment_check(const struct shmq_segment_header *header, uint64_t magic, uint32_t kind,
                                     uint64_t size_bytes)
{
    /* acquire: pairs with the release in shmq_segment_init */
    if (shmq_load_acquire(&header->magic) != magic || header->kind != kind) {
        return SHMQ_CORRUPT;
    }
    if (header->layout_version != SHMQ_LAYOUT_VERSION) {
        return SHMQ_FENCED;
    }
    /* relaxed: written before the magic */
    return shmq_load_relaxed(&header->size_bytes) <= size_bytes ? SHMQ_OK : SHMQ_CORRUPT;
}

/* The sleeping half of the append thread's ladder: 1 if it may sleep (its epoch is odd), 0 if there is work. Each
 * sleep has an epoch of its own, also behind a predecessor that died asleep: producers answer an epoch once. */
static inline int shmq_append_sleep(struct shmq_append *append)
{
    shmq_word32 *epoch = &append->control->sleep.append_sleeps;
    uint32_t last = shmq_load_relaxed32(epoch); /* relaxed: own word */
    /* relaxed: the fence behind it orders it before the last look */
    shmq_store_relaxed32(epoch, (last | 1u) + (last & 1u) * 2u);
    shmq_fence_full(); /* pairs with the fence in shmq_lane_publish */
    if (shmq_turn_ready(append)) {
        shmq_sleep_end(epoch);
        return 0;
    }
    return 1;
}

static inline void shmq_append_wake(struct shmq_append *append)
{
    shmq_sleep_end(&append->control->sleep.append_sleeps);
    struct shmq_counters *counters = &append->control->counters;
    shmq_store_relaxed(&counters->sleeps, shmq_load_relaxed(&counters->sleeps) + 1); /* relaxed: a counter */
}

/* ---- rows ------------------------------------------------------------------------------------------ */

/* Adds a topic row; *out is its index. The caller has grown the topics segment. FULL: no row left. */
static inline int shmq_append_add_topic(struct shmq_append *append, uint8_t *topics, const uint8_t *topic,
                                        uint32_t topic_size, uint32_t *out)
{
    struct shmq_append_positions *positions = &append->control->append;
    uint32_t count = shmq_load_relaxed32(&positions->topic_row_count); /* relaxed: own word */
    if (topic_size == 0 || topic_size > SHMQ_TOPIC_SIZE_MAX) {
        return SHMQ_ILLEGAL;
    }
    uint32_t index = count;
    for (uint32_t i = append->topic_row_free; i < count; ++i) {
        const struct shmq_topic_row *other = shmq_topics_row(topics, i);
        if (shmq_load_relaxed32(&other->state) == SHMQ_ROW_FREE) { /* relaxed: own word */
            index = i;
            break;
        }
    }
    if (index >= append->control->config.topic_row_max) {
        return SHMQ_FULL;
    }
    struct shmq_topic_row *row = (struct shmq_topic_row *)(uintptr_t)shmq_topics_row(topics, index);
    memset(row->topic, 0, sizeof row->topic);
    memcpy(row->topic, topic, topic_size);
    row->topic_size = topic_size;
    shmq_store_relaxed32(&row->generation, shmq_load_relaxed32(&row->generation) + 1); /* relaxed: as above */
    /* release: pairs with the acquire of whoever lists topics; the name is whole */
    shmq_store_release32(&row->state, SHMQ_ROW_ACTIVE);
    if (index == count) {
        /* release: pairs with the acquire of whoever lists topics */
        shmq_store_release32(&positions->topic_row_count, count + 1);
    }
    append->topic_row_free = index + 1;
    *out = index;
    return SHMQ_OK;
}

/* Deletes a topic row; no queue row names it any more. */
static inline void shmq_append_delete_topic(struct shmq_append *append, uint8_t *topics, uint32_t index)
{
    struct shmq_topic_row *row = (struct shmq_topic_row *)(uintptr_t)shmq_topics_row(topics, index);
    /* release: pairs with the acquire of whoever lists topics */
    shmq_store_release32(&row->state, SHMQ_ROW_FREE);
    if (index < append->topic_row_free) {
        append->topic_row_free = index;
    }
}

/* Adds a queue row for (topic_row, queue_id) whose first queue_offset is first_queue_offset; its handle is
 * (*out, *generation). The caller has grown the control segment and checked that there is no such row. */
static inline int shmq_append_add_row(struct shmq_append *append, uint32_t topic_row, uint32_t queue_id,
                                      uint32_t flags, uint64_t first_queue_offset, uint32_t *out,
                                      uint32_t *generation)
{
    struct shmq_append_positions *positions = &append->control->append;
    uint32_t count = shmq_load_relaxed32(&positions->queue_row_count); /* relaxed: own word */
    uint32_t index = count;
    for (uint32_t i = append->queue_row_free; i < count; ++i) {
        struct shmq_queue_row *other = shmq_control_queue_row(append->control, i);
        if (shmq_load_relaxed32(&other->state) == SHMQ_ROW_FREE) { /* relaxed: own word */
            index = i;
            break;
        }
    }
    if (index >= append->control->config.queue_row_max) {
        return SHMQ_FULL;
    }
    struct shmq_queue_row *queue = shmq_control_queue_row(append->control, index);
    struct shmq_row *row = &append->rows[index];
    uint32_t subscribers = row->subscribers;
    memset(row, 0, sizeof *row);
    row->subscribers = subscribers;
    row->next_queue_offset = first_queue_offset;
    uint32_t next_generation = shmq_load_relaxed32(&queue->generation) + 1; /* relaxed: own word */
    /* pairs with the acquires in shmq_consume_queue_read: who sees a word of the new queue sees that the
     * old one's generation is over */
    shmq_fence_release();
    queue->topic_row = topic_row;
    queue->queue_id = queue_id;
    /* relaxed: all of these become visible by the release of state */
    shmq_store_relaxed32(&queue->flags, flags);
    shmq_store_relaxed32(&queue->head_block, 0);
    shmq_store_relaxed32(&queue->tail_block, 0);
    shmq_store_relaxed(&queue->min_queue_offset, first_queue_offset);
    shmq_store_relaxed(&queue->hot_min_queue_offset, first_queue_offset);
    shmq_store_relaxed(&queue->max_queue_offset, first_queue_offset);
    shmq_store_relaxed(&queue->visible_max, first_queue_offset);
    shmq_store_relaxed(&queue->messages_in, 0);
    shmq_store_relaxed(&queue->bytes_in, 0);
    shmq_store_relaxed(&queue->last_position, 0);
    /* release: pairs with the acquire in shmq_consume_queue_read; a stale handle is seen as stale */
    shmq_store_release32(&queue->generation, next_generation);
    /* release: pairs with the acquire of whoever lists queues */
    shmq_store_release32(&queue->state, SHMQ_ROW_ACTIVE);
    if (index == count) {
        /* release: pairs with the acquire of whoever lists queues */
        shmq_store_release32(&positions->queue_row_count, count + 1);
    }
    shmq_row_index_add(&append->row_index, index);
    append->queue_row_free = index + 1;
    *out = index;
    *generation = next_generation;
    return SHMQ_OK;
}

/* Deletes a row: its blocks are free, handles to it are stale. A successor that finds it DELETED goes on. */
static inline void shmq_append_delete_row(struct shmq_append *append, uint32_t index)
{
    struct shmq_queue_row *queue = shmq_control_queue_row(append->control, index);
    struct shmq_row *row = &append->rows[index];
    shmq_turn_seal(append); /* a queue of the same name may come: no frame of this one may be redone into it */
    shmq_row_index_remove(&append->row_index, index);
    /* release: pairs with the acquire of whoever lists queues */
    shmq_store_release32(&queue->state, SHMQ_ROW_DELETED);
    /* release: pairs with the acquire in shmq_consume_queue_read: readers turn away before blocks are reused */
    shmq_store_release32(&queue->generation, shmq_load_relaxed32(&queue->generation) + 1);
    uint32_t number = shmq_load_relaxed32(&queue->head_block); /* relaxed: own word */
    for (uint32_t step = 0; number != 0 && step < SHMQ_WALK_MAX; ++step) {
        uint32_t next = number == row->chain.tail_block
                            ? 0
                            : shmq_load_relaxed32(&shmq_arena_block(append->arena.base, number)->header.next_block);
        shmq_arena_free(&append->arena, number);
        number = next;
    }
    /* relaxed: behind the generation nobody reads them */
    shmq_store_relaxed32(&queue->head_block, 0);
    shmq_store_relaxed32(&queue->tail_block, 0);
    memset(&row->chain, 0, sizeof row->chain);
    row->staged_room = 0;
    for (uint32_t i = 0; row->pending && i < append->pending_row_count; ++i) {
        if (append->pending_rows[i] == index) {
            append->pending_rows[i] = append->pending_rows[--append->pending_row_count];
            row->pending = 0;
        }
    }
    /* release: pairs with the acquire of whoever lists queues */
    shmq_store_release32(&queue->state, SHMQ_ROW_FREE);
    if (index < append->queue_row_free) {
        append->queue_row_free = index;
    }
}

/* Changes the level or the state of a row. A row whose level falls shows what was held back at once. */
static inline void shmq_append_set_row(struct shmq_append *append, uint32_t index, uint32_t state,
                                       uint32_t flags)
{
    struct shmq_queue_row *queue = shmq_control_queue_row(append->control, index);
    struct shmq_row *row = &append->rows[index];
    shmq_store_relaxed32(&queue->flags, flags); /* relaxed: read by the append role */
    /* release: pairs with the acquire of whoever lists queues */
    shmq_store_release32(&queue->state, state);
    if (shmq_load_relaxed(&queue->visible_max) < row->next_queue_offset && !row->pending) {
        row->pending = 1;
        append->pending_rows[append->pending_row_count++] = index;
    }
    if (row->pending && (flags & SHMQ_ROW_FLUSH) != 0) {
        append->flush_wanted = append->log.log_end;
    }
    append->settle_rows = 1;
}

/* Takes queue offsets up to max_queue_offset with entries of size 0: what stood there is damaged, and no
 * other message may get its offset. ARENA_FULL: some were taken; grow it and go on. */
static inline int shmq_append_reserve(struct shmq_append *append, uint32_t index, uint64_t max_queue_offset)
{
    struct shmq_queue_row *queue = shmq_control_queue_row(append->control, index);
    struct shmq_row *row = &append->rows[index];
    int status = SHMQ_OK;
    for (; row->next_queue_offset < max_queue_offset; ++row->next_queue_offset) {
        if (row->chain.tail_room == 0 && append->arena.free_count == 0) {
            status = SHMQ_ARENA_FULL;
            break;
        }
        shmq_consume_queue_put(&append->arena, queue, index, &row->chain, row->next_queue_offset,
                               append->log.log_end, 0, 0);
    }
    row->staged_room = row->chain.tail_room;
    /* release: pairs with the acquire of whoever asks for the maximum */
    shmq_store_release(&queue->max_queue_offset, row->next_queue_offset);
    /* release: pairs with the acquire in shmq_consume_queue_read */
    shmq_store_release(&queue->visible_max, row->next_queue_offset);
    return status;
}

/* ---- sessions -------------------------------------------------------------------------------------- */

/* Where one session's memory lies in this process. */
struct shmq_session_memory {
    uint8_t *ingress;    /* hostile, or the service's own */
    uint8_t *completion; /* ours */
    const uint8_t *chunk;
    uint64_t chunk_size;
    const uint8_t *consumer; /* hostile, NULL if none */
    const uint64_t *grants;  /* bitmap over rows, kept alive by the caller */
    uint32_t grant_rows;
    uint32_t reserved;
};

/* Takes the lanes of a session into the turns. The slot is filled (new) or as the predecessor left it (resumed). */
static inline void shmq_append_attach(struct shmq_append *append, uint32_t session,
                                      const struct shmq_session_memory *memory)
{
    struct shmq_session_slot *slot = shmq_control_session_slot(append->control, session);
    for (uint32_t lane = 0; lane < slot->lane_count; ++lane) {
        uint32_t index = session * SHMQ_LANE_MAX + lane;
        struct shmq_ring *ring = &append->rings[index];
        uint32_t was_pending = ring->pending;
        memset(ring, 0, sizeof *ring);
        ring->pending = was_pending;
        ring->lane = (const struct shmq_lane *)(void *)(memory->ingress + SHMQ_LANES_PLACE) + lane;
        ring->data = memory->ingress + SHMQ_RING_DATA_PLACE + (uint64_t)lane * slot->lane_capacity_bytes;
        ring->chunk = memory->chunk == NULL ? NULL : memory->chunk + SHMQ_CHUNK_DATA_PLACE;
        ring->chunk_size = memory->chunk == NULL ? 0 : memory->chunk_size - SHMQ_CHUNK_DATA_PLACE;
        ring->slot = shmq_control_ring_slot(append->control, index);
        ring->completions = (struct shmq_completion *)(void *)(memory->completion + SHMQ_COMPLETIONS_PLACE) +
                            (uint64_t)lane * slot->completion_capacity;
        ring->bell = (struct shmq_bell_line *)(void *)(memory->completion + SHMQ_BELLS_PLACE) + lane;
        ring->capacity = slot->lane_capacity_bytes;
        ring->completion_capacity = slot->completion_capacity;
        /* relaxed: own words, from before */
        ring->read_position = shmq_load_relaxed(&ring->slot->read_position);
        ring->completion_tail = shmq_load_relaxed(&ring->slot->completion_tail);
        ring->done_tail = shmq_load_relaxed(&ring->slot->done_tail);
        ring->grants = memory->grants;
        ring->grant_rows = memory->grant_rows;
        ring->property_grants = slot->property_grants;
        ring->slot_index = index;
        ring->session_generation = slot->generation;
        ring->service_id = slot->service_id;
        ring->stalled_tail = UINT64_MAX;
        if (ring->completion_tail - ring->done_tail > ring->completion_capacity) {
            ring->done_tail = ring->completion_tail; /* no broker of ours leaves a slot like this */
            /* release: pairs with the acquire in shmq_lane_ended */
            shmq_store_release32(&ring->slot->ended, (uint32_t)-SHMQ_CORRUPT);
        }
        if (ring->done_tail != ring->completion_tail && !ring->pending) {
            ring->pending = 1;
            append->pending_rings[append->pending_ring_count++] = index;
            append->settle_next_ns = 0;
        }
        /* relaxed: own word; what a predecessor refused stays refused */
        ring->state = shmq_load_relaxed32(&ring->slot->ended) == 0 ? SHMQ_RING_LIVE : SHMQ_RING_ENDED;
        if (index >= append->ring_limit) {
            append->ring_limit = index + 1;
        }
    }
    for (uint32_t i = 0; i < SHMQ_CONSUMER_BELL_MAX; ++i) {
        struct shmq_bell *bell = &append->bells[session * SHMQ_CONSUMER_BELL_MAX + i];
        uint32_t marked = bell->marked;
        memset(bell, 0, sizeof *bell);
        bell->marked = marked;
        if (memory->consumer != NULL) {
            bell->line = (struct shmq_bell_line *)(void *)(memory->completion + SHMQ_BELLS_PLACE) +
                         SHMQ_LANE_MAX + i;
            bell->sleep_epoch =
                &((const struct shmq_sleeper *)(const void *)(memory->consumer + SHMQ_SLEEPERS_PLACE) + i)
                     ->sleep_epoch;
        }
    }
    /* release: pairs with the acquire of whoever lists sessions */
    shmq_store_release32(&slot->state, SHMQ_SESSION_LIVE);
}

/* Pokes this socket, too, when a bell of the session is rung; 0: none any more. */
static inline void shmq_append_set_socket(struct shmq_append *append, uint32_t session, uint32_t socket)
{
    for (uint32_t lane = 0; lane < SHMQ_LANE_MAX; ++lane) {
        append->rings[session * SHMQ_LANE_MAX + lane].socket = socket;
    }
    for (uint32_t i = 0; i < SHMQ_CONSUMER_BELL_MAX; ++i) {
        append->bells[session * SHMQ_CONSUMER_BELL_MAX + i].socket = socket;
    }
}

/* Hands a grown bitmap of grants to the lanes of a session. */
static inline void shmq_append_grant(struct shmq_append *append, uint32_t session, const uint64_t *grants,
                                     uint32_t grant_rows)
{
    for (uint32_t lane = 0; lane < SHMQ_LANE_MAX; ++lane) {
        append->rings[session * SHMQ_LANE_MAX + lane].grants = grants;
        append->rings[session * SHMQ_LANE_MAX + lane].grant_rows = grant_rows;
    }
}

/* 1 if every published record of the session was taken (or it has ended): it may be detached without loss. */
static inline int shmq_append_drained(const struct shmq_append *append, uint32_t session)
{
    for (uint32_t lane = 0; lane < SHMQ_LANE_MAX; ++lane) {
        const struct shmq_ring *ring = &append->rings[session * SHMQ_LANE_MAX + lane];
        /* acquire: pairs with the release in shmq_lane_publish */
        if (ring->state == SHMQ_RING_LIVE && shmq_load_acquire(&ring->lane->tail) != ring->read_position &&
            ring->stalled_tail != shmq_load_acquire(&ring->lane->tail)) {
            return 0;
        }
    }
    return 1;
}

/* Takes a session out of the turns and tells its client so; its slot is free again. Its memory may be
 * unmapped afterwards. */
static inline void shmq_append_detach(struct shmq_append *append, uint32_t session)
{
    struct shmq_session_slot *slot = shmq_control_session_slot(append->control, session);
    for (uint32_t lane = 0; lane < SHMQ_LANE_MAX; ++lane) {
        struct shmq_ring *ring = &append->rings[session * SHMQ_LANE_MAX + lane];
        if (ring->state != SHMQ_RING_FREE) {
            /* the first reason counts: a session that broke a rule is told so, not that it was closed */
            uint32_t reason = shmq_load_relaxed32(&ring->slot->ended); /* relaxed: own word */
            /* release: pairs with the acquire in shmq_lane_ended; the tails before it are final */
            shmq_store_release32(&ring->slot->ended, reason != 0 ? reason : (uint32_t)-SHMQ_CLOSED);
            shmq_fence_full(); /* pairs with the sleeper's fence in shmq_sleep_begin */
            (void)shmq_bell_ring(ring->bell, &ring->lane->sleep_epoch, &ring->answered);
        }
        ring->state = SHMQ_RING_FREE;
        ring->lane = NULL;
    }
    shmq_append_set_socket(append, session, 0);
    for (uint32_t i = 0; i < SHMQ_CONSUMER_BELL_MAX; ++i) {
        struct shmq_bell *bell = &append->bells[session * SHMQ_CONSUMER_BELL_MAX + i];
        bell->line = NULL;
        bell->sleep_epoch = NULL;
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < append->pending_ring_count; ++i) {
        uint32_t index = append->pending_rings[i];
        if (index / SHMQ_LANE_MAX == session) {
            append->rings[index].pending = 0;
        } else {
            append->pending_rings[kept++] = index;
        }
    }
    append->pending_ring_count = kept;
    while (append->ring_limit > 0 && append->rings[append->ring_limit - 1].state == SHMQ_RING_FREE) {
        append->ring_limit -= 1;
    }
    /* release: pairs with the acquire of whoever lists sessions */
    shmq_store_release32(&slot->state, SHMQ_SESSION_FREE);
}

/* Clears the ring slots of a new session, so that it begins at position 0. */
static inline void shmq_append_clear_rings(struct shmq_append *append, uint32_t session)
{
    for (uint32_t lane = 0; lane < SHMQ_LANE_MAX; ++lane) {
        struct shmq_ring_slot *slot = shmq_control_ring_slot(append->control, session * SHMQ_LANE_MAX + lane);
        uint32_t generation = shmq_control_session_slot(append->control, session)->generation;
        /* relaxed + fence: a client of the slot's last session that meets a word of this one sees the generation */
        shmq_store_relaxed32(&slot->session_generation, generation);
        shmq_fence_release(); /* pairs with the acquires in shmq_lane_completion and shmq_lane_ended */
        /* relaxed: nobody has this session yet */
        shmq_store_relaxed(&slot->read_position, 0);
        shmq_store_relaxed(&slot->completion_tail, 0);
        shmq_store_relaxed(&slot->done_tail, 0);
        /* release: pairs with the acquire in shmq_lane_ended */
        shmq_store_release32(&slot->ended, 0);
    }
}

/* ---- hot slots --------------------------------------------------------------------------------------- */

/* Puts prepared memory for the file at file_position into its slot and lets appends go on to its end. */
static inline void shmq_append_ready(struct shmq_append *append, uint64_t file_position, uint8_t *base,
                                     uint64_t object_number)
{
    uint32_t index = shmq_commit_log_slot(&append->log, file_position);
    struct shmq_hot_slot *slot = shmq_control_hot_slot(append->control, index);
    uint64_t generation = shmq_load_relaxed(&slot->generation) | 1u; /* relaxed: own word */
    /* relaxed + fence: who sees the new position sees the odd generation */
    shmq_store_relaxed(&slot->generation, generation);
    shmq_fence_release(); /* pairs with the acquire fence of who reads hot slots (tests/model/relacy, "remap") */
    /* relaxed: visible by the release of the even generation */
    shmq_store_relaxed(&slot->file_position, file_position);
    shmq_store_relaxed(&slot->object_number, object_number);
    shmq_store_relaxed32(&slot->state, SHMQ_HOT_READY);
    /* release: pairs with the acquire of the reader of hot slots */
    shmq_store_release(&slot->generation, generation + 1);
    append->log.bases[index] = base;
    append->log.file_positions[index] = file_position;
    uint64_t end = file_position + append->log.file_size_bytes;
    if (end > shmq_load_relaxed(&append->log.ready_end)) { /* relaxed: own word */
        /* release: pairs with the acquire in shmq_commit_log_claim; the memory is mapped */
        shmq_store_release(&append->log.ready_end, end);
    }
    if (append->blocked == (uint32_t)-SHMQ_LOG_FULL) {
        append->blocked = 0;
    }
}

/* Takes the file at file_position out of hot memory: positions below its end are in files only. The memory
 * stays mapped here until the caller unmaps it. */
static inline void shmq_append_retire(struct shmq_append *append, uint64_t file_position)
{
    uint32_t index = shmq_commit_log_slot(&append->log, file_position);
    struct shmq_hot_slot *slot = shmq_control_hot_slot(append->control, index);
    shmq_turn_seal(append); /* the last turn may have frames in there: no redo may look for them */
    /* release: pairs with the acquire of readers that choose between memory and file */
    shmq_store_release(&append->control->append.hot_min_position, file_position + append->log.file_size_bytes);
    /* release: pairs with the acquire of the reader of hot slots */
    shmq_store_release32(&slot->state, SHMQ_HOT_RETIRED);
}

/* ---- subscriptions ----------------------------------------------------------------------------------- */

/* Subscribes a bell to a row with a free node (0 is never a node). */
static inline void shmq_append_subscribe(struct shmq_append *append, uint32_t row, uint32_t bell, uint32_t node)
{
    append->subscriptions[node].bell = bell;
    append->subscriptions[node].next = append->rows[row].subscribers;
    append->rows[row].subscribers = node;
}

/* Unsubscribes; returns the node that is free now, or 0 if there was none. */
static inline uint32_t shmq_append_unsubscribe(struct shmq_append *append, uint32_t row, uint32_t bell)
{
    uint32_t *link = &append->rows[row].subscribers;
    while (*link != 0) {
        uint32_t node = *link;
        if (append->subscriptions[node].bell == bell) {
            *link = append->subscriptions[node].next;
            return node;
        }
        link = &append->subscriptions[node].next;
    }
    return 0;
}

#endif
