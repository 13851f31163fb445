/* shmq-test: plain */
/* The broker dies at every instruction of a verb between two turns: rows, trims, hot slots, sessions, seals, replay. */
#define _GNU_SOURCE
#include "death.h"

/* ---- rows ------------------------------------------------------------------------------------------- */

static void add_rows(struct scene *s)
{
    uint32_t row, generation;
    fixture_queue(s->f, "new", 0, 0, &row, &generation);
    fixture_queue(s->f, "new", 1, SHMQ_ROW_FLUSH, &row, &generation);
}

/* What the control thread does when it comes back: makes what is not there, and sends to it. */
static void judge_added_rows(struct scene *s)
{
    for (uint32_t queue_id = 0; queue_id < 2; ++queue_id) {
        uint32_t row = shmq_row_index_find(&s->f->append.row_index, (const uint8_t *)"new", 3, queue_id);
        if (row == UINT32_MAX) {
            uint32_t generation;
            fixture_queue(s->f, "new", queue_id, 0, &row, &generation);
        }
        const struct shmq_queue_row *queue = shmq_control_queue_row(s->f->control, row);
        TRUTH(shmq_load_relaxed(&queue->max_queue_offset) == 0 && shmq_load_relaxed32(&queue->head_block) == 0);
        s->rows[1] = row;
        s->generations[1] = shmq_load_relaxed32(&queue->generation);
        scene_put(s, 0, 1, 8);
        TRUTH(scene_turn(s) == 1);
        TRUTH(shmq_load_relaxed(&queue->max_queue_offset) == 1);
        scene_flush(s);
        (void)scene_turn(s);
    }
    uint32_t topics = 0;
    for (uint32_t i = 0; i < shmq_load_relaxed32(&s->f->control->append.topic_row_count); ++i) {
        const struct shmq_topic_row *topic = shmq_topics_row(s->f->topics, i);
        topics += topic->topic_size == 3 && memcmp(topic->topic, "new", 3) == 0;
    }
    TRUTH(topics == 1);
}

static void test_death_while_rows_are_added_leaves_whole_rows_or_none(void)
{
    struct scene s;
    scene_open(&s, "adding rows");
    scene_fill(&s, 0, 10);
    s.work = add_rows;
    s.judge = judge_added_rows;
    death_at_every_instruction(&s);
    scene_close(&s);
    scene_open(&s, "adding rows where others were");
    uint32_t row, generation;
    fixture_queue(s.f, "old", 0, 0, &row, &generation);
    shmq_append_delete_row(&s.f->append, row);
    s.work = add_rows;
    s.judge = judge_added_rows;
    death_at_every_instruction(&s);
    scene_close(&s);
}

static void delete_row(struct scene *s)
{
    shmq_append_delete_row(&s->f->append, s->rows[1]);
}

static void judge_deleted_row(struct scene *s)
{
    struct shmq_queue_row *queue = shmq_control_queue_row(s->f->control, s->rows[1]);
    if (shmq_load_relaxed32(&queue->state) == SHMQ_ROW_ACTIVE) {
        TRUTH(shmq_load_relaxed32(&queue->generation) == s->generations[1]); /* as if it had not begun */
        shmq_append_delete_row(&s->f->append, s->rows[1]);
    }
    TRUTH(shmq_load_relaxed32(&queue->state) == SHMQ_ROW_FREE);
    TRUTH(shmq_load_relaxed32(&queue->generation) != s->generations[1]);
    death_count_blocks(s);
    scene_put(s, 0, 1, 8); /* with the old handle */
    TRUTH(scene_turn(s) == 1);
    struct shmq_completion done;
    TRUTH(shmq_lane_completion(&s->w[0], s->w[0].sequence - 1, &done) == SHMQ_OK);
    TRUTH(done.status == (uint8_t)-SHMQ_NO_TOPIC);
    s->published[0] -= 1;
    uint32_t row, generation;
    fixture_queue(s->f, "t", 77, 0, &row, &generation);
    TRUTH(row == s->rows[1]);
    TRUTH(s->f->append.rows[row].next_queue_offset == 0);
}

