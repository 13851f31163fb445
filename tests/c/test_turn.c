/* turn.h: what a turn takes, refuses, commits and shows, and in which order it answers. Deaths inside a turn are in
 * test_death_turn.c. */
#define _GNU_SOURCE
#include "store_truth.h"

#define FILE_SIZE (1u << 20)
#define CAPACITY (1u << 18)
#define COMPLETIONS 256u
#define MS 1000000u

struct bench {
    struct fixture *f;
    struct shmq_lane_writer w[4]; /* sessions 0 to 3 */
    uint32_t row, generation;     /* topic "t", queue 0, ASYNC */
    uint64_t now_ns;
};

static struct bench bench_open(void)
{
    struct bench b = {0};
    b.f = fixture_open(FILE_SIZE, 3, 64);
    b.now_ns = 1000000000u;
    fixture_queue(b.f, "t", 0, 0, &b.row, &b.generation);
    for (uint32_t i = 0; i < 4; ++i) {
        fixture_attach(b.f, i, 1, CAPACITY, COMPLETIONS);
        fixture_writer(b.f, i, 0, &b.w[i]);
    }
    return b;
}

static void bench_close(struct bench *b)
{
    struct truth *truth = malloc(sizeof *truth);
    truth_check(b->f, 0, 0, truth);
    for (uint32_t i = 0; i < 4; ++i) {
        truth_completions(truth, &b->w[i], i * SHMQ_LANE_MAX);
    }
    free(truth);
    fixture_close(b->f);
}

static uint32_t turn(struct bench *b)
{
    uint32_t taken = shmq_turn_run(&b->f->append, 1700000000123, b->now_ns);
    (void)shmq_turn_settle(&b->f->append, b->now_ns);
    return taken;
}

static struct shmq_queue_row *queue(struct bench *b, uint32_t row)
{
    return shmq_control_queue_row(b->f->control, row);
}

static int64_t put(struct bench *b, uint32_t who, uint32_t row, uint32_t generation, uint16_t flags)
{
    int64_t sequence = truth_put(&b->w[who], who * SHMQ_LANE_MAX, row, generation, 40, "TAGS\001a\002", flags);
    (void)shmq_lane_publish(&b->w[who]);
    return sequence;
}

static int completion(struct bench *b, uint32_t who, int64_t sequence, struct shmq_completion *out)
{
    memset(out, 0, sizeof *out);
    return shmq_lane_completion(&b->w[who], (uint64_t)sequence, out);
}

static void flush_to(struct bench *b, uint64_t position)
{
    shmq_store_release(&b->f->control->flush.flushed_position, position);
}

static void confirm_to(struct bench *b, uint64_t position)
{
    shmq_store_release(&b->f->control->replica.confirmed_position, position);
}

/* ---- what is taken ---------------------------------------------------------------------------------- */

static void test_message_becomes_frame_entry_and_completion(void)
{
    struct bench b = bench_open();
    CHECK_EQUAL(turn(&b), 0);
    CHECK_EQUAL(put(&b, 0, b.row, b.generation, SHMQ_RECORD_WAIT), 0);
    struct shmq_completion done;
    CHECK_EQUAL(completion(&b, 0, 0, &done), SHMQ_EMPTY);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(completion(&b, 0, 0, &done), SHMQ_OK);
    CHECK_EQUAL(done.queue_offset, 0);
    CHECK_EQUAL(done.physical_offset, 0);
    struct shmq_message_view view;
    CHECK_EQUAL(shmq_message_check(b.f->hot[0], FILE_SIZE, 0, SHMQ_CHECK_RECORD_CRC, &view), SHMQ_OK);
    CHECK_EQUAL(view.total_size, done.size);
    CHECK_EQUAL(view.store_timestamp, 1700000000123);
    CHECK_EQUAL(view.born_timestamp, FIXTURE_BORN_TIMESTAMP);
    CHECK_EQUAL(view.topic_size, 1);
    CHECK_EQUAL(view.queue_id, 0);
    CHECK_BYTES(view.store_host, b.f->control->config.store_host, 8);
    CHECK_EQUAL(shmq_load_relaxed(&queue(&b, b.row)->visible_max), 1);
    CHECK_EQUAL(shmq_load_relaxed(&queue(&b, b.row)->messages_in), 1);
    CHECK_EQUAL(shmq_load_relaxed(&b.f->control->counters.messages_in), 1);
    CHECK_EQUAL(turn(&b), 0);
    bench_close(&b);
}

static void test_store_timestamp_never_goes_back(void)
{
    struct bench b = bench_open();
    const uint64_t walls[] = {5000, 4000, 0, 6000};
    const uint64_t wanted[] = {5000, 5000, 5000, 6000};
    for (uint32_t i = 0; i < 4; ++i) {
        uint64_t position = b.f->append.log.log_end;
        put(&b, 0, b.row, b.generation, 0);
        CHECK_EQUAL(shmq_turn_run(&b.f->append, walls[i], b.now_ns), 1);
        struct shmq_message_view view;
        CHECK_EQUAL(shmq_message_check(b.f->hot[0] + position, FILE_SIZE, position, 0, &view), SHMQ_OK);
        CHECK_EQUAL(view.store_timestamp, wanted[i]);
        CHECK_EQUAL(shmq_load_relaxed(&b.f->control->append.store_timestamp), wanted[i]);
    }
    bench_close(&b);
}

static void test_fields_a_client_may_not_choose_are_masked(void)
{
    struct bench b = bench_open();
    fixture_service(b.f, 1, 5);
    for (uint32_t who = 0; who < 2; ++who) {
        uint64_t position = b.f->append.log.log_end;
        uint8_t body[16];
        truth_body(body, sizeof body, who * SHMQ_LANE_MAX, (uint32_t)b.w[who].sequence);
        struct shmq_record record = fixture_record(b.row, b.generation, sizeof body, 0, 0);
        record.sys_flag = (int32_t)(0x7fffffffu & ~SHMQ_SYS_FLAG_TRANSACTION_PREPARED);
        record.reconsume_times = 7;
        record.flag = -3;
        CHECK_EQUAL(fixture_put_record(&b.w[who], &record, body, ""), 0);
        (void)shmq_lane_publish(&b.w[who]);
        CHECK_EQUAL(turn(&b), 1);
        struct shmq_message_view view;
        CHECK_EQUAL(shmq_message_check(b.f->hot[0] + position, FILE_SIZE, position, 0, &view), SHMQ_OK);
        CHECK_EQUAL(view.sys_flag, who == 0 ? 0x703u : 0x7cbu); /* compression and tags; + transaction, batch */
        CHECK_EQUAL(view.reconsume_times, who == 0 ? 0 : 7);
        CHECK_EQUAL(view.flag, -3);
        CHECK_EQUAL(view.prepared_transaction_offset, 0);
    }
    bench_close(&b);
}

static void test_large_body_is_taken_from_the_chunk_memory(void)
{
    struct bench b = bench_open();
    fixture_chunk(b.f, 0, SHMQ_CHUNK_DATA_PLACE + 100000);
    uint8_t *at = b.f->chunk[0] + SHMQ_CHUNK_DATA_PLACE + 5000;
    truth_body(at, 90000, 0, 0);
    struct shmq_record record = fixture_record(b.row, b.generation, 0, 7, 0);
    record.kind = SHMQ_RECORD_LARGE;
    record.body_size = 90000;
    record.chunk_place = 5000;
    CHECK_EQUAL(fixture_put_record(&b.w[0], &record, NULL, "TAGS\001a\002"), 0);
    (void)shmq_lane_publish(&b.w[0]);
    CHECK_EQUAL(turn(&b), 1);
    struct shmq_completion done;
    CHECK_EQUAL(completion(&b, 0, 0, &done), SHMQ_OK);
    CHECK_EQUAL(done.size, shmq_message_size(1, 90000, 7 + SHMQ_CRC_PROPERTY_SIZE));
    bench_close(&b);
}

