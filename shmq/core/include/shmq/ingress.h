/* ingress.h: the single-producer single-consumer ring of one lane, and its completions.
 *
 * Byte table: layout.h lane, record, ring_slot, completion. A lane is a byte ring of a power of two; positions
 * grow for ever, index = position & (capacity - 1). Records are multiples of 8 bytes and never wrap:
 * where one does not fit before the end, a PAD record (its first 8 bytes: size, kind) fills up.
 * Validity: bytes between ring_slot.read_position and lane.tail are records. They are hostile: the
 * broker loads the tail once, checks it, copies each record's head to locals once and checks those.
 * Writer algorithm (producer): wait for room and a free completion entry; fill at tail; store tail
 * (release); full fence; if the append thread sleeps and was not told yet, write the session's eventfd.
 * Reader algorithm (append role): shmq_ring_begin, then shmq_ring_peek / consume within one turn (turn.h).
 * Crash: a producer that dies while filling has published nothing. One that dies after the tail
 * store has sent. The broker's read position is in its own segment and moves by the turn record alone,
 * so its successor goes on at the right record. Nobody repairs a ring. */
#ifndef SHMQ_INGRESS_H
#define SHMQ_INGRESS_H

#include "hostile.h"
#include "layout.h"
#include "status.h"
#include "waiter.h"

#include <string.h>

/* A record larger than this share of its ring travels through the chunk memory instead. */
#define SHMQ_RECORD_SHARE 4u
#define SHMQ_RECORD_ALIGN 8u
#define SHMQ_PAD_SIZE_MIN 8u

/* ---- producer's side ------------------------------------------------------------------------------ */

/* Process-private; belongs to one thread at a time. */
struct shmq_lane_writer {
    struct shmq_lane *lane;                  /* ours to write */
    uint8_t *data;                           /* ours to write */
    const struct shmq_ring_slot *slot;       /* broker's, read-only */
    const struct shmq_completion *completions;
    const struct shmq_bell_line *bell;
    const struct shmq_sleep_line *append_sleep;
    int event_fd;
    uint64_t capacity;
    uint64_t completion_capacity;
    uint64_t tail;            /* published or about to be */
    uint64_t read_position;   /* last seen */
    uint64_t sequence;        /* of the next record */
    uint64_t completion_read; /* completions taken */
    uint32_t session_generation; /* the slot is ours while it says the same */
    uint32_t answered;           /* epoch of the append thread's sleep that was answered already */
};

/* 0, or the positive status why the session has ended. Its slot may belong to another session by now. */
static inline uint32_t shmq_lane_ended(const struct shmq_lane_writer *writer)
{
    /* acquire: pairs with the release of ended in shmq_ring_end, shmq_append_detach and
     * shmq_append_clear_rings: who sees a cleared word sees whose slot it is now */
    uint32_t ended = shmq_load_acquire32(&writer->slot->ended);
    if (shmq_load_relaxed32(&writer->slot->session_generation) != writer->session_generation) {
        return (uint32_t)-SHMQ_CLOSED;
    }
    return ended;
}

static inline uint32_t shmq_record_size(uint32_t body_size, uint32_t properties_size)
{
    uint64_t size = sizeof(struct shmq_record) + (uint64_t)body_size + properties_size;
    size = shmq_layout_align(size, SHMQ_RECORD_ALIGN);
    return size > 0x7fffffffu ? 0x7fffffffu : (uint32_t)size;
}

static inline uint64_t shmq_record_size_max(uint64_t capacity)
{
    return capacity / SHMQ_RECORD_SHARE;
}

/* Room for `size` bytes of one record: its address in *out, or FULL (ring or completions), or CLOSED. */
static inline int shmq_lane_claim(struct shmq_lane_writer *writer, uint32_t size, uint8_t **out)
{
    if (writer->sequence - writer->completion_read >= writer->completion_capacity) {
        return SHMQ_FULL;
    }
    uint64_t index = writer->tail & (writer->capacity - 1);
    uint64_t to_end = writer->capacity - index;
    uint64_t need = size <= to_end ? size : to_end + size;
    if (writer->tail + need - writer->read_position > writer->capacity) {
        /* acquire: pairs with the release in shmq_turn_publish; the broker's reads of those bytes are over */
        writer->read_position = shmq_load_acquire(&writer->slot->read_position);
        if (writer->tail + need - writer->read_position > writer->capacity) {
            return SHMQ_FULL;
        }
    }
    if (size > to_end) {
        struct {
            uint32_t size;
            uint16_t kind;
            uint16_t flags;
        } pad = {(uint32_t)to_end, SHMQ_RECORD_PAD, 0};
        memcpy(writer->data + index, &pad, SHMQ_PAD_SIZE_MIN);
        writer->tail += to_end;
        index = 0;
    }
    *out = writer->data + index;
    return SHMQ_OK;
}

