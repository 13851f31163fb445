/* death.h: a store whose broker dies at any instruction of a piece of work, and what must hold after it.
 *
 * A scene is a store with producers, made ready by a test. death_at_every_instruction steps a child through the
 * work; at each instruction that left other shared bytes than the one before, a copy of the memory is adopted as a
 * successor would, and judged: what was completed, visible or published before must be there, once. */
#ifndef SHMQ_DEATH_H
#define SHMQ_DEATH_H

#include "stepper.h"
#include "store_truth.h"

#define DEATH_FILE_SIZE 8192u
#define DEATH_FILES 3u
#define DEATH_BLOCKS 16u
#define DEATH_WRITERS 3u
#define DEATH_ROWS 4u
#define DEATH_SERVICE 5u
#define DEATH_COMPLETIONS 64u
#define DEATH_SEEN_MAX 1024u

struct scene {
    struct fixture *f;
    struct shmq_lane_writer w[DEATH_WRITERS]; /* session 2 is a service */
    uint64_t published[DEATH_WRITERS];        /* messages that must be in the log in the end */
    uint64_t progress;                        /* of the last record the service published */
    uint32_t rows[DEATH_ROWS], generations[DEATH_ROWS]; /* topic "t"; the last one is SYNC */
    const char *name;
    void (*prepare)(struct scene *); /* in the child, before the work, changing nothing that is shared */
    void (*work)(struct scene *);
    void (*judge)(struct scene *); /* besides what holds for every store */
    uint64_t states;
};

/* What somebody outside the broker had seen when it died. */
struct death_seen {
    struct shmq_completion completions[DEATH_WRITERS][DEATH_COMPLETIONS];
    uint32_t completion_known[DEATH_WRITERS][DEATH_COMPLETIONS];
    uint64_t hot_min[DEATH_ROWS];
    uint32_t entry_count[DEATH_ROWS];
    struct shmq_found entries[DEATH_ROWS][DEATH_SEEN_MAX];
};

static inline void scene_open(struct scene *s, const char *name)
{
    memset(s, 0, sizeof *s);
    s->name = name;
    s->f = fixture_open(DEATH_FILE_SIZE, DEATH_FILES, DEATH_BLOCKS);
    for (uint32_t i = 0; i < DEATH_ROWS; ++i) {
        fixture_queue(s->f, "t", i, i == DEATH_ROWS - 1 ? SHMQ_ROW_FLUSH : 0, &s->rows[i], &s->generations[i]);
    }
    for (uint32_t i = 0; i < DEATH_WRITERS; ++i) {
        fixture_attach(s->f, i, 1, SHMQ_PAGE, DEATH_COMPLETIONS);
        fixture_writer(s->f, i, 0, &s->w[i]);
    }
    fixture_service(s->f, 2, DEATH_SERVICE);
}

static inline void scene_close(struct scene *s)
{
    fixture_close(s->f);
}

/* Publishes one message; the service counts its progress with it. */
static inline void scene_put(struct scene *s, uint32_t who, uint32_t queue, uint32_t size)
{
    uint8_t body[2048];
    const char *properties = "TAGS\001a\002";
    truth_body(body, size, who * SHMQ_LANE_MAX, (uint32_t)s->w[who].sequence);
    struct shmq_record record = fixture_record(s->rows[queue], s->generations[queue], size,
                                               (uint32_t)strlen(properties), SHMQ_RECORD_WAIT);
    if (who == 2) {
        record.progress = ++s->progress;
    }
    CHECK(fixture_put_record(&s->w[who], &record, body, properties) >= 0);
    (void)shmq_lane_publish(&s->w[who]);
    s->published[who] += 1;
}

static inline uint32_t scene_turn(struct scene *s)
{
    uint32_t taken = shmq_turn_run(&s->f->append, 1700000000123, 1);
    (void)shmq_turn_settle(&s->f->append, 1);
    return taken;
}

static inline void scene_flush(struct scene *s)
{
    shmq_store_release(&s->f->control->flush.flushed_position,
                       shmq_load_relaxed(&s->f->control->append.committed_position));
}

static inline void scene_release(struct scene *s)
{
    for (uint32_t i = 0; i < DEATH_WRITERS; ++i) {
        shmq_lane_release(&s->w[i], s->w[i].sequence);
    }
}

/* Queue `queue` gets `count` messages, turn by turn. */
static inline void scene_fill(struct scene *s, uint32_t queue, uint32_t count)
{
    for (uint32_t i = 0; i < count; ++i) {
        scene_put(s, i % 2, queue, 8);
        CHECK_EQUAL(scene_turn(s), 1);
        scene_flush(s);
        (void)scene_turn(s);
        scene_release(s);
        uint64_t ready_end = shmq_load_relaxed(&s->f->append.log.ready_end);
        if (ready_end - s->f->append.log.log_end < DEATH_FILE_SIZE) {
            shmq_append_retire(&s->f->append, ready_end - DEATH_FILES * DEATH_FILE_SIZE);
            fixture_ready(s->f, ready_end);
        }
    }
}

