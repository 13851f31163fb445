/* recovery.h: a successor adopts memory, or replays frames into new memory. Deaths at every instruction are in
 * test_death_*.c; here are the cases one at a time. */
#define _GNU_SOURCE
#include "store_truth.h"

#define FILE_SIZE (1u << 16)
#define BLOCKS 64u

struct bench {
    struct fixture *f;
    struct shmq_lane_writer w[3];
    uint32_t rows[3], generations[3]; /* topic "t": ASYNC, ASYNC, SYNC */
};

static struct bench bench_open(void)
{
    struct bench b = {0};
    b.f = fixture_open(FILE_SIZE, 3, BLOCKS);
    for (uint32_t i = 0; i < 3; ++i) {
        fixture_queue(b.f, "t", i, i == 2 ? SHMQ_ROW_FLUSH : 0, &b.rows[i], &b.generations[i]);
        fixture_attach(b.f, i, 1, 1u << 14, 64);
        fixture_writer(b.f, i, 0, &b.w[i]);
    }
    return b;
}

static void put(struct bench *b, uint32_t who, uint32_t queue)
{
    CHECK(truth_put(&b->w[who], who * SHMQ_LANE_MAX, b->rows[queue], b->generations[queue], 24, "TAGS\001a\002",
                    SHMQ_RECORD_WAIT) >= 0);
    (void)shmq_lane_publish(&b->w[who]);
}

static uint32_t turn(struct bench *b)
{
    uint32_t taken = shmq_turn_run(&b->f->append, 1700000000123, 1);
    (void)shmq_turn_settle(&b->f->append, 1);
    for (uint32_t i = 0; i < 3; ++i) {
        shmq_lane_release(&b->w[i], b->w[i].sequence);
    }
    return taken;
}

static void adopt(struct bench *b)
{
    CHECK_EQUAL(fixture_adopt(b->f), SHMQ_OK);
    for (uint32_t i = 0; i < 3; ++i) {
        fixture_resume(b->f, i);
    }
}

static void finish(struct bench *b)
{
    struct truth *truth = malloc(sizeof *truth);
    truth_check(b->f, 0, 0, truth);
    for (uint32_t i = 0; i < 3; ++i) {
        truth_completions(truth, &b->w[i], i * SHMQ_LANE_MAX);
        CHECK_EQUAL(truth->sent[i * SHMQ_LANE_MAX], b->w[i].sequence);
    }
    free(truth);
    fixture_close(b->f);
}

/* ---- adoption --------------------------------------------------------------------------------------- */

static void test_store_without_a_turn_is_adopted(void)
{
    struct bench b = bench_open();
    adopt(&b);
    put(&b, 0, 0);
    CHECK_EQUAL(turn(&b), 1);
    finish(&b);
}

static void test_adoption_goes_on_where_the_dead_broker_stopped(void)
{
    struct bench b = bench_open();
    uint32_t sent = 0;
    for (uint32_t i = 0; i < 900; ++i) {
        put(&b, i % 3, i % 2);
        ++sent;
        if (i % 5 == 0) {
            CHECK_EQUAL(turn(&b), sent);
            sent = 0;
        }
        if (i % 23 == 0) {
            adopt(&b); /* with records in the rings that nobody has taken */
        }
    }
    CHECK_EQUAL(turn(&b), sent);
    CHECK_EQUAL(b.f->append.rows[b.rows[0]].next_queue_offset, 450);
    finish(&b);
}

static void test_adopting_twice_leaves_the_same_bytes(void)
{
    struct bench b = bench_open();
    for (uint32_t i = 0; i < 400; ++i) {
        put(&b, 0, i % 2);
        CHECK_EQUAL(turn(&b), 1);
    }
    put(&b, 1, 2);
    CHECK_EQUAL(turn(&b), 1);
    uint8_t *before = fixture_region(b.f->shared_size);
    CHECK_EQUAL(fixture_adopt(b.f), SHMQ_OK);
    fixture_copy_objects(b.f, before, b.f->shared);
    CHECK_EQUAL(fixture_adopt(b.f), SHMQ_OK);
    CHECK(fixture_same_objects(b.f, before, b.f->shared));
    munmap(before, b.f->shared_size);
    adopt(&b);
    finish(&b);
}