static void test_scheduled_message_carries_its_due_time(void)
{
    struct bench b = bench_open();
    uint32_t row, generation;
    fixture_queue(b.f, "SCHEDULE_TOPIC_XXXX", 1, SHMQ_ROW_SCHEDULE, &row, &generation);
    const struct {
        const char *properties;
        int64_t tags_code;
    } cases[] = {
        {"DELAY\0011\002", 1700000000123 + 1000},
        {"DELAY\0012\002", 1700000000123 + 5000},
        {"DELAY\00199\002", 1700000000123 + 5000}, /* beyond the last level: the last level */
        {"DELAY\001x\002", 0},
        {"DELAY\0010\002", 0},
        {"TAGS\001a\002", 97},
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        CHECK(fixture_put(&b.w[0], row, generation, "12345678", 8, cases[i].properties, 0) >= 0);
        (void)shmq_lane_publish(&b.w[0]);
        CHECK_EQUAL(turn(&b), 1);
        struct shmq_cursor cursor = {0};
        struct shmq_found found;
        CHECK_EQUAL(shmq_consume_queue_read(b.f->arena, 64, queue(&b, row), row, generation, i, 1, &cursor,
                                            &found), 1);
        CHECK_EQUAL(found.tags_code, cases[i].tags_code);
    }
    fixture_close(b.f);
}

/* A store with the queues of two levels, and one topic of its own. */
static struct bench delay_bench(uint32_t *row, uint32_t *generation, uint32_t *levels)
{
    struct bench b = bench_open();
    uint32_t ignored;
    fixture_queue(b.f, "orders", 1234567890, SHMQ_ROW_FLUSH, row, generation);
    fixture_queue(b.f, "SCHEDULE_TOPIC_XXXX", 0, SHMQ_ROW_SCHEDULE, &levels[0], &ignored);
    fixture_queue(b.f, "SCHEDULE_TOPIC_XXXX", 1, SHMQ_ROW_SCHEDULE, &levels[1], &ignored);
    return b;
}

static int64_t put_delayed(struct bench *b, uint32_t row, uint32_t generation, uint16_t level,
                           const char *properties)
{
    struct shmq_record record = fixture_record(row, generation, 8, (uint32_t)strlen(properties), SHMQ_RECORD_WAIT);
    record.delay_level = level;
    int64_t sequence = fixture_put_record(&b->w[0], &record, "12345678", properties);
    (void)shmq_lane_publish(&b->w[0]);
    return sequence;
}

static void test_delayed_message_goes_to_the_queue_of_its_level(void)
{
    uint32_t row, generation, levels[2];
    struct bench b = delay_bench(&row, &generation, levels);
    const struct {
        const char *properties;
        uint16_t level;
        uint32_t queue_id;
        int64_t due_ms;
    } cases[] = {
        {"DELAY\0011\002", 1, 0, 1000},
        {"TAGS\001a\002DELAY\0012\002", 2, 1, 5000},
        {"DELAY\00164\002", 64, 1, 5000}, /* beyond the last level: the last level */
    };
    static const char own[] = "REAL_TOPIC\001orders\002REAL_QID\0011234567890\002";
    uint64_t offsets[2] = {0, 0};
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        uint64_t position = b.f->append.log.log_end;
        int64_t sequence = put_delayed(&b, row, generation, cases[i].level, cases[i].properties);
        CHECK_EQUAL(turn(&b), 1);
        struct shmq_message_view view;
        CHECK_EQUAL(shmq_message_check(b.f->hot[0] + position, FILE_SIZE, position, SHMQ_CHECK_RECORD_CRC, &view),
                    SHMQ_OK);
        CHECK_EQUAL(view.topic_size, 19);
        CHECK_BYTES(view.topic, "SCHEDULE_TOPIC_XXXX", 19);
        CHECK_EQUAL(view.queue_id, cases[i].queue_id);
        CHECK_EQUAL(view.queue_offset, offsets[cases[i].queue_id]);
        size_t size = strlen(cases[i].properties);
        CHECK_EQUAL(view.properties_size, size + sizeof own - 1 + SHMQ_CRC_PROPERTY_SIZE);
        CHECK_BYTES(view.properties, cases[i].properties, size);
        CHECK_BYTES(view.properties + size, own, sizeof own - 1);
        uint32_t level_row = levels[cases[i].queue_id];
        struct shmq_cursor cursor = {0};
        struct shmq_found found;
        CHECK_EQUAL(shmq_consume_queue_read(b.f->arena, 64, queue(&b, level_row), level_row, 1,
                                            offsets[cases[i].queue_id]++, 1, &cursor, &found), 1);
        CHECK_EQUAL(found.tags_code, 1700000000123 + cases[i].due_ms);
        /* Its sender waits for the level of the topic that it was sent to. */
        struct shmq_completion done;
        CHECK_EQUAL(completion(&b, 0, sequence, &done), SHMQ_EMPTY);
        flush_to(&b, b.f->append.log.log_end);
        CHECK_EQUAL(turn(&b), 0);
        CHECK_EQUAL(completion(&b, 0, sequence, &done), SHMQ_OK);
        CHECK_EQUAL(done.size, view.total_size);
        CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->max_queue_offset), 0);
    }
    fixture_close(b.f);
}

/* ---- what is refused -------------------------------------------------------------------------------- */

/* The record is answered with `status`, nothing of it is in the log, and the next message is in order. */
static void expect_refused(struct bench *b, uint32_t who, const struct shmq_record *record, const char *properties,
                           int status)
{
    static const uint8_t body[1 << 15];
    uint64_t end = b->f->append.log.log_end;
    uint64_t next = b->f->append.rows[b->row].next_queue_offset;
    uint64_t refused = shmq_load_relaxed(&b->f->control->counters.records_refused);
    int64_t sequence = fixture_put_record(&b->w[who], record, body, properties);
    CHECK(sequence >= 0);
    (void)shmq_lane_publish(&b->w[who]);
    CHECK_EQUAL(turn(b), 1);
    struct shmq_completion done;
    CHECK_EQUAL(completion(b, who, sequence, &done), SHMQ_OK);
    CHECK_EQUAL(done.status, -status);
    CHECK_EQUAL(done.final_status, -status);
    CHECK_EQUAL(done.size, 0);
    CHECK_EQUAL(b->f->append.log.log_end, end);
    CHECK_EQUAL(shmq_load_relaxed(&b->f->control->append.committed_position), end);
    CHECK_EQUAL(shmq_load_relaxed(&b->f->control->counters.records_refused), refused + 1);
    sequence = put(b, who, b->row, b->generation, 0);
    CHECK_EQUAL(turn(b), 1);
    CHECK_EQUAL(completion(b, who, sequence, &done), SHMQ_OK);
    CHECK_EQUAL(done.status, 0);
    CHECK_EQUAL(done.queue_offset, next);
    shmq_lane_release(&b->w[who], b->w[who].sequence);
}

static void test_delayed_message_is_refused_where_it_cannot_be_delayed(void)
{
    uint32_t row, generation, levels[2];
    struct bench b = delay_bench(&row, &generation, levels);
    struct shmq_completion done;
    const struct {
        uint32_t row;
        uint16_t level;
        const char *properties;
        int status;
    } cases[] = {
        {row, 1, "TAGS\001a\002", SHMQ_ILLEGAL},       /* its properties must say so, too */
        {row, 1, "DELAY\0012\002", SHMQ_ILLEGAL},      /* and the same level */
        {row, 1, "DELAY\0011\002REAL_TOPIC\001x\002", SHMQ_RESERVED},
        {levels[0], 1, "DELAY\0011\002", SHMQ_ILLEGAL}, /* a level is not delayed itself */
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        uint64_t end = b.f->append.log.log_end;
        int64_t sequence = put_delayed(&b, cases[i].row, 1, cases[i].level, cases[i].properties);
        CHECK_EQUAL(turn(&b), 1);
        CHECK_EQUAL(completion(&b, 0, sequence, &done), SHMQ_OK);
        CHECK_EQUAL(done.status, -cases[i].status);
        CHECK_EQUAL(b.f->append.log.log_end, end);
    }
    b.f->append.delay_level_count = 0;
    int64_t sequence = put_delayed(&b, row, generation, 1, "DELAY\0011\002");
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(completion(&b, 0, sequence, &done), SHMQ_OK);
    CHECK_EQUAL(done.status, -SHMQ_NO_TOPIC);
    fixture_close(b.f);
}

