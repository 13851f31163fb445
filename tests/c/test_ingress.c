/* ingress.h: the ring of one lane, what it refuses, and its completions. The broker's half is called directly
 * here, turn by turn; what a whole turn does with it is in test_turn.c. */
#define _GNU_SOURCE
#include "store_truth.h"

#define CAPACITY 4096u
#define COMPLETIONS 16u

/* The ring of session 0, both sides of it. */
struct pair {
    struct fixture *f;
    struct shmq_lane_writer w;
    struct shmq_ring *ring;
};

static struct pair pair_open(uint32_t completions)
{
    struct pair p = {0};
    p.f = fixture_open(1u << 16, 2, 8);
    fixture_attach(p.f, 0, 1, CAPACITY, completions);
    fixture_writer(p.f, 0, 0, &p.w);
    p.ring = &p.f->append.rings[0];
    return p;
}

static void pair_close(struct pair *p)
{
    fixture_close(p->f);
}

/* What the broker publishes at the end of a turn. */
static void ring_publish(struct shmq_ring *ring)
{
    shmq_store_release(&ring->slot->completion_tail, ring->completion_tail);
    ring->done_tail = ring->completion_tail;
    shmq_store_release(&ring->slot->done_tail, ring->done_tail);
    shmq_store_release(&ring->slot->read_position, ring->read_position);
}

/* Takes everything that is there; returns how many records, or the status that stopped it. */
static int ring_take_all(struct shmq_ring *ring)
{
    int status = shmq_ring_begin(ring);
    int count = 0;
    while (status == SHMQ_OK) {
        struct shmq_record head;
        const uint8_t *payload;
        status = shmq_ring_peek(ring, &head, &payload);
        if (status == SHMQ_OK) {
            struct shmq_completion completion = {.size = head.size};
            shmq_ring_consume(ring, head.size, &completion);
            ++count;
        }
    }
    ring_publish(ring);
    return status == SHMQ_EMPTY ? count : status;
}

static void release_all(struct pair *p)
{
    shmq_lane_release(&p->w, p->w.sequence);
}

/* Leaves the ring empty with exactly `room` bytes before its end. */
static void pair_leave_room(struct pair *p, uint32_t room)
{
    static const uint8_t zeros[CAPACITY];
    for (;;) {
        uint32_t index = (uint32_t)(p->w.tail & (CAPACITY - 1));
        uint32_t to_end = CAPACITY - index;
        if (to_end == room) {
            return;
        }
        uint32_t step = to_end > room ? to_end - room : to_end;
        uint32_t size = step > 1024 ? 1024 : step;
        if (step > 1024 && step - 1024 < 64) {
            size = 512;
        }
        if (size < sizeof(struct shmq_record)) { /* less than a record: go round once more */
            size = 1024;
        }
        CHECK(fixture_put(&p->w, 0, 0, zeros, size - (uint32_t)sizeof(struct shmq_record), "", 0) >= 0);
        (void)shmq_lane_publish(&p->w);
        CHECK_EQUAL(ring_take_all(p->ring), 1);
        release_all(p);
    }
}

static void test_record_comes_out_as_it_went_in(void)
{
    struct pair p = pair_open(COMPLETIONS);
    uint8_t body[1024];
    const char *properties = "TAGS\001a\002";
    for (uint32_t size = 0; size <= 900; size += 7) {
        truth_body(body, size < 8 ? 8 : size, 3, size);
        CHECK_EQUAL(fixture_put(&p.w, 7, 9, body, size, properties, SHMQ_RECORD_WAIT), p.w.sequence - 1);
        CHECK_EQUAL(shmq_lane_publish(&p.w), 0);
        struct shmq_record head;
        const uint8_t *payload;
        CHECK_EQUAL(shmq_ring_begin(p.ring), SHMQ_OK);
        CHECK_EQUAL(shmq_ring_peek(p.ring, &head, &payload), SHMQ_OK);
        CHECK_EQUAL(head.size, shmq_record_size(size, 7));
        CHECK_EQUAL(head.kind, SHMQ_RECORD_MESSAGE);
        CHECK_EQUAL(head.flags, SHMQ_RECORD_WAIT);
        CHECK_EQUAL(head.queue_row, 7);
        CHECK_EQUAL(head.row_generation, 9);
        CHECK_EQUAL(head.body_size, size);
        CHECK_BYTES(payload, body, size);
        CHECK_BYTES(payload + size, properties, 7);
        CHECK_EQUAL(ring_take_all(p.ring), 1);
        release_all(&p);
    }
    pair_close(&p);
}

