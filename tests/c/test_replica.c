/* replica.h: a slave copies its master byte for byte, believes no frame that does not hold, and says what it needs;
 * the master confirms what its slaves have. */
#define _GNU_SOURCE
#include "replica_pair.h"

#include <sys/socket.h>

#define FILE_SIZE (1u << 16)
#define FILES 4u
#define BLOCKS 64u

struct bench {
    struct fixture *master;
    struct fixture *slave;
    struct shmq_replica_source source;
    struct shmq_lane_writer w[2];
    uint32_t rows[3], generations[3];
};

static struct bench bench_open(void)
{
    struct bench b = {0};
    b.master = fixture_open(FILE_SIZE, FILES, BLOCKS);
    b.slave = fixture_open(FILE_SIZE, FILES, BLOCKS);
    b.source = pair_source(b.master);
    for (uint32_t i = 0; i < 3; ++i) {
        fixture_queue(b.master, "t", i, 0, &b.rows[i], &b.generations[i]);
    }
    for (uint32_t i = 0; i < 2; ++i) {
        fixture_attach(b.master, i, 1, 1u << 15, 256);
        fixture_writer(b.master, i, 0, &b.w[i]);
    }
    return b;
}

static void bench_close(struct bench *b)
{
    fixture_close(b->master);
    fixture_close(b->slave);
}

static void put(struct bench *b, uint32_t who, uint32_t queue, uint32_t size)
{
    CHECK(truth_put(&b->w[who], who * SHMQ_LANE_MAX, b->rows[queue], b->generations[queue], size, "TAGS\001a\002",
                    SHMQ_RECORD_WAIT) >= 0);
    (void)shmq_lane_publish(&b->w[who]);
}

static void turn(struct bench *b)
{
    while (shmq_turn_run(&b->master->append, 1700000000123, 1) != 0) {
    }
    (void)shmq_turn_settle(&b->master->append, 1);
    for (uint32_t i = 0; i < 2; ++i) {
        shmq_lane_release(&b->w[i], b->w[i].sequence);
    }
}

static void test_slave_copies_the_master_byte_for_byte_over_files_and_blocks(void)
{
    struct bench b = bench_open();
    uint64_t seed = check_seed();
    for (uint32_t i = 0; i < 700; ++i) {
        put(&b, i % 2, (uint32_t)(check_random(&seed) % 3), 8 + (uint32_t)(check_random(&seed) % 500));
        if (check_random(&seed) % 4 == 0) {
            turn(&b);
        }
        if (shmq_load_relaxed(&b.master->append.log.ready_end) - b.master->append.log.log_end < FILE_SIZE) {
            turn(&b);
            pair_catch_up(b.master, b.slave, &b.source);
            pair_make_room(b.master);
        }
        if (check_random(&seed) % 16 == 0) {
            pair_catch_up(b.master, b.slave, &b.source);
            pair_compare(b.master, b.slave);
        }
    }
    turn(&b);
    pair_catch_up(b.master, b.slave, &b.source);
    pair_compare(b.master, b.slave);
    CHECK(b.slave->append.log.log_end > 2 * FILE_SIZE);
    CHECK_EQUAL(shmq_load_relaxed(&b.slave->control->counters.messages_in), 700);
    CHECK_EQUAL(shmq_load_relaxed(&b.slave->control->append.store_timestamp), 1700000000123);
    bench_close(&b);
}

static void test_frame_larger_than_a_turn_is_copied_whole(void)
{
    struct bench b = bench_open();
    fixture_close(b.master);
    fixture_close(b.slave);
    b.master = fixture_open(1u << 21, 2, BLOCKS);
    b.slave = fixture_open(1u << 21, 2, BLOCKS);
    b.source = pair_source(b.master);
    fixture_queue(b.master, "t", 0, 0, &b.rows[0], &b.generations[0]);
    fixture_attach(b.master, 0, 1, 1u << 20, 64);
    fixture_writer(b.master, 0, 0, &b.w[0]);
    static uint8_t body[200000];
    for (uint32_t i = 0; i < 4; ++i) { /* the second does not fit behind the first in one stretch */
        truth_body(body, sizeof body, 0, (uint32_t)b.w[0].sequence);
        CHECK(fixture_put(&b.w[0], b.rows[0], b.generations[0], body, sizeof body, "", SHMQ_RECORD_WAIT) >= 0);
        (void)shmq_lane_publish(&b.w[0]);
        CHECK_EQUAL(shmq_turn_run(&b.master->append, 1, 1), 1);
    }
    pair_catch_up(b.master, b.slave, &b.source);
    pair_compare(b.master, b.slave);
    bench_close(&b);
}