static void test_death_while_a_row_is_deleted_deletes_it_or_not(void)
{
    for (uint32_t unpublished = 0; unpublished < 2; ++unpublished) {
        struct scene s;
        scene_open(&s, unpublished ? "deleting a row, sends under way" : "deleting a row");
        for (uint32_t i = 0; i < 60; ++i) { /* two blocks of it */
            for (uint32_t n = 0; n < 9; ++n) {
                scene_put(&s, i % 2, n % 2, 8);
            }
            CHECK_EQUAL(scene_turn(&s), 9);
            scene_release(&s);
            uint64_t ready_end = shmq_load_relaxed(&s.f->append.log.ready_end);
            if (ready_end - s.f->append.log.log_end < DEATH_FILE_SIZE) {
                shmq_append_retire(&s.f->append, ready_end - DEATH_FILES * DEATH_FILE_SIZE);
                fixture_ready(s.f, ready_end);
            }
        }
        if (unpublished) {
            scene_put(&s, 2, 0, 8);
            scene_put(&s, 2, 0, 8);
        }
        s.work = delete_row;
        s.judge = judge_deleted_row;
        death_at_every_instruction(&s);
        scene_close(&s);
    }
}

static void lower_level(struct scene *s)
{
    shmq_append_set_row(&s->f->append, s->rows[3], SHMQ_ROW_ACTIVE, 0);
    (void)shmq_turn_settle(&s->f->append, 1);
}

static void test_death_while_a_level_changes_hides_nothing_for_ever(void)
{
    struct scene s;
    scene_open(&s, "changing a level");
    scene_put(&s, 0, 3, 8);
    CHECK_EQUAL(scene_turn(&s), 1);
    s.work = lower_level;
    death_at_every_instruction(&s);
    scene_close(&s);
}

/* ---- blocks ----------------------------------------------------------------------------------------- */

static uint64_t trim_below;

static void trim(struct scene *s)
{
    for (uint32_t i = 0; i < 2; ++i) {
        struct shmq_row *row = &s->f->append.rows[s->rows[i]];
        (void)shmq_consume_queue_trim(&s->f->append.arena, shmq_control_queue_row(s->f->control, s->rows[i]),
                                      &row->chain, trim_below);
        row->staged_room = row->chain.tail_room;
    }
}

static void judge_trimmed(struct scene *s)
{
    trim(s); /* the successor trims, too */
    death_count_blocks(s);
    struct shmq_queue_row *queue = shmq_control_queue_row(s->f->control, s->rows[0]);
    TRUTH((trim_below == UINT64_MAX) == (shmq_load_relaxed32(&queue->head_block) == 0));
}

static void test_death_while_chains_are_trimmed_loses_no_block(void)
{
    const char *const names[] = {"trimming", "trimming whole chains"};
    for (uint32_t whole = 0; whole < 2; ++whole) {
        struct scene s;
        scene_open(&s, names[whole]);
        scene_fill(&s, 0, 2 * SHMQ_BLOCK_ENTRIES + 30);
        scene_fill(&s, 1, 5);
        trim_below = whole ? UINT64_MAX : s.f->append.log.log_end - 2000;
        s.work = trim;
        s.judge = judge_trimmed;
        death_at_every_instruction(&s);
        scene_close(&s);
    }
}

/* ---- hot slots -------------------------------------------------------------------------------------- */

static void retire_and_ready(struct scene *s)
{
    uint64_t ready_end = shmq_load_relaxed(&s->f->append.log.ready_end);
    shmq_append_retire(&s->f->append, ready_end - DEATH_FILES * DEATH_FILE_SIZE);
    fixture_ready(s->f, ready_end);
}

/* The file of a slot that was changing hands is on disk: positions begin behind it, or with it. */
static void judge_slots(struct scene *s)
{
    uint64_t committed = shmq_load_relaxed(&s->f->control->append.committed_position);
    uint64_t hot_min = shmq_load_relaxed(&s->f->control->append.hot_min_position);
    for (uint64_t position = hot_min; position < committed; position += 512) {
        TRUTH(shmq_commit_log_at(&s->f->append.log, position) != NULL);
    }
    uint64_t ready_end = shmq_load_relaxed(&s->f->append.log.ready_end);
    if (ready_end - committed < DEATH_FILE_SIZE) { /* what the preparer does next */
        retire_and_ready(s);
    }
}