static void test_queue_without_a_grant_is_refused(void)
{
    struct bench b = bench_open();
    uint32_t other, generation;
    fixture_queue(b.f, "t", 1, 0, &other, &generation);
    struct shmq_record record = fixture_record(other, generation, 8, 0, 0);
    b.f->grants[other / 64] &= ~(UINT64_C(1) << (other % 64));
    expect_refused(&b, 0, &record, "", SHMQ_NOT_GRANTED);
    record.queue_row = other + 1; /* beyond the rows there are */
    expect_refused(&b, 0, &record, "", SHMQ_NOT_GRANTED);
    record.queue_row = UINT32_MAX;
    expect_refused(&b, 0, &record, "", SHMQ_NOT_GRANTED);
    record.queue_row = other;
    b.f->grants[other / 64] |= UINT64_C(1) << (other % 64);
    shmq_append_grant(&b.f->append, 1, b.f->grants, other + 1);
    shmq_append_grant(&b.f->append, 2, b.f->grants, 0); /* nothing granted yet */
    struct shmq_record own = fixture_record(b.row, b.generation, 8, 0, 0);
    uint8_t body[8];
    truth_body(body, sizeof body, 2 * SHMQ_LANE_MAX, 0);
    CHECK(fixture_put_record(&b.w[2], &own, body, "") >= 0);
    (void)shmq_lane_publish(&b.w[2]);
    CHECK_EQUAL(turn(&b), 1);
    struct shmq_completion done;
    CHECK_EQUAL(completion(&b, 2, 0, &done), SHMQ_OK);
    CHECK_EQUAL(done.status, -SHMQ_NOT_GRANTED);
    bench_close(&b);
}

static void test_stale_handle_is_refused(void)
{
    struct bench b = bench_open();
    uint32_t row, old, now;
    fixture_queue(b.f, "gone", 0, 0, &row, &old);
    struct shmq_record record = fixture_record(row, old, 8, 0, 0);
    shmq_append_delete_row(&b.f->append, row);
    expect_refused(&b, 0, &record, "", SHMQ_NO_TOPIC);
    record.row_generation = old + 1; /* the free row's own */
    expect_refused(&b, 0, &record, "", SHMQ_NO_TOPIC);
    uint32_t again;
    fixture_queue(b.f, "another", 0, 0, &again, &now);
    CHECK_EQUAL(again, row);
    record.row_generation = old;
    expect_refused(&b, 0, &record, "", SHMQ_NO_TOPIC);
    record.row_generation = now + 1;
    expect_refused(&b, 0, &record, "", SHMQ_NO_TOPIC);
    bench_close(&b);
}

static void test_read_only_queue_takes_messages_from_services_only(void)
{
    struct bench b = bench_open();
    uint32_t row, generation;
    fixture_queue(b.f, "t", 1, 0, &row, &generation);
    fixture_service(b.f, 1, 0);
    shmq_append_set_row(&b.f->append, row, SHMQ_ROW_READ_ONLY, 0);
    struct shmq_record record = fixture_record(row, generation, 8, 0, 0);
    expect_refused(&b, 0, &record, "", SHMQ_NOT_WRITABLE);
    CHECK(put(&b, 1, row, generation, 0) >= 0);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(b.f->append.rows[row].next_queue_offset, 1);
    shmq_append_set_row(&b.f->append, row, SHMQ_ROW_ACTIVE, 0);
    CHECK(put(&b, 0, row, generation, 0) >= 0);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(b.f->append.rows[row].next_queue_offset, 2);
    bench_close(&b);
}

static void test_body_over_the_limit_is_refused(void)
{
    struct bench b = bench_open();
    b.f->control->config.message_size_max = 1000;
    struct shmq_record record = fixture_record(b.row, b.generation, 1001, 0, 0);
    expect_refused(&b, 0, &record, "", SHMQ_TOO_LARGE);
    fixture_chunk(b.f, 0, 4u << 20);
    b.f->control->config.message_size_max = 4u << 20;
    record = fixture_record(b.row, b.generation, 0, 0, 0);
    record.kind = SHMQ_RECORD_LARGE;
    record.body_size = FILE_SIZE - 119; /* frame + BLANK is a byte more than a file */
    CHECK_EQUAL(shmq_message_size(1, record.body_size, SHMQ_CRC_PROPERTY_SIZE) + SHMQ_BLANK_ROOM, FILE_SIZE + 1);
    expect_refused(&b, 0, &record, "", SHMQ_TOO_LARGE);
    bench_close(&b);
}

static void test_properties_over_the_limit_are_refused(void)
{
    struct bench b = bench_open();
    static char properties[SHMQ_PROPERTIES_SIZE_MAX + 1];
    const uint32_t most = SHMQ_PROPERTIES_SIZE_MAX - SHMQ_CRC_PROPERTY_SIZE;
    memset(properties, 'x', most);
    properties[1] = SHMQ_PROPERTY_NAME_END;
    properties[most - 1] = SHMQ_PROPERTY_VALUE_END;
    struct shmq_record record = fixture_record(b.row, b.generation, 8, most + 1, 0);
    expect_refused(&b, 0, &record, properties, SHMQ_PROPERTIES_TOO_LARGE);
    uint8_t body[8];
    truth_body(body, sizeof body, 0, (uint32_t)b.w[0].sequence);
    record = fixture_record(b.row, b.generation, 8, most, 0);
    int64_t sequence = fixture_put_record(&b.w[0], &record, body, properties);
    (void)shmq_lane_publish(&b.w[0]);
    CHECK_EQUAL(turn(&b), 1);
    struct shmq_completion done;
    CHECK_EQUAL(completion(&b, 0, sequence, &done), SHMQ_OK);
    CHECK_EQUAL(done.status, 0);
    bench_close(&b);
}

static void test_malformed_properties_are_refused(void)
{
    struct bench b = bench_open();
    static const char *const bad[] = {"x", "\001y\002", "x\001\002", "x\001y", "x\001y\002z", "x\001y\002\002", "\002"};
    for (uint32_t i = 0; i < sizeof bad / sizeof *bad; ++i) {
        struct shmq_record record = fixture_record(b.row, b.generation, 8, (uint32_t)strlen(bad[i]), 0);
        expect_refused(&b, 0, &record, bad[i], SHMQ_ILLEGAL);
    }
    struct shmq_record record = fixture_record(b.row, b.generation, 8, 6, 0);
    expect_refused(&b, 0, &record, "a\001b\0c\002", SHMQ_ILLEGAL); /* NUL */
    bench_close(&b);
}

static void test_reserved_property_needs_its_grant(void)
{
    struct bench b = bench_open();
    const char *properties = "REAL_TOPIC\001x\002";
    struct shmq_record record = fixture_record(b.row, b.generation, 8, (uint32_t)strlen(properties), 0);
    expect_refused(&b, 0, &record, properties, SHMQ_RESERVED);
    expect_refused(&b, 0, &record, "__CRC32#\001ab\002x", SHMQ_RESERVED);
    fixture_service(b.f, 1, 0);
    uint8_t body[8];
    truth_body(body, sizeof body, SHMQ_LANE_MAX, 0);
    CHECK_EQUAL(fixture_put_record(&b.w[1], &record, body, properties), 0);
    (void)shmq_lane_publish(&b.w[1]);
    CHECK_EQUAL(turn(&b), 1);
    struct shmq_completion done;
    CHECK_EQUAL(completion(&b, 1, 0, &done), SHMQ_OK);
    CHECK_EQUAL(done.status, 0);
    bench_close(&b);
}

static void test_prepared_message_of_a_service_goes_into_no_queue(void)
{
    struct bench b = bench_open();
    fixture_service(b.f, 1, 0);
    struct shmq_record record = fixture_record(b.row, b.generation, 8, 0, 0);
    record.sys_flag = (int32_t)SHMQ_SYS_FLAG_TRANSACTION_PREPARED;
    expect_refused(&b, 1, &record, "", SHMQ_ILLEGAL);
    record.sys_flag = (int32_t)SHMQ_SYS_FLAG_TRANSACTION_ROLLBACK;
    expect_refused(&b, 1, &record, "", SHMQ_ILLEGAL);
    bench_close(&b);
}