/* A turn that was committed and not published at all, by hand: the record alone tells the successor. */
static void test_committed_turn_that_was_not_published_is_redone(void)
{
    struct bench b = bench_open();
    for (uint32_t i = 0; i < 200; ++i) { /* the next entries begin a new block */
        put(&b, 1, 0);
        CHECK_EQUAL(turn(&b), 1);
    }
    uint8_t *before = fixture_region(b.f->shared_size);
    fixture_copy_objects(b.f, before, b.f->shared);
    for (uint32_t i = 0; i < 3; ++i) {
        put(&b, 0, 0);
        put(&b, 0, 1);
        put(&b, 2, 2);
    }
    CHECK_EQUAL(turn(&b), 9);
    /* everything as before the turn, but for: the rings, the frames, the turn record, the turn number */
    struct fixture *old = fixture_over(b.f, before);
    uint64_t number = b.f->append.turn_number;
    memcpy(shmq_control_turn_record(old->control, number), shmq_control_turn_record(b.f->control, number),
           sizeof(struct shmq_turn_record));
    shmq_store_relaxed(&old->control->append.turn_number, number);
    memcpy(old->hot[0], b.f->hot[0], FILE_SIZE);
    for (uint32_t i = 0; i < 3; ++i) {
        memcpy(old->ingress[i], b.f->ingress[i], shmq_ingress_size(1, 1u << 14));
        memcpy(old->completion[i], b.f->completion[i], shmq_completion_size(1, 64));
    }
    fixture_copy_objects(b.f, b.f->shared, before);
    fixture_private_free(old);
    free(old);
    munmap(before, b.f->shared_size);
    adopt(&b);
    CHECK_EQUAL(turn(&b), 0); /* its records are not taken again */
    CHECK_EQUAL(b.f->append.rows[b.rows[0]].next_queue_offset, 203);
    finish(&b);
}

static void test_sync_messages_stay_hidden_after_adoption_until_flushed(void)
{
    struct bench b = bench_open();
    put(&b, 0, 2);
    CHECK_EQUAL(turn(&b), 1);
    adopt(&b);
    struct shmq_queue_row *queue = shmq_control_queue_row(b.f->control, b.rows[2]);
    CHECK_EQUAL(turn(&b), 0);
    CHECK_EQUAL(shmq_load_relaxed(&queue->visible_max), 0);
    struct shmq_completion done;
    CHECK_EQUAL(shmq_lane_completion(&b.w[0], 0, &done), SHMQ_EMPTY);
    shmq_store_release(&b.f->control->flush.flushed_position, b.f->append.log.log_end);
    CHECK_EQUAL(turn(&b), 0);
    CHECK_EQUAL(shmq_load_relaxed(&queue->visible_max), 1);
    CHECK_EQUAL(shmq_lane_completion(&b.w[0], 0, &done), SHMQ_OK);
    finish(&b);
}

/* Died between max_queue_offset and visible_max of an ASYNC queue, before anything was ever flushed. */
static void test_message_left_between_max_and_visible_is_shown_after_adoption(void)
{
    struct bench b = bench_open();
    put(&b, 0, 0);
    CHECK_EQUAL(turn(&b), 1);
    struct shmq_queue_row *queue = shmq_control_queue_row(b.f->control, b.rows[0]);
    shmq_store_relaxed(&queue->visible_max, 0);
    CHECK_EQUAL(fixture_adopt(b.f), SHMQ_OK); /* and its producer does not come back */
    CHECK_EQUAL(shmq_turn_ready(&b.f->append), 1);
    CHECK_EQUAL(turn(&b), 0);
    CHECK_EQUAL(shmq_load_relaxed(&queue->visible_max), 1);
    finish(&b);
}

