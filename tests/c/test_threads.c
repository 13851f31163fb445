/* shmq-test: threads */
/* Threads stand in for processes over one mapping: producers, the append thread, the flusher, consumers that sleep on
 * bells, while blocks and files are reused. ThreadSanitizer looks for what is not ordered; lost wake-ups hang. */
#define _GNU_SOURCE
#include "store_truth.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>

#define PRODUCERS 3u
#define CONSUMERS 2u
#define QUEUES 4u
#define FILE_SIZE (1u << 15)
#define BLOCKS 24u
#define MESSAGES 4000u /* of each producer, a multiple of QUEUES */
/* A sleeper that comes back only after this long, and finds work, was forgotten. */
#define FORGOTTEN_NS UINT64_C(40000000000)

static struct fixture *store;
static uint32_t rows[QUEUES], generations[QUEUES]; /* the last queue is SYNC */
static int append_event;
static shmq_word32 stopping;
static shmq_word64 needed[CONSUMERS]; /* a consumer needs nothing below this position any more */
static shmq_word64 forgotten;
static shmq_word64 slept;

static void check_not_forgotten(uint64_t began_ns, int work)
{
    if (work && shmq_clock_ns(CLOCK_MONOTONIC) - began_ns >= FORGOTTEN_NS) {
        atomic_fetch_add(&forgotten, 1);
    }
    atomic_fetch_add(&slept, 1);
}

/* ---- producers -------------------------------------------------------------------------------------- */

/* Waits on the lane's bell until there is room (sequence UINT64_MAX) or the completion of `sequence`. */
static int producer_looks(struct shmq_lane_writer *w, uint64_t sequence, struct shmq_completion *done)
{
    if (sequence == UINT64_MAX) {
        uint8_t *at;
        shmq_lane_release(w, UINT64_MAX);
        return shmq_lane_claim(w, shmq_record_size(200, 7), &at) == SHMQ_OK;
    }
    int status = shmq_lane_completion(w, sequence, done);
    CHECK(status == SHMQ_OK || status == SHMQ_EMPTY);
    return status == SHMQ_OK;
}

static void producer_waits(struct shmq_lane_writer *w, uint64_t sequence, struct shmq_completion *done)
{
    struct shmq_ladder ladder = {.policy = sequence % 3 == 0 ? SHMQ_WAIT_BLOCKING : SHMQ_WAIT_ADAPTIVE};
    while (!producer_looks(w, sequence, done)) {
        if (shmq_ladder_climb(&ladder)) {
            continue;
        }
        uint32_t seen = shmq_bell_seen(w->bell);
        shmq_store_relaxed32(&w->lane->sleep_reason,
                             sequence == UINT64_MAX ? SHMQ_SLEEP_SPACE | SHMQ_SLEEP_DONE : SHMQ_SLEEP_DONE);
        shmq_sleep_begin(&w->lane->sleep_epoch);
        uint64_t began_ns = shmq_clock_ns(CLOCK_MONOTONIC);
        if (!producer_looks(w, sequence, done)) {
            shmq_futex_wait(&w->bell->bell, seen, FORGOTTEN_NS);
            check_not_forgotten(began_ns, producer_looks(w, sequence, done));
        }
        shmq_sleep_end(&w->lane->sleep_epoch);
    }
}

static void *producer(void *argument)
{
    uint32_t who = (uint32_t)(uintptr_t)argument;
    uint64_t random = 1 + who;
    struct shmq_lane_writer w;
    fixture_writer(store, who, 0, &w);
    w.event_fd = append_event;
    struct shmq_completion done;
    for (uint32_t i = 0; i < MESSAGES; ++i) {
        uint32_t queue = i % QUEUES;
        uint32_t size = 8 + (uint32_t)(check_random(&random) % 190);
        for (;;) { /* room is seen by read_position alone, unless completion entries run out */
            if (truth_put(&w, who * SHMQ_LANE_MAX, rows[queue], generations[queue], size, "TAGS\001a\002",
                          SHMQ_RECORD_WAIT) >= 0) {
                break;
            }
            producer_waits(&w, UINT64_MAX, &done);
        }
        if (check_random(&random) % 4 != 0 || i + 1 == MESSAGES) {
            (void)shmq_lane_publish(&w);
        }
        if (check_random(&random) % 16 == 0) { /* a synchronous send now and then */
            (void)shmq_lane_publish(&w);
            producer_waits(&w, w.sequence - 1, &done);
            CHECK(done.status == 0 && done.final_status == 0 && done.size > size);
        }
    }
    producer_waits(&w, w.sequence - 1, &done);
    return NULL;
}

