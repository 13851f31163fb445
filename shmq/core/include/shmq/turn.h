/* turn.h: the append thread's turn: drain the rings, append, commit once, redo.
 *
 * Byte table: layout.h turn_header, turn_ring, turn_service; two records alternate in the control segment.
 * Validity: record turn_number & 1 describes the last committed turn; the other one is scratch.
 * Writer algorithm (append role, never two at once):
 *   1. take records from the rings, fair by bytes: validate, write frames behind log_end, note each in
 *      `staged`, write its completion entry; none of it counts yet
 *   2. fill the scratch record, store turn_number (release): THE COMMIT POINT
 *   3. publish: ConsumeQueue entries, queue offsets, read positions, completions, visible_max, wake-ups
 * Reader algorithm: none but the successor; everybody else reads what step 3 publishes.
 * Crash: before 2 the turn never was: its frames lie behind committed_position, its completions behind
 * completion_tail, and the rings still hold its records. After 2 the successor runs step 3 again from
 * the record and the frames themselves (shmq_turn_redo); each part writes what it wrote before.
 *
 * What becomes of each field of a record, and whose word counts:
 *   copied    body, properties (checked on the copy), flag, born_timestamp
 *   computed  total size, magic, bodyCRC, __CRC32#, queueId, topic, queueOffset, physicalOffset,
 *             storeTimestamp, bornHost, storeHost, tagsCode
 *   masked    sysFlag (a client may set the compression and multi-tag bits), reserved property names,
 *             reconsumeTimes (0 without the service grant), preparedTransactionOffset (0)
 *
 * A delayed message is admitted to its own queue and then appended to that of its level in
 * SCHEDULE_TOPIC_XXXX, with its own in REAL_TOPIC and REAL_QID: the broker writes both, so nobody delays a message
 * into a topic that he may not send to. */
#ifndef SHMQ_TURN_H
#define SHMQ_TURN_H

#include "commit_log.h"
#include "consume_queue.h"
#include "ingress.h"
#include "layout.h"
#include "message.h"
#include "row_index.h"
#include "stats.h"
#include "status.h"
#include "waiter.h"

/* One turn ends when it has appended this much: bounds how long a committed message waits to be seen. */
#define SHMQ_TURN_BYTES_MAX (256u * 1024u)
/* A ring gets this many bytes of ring records per turn, and at least one record. */
#define SHMQ_TURN_RING_BYTES (64u * 1024u)
#define SHMQ_TURN_RECORDS_MAX 4096u
/* One visit to one ring; also bounds a ring of refused records. */
#define SHMQ_TURN_RING_RECORDS_MAX 1024u
#define SHMQ_DELAY_LEVEL_MAX 64u
#define SHMQ_SCHEDULE_TOPIC "SCHEDULE_TOPIC_XXXX"
#define SHMQ_SCHEDULE_TOPIC_SIZE 19u
/* "REAL_TOPIC" 0x01 topic 0x02 "REAL_QID" 0x01 ten digits 0x02 */
#define SHMQ_REAL_PROPERTIES_MAX (12u + SHMQ_TOPIC_SIZE_MAX + 20u)
/* sysFlag bits that are taken from a record; the rest is masked. */
#define SHMQ_SYS_FLAG_CLIENT                                                                       \
    (SHMQ_SYS_FLAG_COMPRESSED | SHMQ_SYS_FLAG_MULTI_TAGS | SHMQ_SYS_FLAG_COMPRESSION_MASK)
#define SHMQ_SYS_FLAG_SERVICE                                                                      \
    (SHMQ_SYS_FLAG_CLIENT | SHMQ_SYS_FLAG_TRANSACTION_MASK | SHMQ_SYS_FLAG_INNER_BATCH |           \
     SHMQ_SYS_FLAG_NEED_UNWRAP)

/* A message of the turn, between append and publish. */
struct shmq_staged {
    uint64_t physical_offset;
    uint64_t queue_offset;
    int64_t tags_code;
    uint32_t size;
    uint32_t row;
};

/* A queue row as the append role sees it; process-private. */
struct shmq_row {
    uint64_t next_queue_offset;  /* staged messages included */
    struct shmq_chain chain;
    uint32_t staged_room;        /* entries that fit without another block, staged ones included */
    uint32_t subscribers;        /* first node of the list of bells, 0 = none */
    uint32_t touched;            /* 1 while in append.touched */
    uint32_t pending;            /* 1 while in append.pending_rows */
    struct shmq_cursor cursor;   /* where the walk of visible_max stands */
};

struct shmq_subscription {
    uint32_t bell; /* index into append.bells */
    uint32_t next; /* node, 0 = end */
};

/* A consumer's bell as the append role sees it. */
struct shmq_bell {
    struct shmq_bell_line *line;
    const shmq_word32 *sleep_epoch; /* hostile: any value will do */
    uint32_t answered;
    uint32_t marked; /* 1 while in append.marked_bells */
    uint32_t socket; /* shmq_socket_poke */
};