static void test_session_that_was_ended_stays_ended(void)
{
    struct bench b = bench_open();
    put(&b, 0, 0);
    CHECK_EQUAL(turn(&b), 1);
    shmq_ring_end(&b.f->append, &b.f->append.rings[0], SHMQ_CORRUPT);
    CHECK(truth_put(&b.w[0], 0, b.rows[0], b.generations[0], 24, "", 0) == 1);
    (void)shmq_lane_publish(&b.w[0]);
    adopt(&b);
    CHECK_EQUAL(turn(&b), 0);
    struct shmq_completion done;
    CHECK_EQUAL(shmq_lane_completion(&b.w[0], 1, &done), SHMQ_CLOSED);
    b.w[0].sequence = 1;
    finish(&b);
}

static void test_sync_answer_that_waits_longer_than_the_broker_lives_times_out_all_the_same(void)
{
    struct bench b = bench_open();
    put(&b, 0, 2);
    CHECK_EQUAL(turn(&b), 1);
    adopt(&b);
    (void)shmq_turn_settle(&b.f->append, 1000);
    (void)shmq_turn_settle(&b.f->append, 1000 + b.f->append.flush_timeout_ns + SHMQ_SETTLE_INTERVAL_NS);
    struct shmq_completion done;
    CHECK_EQUAL(shmq_lane_completion(&b.w[0], 0, &done), SHMQ_OK);
    CHECK_EQUAL(done.final_status, -SHMQ_FLUSH_DISK_TIMEOUT);
    finish(&b);
}

/* ---- what a redo must not meet ---------------------------------------------------------------------- */

/* The last turn's frames belong to a queue that is deleted and made again under its name. */
static void test_last_turn_is_not_redone_into_a_queue_made_anew(void)
{
    for (uint32_t before = 0; before < 3; ++before) {
        struct bench b = bench_open();
        for (uint32_t i = 0; i <= before; ++i) {
            put(&b, 0, 0);
            CHECK_EQUAL(turn(&b), 1);
        }
        shmq_append_delete_row(&b.f->append, b.rows[0]);
        fixture_queue(b.f, "t", 0, 0, &b.rows[0], &b.generations[0]);
        adopt(&b);
        CHECK_EQUAL(b.f->append.rows[b.rows[0]].next_queue_offset, 0);
        CHECK_EQUAL(shmq_load_relaxed(&shmq_control_queue_row(b.f->control, b.rows[0])->visible_max), 0);
        put(&b, 0, 0);
        CHECK_EQUAL(turn(&b), 1);
        struct shmq_completion done;
        CHECK_EQUAL(shmq_lane_completion(&b.w[0], before + 1, &done), SHMQ_OK);
        CHECK_EQUAL(done.queue_offset, 0);
        fixture_close(b.f);
    }
}

/* Idle since a turn that rolled: the file with the turn's first frames is retired, then the broker dies. */
static void test_last_turn_is_not_looked_for_in_a_retired_file(void)
{
    struct bench b = bench_open();
    while (b.f->append.log.log_end < FILE_SIZE) {
        put(&b, 0, 0);
        put(&b, 0, 0);
        put(&b, 0, 1);
        CHECK_EQUAL(turn(&b), 3);
    }
    const struct shmq_turn_header *last =
        &shmq_control_turn_record(b.f->control, b.f->append.turn_number)->header;
    CHECK(last->log_begin < FILE_SIZE && last->log_end > FILE_SIZE);
    shmq_store_release(&b.f->control->flush.flushed_position, b.f->append.log.log_end);
    shmq_append_retire(&b.f->append, 0);
    adopt(&b);
    CHECK(shmq_commit_log_at(&b.f->append.log, 0) == NULL);
    put(&b, 0, 0);
    CHECK_EQUAL(turn(&b), 1);
    struct shmq_completion done;
    CHECK_EQUAL(shmq_lane_completion(&b.w[0], b.w[0].sequence - 1, &done), SHMQ_OK);
    fixture_close(b.f);
}

