/* recovery.h: what a successor does before the first turn: adopt memory, or replay frames into new memory.
 *
 * Byte table: layout.h; frames as in message.h.
 * Validity: the control segment's positions and the last turn record are believed after shmq_append_adopt has
 * checked them against each other; a frame is believed when shmq_message_check says so.
 * Writer algorithm: adopt: rebuild the free blocks from the chains, then redo step 3 of the last turn. Replay:
 * put an entry for each frame in order, filling the queue offsets a hole took with entries of size 0.
 * Reader algorithm: nobody reads before it is done.
 * Crash: both may be run again from the start and end in the same bytes. */
#ifndef SHMQ_RECOVERY_H
#define SHMQ_RECOVERY_H

#include "append.h"

/* Loads rows into the process-private shadow and rebuilds the free list. marks: arena.block_count bytes of
 * scratch. CORRUPT: a chain is broken; the arena must be replayed from the log instead. */
static inline int shmq_arena_rebuild(struct shmq_append *append, uint8_t *marks)
{
    struct shmq_arena *arena = &append->arena;
    memset(marks, 0, arena->block_count);
    uint32_t rows = shmq_load_relaxed32(&append->control->append.queue_row_count); /* relaxed: own word */
    uint32_t topics = shmq_load_relaxed32(&append->control->append.topic_row_count); /* relaxed: own word */
    const struct shmq_control_config *config = &append->control->config;
    if (rows > config->queue_row_max || topics > config->topic_row_max ||
        arena->block_count > config->arena_block_max) {
        return SHMQ_CORRUPT;
    }
    for (uint32_t index = 0; index < rows; ++index) {
        struct shmq_queue_row *queue = shmq_control_queue_row(append->control, index);
        struct shmq_row *row = &append->rows[index];
        uint32_t subscribers = row->subscribers;
        memset(row, 0, sizeof *row);
        row->subscribers = subscribers;
        /* relaxed: the dead broker's words, ours now */
        uint64_t max = shmq_load_relaxed(&queue->max_queue_offset);
        row->next_queue_offset = max;
        uint32_t state = shmq_load_relaxed32(&queue->state);
        if (state == SHMQ_ROW_DELETED) { /* the predecessor died while it deleted this row */
            shmq_store_relaxed32(&queue->head_block, 0);
            shmq_store_relaxed32(&queue->tail_block, 0);
            /* release: pairs with the acquire in shmq_consume_queue_read: handles to it are stale, as planned */
            shmq_store_release32(&queue->generation, shmq_load_relaxed32(&queue->generation) + 1);
            /* release: pairs with the acquire of whoever lists queues */
            shmq_store_release32(&queue->state, SHMQ_ROW_FREE);
        }
        if (state != SHMQ_ROW_ACTIVE && state != SHMQ_ROW_READ_ONLY) {
            continue;
        }
        if (queue->topic_row >= topics ||
            shmq_topics_row(append->topics, queue->topic_row)->topic_size > SHMQ_TOPIC_SIZE_MAX) {
            return SHMQ_CORRUPT;
        }
        uint32_t generation = shmq_load_relaxed32(&queue->generation);
        uint32_t number = shmq_load_relaxed32(&queue->head_block);
        uint32_t previous = 0;
        for (uint32_t step = 0; number != 0; ++step) {
            if (number >= arena->block_count || marks[number] != 0 || step >= SHMQ_WALK_MAX) {
                return SHMQ_CORRUPT;
            }
            struct shmq_block_header *head = &shmq_arena_block(arena->base, number)->header;
            uint64_t first = shmq_load_relaxed(&head->first_queue_offset);
            if ((shmq_load_relaxed(&head->generation) & 1) != 0 || first > max ||
                shmq_load_relaxed32(&head->queue_row) != index ||
                shmq_load_relaxed32(&head->row_generation) != generation) {
                /* taken by the unfinished publish and not linked whole: cut it off, the redo takes another */
                number = 0;
                break;
            }
            marks[number] = 1;
            row->chain.ordinal = shmq_load_relaxed32(&head->ordinal) + 1;
            if (max - first <= SHMQ_BLOCK_ENTRIES) {
                row->chain.tail_block = number;
                row->chain.tail_room = SHMQ_BLOCK_ENTRIES - (uint32_t)(max - first);
                break;
            }
            previous = number;
            number = shmq_load_relaxed32(&head->next_block);
        }
        if (number == 0 && (previous != 0 || shmq_load_relaxed(&queue->hot_min_queue_offset) < max)) {
            return SHMQ_CORRUPT; /* the chain ends before the queue does */
        }
        if (number == 0) {
            shmq_store_relaxed32(&queue->head_block, 0);
            shmq_store_relaxed(&queue->hot_min_queue_offset, max);
        }
        shmq_store_relaxed32(&queue->tail_block, row->chain.tail_block);
        row->staged_room = row->chain.tail_room;
        shmq_row_index_add(&append->row_index, index);
        if (shmq_load_relaxed(&queue->visible_max) < max) {
            row->pending = 1;
            append->pending_rows[append->pending_row_count++] = index;
            append->settle_rows = 1;
        }
    }
    arena->free_count = 0;
    for (uint32_t number = arena->block_count; number-- > 1;) {
        if (marks[number] == 0) {
            shmq_arena_free(arena, number);
        }
    }
    return SHMQ_OK;
}