/* ---- the broker ------------------------------------------------------------------------------------- */

/* What the control thread does between two turns: blocks and files that nobody needs are used again. */
static void reuse(void)
{
    uint64_t min = UINT64_MAX;
    for (uint32_t i = 0; i < CONSUMERS; ++i) {
        /* acquire: pairs with the release in consumer; its reads below are over */
        uint64_t position = shmq_load_acquire(&needed[i]);
        min = position < min ? position : min;
    }
    uint64_t flushed = shmq_load_acquire(&store->control->flush.flushed_position);
    min = flushed < min ? flushed : min;
    struct shmq_append *append = &store->append;
    for (uint32_t i = 0; i < QUEUES; ++i) {
        struct shmq_row *row = &append->rows[rows[i]];
        if (shmq_consume_queue_trim(&append->arena, shmq_control_queue_row(store->control, rows[i]), &row->chain,
                                    min) != 0 && append->blocked == (uint32_t)-SHMQ_ARENA_FULL) {
            append->blocked = 0;
        }
        row->staged_room = row->chain.tail_room;
    }
    uint64_t ready_end = shmq_load_relaxed(&append->log.ready_end);
    uint64_t oldest = ready_end - append->log.hot_slot_count * FILE_SIZE;
    if (oldest + FILE_SIZE <= min && ready_end - append->log.log_end < 2 * FILE_SIZE) {
        shmq_append_retire(append, oldest);
        fixture_ready(store, ready_end);
    }
}

static void *append_thread(void *argument)
{
    (void)argument;
    struct shmq_append *append = &store->append;
    struct shmq_ladder ladder = {.policy = SHMQ_WAIT_ADAPTIVE};
    uint64_t loops = 0;
    while (shmq_load_acquire32(&stopping) == 0) {
        uint64_t now_ns = shmq_clock_ns(CLOCK_MONOTONIC);
        uint32_t taken = shmq_turn_run(append, now_ns / 1000000u, now_ns);
        int settled = shmq_turn_settle(append, now_ns);
        if (++loops % 8 == 0 || append->blocked != 0) {
            reuse();
            if (append->blocked != 0) {
                sched_yield(); /* consumers must go on before there is room */
                continue;
            }
        }
        if (taken != 0 || settled) {
            ladder.step = 0;
            continue;
        }
        if (shmq_ladder_climb(&ladder) || !shmq_append_sleep(append)) {
            continue;
        }
        uint64_t began_ns = shmq_clock_ns(CLOCK_MONOTONIC);
        struct pollfd event = {.fd = append_event, .events = POLLIN};
        (void)poll(&event, 1, (int)(FORGOTTEN_NS / 1000000u));
        uint64_t word;
        (void)!read(append_event, &word, sizeof word); /* one eventfd for all: level-triggered here */
        check_not_forgotten(began_ns, shmq_turn_ready(append));
        shmq_append_wake(append);
        ladder.step = 0;
    }
    return NULL;
}

static void *flusher(void *argument)
{
    (void)argument;
    struct shmq_control *control = store->control;
    while (shmq_load_acquire32(&stopping) == 0) {
        uint64_t committed = shmq_load_acquire(&control->append.committed_position);
        if (committed != shmq_load_relaxed(&control->flush.flushed_position)) {
            shmq_store_release(&control->flush.flushed_position, committed);
            shmq_fence_full(); /* pairs with the fence in shmq_append_sleep */
            if ((shmq_load_relaxed32(&control->sleep.append_sleeps) & 1) != 0) {
                shmq_eventfd_signal(append_event);
            }
        }
        sched_yield();
    }
    return NULL;
}

/* ---- consumers -------------------------------------------------------------------------------------- */

struct consumer_state {
    uint32_t who;
    uint64_t next[QUEUES];
    uint64_t position[QUEUES]; /* of the next frame it may need, per queue */
    uint32_t last[QUEUES][PRODUCERS]; /* sequence + 1 of the last message seen */
    struct shmq_cursor cursors[QUEUES];
};