static void test_sealing_twice_commits_one_empty_turn(void)
{
    struct bench b = bench_open();
    shmq_turn_seal(&b.f->append);
    CHECK_EQUAL(b.f->append.turn_number, 0); /* nothing to seal */
    put(&b, 0, 0);
    CHECK_EQUAL(turn(&b), 1);
    shmq_turn_seal(&b.f->append);
    CHECK_EQUAL(b.f->append.turn_number, 2);
    shmq_turn_seal(&b.f->append);
    CHECK_EQUAL(b.f->append.turn_number, 2);
    adopt(&b);
    put(&b, 0, 0);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(b.f->append.turn_number, 3);
    finish(&b);
}

static void test_row_half_deleted_by_the_dead_broker_is_deleted(void)
{
    struct bench b = bench_open();
    for (uint32_t i = 0; i < 200; ++i) {
        put(&b, 0, 0);
        put(&b, 0, 1);
        CHECK_EQUAL(turn(&b), 2);
    }
    struct shmq_queue_row *queue = shmq_control_queue_row(b.f->control, b.rows[0]);
    shmq_turn_seal(&b.f->append);
    shmq_store_relaxed32(&queue->state, SHMQ_ROW_DELETED); /* died right behind the first step */
    adopt(&b);
    CHECK_EQUAL(shmq_load_relaxed32(&queue->state), SHMQ_ROW_FREE);
    CHECK(shmq_load_relaxed32(&queue->generation) != b.generations[0]);
    CHECK_EQUAL(b.f->append.arena.free_count, BLOCKS - 1 - 2);
    uint32_t row;
    fixture_queue(b.f, "t", 0, 0, &row, &b.generations[0]);
    CHECK_EQUAL(row, b.rows[0]);
    fixture_close(b.f);
}

static void test_broken_memory_is_told_apart_from_a_death(void)
{
    for (uint32_t kind = 0; kind < 9; ++kind) {
        struct bench b = bench_open();
        for (uint32_t i = 0; i < 400; ++i) {
            put(&b, 0, 0);
            CHECK_EQUAL(turn(&b), 1);
        }
        struct shmq_queue_row *queue = shmq_control_queue_row(b.f->control, b.rows[0]);
        uint32_t head = shmq_load_relaxed32(&queue->head_block);
        struct shmq_block_header *first = &shmq_arena_block(b.f->arena, head)->header;
        struct shmq_turn_record *record = shmq_control_turn_record(b.f->control, b.f->append.turn_number);
        switch (kind) {
        case 0:
            shmq_store_relaxed32(&first->next_block, 0); /* ends before the queue does */
            break;
        case 1:
            shmq_store_relaxed32(&first->next_block, head); /* goes round */
            break;
        case 2:
            shmq_store_relaxed32(&first->next_block, BLOCKS); /* leads out of the arena */
            break;
        case 3:
            shmq_store_relaxed32(&queue->head_block, BLOCKS + 7);
            break;
        case 4:
            record->header.turn_number += 2;
            break;
        case 5:
            record->header.log_end = UINT64_C(1) << 40;
            break;
        case 6:
            record->header.ring_count = SHMQ_TURN_RING_MAX + 1;
            break;
        case 7:
            record->rings[0].ring_slot = FIXTURE_SESSIONS * SHMQ_LANE_MAX;
            break;
        default:
            b.f->hot[0][record->header.log_begin + 100] ^= 1; /* a bit of the last frame */
        }
        CHECK_EQUAL(fixture_adopt(b.f), SHMQ_CORRUPT);
        fixture_close(b.f);
    }
}

/* ---- replay ----------------------------------------------------------------------------------------- */

/* New memory around the same frames. */
static struct fixture *replay_open(const struct fixture *from)
{
    struct fixture *f = fixture_open(FILE_SIZE, 3, BLOCKS);
    for (uint32_t i = 0; i < 3; ++i) {
        memcpy(f->hot[i], from->hot[i], FILE_SIZE);
    }
    return f;
}