/* tagsCode of a frame that holds. A foreign store's properties are taken as they are, without the last separator
 * even. */
static inline int64_t shmq_frame_tags_code(const struct shmq_append *append, uint32_t row_flags,
                                           const struct shmq_message_view *view)
{
    struct shmq_properties_summary summary = {0};
    (void)shmq_properties_find(view->properties, view->properties_size, (const uint8_t *)"TAGS", 4, &summary.tags,
                               &summary.tags_size);
    (void)shmq_properties_find(view->properties, view->properties_size, (const uint8_t *)"DELAY", 5, &summary.delay,
                               &summary.delay_size);
    return shmq_append_tags_code(append, row_flags, &summary, (uint64_t)view->store_timestamp);
}

/* Prepared or rolled back messages stand in no queue. */
static inline int shmq_frame_has_queue(const struct shmq_message_view *view)
{
    uint32_t transaction = view->sys_flag & SHMQ_SYS_FLAG_TRANSACTION_MASK;
    return transaction != SHMQ_SYS_FLAG_TRANSACTION_PREPARED && transaction != SHMQ_SYS_FLAG_TRANSACTION_ROLLBACK;
}

/* Redoes step 3 of the last committed turn. The frames are found in hot memory by their positions. */
static inline int shmq_turn_redo(struct shmq_append *append, uint64_t now_ns)
{
    struct shmq_control *control = append->control;
    /* acquire: pairs with the release at the commit point in shmq_turn_run */
    uint64_t turn = shmq_load_acquire(&control->append.turn_number);
    append->turn_number = turn;
    if (turn == 0) {
        append->log.log_end = shmq_load_relaxed(&control->append.committed_position); /* relaxed: own word */
        append->flush_wanted = append->log.log_end; /* who waits was told so by a predecessor */
        return SHMQ_OK;
    }
    const struct shmq_turn_record *record = shmq_control_turn_record(control, turn);
    uint64_t ready_end = shmq_load_relaxed(&append->log.ready_end); /* relaxed: own word */
    if (record->header.turn_number != turn || record->header.log_begin > record->header.log_end ||
        record->header.log_end > ready_end || record->header.ring_count > SHMQ_TURN_RING_MAX ||
        record->header.service_count > SHMQ_SERVICE_MAX) {
        return SHMQ_CORRUPT;
    }
    for (uint32_t i = 0; i < record->header.ring_count; ++i) {
        if (record->rings[i].ring_slot >= control->config.session_slot_count * SHMQ_LANE_MAX) {
            return SHMQ_CORRUPT;
        }
    }
    for (uint32_t i = 0; i < record->header.service_count; ++i) {
        if (record->services[i].service_id >= SHMQ_SERVICE_MAX) {
            return SHMQ_CORRUPT;
        }
    }
    append->store_timestamp = record->header.store_timestamp;
    append->log.log_end = record->header.log_end;
    append->flush_wanted = append->log.log_end; /* who waits was told so by a predecessor */
    append->staged_count = 0;
    append->arena_reserved = 0;
    uint64_t position = record->header.log_begin;
    while (position < record->header.log_end) {
        uint64_t room = append->log.file_size_bytes - position % append->log.file_size_bytes;
        const uint8_t *frame = shmq_commit_log_at(&append->log, position);
        struct shmq_message_view view;
        if (frame == NULL) {
            return SHMQ_CORRUPT;
        }
        int status = shmq_message_check(frame, room, position, SHMQ_CHECK_RECORD_CRC, &view);
        if (status == SHMQ_BLANK && view.total_size == room) {
            position += room;
            continue;
        }
        if (status != SHMQ_OK || append->staged_count >= SHMQ_TURN_RECORDS_MAX) {
            return SHMQ_CORRUPT;
        }
        /* A replica turn copies frames of whoever wrote them, also those that stand in no queue. */
        uint32_t index = shmq_frame_has_queue(&view)
                             ? shmq_row_index_find(&append->row_index, view.topic, view.topic_size, view.queue_id)
                             : UINT32_MAX;
        /* A queue deleted right behind the turn has no row and needs none. */
        if (index != UINT32_MAX) {
            struct shmq_row *row = &append->rows[index];
            uint64_t queue_offset = view.queue_offset;
            if (queue_offset > row->next_queue_offset) {
                return SHMQ_CORRUPT;
            }
            if (queue_offset == row->next_queue_offset) {
                const struct shmq_queue_row *queue = shmq_control_queue_row(control, index);
                struct shmq_staged *staged = &append->staged[append->staged_count++];
                staged->physical_offset = position;
                staged->queue_offset = queue_offset;
                staged->tags_code = shmq_frame_tags_code(append, shmq_load_relaxed32(&queue->flags), &view);
                staged->size = view.total_size;
                staged->row = index;
                row->next_queue_offset += 1;
                if (row->staged_room == 0) {
                    if (append->arena_reserved >= append->arena.free_count) {
                        return SHMQ_CORRUPT; /* the turn had made sure of its blocks */
                    }
                    append->arena_reserved += 1;
                    row->staged_room = SHMQ_BLOCK_ENTRIES;
                }
                row->staged_room -= 1;
            }
        }
        position += view.total_size;
    }
    for (uint32_t i = 0; i < record->header.ring_count; ++i) {
        const struct shmq_turn_ring *entry = &record->rings[i];
        uint32_t session = entry->ring_slot / SHMQ_LANE_MAX;
        if (shmq_control_session_slot(control, session)->generation != entry->session_generation) {
            continue;
        }
        struct shmq_ring_slot *slot = shmq_control_ring_slot(control, entry->ring_slot);
        /* release: pairs with the acquires in shmq_lane_completion and shmq_lane_claim: its producer may be
         * looking at this very moment */
        shmq_store_release(&slot->completion_tail, entry->completion_tail);
        shmq_store_release(&slot->read_position, entry->read_position); /* release: as above */
    }
    shmq_turn_publish(append, record, now_ns);
    return SHMQ_OK;
}