/* ---- what was seen, before and after ---------------------------------------------------------------- */

static inline void death_look(struct scene *s, struct death_seen *seen)
{
    memset(seen, 0, sizeof *seen);
    for (uint32_t i = 0; i < DEATH_WRITERS; ++i) {
        const struct shmq_lane_writer *w = &s->w[i];
        uint64_t first = w->sequence > DEATH_COMPLETIONS ? w->sequence - DEATH_COMPLETIONS : 0;
        for (uint64_t q = first; q < w->sequence; ++q) {
            struct shmq_completion *out = &seen->completions[i][q % DEATH_COMPLETIONS];
            seen->completion_known[i][q % DEATH_COMPLETIONS] = shmq_lane_completion(w, q, out) == SHMQ_OK;
        }
    }
    for (uint32_t i = 0; i < DEATH_ROWS; ++i) {
        const struct shmq_queue_row *queue = shmq_control_queue_row(s->f->control, s->rows[i]);
        struct shmq_cursor cursor = {0};
        seen->hot_min[i] = shmq_load_relaxed(&queue->hot_min_queue_offset);
        int count = shmq_consume_queue_read(s->f->arena, DEATH_BLOCKS, queue, s->rows[i], s->generations[i],
                                            seen->hot_min[i], DEATH_SEEN_MAX, &cursor, seen->entries[i]);
        seen->entry_count[i] = count > 0 ? (uint32_t)count : 0;
    }
}

/* What was seen still holds, except for what was trimmed or deleted since. */
static inline void death_compare(struct scene *s, const struct death_seen *seen)
{
    for (uint32_t i = 0; i < DEATH_WRITERS; ++i) {
        for (uint32_t n = 0; n < DEATH_COMPLETIONS; ++n) {
            struct shmq_completion now;
            const struct shmq_completion *before = &seen->completions[i][n];
            if (seen->completion_known[i][n]) {
                TRUTH(shmq_lane_completion(&s->w[i], before->sequence, &now) == SHMQ_OK);
                TRUTH(memcmp(&now, before, sizeof now) == 0);
            }
        }
    }
    for (uint32_t i = 0; i < DEATH_ROWS; ++i) {
        const struct shmq_queue_row *queue = shmq_control_queue_row(s->f->control, s->rows[i]);
        uint64_t hot_min = shmq_load_relaxed(&queue->hot_min_queue_offset);
        for (uint32_t n = 0; n < seen->entry_count[i]; ++n) {
            struct shmq_cursor cursor = {0};
            struct shmq_found now;
            uint64_t q = seen->hot_min[i] + n;
            int status = shmq_consume_queue_read(s->f->arena, DEATH_BLOCKS, queue, s->rows[i], s->generations[i], q,
                                                 1, &cursor, &now);
            if (status == SHMQ_FENCED || (status == SHMQ_OFFSET_TOO_SMALL && q < hot_min)) {
                continue;
            }
            TRUTH(status == 1 && memcmp(&now, &seen->entries[i][n], sizeof now) == 0);
        }
    }
}

/* Every block is in exactly one chain or free. */
static inline void death_count_blocks(struct scene *s)
{
    uint32_t used = 0;
    uint32_t rows = shmq_load_relaxed32(&s->f->control->append.queue_row_count);
    for (uint32_t i = 0; i < rows; ++i) {
        const struct shmq_queue_row *queue = shmq_control_queue_row(s->f->control, i);
        TRUTH(shmq_load_relaxed32(&queue->state) != SHMQ_ROW_DELETED);
        uint32_t tail = shmq_load_relaxed32(&queue->tail_block);
        uint32_t number = shmq_load_relaxed32(&queue->head_block);
        TRUTH((number == 0) == (tail == 0));
        while (number != 0) {
            ++used;
            TRUTH(used < DEATH_BLOCKS);
            number = number == tail ? 0
                                    : shmq_load_relaxed32(&shmq_arena_block(s->f->arena, number)->header.next_block);
        }
    }
    TRUTH(used + s->f->append.arena.free_count == DEATH_BLOCKS - 1);
}

/* Where the frames that are still in hot memory begin. */
static inline uint64_t death_log_begin(const struct scene *s)
{
    uint64_t begin = UINT64_MAX;
    for (uint32_t i = 0; i < DEATH_FILES; ++i) {
        if (s->f->append.log.bases[i] != NULL && s->f->append.log.file_positions[i] < begin) {
            begin = s->f->append.log.file_positions[i];
        }
    }
    return begin;
}