static void test_pad_fills_every_room_that_a_record_does_not_fit(void)
{
    struct pair p = pair_open(COMPLETIONS);
    uint8_t body[64] = "after the pad";
    for (uint32_t room = SHMQ_PAD_SIZE_MIN; room <= 120; room += 8) {
        pair_leave_room(&p, room);
        uint64_t before = p.w.tail;
        CHECK(fixture_put(&p.w, 0, 0, body, sizeof body, "", 0) >= 0); /* 128 bytes */
        CHECK_EQUAL(p.w.tail, before + room + 128);
        (void)shmq_lane_publish(&p.w);
        struct shmq_record head;
        const uint8_t *payload;
        CHECK_EQUAL(shmq_ring_begin(p.ring), SHMQ_OK);
        CHECK_EQUAL(shmq_ring_peek(p.ring, &head, &payload), SHMQ_OK);
        CHECK(payload == p.ring->data + sizeof head);
        CHECK_BYTES(payload, body, sizeof body);
        CHECK_EQUAL(ring_take_all(p.ring), 1);
        CHECK_EQUAL(p.ring->read_position, p.w.tail);
        release_all(&p);
    }
    pair_close(&p);
}

static void test_record_that_fits_exactly_needs_no_pad(void)
{
    struct pair p = pair_open(COMPLETIONS);
    uint8_t body[64] = {0};
    pair_leave_room(&p, 128);
    uint64_t before = p.w.tail;
    CHECK(fixture_put(&p.w, 0, 0, body, sizeof body, "", 0) >= 0);
    CHECK_EQUAL(p.w.tail, before + 128);
    CHECK_EQUAL(p.w.tail & (CAPACITY - 1), 0);
    CHECK(fixture_put(&p.w, 0, 0, body, sizeof body, "", 0) >= 0);
    (void)shmq_lane_publish(&p.w);
    CHECK_EQUAL(ring_take_all(p.ring), 2);
    pair_close(&p);
}

static void test_pad_alone_is_skipped(void)
{
    struct pair p = pair_open(COMPLETIONS);
    uint8_t *at;
    pair_leave_room(&p, 64);
    CHECK_EQUAL(shmq_lane_claim(&p.w, 128, &at), SHMQ_OK); /* claimed, then given up: only its PAD stays */
    (void)shmq_lane_publish(&p.w);
    CHECK_EQUAL(ring_take_all(p.ring), 0);
    CHECK_EQUAL(p.ring->read_position, p.w.tail);
    CHECK_EQUAL(shmq_lane_claim(&p.w, 128, &at), SHMQ_OK);
    CHECK(at == p.w.data);
    pair_close(&p);
}