/* Counts the filled record in; shmq_lane_publish makes it, and those before it, the broker's. */
static inline uint64_t shmq_lane_commit(struct shmq_lane_writer *writer, uint32_t size)
{
    writer->tail += size;
    return writer->sequence++;
}

/* Returns 1 if the append thread slept and was woken. */
static inline int shmq_lane_publish(struct shmq_lane_writer *writer)
{
    /* release: pairs with the acquire in shmq_ring_begin; the records below tail are whole */
    shmq_store_release(&writer->lane->tail, writer->tail);
    shmq_fence_full(); /* pairs with the fence in shmq_append_sleep between its flag and its last look */
    /* relaxed: ordered by the two fences */
    uint32_t epoch = shmq_load_relaxed32(&writer->append_sleep->append_sleeps);
    if ((epoch & 1) == 0 || epoch == writer->answered) {
        return 0; /* awake, or on its way: it looks at every ring before it sleeps again, in another epoch */
    }
    writer->answered = epoch;
    shmq_eventfd_signal(writer->event_fd);
    return 1;
}

/* OK: the completion of `sequence` is in *out, with its final status. EMPTY: not yet. CLOSED: the session
 * was ended and it will never come; what was not appended was refused with the session. */
static inline int shmq_lane_completion(const struct shmq_lane_writer *writer, uint64_t sequence,
                                       struct shmq_completion *out)
{
    /* acquire: pairs with the release of done_tail in shmq_turn_publish / shmq_turn_settle */
    uint64_t done = shmq_load_acquire(&writer->slot->done_tail);
    if (done <= sequence) {
        /* acquire: pairs with the release of completion_tail in shmq_turn_publish */
        uint64_t appended = shmq_load_acquire(&writer->slot->completion_tail);
        if (appended <= sequence) {
            /* its acquire: the tails before it are final */
            if (shmq_lane_ended(writer) == 0) {
                return SHMQ_EMPTY;
            }
            /* acquire: as above; it may have moved between the two looks, and for the last time */
            if (shmq_load_acquire(&writer->slot->completion_tail) <= sequence) {
                return SHMQ_CLOSED;
            }
        }
    }
    const struct shmq_completion *entry =
        writer->completions + (sequence & (writer->completion_capacity - 1));
    if (done <= sequence && entry->need != 0) {
        return SHMQ_EMPTY; /* its final_status may be written at this moment: hands off */
    }
    *out = *entry;
    /* relaxed: stored before the first word of the slot's next session that the loads above could have met */
    if (shmq_load_relaxed32(&writer->slot->session_generation) != writer->session_generation) {
        return SHMQ_CLOSED;
    }
    return out->sequence == sequence ? SHMQ_OK : SHMQ_CORRUPT;
}

/* Frees the entries of completions below `sequence` for new records; those not yet settled stay taken. */
static inline void shmq_lane_release(struct shmq_lane_writer *writer, uint64_t sequence)
{
    /* acquire: pairs with the release of done_tail in shmq_turn_publish / shmq_turn_settle */
    uint64_t done = shmq_load_acquire(&writer->slot->done_tail);
    if (sequence > done) {
        sequence = done;
    }
    if (sequence > writer->completion_read) {
        writer->completion_read = sequence;
        /* release: pairs with the acquire in shmq_ring_begin; our reads of those entries are over */
        shmq_store_release(&writer->lane->completion_read, sequence);
    }
}

/* ---- broker's side -------------------------------------------------------------------------------- */

enum shmq_ring_state { SHMQ_RING_FREE = 0, SHMQ_RING_LIVE = 1, SHMQ_RING_ENDED = 2 };

/* Process-private; belongs to the append role. Everything it decides by is in here, not in the lane. */
struct shmq_ring {
    const struct shmq_lane *lane; /* hostile */
    const uint8_t *data;          /* hostile */
    const uint8_t *chunk;         /* hostile; NULL if none was granted */
    uint64_t chunk_size;
    struct shmq_ring_slot *slot;
    struct shmq_completion *completions;
    struct shmq_bell_line *bell;
    uint64_t capacity;
    uint64_t completion_capacity;
    uint64_t read_position;
    uint64_t completion_tail;
    uint64_t done_tail;
    uint64_t limit;            /* this turn: the checked tail */
    uint64_t completion_limit; /* this turn: completions may grow to here */
    uint64_t pending_since_ns; /* completions below pending_tail have waited at least since then; 0 = none do */
    uint64_t pending_tail;
    const uint64_t *grants;    /* bitmap over queue rows */
    uint32_t grant_rows;       /* rows the bitmap covers */
    uint32_t property_grants;
    uint32_t slot_index;
    uint32_t session_generation;
    uint32_t service_id; /* service + 1 of an internal ring, 0 for a client */
    uint32_t state;
    uint32_t answered;   /* shmq_bell_ring */
    uint32_t socket;     /* shmq_socket_poke */
    uint32_t turn_entry; /* index in the turn record + 1 while a turn touches this ring */
    uint32_t pending;    /* 1 while in append.pending_rings */
    uint32_t done_moved; /* within shmq_turn_settle */
    uint32_t unwaited;   /* within a turn: 1 if a record taken waits for no level */
    uint64_t stalled_tail; /* the tail at which it had no free completion entry */
};

