/* shmq-test: plain */
/* shmq-test: full-timeout 1200 */
/* A producer is killed, and separately stopped, at every instruction of claim, fill, commit and publish, while two
 * others send and a reader reads; and the broker is stopped at any instruction of its turns while all of them go on. */
#define _GNU_SOURCE
#include "death.h"

#define SENDS 3u

/* The victim is writer 0: what it publishes is known by its tail. */
static uint64_t tails[SENDS + 1];
static const uint32_t sizes[SENDS] = {40, 600, 40}; /* the second one wraps: a PAD before it */
static uint8_t bodies[SENDS][600];

/* As shmq_lane_* is used, and nothing else: these are the instructions that count. */
static void send_all(struct scene *s)
{
    for (uint32_t i = 0; i < SENDS; ++i) {
        struct shmq_record record = fixture_record(s->rows[0], s->generations[0], sizes[i], 7, SHMQ_RECORD_WAIT);
        if (fixture_put_record(&s->w[0], &record, bodies[i], "TAGS\001a\002") < 0) {
            abort();
        }
        (void)shmq_lane_publish(&s->w[0]);
    }
}

/* Ready to send around the end of its ring, with messages of others in the log. */
static void open_before_the_end(struct scene *s, const char *name)
{
    scene_open(s, name);
    scene_fill(s, 0, 4);
    while ((s->w[0].tail & (SHMQ_PAGE - 1)) < SHMQ_PAGE - 400) {
        scene_put(s, 0, 1, 8);
        CHECK_EQUAL(scene_turn(s), 1);
        scene_release(s);
    }
    uint64_t tail = s->w[0].tail;
    for (uint32_t i = 0; i < SENDS; ++i) {
        truth_body(bodies[i], sizes[i], 0, (uint32_t)s->w[0].sequence + i);
        tails[i] = tail;
        uint64_t to_end = SHMQ_PAGE - tail % SHMQ_PAGE;
        uint32_t size = shmq_record_size(sizes[i], 7);
        tail += size <= to_end ? size : to_end + size;
    }
    tails[SENDS] = tail;
    CHECK(tails[2] / SHMQ_PAGE > tails[1] / SHMQ_PAGE);
    s->work = send_all;
}

/* How many of its sends the victim has published; its writer is set to where the ring stands. */
static uint32_t count_published(struct scene *s, uint64_t first_sequence)
{
    uint64_t tail = shmq_load_acquire(&s->w[0].lane->tail);
    uint32_t count = 0;
    while (count < SENDS && tails[count] != tail) {
        ++count;
    }
    TRUTH(tails[count] == tail);
    s->w[0].tail = tail;
    s->w[0].sequence = first_sequence + count;
    return count;
}

/* Two others send and are answered by one turn; a reader finds their messages. */
static void others_go_on(struct scene *s)
{
    uint64_t before = shmq_load_relaxed(&shmq_control_queue_row(s->f->control, s->rows[2])->visible_max);
    scene_put(s, 1, 2, 40);
    scene_put(s, 2, 2, 40);
    TRUTH(scene_turn(s) >= 2);
    for (uint32_t i = 1; i < 3; ++i) {
        struct shmq_completion done;
        TRUTH(shmq_lane_completion(&s->w[i], s->w[i].sequence - 1, &done) == SHMQ_OK && done.status == 0);
    }
    struct shmq_cursor cursor = {0};
    struct shmq_found found[2];
    TRUTH(shmq_consume_queue_read(s->f->arena, DEATH_BLOCKS, shmq_control_queue_row(s->f->control, s->rows[2]),
                                  s->rows[2], s->generations[2], before, 2, &cursor, found) == 2);
    for (uint32_t i = 0; i < 2; ++i) {
        struct shmq_message_view view;
        const uint8_t *frame = shmq_commit_log_at(&s->f->append.log, found[i].physical_offset);
        TRUTH(shmq_message_check(frame, found[i].size, found[i].physical_offset, SHMQ_CHECK_RECORD_CRC, &view) ==
              SHMQ_OK);
    }
}

static void judge_killed(struct scene *s)
{
    static struct truth truth;
    uint64_t sequence = s->w[0].sequence;
    uint32_t count = count_published(s, sequence);
    TRUTH(fixture_adopt(s->f) == SHMQ_OK); /* a private half for the copy */
    for (uint32_t i = 0; i < DEATH_WRITERS; ++i) {
        fixture_resume(s->f, i);
    }
    others_go_on(s);
    TRUTH(shmq_append_drained(&s->f->append, 0));
    truth_check(s->f, 0, 1, &truth);
    TRUTH(truth.sent[0] == s->published[0] + count); /* what was published, whole, once */
    truth_completions(&truth, &s->w[0], 0);
    shmq_append_detach(&s->f->append, 0);
    others_go_on(s);
    truth_check(s->f, 0, 1, &truth);
}

static void test_producer_killed_at_any_instruction_has_sent_or_not(void)
{
    struct scene s;
    open_before_the_end(&s, "three sends");
    death_step_through(&s, 1, judge_killed);
    scene_close(&s);
}