static int consumer_reads(struct consumer_state *c, uint32_t i)
{
    struct shmq_found found[16];
    const struct shmq_queue_row *queue = shmq_control_queue_row(store->control, rows[i]);
    int count = shmq_consume_queue_read(store->arena, BLOCKS, queue, rows[i], generations[i], c->next[i], 16,
                                        &c->cursors[i], found);
    if (count == SHMQ_EMPTY) {
        return 0;
    }
    CHECK(count > 0);
    for (int n = 0; n < count; ++n) {
        uint32_t slot = (uint32_t)(found[n].physical_offset / FILE_SIZE % store->control->config.hot_slot_count);
        const uint8_t *frame = store->hot[slot] + found[n].physical_offset % FILE_SIZE;
        struct shmq_message_view view;
        CHECK_EQUAL(shmq_message_check(frame, found[n].size, found[n].physical_offset, SHMQ_CHECK_RECORD_CRC, &view),
                    SHMQ_OK);
        CHECK_EQUAL(view.queue_offset, c->next[i]);
        CHECK_EQUAL(view.queue_id, i);
        uint32_t producer_index, sequence;
        memcpy(&producer_index, view.body, 4);
        memcpy(&sequence, view.body + 4, 4);
        producer_index /= SHMQ_LANE_MAX;
        CHECK(producer_index < PRODUCERS && sequence % QUEUES == i);
        CHECK_EQUAL(sequence, c->last[i][producer_index] == 0 ? i : c->last[i][producer_index] - 1 + QUEUES);
        c->last[i][producer_index] = sequence + 1;
        for (uint32_t b = TRUTH_BODY_MIN; b < view.body_size; ++b) {
            CHECK(view.body[b] == (uint8_t)(producer_index * SHMQ_LANE_MAX * 31 + sequence * 7 + b));
        }
        c->position[i] = found[n].physical_offset + found[n].size;
        c->next[i] += 1;
    }
    return count;
}

static void *consumer(void *argument)
{
    struct consumer_state c = {.who = (uint32_t)(uintptr_t)argument};
    uint32_t session = PRODUCERS + c.who;
    struct shmq_bell_line *bell = fixture_consumer_bell(store, session, 0);
    shmq_word32 *sleep_epoch = &fixture_sleeper(store, session, 0)->sleep_epoch;
    struct shmq_ladder ladder = {.policy = c.who == 0 ? SHMQ_WAIT_ADAPTIVE : SHMQ_WAIT_BLOCKING};
    const uint64_t all = (uint64_t)PRODUCERS * MESSAGES / QUEUES;
    uint64_t random = 77 + c.who;
    for (;;) {
        int got = 0;
        uint64_t open = 0;
        uint64_t min = UINT64_MAX;
        for (uint32_t i = c.who; i < QUEUES; i += CONSUMERS) {
            got += consumer_reads(&c, i);
            open += c.next[i] < all;
            min = c.position[i] < min ? c.position[i] : min;
            /* and an old place, trimmed or not: right or refused, never wrong */
            if (c.next[i] > 0) {
                struct shmq_cursor cursor = c.cursors[i];
                struct shmq_found old;
                uint64_t q = check_random(&random) % c.next[i];
                int status = shmq_consume_queue_read(store->arena, BLOCKS,
                                                     shmq_control_queue_row(store->control, rows[i]), rows[i],
                                                     generations[i], q, 1, &cursor, &old);
                CHECK(status == SHMQ_OFFSET_TOO_SMALL || (status == 1 && old.physical_offset < c.position[i]));
            }
        }
        /* release: pairs with the acquire in reuse: our reads below are over */
        shmq_store_release(&needed[c.who], open == 0 ? UINT64_MAX : min);
        if (open == 0) {
            return NULL;
        }
        if (got > 0) {
            ladder.step = 0;
            continue;
        }
        if (shmq_ladder_climb(&ladder)) {
            continue;
        }
        uint32_t seen = shmq_bell_seen(bell);
        shmq_sleep_begin(sleep_epoch);
        uint64_t began_ns = shmq_clock_ns(CLOCK_MONOTONIC);
        int work = 0;
        for (uint32_t look = 0; look < 2 && !work; ++look) {
            for (uint32_t i = c.who; i < QUEUES; i += CONSUMERS) {
                work |= shmq_load_acquire(&shmq_control_queue_row(store->control, rows[i])->visible_max) > c.next[i];
            }
            if (look == 0 && !work) {
                shmq_futex_wait(&bell->bell, seen, FORGOTTEN_NS);
            }
        }
        check_not_forgotten(began_ns, work);
        shmq_sleep_end(sleep_epoch);
        ladder.step = 0;
    }
}

static void start(pthread_t *thread, void *(*run)(void *), uint32_t number)
{
    CHECK(pthread_create(thread, NULL, run, (void *)(uintptr_t)number) == 0);
}

