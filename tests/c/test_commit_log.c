/* commit_log.h: where a frame lies, when a file ends, and what stops an append. */
#define _GNU_SOURCE
#include "store_truth.h"

#define FILE_SIZE 4096u

static void test_frame_rolls_to_the_next_file_at_every_room_left(void)
{
    const uint32_t size = 200;
    struct fixture *f = fixture_open(FILE_SIZE, 2, 4);
    struct shmq_commit_log *log = &f->append.log;
    for (uint32_t room = SHMQ_BLANK_ROOM; room <= 300; ++room) {
        memset(f->hot[0], 0xee, FILE_SIZE);
        memset(f->hot[1], 0xee, FILE_SIZE);
        log->log_end = FILE_SIZE - room;
        uint8_t *frame = NULL;
        uint32_t rolled = 0;
        CHECK_EQUAL(shmq_commit_log_claim(log, size, &frame, &rolled), SHMQ_OK);
        if (room >= size + SHMQ_BLANK_ROOM) {
            CHECK_EQUAL(rolled, 0);
            CHECK(frame == f->hot[0] + FILE_SIZE - room);
            CHECK_EQUAL(log->log_end, FILE_SIZE - room);
            continue;
        }
        CHECK_EQUAL(rolled, 1);
        CHECK(frame == f->hot[1]);
        CHECK_EQUAL(log->log_end, FILE_SIZE);
        struct shmq_message_view view;
        uint64_t next;
        CHECK_EQUAL(shmq_message_check(f->hot[0] + FILE_SIZE - room, room, FILE_SIZE - room, 0, &view), SHMQ_BLANK);
        CHECK_EQUAL(view.total_size, room);
        CHECK_EQUAL(shmq_message_step(FILE_SIZE - room, view.total_size, 2 * FILE_SIZE, &next), SHMQ_OK);
        CHECK_EQUAL(next, FILE_SIZE);
    }
    fixture_close(f);
}

static void test_frame_and_its_blank_may_fill_a_whole_file(void)
{
    struct fixture *f = fixture_open(FILE_SIZE, 3, 4);
    struct shmq_commit_log *log = &f->append.log;
    uint8_t *frame;
    uint32_t rolled = 0;
    CHECK_EQUAL(shmq_commit_log_claim(log, FILE_SIZE - SHMQ_BLANK_ROOM + 1, &frame, &rolled), SHMQ_TOO_LARGE);
    CHECK_EQUAL(shmq_commit_log_claim(log, UINT32_MAX, &frame, &rolled), SHMQ_TOO_LARGE);
    for (uint32_t i = 0; i < 3; ++i) {
        CHECK_EQUAL(shmq_commit_log_claim(log, FILE_SIZE - SHMQ_BLANK_ROOM, &frame, &rolled), SHMQ_OK);
        CHECK(frame == f->hot[i]);
        CHECK_EQUAL(rolled, i);
        log->log_end += FILE_SIZE - SHMQ_BLANK_ROOM;
    }
    CHECK_EQUAL(shmq_commit_log_claim(log, 100, &frame, &rolled), SHMQ_LOG_FULL);
    fixture_close(f);
}

static void expect_full(struct fixture *f)
{
    struct shmq_commit_log *log = &f->append.log;
    uint64_t end = log->log_end;
    uint8_t before[64];
    uint8_t *frame = NULL;
    uint32_t rolled = 0;
    memcpy(before, f->hot[0] + FILE_SIZE - 64, 64);
    CHECK_EQUAL(shmq_commit_log_claim(log, 200, &frame, &rolled), SHMQ_LOG_FULL);
    CHECK_EQUAL(log->log_end, end);
    CHECK_EQUAL(rolled, 0);
    CHECK_BYTES(f->hot[0] + FILE_SIZE - 64, before, 64); /* no BLANK before there is a next file */
}

static void test_log_is_full_until_the_next_file_is_ready(void)
{
    struct fixture *f = fixture_open(FILE_SIZE, 2, 4);
    struct shmq_commit_log *log = &f->append.log;
    log->log_end = FILE_SIZE - 64;
    shmq_store_relaxed(&log->ready_end, FILE_SIZE); /* not announced */
    expect_full(f);
    shmq_store_relaxed(&log->ready_end, 2 * FILE_SIZE);
    log->bases[1] = NULL; /* not mapped */
    expect_full(f);
    log->bases[1] = f->hot[1];
    log->file_positions[1] = 3 * FILE_SIZE; /* another file is in the slot */
    expect_full(f);
    log->file_positions[1] = FILE_SIZE;
    log->bases[0] = NULL; /* the present file has no memory: nowhere for the BLANK */
    expect_full(f);
    log->bases[0] = f->hot[0];
    uint8_t *frame;
    uint32_t rolled = 0;
    CHECK_EQUAL(shmq_commit_log_claim(log, 200, &frame, &rolled), SHMQ_OK);
    log->log_end = 2 * FILE_SIZE; /* exactly at the end of what is ready */
    CHECK_EQUAL(shmq_commit_log_claim(log, 200, &frame, &rolled), SHMQ_LOG_FULL);
    fixture_close(f);
}