static void test_full_ring_refuses_until_the_broker_has_read(void)
{
    struct pair p = pair_open(128);
    uint8_t body[64] = {0};
    uint32_t count = 0;
    while (fixture_put(&p.w, 0, 0, body, sizeof body, "", 0) >= 0) {
        ++count;
    }
    CHECK_EQUAL(count, CAPACITY / 128); /* to the last byte */
    uint8_t *at;
    CHECK_EQUAL(shmq_lane_claim(&p.w, 8, &at), SHMQ_FULL);
    (void)shmq_lane_publish(&p.w);
    CHECK_EQUAL(shmq_lane_claim(&p.w, 128, &at), SHMQ_FULL);
    CHECK_EQUAL(shmq_ring_begin(p.ring), SHMQ_OK);
    struct shmq_record head;
    const uint8_t *payload;
    struct shmq_completion completion = {0};
    CHECK_EQUAL(shmq_ring_peek(p.ring, &head, &payload), SHMQ_OK);
    shmq_ring_consume(p.ring, head.size, &completion);
    CHECK_EQUAL(shmq_lane_claim(&p.w, 128, &at), SHMQ_FULL); /* read, but the turn is not committed */
    ring_publish(p.ring);
    CHECK_EQUAL(shmq_lane_claim(&p.w, 128, &at), SHMQ_OK);
    CHECK_EQUAL(shmq_lane_claim(&p.w, 136, &at), SHMQ_FULL);
    CHECK_EQUAL(ring_take_all(p.ring), (int)count - 1);
    pair_close(&p);
}

static void test_no_record_is_sent_without_a_free_completion_entry(void)
{
    struct pair p = pair_open(4);
    for (uint32_t i = 0; i < 4; ++i) {
        CHECK(fixture_put(&p.w, 0, 0, "x", 1, "", 0) >= 0);
    }
    uint8_t *at;
    CHECK_EQUAL(shmq_lane_claim(&p.w, 72, &at), SHMQ_FULL);
    (void)shmq_lane_publish(&p.w);
    CHECK_EQUAL(ring_take_all(p.ring), 4);
    CHECK_EQUAL(shmq_lane_claim(&p.w, 72, &at), SHMQ_FULL); /* done, but not let go of */
    shmq_lane_release(&p.w, 1);
    CHECK_EQUAL(shmq_lane_claim(&p.w, 72, &at), SHMQ_OK);
    shmq_lane_release(&p.w, 100); /* more than is done: only what is done is free */
    CHECK_EQUAL(p.w.completion_read, 4);
    pair_close(&p);
}

/* A producer that counts wrongly (or lies) must not get an entry overwritten that is still owed to it. */
static void test_broker_takes_nothing_without_a_free_completion_entry(void)
{
    struct pair p = pair_open(4);
    for (uint32_t i = 0; i < 6; ++i) {
        CHECK(fixture_put(&p.w, 0, 0, "x", 1, "", 0) >= 0);
        p.w.completion_read += 1; /* privately only */
    }
    (void)shmq_lane_publish(&p.w);
    CHECK_EQUAL(ring_take_all(p.ring), 4);
    CHECK_EQUAL(ring_take_all(p.ring), 0);
    shmq_store_release(&p.w.lane->completion_read, 1);
    CHECK_EQUAL(ring_take_all(p.ring), 1);
    /* let go of what is not settled yet: the entry stays ours */
    p.ring->done_tail = 2;
    shmq_store_release(&p.w.lane->completion_read, 5);
    CHECK_EQUAL(shmq_ring_begin(p.ring), SHMQ_OK);
    CHECK_EQUAL(p.ring->completion_limit, 6);
    p.ring->done_tail = 1;
    CHECK_EQUAL(shmq_ring_begin(p.ring), SHMQ_OK);
    struct shmq_record head;
    const uint8_t *payload;
    CHECK_EQUAL(shmq_ring_peek(p.ring, &head, &payload), SHMQ_EMPTY);
    pair_close(&p);
}

static void test_impossible_tail_is_corrupt(void)
{
    struct pair p = pair_open(COMPLETIONS);
    pair_leave_room(&p, 1024);
    uint64_t read = p.ring->read_position;
    const uint64_t tails[] = {read + CAPACITY + 8, read - 8, 0, read + 4, read + 1, UINT64_MAX, UINT64_MAX - 7,
                              read + (UINT64_C(1) << 63)};
    for (uint32_t i = 0; i < sizeof tails / sizeof *tails; ++i) {
        shmq_store_release(&p.w.lane->tail, tails[i]);
        CHECK_EQUAL(shmq_ring_begin(p.ring), SHMQ_CORRUPT);
    }
    shmq_store_release(&p.w.lane->tail, read + CAPACITY);
    CHECK_EQUAL(shmq_ring_begin(p.ring), SHMQ_OK); /* a full ring is none of them */
    shmq_store_release(&p.w.lane->tail, read);
    CHECK_EQUAL(shmq_ring_begin(p.ring), SHMQ_EMPTY);
    pair_close(&p);
}