static void test_everybody_at_once_over_reused_memory(void)
{
    store = fixture_open(FILE_SIZE, 4, BLOCKS);
    uint32_t node = 0;
    append_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK(append_event >= 0);
    for (uint32_t i = 0; i < QUEUES; ++i) {
        fixture_queue(store, "t", i, i == QUEUES - 1 ? SHMQ_ROW_FLUSH : 0, &rows[i], &generations[i]);
    }
    for (uint32_t i = 0; i < PRODUCERS; ++i) {
        fixture_attach(store, i, 1, SHMQ_PAGE, 64);
    }
    for (uint32_t i = 0; i < CONSUMERS; ++i) {
        fixture_attach(store, PRODUCERS + i, 0, 0, 0);
        for (uint32_t q = i; q < QUEUES; q += CONSUMERS) {
            shmq_append_subscribe(&store->append, rows[q], (PRODUCERS + i) * SHMQ_CONSUMER_BELL_MAX, ++node);
        }
    }
    pthread_t threads[2 + PRODUCERS + CONSUMERS];
    start(&threads[0], append_thread, 0);
    start(&threads[1], flusher, 0);
    for (uint32_t i = 0; i < CONSUMERS; ++i) {
        start(&threads[2 + i], consumer, i);
    }
    for (uint32_t i = 0; i < PRODUCERS; ++i) {
        start(&threads[2 + CONSUMERS + i], producer, i);
    }
    for (uint32_t i = 2; i < 2 + PRODUCERS + CONSUMERS; ++i) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    shmq_store_release32(&stopping, 1);
    shmq_eventfd_signal(append_event);
    CHECK(pthread_join(threads[0], NULL) == 0 && pthread_join(threads[1], NULL) == 0);
    CHECK_EQUAL(forgotten, 0);
    CHECK_EQUAL(shmq_load_relaxed(&store->control->counters.messages_in), PRODUCERS * MESSAGES);
    CHECK(shmq_load_relaxed(&store->control->counters.files_rolled) > 8);
    printf("slept %" PRIu64 " times, %" PRIu64 " turns, %" PRIu64 " files\n", slept,
           store->append.turn_number, shmq_load_relaxed(&store->control->counters.files_rolled));
    close(append_event);
    fixture_close(store);
}

/* ---- queues that come and go under readers ---------------------------------------------------------- */

#define LIVES 3000u

/* generation and queue_offset of what is read there now; two words, so that a torn pair shows */
static shmq_word64 handle;
static shmq_word32 lives_over;

static uint64_t entry_position(uint32_t generation, uint64_t queue_offset)
{
    return (uint64_t)generation << 32 | queue_offset;
}

static void *handle_reader(void *argument)
{
    uint64_t random = 5 + (uintptr_t)argument;
    struct shmq_cursor cursor = {0};
    uint64_t found_count = 0;
    while (shmq_load_acquire32(&lives_over) == 0) {
        uint64_t seen = shmq_load_acquire(&handle);
        uint32_t row = (uint32_t)(seen >> 32);
        uint32_t generation = (uint32_t)seen;
        if (generation == 0) {
            continue;
        }
        const struct shmq_queue_row *queue = shmq_control_queue_row(store->control, row);
        for (uint32_t n = 0; n < 20; ++n) {
            struct shmq_found found[4];
            uint64_t q = check_random(&random) % 700;
            int count = shmq_consume_queue_read(store->arena, BLOCKS, queue, row, generation, q, 4, &cursor, found);
            CHECK(count > 0 || count == SHMQ_EMPTY || count == SHMQ_OFFSET_TOO_SMALL || count == SHMQ_FENCED);
            for (int i = 0; i < count; ++i) {
                CHECK_EQUAL(found[i].physical_offset, entry_position(generation, q + (uint64_t)i));
                CHECK_EQUAL(found[i].tags_code, (int64_t)(q + (uint64_t)i));
                CHECK_EQUAL(found[i].size, 100 + generation % 1000);
                ++found_count;
            }
            if (count == SHMQ_FENCED) {
                break;
            }
        }
    }
    return (void *)(uintptr_t)found_count;
}