/* ---- sessions that end ------------------------------------------------------------------------------ */

static void test_broken_record_ends_its_session_and_nobody_elses(void)
{
    struct bench b = bench_open();
    for (uint32_t i = 0; i < 3; ++i) {
        put(&b, 0, b.row, b.generation, 0);
        put(&b, 1, b.row, b.generation, 0);
    }
    struct shmq_record bad = fixture_record(b.row, b.generation, 8, 0, 0);
    uint8_t *at;
    CHECK_EQUAL(shmq_lane_claim(&b.w[0], bad.size, &at), SHMQ_OK);
    bad.kind = 77;
    memcpy(at, &bad, sizeof bad);
    int64_t last = (int64_t)shmq_lane_commit(&b.w[0], bad.size);
    put(&b, 0, b.row, b.generation, 0); /* behind it: dropped */
    CHECK_EQUAL(turn(&b), 6);
    struct shmq_completion done;
    for (int64_t i = 0; i < last; ++i) {
        CHECK_EQUAL(completion(&b, 0, i, &done), SHMQ_OK); /* what was taken before it counts */
        CHECK_EQUAL(done.status, 0);
    }
    CHECK_EQUAL(completion(&b, 0, last, &done), SHMQ_CLOSED);
    CHECK_EQUAL(completion(&b, 0, last + 1, &done), SHMQ_CLOSED);
    CHECK_EQUAL(shmq_load_relaxed32(&b.w[0].slot->ended), -SHMQ_CORRUPT);
    CHECK_EQUAL(shmq_load_relaxed(&b.f->control->counters.sessions_ended), 1);
    put(&b, 1, b.row, b.generation, 0);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(turn(&b), 0);
    CHECK_EQUAL(completion(&b, 1, 3, &done), SHMQ_OK);
    CHECK_EQUAL(shmq_load_relaxed(&b.f->control->counters.sessions_ended), 1); /* once */
    bench_close(&b);
}

static void test_impossible_tail_ends_the_session_before_anything_is_taken(void)
{
    struct bench b = bench_open();
    put(&b, 0, b.row, b.generation, 0);
    shmq_store_release(&b.w[0].lane->tail, 12345);
    CHECK_EQUAL(turn(&b), 0);
    struct shmq_completion done;
    CHECK_EQUAL(completion(&b, 0, 0, &done), SHMQ_CLOSED);
    CHECK_EQUAL(shmq_turn_ready(&b.f->append), 0);
    bench_close(&b);
}

/* A producer whose session was ended rings its bell, so that it need not wait for its own time-out. */
static void test_ended_producer_is_woken_after_its_tails_are_final(void)
{
    struct bench b = bench_open();
    put(&b, 0, b.row, b.generation, 0);
    uint8_t *at;
    struct shmq_record bad = {.size = 64, .kind = 0};
    CHECK_EQUAL(shmq_lane_claim(&b.w[0], 64, &at), SHMQ_OK);
    memcpy(at, &bad, sizeof bad);
    (void)shmq_lane_commit(&b.w[0], 64);
    (void)shmq_lane_publish(&b.w[0]);
    uint32_t seen = shmq_bell_seen(b.w[0].bell);
    shmq_sleep_begin(&b.w[0].lane->sleep_epoch);
    CHECK_EQUAL(turn(&b), 1);
    CHECK(shmq_bell_seen(b.w[0].bell) != seen);
    struct shmq_completion done;
    CHECK_EQUAL(completion(&b, 0, 0, &done), SHMQ_OK);
    CHECK_EQUAL(completion(&b, 0, 1, &done), SHMQ_CLOSED);
    bench_close(&b);
}

static void test_detached_session_leaves_the_turns_and_its_slot_serves_the_next(void)
{
    struct bench b = bench_open();
    uint32_t row, generation;
    fixture_queue(b.f, "sync", 0, SHMQ_ROW_FLUSH, &row, &generation);
    put(&b, 0, row, generation, SHMQ_RECORD_WAIT);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(b.f->append.pending_ring_count, 1);
    put(&b, 0, b.row, b.generation, 0);
    CHECK(!shmq_append_drained(&b.f->append, 0));
    CHECK_EQUAL(turn(&b), 1);
    CHECK(shmq_append_drained(&b.f->append, 0));
    shmq_append_detach(&b.f->append, 0);
    CHECK_EQUAL(b.f->append.pending_ring_count, 0);
    put(&b, 0, b.row, b.generation, 0);
    CHECK_EQUAL(turn(&b), 0);
    fixture_attach(b.f, 0, 1, CAPACITY, COMPLETIONS);
    fixture_writer(b.f, 0, 0, &b.w[0]);
    flush_to(&b, b.f->append.log.log_end);
    CHECK_EQUAL(turn(&b), 0);
    CHECK(fixture_put(&b.w[0], b.row, b.generation, "12345678", 8, "", 0) == 0);
    (void)shmq_lane_publish(&b.w[0]);
    CHECK_EQUAL(turn(&b), 1);
    struct shmq_completion done;
    CHECK_EQUAL(completion(&b, 0, 0, &done), SHMQ_OK);
    CHECK_EQUAL(done.queue_offset, 1);
    fixture_close(b.f);
}

/* ---- fairness --------------------------------------------------------------------------------------- */

static void flood(struct bench *b, uint32_t who, uint32_t body_size)
{
    while (truth_put(&b->w[who], who * SHMQ_LANE_MAX, b->row, b->generation, body_size, "", 0) >= 0) {
        shmq_lane_release(&b->w[who], b->w[who].sequence);
    }
    (void)shmq_lane_publish(&b->w[who]);
}

static void test_flooding_rings_do_not_delay_another_by_more_than_their_share(void)
{
    for (uint32_t victim = 0; victim < 4; ++victim) {
        struct bench b = bench_open();
        for (uint32_t round = 0; round < 8; ++round) {
            for (uint32_t who = 0; who < 4; ++who) {
                if (who != victim) {
                    flood(&b, who, 4000);
                }
            }
            put(&b, victim, b.row, b.generation, 0);
            uint64_t appended = shmq_load_relaxed(&b.w[victim].slot->completion_tail);
            uint64_t end = b.f->append.log.log_end;
            CHECK(turn(&b) > 3);
            /* three floods of 64 KiB each fit one turn: the fourth ring is in it */
            CHECK_EQUAL(shmq_load_relaxed(&b.w[victim].slot->completion_tail), appended + 1);
            CHECK(b.f->append.log.log_end - end <= SHMQ_TURN_BYTES_MAX + 8192);
            fixture_ready(b.f, (b.f->append.log.log_end / FILE_SIZE + 1) * FILE_SIZE);
            flush_to(&b, b.f->append.log.log_end);
        }
        fixture_close(b.f);
    }
}

/* One ring may take 64 KiB of a turn, a turn ends at 256 KiB: of N floods each is served every N/4 turns. */
static void test_every_ring_is_served_within_its_bound_of_turns(void)
{
    struct fixture *f = fixture_open(8u << 20, 3, 256);
    uint32_t row, generation;
    fixture_queue(f, "t", 0, 0, &row, &generation);
    enum { RINGS = 12 };
    struct shmq_lane_writer w[RINGS];
    uint32_t unserved[RINGS] = {0};
    for (uint32_t i = 0; i < RINGS; ++i) {
        fixture_attach(f, i, 1, CAPACITY, COMPLETIONS);
        fixture_writer(f, i, 0, &w[i]);
    }
    static uint8_t body[16384];
    for (uint32_t turns = 0; turns < 60; ++turns) {
        uint64_t before[RINGS];
        for (uint32_t i = 0; i < RINGS; ++i) {
            while (fixture_put(&w[i], row, generation, body, sizeof body, "", 0) >= 0) {
                shmq_lane_release(&w[i], w[i].sequence);
            }
            (void)shmq_lane_publish(&w[i]);
            before[i] = shmq_load_relaxed(&w[i].slot->completion_tail);
        }
        CHECK(shmq_turn_run(&f->append, 1, 1) > 0);
        for (uint32_t i = 0; i < RINGS; ++i) {
            uint64_t served = shmq_load_relaxed(&w[i].slot->completion_tail) - before[i];
            unserved[i] = served > 0 ? 0 : unserved[i] + 1;
            CHECK(unserved[i] <= RINGS / 3);
            CHECK(served * shmq_record_size(sizeof body, 0) <= SHMQ_TURN_RING_BYTES);
            shmq_lane_release(&w[i], w[i].sequence);
        }
        fixture_ready(f, (f->append.log.log_end / (8u << 20) + 1) * (8u << 20));
    }
    fixture_close(f);
}