/* Replays to the end, making the rows that are asked for, as the store does. */
static int replay_all(struct fixture *f, struct shmq_replay *replay)
{
    for (;;) {
        int status = shmq_log_replay(&f->append, SHMQ_CHECK_RECORD_CRC, replay);
        if (status != SHMQ_NO_TOPIC) {
            return status;
        }
        uint32_t row, generation;
        char topic[8] = {0};
        memcpy(topic, replay->view.topic, replay->view.topic_size);
        fixture_queue(f, topic, replay->view.queue_id, 0, &row, &generation);
    }
}

static void begin_at(struct fixture *f, uint64_t position)
{
    f->append.log.log_end = position;
    shmq_store_release(&f->control->append.committed_position, position);
}

static void test_replay_makes_the_queues_from_the_frames(void)
{
    struct bench b = bench_open();
    for (uint32_t i = 0; i < 1000; ++i) {
        put(&b, i % 3, i % 2);
        CHECK_EQUAL(turn(&b), 1);
    }
    uint64_t end = b.f->append.log.log_end;
    CHECK(end > 2 * FILE_SIZE);
    struct fixture *f = replay_open(b.f);
    struct shmq_replay replay = {.limit = end, .frames_max = UINT64_MAX};
    CHECK_EQUAL(replay_all(f, &replay), SHMQ_OK);
    CHECK_EQUAL(replay.position, end);
    CHECK_EQUAL(replay.frames, 1000);
    CHECK_EQUAL(replay.holes, 0);
    begin_at(f, end);
    struct truth *truth = malloc(sizeof *truth);
    truth_check(f, 0, 1, truth);
    CHECK_EQUAL(truth->frame_count, 1000);
    free(truth);
    CHECK_EQUAL(f->append.store_timestamp, 1700000000123);
    /* once more over the same memory: nothing is put twice */
    uint32_t free_count = f->append.arena.free_count;
    replay = (struct shmq_replay){.limit = end, .frames_max = UINT64_MAX};
    CHECK_EQUAL(replay_all(f, &replay), SHMQ_OK);
    CHECK_EQUAL(f->append.arena.free_count, free_count);
    /* and appends go on */
    fixture_attach(f, 0, 1, 1u << 14, 64);
    struct shmq_lane_writer w;
    fixture_writer(f, 0, 0, &w);
    CHECK(fixture_put(&w, 0, 1, "12345678", 8, "", 0) == 0);
    (void)shmq_lane_publish(&w);
    CHECK_EQUAL(shmq_turn_run(&f->append, 1, 1), 1);
    struct shmq_completion done;
    CHECK_EQUAL(shmq_lane_completion(&w, 0, &done), SHMQ_OK);
    CHECK_EQUAL(done.queue_offset, 500);
    CHECK_EQUAL(done.physical_offset, end);
    fixture_close(f);
    finish(&b);
}

static void test_replay_can_be_cut_into_pieces(void)
{
    struct bench b = bench_open();
    for (uint32_t i = 0; i < 500; ++i) {
        put(&b, 0, i % 2);
        CHECK_EQUAL(turn(&b), 1);
    }
    struct fixture *f = replay_open(b.f);
    uint32_t kept = f->append.arena.free_count;
    f->append.arena.free_count = 1;
    struct shmq_replay replay = {.limit = b.f->append.log.log_end};
    uint32_t full = 0;
    while (replay.position < replay.limit) {
        replay.frames_max = replay.frames + 7;
        int status = replay_all(f, &replay);
        if (status == SHMQ_ARENA_FULL) {
            ++full;
            f->append.arena.free_blocks[0] = --kept;
            f->append.arena.free_count = 1;
        } else {
            CHECK_EQUAL(status, SHMQ_OK);
        }
    }
    CHECK_EQUAL(full, 3); /* two queues of two blocks, one was there */
    CHECK_EQUAL(replay.frames, 500);
    begin_at(f, replay.limit);
    struct truth *truth = malloc(sizeof *truth);
    truth_check(f, 0, 1, truth);
    free(truth);
    fixture_close(f);
    finish(&b);
}