/* The successor: adopts, takes the rings back, takes what they hold, and everything is as if nobody had died. */
static inline void death_recover(struct scene *s)
{
    static struct death_seen seen;
    static struct truth truth;
    death_look(s, &seen);
    TRUTH(fixture_adopt(s->f) == SHMQ_OK);
    for (uint32_t i = 0; i < DEATH_WRITERS; ++i) {
        fixture_resume(s->f, i);
    }
    death_compare(s, &seen);
    for (uint32_t turns = 0; scene_turn(s) > 0; ++turns) {
        TRUTH(turns < 8);
    }
    scene_flush(s);
    (void)scene_turn(s);
    death_compare(s, &seen);
    uint64_t begin = death_log_begin(s);
    truth_check(s->f, begin, 1, &truth);
    for (uint32_t i = 0; i < DEATH_WRITERS; ++i) {
        truth_completions(&truth, &s->w[i], i * SHMQ_LANE_MAX);
        TRUTH(begin != 0 || truth.sent[i * SHMQ_LANE_MAX] == s->published[i]);
        TRUTH(shmq_load_relaxed(&s->w[i].slot->done_tail) == s->w[i].sequence);
        TRUTH(shmq_load_relaxed(&s->w[i].slot->read_position) == s->w[i].tail);
    }
    TRUTH(shmq_load_relaxed(&shmq_control_service_slot(s->f->control, DEATH_SERVICE)->progress) == s->progress);
    death_count_blocks(s);
    if (s->judge != NULL) {
        s->judge(s);
    }
}

/* And it goes on: each producer sends once more, in order. */
static inline void death_go_on(struct scene *s)
{
    static struct truth truth;
    uint64_t next = s->f->append.rows[s->rows[0]].next_queue_offset;
    scene_release(s);
    for (uint32_t i = 0; i < DEATH_WRITERS; ++i) {
        scene_put(s, i, 0, 16);
    }
    TRUTH(scene_turn(s) == DEATH_WRITERS);
    TRUTH(s->f->append.rows[s->rows[0]].next_queue_offset == next + DEATH_WRITERS);
    truth_check(s->f, death_log_begin(s), 1, &truth);
}

/* The scene as it is over another region: judged there, so that the child can go on in the first. */
static inline struct scene death_copy(const struct scene *s, uint8_t *region)
{
    struct scene copy = *s;
    fixture_copy_objects(s->f, region, s->f->shared);
    copy.f = fixture_over(s->f, region);
    for (uint32_t i = 0; i < DEATH_WRITERS; ++i) {
        fixture_writer_over(&s->w[i], s->f, copy.f, &copy.w[i]);
    }
    return copy;
}

static inline void death_copy_close(struct scene *copy)
{
    fixture_private_free(copy->f);
    free(copy->f);
}

static void death_prepare(void *argument)
{
    struct scene *s = argument;
    if (s->prepare != NULL) {
        s->prepare(s);
    }
}

static void death_work(void *argument)
{
    struct scene *s = argument;
    s->work(s);
}

/* Steps through s->work. At every instruction that changed shared memory and whose number divides by `stride`
 * (counted over those), at_state gets a copy of the scene as the death leaves it. */
static inline void death_step_through(struct scene *s, uint32_t stride, void (*at_state)(struct scene *))
{
    uint8_t *last = fixture_region(s->f->shared_size);
    uint8_t *trial = fixture_region(s->f->shared_size);
    struct stepper stepper;
    fixture_copy_objects(s->f, last, s->f->shared);
    stepper_begin(&stepper, death_prepare, death_work, s);
    int going = 1;
    uint64_t changes = 0;
    while (going) {
        going = stepper_step(&stepper);
        if (fixture_same_objects(s->f, last, s->f->shared)) {
            continue;
        }
        fixture_copy_objects(s->f, last, s->f->shared);
        if (changes++ % stride != 0 && going) {
            continue;
        }
        snprintf(truth_context, sizeof truth_context, "%s, killed at instruction %" PRIu64, s->name,
                 stepper.step_count);
        struct scene copy = death_copy(s, trial);
        at_state(&copy);
        death_copy_close(&copy);
        s->states += 1;
    }
    stepper_kill(&stepper);
    printf("%s: %" PRIu64 " instructions, %" PRIu64 " states of memory, %" PRIu64 " judged\n", s->name,
           stepper.step_count, changes, s->states);
    munmap(last, s->f->shared_size);
    munmap(trial, s->f->shared_size);
}

static void death_recover_and_go_on(struct scene *s)
{
    death_recover(s);
    death_go_on(s);
}

static inline void death_at_every_instruction(struct scene *s)
{
    death_step_through(s, 1, death_recover_and_go_on);
}

#endif