/* Outcome of a replay: where it stopped and why. */
struct shmq_replay {
    uint64_t position;    /* of the first frame not replayed */
    uint64_t frames;      /* replayed */
    uint64_t holes;       /* queue offsets filled with entries of size 0 */
    struct shmq_message_view view; /* of the frame it stopped at: NO_TOPIC */
    uint64_t limit;       /* stop before this position */
    uint64_t frames_max;  /* stop after this many frames */
};

/* Puts ConsumeQueue entries for the frames in hot memory from replay->position up to replay->limit. OK: reached
 * the limit or frames_max. NO_TOPIC: the frame's queue has no row (make it and go on). ARENA_FULL: grow it
 * and go on. CORRUPT: the frame there is not one, or not of that queue_offset; EMPTY: zeros there (the end of
 * the log). */
static inline int shmq_log_replay(struct shmq_append *append, uint32_t check_flags, struct shmq_replay *replay)
{
    while (replay->position < replay->limit && replay->frames < replay->frames_max) {
        uint64_t room = append->log.file_size_bytes - replay->position % append->log.file_size_bytes;
        const uint8_t *frame = shmq_commit_log_at(&append->log, replay->position);
        if (frame == NULL) {
            return SHMQ_OFFSET_TOO_SMALL;
        }
        struct shmq_message_view *view = &replay->view;
        int status = room >= SHMQ_BLANK_ROOM
                         ? shmq_message_check(frame, room, replay->position, check_flags, view)
                         : SHMQ_CORRUPT;
        if (status == SHMQ_BLANK && view->total_size == room) {
            replay->position += room;
            continue;
        }
        if (status != SHMQ_OK) {
            return status == SHMQ_BLANK ? SHMQ_CORRUPT : status;
        }
        if (!shmq_frame_has_queue(view)) {
            replay->position += view->total_size;
            replay->frames += 1;
            continue;
        }
        uint32_t index = shmq_row_index_find(&append->row_index, view->topic, view->topic_size,
                                             view->queue_id);
        if (index == UINT32_MAX) {
            return SHMQ_NO_TOPIC;
        }
        struct shmq_row *row = &append->rows[index];
        struct shmq_queue_row *queue = shmq_control_queue_row(append->control, index);
        uint64_t queue_offset = view->queue_offset;
        if (queue_offset >= row->next_queue_offset) {
            int64_t tags_code = shmq_frame_tags_code(append, shmq_load_relaxed32(&queue->flags), view);
            if (row->next_queue_offset == shmq_load_relaxed(&queue->min_queue_offset) &&
                shmq_load_relaxed32(&queue->tail_block) == 0 && row->next_queue_offset == 0) {
                /* the first message kept of this queue need not be its first ever */
                row->next_queue_offset = queue_offset;
                shmq_store_relaxed(&queue->min_queue_offset, queue_offset); /* relaxed: nobody reads yet */
                shmq_store_relaxed(&queue->hot_min_queue_offset, queue_offset); /* relaxed: as above */
            }
            /* Every message missing from this queue had its bytes between its last one and this. */
            uint64_t since = shmq_load_relaxed(&queue->last_position);           /* relaxed: own word */
            uint64_t min = shmq_load_relaxed(&append->control->append.min_position); /* relaxed: own word */
            since = since > min ? since : min;
            if (queue_offset - row->next_queue_offset >
                (replay->position - since) / SHMQ_MESSAGE_FIXED_SIZE_V1) {
                return SHMQ_CORRUPT; /* no damage explains such a hole: the queue offset is wrong */
            }
            for (; row->next_queue_offset <= queue_offset; ++row->next_queue_offset) {
                if (row->chain.tail_room == 0 && append->arena.free_count == 0) {
                    return SHMQ_ARENA_FULL;
                }
                int hole = row->next_queue_offset != queue_offset;
                shmq_consume_queue_put(&append->arena, queue, index, &row->chain, row->next_queue_offset,
                                       replay->position, hole ? 0 : view->total_size, hole ? 0 : tags_code);
                replay->holes += (uint64_t)hole;
            }
            row->staged_room = row->chain.tail_room;
            /* relaxed: nobody reads before recovery is over */
            shmq_store_relaxed(&queue->max_queue_offset, row->next_queue_offset);
            shmq_store_relaxed(&queue->visible_max, row->next_queue_offset);
            shmq_store_relaxed(&queue->last_position, replay->position);
        }
        if ((uint64_t)view->store_timestamp > append->store_timestamp) {
            append->store_timestamp = (uint64_t)view->store_timestamp;
        }
        replay->position += view->total_size;
        replay->frames += 1;
    }
    return SHMQ_OK;
}

#endif