static void test_replay_fills_the_offsets_of_lost_messages_with_holes(void)
{
    struct bench b = bench_open();
    uint64_t positions[41];
    for (uint32_t i = 0; i < 40; ++i) {
        positions[i] = b.f->append.log.log_end;
        put(&b, 0, 0);
        CHECK_EQUAL(turn(&b), 1);
    }
    positions[40] = b.f->append.log.log_end;
    struct fixture *f = replay_open(b.f);
    struct shmq_replay replay = {.limit = positions[10], .frames_max = UINT64_MAX};
    CHECK_EQUAL(replay_all(f, &replay), SHMQ_OK);
    replay.position = positions[15]; /* five were quarantined */
    replay.limit = positions[40];
    CHECK_EQUAL(replay_all(f, &replay), SHMQ_OK);
    CHECK_EQUAL(replay.holes, 5);
    struct shmq_queue_row *queue = shmq_control_queue_row(f->control, 0);
    struct shmq_cursor cursor = {0};
    struct shmq_found found[40];
    CHECK_EQUAL(shmq_consume_queue_read(f->arena, BLOCKS, queue, 0, 1, 0, 40, &cursor, found), 40);
    for (uint32_t i = 0; i < 40; ++i) {
        CHECK_EQUAL(found[i].size == 0, i >= 10 && i < 15);
        CHECK(found[i].size == 0 || found[i].physical_offset == positions[i]);
    }
    fixture_close(f);
    finish(&b);
}

static void test_replay_of_a_log_whose_beginning_was_retired_begins_at_its_first_offset(void)
{
    struct bench b = bench_open();
    for (uint32_t i = 0; i < 300; ++i) {
        put(&b, 0, 0);
        CHECK_EQUAL(turn(&b), 1);
    }
    struct truth *truth = malloc(sizeof *truth);
    truth_read(b.f, 0, truth);
    struct fixture *f = replay_open(b.f);
    struct shmq_replay replay = {
        .position = truth->frames[200].position, .limit = b.f->append.log.log_end, .frames_max = UINT64_MAX};
    CHECK_EQUAL(replay_all(f, &replay), SHMQ_OK);
    CHECK_EQUAL(replay.holes, 0);
    struct shmq_queue_row *queue = shmq_control_queue_row(f->control, 0);
    CHECK_EQUAL(shmq_load_relaxed(&queue->min_queue_offset), 200);
    CHECK_EQUAL(shmq_load_relaxed(&queue->hot_min_queue_offset), 200);
    CHECK_EQUAL(shmq_load_relaxed(&queue->visible_max), 300);
    free(truth);
    fixture_close(f);
    finish(&b);
}

/* A frame of a foreign store whose queue offset is nonsense: bodyCRC does not cover it. */
static void test_replay_refuses_a_hole_that_no_damage_explains(void)
{
    struct fixture *f = fixture_open(FILE_SIZE, 2, BLOCKS);
    struct shmq_message_fields fields = {.topic = (const uint8_t *)"t", .topic_size = 1, .body_size = 8};
    uint32_t size = shmq_message_size(1, 8, SHMQ_CRC_PROPERTY_SIZE);
    const uint64_t queue_offsets[] = {0, 1, UINT64_C(1) << 40};
    for (uint32_t i = 0; i < 3; ++i) {
        fields.physical_offset = i * size;
        fields.queue_offset = queue_offsets[i];
        CHECK_EQUAL(shmq_message_encode(f->hot[0] + i * size, &fields, (const uint8_t *)"12345678", NULL), SHMQ_OK);
    }
    struct shmq_replay replay = {.limit = 3 * size, .frames_max = UINT64_MAX};
    CHECK_EQUAL(replay_all(f, &replay), SHMQ_CORRUPT);
    CHECK_EQUAL(replay.position, 2 * size);
    CHECK_EQUAL(replay.holes, 0);
    fixture_close(f);
}