static void test_impossible_completion_read_is_corrupt(void)
{
    struct pair p = pair_open(COMPLETIONS);
    while (p.ring->completion_tail < COMPLETIONS + 4) {
        CHECK(fixture_put(&p.w, 0, 0, "x", 1, "", 0) >= 0);
        (void)shmq_lane_publish(&p.w);
        CHECK_EQUAL(ring_take_all(p.ring), 1);
        release_all(&p);
    }
    CHECK(fixture_put(&p.w, 0, 0, "x", 1, "", 0) >= 0);
    (void)shmq_lane_publish(&p.w);
    uint64_t tail = p.ring->completion_tail;
    const uint64_t taken[] = {tail + 1, UINT64_MAX, tail - COMPLETIONS - 1, 0, UINT64_C(1) << 63};
    for (uint32_t i = 0; i < sizeof taken / sizeof *taken; ++i) {
        shmq_store_release(&p.w.lane->completion_read, taken[i]);
        CHECK_EQUAL(shmq_ring_begin(p.ring), SHMQ_CORRUPT);
    }
    shmq_store_release(&p.w.lane->completion_read, tail);
    CHECK_EQUAL(shmq_ring_begin(p.ring), SHMQ_OK);
    pair_close(&p);
}

/* One record at index 0 of an empty ring whose head says `head`; what does the broker say? */
static int judge(struct pair *p, const struct shmq_record *head, uint64_t published)
{
    memcpy(p->w.data, head, sizeof *head);
    shmq_store_release(&p->w.lane->tail, published);
    struct shmq_record seen;
    const uint8_t *payload;
    p->ring->read_position = 0;
    int status = shmq_ring_begin(p->ring);
    return status == SHMQ_OK ? shmq_ring_peek(p->ring, &seen, &payload) : status;
}

static void test_head_that_no_producer_of_ours_writes_is_corrupt(void)
{
    struct pair p = pair_open(COMPLETIONS);
    struct shmq_record good = fixture_record(0, 0, 40, 8, 0);
    CHECK_EQUAL(good.size, 112);
    CHECK_EQUAL(judge(&p, &good, 112), SHMQ_OK);
#define BAD(field, value, published)                                                                 \
    do {                                                                                             \
        struct shmq_record bad = good;                                                               \
        bad.field = (value);                                                                         \
        CHECK_EQUAL(judge(&p, &bad, (published)), SHMQ_CORRUPT);                                     \
    } while (0)
    BAD(size, 0, 112);
    BAD(size, 8, 112);
    BAD(size, 56, 112);
    BAD(size, 63, 112);
    BAD(size, 65, 112);
    BAD(size, 108, 112);
    BAD(size, 120, 112);                 /* beyond what is published */
    BAD(size, CAPACITY / 4 + 8, CAPACITY); /* larger than a record may be */
    BAD(size, CAPACITY, CAPACITY);
    BAD(size, 0xfffffff8u, 112);
    BAD(size, 0x80000000u, 112);
    BAD(kind, 0, 112);
    BAD(kind, 4, 112);
    BAD(kind, 0xffff, 112);
    BAD(body_size, 41, 112);
    BAD(body_size, 0xffffffffu, 112);
    BAD(body_size, 0xfffffff8u, 112); /* 32-bit sum with properties_size would wrap to 0 */
    BAD(properties_size, 9, 112);
    BAD(properties_size, 0xffffffffu, 112);
    BAD(properties_size, 0xffffffd8u, 112);
    BAD(kind, SHMQ_RECORD_PAD, 112); /* a PAD ends at the ring's end */
    BAD(kind, SHMQ_RECORD_LARGE, 112); /* no chunk memory was granted */
#undef BAD
    struct shmq_record pad = {.size = CAPACITY, .kind = SHMQ_RECORD_PAD};
    CHECK_EQUAL(judge(&p, &pad, 112), SHMQ_CORRUPT); /* goes beyond what is published */
    struct shmq_record cut = good;
    CHECK_EQUAL(judge(&p, &cut, 56), SHMQ_CORRUPT); /* half a head is published */
    CHECK_EQUAL(judge(&p, &cut, 8), SHMQ_CORRUPT);
    /* A head that would straddle the end. */
    p.ring->read_position = CAPACITY - 56;
    shmq_store_release(&p.w.lane->tail, CAPACITY - 56 + 112);
    memcpy(p.w.data + CAPACITY - 56, &good, 56);
    struct shmq_record seen;
    const uint8_t *payload;
    CHECK_EQUAL(shmq_ring_begin(p.ring), SHMQ_OK);
    CHECK_EQUAL(shmq_ring_peek(p.ring, &seen, &payload), SHMQ_CORRUPT);
    pair_close(&p);
}