/* Nothing of a turn that is not committed, though its frames lie there already. */
static void test_slave_takes_nothing_that_the_master_has_not_committed(void)
{
    struct bench b = bench_open();
    put(&b, 0, 0, 100);
    turn(&b);
    pair_catch_up(b.master, b.slave, &b.source);
    uint64_t end = b.slave->append.log.log_end;
    put(&b, 0, 0, 100);
    turn(&b);
    shmq_store_relaxed(&b.master->control->append.committed_position, end);
    CHECK_EQUAL(shmq_replica_turn(&b.slave->append, &b.source, 1), 0);
    CHECK_EQUAL(b.source.need, SHMQ_REPLICA_NEED_NOTHING);
    CHECK_EQUAL(b.slave->append.log.log_end, end);
    bench_close(&b);
}

static void test_frame_that_does_not_hold_is_never_taken_and_what_is_before_it_is(void)
{
    struct bench b = bench_open();
    for (uint32_t i = 0; i < 3; ++i) {
        put(&b, 0, 0, 100);
    }
    turn(&b);
    uint64_t end = b.master->append.log.log_end;
    uint64_t last = shmq_load_relaxed(&shmq_control_queue_row(b.master->control, b.rows[0])->last_position);
    uint8_t *damaged = b.master->hot[0] + last + 95;
    for (uint32_t bit = 0; bit < 8; ++bit) {
        *damaged ^= (uint8_t)(1u << bit);
        for (uint32_t steps = 0; b.source.need != SHMQ_REPLICA_NEED_REPAIR; ++steps) {
            CHECK(steps < 16);
            (void)shmq_replica_turn(&b.slave->append, &b.source, 1);
            if (b.source.need == SHMQ_REPLICA_NEED_FILE) {
                pair_give_file(b.master, b.slave, &b.source);
            } else if (b.source.need == SHMQ_REPLICA_NEED_QUEUE) {
                pair_give_queue(b.slave, &b.source);
            }
        }
        CHECK_EQUAL(b.slave->append.log.log_end, last);
        CHECK_EQUAL(shmq_load_relaxed(&b.slave->control->append.committed_position), last);
        CHECK_EQUAL(shmq_replica_turn(&b.slave->append, &b.source, 1), 0); /* not by asking again */
        *damaged ^= (uint8_t)(1u << bit);
        b.source.need = SHMQ_REPLICA_NEED_NOTHING;
    }
    pair_catch_up(b.master, b.slave, &b.source);
    CHECK_EQUAL(b.slave->append.log.log_end, end);
    pair_compare(b.master, b.slave);
    bench_close(&b);
}

/* Sizes that no frame has: bounded by what the master has committed, whatever they claim. */
static void test_any_size_at_the_head_of_a_frame_is_survived(void)
{
    struct bench b = bench_open();
    put(&b, 0, 0, 100);
    turn(&b);
    const uint32_t sizes[] = {0, 1, 7, 8, 90, 91, FILE_SIZE - 1, FILE_SIZE, FILE_SIZE + 1, 0x7fffffff, UINT32_MAX};
    uint8_t before[4];
    memcpy(before, b.master->hot[0], 4);
    pair_give_file(b.master, b.slave, &b.source);
    for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
        shmq_be32_store(b.master->hot[0], sizes[i]);
        b.source.need = SHMQ_REPLICA_NEED_NOTHING;
        CHECK_EQUAL(shmq_replica_turn(&b.slave->append, &b.source, 1), 0);
        CHECK_EQUAL(b.source.need, SHMQ_REPLICA_NEED_REPAIR);
    }
    memcpy(b.master->hot[0], before, 4);
    b.source.need = SHMQ_REPLICA_NEED_NOTHING;
    pair_catch_up(b.master, b.slave, &b.source);
    pair_compare(b.master, b.slave);
    bench_close(&b);
}