/* The child is really stopped there, on the memory that everybody uses, and really goes on afterwards. */
static void test_producer_stopped_at_any_instruction_delays_nobody(void)
{
    static struct truth truth;
    uint32_t stride = stepper_is_full_run() ? 1 : 4;
    uint64_t stopped = 0;
    for (uint64_t stop_at = 0;; stop_at += stride) {
        struct scene s;
        open_before_the_end(&s, "three sends, stopped");
        uint64_t sequence = s.w[0].sequence;
        struct stepper stepper;
        stepper_begin(&stepper, death_prepare, death_work, &s);
        int going = 1;
        while (going && stepper.step_count < stop_at) {
            going = stepper_step(&stepper);
        }
        snprintf(truth_context, sizeof truth_context, "stopped at instruction %" PRIu64, stepper.step_count);
        others_go_on(&s);
        others_go_on(&s);
        stepper_finish(&stepper);
        stepper_kill(&stepper);
        while (scene_turn(&s) > 0) {
        }
        TRUTH(count_published(&s, sequence) == SENDS);
        truth_check(s.f, 0, 1, &truth);
        TRUTH(truth.sent[0] == s.published[0] + SENDS);
        truth_completions(&truth, &s.w[0], 0);
        scene_close(&s);
        ++stopped;
        if (!going) {
            break;
        }
    }
    printf("stopped %" PRIu64 " times\n", stopped);
}

/* ---- the broker stands still while everybody else goes on ------------------------------------------- */

#define TURNS 14u

static void many_turns(struct scene *s)
{
    for (uint32_t i = 0; i < TURNS; ++i) {
        (void)scene_turn(s);
        scene_flush(s); /* stands in for the flusher */
    }
}

/* One thing that somebody outside the broker does, at whatever instruction the broker stands. */
static void act(struct scene *s, uint64_t random, uint64_t *next_entry)
{
    uint32_t who = (uint32_t)(random >> 8) % DEATH_WRITERS;
    struct shmq_lane_writer *w = &s->w[who];
    if (random % 3 == 0) {
        uint32_t size = 8 + (uint32_t)(random >> 16) % 60;
        uint8_t *at;
        if (s->published[who] < 22 && shmq_lane_claim(w, shmq_record_size(size, 7), &at) == SHMQ_OK) {
            scene_put(s, who, (uint32_t)(random >> 24) % DEATH_ROWS, size);
        }
    } else if (random % 3 == 1) {
        while (w->completion_read < w->sequence) {
            struct shmq_completion done;
            int status = shmq_lane_completion(w, w->completion_read, &done);
            TRUTH(status == SHMQ_OK || status == SHMQ_EMPTY);
            if (status == SHMQ_EMPTY) {
                break;
            }
            TRUTH(done.status == 0 && done.final_status == 0);
            uint64_t before = w->completion_read;
            shmq_lane_release(w, before + 1);
            if (w->completion_read == before) {
                break; /* answered early: an earlier one still waits for its level */
            }
        }
    } else {
        uint32_t i = (uint32_t)(random >> 24) % DEATH_ROWS;
        struct shmq_cursor cursor = {0};
        struct shmq_found found[8];
        const struct shmq_queue_row *queue = shmq_control_queue_row(s->f->control, s->rows[i]);
        int count = shmq_consume_queue_read(s->f->arena, DEATH_BLOCKS, queue, s->rows[i], s->generations[i],
                                            next_entry[i], 8, &cursor, found);
        TRUTH(count > 0 || count == SHMQ_EMPTY);
        for (int n = 0; n < count; ++n) {
            struct shmq_message_view view;
            const uint8_t *frame = shmq_commit_log_at(&s->f->append.log, found[n].physical_offset);
            TRUTH(shmq_message_check(frame, found[n].size, found[n].physical_offset, SHMQ_CHECK_RECORD_CRC,
                                     &view) == SHMQ_OK);
            TRUTH(view.queue_offset == next_entry[i] && view.queue_id == i);
            if (i == DEATH_ROWS - 1) { /* SYNC: never seen before it is flushed */
                TRUTH(found[n].physical_offset + found[n].size <=
                      shmq_load_acquire(&s->f->control->flush.flushed_position));
            }
            next_entry[i] += 1;
        }
    }
}

static void test_broker_stopped_at_any_instruction_confuses_nobody(void)
{
    static struct truth truth;
    uint64_t seed = check_seed();
    uint64_t acts = 0;
    for (uint32_t round = 0; round < (stepper_is_full_run() ? 300u : 4u); ++round) {
        struct scene s;
        scene_open(&s, "turns");
        s.work = many_turns;
        uint64_t next_entry[DEATH_ROWS] = {0};
        struct stepper stepper;
        stepper_begin(&stepper, death_prepare, death_work, &s);
        uint64_t until = 0;
        while (stepper_step(&stepper)) {
            if (stepper.step_count >= until) {
                snprintf(truth_context, sizeof truth_context, "round %u, broker at instruction %" PRIu64, round,
                         stepper.step_count);
                act(&s, check_random(&seed), next_entry);
                until = stepper.step_count + 1 + check_random(&seed) % 100;
                ++acts;
            }
        }
        stepper_kill(&stepper);
        TRUTH(fixture_adopt(s.f) == SHMQ_OK);
        for (uint32_t i = 0; i < DEATH_WRITERS; ++i) {
            fixture_resume(s.f, i);
        }
        while (scene_turn(&s) > 0) {
        }
        scene_flush(&s);
        (void)scene_turn(&s);
        truth_check(s.f, 0, 1, &truth);
        for (uint32_t i = 0; i < DEATH_WRITERS; ++i) {
            TRUTH(truth.sent[i * SHMQ_LANE_MAX] == s.published[i]);
            truth_completions(&truth, &s.w[i], i * SHMQ_LANE_MAX);
        }
        scene_close(&s);
    }
    printf("%" PRIu64 " acts between instructions of the broker\n", acts);
}

int main(void)
{
    RUN(test_producer_killed_at_any_instruction_has_sent_or_not);
    RUN(test_producer_stopped_at_any_instruction_delays_nobody);
    RUN(test_broker_stopped_at_any_instruction_confuses_nobody);
    return 0;
}