static void test_ring_of_nothing_but_pads_is_corrupt(void)
{
    struct pair p = pair_open(COMPLETIONS);
    struct shmq_record pad = {.size = CAPACITY, .kind = SHMQ_RECORD_PAD};
    CHECK_EQUAL(judge(&p, &pad, CAPACITY), SHMQ_EMPTY); /* one, and nothing behind it */
    /* a PAD at the end and, published at once, another that fills the ring from its start */
    struct shmq_record end = {.size = 64, .kind = SHMQ_RECORD_PAD};
    memcpy(p.w.data + CAPACITY - 64, &end, 8);
    memcpy(p.w.data, &pad, 8);
    p.ring->read_position = CAPACITY - 64;
    shmq_store_release(&p.w.lane->tail, 2 * CAPACITY - 64);
    struct shmq_record seen;
    const uint8_t *payload;
    CHECK_EQUAL(shmq_ring_begin(p.ring), SHMQ_OK);
    CHECK_EQUAL(shmq_ring_peek(p.ring, &seen, &payload), SHMQ_CORRUPT);
    pair_close(&p);
}

static void test_large_body_must_lie_inside_its_chunk_memory(void)
{
    struct pair p = pair_open(COMPLETIONS);
    fixture_chunk(p.f, 0, SHMQ_CHUNK_DATA_PLACE + 10000);
    struct shmq_record large = fixture_record(0, 0, 0, 8, 0);
    large.kind = SHMQ_RECORD_LARGE;
    const struct {
        uint64_t place;
        uint32_t size;
        int status;
    } cases[] = {
        {0, 10000, SHMQ_OK},          {0, 10001, SHMQ_CORRUPT},
        {9999, 1, SHMQ_OK},           {10000, 0, SHMQ_OK},
        {10000, 1, SHMQ_CORRUPT},     {10001, 0, SHMQ_CORRUPT},
        {UINT64_MAX, 1, SHMQ_CORRUPT}, {UINT64_MAX - 4, 0xffffffffu, SHMQ_CORRUPT},
        {5000, 0xffffffffu, SHMQ_CORRUPT},
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        large.chunk_place = cases[i].place;
        large.body_size = cases[i].size;
        CHECK_EQUAL(judge(&p, &large, large.size), cases[i].status);
    }
    large.body_size = 0;
    large.chunk_place = 0;
    large.properties_size = 9;
    CHECK_EQUAL(judge(&p, &large, large.size), SHMQ_CORRUPT);
    pair_close(&p);
}