/* Loads and checks the tail once for this turn: OK (something to read), EMPTY, or CORRUPT. */
static inline int shmq_ring_begin(struct shmq_ring *ring)
{
    /* acquire: pairs with the release in shmq_lane_publish; the records below it are whole */
    uint64_t tail = shmq_load_acquire(&ring->lane->tail);
    if (tail == ring->read_position) {
        return SHMQ_EMPTY;
    }
    if (tail - ring->read_position > ring->capacity || (tail & (SHMQ_RECORD_ALIGN - 1)) != 0) {
        return SHMQ_CORRUPT;
    }
    /* acquire: pairs with the release in shmq_lane_release; the producer is done with entries below it */
    uint64_t taken = shmq_load_acquire(&ring->lane->completion_read);
    if (ring->completion_tail - taken > ring->completion_capacity) {
        return SHMQ_CORRUPT; /* also where taken is ahead of the tail */
    }
    ring->limit = tail;
    /* An entry that is not settled yet stays ours even if the producer has let go of it. */
    ring->completion_limit =
        (taken < ring->done_tail ? taken : ring->done_tail) + ring->completion_capacity;
    return SHMQ_OK;
}

/* The record at read_position: its head copied once to *head, its payload's address (hostile, at least
 * head->size - 64 bytes) in *payload. OK; EMPTY: nothing below the limit, or no free completion entry;
 * CORRUPT: end the session. PAD records are skipped here. */
static inline int shmq_ring_peek(struct shmq_ring *ring, struct shmq_record *head, const uint8_t **payload)
{
    for (uint32_t pads = 0; pads < 2; ++pads) {
        uint64_t left = ring->limit - ring->read_position;
        if (left == 0) {
            return SHMQ_EMPTY;
        }
        uint64_t index = ring->read_position & (ring->capacity - 1);
        uint64_t to_end = ring->capacity - index;
        const uint8_t *at = ring->data + index;
        uint64_t left_here = left < to_end ? left : to_end;
        if (left_here < sizeof *head) {
            /* multiples of 8, so at least 8: only a PAD fits */
            struct shmq_record pad = {0};
            memcpy(&pad, at, SHMQ_PAD_SIZE_MIN);
            if (pad.kind != SHMQ_RECORD_PAD || pad.size != to_end || pad.size > left) {
                return SHMQ_CORRUPT;
            }
            ring->read_position += to_end;
            continue;
        }
        for (uint32_t part = 0; part < sizeof *head; part += 16) { /* the one look; all checks are of this copy */
            shmq_hostile_copy16((uint8_t *)head + part, at + part);
        }
        if (head->kind == SHMQ_RECORD_MESSAGE) {
            if (sizeof *head + (uint64_t)head->body_size + head->properties_size > head->size) {
                return SHMQ_CORRUPT;
            }
        } else if (head->kind == SHMQ_RECORD_LARGE) {
            if (ring->chunk == NULL || sizeof *head + (uint64_t)head->properties_size > head->size ||
                head->chunk_place > ring->chunk_size ||
                head->body_size > ring->chunk_size - head->chunk_place) {
                return SHMQ_CORRUPT;
            }
        } else if (head->kind == SHMQ_RECORD_PAD && head->size == to_end && head->size <= left) {
            ring->read_position += to_end;
            continue;
        } else {
            return SHMQ_CORRUPT;
        }
        if (head->size > left_here || head->size > shmq_record_size_max(ring->capacity) ||
            (head->size & (SHMQ_RECORD_ALIGN - 1)) != 0) {
            return SHMQ_CORRUPT;
        }
        if (ring->completion_tail >= ring->completion_limit) {
            return SHMQ_EMPTY;
        }
        *payload = at + sizeof *head;
        return SHMQ_OK;
    }
    return SHMQ_CORRUPT;
}

/* Takes the record just peeked and leaves its completion (uncommitted until the turn is). */
static inline void shmq_ring_consume(struct shmq_ring *ring, uint32_t size,
                                     const struct shmq_completion *completion)
{
    ring->read_position += size;
    struct shmq_completion *entry =
        ring->completions + (ring->completion_tail & (ring->completion_capacity - 1));
    *entry = *completion;
    entry->sequence = ring->completion_tail;
    ring->completion_tail += 1;
    ring->unwaited |= completion->need == 0;
}

#endif
