/* replica.h: how a slave's log becomes the master's, byte for byte, and how the master learns of it.
 *
 * Byte table: layout.h append_positions, flush_positions, replica_positions, sleep_line. Nothing else is shared: each
 * side maps the other's control segment read-only, and the slave the master's log as any client does.
 * Validity: the master's frames below its committed_position, once the copy of each has been checked (place and CRC)
 * in the slave's own memory. A slave's positions count up to what the master itself has committed.
 * Writer algorithm, slave (append role): a replica turn takes whole frames from the master's log behind log_end,
 * stages their ConsumeQueue entries, commits a turn record without rings, publishes as every turn does. Master
 * (append role): confirmed_position follows the slaves that are in sync.
 * Reader algorithm: consumers read a slave as they read any broker; the master reads a slave's committed_position (or
 * flushed_position) once a look.
 * Waiting: each wakes the other if its append thread sleeps (sleep_line.append_sleeps) and, for the way back, if somebody
 * waits for the answer (replica_positions.confirm_wanted).
 * Crash: a slave that dies in a replica turn is as a broker that dies in a turn: its successor redoes the last one
 * (recovery.h) and copies on from there. What a dead master had committed is whole; the rest was never read. */
#ifndef SHMQ_REPLICA_H
#define SHMQ_REPLICA_H

#include "recovery.h"

/* Slaves of one master. */
#define SHMQ_REPLICA_MAX 16u
/* One replica turn copies this much, or one larger frame: what was copied is still in the cache when it is checked. */
#define SHMQ_REPLICA_TURN_BYTES (256u * 1024u)

/* What a replica turn cannot do by itself. */
enum shmq_replica_need {
    SHMQ_REPLICA_NEED_NOTHING = 0,
    SHMQ_REPLICA_NEED_FILE = 1,    /* the master's file at log_end is not mapped */
    SHMQ_REPLICA_NEED_QUEUE = 2,   /* the frame's queue has no row, or not one that goes on at its queue_offset */
    SHMQ_REPLICA_NEED_REPAIR = 3,  /* the frame does not hold */
    SHMQ_REPLICA_NEED_MASTER = 4,  /* the master's log ends before ours does: it is not the one that was copied */
};

/* Where a slave copies from; process-private, under the append role. */
struct shmq_replica_source {
    const struct shmq_control *control; /* the master's */
    const uint8_t *base;                /* of one file of its log, NULL if none is at hand */
    uint64_t file_position;             /* of base[0] */
    uint64_t record_crc_position;       /* from here on each frame carries the CRC property */
    uint64_t flushed_told;              /* flushed_position when the master was told last */
    uint32_t need;                      /* enum shmq_replica_need: turns wait until it is cleared */
    uint32_t answered;                  /* epoch of the master's sleep that was answered already */
    int event_fd;                       /* wakes the master */
    uint32_t reserved;
    struct shmq_message_view view;      /* of the frame that needs something */
};

/* A slave as its master sees it. */
struct shmq_replica {
    const struct shmq_control *control; /* the slave's, range-checked at each look; NULL: none */
    uint64_t position;                  /* of the level that counts, as last believed */
    uint32_t socket;                    /* shmq_socket_poke */
    uint32_t answered;                  /* epoch of the slave's sleep that was answered already */
    uint32_t is_in_sync;                /* confirmed_position waits for it */
    uint32_t reserved;
};

/* The slaves of a master; process-private, under the append role. */
struct shmq_replica_set {
    struct shmq_replica replicas[SHMQ_REPLICA_MAX];
    uint32_t limit;         /* replicas at or above it are none */
    uint32_t is_confirming; /* 0: confirmed_position stays where it is, nobody reads it */
    uint32_t needed;        /* slaves in sync that must have it; 0: all of them */
    uint32_t by_flushed;    /* what counts is on the slave's disk */
};

/* ---- the slave's side --------------------------------------------------------------------------------- */

/* What is confirmed at the master is so here, as far as we have it: a message shows itself nowhere sooner. */
static inline void shmq_replica_follow_confirmed(struct shmq_append *append, const struct shmq_replica_source *source)
{
    /* acquire: pairs with the release in shmq_replica_set_confirm */
    uint64_t confirmed = shmq_load_acquire(&source->control->replica.confirmed_position);
    shmq_word64 *own = &append->control->replica.confirmed_position;
    confirmed = confirmed < append->log.log_end ? confirmed : append->log.log_end;
    if (confirmed > shmq_load_relaxed(own)) { /* relaxed: own word */
        shmq_store_release(own, confirmed);   /* release: pairs with the acquire in shmq_turn_settle */
    }
}