/* Without chunk memory even an empty body at place 0 has nowhere to lie. */
static void test_large_record_without_chunk_memory_is_corrupt(void)
{
    struct pair p = pair_open(COMPLETIONS);
    struct shmq_record large = fixture_record(0, 0, 0, 8, 0);
    large.kind = SHMQ_RECORD_LARGE;
    CHECK_EQUAL(judge(&p, &large, large.size), SHMQ_CORRUPT);
    pair_close(&p);
}

static void test_completion_is_empty_then_done(void)
{
    struct pair p = pair_open(COMPLETIONS);
    struct shmq_completion seen;
    CHECK_EQUAL(shmq_lane_completion(&p.w, 0, &seen), SHMQ_EMPTY);
    struct shmq_completion entry = {.physical_offset = 4711, .queue_offset = 42, .size = 100};
    shmq_ring_consume(p.ring, 0, &entry);
    CHECK_EQUAL(shmq_lane_completion(&p.w, 0, &seen), SHMQ_EMPTY); /* written, not committed */
    shmq_store_release(&p.ring->slot->completion_tail, 1);
    CHECK_EQUAL(shmq_lane_completion(&p.w, 0, &seen), SHMQ_OK); /* it waits for no level */
    CHECK_EQUAL(seen.physical_offset, 4711);
    CHECK_EQUAL(seen.queue_offset, 42);
    entry.need = SHMQ_NEED_FLUSH;
    shmq_ring_consume(p.ring, 0, &entry);
    shmq_store_release(&p.ring->slot->completion_tail, 2);
    CHECK_EQUAL(shmq_lane_completion(&p.w, 1, &seen), SHMQ_EMPTY); /* appended, not flushed */
    shmq_store_release(&p.ring->slot->done_tail, 2);
    CHECK_EQUAL(shmq_lane_completion(&p.w, 1, &seen), SHMQ_OK);
    CHECK_EQUAL(seen.sequence, 1);
    for (uint32_t i = 0; i < COMPLETIONS; ++i) {
        shmq_ring_consume(p.ring, 0, &entry);
    }
    ring_publish(p.ring);
    CHECK_EQUAL(shmq_lane_completion(&p.w, 1, &seen), SHMQ_CORRUPT); /* its entry is another's now */
    pair_close(&p);
}

static void test_ended_session_answers_closed_but_keeps_what_was_appended(void)
{
    struct pair p = pair_open(COMPLETIONS);
    struct shmq_completion seen;
    struct shmq_completion entry = {.size = 100};
    shmq_ring_consume(p.ring, 0, &entry);
    shmq_store_release(&p.ring->slot->completion_tail, 1);
    shmq_ring_end(&p.f->append, p.ring, SHMQ_CORRUPT);
    CHECK_EQUAL(shmq_lane_completion(&p.w, 0, &seen), SHMQ_OK);
    CHECK_EQUAL(shmq_lane_completion(&p.w, 1, &seen), SHMQ_CLOSED);
    CHECK_EQUAL(shmq_load_relaxed32(&p.ring->slot->ended), -SHMQ_CORRUPT);
    pair_close(&p);
}

static void test_publish_wakes_only_a_sleeping_append_thread(void)
{
    struct pair p = pair_open(COMPLETIONS);
    int pipe_fds[2];
    CHECK(pipe(pipe_fds) == 0);
    p.w.event_fd = pipe_fds[1];
    CHECK_EQUAL(shmq_lane_publish(&p.w), 0);
    uint64_t word = 0;
    for (uint32_t sleep = 0; sleep < 3; ++sleep) {
        CHECK(shmq_append_sleep(&p.f->append)); /* nothing to do: its epoch is odd */
        CHECK_EQUAL(shmq_lane_publish(&p.w), 1);
        CHECK_EQUAL(read(pipe_fds[0], &word, sizeof word), sizeof word);
        CHECK_EQUAL(word, 1);
        CHECK_EQUAL(shmq_lane_publish(&p.w), 0); /* it was told and has not run yet: once is enough */
        if (sleep != 1) { /* the one that died asleep: its successor's sleep is another */
            shmq_append_wake(&p.f->append);
            CHECK_EQUAL(shmq_lane_publish(&p.w), 0);
        }
    }
    CHECK(fixture_put(&p.w, 0, 0, "x", 1, "", 0) >= 0);
    CHECK_EQUAL(shmq_lane_publish(&p.w), 0);
    CHECK(!shmq_append_sleep(&p.f->append)); /* there is a record: it may not sleep */
    CHECK_EQUAL(shmq_load_relaxed32(&p.f->control->sleep.append_sleeps) & 1, 0);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    pair_close(&p);
}