/* Everything the append role owns; process-private. Arrays are the caller's, sized as the comments say. */
struct shmq_append {
    struct shmq_control *control;
    struct shmq_stats *stats;         /* NULL: nobody counts refusals by their reason */
    const uint8_t *topics;
    struct shmq_arena arena;
    struct shmq_commit_log log;
    struct shmq_row_index row_index;
    struct shmq_ring *rings;          /* session_slot_count * SHMQ_LANE_MAX */
    uint32_t ring_limit;              /* rings at or above it are free */
    uint32_t ring_cursor;             /* where the next turn begins */
    struct shmq_row *rows;            /* queue_row_max */
    uint32_t topic_row_free;          /* no topic row below it is free; private: 0 in a successor */
    uint32_t queue_row_free;          /* no queue row below it is free */
    struct shmq_subscription *subscriptions;
    struct shmq_bell *bells;          /* session_slot_count * SHMQ_CONSUMER_BELL_MAX */
    uint32_t *marked_bells;           /* as many */
    uint32_t marked_count;
    uint32_t touched_count;
    uint32_t *touched;                /* SHMQ_TURN_RECORDS_MAX */
    uint32_t *pending_rows;           /* queue_row_max */
    uint32_t pending_row_count;
    uint32_t pending_ring_count;
    uint32_t *pending_rings;          /* session_slot_count * SHMQ_LANE_MAX */
    struct shmq_staged *staged;       /* SHMQ_TURN_RECORDS_MAX */
    uint32_t staged_count;
    uint32_t arena_reserved;          /* blocks the staged messages will take */
    uint64_t turn_number;
    uint64_t store_timestamp;
    uint64_t flushed_seen;
    uint64_t confirmed_seen;
    uint64_t flush_wanted;            /* somebody waits for the disk to hold what is below it */
    uint64_t settle_next_ns;          /* when to look for completions that waited too long */
    uint32_t settle_rows;             /* 1: the next settle looks at the pending rows even if nothing moved */
    uint64_t flush_timeout_ns;        /* syncFlushTimeout */
    uint64_t replica_timeout_ns;      /* slaveTimeout */
    uint32_t replica_status;          /* 0, or what a send that waits for slaves gets: positive SLAVE_NOT_AVAILABLE
                                         (stored all the same) or IN_SYNC_REPLICAS_NOT_ENOUGH (refused) */
    uint32_t blocked;                 /* 0, or LOG_FULL / ARENA_FULL as positive status: rings wait */
    uint32_t delay_level_count;
    uint64_t delay_ms[SHMQ_DELAY_LEVEL_MAX + 1];
    uint8_t born_host[8];
};

/* How often completions are looked at for having waited too long. */
#define SHMQ_SETTLE_INTERVAL_NS 10000000u

/* Positions below it have reached the levels in `need`. */
static inline uint64_t shmq_append_safe(const struct shmq_append *append, uint32_t need)
{
    uint64_t safe = UINT64_MAX;
    if ((need & SHMQ_NEED_FLUSH) != 0 && append->flushed_seen < safe) {
        safe = append->flushed_seen;
    }
    if ((need & SHMQ_NEED_REPLICA) != 0 && append->confirmed_seen < safe) {
        safe = append->confirmed_seen;
    }
    return safe;
}

/* Row flags and need bits name the same levels by the same bits. */
_Static_assert(SHMQ_ROW_FLUSH == SHMQ_NEED_FLUSH && SHMQ_ROW_REPLICA == SHMQ_NEED_REPLICA, "one bit each");

static inline uint32_t shmq_row_need(const struct shmq_queue_row *row)
{
    /* relaxed: only the append role writes flags */
    return shmq_load_relaxed32(&row->flags) & (SHMQ_ROW_FLUSH | SHMQ_ROW_REPLICA);
}

/* The number in a DELAY property; 0: none. */
static inline uint32_t shmq_delay_level(const struct shmq_properties_summary *summary)
{
    uint32_t level = 0;
    for (uint32_t i = 0; i < summary->delay_size && i < 3; ++i) {
        uint8_t decimal = (uint8_t)(summary->delay[i] - '0');
        if (decimal > 9) {
            break;
        }
        level = level * 10 + decimal;
    }
    return level;
}

/* tagsCode: the hash of the tag; of a scheduled message the time it is due (RocketMQ CommitLog). */
static inline int64_t shmq_append_tags_code(const struct shmq_append *append, uint32_t row_flags,
                                            const struct shmq_properties_summary *summary,
                                            uint64_t store_timestamp)
{
    if ((row_flags & SHMQ_ROW_SCHEDULE) != 0 && summary->delay_size > 0) {
        uint32_t level = shmq_delay_level(summary);
        if (level > append->delay_level_count) {
            level = append->delay_level_count;
        }
        if (level > 0) {
            return (int64_t)(store_timestamp + append->delay_ms[level]);
        }
    }
    return shmq_tags_code(summary->tags, summary->tags_size);
}

/* Ends the session of a ring for a broken rule: what it had published and was not taken is dropped. The
 * control thread sees slot->ended and lets the session go. Not within a turn: the tails must be final. */
static inline void shmq_ring_end(struct shmq_append *append, struct shmq_ring *ring, int status)
{
    ring->state = SHMQ_RING_ENDED;
    /* release: pairs with the acquire in shmq_lane_completion; the tails before it are final */
    shmq_store_release32(&ring->slot->ended, (uint32_t)-status);
    struct shmq_counters *counters = &append->control->counters;
    /* relaxed: a counter */
    shmq_store_relaxed(&counters->sessions_ended, shmq_load_relaxed(&counters->sessions_ended) + 1);
    shmq_fence_full(); /* pairs with the sleeper's fence in shmq_sleep_begin */
    (void)shmq_bell_tell(ring->bell, &ring->lane->sleep_epoch, &ring->answered, ring->socket);
}

/* The turn record's entry for a ring, made at its first record of the turn. */
static inline struct shmq_turn_ring *shmq_turn_entry(struct shmq_ring *ring, struct shmq_turn_record *record)
{
    if (ring->turn_entry == 0) {
        struct shmq_turn_ring *entry = &record->rings[record->header.ring_count++];
        entry->ring_slot = ring->slot_index;
        entry->session_generation = ring->session_generation;
        entry->reserved = 0;
        ring->turn_entry = record->header.ring_count;
        return entry;
    }
    return &record->rings[ring->turn_entry - 1];
}