static void test_master_whose_log_ends_before_ours_is_not_followed(void)
{
    struct bench b = bench_open();
    put(&b, 0, 0, 100);
    turn(&b);
    pair_catch_up(b.master, b.slave, &b.source);
    shmq_store_relaxed(&b.master->control->append.committed_position, 8);
    CHECK_EQUAL(shmq_replica_turn(&b.slave->append, &b.source, 1), 0);
    CHECK_EQUAL(b.source.need, SHMQ_REPLICA_NEED_MASTER);
    bench_close(&b);
}

/* A queue that was deleted and made again begins anew; one that lost messages goes on behind the hole. */
static void test_queue_that_does_not_go_on_where_ours_ends_is_asked_for(void)
{
    struct bench b = bench_open();
    put(&b, 0, 0, 30);
    turn(&b);
    pair_catch_up(b.master, b.slave, &b.source);
    CHECK_EQUAL(shmq_append_reserve(&b.master->append, b.rows[0], 5), SHMQ_OK);
    put(&b, 0, 0, 30);
    turn(&b);
    CHECK_EQUAL(shmq_replica_turn(&b.slave->append, &b.source, 1), 0);
    CHECK_EQUAL(b.source.need, SHMQ_REPLICA_NEED_QUEUE);
    CHECK_EQUAL(b.source.view.queue_offset, 5);
    pair_give_queue(b.slave, &b.source);
    CHECK_EQUAL(shmq_replica_turn(&b.slave->append, &b.source, 1), 1);
    uint32_t row = truth_row(b.slave, &b.source.view);
    CHECK_EQUAL(b.slave->append.rows[row].next_queue_offset, 6);
    bench_close(&b);
}

static void test_slave_without_room_waits_and_goes_on(void)
{
    struct bench b = bench_open();
    fixture_close(b.slave);
    b.slave = fixture_open(FILE_SIZE, 2, 3); /* two blocks */
    b.source = pair_source(b.master);
    for (uint32_t i = 0; i < 2 * SHMQ_BLOCK_ENTRIES + 1; ++i) {
        put(&b, 0, 0, 8);
        turn(&b);
    }
    for (uint32_t steps = 0; b.slave->append.blocked == 0; ++steps) {
        CHECK(steps < 64);
        (void)shmq_replica_turn(&b.slave->append, &b.source, 1);
        if (b.source.need == SHMQ_REPLICA_NEED_FILE) {
            pair_give_file(b.master, b.slave, &b.source);
        } else if (b.source.need == SHMQ_REPLICA_NEED_QUEUE) {
            pair_give_queue(b.slave, &b.source);
        }
    }
    CHECK_EQUAL(b.slave->append.blocked, (uint32_t)-SHMQ_ARENA_FULL);
    uint64_t committed = shmq_load_relaxed(&b.slave->control->append.committed_position);
    CHECK_EQUAL(committed, b.slave->append.log.log_end);
    CHECK(committed < b.master->append.log.log_end);
    CHECK_EQUAL(shmq_replica_ready(&b.slave->append, &b.source), 0); /* it may sleep meanwhile */
    pair_compare(b.master, b.slave);
    bench_close(&b);
}

/* ---- the master's side ------------------------------------------------------------------------------ */

static void replica_at(struct fixture *slave, uint64_t committed, uint64_t flushed)
{
    shmq_store_relaxed(&slave->control->append.committed_position, committed);
    shmq_store_relaxed(&slave->control->flush.flushed_position, flushed);
}

static uint64_t confirmed(const struct bench *b)
{
    return shmq_load_relaxed(&b->master->control->replica.confirmed_position);
}

