/* store_truth.h: what must hold of a store at rest, found out the slow way: from the frames of the log alone.
 *
 * Bodies made by truth_body name their producer and their sequence, so that the log itself tells what was lost,
 * doubled or torn. truth_read walks the log; truth_check compares with it everything that is derived from it:
 * queue offsets, ConsumeQueue entries, visible_max, completions. */
#ifndef SHMQ_STORE_TRUTH_H
#define SHMQ_STORE_TRUTH_H

#include "check.h"
#include "store_fixture.h"

#define TRUTH_FRAMES 8192u
#define TRUTH_PRODUCERS (FIXTURE_SESSIONS * SHMQ_LANE_MAX)
#define TRUTH_BODY_MIN 8u

/* Where a failing check stands (a step, a seed): printed with it. */
static char truth_context[160];

#define TRUTH(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: failed: %s (%s)\n", __FILE__, __LINE__, __func__,          \
                    #condition, truth_context);                                                    \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

struct truth_frame {
    uint64_t position;
    uint64_t queue_offset;
    int64_t tags_code;
    uint32_t size;
    uint32_t row;      /* UINT32_MAX: its queue is deleted */
    uint32_t producer; /* session * SHMQ_LANE_MAX + lane */
    uint32_t sequence; /* completion sequence of its lane */
};

struct truth {
    struct truth_frame frames[TRUTH_FRAMES];
    uint32_t frame_count;
    uint32_t blanks;
    uint32_t sent[TRUTH_PRODUCERS];       /* frames of each producer */
    uint64_t queue_max[FIXTURE_ROWS];     /* queue_offset behind the last frame of each row */
    uint64_t queue_first[FIXTURE_ROWS];   /* of the first one */
    uint64_t queue_count[FIXTURE_ROWS];
};

static inline void truth_body(uint8_t *body, uint32_t size, uint32_t producer, uint32_t sequence)
{
    memcpy(body, &producer, 4);
    memcpy(body + 4, &sequence, 4);
    for (uint32_t i = TRUTH_BODY_MIN; i < size; ++i) {
        body[i] = (uint8_t)(producer * 31 + sequence * 7 + i);
    }
}

/* Puts one message whose body says who sent it. Returns its sequence, -1 if the lane is full. */
static inline int64_t truth_put(struct shmq_lane_writer *w, uint32_t producer, uint32_t row,
                                uint32_t generation, uint32_t body_size, const char *properties,
                                uint16_t flags)
{
    uint8_t body[8192];
    truth_body(body, body_size, producer, (uint32_t)w->sequence);
    return fixture_put(w, row, generation, body, body_size, properties, flags);
}

static inline uint32_t truth_row(const struct fixture *f, const struct shmq_message_view *view)
{
    uint32_t rows = shmq_load_relaxed32(&f->control->append.queue_row_count);
    for (uint32_t i = 0; i < rows; ++i) {
        const struct shmq_queue_row *queue = shmq_control_queue_row(f->control, i);
        const struct shmq_topic_row *topic = shmq_topics_row(f->topics, queue->topic_row);
        uint32_t state = shmq_load_relaxed32(&queue->state);
        if ((state == SHMQ_ROW_ACTIVE || state == SHMQ_ROW_READ_ONLY) && queue->queue_id == view->queue_id &&
            topic->topic_size == view->topic_size && memcmp(topic->topic, view->topic, view->topic_size) == 0) {
            return i;
        }
    }
    return UINT32_MAX;
}

/* Reads the frames in hot memory from `begin` up to committed_position; every one must be whole and, of its
 * producer and of its queue, the next one. */