/* The queue of a ring's last record, while its turn lasts: rows and grants only change between turns. */
struct shmq_turn_target {
    uint32_t queue_row;
    uint32_t row_generation;
    uint32_t flags;                 /* of the row */
    uint32_t topic_size;
    struct shmq_row *row;           /* NULL: no record yet, or it was refused */
    const struct shmq_queue_row *queue;
    const uint8_t *topic;
};

/* May this session send to this queue now? OK with its *target, or why not. */
static inline int shmq_turn_admit(const struct shmq_append *append, const struct shmq_ring *ring,
                                  const struct shmq_record *head, struct shmq_turn_target *target)
{
    uint32_t row = head->queue_row;
    /* relaxed: only the append role makes rows */
    if (row >= shmq_load_relaxed32(&append->control->append.queue_row_count) || row >= ring->grant_rows ||
        (ring->grants[row / 64] >> (row % 64) & 1) == 0) {
        return SHMQ_NOT_GRANTED;
    }
    const struct shmq_queue_row *queue = shmq_control_queue_row(append->control, row);
    if (shmq_load_relaxed32(&queue->generation) != head->row_generation) { /* relaxed: own word */
        return SHMQ_NO_TOPIC;
    }
    uint32_t state = shmq_load_relaxed32(&queue->state); /* relaxed: own word */
    if (state == SHMQ_ROW_READ_ONLY && ring->service_id == 0) {
        return SHMQ_NOT_WRITABLE;
    }
    if (state != SHMQ_ROW_ACTIVE && state != SHMQ_ROW_READ_ONLY) {
        return SHMQ_NO_TOPIC;
    }
    const struct shmq_topic_row *topic = shmq_topics_row(append->topics, queue->topic_row);
    *target = (struct shmq_turn_target){
        .queue_row = row,
        .row_generation = head->row_generation,
        .flags = shmq_load_relaxed32(&queue->flags), /* relaxed: own word */
        .topic_size = topic->topic_size,
        .row = &append->rows[row],
        .queue = queue,
        .topic = topic->topic,
    };
    return SHMQ_OK;
}

/* Where a delayed message goes. */
struct shmq_turn_delay {
    struct shmq_turn_target target; /* the queue of its level */
    uint32_t properties_size;
    uint8_t properties[SHMQ_REAL_PROPERTIES_MAX]; /* REAL_TOPIC, REAL_QID: where it was admitted to */
};

/* OK with *out; ILLEGAL: into a queue of a level itself; NO_TOPIC: this store delays nothing. */
__attribute__((noinline)) static int shmq_turn_delay(const struct shmq_append *append,
                                                     const struct shmq_turn_target *real, uint32_t level,
                                                     struct shmq_turn_delay *out)
{
    if ((real->flags & SHMQ_ROW_SCHEDULE) != 0) {
        return SHMQ_ILLEGAL;
    }
    level = level < append->delay_level_count ? level : append->delay_level_count;
    uint32_t row = level == 0 ? UINT32_MAX
                              : shmq_row_index_find(&append->row_index, (const uint8_t *)SHMQ_SCHEDULE_TOPIC,
                                                    SHMQ_SCHEDULE_TOPIC_SIZE, level - 1);
    if (row == UINT32_MAX) {
        return SHMQ_NO_TOPIC;
    }
    const struct shmq_queue_row *queue = shmq_control_queue_row(append->control, row);
    out->target = (struct shmq_turn_target){
        .queue_row = row,
        .row_generation = shmq_load_relaxed32(&queue->generation), /* relaxed: own word */
        .flags = shmq_load_relaxed32(&queue->flags),               /* relaxed: own word */
        .topic_size = SHMQ_SCHEDULE_TOPIC_SIZE,
        .row = &append->rows[row],
        .queue = queue,
        .topic = shmq_topics_row(append->topics, queue->topic_row)->topic,
    };
    uint8_t *at = out->properties;
    memcpy(at, "REAL_TOPIC\001", 11);
    memcpy(at + 11, real->topic, real->topic_size);
    at += 11 + real->topic_size;
    memcpy(at, "\002REAL_QID\001", 10);
    at += 10;
    uint8_t digits[10];
    uint32_t count = 0;
    for (uint32_t left = real->queue->queue_id; count == 0 || left != 0; left /= 10) {
        digits[count++] = (uint8_t)('0' + left % 10);
    }
    while (count != 0) {
        *at++ = digits[--count];
    }
    *at++ = SHMQ_PROPERTY_VALUE_END;
    out->properties_size = (uint32_t)(at - out->properties);
    return SHMQ_OK;
}

/* Could a message be so, with so many bytes of properties of our own? OK or why not. */
static inline int shmq_turn_check(const struct shmq_append *append, const struct shmq_ring *ring,
                                  const struct shmq_record *head, uint32_t own_size)
{
    if (head->body_size > append->control->config.message_size_max) {
        return SHMQ_TOO_LARGE;
    }
    if (head->properties_size > SHMQ_PROPERTIES_SIZE_MAX - SHMQ_CRC_PROPERTY_SIZE - own_size) {
        return SHMQ_PROPERTIES_TOO_LARGE;
    }
    /* Prepared and rolled back messages belong to no queue; here everything goes into one. */
    if (ring->service_id != 0 && ((uint32_t)head->sys_flag & SHMQ_SYS_FLAG_TRANSACTION_PREPARED) != 0) {
        return SHMQ_ILLEGAL;
    }
    return SHMQ_OK;
}

