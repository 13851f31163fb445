/* shmq-test: plain */
/* The broker dies at every instruction of a turn: drain, append, commit, publish, complete, settle. */
#define _GNU_SOURCE
#include "death.h"

static void one_turn(struct scene *s)
{
    (void)scene_turn(s);
}

static void only_settle(struct scene *s)
{
    (void)shmq_turn_settle(&s->f->append, 1);
}

/* Three rings, four queues, a first block, a block more, a level, a service, and a record that is refused. */
static void test_death_in_a_turn_loses_doubles_and_tears_nothing(void)
{
    struct scene s;
    scene_open(&s, "a turn");
    scene_fill(&s, 0, SHMQ_BLOCK_ENTRIES - 1);
    scene_put(&s, 0, 0, 8);
    scene_put(&s, 0, 0, 100); /* begins a block */
    scene_put(&s, 1, 1, 24);  /* the first of its queue */
    scene_put(&s, 1, 3, 8);   /* SYNC */
    struct shmq_record refused = fixture_record(UINT32_MAX, 0, 8, 0, SHMQ_RECORD_WAIT);
    CHECK(fixture_put_record(&s.w[1], &refused, "refused!", "") >= 0);
    (void)shmq_lane_publish(&s.w[1]);
    scene_put(&s, 2, 2, 8);
    scene_put(&s, 2, 0, 8);
    s.work = one_turn;
    death_at_every_instruction(&s);
    scene_close(&s);
}

static void test_death_in_a_turn_that_rolls_loses_doubles_and_tears_nothing(void)
{
    struct scene s;
    scene_open(&s, "a turn that rolls");
    while (DEATH_FILE_SIZE - s.f->append.log.log_end > 400) {
        scene_fill(&s, 0, 1);
    }
    scene_put(&s, 0, 0, 60);
    scene_put(&s, 1, 1, 300);
    scene_put(&s, 2, 0, 8);
    s.work = one_turn;
    death_at_every_instruction(&s);
    CHECK_EQUAL(shmq_load_relaxed(&s.f->control->append.committed_position) / DEATH_FILE_SIZE, 1);
    scene_close(&s);
}

static void test_death_in_the_first_turn_of_a_store_loses_nothing(void)
{
    struct scene s;
    scene_open(&s, "the first turn");
    scene_put(&s, 0, 0, 8);
    scene_put(&s, 1, 0, 8);
    s.work = one_turn;
    death_at_every_instruction(&s);
    scene_close(&s);
}

static void test_death_while_levels_settle_loses_no_answer(void)
{
    struct scene s;
    scene_open(&s, "a settle");
    scene_fill(&s, 3, SHMQ_BLOCK_ENTRIES - 2);
    for (uint32_t i = 0; i < 4; ++i) {
        scene_put(&s, i % 2, 3, 8);
        scene_put(&s, i % 2, 0, 8);
    }
    CHECK_EQUAL(scene_turn(&s), 8);
    scene_flush(&s);
    s.work = only_settle;
    death_at_every_instruction(&s);
    scene_close(&s);
}

static void judge_ended(struct scene *s)
{
    struct shmq_completion done;
    TRUTH(shmq_lane_completion(&s->w[0], s->w[0].sequence, &done) == SHMQ_CLOSED);
    TRUTH(shmq_load_relaxed(&s->w[1].slot->done_tail) == s->w[1].sequence);
}

/* The successor meets the broken record again, ends the session again, and what came before it is there once. */
static void recover_beside_an_ended_session(struct scene *s)
{
    uint64_t tail = s->w[0].tail;
    s->w[0].tail -= 64; /* the broken record is never read past */
    s->judge = NULL;
    static struct truth truth;
    TRUTH(fixture_adopt(s->f) == SHMQ_OK);
    for (uint32_t i = 0; i < DEATH_WRITERS; ++i) {
        fixture_resume(s->f, i);
    }
    while (scene_turn(s) > 0) {
    }
    truth_check(s->f, 0, 1, &truth);
    for (uint32_t i = 0; i < DEATH_WRITERS; ++i) {
        truth_completions(&truth, &s->w[i], i * SHMQ_LANE_MAX);
        TRUTH(truth.sent[i * SHMQ_LANE_MAX] == s->published[i]);
    }
    s->w[0].tail = tail;
    judge_ended(s);
    death_count_blocks(s);
}

static void test_death_while_a_session_is_ended_keeps_what_came_before(void)
{
    struct scene s;
    scene_open(&s, "a turn that ends a session");
    scene_put(&s, 0, 0, 8);
    scene_put(&s, 0, 1, 8);
    scene_put(&s, 1, 0, 8);
    uint8_t *at;
    struct shmq_record broken = {.size = 64, .kind = 77};
    CHECK_EQUAL(shmq_lane_claim(&s.w[0], 64, &at), SHMQ_OK);
    memcpy(at, &broken, sizeof broken);
    s.w[0].tail += 64;
    (void)shmq_lane_publish(&s.w[0]);
    s.work = one_turn;
    death_step_through(&s, 1, recover_beside_an_ended_session);
    scene_close(&s);
}

/* The same with a real SIGKILL at instructions drawn at random: a copy of memory and a corpse's are one. */
static void test_successor_of_a_killed_process_finds_what_the_copies_showed(void)
{
    uint64_t seed = check_seed();
    for (uint32_t round = 0; round < (stepper_is_full_run() ? 500u : 20u); ++round) {
        struct scene s;
        scene_open(&s, "a turn, killed indeed");
        for (uint32_t i = 0; i < 6; ++i) {
            scene_put(&s, i % 3, i % 4, 8 + 40 * i);
        }
        s.work = one_turn;
        struct stepper stepper;
        stepper_begin(&stepper, death_prepare, death_work, &s);
        uint64_t last = check_random(&seed) % 9000;
        while (stepper.step_count < last && stepper_step(&stepper)) {
        }
        stepper_kill(&stepper);
        snprintf(truth_context, sizeof truth_context, "killed at instruction %" PRIu64, stepper.step_count);
        death_recover_and_go_on(&s);
        scene_close(&s);
    }
}

int main(void)
{
    RUN(test_death_in_a_turn_loses_doubles_and_tears_nothing);
    RUN(test_death_in_a_turn_that_rolls_loses_doubles_and_tears_nothing);
    RUN(test_death_in_the_first_turn_of_a_store_loses_nothing);
    RUN(test_death_while_levels_settle_loses_no_answer);
    RUN(test_death_while_a_session_is_ended_keeps_what_came_before);
    RUN(test_successor_of_a_killed_process_finds_what_the_copies_showed);
    return 0;
}