static void test_master_confirms_the_least_of_all_in_sync_or_what_enough_of_them_have(void)
{
    struct bench b = bench_open();
    struct fixture *other = fixture_open(FILE_SIZE, 2, BLOCKS);
    for (uint32_t i = 0; i < 4; ++i) {
        put(&b, 0, 0, 100);
    }
    turn(&b);
    uint64_t end = b.master->append.log.log_end;
    struct shmq_replica_set set = {.limit = 2};
    set.replicas[0] = (struct shmq_replica){.control = b.slave->control, .is_in_sync = 1};
    set.replicas[1] = (struct shmq_replica){.control = other->control, .is_in_sync = 1};
    replica_at(b.slave, end / 2, end / 4);
    replica_at(other, end, 0);
    CHECK_EQUAL(shmq_replica_set_confirm(&b.master->append, &set), 0);
    CHECK_EQUAL(confirmed(&b), 0); /* nobody asked for it */
    set.is_confirming = 1;
    CHECK_EQUAL(shmq_replica_set_confirm(&b.master->append, &set), 1);
    CHECK_EQUAL(confirmed(&b), end / 2);
    set.needed = 1;
    CHECK_EQUAL(shmq_replica_set_confirm(&b.master->append, &set), 1);
    CHECK_EQUAL(confirmed(&b), end);
    put(&b, 0, 0, 100);
    turn(&b);
    end = b.master->append.log.log_end;
    set.needed = 3; /* more than there are: nothing is confirmed */
    replica_at(b.slave, end, 0);
    replica_at(other, end, 0);
    CHECK_EQUAL(shmq_replica_set_confirm(&b.master->append, &set), 0);
    set.needed = 0;
    set.replicas[0].is_in_sync = set.replicas[1].is_in_sync = 0;
    CHECK_EQUAL(shmq_replica_set_confirm(&b.master->append, &set), 1); /* alone: what it has is confirmed */
    CHECK_EQUAL(confirmed(&b), end);
    fixture_close(other);
    bench_close(&b);
}

static void test_position_beyond_the_masters_log_is_not_believed_and_none_goes_back(void)
{
    struct bench b = bench_open();
    put(&b, 0, 0, 100);
    turn(&b);
    uint64_t end = b.master->append.log.log_end;
    struct shmq_replica_set set = {.limit = 1, .is_confirming = 1};
    set.replicas[0] = (struct shmq_replica){.control = b.slave->control, .is_in_sync = 1};
    replica_at(b.slave, end + 1, 0);
    CHECK_EQUAL(shmq_replica_set_confirm(&b.master->append, &set), 0);
    replica_at(b.slave, UINT64_MAX, 0);
    CHECK_EQUAL(shmq_replica_set_confirm(&b.master->append, &set), 0);
    replica_at(b.slave, end, 0);
    CHECK_EQUAL(shmq_replica_set_confirm(&b.master->append, &set), 1);
    replica_at(b.slave, 1, 0);
    CHECK_EQUAL(shmq_replica_set_confirm(&b.master->append, &set), 0);
    CHECK_EQUAL(confirmed(&b), end);
    bench_close(&b);
}

static void test_send_that_waits_for_a_replica_is_done_once_the_slave_has_it(void)
{
    struct bench b = bench_open();
    shmq_append_set_row(&b.master->append, b.rows[1], SHMQ_ROW_ACTIVE, SHMQ_ROW_REPLICA);
    struct shmq_replica_set set = {.limit = 1, .is_confirming = 1};
    set.replicas[0] = (struct shmq_replica){.control = b.slave->control, .is_in_sync = 1};
    put(&b, 0, 1, 40);
    while (shmq_turn_run(&b.master->append, 1, 1) != 0) {
    }
    (void)shmq_replica_set_confirm(&b.master->append, &set);
    (void)shmq_turn_settle(&b.master->append, 1);
    const struct shmq_queue_row *queue = shmq_control_queue_row(b.master->control, b.rows[1]);
    struct shmq_completion done;
    CHECK_EQUAL(shmq_load_relaxed(&queue->visible_max), 0);
    CHECK_EQUAL(shmq_lane_completion(&b.w[0], 0, &done), SHMQ_EMPTY);
    CHECK_EQUAL(shmq_replica_set_ready(&b.master->append, &set), 0); /* it may sleep */
    /* the slave has the same level: it shows nothing that is not confirmed */
    uint32_t row, generation;
    fixture_queue(b.slave, "t", 1, SHMQ_ROW_REPLICA, &row, &generation);
    pair_catch_up(b.master, b.slave, &b.source);
    const struct shmq_queue_row *copy = shmq_control_queue_row(b.slave->control, row);
    CHECK_EQUAL(shmq_load_relaxed(&copy->max_queue_offset), 1);
    CHECK_EQUAL(shmq_load_relaxed(&copy->visible_max), 0);
    CHECK_EQUAL(shmq_replica_set_ready(&b.master->append, &set), 1);
    CHECK_EQUAL(shmq_replica_set_confirm(&b.master->append, &set), 1);
    CHECK_EQUAL(shmq_turn_settle(&b.master->append, 2), 1);
    CHECK_EQUAL(shmq_load_relaxed(&queue->visible_max), 1);
    CHECK_EQUAL(shmq_lane_completion(&b.w[0], 0, &done), SHMQ_OK);
    CHECK_EQUAL(done.final_status, 0);
    CHECK_EQUAL(shmq_replica_ready(&b.slave->append, &b.source), 1);
    shmq_replica_follow_confirmed(&b.slave->append, &b.source);
    CHECK_EQUAL(shmq_turn_settle(&b.slave->append, 2), 1);
    CHECK_EQUAL(shmq_load_relaxed(&copy->visible_max), 1);
    bench_close(&b);
}