static void test_replay_stops_at_zeros_and_at_damage(void)
{
    struct bench b = bench_open();
    for (uint32_t i = 0; i < 10; ++i) {
        put(&b, 0, 0);
        CHECK_EQUAL(turn(&b), 1);
    }
    uint64_t end = b.f->append.log.log_end;
    struct fixture *f = replay_open(b.f);
    struct shmq_replay replay = {.limit = FILE_SIZE, .frames_max = UINT64_MAX};
    CHECK_EQUAL(replay_all(f, &replay), SHMQ_EMPTY);
    CHECK_EQUAL(replay.position, end);
    f->hot[0][end] = 1;
    CHECK_EQUAL(replay_all(f, &replay), SHMQ_CORRUPT);
    replay.limit = end;
    CHECK_EQUAL(replay_all(f, &replay), SHMQ_OK);
    fixture_close(f);
    finish(&b);
}

static void test_replay_puts_prepared_and_rolled_back_messages_into_no_queue(void)
{
    struct fixture *f = fixture_open(FILE_SIZE, 2, BLOCKS);
    struct shmq_message_fields fields = {.topic = (const uint8_t *)"t", .topic_size = 1, .body_size = 8};
    uint32_t size = shmq_message_size(1, 8, SHMQ_CRC_PROPERTY_SIZE);
    const uint32_t flags[] = {SHMQ_SYS_FLAG_TRANSACTION_PREPARED, 0, SHMQ_SYS_FLAG_TRANSACTION_ROLLBACK,
                              SHMQ_SYS_FLAG_TRANSACTION_COMMIT};
    const uint64_t queue_offsets[] = {0, 0, 0, 1};
    for (uint32_t i = 0; i < 4; ++i) {
        fields.physical_offset = i * size;
        fields.sys_flag = flags[i];
        fields.queue_offset = queue_offsets[i];
        CHECK_EQUAL(shmq_message_encode(f->hot[0] + i * size, &fields, (const uint8_t *)"12345678", NULL), SHMQ_OK);
    }
    struct shmq_replay replay = {.limit = 4 * size, .frames_max = UINT64_MAX};
    CHECK_EQUAL(replay_all(f, &replay), SHMQ_OK);
    CHECK_EQUAL(replay.frames, 4);
    CHECK_EQUAL(f->append.rows[0].next_queue_offset, 2);
    fixture_close(f);
}

int main(void)
{
    RUN(test_store_without_a_turn_is_adopted);
    RUN(test_adoption_goes_on_where_the_dead_broker_stopped);
    RUN(test_adopting_twice_leaves_the_same_bytes);
    RUN(test_committed_turn_that_was_not_published_is_redone);
    RUN(test_sync_messages_stay_hidden_after_adoption_until_flushed);
    RUN(test_message_left_between_max_and_visible_is_shown_after_adoption);
    RUN(test_session_that_was_ended_stays_ended);
    RUN(test_sync_answer_that_waits_longer_than_the_broker_lives_times_out_all_the_same);
    RUN(test_last_turn_is_not_redone_into_a_queue_made_anew);
    RUN(test_last_turn_is_not_looked_for_in_a_retired_file);
    RUN(test_sealing_twice_commits_one_empty_turn);
    RUN(test_row_half_deleted_by_the_dead_broker_is_deleted);
    RUN(test_broken_memory_is_told_apart_from_a_death);
    RUN(test_replay_makes_the_queues_from_the_frames);
    RUN(test_replay_can_be_cut_into_pieces);
    RUN(test_replay_fills_the_offsets_of_lost_messages_with_holes);
    RUN(test_replay_of_a_log_whose_beginning_was_retired_begins_at_its_first_offset);
    RUN(test_replay_refuses_a_hole_that_no_damage_explains);
    RUN(test_replay_stops_at_zeros_and_at_damage);
    RUN(test_replay_puts_prepared_and_rolled_back_messages_into_no_queue);
    return 0;
}
