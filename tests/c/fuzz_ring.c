/* shmq-test: full-timeout 3000 */
/* A hostile producer scribbles over its lanes, its chunk memory and its positions, between the turns and while they run;
 * two honest ones send beside it. Nothing is read or written out of bounds (the sanitizers say so), every turn ends,
 * what is appended is well formed, and the honest ones are answered by the very next turns. */
#define _GNU_SOURCE
#include "store_truth.h"

#include <pthread.h>

#define FILE_SIZE (1u << 17)
#define FILES 3u
#define BLOCKS 64u
#define LANES 2u
#define CAPACITY 8192u
#define COMPLETIONS 32u
#define CHUNK_SIZE (SHMQ_CHUNK_DATA_PLACE + 30000u)
#define HONEST 2u

struct world {
    struct fixture *f;
    uint64_t random;
    struct shmq_lane_writer hostile[LANES];
    struct shmq_lane_writer honest[HONEST];
    uint32_t rows[1 + HONEST], generations[1 + HONEST]; /* queue 0 is the hostile one's */
    uint64_t lives, accepted, refused, rounds;
    uint64_t log_begin;
};

static uint64_t draw(struct world *w)
{
    return check_random(&w->random);
}

/* Numbers that break things more often than others. */
static uint64_t edge(uint64_t random, uint64_t around)
{
    static const uint64_t edges[] = {0,         1,          7,          8,          63,         64,
                                     65,        4095,       4096,       0x7fffffff, 0x80000000, 0xffffffff,
                                     0xfffffff8, UINT64_MAX, UINT64_MAX - 7, UINT64_C(1) << 63};
    switch (random % 4) {
    case 0:
        return edges[(random >> 8) % (sizeof edges / sizeof *edges)];
    case 1:
        return around + (random >> 8) % 17 - 8;
    case 2:
        return around + 8 * ((random >> 8) % 65) - 256;
    default:
        return random >> 8;
    }
}

/* ---- what the hostile one does ---------------------------------------------------------------------- */

/* One scribble that needs no position of its own: also what the racing thread does. */
static void scribble(const struct shmq_lane_writer *lanes, uint8_t *chunk, uint64_t random)
{
    const struct shmq_lane_writer *lane = &lanes[random % LANES];
    uint64_t place = (random >> 4) % CAPACITY;
    uint64_t value = edge(random >> 20, shmq_load_relaxed(&lane->lane->tail));
    switch ((random >> 40) % 8) {
    case 0:
    case 1: /* a field of some record head */
        place = place / 8 * 8;
        memcpy(lane->data + place, &value, (random >> 50) % 2 ? 8 : 4);
        break;
    case 2: /* a kind */
        place = place / 64 * 64 + 4;
        lane->data[place] = (uint8_t)(random >> 52) % 5;
        lane->data[place + 1] = 0;
        break;
    case 3:
        lane->data[place] = (uint8_t)(random >> 52);
        break;
    case 4: /* properties under judgement */
        lane->data[place] = (random >> 52) % 2 ? SHMQ_PROPERTY_NAME_END : SHMQ_PROPERTY_VALUE_END;
        break;
    case 5:
        chunk[SHMQ_CHUNK_DATA_PLACE + (random >> 4) % (CHUNK_SIZE - SHMQ_CHUNK_DATA_PLACE)] = (uint8_t)(random >> 52);
        break;
    case 6:
        shmq_store_relaxed32(&lane->lane->sleep_epoch, (uint32_t)value);
        shmq_store_relaxed32(&lane->lane->sleep_reason, (uint32_t)(value >> 32));
        break;
    default:
        if ((random >> 56) % 16 == 0) {
            shmq_store_release(&lane->lane->completion_read, value);
        }
    }
}

/* A record that is right but for what is drawn. */
static void send_something(struct world *w)
{
    struct shmq_lane_writer *lane = &w->hostile[draw(w) % LANES];
    uint64_t random = draw(w);
    uint32_t body_size = (uint32_t)(random % 300);
    const char *properties = (random >> 10) % 2 ? "TAGS\001a\002KEYS\001k\002" : "";
    struct shmq_record record =
        fixture_record(w->rows[0], w->generations[0], body_size, (uint32_t)strlen(properties), (uint16_t)(random >> 12) % 2);
    if ((random >> 16) % 4 == 0) {
        record.kind = SHMQ_RECORD_LARGE;
        record.size = shmq_record_size(0, record.properties_size);
        record.body_size = (uint32_t)(random >> 20) % 20000;
        record.chunk_place = draw(w) % 12000;
    }
    uint8_t *at;
    uint32_t space = record.size;
    lane->completion_read = lane->sequence; /* it does not count its answers */
    if (shmq_lane_claim(lane, space, &at) != SHMQ_OK) {
        return;
    }
    switch ((random >> 32) % 24) { /* mostly right, or it would never get beyond the head */
    case 0:
        record.size = (uint32_t)edge(draw(w), record.size);
        break;
    case 1:
        record.kind = (uint16_t)edge(draw(w), 2);
        break;
    case 2:
        record.body_size = (uint32_t)edge(draw(w), record.body_size);
        break;
    case 3:
        record.properties_size = (uint32_t)edge(draw(w), record.properties_size);
        break;
    case 4:
        record.chunk_place = edge(draw(w), CHUNK_SIZE - SHMQ_CHUNK_DATA_PLACE);
        break;
    case 5:
        record.queue_row = (uint32_t)edge(draw(w), record.queue_row);
        break;
    case 6:
        record.row_generation = (uint32_t)draw(w);
        break;
    case 7:
    case 8:
        record.sys_flag = (int32_t)draw(w);
        record.reconsume_times = (int32_t)draw(w);
        record.born_timestamp = (int64_t)draw(w);
        break;
    default:
        break;
    }
    memcpy(at, &record, sizeof record);
    check_fill_random(&w->random, at + sizeof record, space - sizeof record);
    memcpy(at + space - 8 - strlen(properties), properties, strlen(properties));
    (void)shmq_lane_commit(lane, space);
    (void)shmq_lane_publish(lane);
    shmq_store_release(&lane->lane->completion_read, shmq_load_relaxed(&lane->slot->done_tail));
}