/* Stages the entry of a frame. OK; ARENA_FULL; NO_TOPIC: its queue must be made ready first. */
static inline int shmq_replica_stage(struct shmq_append *append, const struct shmq_message_view *view)
{
    if (!shmq_frame_has_queue(view)) {
        return SHMQ_OK;
    }
    uint32_t index = shmq_row_index_find(&append->row_index, view->topic, view->topic_size, view->queue_id);
    if (index == UINT32_MAX || append->rows[index].next_queue_offset != view->queue_offset) {
        return SHMQ_NO_TOPIC;
    }
    struct shmq_row *row = &append->rows[index];
    if (row->staged_room == 0) {
        if (append->arena_reserved >= append->arena.free_count) {
            return SHMQ_ARENA_FULL;
        }
        append->arena_reserved += 1;
        row->staged_room = SHMQ_BLOCK_ENTRIES;
    }
    row->staged_room -= 1;
    row->next_queue_offset += 1;
    uint32_t flags = shmq_load_relaxed32(&shmq_control_queue_row(append->control, index)->flags); /* relaxed: own */
    append->staged[append->staged_count++] = (struct shmq_staged){
        .physical_offset = view->physical_offset,
        .queue_offset = view->queue_offset,
        .tags_code = shmq_frame_tags_code(append, flags, view),
        .size = view->total_size,
        .row = index,
    };
    return SHMQ_OK;
}

/* Copies what the master has of the file at log_end, up to `end`: a stretch, or one frame that is larger. Returns how
 * far; nothing in it is believed yet. */
static inline uint64_t shmq_replica_copy(struct shmq_append *append, const struct shmq_replica_source *source,
                                         uint8_t *to, uint64_t end)
{
    uint64_t begin = append->log.log_end;
    const uint8_t *from = source->base + (begin - source->file_position);
    uint64_t size = end - begin < SHMQ_REPLICA_TURN_BYTES ? end - begin : SHMQ_REPLICA_TURN_BYTES;
    memcpy(to, from, size);
    uint64_t first = size < SHMQ_BLANK_SIZE ? 0 : shmq_be32_load(to); /* of the copy: it is bounded here, then checked */
    if (first > size && first <= end - begin) {
        memcpy(to + size, from + size, first - size);
        size = first;
    }
    return begin + size;
}

/* One replica turn. Returns what it took: frames, and BLANK frames; 0: nothing. source->need and append->blocked
 * say what the next one waits for. */
static inline uint32_t shmq_replica_turn(struct shmq_append *append, struct shmq_replica_source *source,
                                         uint64_t now_ns)
{
    if (append->blocked != 0 || source->need != SHMQ_REPLICA_NEED_NOTHING) {
        return 0;
    }
    uint64_t begin = append->log.log_end;
    /* acquire: pairs with the release in shmq_turn_publish; the master's frames below it are whole */
    uint64_t committed = shmq_load_acquire(&source->control->append.committed_position);
    if (committed <= begin) {
        source->need = committed < begin ? SHMQ_REPLICA_NEED_MASTER : SHMQ_REPLICA_NEED_NOTHING;
        return 0;
    }
    uint64_t file_size = append->log.file_size_bytes;
    uint64_t file_position = begin - begin % file_size;
    uint64_t file_end = file_position + file_size;
    if (source->base == NULL || source->file_position != file_position) {
        source->need = SHMQ_REPLICA_NEED_FILE;
        return 0;
    }
    uint8_t *to = shmq_commit_log_at(&append->log, begin);
    if (to == NULL || begin >= shmq_load_acquire(&append->log.ready_end)) { /* acquire: as in shmq_commit_log_claim */
        append->blocked = (uint32_t)-SHMQ_LOG_FULL;
        return 0;
    }
    uint64_t end = shmq_replica_copy(append, source, to, committed < file_end ? committed : file_end);
    uint64_t store_timestamp = append->store_timestamp;
    uint64_t position = begin;
    uint32_t taken = 0;
    uint32_t rolled = 0;
    int status = SHMQ_OK;
    append->staged_count = 0;
    append->arena_reserved = 0;
    while (position < end && append->staged_count < SHMQ_TURN_RECORDS_MAX) {
        uint8_t *frame = to + (position - begin);
        uint64_t room = file_end - position;
        struct shmq_message_view *view = &source->view;
        if (taken != 0 && (end - position < SHMQ_BLANK_SIZE || shmq_be32_load(frame) > end - position)) {
            break; /* the next turn has all of it */
        }
        uint32_t demands = position >= source->record_crc_position ? SHMQ_CHECK_RECORD_CRC : 0;
        status = room < SHMQ_BLANK_ROOM
                     ? SHMQ_CORRUPT
                     : shmq_message_check(frame, end - position, position, demands, view);
        if (status == SHMQ_BLANK && view->total_size == room) {
            position = file_end;
            rolled += 1;
            taken += 1;
            status = SHMQ_OK;
            break;
        }
        if (status == SHMQ_OK) {
            status = shmq_replica_stage(append, view);
        } else {
            status = SHMQ_CORRUPT;
        }
        if (status != SHMQ_OK) {
            break;
        }
        if ((uint64_t)view->store_timestamp > store_timestamp) {
            store_timestamp = (uint64_t)view->store_timestamp;
        }
        position += view->total_size;
        taken += 1;
    }
    struct shmq_counters *counters = &append->control->counters;
    if (status == SHMQ_ARENA_FULL) {
        append->blocked = (uint32_t)-SHMQ_ARENA_FULL;
        /* relaxed: a counter */
        shmq_store_relaxed(&counters->arena_full_turns, shmq_load_relaxed(&counters->arena_full_turns) + 1);
    } else if (status != SHMQ_OK) {
        source->need = status == SHMQ_NO_TOPIC ? SHMQ_REPLICA_NEED_QUEUE : SHMQ_REPLICA_NEED_REPAIR;
    }
    if (taken == 0) {
        return 0;
    }
    uint64_t turn = append->turn_number + 1;
    struct shmq_turn_record *record = shmq_control_turn_record(append->control, turn);
    record->header.turn_number = turn;
    record->header.log_begin = begin;
    record->header.log_end = position;
    record->header.store_timestamp = store_timestamp;
    record->header.ring_count = 0;
    record->header.service_count = 0;
    append->store_timestamp = store_timestamp;
    append->log.log_end = position;
    append->turn_number = turn;
    /* relaxed: a counter */
    shmq_store_relaxed(&counters->files_rolled, shmq_load_relaxed(&counters->files_rolled) + rolled);
    /* release: THE COMMIT POINT, as in shmq_turn_run; pairs with the acquire in shmq_turn_redo */
    shmq_store_release(&append->control->append.turn_number, turn);
    shmq_turn_publish(append, record, now_ns);
    return taken;
}