/* Sizes and readings drawn at random over many laps of the ring: what comes out is what went in, in order. */
static void test_random_traffic_round_many_laps_keeps_order_and_bytes(void)
{
    struct pair p = pair_open(64);
    uint64_t seed = check_seed();
    uint64_t sent = 0;
    uint64_t seen = 0;
    uint64_t fulls = 0;
    while (p.w.tail < 200 * CAPACITY) {
        uint32_t size = 8 + (uint32_t)(check_random(&seed) % 900);
        uint8_t body[1024];
        truth_body(body, size, 1, (uint32_t)sent);
        if (check_random(&seed) % 3 != 0) {
            if (fixture_put(&p.w, 1, 1, body, size, "", 0) >= 0) {
                ++sent;
                (void)shmq_lane_publish(&p.w);
            } else {
                ++fulls;
            }
        }
        if (check_random(&seed) % 4 == 0) {
            int status = shmq_ring_begin(p.ring);
            for (uint64_t n = check_random(&seed) % 8; status == SHMQ_OK && n > 0; --n) {
                struct shmq_record head;
                const uint8_t *payload;
                status = shmq_ring_peek(p.ring, &head, &payload);
                if (status == SHMQ_OK) {
                    uint8_t wanted[1024];
                    truth_body(wanted, head.body_size, 1, (uint32_t)seen);
                    CHECK_BYTES(payload, wanted, head.body_size);
                    struct shmq_completion completion = {.queue_offset = seen};
                    shmq_ring_consume(p.ring, head.size, &completion);
                    ++seen;
                }
            }
            CHECK(status != SHMQ_CORRUPT);
            ring_publish(p.ring);
            struct shmq_completion done;
            if (seen > p.w.completion_read) {
                CHECK_EQUAL(shmq_lane_completion(&p.w, seen - 1, &done), SHMQ_OK);
                CHECK_EQUAL(done.queue_offset, seen - 1);
            }
            shmq_lane_release(&p.w, seen);
        }
    }
    CHECK(fulls > 100 && sent - seen <= 64);
    pair_close(&p);
}

int main(void)
{
    RUN(test_record_comes_out_as_it_went_in);
    RUN(test_pad_fills_every_room_that_a_record_does_not_fit);
    RUN(test_record_that_fits_exactly_needs_no_pad);
    RUN(test_pad_alone_is_skipped);
    RUN(test_full_ring_refuses_until_the_broker_has_read);
    RUN(test_no_record_is_sent_without_a_free_completion_entry);
    RUN(test_broker_takes_nothing_without_a_free_completion_entry);
    RUN(test_impossible_tail_is_corrupt);
    RUN(test_impossible_completion_read_is_corrupt);
    RUN(test_head_that_no_producer_of_ours_writes_is_corrupt);
    RUN(test_ring_of_nothing_but_pads_is_corrupt);
    RUN(test_large_body_must_lie_inside_its_chunk_memory);
    RUN(test_large_record_without_chunk_memory_is_corrupt);
    RUN(test_completion_is_empty_then_done);
    RUN(test_ended_session_answers_closed_but_keeps_what_was_appended);
    RUN(test_publish_wakes_only_a_sleeping_append_thread);
    RUN(test_random_traffic_round_many_laps_keeps_order_and_bytes);
    return 0;
}