static void lie_about_the_tail(struct world *w)
{
    struct shmq_lane_writer *lane = &w->hostile[draw(w) % LANES];
    uint64_t tail = edge(draw(w), lane->tail);
    shmq_store_release(&lane->lane->tail, tail);
}

/* ---- the broker and the honest ---------------------------------------------------------------------- */

/* It may send to its own queue only. */
static void grant_hostile(struct world *w)
{
    static uint64_t grants;
    grants = UINT64_C(1) << w->rows[0];
    shmq_append_grant(&w->f->append, 0, &grants, 64);
}

static void attach_hostile(struct world *w)
{
    struct shmq_session_slot *slot = shmq_control_session_slot(w->f->control, 0);
    shmq_append_detach(&w->f->append, 0);
    slot->generation += 1;
    memset(w->f->ingress[0], 0, shmq_ingress_size(LANES, CAPACITY));
    shmq_append_clear_rings(&w->f->append, 0);
    fixture_resume(w->f, 0);
    grant_hostile(w);
    for (uint32_t i = 0; i < LANES; ++i) {
        fixture_writer(w->f, 0, i, &w->hostile[i]);
    }
    ++w->lives;
}

static struct world world_open(uint64_t seed)
{
    struct world w = {.random = seed};
    w.f = fixture_open(FILE_SIZE, FILES, BLOCKS);
    for (uint32_t i = 0; i < 1 + HONEST; ++i) {
        fixture_queue(w.f, i == 0 ? "hostile" : "honest", i, 0, &w.rows[i], &w.generations[i]);
        fixture_attach(w.f, i, i == 0 ? LANES : 1, CAPACITY, COMPLETIONS);
    }
    fixture_chunk(w.f, 0, CHUNK_SIZE);
    grant_hostile(&w);
    for (uint32_t i = 0; i < HONEST; ++i) {
        fixture_writer(w.f, 1 + i, 0, &w.honest[i]);
    }
    for (uint32_t i = 0; i < LANES; ++i) {
        fixture_writer(w.f, 0, i, &w.hostile[i]);
    }
    return w;
}

/* Everything in hot memory is well formed, and of the honest queues every message is as it was sent. */
static void check_log(struct world *w)
{
    uint64_t position = w->log_begin;
    uint64_t end = shmq_load_relaxed(&w->f->control->append.committed_position);
    while (position < end) {
        const uint8_t *frame = shmq_commit_log_at(&w->f->append.log, position);
        uint64_t room = FILE_SIZE - position % FILE_SIZE;
        struct shmq_message_view view;
        int status = shmq_message_check(frame, room, position, SHMQ_CHECK_RECORD_CRC, &view);
        if (status == SHMQ_BLANK) {
            position += room;
            continue;
        }
        TRUTH(status == SHMQ_OK);
        struct shmq_properties_summary summary;
        TRUTH(shmq_properties_check(view.properties, view.properties_size, SHMQ_GRANT_SERVICE, &summary) == SHMQ_OK);
        if (view.topic_size == 6) {
            uint8_t wanted[64];
            uint32_t producer, sequence;
            TRUTH(view.body_size == sizeof wanted);
            memcpy(&producer, view.body, 4);
            memcpy(&sequence, view.body + 4, 4);
            truth_body(wanted, sizeof wanted, producer, sequence);
            TRUTH(view.queue_id == 1 + producer && view.queue_offset == sequence);
            TRUTH(memcmp(view.body, wanted, sizeof wanted) == 0);
        } else {
            TRUTH((view.sys_flag & ~(uint32_t)SHMQ_SYS_FLAG_CLIENT) == 0 && view.reconsume_times == 0);
        }
        position += view.total_size;
    }
    TRUTH(position == end);
}