static void test_death_while_a_file_retires_and_its_slot_is_reused_loses_nothing(void)
{
    for (uint32_t rolled = 0; rolled < 2; ++rolled) {
        struct scene s;
        scene_open(&s, rolled ? "reusing a slot behind a turn that rolled" : "reusing a slot");
        scene_fill(&s, 0, 20);
        while (s.f->append.log.log_end < (rolled ? 2u : 1u) * DEATH_FILE_SIZE - (rolled ? 0 : 2000)) {
            scene_put(&s, 0, 0, 8);
            scene_put(&s, 0, 0, 500);
            CHECK_EQUAL(scene_turn(&s), 2);
            scene_release(&s);
        }
        while (!rolled && s.f->append.log.log_end < DEATH_FILE_SIZE + 200) {
            scene_put(&s, 0, 0, 500);
            CHECK_EQUAL(scene_turn(&s), 1);
            scene_release(&s);
        }
        scene_put(&s, 1, 0, 8); /* somebody waits meanwhile */
        s.work = retire_and_ready;
        s.judge = judge_slots;
        death_at_every_instruction(&s);
        scene_close(&s);
    }
}

/* ---- sessions --------------------------------------------------------------------------------------- */

static void end_session(struct scene *s)
{
    shmq_append_detach(&s->f->append, 0);
}

/* Its producer was told so, or it was not and may go on; what was taken from it is answered either way. */
static void recover_beside_a_detached_session(struct scene *s)
{
    death_recover(s);
    if (shmq_lane_ended(&s->w[0]) == 0) {
        death_go_on(s);
        return;
    }
    struct shmq_completion done;
    TRUTH(shmq_lane_completion(&s->w[0], s->w[0].sequence, &done) == SHMQ_CLOSED);
    shmq_append_detach(&s->f->append, 0);
    scene_put(s, 1, 0, 8);
    TRUTH(scene_turn(s) == 1);
}

static void test_death_while_a_session_is_detached_tells_its_producer_or_not(void)
{
    struct scene s;
    scene_open(&s, "detaching");
    for (uint32_t i = 0; i < 4; ++i) {
        scene_put(&s, 0, i, 8);
    }
    scene_put(&s, 1, 0, 8);
    CHECK_EQUAL(scene_turn(&s), 5);
    scene_flush(&s);
    (void)scene_turn(&s);
    s.work = end_session;
    death_step_through(&s, 1, recover_beside_a_detached_session);
    scene_close(&s);
}

/* The slot of a session that is over serves another, which sends at once. */
static void attach_anew(struct scene *s)
{
    struct shmq_session_slot *slot = shmq_control_session_slot(s->f->control, 0);
    slot->generation += 1;
    shmq_append_clear_rings(&s->f->append, 0);
    fixture_resume(s->f, 0);
}

static void recover_beside_a_new_session(struct scene *s)
{
    TRUTH(fixture_adopt(s->f) == SHMQ_OK);
    fixture_resume(s->f, 1);
    fixture_resume(s->f, 2);
    struct shmq_session_slot *slot = shmq_control_session_slot(s->f->control, 0);
    uint32_t old = s->w[0].session_generation;
    if (shmq_load_relaxed32(&slot->state) == SHMQ_SESSION_FREE) { /* nobody was told of it: attached again */
        attach_anew(s);
    } else {
        TRUTH(slot->generation != old);
        fixture_resume(s->f, 0);
    }
    TRUTH(shmq_lane_ended(&s->w[0]) != 0); /* the old one knows in any case */
    struct shmq_completion done;
    for (uint64_t q = 0; q < s->w[0].sequence; ++q) {
        int status = shmq_lane_completion(&s->w[0], q, &done);
        TRUTH(status == SHMQ_CLOSED || (status == SHMQ_OK && done.sequence == q));
    }
    memset(s->f->ingress[0], 0, shmq_ingress_size(1, SHMQ_PAGE)); /* another ring */
    fixture_writer(s->f, 0, 0, &s->w[0]);
    scene_put(s, 0, 0, 8);
    scene_put(s, 1, 0, 8);
    TRUTH(scene_turn(s) == 2);
    TRUTH(shmq_lane_completion(&s->w[0], 0, &done) == SHMQ_OK && done.status == 0);
}