/* Wakes the master if it sleeps while somebody there waits for us. The caller has published and fenced. */
static inline void shmq_replica_answer(const struct shmq_append *append, struct shmq_replica_source *source)
{
    source->flushed_told = shmq_load_relaxed(&append->control->flush.flushed_position); /* relaxed: to compare with */
    /* relaxed: ordered by the two fences, ours and that in shmq_append_sleep */
    uint32_t epoch = shmq_load_relaxed32(&source->control->sleep.append_sleeps);
    if ((epoch & 1) == 0 || epoch == source->answered ||
        shmq_load_relaxed32(&source->control->replica.confirm_wanted) == 0) { /* relaxed: likewise */
        return;
    }
    source->answered = epoch;
    shmq_eventfd_signal(source->event_fd);
}

/* Is there anything a replica turn or a settle could do? */
static inline int shmq_replica_ready(const struct shmq_append *append, const struct shmq_replica_source *source)
{
    const struct shmq_control *own = append->control;
    /* acquire: as in shmq_turn_settle */
    uint64_t flushed = shmq_load_acquire(&own->flush.flushed_position);
    if (append->settle_rows != 0 || (append->pending_row_count != 0 && flushed != append->flushed_seen)) {
        return 1;
    }
    if (source == NULL) {
        return 0;
    }
    if (append->pending_row_count != 0) {
        /* acquire: as in shmq_replica_follow_confirmed */
        uint64_t confirmed = shmq_load_acquire(&source->control->replica.confirmed_position);
        uint64_t known = shmq_load_relaxed(&own->replica.confirmed_position); /* relaxed: own word */
        if (confirmed > known && known < append->log.log_end) {
            return 1;
        }
    }
    if (flushed != source->flushed_told) {
        return 1;
    }
    /* acquire: as in shmq_replica_turn */
    return append->blocked == 0 && source->need == SHMQ_REPLICA_NEED_NOTHING &&
           shmq_load_acquire(&source->control->append.committed_position) != append->log.log_end;
}

/* shmq_append_sleep of a slave: 1 if it may sleep. Its rings are nobody's: a slave takes no message. */
static inline int shmq_replica_sleep(struct shmq_append *append, const struct shmq_replica_source *source)
{
    shmq_word32 *epoch = &append->control->sleep.append_sleeps;
    uint32_t last = shmq_load_relaxed32(epoch); /* relaxed: own word */
    /* relaxed: the master looks at it in shmq_replica_set_tell, behind its fence */
    shmq_store_relaxed32(&append->control->replica.confirm_wanted, append->pending_row_count != 0);
    /* relaxed: the fence behind it orders it before the last look */
    shmq_store_relaxed32(epoch, (last | 1u) + (last & 1u) * 2u);
    shmq_fence_full(); /* pairs with the fence at the end of the master's shmq_turn_publish */
    if (shmq_replica_ready(append, source)) {
        shmq_sleep_end(epoch);
        return 0;
    }
    return 1;
}

/* ---- the master's side -------------------------------------------------------------------------------- */