static inline void truth_read(const struct fixture *f, uint64_t begin, struct truth *truth)
{
    memset(truth, 0, sizeof *truth);
    uint32_t next[TRUTH_PRODUCERS] = {0};
    uint64_t position = begin;
    uint64_t end = shmq_load_relaxed(&f->control->append.committed_position);
    uint64_t file_size = f->control->config.file_size_bytes;
    while (position < end) {
        const uint8_t *frame = shmq_commit_log_at(&f->append.log, position);
        TRUTH(frame != NULL);
        uint64_t room = file_size - position % file_size;
        struct shmq_message_view view;
        int status = shmq_message_check(frame, room, position, SHMQ_CHECK_RECORD_CRC, &view);
        if (status == SHMQ_BLANK) {
            TRUTH(view.total_size == room);
            position += room;
            truth->blanks += 1;
            continue;
        }
        TRUTH(status == SHMQ_OK);
        TRUTH(position + view.total_size <= end);
        TRUTH(truth->frame_count < TRUTH_FRAMES && view.body_size >= TRUTH_BODY_MIN);
        struct truth_frame *seen = &truth->frames[truth->frame_count++];
        memcpy(&seen->producer, view.body, 4);
        memcpy(&seen->sequence, view.body + 4, 4);
        for (uint32_t i = TRUTH_BODY_MIN; i < view.body_size; ++i) {
            TRUTH(view.body[i] == (uint8_t)(seen->producer * 31 + seen->sequence * 7 + i));
        }
        TRUTH(seen->producer < TRUTH_PRODUCERS);
        TRUTH(begin != 0 || seen->sequence >= next[seen->producer]); /* refused ones leave gaps, never steps back */
        next[seen->producer] = seen->sequence + 1;
        truth->sent[seen->producer] += 1;
        struct shmq_properties_summary summary;
        TRUTH(shmq_properties_check(view.properties, view.properties_size, SHMQ_GRANT_SERVICE, &summary) ==
              SHMQ_OK);
        seen->position = position;
        seen->size = view.total_size;
        seen->queue_offset = view.queue_offset;
        seen->tags_code = shmq_tags_code(summary.tags, summary.tags_size);
        seen->row = truth_row(f, &view);
        if (seen->row != UINT32_MAX) {
            if (truth->queue_count[seen->row]++ == 0) {
                truth->queue_first[seen->row] = view.queue_offset;
            } else {
                TRUTH(view.queue_offset == truth->queue_max[seen->row]);
            }
            truth->queue_max[seen->row] = view.queue_offset + 1;
        }
        position += view.total_size;
    }
    TRUTH(position == end);
}

/* What is derived from the frames says the same. `visible`: everything must be visible. */
static inline void truth_check(struct fixture *f, uint64_t begin, int visible, struct truth *truth)
{
    truth_read(f, begin, truth);
    uint64_t next[FIXTURE_ROWS];
    memcpy(next, truth->queue_first, sizeof next);
    for (uint32_t i = 0; i < truth->frame_count; ++i) {
        const struct truth_frame *seen = &truth->frames[i];
        if (seen->row == UINT32_MAX) {
            continue;
        }
        const struct shmq_queue_row *queue = shmq_control_queue_row(f->control, seen->row);
        uint32_t generation = shmq_load_relaxed32(&queue->generation);
        uint64_t max = shmq_load_relaxed(&queue->max_queue_offset);
        uint64_t visible_max = shmq_load_relaxed(&queue->visible_max);
        TRUTH(max == truth->queue_max[seen->row]);
        TRUTH(visible_max <= max && (!visible || visible_max == max));
        TRUTH(seen->queue_offset == next[seen->row]++);
        if (seen->queue_offset < shmq_load_relaxed(&queue->hot_min_queue_offset) ||
            seen->queue_offset >= visible_max) {
            continue;
        }
        struct shmq_cursor cursor = {0};
        struct shmq_found found;
        TRUTH(shmq_consume_queue_read(f->arena, f->append.arena.block_count, queue, seen->row, generation,
                                      seen->queue_offset, 1, &cursor, &found) == 1);
        TRUTH(found.physical_offset == seen->position && found.size == seen->size &&
              found.tags_code == seen->tags_code);
    }
    TRUTH(f->append.log.log_end == shmq_load_relaxed(&f->control->append.committed_position));
}

/* Every completion that counts tells the truth about its frame. */
static inline void truth_completions(const struct truth *truth, const struct shmq_lane_writer *w,
                                     uint32_t producer)
{
    uint64_t appended = shmq_load_acquire(&w->slot->completion_tail);
    uint64_t first = appended > w->completion_capacity ? appended - w->completion_capacity : 0;
    for (uint32_t i = 0; i < truth->frame_count; ++i) {
        const struct truth_frame *seen = &truth->frames[i];
        if (seen->producer != producer || seen->sequence < first) {
            continue;
        }
        TRUTH(seen->sequence < appended);
        struct shmq_completion done;
        if (shmq_lane_completion(w, seen->sequence, &done) == SHMQ_OK) {
            TRUTH(done.status == 0 && done.physical_offset == seen->position && done.size == seen->size &&
                  done.queue_offset == seen->queue_offset && done.sequence == seen->sequence);
        }
    }
}

#endif