/* Takes the record at the ring's read position: appended, or refused with a completion that says why
 * (both OK); LOG_FULL / ARENA_FULL: not taken, the turn is over; FULL: not taken, the next turn. */
static inline int shmq_turn_take(struct shmq_append *append, struct shmq_ring *ring,
                                 struct shmq_turn_target *target, const struct shmq_record *head,
                                 const uint8_t *payload, uint32_t *rolled)
{
    struct shmq_completion completion = {0};
    struct shmq_turn_delay delay;
    const struct shmq_turn_target *to = target; /* whose queue it is appended to */
    uint32_t own_size = 0;                      /* bytes of properties that we add */
    int status = SHMQ_OK;
    if (target->row == NULL || target->queue_row != head->queue_row ||
        target->row_generation != head->row_generation) {
        target->row = NULL;
        status = shmq_turn_admit(append, ring, head, target);
    }
    if (status == SHMQ_OK && head->delay_level != 0) {
        status = shmq_turn_delay(append, target, head->delay_level, &delay);
        if (status == SHMQ_OK) {
            to = &delay.target;
            own_size = delay.properties_size;
        }
    }
    if (status == SHMQ_OK) {
        status = shmq_turn_check(append, ring, head, own_size);
    }
    uint32_t levels = status == SHMQ_OK && (head->flags & SHMQ_RECORD_WAIT) != 0
                          ? target->flags & (SHMQ_ROW_FLUSH | SHMQ_ROW_REPLICA)
                          : 0;
    uint32_t replica_status = (levels & SHMQ_ROW_REPLICA) != 0 ? append->replica_status : 0;
    if (replica_status == (uint32_t)-SHMQ_IN_SYNC_REPLICAS_NOT_ENOUGH) {
        status = SHMQ_IN_SYNC_REPLICAS_NOT_ENOUGH;
    }
    if (status == SHMQ_OK) {
        struct shmq_row *row = to->row;
        uint32_t properties_size = head->properties_size;
        uint32_t size = shmq_message_size(to->topic_size, head->body_size,
                                          properties_size + own_size + SHMQ_CRC_PROPERTY_SIZE);
        if (append->staged_count >= SHMQ_TURN_RECORDS_MAX) {
            return SHMQ_FULL;
        }
        if (row->staged_room == 0 && append->arena_reserved >= append->arena.free_count) {
            return SHMQ_ARENA_FULL;
        }
        uint8_t *frame = NULL;
        status = shmq_commit_log_claim(&append->log, size, &frame, rolled);
        if (status == SHMQ_LOG_FULL) {
            return status;
        }
        if (status == SHMQ_OK) {
            shmq_commit_log_fetch(frame, size);
            const uint8_t *body = payload;
            const uint8_t *properties = payload + head->body_size;
            if (head->kind == SHMQ_RECORD_LARGE) {
                body = ring->chunk + head->chunk_place;
                properties = payload;
            }
            uint32_t service = ring->service_id != 0;
            struct shmq_message_fields fields = {
                .topic = to->topic,
                .topic_size = to->topic_size,
                .body_size = head->body_size,
                .properties_size = properties_size,
                .queue_id = to->queue->queue_id,
                .flag = head->flag,
                .sys_flag = (uint32_t)head->sys_flag &
                            (service ? SHMQ_SYS_FLAG_SERVICE : SHMQ_SYS_FLAG_CLIENT),
                .reconsume_times = service ? head->reconsume_times : 0,
                .born_timestamp = head->born_timestamp,
                .store_timestamp = (int64_t)append->store_timestamp,
                .queue_offset = row->next_queue_offset,
                .physical_offset = append->log.log_end,
                .prepared_transaction_offset = 0,
            };
            memcpy(fields.born_host, append->born_host, sizeof fields.born_host);
            memcpy(fields.store_host, append->control->config.store_host, sizeof fields.store_host);
            struct shmq_message_draft draft;
            struct shmq_properties_summary summary;
            status = shmq_message_fill(frame, &fields, body, properties, &draft);
            if (status == SHMQ_OK) {
                /* on the copy: the original may change under our eyes */
                status = shmq_draft_check(&draft, ring->property_grants, &summary);
            }
            if (status == SHMQ_OK && own_size != 0) {
                if (shmq_delay_level(&summary) == head->delay_level) {
                    shmq_message_extend(frame, &draft, delay.properties, own_size);
                } else {
                    status = SHMQ_ILLEGAL;
                }
            }
            if (status == SHMQ_OK) {
                shmq_message_seal(frame, &draft);
                struct shmq_staged *staged = &append->staged[append->staged_count++];
                staged->physical_offset = append->log.log_end;
                staged->queue_offset = row->next_queue_offset;
                staged->tags_code =
                    shmq_append_tags_code(append, to->flags, &summary, append->store_timestamp);
                staged->size = size;
                staged->row = to->queue_row;
                completion.physical_offset = append->log.log_end;
                completion.queue_offset = row->next_queue_offset;
                completion.size = size;
                completion.need = (uint8_t)levels;
                if (replica_status != 0) { /* it is stored, and there is nobody to wait for */
                    completion.need &= (uint8_t)~SHMQ_NEED_REPLICA;
                    completion.final_status = (uint8_t)replica_status;
                }
                append->log.log_end += size;
                if ((levels & SHMQ_NEED_FLUSH) != 0) {
                    append->flush_wanted = append->log.log_end;
                }
                row->next_queue_offset += 1;
                if (row->staged_room == 0) {
                    append->arena_reserved += 1;
                    row->staged_room = SHMQ_BLOCK_ENTRIES;
                }
                row->staged_room -= 1;
            }
        }
    }
    if (status != SHMQ_OK) {
        completion.status = (uint8_t)-status;
        completion.final_status = (uint8_t)-status;
        struct shmq_counters *counters = &append->control->counters;
        /* relaxed: a counter */
        shmq_store_relaxed(&counters->records_refused, shmq_load_relaxed(&counters->records_refused) + 1);
        if (append->stats != NULL) {
            shmq_stats_add(&append->stats->refusals.by_status[completion.status & 63], 1);
        }
    }
    shmq_ring_consume(ring, head->size, &completion);
    return SHMQ_OK;
}