static void test_turn_touches_no_more_rings_than_its_record_holds(void)
{
    struct fixture *f = fixture_open(FILE_SIZE, 3, 64);
    uint32_t row, generation;
    fixture_queue(f, "t", 0, 0, &row, &generation);
    enum { SESSIONS = FIXTURE_SESSIONS, RINGS = SESSIONS * SHMQ_LANE_MAX };
    static struct shmq_lane_writer w[RINGS];
    for (uint32_t i = 0; i < SESSIONS; ++i) {
        fixture_attach(f, i, SHMQ_LANE_MAX, SHMQ_PAGE, 4);
        for (uint32_t lane = 0; lane < SHMQ_LANE_MAX; ++lane) {
            fixture_writer(f, i, lane, &w[i * SHMQ_LANE_MAX + lane]);
        }
    }
    for (uint32_t i = 0; i < RINGS; ++i) {
        CHECK_EQUAL(fixture_put(&w[i], row, generation, "12345678", 8, "", 0), 0);
        (void)shmq_lane_publish(&w[i]);
    }
    CHECK_EQUAL(shmq_turn_run(&f->append, 1, 1), SHMQ_TURN_RING_MAX);
    CHECK_EQUAL(shmq_turn_run(&f->append, 1, 1), RINGS - SHMQ_TURN_RING_MAX); /* the others come first now */
    CHECK_EQUAL(shmq_turn_run(&f->append, 1, 1), 0);
    for (uint32_t i = 0; i < RINGS; ++i) {
        CHECK_EQUAL(shmq_load_relaxed(&w[i].slot->done_tail), 1);
    }
    fixture_close(f);
}

/* A ring of refused records costs the log nothing, so its bytes alone must bound its visit. */
static void test_ring_of_refused_records_is_bounded_too(void)
{
    struct bench b = bench_open();
    fixture_attach(b.f, 4, 1, CAPACITY, 4096);
    struct shmq_lane_writer w;
    fixture_writer(b.f, 4, 0, &w);
    struct shmq_record record = fixture_record(UINT32_MAX, 0, 0, 0, 0);
    for (uint32_t i = 0; i < 3000; ++i) {
        CHECK(fixture_put_record(&w, &record, "", "") >= 0);
    }
    (void)shmq_lane_publish(&w);
    put(&b, 3, b.row, b.generation, 0);
    CHECK_EQUAL(turn(&b), SHMQ_TURN_RING_RECORDS_MAX + 1);
    struct shmq_completion done;
    CHECK_EQUAL(completion(&b, 3, 0, &done), SHMQ_OK);
    CHECK_EQUAL(turn(&b), SHMQ_TURN_RING_RECORDS_MAX);
    bench_close(&b);
}

/* ---- running out ------------------------------------------------------------------------------------ */

static void test_full_log_stops_the_turn_and_goes_on_where_it_stopped(void)
{
    struct bench b = bench_open();
    shmq_store_relaxed(&b.f->append.log.ready_end, FILE_SIZE); /* only one file is ready */
    uint32_t who = 0;
    while (b.f->append.blocked == 0) {
        flood(&b, who, 4000);
        who = (who + 1) % 4;
        (void)turn(&b);
    }
    CHECK_EQUAL(b.f->append.blocked, -SHMQ_LOG_FULL);
    uint64_t end = b.f->append.log.log_end;
    CHECK(FILE_SIZE - end < 4200);
    CHECK_EQUAL(shmq_load_relaxed(&b.f->control->append.committed_position), end);
    CHECK_EQUAL(shmq_load_relaxed(&b.f->control->counters.log_full_turns), 1);
    CHECK_EQUAL(turn(&b), 0); /* nothing while it is full, and nothing is dropped */
    CHECK_EQUAL(shmq_turn_ready(&b.f->append), 0);
    CHECK_EQUAL(b.f->append.log.log_end, end);
    fixture_ready(b.f, FILE_SIZE);
    CHECK_EQUAL(b.f->append.blocked, 0);
    CHECK_EQUAL(shmq_turn_ready(&b.f->append), 1);
    uint64_t sent = 0;
    while (turn(&b) > 0) {
        ++sent;
    }
    CHECK(sent > 0);
    struct truth *truth = malloc(sizeof *truth);
    truth_read(b.f, 0, truth);
    CHECK_EQUAL(truth->blanks, 1);
    for (uint32_t i = 0; i < 4; ++i) {
        CHECK_EQUAL(truth->sent[i * SHMQ_LANE_MAX], b.w[i].sequence);
    }
    free(truth);
    bench_close(&b);
}

static void test_arena_without_blocks_stops_the_turn_and_goes_on_once_there_are_some(void)
{
    struct bench b = bench_open();
    struct shmq_arena *arena = &b.f->append.arena;
    uint32_t kept = arena->free_count - 2;
    arena->free_count = 2;
    for (uint32_t i = 0; i < 2 * SHMQ_BLOCK_ENTRIES + 5; ++i) {
        CHECK(put(&b, 0, b.row, b.generation, 0) >= 0);
        (void)turn(&b);
        shmq_lane_release(&b.w[0], b.w[0].sequence);
    }
    CHECK_EQUAL(b.f->append.blocked, -SHMQ_ARENA_FULL);
    CHECK_EQUAL(b.f->append.rows[b.row].next_queue_offset, 2 * SHMQ_BLOCK_ENTRIES);
    CHECK_EQUAL(shmq_load_relaxed(&b.f->control->counters.arena_full_turns), 1);
    CHECK_EQUAL(turn(&b), 0);
    arena->free_count += kept; /* as the binding's grow_arena does */
    b.f->append.blocked = 0;
    CHECK_EQUAL(turn(&b), 5);
    bench_close(&b);
}

/* Two queues that each need the last block: the staged need is counted, not only the blocks taken. */
static void test_staged_messages_reserve_their_blocks(void)
{
    struct bench b = bench_open();
    uint32_t row, generation;
    fixture_queue(b.f, "t", 1, 0, &row, &generation);
    struct shmq_arena *arena = &b.f->append.arena;
    uint32_t kept = arena->free_count - 1;
    arena->free_count = 1;
    put(&b, 0, b.row, b.generation, 0);
    put(&b, 0, row, generation, 0);
    put(&b, 0, b.row, b.generation, 0);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(b.f->append.blocked, -SHMQ_ARENA_FULL);
    arena->free_count += kept;
    b.f->append.blocked = 0;
    CHECK_EQUAL(turn(&b), 2);
    bench_close(&b);
}

static void test_producer_without_completion_entries_keeps_nobody_awake(void)
{
    struct bench b = bench_open();
    fixture_attach(b.f, 4, 1, CAPACITY, 4);
    struct shmq_lane_writer w;
    fixture_writer(b.f, 4, 0, &w);
    for (uint32_t i = 0; i < 6; ++i) {
        CHECK(truth_put(&w, 4 * SHMQ_LANE_MAX, b.row, b.generation, 8, "", 0) >= 0);
        w.completion_read += 1; /* counts wrongly */
    }
    (void)shmq_lane_publish(&w);
    CHECK_EQUAL(turn(&b), 4);
    CHECK_EQUAL(turn(&b), 0);
    CHECK_EQUAL(shmq_turn_ready(&b.f->append), 0);
    CHECK(shmq_append_sleep(&b.f->append));
    shmq_append_wake(&b.f->append);
    CHECK(shmq_append_drained(&b.f->append, 4));
    shmq_store_release(&w.lane->completion_read, 2); /* lets go; says so with its next record */
    CHECK(truth_put(&w, 4 * SHMQ_LANE_MAX, b.row, b.generation, 8, "", 0) >= 0);
    (void)shmq_lane_publish(&w);
    CHECK_EQUAL(shmq_turn_ready(&b.f->append), 1);
    CHECK_EQUAL(turn(&b), 2);
    bench_close(&b);
}