static void make_room(struct world *w)
{
    struct shmq_append *append = &w->f->append;
    uint64_t ready_end = shmq_load_relaxed(&append->log.ready_end);
    if (ready_end - append->log.log_end >= FILE_SIZE) {
        return;
    }
    check_log(w);
    w->log_begin = ready_end - (FILES - 1) * FILE_SIZE;
    shmq_append_retire(append, ready_end - FILES * FILE_SIZE);
    for (uint32_t i = 0; i < 1 + HONEST; ++i) {
        struct shmq_row *row = &append->rows[w->rows[i]];
        (void)shmq_consume_queue_trim(&append->arena, shmq_control_queue_row(w->f->control, w->rows[i]), &row->chain,
                                      w->log_begin);
        row->staged_room = row->chain.tail_room;
    }
    fixture_ready(w->f, ready_end);
}

/* The honest send one message each and are answered by the second turn at the latest: a turn may have been
 * full of the hostile one's before it came to them. */
static void one_round(struct world *w)
{
    make_room(w);
    for (uint32_t i = 0; i < HONEST; ++i) {
        uint8_t body[64];
        truth_body(body, sizeof body, i, (uint32_t)w->honest[i].sequence);
        TRUTH(fixture_put(&w->honest[i], w->rows[1 + i], w->generations[1 + i], body, sizeof body, "", 0) >= 0);
        (void)shmq_lane_publish(&w->honest[i]);
    }
    uint64_t refused = shmq_load_relaxed(&w->f->control->counters.records_refused);
    uint64_t taken = 0;
    for (uint32_t turns = 0; turns < 2; ++turns) {
        taken += shmq_turn_run(&w->f->append, 1700000000000, 1);
        (void)shmq_turn_settle(&w->f->append, 1);
    }
    refused = shmq_load_relaxed(&w->f->control->counters.records_refused) - refused;
    TRUTH(w->f->append.blocked == 0);
    for (uint32_t i = 0; i < HONEST; ++i) {
        struct shmq_completion done;
        TRUTH(shmq_lane_completion(&w->honest[i], w->honest[i].sequence - 1, &done) == SHMQ_OK && done.status == 0);
        shmq_lane_release(&w->honest[i], w->honest[i].sequence);
    }
    w->refused += refused;
    w->accepted += taken >= refused + HONEST ? taken - refused - HONEST : 0;
    if (w->f->append.rings[0].state == SHMQ_RING_ENDED || w->f->append.rings[1].state == SHMQ_RING_ENDED) {
        attach_hostile(w);
    }
    ++w->rounds;
}

static void world_close(struct world *w, const char *name)
{
    check_log(w);
    printf("%s: %" PRIu64 " rounds, %" PRIu64 " hostile records taken, %" PRIu64 " refused, %" PRIu64
           " sessions ended\n",
           name, w->rounds, w->accepted, w->refused, w->lives);
    fixture_close(w->f);
}

static uint64_t rounds(uint64_t by_default, uint64_t full)
{
    const char *is_full = getenv("SHMQ_FULL");
    return is_full != NULL && strcmp(is_full, "1") == 0 ? full : by_default;
}

static void test_scribbles_between_turns_hurt_nobody_else(void)
{
    struct world w = world_open(check_seed());
    for (uint64_t i = rounds(15000, 3000000); i > 0; --i) {
        snprintf(truth_context, sizeof truth_context, "round %" PRIu64, w.rounds);
        for (uint64_t n = draw(&w) % 8; n > 0; --n) {
            send_something(&w);
        }
        if (draw(&w) % 8 == 0) {
            scribble(w.hostile, w.f->chunk[0], draw(&w));
        }
        if (draw(&w) % 64 == 0) {
            lie_about_the_tail(&w);
        }
        one_round(&w);
    }
    CHECK(w.accepted > 1000 && w.refused > 100 && w.lives > 100);
    world_close(&w, "between turns");
}

/* ---- and while the turns run ------------------------------------------------------------------------ */

static struct shmq_lane_writer raced[LANES]; /* where the lanes lie; the rest of it means nothing here */
static uint8_t *raced_chunk;
static shmq_word32 race_over;

static void *race(void *argument)
{
    uint64_t random = (uint64_t)(uintptr_t)argument;
    while (shmq_load_acquire32(&race_over) == 0) {
        for (uint32_t i = 0; i < 64; ++i) {
            scribble(raced, raced_chunk, check_random(&random));
        }
    }
    return NULL;
}

static void test_scribbles_during_turns_hurt_nobody_else(void)
{
    struct world w = world_open(check_seed() + 1);
    pthread_t thread;
    memcpy(raced, w.hostile, sizeof raced);
    raced_chunk = w.f->chunk[0];
    CHECK(pthread_create(&thread, NULL, race, (void *)(uintptr_t)77) == 0);
    for (uint64_t i = rounds(8000, 2000000); i > 0; --i) {
        snprintf(truth_context, sizeof truth_context, "raced round %" PRIu64, w.rounds);
        for (uint64_t n = draw(&w) % 6; n > 0; --n) {
            send_something(&w);
        }
        one_round(&w);
    }
    shmq_store_release32(&race_over, 1);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(w.accepted > 100 && w.lives > 100);
    world_close(&w, "during turns");
}

int main(void)
{
    RUN(test_scribbles_between_turns_hurt_nobody_else);
    RUN(test_scribbles_during_turns_hurt_nobody_else);
    return 0;
}