static void test_death_while_a_slot_is_given_to_another_session_mixes_up_nobody(void)
{
    struct scene s;
    scene_open(&s, "attaching anew");
    for (uint32_t i = 0; i < 4; ++i) {
        scene_put(&s, 0, i % 3, 8);
    }
    CHECK_EQUAL(scene_turn(&s), 4);
    shmq_append_detach(&s.f->append, 0);
    s.work = attach_anew;
    death_step_through(&s, 1, recover_beside_a_new_session);
    scene_close(&s);
}

static void seal(struct scene *s)
{
    shmq_turn_seal(&s->f->append);
}

static void test_death_while_a_turn_is_sealed_redoes_it_or_not(void)
{
    struct scene s;
    scene_open(&s, "sealing");
    for (uint32_t i = 0; i < 6; ++i) {
        scene_put(&s, i % 3, i % 4, 8);
    }
    CHECK_EQUAL(scene_turn(&s), 6);
    scene_put(&s, 0, 0, 8);
    s.work = seal;
    death_at_every_instruction(&s);
    scene_close(&s);
}

/* ---- replay ----------------------------------------------------------------------------------------- */

/* New memory around the frames of a log: the queues are made from them. */
static void replay(struct scene *s)
{
    struct shmq_replay replay = {.limit = shmq_load_relaxed(&s->f->control->append.committed_position),
                                 .frames_max = UINT64_MAX};
    TRUTH(shmq_log_replay(&s->f->append, SHMQ_CHECK_RECORD_CRC, &replay) == SHMQ_OK);
    TRUTH(replay.position == replay.limit && replay.holes == 0);
}

static void replay_again(struct scene *s)
{
    static struct truth truth;
    TRUTH(fixture_adopt(s->f) == SHMQ_OK);
    replay(s);
    s->f->append.log.log_end = shmq_load_relaxed(&s->f->control->append.committed_position);
    truth_check(s->f, 0, 1, &truth);
    TRUTH(truth.frame_count == 40);
    death_count_blocks(s);
}

static void test_death_in_a_replay_is_cured_by_replaying_again(void)
{
    struct scene s;
    scene_open(&s, "a replay");
    for (uint32_t i = 0; i < 40; ++i) {
        scene_put(&s, i % 2, i % 3, 8);
        CHECK_EQUAL(scene_turn(&s), 1);
        scene_release(&s);
    }
    uint64_t end = s.f->append.log.log_end;
    struct scene fresh;
    scene_open(&fresh, "a replay");
    memcpy(fresh.f->hot[0], s.f->hot[0], DEATH_FILE_SIZE);
    CHECK(end < DEATH_FILE_SIZE);
    shmq_store_relaxed(&fresh.f->control->append.committed_position, end);
    fresh.work = replay;
    death_step_through(&fresh, stepper_is_full_run() ? 1 : 3, replay_again);
    scene_close(&fresh);
    scene_close(&s);
}

int main(void)
{
    RUN(test_death_while_rows_are_added_leaves_whole_rows_or_none);
    RUN(test_death_while_a_row_is_deleted_deletes_it_or_not);
    RUN(test_death_while_a_level_changes_hides_nothing_for_ever);
    RUN(test_death_while_chains_are_trimmed_loses_no_block);
    RUN(test_death_while_a_file_retires_and_its_slot_is_reused_loses_nothing);
    RUN(test_death_while_a_session_is_detached_tells_its_producer_or_not);
    RUN(test_death_while_a_slot_is_given_to_another_session_mixes_up_nobody);
    RUN(test_death_while_a_turn_is_sealed_redoes_it_or_not);
    RUN(test_death_in_a_replay_is_cured_by_replaying_again);
    return 0;
}