/* ---- levels ----------------------------------------------------------------------------------------- */

static void test_sync_message_is_seen_and_answered_only_once_flushed(void)
{
    struct bench b = bench_open();
    uint32_t row, generation;
    fixture_queue(b.f, "sync", 0, SHMQ_ROW_FLUSH, &row, &generation);
    put(&b, 0, row, generation, SHMQ_RECORD_WAIT);
    put(&b, 0, row, generation, SHMQ_RECORD_WAIT);
    CHECK_EQUAL(turn(&b), 2);
    struct shmq_completion done;
    CHECK_EQUAL(completion(&b, 0, 0, &done), SHMQ_EMPTY);
    CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->max_queue_offset), 2);
    CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->visible_max), 0);
    uint64_t first_end = b.f->append.log.log_end / 2; /* both frames have one size */
    CHECK_EQUAL(b.f->append.log.log_end % 2, 0);
    flush_to(&b, first_end - 1);
    CHECK_EQUAL(shmq_turn_ready(&b.f->append), 1); /* flushed_position moved: look */
    CHECK_EQUAL(turn(&b), 0);
    CHECK_EQUAL(shmq_turn_ready(&b.f->append), 0);
    CHECK_EQUAL(completion(&b, 0, 0, &done), SHMQ_EMPTY);
    CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->visible_max), 0);
    flush_to(&b, first_end);
    (void)turn(&b);
    CHECK_EQUAL(completion(&b, 0, 0, &done), SHMQ_OK);
    CHECK_EQUAL(done.final_status, 0);
    CHECK_EQUAL(completion(&b, 0, 1, &done), SHMQ_EMPTY);
    CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->visible_max), 1);
    CHECK_EQUAL(b.f->append.pending_row_count, 1);
    CHECK_EQUAL(b.f->append.pending_ring_count, 1);
    flush_to(&b, 2 * first_end);
    (void)turn(&b);
    CHECK_EQUAL(completion(&b, 0, 1, &done), SHMQ_OK);
    CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->visible_max), 2);
    CHECK_EQUAL(b.f->append.pending_row_count, 0);
    CHECK_EQUAL(b.f->append.pending_ring_count, 0);
    bench_close(&b);
}

static void test_replicated_message_waits_for_the_slower_of_disk_and_replica(void)
{
    struct bench b = bench_open();
    uint32_t row, generation;
    fixture_queue(b.f, "both", 0, SHMQ_ROW_FLUSH | SHMQ_ROW_REPLICA, &row, &generation);
    struct shmq_completion done;
    for (int64_t i = 0; i < 2; ++i) {
        put(&b, 0, row, generation, SHMQ_RECORD_WAIT);
        CHECK_EQUAL(turn(&b), 1);
        uint64_t end = b.f->append.log.log_end;
        (i == 0 ? flush_to : confirm_to)(&b, end);
        (void)turn(&b);
        CHECK_EQUAL(completion(&b, 0, i, &done), SHMQ_EMPTY);
        CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->visible_max), (uint64_t)i);
        (i == 0 ? confirm_to : flush_to)(&b, end);
        (void)turn(&b);
        CHECK_EQUAL(completion(&b, 0, i, &done), SHMQ_OK);
        CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->visible_max), (uint64_t)i + 1);
    }
    bench_close(&b);
}

static void test_send_that_does_not_wait_is_answered_at_once_and_seen_at_the_level(void)
{
    struct bench b = bench_open();
    uint32_t row, generation;
    fixture_queue(b.f, "sync", 0, SHMQ_ROW_FLUSH, &row, &generation);
    put(&b, 0, row, generation, 0);
    CHECK_EQUAL(turn(&b), 1);
    struct shmq_completion done;
    CHECK_EQUAL(completion(&b, 0, 0, &done), SHMQ_OK);
    CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->visible_max), 0);
    flush_to(&b, b.f->append.log.log_end);
    (void)turn(&b);
    CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->visible_max), 1);
    bench_close(&b);
}

/* In one lane, behind a send that waits for the disk: answered, and its sender woken, without waiting for it. */
static void test_send_that_does_not_wait_overtakes_one_that_does(void)
{
    struct bench b = bench_open();
    uint32_t row, generation;
    fixture_queue(b.f, "sync", 0, SHMQ_ROW_FLUSH, &row, &generation);
    put(&b, 0, row, generation, SHMQ_RECORD_WAIT);
    CHECK_EQUAL(turn(&b), 1);
    put(&b, 0, b.row, b.generation, SHMQ_RECORD_WAIT); /* an ASYNC queue has no level to wait for */
    uint32_t seen = shmq_bell_seen(b.w[0].bell);
    shmq_store_relaxed32(&b.w[0].lane->sleep_reason, SHMQ_SLEEP_DONE);
    shmq_sleep_begin(&b.w[0].lane->sleep_epoch);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(shmq_bell_seen(b.w[0].bell), seen + 1);
    shmq_sleep_end(&b.w[0].lane->sleep_epoch);
    struct shmq_completion done;
    CHECK_EQUAL(completion(&b, 0, 1, &done), SHMQ_OK);
    CHECK_EQUAL(completion(&b, 0, 0, &done), SHMQ_EMPTY);
    CHECK_EQUAL(shmq_load_relaxed(&b.w[0].slot->done_tail), 0);
    /* its entry is not given away before the earlier one is settled */
    shmq_lane_release(&b.w[0], 2);
    CHECK_EQUAL(b.w[0].completion_read, 0);
    flush_to(&b, b.f->append.log.log_end);
    (void)turn(&b);
    CHECK_EQUAL(shmq_load_relaxed(&b.w[0].slot->done_tail), 2);
    bench_close(&b);
}

static void test_sleeping_producer_is_rung_for_a_sync_answer_only_when_it_is_final(void)
{
    struct bench b = bench_open();
    uint32_t row, generation;
    fixture_queue(b.f, "sync", 0, SHMQ_ROW_FLUSH, &row, &generation);
    put(&b, 0, row, generation, SHMQ_RECORD_WAIT);
    uint32_t seen = shmq_bell_seen(b.w[0].bell);
    shmq_store_relaxed32(&b.w[0].lane->sleep_reason, SHMQ_SLEEP_DONE);
    shmq_sleep_begin(&b.w[0].lane->sleep_epoch);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(shmq_bell_seen(b.w[0].bell), seen); /* appended: not what it waits for */
    flush_to(&b, b.f->append.log.log_end);
    (void)turn(&b);
    CHECK_EQUAL(shmq_bell_seen(b.w[0].bell), seen + 1);
    flush_to(&b, b.f->append.log.log_end + 1);
    (void)turn(&b);
    CHECK_EQUAL(shmq_bell_seen(b.w[0].bell), seen + 1); /* once */
    shmq_sleep_end(&b.w[0].lane->sleep_epoch);
    bench_close(&b);
}

static void test_producer_waiting_for_space_is_rung_when_there_is_some(void)
{
    struct bench b = bench_open();
    uint32_t row, generation;
    fixture_queue(b.f, "sync", 0, SHMQ_ROW_FLUSH, &row, &generation);
    put(&b, 0, row, generation, SHMQ_RECORD_WAIT); /* not answered by this turn */
    uint32_t seen = shmq_bell_seen(b.w[0].bell);
    shmq_store_relaxed32(&b.w[0].lane->sleep_reason, SHMQ_SLEEP_SPACE);
    shmq_sleep_begin(&b.w[0].lane->sleep_epoch);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(shmq_bell_seen(b.w[0].bell), seen + 1);
    shmq_sleep_end(&b.w[0].lane->sleep_epoch);
    bench_close(&b);
}