/* Lets done_tail follow what is flushed and confirmed. Returns 1 if it moved. */
static inline int shmq_ring_settle(struct shmq_append *append, struct shmq_ring *ring, uint64_t now_ns)
{
    uint64_t done = ring->done_tail;
    while (done < ring->completion_tail) {
        struct shmq_completion *entry = &ring->completions[done & (ring->completion_capacity - 1)];
        if (entry->need != 0 && entry->physical_offset + entry->size > shmq_append_safe(append, entry->need)) {
            /* One clock for all that wait at its start: they run out together, later ones within twice the time. */
            if (ring->pending_since_ns == 0 || done >= ring->pending_tail) {
                ring->pending_since_ns = now_ns;
                ring->pending_tail = ring->completion_tail;
                break;
            }
            int unflushed = (entry->need & SHMQ_NEED_FLUSH) != 0 &&
                            entry->physical_offset + entry->size > append->flushed_seen;
            if (now_ns - ring->pending_since_ns <
                (unflushed ? append->flush_timeout_ns : append->replica_timeout_ns)) {
                break;
            }
            entry->final_status =
                (uint8_t)(unflushed ? -SHMQ_FLUSH_DISK_TIMEOUT : -SHMQ_FLUSH_SLAVE_TIMEOUT);
        } else if ((entry->need & SHMQ_NEED_REPLICA) != 0 && append->replica_status != 0) {
            /* Whom it waited for has left, perhaps: that it is confirmed does not say any more that a slave has it. */
            entry->final_status = (uint8_t)-SHMQ_SLAVE_NOT_AVAILABLE;
        }
        ++done;
    }
    if (done == ring->completion_tail) {
        ring->pending_since_ns = 0;
    }
    if (done == ring->done_tail) {
        return 0;
    }
    ring->done_tail = done;
    /* release: pairs with the acquire in shmq_lane_completion; entries below it are final */
    shmq_store_release(&ring->slot->done_tail, done);
    return 1;
}

/* Moves visible_max of a row to what is safe at its level. Returns 1 if it moved; *pending is 1 if there is
 * more to come. */
static inline int shmq_row_settle(struct shmq_append *append, uint32_t index, uint32_t *pending)
{
    struct shmq_queue_row *queue = shmq_control_queue_row(append->control, index);
    struct shmq_row *row = &append->rows[index];
    uint64_t visible = shmq_load_relaxed(&queue->visible_max); /* relaxed: own word */
    uint64_t max = shmq_load_relaxed(&queue->max_queue_offset); /* relaxed: own word */
    uint64_t begin = visible;
    uint64_t safe = shmq_append_safe(append, shmq_row_need(queue));
    uint32_t generation = shmq_load_relaxed32(&queue->generation); /* relaxed: own word */
    if (safe >= shmq_load_relaxed(&append->control->append.committed_position)) { /* relaxed: own word */
        visible = max;
    }
    while (visible < max) {
        uint32_t number = shmq_consume_queue_find(append->arena.base, append->arena.block_count, queue, index,
                                                  generation, visible, &row->cursor);
        if (number == 0) {
            visible = max; /* not in memory any more: it was flushed long ago */
            break;
        }
        const struct shmq_block *block = shmq_arena_block(append->arena.base, number);
        uint64_t at = visible - shmq_load_relaxed(&block->header.first_queue_offset); /* relaxed: own */
        const struct shmq_entry *entry = &block->entries[at];
        if (shmq_load_relaxed(&entry->physical_offset) + shmq_load_relaxed(&entry->size) > safe) {
            break;
        }
        ++visible;
    }
    *pending = visible < max;
    if (visible == begin) {
        return 0;
    }
    /* release: pairs with the acquire in shmq_consume_queue_read; entries and frames below it are whole */
    shmq_store_release(&queue->visible_max, visible);
    return 1;
}

static inline void shmq_append_mark_bells(struct shmq_append *append, const struct shmq_row *row)
{
    for (uint32_t node = row->subscribers; node != 0; node = append->subscriptions[node].next) {
        struct shmq_bell *bell = &append->bells[append->subscriptions[node].bell];
        if (!bell->marked) {
            bell->marked = 1;
            append->marked_bells[append->marked_count++] = append->subscriptions[node].bell;
        }
    }
}

/* The caller has fenced after publishing. */
static inline void shmq_append_ring_bells(struct shmq_append *append)
{
    uint64_t rung = 0;
    for (uint32_t i = 0; i < append->marked_count; ++i) {
        struct shmq_bell *bell = &append->bells[append->marked_bells[i]];
        bell->marked = 0;
        if (bell->line != NULL) {
            rung += (uint64_t)shmq_bell_tell(bell->line, bell->sleep_epoch, &bell->answered, bell->socket);
        }
    }
    append->marked_count = 0;
    if (rung != 0) {
        struct shmq_counters *counters = &append->control->counters;
        /* relaxed: a counter */
        shmq_store_relaxed(&counters->wakeups_sent, shmq_load_relaxed(&counters->wakeups_sent) + rung);
    }
}