static void test_readers_of_queues_that_come_and_go_read_their_own_or_nothing(void)
{
    store = fixture_open(FILE_SIZE, 2, BLOCKS);
    uint64_t seed = check_seed();
    uint32_t topic_row;
    CHECK_EQUAL(shmq_append_add_topic(&store->append, store->topics, (const uint8_t *)"t", 1, &topic_row), 0);
    pthread_t readers[3];
    for (uint32_t i = 0; i < 3; ++i) {
        start(&readers[i], handle_reader, i);
    }
    struct shmq_append *append = &store->append;
    for (uint32_t life = 0; life < LIVES; ++life) {
        uint32_t row, generation;
        CHECK_EQUAL(shmq_append_add_row(append, topic_row, 0, 0, 0, &row, &generation), SHMQ_OK);
        shmq_store_release(&handle, (uint64_t)row << 32 | generation);
        struct shmq_queue_row *queue = shmq_control_queue_row(store->control, row);
        struct shmq_chain *chain = &append->rows[row].chain;
        uint64_t count = check_random(&seed) % 700;
        for (uint64_t q = 0; q < count; ++q) {
            shmq_consume_queue_put(&append->arena, queue, row, chain, q, entry_position(generation, q),
                                   100 + generation % 1000, (int64_t)q);
            append->rows[row].next_queue_offset = q + 1;
            if (q % 50 == 0 || q + 1 == count) {
                shmq_store_release(&queue->max_queue_offset, q + 1);
                shmq_store_release(&queue->visible_max, q + 1);
            }
            if (q % 200 == 199) {
                (void)shmq_consume_queue_trim(&append->arena, queue, chain,
                                              entry_position(generation, check_random(&seed) % q));
            }
        }
        shmq_append_delete_row(append, row);
    }
    shmq_store_release32(&lives_over, 1);
    uint64_t found = 0;
    for (uint32_t i = 0; i < 3; ++i) {
        void *count;
        CHECK(pthread_join(readers[i], &count) == 0);
        found += (uint64_t)(uintptr_t)count;
    }
    printf("%" PRIu64 " entries read\n", found);
    CHECK(found > 0);
    CHECK_EQUAL(append->arena.free_count, BLOCKS - 1);
    fixture_close(store);
}

/* ---- two that do nothing but wait for each other ---------------------------------------------------- */

#define ROUNDS 20000u

struct partner {
    struct shmq_bell_line *bell; /* mine: the other rings it */
    shmq_word32 *sleep_epoch;    /* mine */
    struct shmq_bell_line *other_bell;
    shmq_word32 *other_sleep_epoch;
    shmq_word64 *ball; /* odd: mine to raise, or even */
    uint64_t parity;
    uint64_t *content; /* plain: ordered by the ball alone */
};

static void *partner(void *argument)
{
    struct partner *p = argument;
    uint32_t answered = 0;
    for (;;) {
        uint64_t ball = shmq_load_acquire(p->ball);
        while (ball % 2 != p->parity && ball < ROUNDS) {
            uint32_t seen = shmq_bell_seen(p->bell);
            shmq_sleep_begin(p->sleep_epoch);
            ball = shmq_load_acquire(p->ball);
            if (ball % 2 != p->parity && ball < ROUNDS) {
                uint64_t began_ns = shmq_clock_ns(CLOCK_MONOTONIC);
                shmq_futex_wait(&p->bell->bell, seen, FORGOTTEN_NS);
                ball = shmq_load_acquire(p->ball);
                check_not_forgotten(began_ns, ball % 2 == p->parity || ball >= ROUNDS);
            }
            shmq_sleep_end(p->sleep_epoch);
        }
        if (ball < ROUNDS) {
            CHECK_EQUAL(*p->content, ball);
            *p->content = ball + 1;
            shmq_store_release(p->ball, ball + 1);
        }
        shmq_fence_full(); /* pairs with the other's fence in shmq_sleep_begin */
        (void)shmq_bell_ring(p->other_bell, p->other_sleep_epoch, &answered);
        if (ball + 1 >= ROUNDS) {
            return NULL;
        }
    }
}

static void test_two_that_only_wait_for_each_other_never_both_sleep(void)
{
    uint8_t *region = fixture_region(SHMQ_PAGE);
    struct shmq_bell_line *bells = (struct shmq_bell_line *)(void *)region;
    struct shmq_sleeper *sleepers = (struct shmq_sleeper *)(void *)(region + 1024);
    shmq_word64 *ball = (shmq_word64 *)(void *)(region + 2048);
    uint64_t *content = (uint64_t *)(void *)(region + 3072);
    struct partner partners[2];
    pthread_t threads[2];
    forgotten = 0;
    for (uint32_t i = 0; i < 2; ++i) {
        partners[i] = (struct partner){&bells[i], &sleepers[i].sleep_epoch, &bells[1 - i],
                                       &sleepers[1 - i].sleep_epoch, ball, i, content};
        CHECK(pthread_create(&threads[i], NULL, partner, &partners[i]) == 0);
    }
    CHECK(pthread_join(threads[0], NULL) == 0 && pthread_join(threads[1], NULL) == 0);
    CHECK_EQUAL(forgotten, 0);
    CHECK_EQUAL(*content, ROUNDS);
    munmap(region, SHMQ_PAGE);
}

int main(void)
{
    RUN(test_everybody_at_once_over_reused_memory);
    RUN(test_readers_of_queues_that_come_and_go_read_their_own_or_nothing);
    RUN(test_two_that_only_wait_for_each_other_never_both_sleep);
    return 0;
}