static void test_flush_that_takes_too_long_is_told_and_so_is_a_missing_replica(void)
{
    struct bench b = bench_open();
    const uint32_t flags[] = {SHMQ_ROW_FLUSH, SHMQ_ROW_REPLICA, SHMQ_ROW_FLUSH | SHMQ_ROW_REPLICA,
                              SHMQ_ROW_FLUSH | SHMQ_ROW_REPLICA};
    const int wanted[] = {SHMQ_FLUSH_DISK_TIMEOUT, SHMQ_FLUSH_SLAVE_TIMEOUT, SHMQ_FLUSH_DISK_TIMEOUT,
                          SHMQ_FLUSH_SLAVE_TIMEOUT};
    const uint64_t timeout[] = {b.f->append.flush_timeout_ns, b.f->append.replica_timeout_ns,
                                b.f->append.flush_timeout_ns, b.f->append.replica_timeout_ns};
    for (uint32_t i = 0; i < 4; ++i) {
        uint32_t row, generation;
        char topic[] = "sync0";
        topic[4] = (char)('0' + i);
        fixture_queue(b.f, topic, 0, flags[i], &row, &generation);
        put(&b, 0, row, generation, SHMQ_RECORD_WAIT);
        CHECK_EQUAL(turn(&b), 1);
        if (i == 3) { /* on disk, but on no replica */
            flush_to(&b, b.f->append.log.log_end);
            (void)turn(&b);
        }
        struct shmq_completion done;
        b.now_ns += timeout[i] - MS;
        (void)turn(&b);
        CHECK_EQUAL(completion(&b, 0, i, &done), SHMQ_EMPTY);
        b.now_ns += SHMQ_SETTLE_INTERVAL_NS + MS;
        (void)turn(&b);
        CHECK_EQUAL(completion(&b, 0, i, &done), SHMQ_OK);
        CHECK_EQUAL(done.status, 0); /* it is stored */
        CHECK_EQUAL(done.final_status, -wanted[i]);
        CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->visible_max), 0); /* and still not seen before its level */
        flush_to(&b, b.f->append.log.log_end);
        confirm_to(&b, b.f->append.log.log_end);
        (void)turn(&b);
        CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->visible_max), 1);
    }
    bench_close(&b);
}

/* A hundred sends in flight on a disk that hangs must not time out one after the other. */
static void test_sends_that_wait_together_time_out_together(void)
{
    struct bench b = bench_open();
    uint32_t row, generation;
    fixture_queue(b.f, "sync", 0, SHMQ_ROW_FLUSH, &row, &generation);
    for (uint32_t i = 0; i < 100; ++i) {
        put(&b, 0, row, generation, SHMQ_RECORD_WAIT);
    }
    CHECK_EQUAL(turn(&b), 100);
    b.now_ns += b.f->append.flush_timeout_ns / 2;
    put(&b, 0, row, generation, SHMQ_RECORD_WAIT); /* a later one */
    CHECK_EQUAL(turn(&b), 1);
    b.now_ns += b.f->append.flush_timeout_ns / 2 + SHMQ_SETTLE_INTERVAL_NS;
    (void)turn(&b);
    CHECK_EQUAL(shmq_load_relaxed(&b.w[0].slot->done_tail), 100);
    b.now_ns += b.f->append.flush_timeout_ns + SHMQ_SETTLE_INTERVAL_NS;
    (void)turn(&b);
    CHECK_EQUAL(shmq_load_relaxed(&b.w[0].slot->done_tail), 101);
    bench_close(&b);
}

static void test_queue_whose_level_falls_shows_what_it_held_back(void)
{
    struct bench b = bench_open();
    uint32_t row, generation;
    fixture_queue(b.f, "sync", 0, SHMQ_ROW_FLUSH, &row, &generation);
    put(&b, 0, row, generation, 0);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->visible_max), 0);
    shmq_append_set_row(&b.f->append, row, SHMQ_ROW_ACTIVE, 0);
    CHECK_EQUAL(shmq_turn_ready(&b.f->append), 1); /* although nothing was ever flushed */
    CHECK_EQUAL(turn(&b), 0);
    CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->visible_max), 1);
    CHECK_EQUAL(shmq_turn_ready(&b.f->append), 0);
    bench_close(&b);
}

/* A queue that becomes SYNC shows nothing new before its level, and what was held back stays in order. */
static void test_queue_whose_level_rises_holds_back_from_then_on(void)
{
    struct bench b = bench_open();
    put(&b, 0, b.row, b.generation, SHMQ_RECORD_WAIT);
    CHECK_EQUAL(turn(&b), 1);
    shmq_append_set_row(&b.f->append, b.row, SHMQ_ROW_ACTIVE, SHMQ_ROW_FLUSH);
    put(&b, 0, b.row, b.generation, SHMQ_RECORD_WAIT);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(shmq_load_relaxed(&queue(&b, b.row)->visible_max), 1);
    flush_to(&b, b.f->append.log.log_end);
    (void)turn(&b);
    CHECK_EQUAL(shmq_load_relaxed(&queue(&b, b.row)->visible_max), 2);
    bench_close(&b);
}

static void test_deleted_queue_is_not_settled_any_more(void)
{
    struct bench b = bench_open();
    uint32_t row, generation;
    fixture_queue(b.f, "sync", 0, SHMQ_ROW_FLUSH, &row, &generation);
    put(&b, 0, row, generation, SHMQ_RECORD_WAIT);
    CHECK_EQUAL(turn(&b), 1);
    shmq_append_delete_row(&b.f->append, row);
    CHECK_EQUAL(b.f->append.pending_row_count, 0);
    CHECK_EQUAL(b.f->append.arena.free_count, 63);
    flush_to(&b, b.f->append.log.log_end);
    (void)turn(&b);
    struct shmq_completion done;
    CHECK_EQUAL(completion(&b, 0, 0, &done), SHMQ_OK); /* the answer is owed all the same */
    CHECK_EQUAL(shmq_load_relaxed(&queue(&b, row)->visible_max), 0);
    bench_close(&b);
}

/* ---- services --------------------------------------------------------------------------------------- */

static void test_progress_of_a_service_is_committed_with_its_message(void)
{
    struct bench b = bench_open();
    fixture_service(b.f, 1, 5);
    fixture_service(b.f, 2, 0);
    for (uint32_t who = 1; who < 3; ++who) {
        for (uint32_t i = 0; i < 3; ++i) {
            uint8_t body[8];
            truth_body(body, 8, who * SHMQ_LANE_MAX, i);
            struct shmq_record record = fixture_record(b.row, b.generation, 8, 0, 0);
            record.progress = who * 1000 + i;
            CHECK(fixture_put_record(&b.w[who], &record, body, "") >= 0);
        }
        (void)shmq_lane_publish(&b.w[who]);
    }
    struct shmq_record refused = fixture_record(UINT32_MAX, 0, 8, 0, 0);
    refused.progress = 1500; /* a step whose message is refused is a step done all the same */
    CHECK(fixture_put_record(&b.w[1], &refused, "12345678", "") >= 0);
    (void)shmq_lane_publish(&b.w[1]);
    put(&b, 0, b.row, b.generation, 0);
    CHECK_EQUAL(shmq_load_relaxed(&shmq_control_service_slot(b.f->control, 5)->progress), 0);
    CHECK_EQUAL(turn(&b), 8);
    CHECK_EQUAL(shmq_load_relaxed(&shmq_control_service_slot(b.f->control, 5)->progress), 1500);
    CHECK_EQUAL(shmq_load_relaxed(&shmq_control_service_slot(b.f->control, 0)->progress), 2002);
    const struct shmq_turn_record *record = shmq_control_turn_record(b.f->control, b.f->append.turn_number);
    CHECK_EQUAL(record->header.service_count, 2);
    CHECK_EQUAL(record->header.ring_count, 3);
    bench_close(&b);
}