static inline void shmq_ring_wake(struct shmq_ring *ring, int done_moved, int space_moved)
{
    /* relaxed: hostile, and any value will do */
    uint32_t reason = shmq_load_relaxed32(&ring->lane->sleep_reason);
    if (done_moved || (space_moved && (reason & SHMQ_SLEEP_SPACE) != 0)) {
        (void)shmq_bell_tell(ring->bell, &ring->lane->sleep_epoch, &ring->answered, ring->socket);
    }
}

/* Step 3. Everything here is a function of the committed record and of memory, and may be repeated. */
static inline void shmq_turn_publish(struct shmq_append *append, const struct shmq_turn_record *record,
                                     uint64_t now_ns)
{
    struct shmq_control *control = append->control;
    uint64_t bytes = 0;
    append->touched_count = 0;
    for (uint32_t i = 0; i < append->staged_count;) {
        uint32_t index = append->staged[i].row;
        struct shmq_row *row = &append->rows[index];
        struct shmq_queue_row *queue = shmq_control_queue_row(control, index);
        uint32_t begin = i;
        uint64_t row_bytes = 0;
        for (; i < append->staged_count && append->staged[i].row == index; ++i) {
            const struct shmq_staged *staged = &append->staged[i];
            shmq_consume_queue_put(&append->arena, queue, index, &row->chain, staged->queue_offset,
                                   staged->physical_offset, staged->size, staged->tags_code);
            row_bytes += staged->size;
        }
        /* relaxed: counters, and a hint for tools */
        shmq_store_relaxed(&queue->messages_in, shmq_load_relaxed(&queue->messages_in) + (i - begin));
        shmq_store_relaxed(&queue->bytes_in, shmq_load_relaxed(&queue->bytes_in) + row_bytes);
        shmq_store_relaxed(&queue->last_position, append->staged[i - 1].physical_offset);
        bytes += row_bytes;
        if (!row->touched) {
            row->touched = 1;
            append->touched[append->touched_count++] = index;
        }
    }
    append->arena_reserved = 0;
    /* release: pairs with the acquire of the flusher and the replica; the frames below it are whole */
    shmq_store_release(&control->append.committed_position, record->header.log_end);
    /* relaxed: read by tools and by the successor */
    shmq_store_relaxed(&control->append.store_timestamp, record->header.store_timestamp);
    for (uint32_t i = 0; i < append->touched_count; ++i) {
        uint32_t index = append->touched[i];
        struct shmq_row *row = &append->rows[index];
        struct shmq_queue_row *queue = shmq_control_queue_row(control, index);
        row->touched = 0;
        row->staged_room = row->chain.tail_room;
        /* release: pairs with the acquire of whoever asks for the maximum; entries below it are whole */
        shmq_store_release(&queue->max_queue_offset, row->next_queue_offset);
        uint32_t need = shmq_row_need(queue);
        if ((need & SHMQ_ROW_FLUSH) != 0) {
            append->flush_wanted = record->header.log_end;
        }
        if (need == 0) {
            /* release: pairs with the acquire in shmq_consume_queue_read; entries and frames are whole */
            shmq_store_release(&queue->visible_max, row->next_queue_offset);
            shmq_append_mark_bells(append, row);
        } else if (!row->pending) {
            row->pending = 1;
            append->pending_rows[append->pending_row_count++] = index;
        }
    }
    for (uint32_t i = 0; i < record->header.service_count; ++i) {
        const struct shmq_turn_service *service = &record->services[i];
        /* release: pairs with the acquire of the service; its messages are appended */
        shmq_store_release(&shmq_control_service_slot(control, service->service_id)->progress,
                           service->progress);
    }
    int moved[SHMQ_TURN_RING_MAX];
    for (uint32_t i = 0; i < record->header.ring_count; ++i) {
        const struct shmq_turn_ring *entry = &record->rings[i];
        struct shmq_ring *ring = &append->rings[entry->ring_slot];
        ring->turn_entry = 0;
        moved[i] = 0;
        if (ring->state == SHMQ_RING_FREE || ring->session_generation != entry->session_generation) {
            continue;
        }
        /* release: pairs with the acquire in shmq_lane_completion; entries below it are whole */
        shmq_store_release(&ring->slot->completion_tail, entry->completion_tail);
        moved[i] = shmq_ring_settle(append, ring, now_ns);
        if (ring->done_tail != ring->completion_tail && !ring->pending) {
            ring->pending = 1;
            append->pending_rings[append->pending_ring_count++] = entry->ring_slot;
        }
        /* release: pairs with the acquire in shmq_lane_claim; our reads of those bytes are over */
        shmq_store_release(&ring->slot->read_position, entry->read_position);
    }
    struct shmq_counters *counters = &control->counters;
    /* relaxed: counters */
    shmq_store_relaxed(&counters->turns, record->header.turn_number);
    shmq_store_relaxed(&counters->messages_in, shmq_load_relaxed(&counters->messages_in) + append->staged_count);
    shmq_store_relaxed(&counters->bytes_in, shmq_load_relaxed(&counters->bytes_in) + bytes);
    append->staged_count = 0;
    shmq_fence_full(); /* pairs with the sleepers' fences in shmq_sleep_begin */
    for (uint32_t i = 0; i < record->header.ring_count; ++i) {
        struct shmq_ring *ring = &append->rings[record->rings[i].ring_slot];
        if (ring->state == SHMQ_RING_LIVE) {
            /* A record that waits for no level is answered though an earlier one still waits for its own. */
            shmq_ring_wake(ring, moved[i] || ring->unwaited != 0, 1);
        }
        ring->unwaited = 0;
    }
    shmq_append_ring_bells(append);
}