/* Each wakes the other once a sleep, and only for something. */
static void test_each_side_wakes_the_other_once_for_each_sleep(void)
{
    struct bench b = bench_open();
    int ends[2];
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    struct shmq_replica_set set = {.limit = 1, .is_confirming = 1};
    set.replicas[0] =
        (struct shmq_replica){.control = b.slave->control, .is_in_sync = 1, .socket = (uint32_t)ends[0] + 1};
    uint8_t bytes[8];
    shmq_replica_set_tell(&set, 1); /* it is awake */
    CHECK_EQUAL(recv(ends[1], bytes, sizeof bytes, MSG_DONTWAIT), -1);
    CHECK_EQUAL(shmq_replica_sleep(&b.slave->append, &b.source), 1);
    put(&b, 0, 0, 40);
    turn(&b);
    shmq_replica_set_tell(&set, 0); /* nothing to show: it asked for none */
    CHECK_EQUAL(recv(ends[1], bytes, sizeof bytes, MSG_DONTWAIT), -1);
    shmq_replica_set_tell(&set, 1);
    shmq_replica_set_tell(&set, 1);
    CHECK_EQUAL(recv(ends[1], bytes, sizeof bytes, MSG_DONTWAIT), 1);
    shmq_append_wake(&b.slave->append);
    CHECK_EQUAL(shmq_replica_sleep(&b.slave->append, &b.source), 0); /* there is work */
    pair_catch_up(b.master, b.slave, &b.source);
    CHECK_EQUAL(shmq_replica_sleep(&b.slave->append, &b.source), 1);
    put(&b, 0, 0, 40);
    turn(&b);
    shmq_replica_set_tell(&set, 1);
    CHECK_EQUAL(recv(ends[1], bytes, sizeof bytes, MSG_DONTWAIT), 1);
    close(ends[0]);
    close(ends[1]);
    bench_close(&b);
}

int main(void)
{
    RUN(test_slave_copies_the_master_byte_for_byte_over_files_and_blocks);
    RUN(test_frame_larger_than_a_turn_is_copied_whole);
    RUN(test_slave_takes_nothing_that_the_master_has_not_committed);
    RUN(test_frame_that_does_not_hold_is_never_taken_and_what_is_before_it_is);
    RUN(test_any_size_at_the_head_of_a_frame_is_survived);
    RUN(test_master_whose_log_ends_before_ours_is_not_followed);
    RUN(test_queue_that_does_not_go_on_where_ours_ends_is_asked_for);
    RUN(test_slave_without_room_waits_and_goes_on);
    RUN(test_master_confirms_the_least_of_all_in_sync_or_what_enough_of_them_have);
    RUN(test_position_beyond_the_masters_log_is_not_believed_and_none_goes_back);
    RUN(test_send_that_waits_for_a_replica_is_done_once_the_slave_has_it);
    RUN(test_each_side_wakes_the_other_once_for_each_sleep);
    return 0;
}