static void test_service_moves_several_words_in_one_turn(void)
{
    struct bench b = bench_open();
    fixture_service(b.f, 1, 5);
    for (uint32_t i = 0; i < 6; ++i) {
        struct shmq_record record = fixture_record(b.row, b.generation, 8, 0, 0);
        record.service_index = (uint16_t)(i % 3);
        record.progress = 100 * i + 1;
        CHECK(fixture_put_record(&b.w[1], &record, "12345678", "") >= 0);
    }
    (void)shmq_lane_publish(&b.w[1]);
    CHECK_EQUAL(turn(&b), 6);
    for (uint32_t i = 0; i < 3; ++i) {
        CHECK_EQUAL(shmq_load_relaxed(&shmq_control_service_slot(b.f->control, 5 + i)->progress), 100 * (i + 3) + 1);
    }
    CHECK_EQUAL(shmq_control_turn_record(b.f->control, b.f->append.turn_number)->header.service_count, 3);
    struct shmq_record beyond = fixture_record(b.row, b.generation, 8, 0, 0);
    beyond.service_index = SHMQ_SERVICE_MAX;
    CHECK(fixture_put_record(&b.w[1], &beyond, "12345678", "") >= 0);
    (void)shmq_lane_publish(&b.w[1]);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(shmq_control_turn_record(b.f->control, b.f->append.turn_number)->header.service_count, 0);
    fixture_close(b.f);
}

static void test_clients_progress_word_moves_no_service(void)
{
    struct bench b = bench_open();
    struct shmq_record record = fixture_record(b.row, b.generation, 8, 0, 0);
    record.progress = 99;
    uint8_t body[8];
    truth_body(body, 8, 0, 0);
    CHECK(fixture_put_record(&b.w[0], &record, body, "") >= 0);
    (void)shmq_lane_publish(&b.w[0]);
    CHECK_EQUAL(turn(&b), 1);
    for (uint32_t i = 0; i < SHMQ_SERVICE_MAX; ++i) {
        CHECK_EQUAL(shmq_load_relaxed(&shmq_control_service_slot(b.f->control, i)->progress), 0);
    }
    bench_close(&b);
}

/* ---- rows ------------------------------------------------------------------------------------------- */

static void test_row_of_a_deleted_queue_serves_another_with_a_new_generation(void)
{
    struct bench b = bench_open();
    for (uint32_t i = 0; i < 200; ++i) {
        uint32_t row, generation;
        char topic[16];
        snprintf(topic, sizeof topic, "t%u", i);
        fixture_queue(b.f, topic, i % 3, 0, &row, &generation);
        CHECK_EQUAL(row, 1);
        CHECK_EQUAL(generation, 2 * i + 1);
        CHECK_EQUAL(shmq_row_index_find(&b.f->append.row_index, (const uint8_t *)topic, (uint32_t)strlen(topic),
                                        i % 3), row);
        CHECK_EQUAL(put(&b, 0, row, generation, 0), i);
        CHECK_EQUAL(turn(&b), 1);
        shmq_lane_release(&b.w[0], b.w[0].sequence);
        struct shmq_completion done;
        CHECK_EQUAL(completion(&b, 0, i, &done), SHMQ_OK);
        CHECK_EQUAL(done.queue_offset, 0);
        shmq_append_delete_row(&b.f->append, row);
        CHECK_EQUAL(shmq_row_index_find(&b.f->append.row_index, (const uint8_t *)topic, (uint32_t)strlen(topic),
                                        i % 3), UINT32_MAX);
        shmq_append_delete_topic(&b.f->append, b.f->topics, queue(&b, row)->topic_row);
    }
    CHECK_EQUAL(b.f->append.row_index.count, 1);
    bench_close(&b);
}

/* Rows come and go at random; the index must name exactly those that are there. */
static void test_row_index_keeps_up_with_rows_that_come_and_go(void)
{
    struct fixture *f = fixture_open(1u << 16, 2, 8);
    uint64_t seed = check_seed();
    uint32_t topic_row[8];
    for (uint32_t t = 0; t < 8; ++t) {
        char name[8];
        snprintf(name, sizeof name, "topic%u", t);
        CHECK_EQUAL(shmq_append_add_topic(&f->append, f->topics, (const uint8_t *)name, 6, &topic_row[t]), 0);
    }
    uint32_t where[8][16];
    memset(where, 0xff, sizeof where);
    f->append.row_index.mask = 127; /* the binding's rule: twice the rows */
    uint32_t live = 0;
    for (uint32_t step = 0; step < 20000; ++step) {
        uint32_t t = (uint32_t)(check_random(&seed) % 8);
        uint32_t q = (uint32_t)(check_random(&seed) % 16);
        uint32_t generation;
        if (where[t][q] != UINT32_MAX) {
            shmq_append_delete_row(&f->append, where[t][q]);
            where[t][q] = UINT32_MAX;
            --live;
        } else if (live < FIXTURE_ROWS) {
            CHECK_EQUAL(shmq_append_add_row(&f->append, topic_row[t], q, 0, 0, &where[t][q], &generation), 0);
            ++live;
        } else {
            uint32_t row;
            CHECK_EQUAL(shmq_append_add_row(&f->append, topic_row[t], q, 0, 0, &row, &generation), SHMQ_FULL);
        }
        CHECK_EQUAL(f->append.row_index.count, live);
        t = (uint32_t)(check_random(&seed) % 8);
        char name[8];
        snprintf(name, sizeof name, "topic%u", t);
        for (q = 0; q < 16; ++q) {
            CHECK_EQUAL(shmq_row_index_find(&f->append.row_index, (const uint8_t *)name, 6, q), where[t][q]);
        }
    }
    fixture_close(f);
}

int main(void)
{
    RUN(test_message_becomes_frame_entry_and_completion);
    RUN(test_store_timestamp_never_goes_back);
    RUN(test_fields_a_client_may_not_choose_are_masked);
    RUN(test_large_body_is_taken_from_the_chunk_memory);
    RUN(test_scheduled_message_carries_its_due_time);
    RUN(test_delayed_message_goes_to_the_queue_of_its_level);
    RUN(test_delayed_message_is_refused_where_it_cannot_be_delayed);
    RUN(test_queue_without_a_grant_is_refused);
    RUN(test_stale_handle_is_refused);
    RUN(test_read_only_queue_takes_messages_from_services_only);
    RUN(test_body_over_the_limit_is_refused);
    RUN(test_properties_over_the_limit_are_refused);
    RUN(test_malformed_properties_are_refused);
    RUN(test_reserved_property_needs_its_grant);
    RUN(test_prepared_message_of_a_service_goes_into_no_queue);
    RUN(test_broken_record_ends_its_session_and_nobody_elses);
    RUN(test_impossible_tail_ends_the_session_before_anything_is_taken);
    RUN(test_ended_producer_is_woken_after_its_tails_are_final);
    RUN(test_detached_session_leaves_the_turns_and_its_slot_serves_the_next);
    RUN(test_flooding_rings_do_not_delay_another_by_more_than_their_share);
    RUN(test_every_ring_is_served_within_its_bound_of_turns);
    RUN(test_turn_touches_no_more_rings_than_its_record_holds);
    RUN(test_ring_of_refused_records_is_bounded_too);
    RUN(test_full_log_stops_the_turn_and_goes_on_where_it_stopped);
    RUN(test_arena_without_blocks_stops_the_turn_and_goes_on_once_there_are_some);
    RUN(test_staged_messages_reserve_their_blocks);
    RUN(test_producer_without_completion_entries_keeps_nobody_awake);
    RUN(test_sync_message_is_seen_and_answered_only_once_flushed);
    RUN(test_replicated_message_waits_for_the_slower_of_disk_and_replica);
    RUN(test_send_that_does_not_wait_is_answered_at_once_and_seen_at_the_level);
    RUN(test_send_that_does_not_wait_overtakes_one_that_does);
    RUN(test_sleeping_producer_is_rung_for_a_sync_answer_only_when_it_is_final);
    RUN(test_producer_waiting_for_space_is_rung_when_there_is_some);
    RUN(test_flush_that_takes_too_long_is_told_and_so_is_a_missing_replica);
    RUN(test_sends_that_wait_together_time_out_together);
    RUN(test_queue_whose_level_falls_shows_what_it_held_back);
    RUN(test_queue_whose_level_rises_holds_back_from_then_on);
    RUN(test_deleted_queue_is_not_settled_any_more);
    RUN(test_progress_of_a_service_is_committed_with_its_message);
    RUN(test_service_moves_several_words_in_one_turn);
    RUN(test_clients_progress_word_moves_no_service);
    RUN(test_row_of_a_deleted_queue_serves_another_with_a_new_generation);
    RUN(test_row_index_keeps_up_with_rows_that_come_and_go);
    return 0;
}