/* Tells the producers of the rings that broke a rule in this turn, now that their tails are final. */
static inline void shmq_turn_end_rings(struct shmq_append *append)
{
    for (uint32_t i = 0; i < append->ring_limit; ++i) {
        struct shmq_ring *ring = &append->rings[i];
        /* relaxed: own word */
        if (ring->state == SHMQ_RING_ENDED && shmq_load_relaxed32(&ring->slot->ended) == 0) {
            shmq_ring_end(append, ring, SHMQ_CORRUPT);
        }
    }
}

/* Commits an empty turn, so that the last one is never redone: called before something is taken away that its
 * redo would look for (a queue row, the memory of a file). Between two turns. */
static inline void shmq_turn_seal(struct shmq_append *append)
{
    struct shmq_control *control = append->control;
    const struct shmq_turn_header *last = &shmq_control_turn_record(control, append->turn_number)->header;
    if (append->turn_number == 0 || (last->ring_count == 0 && last->log_begin == last->log_end)) {
        return;
    }
    uint64_t turn = append->turn_number + 1;
    struct shmq_turn_header *header = &shmq_control_turn_record(control, turn)->header;
    header->turn_number = turn;
    header->log_begin = append->log.log_end;
    header->log_end = append->log.log_end;
    header->store_timestamp = append->store_timestamp;
    header->ring_count = 0;
    header->service_count = 0;
    append->turn_number = turn;
    /* release: a commit point like that of shmq_turn_run; pairs with the acquire in shmq_turn_redo */
    shmq_store_release(&control->append.turn_number, turn);
    shmq_store_relaxed(&control->counters.turns, turn); /* relaxed: a counter */
}

/* Enters a service's progress, once for each of its words, so that there are never more than SERVICE_MAX. */
static inline void shmq_turn_progress(struct shmq_turn_record *record, uint32_t service_id, uint64_t progress)
{
    if (service_id >= SHMQ_SERVICE_MAX) {
        return;
    }
    uint32_t index = 0;
    while (index < record->header.service_count && record->services[index].service_id != service_id) {
        ++index;
    }
    record->header.service_count += index == record->header.service_count;
    record->services[index] = (struct shmq_turn_service){.service_id = service_id, .progress = progress};
}

/* One turn. Returns the number of records taken (0: nothing to do), never negative. append->blocked says
 * whether it was cut short for lack of memory. */
static inline uint32_t shmq_turn_run(struct shmq_append *append, uint64_t wall_ms, uint64_t now_ns)
{
    struct shmq_control *control = append->control;
    if (append->blocked != 0) {
        return 0;
    }
    uint64_t turn = append->turn_number + 1;
    struct shmq_turn_record *record = shmq_control_turn_record(control, turn);
    struct shmq_counters *counters = &control->counters;
    record->header.turn_number = turn;
    record->header.log_begin = append->log.log_end;
    record->header.ring_count = 0;
    record->header.service_count = 0;
    if (wall_ms > append->store_timestamp) {
        append->store_timestamp = wall_ms;
    }
    record->header.store_timestamp = append->store_timestamp;
    uint32_t taken = 0;
    uint32_t rolled = 0;
    uint32_t ended = 0;
    int status = SHMQ_OK;
    uint32_t begin_at = append->ring_cursor < append->ring_limit ? append->ring_cursor : 0;
    for (uint32_t i = 0; i < append->ring_limit; ++i) {
        uint32_t at = begin_at + i;
        at = at < append->ring_limit ? at : at - append->ring_limit;
        struct shmq_ring *ring = &append->rings[at];
        if (ring->state != SHMQ_RING_LIVE) {
            continue;
        }
        int seen = shmq_ring_begin(ring);
        if (seen == SHMQ_EMPTY) {
            continue;
        }
        if (record->header.ring_count >= SHMQ_TURN_RING_MAX ||
            append->log.log_end - record->header.log_begin >= SHMQ_TURN_BYTES_MAX) {
            append->ring_cursor = at; /* begins the next turn */
            break;
        }
        uint64_t begin = ring->read_position;
        uint32_t count = 0;
        struct shmq_turn_target target = {.row = NULL};
        while (seen == SHMQ_OK) {
            struct shmq_record head;
            const uint8_t *payload = NULL;
            seen = shmq_ring_peek(ring, &head, &payload);
            if (seen != SHMQ_OK) {
                break;
            }
            if (count > 0 && (ring->read_position + head.size - begin > SHMQ_TURN_RING_BYTES ||
                              count >= SHMQ_TURN_RING_RECORDS_MAX)) {
                break;
            }
            status = shmq_turn_take(append, ring, &target, &head, payload, &rolled);
            if (status != SHMQ_OK) {
                break;
            }
            ++count;
            if (ring->service_id != 0) {
                shmq_turn_progress(record, ring->service_id - 1 + head.service_index, head.progress);
            }
            if (append->log.log_end - record->header.log_begin >= SHMQ_TURN_BYTES_MAX) {
                break;
            }
        }
        if (ring->read_position != begin) {
            struct shmq_turn_ring *entry = shmq_turn_entry(ring, record);
            entry->read_position = ring->read_position;
            entry->completion_tail = ring->completion_tail;
            taken += count;
        } else if (seen == SHMQ_EMPTY) {
            ring->stalled_tail = ring->limit; /* records, but no completion entry: not ours to wait for */
        }
        if (seen == SHMQ_CORRUPT) {
            ring->state = SHMQ_RING_ENDED;
            ended = 1;
        }
        if (status != SHMQ_OK) {
            append->ring_cursor = at;
            break;
        }
        append->ring_cursor = at + 1 < append->ring_limit ? at + 1 : 0;
    }
    if (status == SHMQ_LOG_FULL || status == SHMQ_ARENA_FULL) {
        shmq_word64 *counter =
            status == SHMQ_LOG_FULL ? &counters->log_full_turns : &counters->arena_full_turns;
        shmq_store_relaxed(counter, shmq_load_relaxed(counter) + 1); /* relaxed: a counter */
        append->blocked = (uint32_t)-status;
    }
    if (record->header.ring_count == 0) {
        append->log.log_end = record->header.log_begin; /* a BLANK without a frame behind it never was */
        if (ended != 0) {
            shmq_turn_end_rings(append);
        }
        return 0;
    }
    if (rolled != 0) {
        /* relaxed: a counter */
        shmq_store_relaxed(&counters->files_rolled, shmq_load_relaxed(&counters->files_rolled) + rolled);
    }
    record->header.log_end = append->log.log_end;
    append->turn_number = turn;
    /* release: THE COMMIT POINT; pairs with the acquire in shmq_turn_redo: record, frames and completion
     * entries of this turn are whole */
    shmq_store_release(&control->append.turn_number, turn);
    shmq_turn_publish(append, record, now_ns);
    if (ended != 0) {
        shmq_turn_end_rings(append);
    }
    return taken != 0 ? taken : 1;
}