/* How far a slave is, at the level that counts. What is beyond our own log was never ours: not believed. */
static inline uint64_t shmq_replica_position(const struct shmq_replica_set *set, const struct shmq_replica *replica,
                                             uint64_t committed)
{
    /* acquire: pairs with the releases in shmq_turn_publish and in the flusher of the slave */
    uint64_t position = set->by_flushed ? shmq_load_acquire(&replica->control->flush.flushed_position)
                                        : shmq_load_acquire(&replica->control->append.committed_position);
    return position <= committed && position > replica->position ? position : replica->position;
}

/* What is confirmed, of these: the least of all, or what the `needed` farthest have. */
static inline uint64_t shmq_replica_least(const struct shmq_replica_set *set, uint64_t committed, uint64_t confirmed)
{
    uint64_t best[SHMQ_REPLICA_MAX];
    uint32_t count = 0;
    for (uint32_t i = 0; i < set->limit; ++i) {
        const struct shmq_replica *replica = &set->replicas[i];
        if (replica->control == NULL || replica->is_in_sync == 0) {
            continue;
        }
        uint32_t at = count++;
        for (; at > 0 && best[at - 1] < replica->position; --at) {
            best[at] = best[at - 1];
        }
        best[at] = replica->position;
    }
    if (set->needed > count) {
        return confirmed; /* too few: nothing more is confirmed until there are */
    }
    if (count == 0) {
        return committed;
    }
    return best[(set->needed == 0 ? count : set->needed) - 1];
}

/* Lets confirmed_position follow the slaves in sync; it never goes back. Returns 1 if it moved. The settle behind it
 * acts on it. */
static inline int shmq_replica_set_confirm(struct shmq_append *append, struct shmq_replica_set *set)
{
    if (set->is_confirming == 0) {
        return 0;
    }
    uint64_t committed = shmq_load_relaxed(&append->control->append.committed_position); /* relaxed: own word */
    for (uint32_t i = 0; i < set->limit; ++i) {
        struct shmq_replica *replica = &set->replicas[i];
        if (replica->control != NULL) {
            replica->position = shmq_replica_position(set, replica, committed);
        }
    }
    shmq_word64 *word = &append->control->replica.confirmed_position;
    uint64_t confirmed = shmq_load_relaxed(word); /* relaxed: own word */
    uint64_t least = shmq_replica_least(set, committed, confirmed);
    if (least <= confirmed) {
        return 0;
    }
    /* release: pairs with the acquires in shmq_turn_settle and, of the slaves, in shmq_replica_follow_confirmed */
    shmq_store_release(word, least);
    return 1;
}

/* Wakes the slaves that sleep and have work: frames to copy, or messages to show. The caller has published, and
 * fenced where no turn did. */
static inline void shmq_replica_set_tell(struct shmq_replica_set *set, int has_frames)
{
    for (uint32_t i = 0; i < set->limit; ++i) {
        struct shmq_replica *replica = &set->replicas[i];
        if (replica->control == NULL) {
            continue;
        }
        /* relaxed: ordered by the two fences, ours and that in shmq_replica_sleep */
        uint32_t epoch = shmq_load_relaxed32(&replica->control->sleep.append_sleeps);
        if ((epoch & 1) == 0 || epoch == replica->answered ||
            (!has_frames && shmq_load_relaxed32(&replica->control->replica.confirm_wanted) == 0)) {
            continue; /* relaxed: likewise */
        }
        replica->answered = epoch;
        shmq_socket_poke(replica->socket);
    }
}

/* Before the master's append thread sleeps: the slaves see that somebody waits for them. The fence in
 * shmq_append_sleep, behind it, orders it before the last looks. */
static inline void shmq_replica_set_want(const struct shmq_append *append, const struct shmq_replica_set *set)
{
    /* relaxed: ordered by the fence in shmq_append_sleep and that at the end of a slave's shmq_turn_publish */
    shmq_store_relaxed32(&append->control->replica.confirm_wanted,
                         set->limit != 0 && (append->pending_row_count != 0 || append->pending_ring_count != 0));
}

/* The last look behind shmq_append_sleep: has a slave that somebody waits for moved? */
static inline int shmq_replica_set_ready(const struct shmq_append *append, const struct shmq_replica_set *set)
{
    if (set->limit == 0 || (append->pending_row_count == 0 && append->pending_ring_count == 0)) {
        return 0;
    }
    uint64_t committed = shmq_load_relaxed(&append->control->append.committed_position); /* relaxed: own word */
    for (uint32_t i = 0; i < set->limit; ++i) {
        const struct shmq_replica *replica = &set->replicas[i];
        if (replica->control != NULL && replica->is_in_sync != 0 &&
            shmq_replica_position(set, replica, committed) != replica->position) {
            return 1;
        }
    }
    return 0;
}

#endif
