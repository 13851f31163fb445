/* The consumer's side of the core: bells by subscription, and messages reached through the ConsumeQueue. */
#define _GNU_SOURCE
#include "store_truth.h"

struct bench {
    struct fixture *f;
    struct shmq_lane_writer w;
    uint32_t rows[4], generations[4]; /* the last one is SYNC */
    uint32_t node;                    /* subscriptions handed out */
};

static struct bench bench_open(void)
{
    struct bench b = {0};
    b.f = fixture_open(1u << 18, 3, 64);
    for (uint32_t i = 0; i < 4; ++i) {
        fixture_queue(b.f, "t", i, i == 3 ? SHMQ_ROW_FLUSH : 0, &b.rows[i], &b.generations[i]);
    }
    for (uint32_t session = 0; session < 3; ++session) {
        fixture_attach(b.f, session, 1, 1u << 16, 256);
    }
    fixture_writer(b.f, 0, 0, &b.w);
    return b;
}

static uint32_t bell_index(uint32_t session, uint32_t bell)
{
    return session * SHMQ_CONSUMER_BELL_MAX + bell;
}

static void subscribe(struct bench *b, uint32_t session, uint32_t bell, uint32_t queue)
{
    shmq_append_subscribe(&b->f->append, b->rows[queue], bell_index(session, bell), ++b->node);
}

static void send_one(struct bench *b, uint32_t queue)
{
    CHECK(truth_put(&b->w, 0, b->rows[queue], b->generations[queue], 40, "TAGS\001a\002", 0) >= 0);
    (void)shmq_lane_publish(&b->w);
}

static uint32_t turn(struct bench *b)
{
    uint32_t taken = shmq_turn_run(&b->f->append, 1700000000000, 1);
    (void)shmq_turn_settle(&b->f->append, 1);
    shmq_lane_release(&b->w, b->w.sequence);
    return taken;
}

static uint32_t rung(struct bench *b, uint32_t session, uint32_t bell)
{
    return shmq_bell_seen(fixture_consumer_bell(b->f, session, bell));
}

static void sleep_on(struct bench *b, uint32_t session, uint32_t bell)
{
    shmq_sleep_begin(&fixture_sleeper(b->f, session, bell)->sleep_epoch);
}

static void wake_up(struct bench *b, uint32_t session, uint32_t bell)
{
    shmq_sleep_end(&fixture_sleeper(b->f, session, bell)->sleep_epoch);
}

static void test_sleeping_consumer_is_rung_once_a_turn_for_all_its_queues(void)
{
    struct bench b = bench_open();
    subscribe(&b, 1, 0, 0);
    subscribe(&b, 1, 0, 1);
    subscribe(&b, 1, 0, 2);
    sleep_on(&b, 1, 0);
    uint64_t sent = shmq_load_relaxed(&b.f->control->counters.wakeups_sent);
    for (uint32_t i = 0; i < 30; ++i) {
        send_one(&b, i % 3);
    }
    CHECK_EQUAL(turn(&b), 30);
    CHECK_EQUAL(rung(&b, 1, 0), 1);
    CHECK_EQUAL(shmq_load_relaxed(&b.f->control->counters.wakeups_sent), sent + 1);
    send_one(&b, 0);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(rung(&b, 1, 0), 1); /* it was rung and has not run yet */
    wake_up(&b, 1, 0);
    send_one(&b, 0);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(rung(&b, 1, 0), 1); /* awake: it costs nothing */
    sleep_on(&b, 1, 0);
    send_one(&b, 1);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(rung(&b, 1, 0), 2);
    fixture_close(b.f);
}

static void test_only_the_subscribers_of_a_queue_are_rung(void)
{
    struct bench b = bench_open();
    subscribe(&b, 1, 0, 0);
    subscribe(&b, 1, 1, 1);
    subscribe(&b, 2, 0, 0);
    subscribe(&b, 2, 3, 2);
    const uint32_t who[4][2] = {{1, 0}, {1, 1}, {2, 0}, {2, 3}};
    for (uint32_t i = 0; i < 4; ++i) {
        sleep_on(&b, who[i][0], who[i][1]);
    }
    send_one(&b, 0);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(rung(&b, 1, 0), 1);
    CHECK_EQUAL(rung(&b, 2, 0), 1);
    CHECK_EQUAL(rung(&b, 1, 1), 0);
    CHECK_EQUAL(rung(&b, 2, 3), 0);
    send_one(&b, 2);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(rung(&b, 2, 3), 1);
    CHECK_EQUAL(rung(&b, 1, 1), 0);
    fixture_close(b.f);
}