/* Moves what waits for the flusher or the replica: visible_max of SYNC queues, done_tail of their
 * producers, and what has waited too long. Returns 1 if anything moved. */
static inline int shmq_turn_settle(struct shmq_append *append, uint64_t now_ns)
{
    /* acquire: pairs with the release in the flusher; the bytes below it are on disk */
    uint64_t flushed = shmq_load_acquire(&append->control->flush.flushed_position);
    /* acquire: pairs with the release in shmq_replica_set_confirm; the replicas hold the bytes below it */
    uint64_t confirmed = shmq_load_acquire(&append->control->replica.confirmed_position);
    int changed = flushed != append->flushed_seen || confirmed != append->confirmed_seen ||
                  append->settle_rows != 0;
    append->flushed_seen = flushed;
    append->confirmed_seen = confirmed;
    append->settle_rows = 0;
    if (!changed && (now_ns < append->settle_next_ns || append->pending_ring_count == 0)) {
        return 0;
    }
    append->settle_next_ns = now_ns + SHMQ_SETTLE_INTERVAL_NS;
    int any = 0;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < append->pending_row_count; ++i) {
        uint32_t index = append->pending_rows[i];
        uint32_t more = 0;
        if (shmq_row_settle(append, index, &more)) {
            shmq_append_mark_bells(append, &append->rows[index]);
            any = 1;
        }
        append->rows[index].pending = more;
        if (more) {
            append->pending_rows[kept++] = index;
        }
    }
    append->pending_row_count = kept;
    kept = 0;
    uint32_t moved = append->pending_ring_count;
    for (uint32_t i = 0; i < append->pending_ring_count; ++i) {
        struct shmq_ring *ring = &append->rings[append->pending_rings[i]];
        ring->done_moved = ring->state != SHMQ_RING_FREE && shmq_ring_settle(append, ring, now_ns);
        any |= (int)ring->done_moved;
    }
    if (any) {
        shmq_fence_full(); /* pairs with the sleepers' fences in shmq_sleep_begin */
    }
    for (uint32_t i = 0; i < moved; ++i) {
        uint32_t index = append->pending_rings[i];
        struct shmq_ring *ring = &append->rings[index];
        if (ring->done_moved) {
            shmq_ring_wake(ring, 1, 0);
        }
        ring->done_moved = 0;
        ring->pending = ring->state != SHMQ_RING_FREE && ring->done_tail != ring->completion_tail;
        if (ring->pending) {
            append->pending_rings[kept++] = index;
        }
    }
    append->pending_ring_count = kept;
    shmq_append_ring_bells(append);
    return any;
}

/* Is there anything a turn could take? The last look before the append thread sleeps. */
static inline int shmq_turn_ready(const struct shmq_append *append)
{
    if (append->settle_rows != 0) {
        return 1;
    }
    if (append->pending_row_count != 0 || append->pending_ring_count != 0) {
        /* acquire: as in shmq_turn_settle */
        if (shmq_load_acquire(&append->control->flush.flushed_position) != append->flushed_seen ||
            shmq_load_acquire(&append->control->replica.confirmed_position) != append->confirmed_seen) {
            return 1;
        }
    }
    if (append->blocked != 0) {
        return 0;
    }
    for (uint32_t i = 0; i < append->ring_limit; ++i) {
        const struct shmq_ring *ring = &append->rings[i];
        if (ring->state != SHMQ_RING_LIVE) {
            continue;
        }
        /* acquire: pairs with the release in shmq_lane_publish */
        uint64_t tail = shmq_load_acquire(&ring->lane->tail);
        /* A ring without a free completion entry waits for its producer, who will ring when it sends. */
        if (tail != ring->read_position && tail != ring->stalled_tail) {
            return 1;
        }
    }
    return 0;
}

#endif