static void test_position_of_a_file_that_left_its_slot_has_no_address(void)
{
    struct fixture *f = fixture_open(FILE_SIZE, 2, 4);
    struct shmq_commit_log *log = &f->append.log;
    CHECK(shmq_commit_log_at(log, 0) == f->hot[0]);
    CHECK(shmq_commit_log_at(log, FILE_SIZE - 1) == f->hot[0] + FILE_SIZE - 1);
    CHECK(shmq_commit_log_at(log, FILE_SIZE) == f->hot[1]);
    CHECK(shmq_commit_log_at(log, 2 * FILE_SIZE) == NULL);
    fixture_ready(f, 2 * FILE_SIZE);
    CHECK(shmq_commit_log_at(log, 2 * FILE_SIZE + 5) == f->hot[0] + 5);
    CHECK(shmq_commit_log_at(log, 0) == NULL);
    fixture_close(f);
}

static void test_hot_slot_says_what_it_holds(void)
{
    struct fixture *f = fixture_open(FILE_SIZE, 2, 4);
    struct shmq_hot_slot *slot = shmq_control_hot_slot(f->control, 1);
    CHECK_EQUAL(shmq_load_relaxed(&slot->file_position), FILE_SIZE);
    CHECK_EQUAL(shmq_load_relaxed32(&slot->state), SHMQ_HOT_READY);
    uint64_t generation = shmq_load_relaxed(&slot->generation);
    CHECK_EQUAL(generation % 2, 0);
    shmq_append_retire(&f->append, FILE_SIZE);
    CHECK_EQUAL(shmq_load_relaxed32(&slot->state), SHMQ_HOT_RETIRED);
    CHECK_EQUAL(shmq_load_relaxed(&f->control->append.hot_min_position), 2 * FILE_SIZE);
    fixture_ready(f, 3 * FILE_SIZE);
    CHECK_EQUAL(shmq_load_relaxed(&slot->generation), generation + 2);
    CHECK_EQUAL(shmq_load_relaxed(&slot->file_position), 3 * FILE_SIZE);
    CHECK_EQUAL(shmq_load_relaxed(&slot->object_number), 3);
    fixture_close(f);
}

/* Messages of every size from an empty body up to one that fills a file, over many files and slots. */
static void test_log_of_many_files_holds_every_message_once(void)
{
    struct fixture *f = fixture_open(FILE_SIZE, 4, 64);
    uint32_t row, generation;
    fixture_queue(f, "t", 0, 0, &row, &generation);
    fixture_attach(f, 0, 1, 1u << 14, 64);
    struct shmq_lane_writer w;
    fixture_writer(f, 0, 0, &w);
    struct truth *truth = malloc(sizeof *truth);
    uint64_t seed = check_seed();
    uint64_t begin = 0;
    uint32_t left = 0; /* messages before `begin` */
    for (uint32_t i = 0; i < 3000; ++i) {
        uint32_t size = i % 10 == 9 ? 3900 + i / 10 % 70 : 8 + (uint32_t)(check_random(&seed) % 700);
        CHECK(truth_put(&w, 0, row, generation, size, "", 0) >= 0);
        (void)shmq_lane_publish(&w);
        CHECK_EQUAL(shmq_turn_run(&f->append, 1, 1), 1);
        struct shmq_completion done;
        CHECK_EQUAL(shmq_lane_completion(&w, i, &done), SHMQ_OK);
        CHECK_EQUAL(done.queue_offset, i);
        shmq_lane_release(&w, w.sequence);
        if (shmq_load_relaxed(&f->append.log.ready_end) - f->append.log.log_end < FILE_SIZE) {
            truth_read(f, begin, truth); /* what is about to leave, and what stays */
            CHECK_EQUAL(truth->frame_count, i + 1 - left);
            begin = f->append.log.log_end / FILE_SIZE * FILE_SIZE;
            for (uint32_t n = 0; n < truth->frame_count && truth->frames[n].position < begin; ++n) {
                ++left;
            }
            for (uint32_t n = 0; n < 3; ++n) {
                fixture_ready(f, shmq_load_relaxed(&f->append.log.ready_end));
            }
        }
    }
    CHECK(shmq_load_relaxed(&f->control->counters.files_rolled) > 300);
    free(truth);
    fixture_close(f);
}

int main(void)
{
    RUN(test_frame_rolls_to_the_next_file_at_every_room_left);
    RUN(test_frame_and_its_blank_may_fill_a_whole_file);
    RUN(test_log_is_full_until_the_next_file_is_ready);
    RUN(test_position_of_a_file_that_left_its_slot_has_no_address);
    RUN(test_hot_slot_says_what_it_holds);
    RUN(test_log_of_many_files_holds_every_message_once);
    return 0;
}