static void test_unsubscribed_consumer_sleeps_on(void)
{
    struct bench b = bench_open();
    for (uint32_t session = 1; session < 3; ++session) {
        subscribe(&b, session, 0, 0);
        subscribe(&b, session, 1, 0);
    }
    for (uint32_t session = 1; session < 3; ++session) {
        sleep_on(&b, session, 0);
        sleep_on(&b, session, 1);
    }
    uint32_t node = shmq_append_unsubscribe(&b.f->append, b.rows[0], bell_index(1, 1)); /* in the middle */
    CHECK_EQUAL(node, 2);
    CHECK_EQUAL(shmq_append_unsubscribe(&b.f->append, b.rows[0], bell_index(1, 1)), 0); /* twice */
    CHECK_EQUAL(shmq_append_unsubscribe(&b.f->append, b.rows[1], bell_index(1, 0)), 0);
    send_one(&b, 0);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(rung(&b, 1, 0), 1);
    CHECK_EQUAL(rung(&b, 1, 1), 0);
    CHECK_EQUAL(rung(&b, 2, 0), 1);
    CHECK_EQUAL(rung(&b, 2, 1), 1);
    fixture_close(b.f);
}

/* A SYNC queue rings when its messages may be seen, not when they are appended. */
static void test_consumer_of_a_sync_queue_is_rung_when_messages_become_visible(void)
{
    struct bench b = bench_open();
    subscribe(&b, 1, 0, 3);
    sleep_on(&b, 1, 0);
    send_one(&b, 3);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(rung(&b, 1, 0), 0);
    shmq_store_release(&b.f->control->flush.flushed_position, b.f->append.log.log_end);
    CHECK_EQUAL(turn(&b), 0);
    CHECK_EQUAL(rung(&b, 1, 0), 1);
    fixture_close(b.f);
}

static void test_consumer_that_left_is_not_rung(void)
{
    struct bench b = bench_open();
    subscribe(&b, 1, 0, 0);
    sleep_on(&b, 1, 0);
    shmq_append_detach(&b.f->append, 1); /* still subscribed: the control thread tidies up later */
    send_one(&b, 0);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(rung(&b, 1, 0), 0);
    CHECK_EQUAL(b.f->append.marked_count, 0);
    fixture_resume(b.f, 1);
    send_one(&b, 0);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(rung(&b, 1, 0), 1);
    fixture_close(b.f);
}

static void test_service_without_rings_may_have_bells(void)
{
    struct bench b = bench_open();
    fixture_attach(b.f, 3, 0, 0, 0); /* consumes only */
    subscribe(&b, 3, 2, 0);
    sleep_on(&b, 3, 2);
    send_one(&b, 0);
    CHECK_EQUAL(turn(&b), 1);
    CHECK_EQUAL(rung(&b, 3, 2), 1);
    fixture_close(b.f);
}

/* From the queue to the body, as a reader does it: entries first, then frames in place, no CRC in between. */
static void test_message_is_read_in_place_through_its_entry(void)
{
    struct bench b = bench_open();
    for (uint32_t i = 0; i < 100; ++i) {
        send_one(&b, i % 2);
        CHECK_EQUAL(turn(&b), 1);
    }
    struct shmq_cursor cursor = {0};
    struct shmq_found found[100];
    CHECK_EQUAL(shmq_consume_queue_read(b.f->arena, 64, shmq_control_queue_row(b.f->control, b.rows[1]), b.rows[1],
                                        b.generations[1], 0, 100, &cursor, found), 50);
    for (uint32_t i = 0; i < 50; ++i) {
        const uint8_t *frame = shmq_commit_log_at(&b.f->append.log, found[i].physical_offset);
        struct shmq_message_view view;
        CHECK_EQUAL(shmq_message_parse(frame, found[i].size, &view), SHMQ_OK);
        CHECK_EQUAL(view.total_size, found[i].size);
        CHECK_EQUAL(view.queue_offset, i);
        CHECK_EQUAL(found[i].tags_code, 'a');
        uint8_t body[40];
        truth_body(body, sizeof body, 0, 2 * i + 1);
        CHECK_BYTES(view.body, body, sizeof body);
    }
    fixture_close(b.f);
}

int main(void)
{
    RUN(test_sleeping_consumer_is_rung_once_a_turn_for_all_its_queues);
    RUN(test_only_the_subscribers_of_a_queue_are_rung);
    RUN(test_unsubscribed_consumer_sleeps_on);
    RUN(test_consumer_of_a_sync_queue_is_rung_when_messages_become_visible);
    RUN(test_consumer_that_left_is_not_rung);
    RUN(test_service_without_rings_may_have_bells);
    RUN(test_message_is_read_in_place_through_its_entry);
    return 0;
}
