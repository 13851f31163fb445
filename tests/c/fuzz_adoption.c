/* shmq-test: full-timeout 3000 */
/* The memory of a dead broker with bytes of it changed: session slots, ring slots, rows, blocks, turn records, hot slots,
 * frames. A successor adopts it or says CORRUPT; it never leaves its memory, and what it does comes to an end. So do
 * readers of such an arena. */
#define _GNU_SOURCE
#include "store_truth.h"

#define FILE_SIZE (1u << 13)
#define BLOCKS 12u
#define WRITERS 2u
#define CAPACITY SHMQ_PAGE
#define COMPLETIONS 32u

static uint64_t rounds(uint64_t by_default, uint64_t full)
{
    const char *is_full = getenv("SHMQ_FULL");
    return is_full != NULL && strcmp(is_full, "1") == 0 ? full : by_default;
}

struct place {
    uint8_t *bytes;
    size_t size;
};

static uint64_t edge(uint64_t random)
{
    static const uint64_t edges[] = {0, 1, 2, 3, 8, 63, 64, 165, 4096, 0xffff, 0x7fffffff, 0xffffffff, UINT64_MAX,
                                     UINT64_C(1) << 63, UINT64_C(1) << 40};
    return random % 2 == 0 ? edges[(random >> 8) % (sizeof edges / sizeof *edges)] : (random >> 8) % 200;
}

static void mutate(uint64_t *seed, const struct place *place)
{
    uint64_t random = check_random(seed);
    size_t at = (size_t)(random >> 16) % place->size;
    uint64_t value = edge(check_random(seed));
    switch (random % 4) {
    case 0:
        place->bytes[at] ^= (uint8_t)(1u << (random >> 8) % 8);
        break;
    case 1:
        at = at / 4 * 4;
        memcpy(place->bytes + at, &value, 4);
        break;
    case 2:
        at = at / 8 * 8;
        memcpy(place->bytes + at, &value, 8);
        break;
    default: /* a word of it elsewhere */
        at = at / 8 * 8;
        memcpy(place->bytes + at, place->bytes + (random >> 40) % (place->size / 8) * 8, 8);
    }
}

/* What the Appender's attach demands of a slot before it believes it. */
static int is_slot_right(const struct shmq_session_slot *slot)
{
    return slot->lane_count == 1 && slot->lane_capacity_bytes == CAPACITY &&
           slot->completion_capacity == COMPLETIONS && slot->service_id <= SHMQ_SERVICE_MAX;
}

static struct fixture *make_store(uint64_t *seed)
{
    struct fixture *f = fixture_open(FILE_SIZE, 3, BLOCKS);
    uint32_t rows[4], generations[4];
    struct shmq_lane_writer w[WRITERS];
    for (uint32_t i = 0; i < 4; ++i) {
        fixture_queue(f, "t", i, i == 3 ? SHMQ_ROW_FLUSH : 0, &rows[i], &generations[i]);
    }
    for (uint32_t i = 0; i < WRITERS; ++i) {
        fixture_attach(f, i, 1, CAPACITY, COMPLETIONS);
        fixture_writer(f, i, 0, &w[i]);
    }
    uint64_t turns = 40 + check_random(seed) % 60;
    for (uint64_t t = 0; t < turns; ++t) {
        for (uint64_t n = 1 + check_random(seed) % 3; n > 0; --n) {
            uint32_t who = (uint32_t)check_random(seed) % WRITERS;
            uint32_t queue = (uint32_t)check_random(seed) % 4;
            if (truth_put(&w[who], who * SHMQ_LANE_MAX, rows[queue], generations[queue], 8, "", 0) >= 0) {
                (void)shmq_lane_publish(&w[who]);
            }
        }
        if (t + 1 < turns) { /* the last ones are in the rings still */
            (void)shmq_turn_run(&f->append, 1700000000000, 1);
            shmq_store_release(&f->control->flush.flushed_position, f->append.log.log_end);
            (void)shmq_turn_settle(&f->append, 1);
        }
        for (uint32_t i = 0; i < WRITERS; ++i) {
            shmq_lane_release(&w[i], w[i].sequence);
        }
    }
    return f;
}

static void test_changed_memory_is_adopted_or_refused_and_hurts_nobody(void)
{
    uint64_t seed = check_seed();
    uint64_t adopted = 0, refused = 0, sessions = 0, entries = 0;
    struct fixture *f = NULL;
    uint8_t *region = NULL;
    for (uint64_t round = 0; round < rounds(20000, 1500000); ++round) {
        if (round % 100 == 0) {
            if (f != NULL) {
                munmap(region, f->shared_size);
                fixture_close(f);
            }
            f = make_store(&seed);
            region = fixture_region(f->shared_size);
        }
        snprintf(truth_context, sizeof truth_context, "round %" PRIu64, round);
        fixture_copy_objects(f, region, f->shared);
        struct fixture *copy = fixture_over(f, region);
        struct shmq_control *control = copy->control;
        uint64_t turn = shmq_load_relaxed(&control->append.turn_number);
        const struct place places[] = {
            {(uint8_t *)shmq_control_session_slot(control, 0), WRITERS * sizeof(struct shmq_session_slot)},
            {(uint8_t *)shmq_control_ring_slot(control, 0), (1 + SHMQ_LANE_MAX) * sizeof(struct shmq_ring_slot)},
            {(uint8_t *)shmq_control_queue_row(control, 0), 4 * sizeof(struct shmq_queue_row)},
            {(uint8_t *)shmq_control_turn_record(control, turn), 512},
            {(uint8_t *)shmq_control_hot_slot(control, 0), 3 * sizeof(struct shmq_hot_slot)},
            {(uint8_t *)&control->append, 56},
            {(uint8_t *)&control->flush, 16},
            {copy->arena + SHMQ_BLOCK_SIZE, 5 * SHMQ_BLOCK_SIZE},
            {copy->hot[shmq_load_relaxed(&control->append.committed_position) / FILE_SIZE % 3], FILE_SIZE},
            {copy->topics + SHMQ_TOPIC_ROWS_PLACE, 128},
            {copy->completion[0], shmq_completion_size(1, COMPLETIONS)},
            {copy->ingress[0], shmq_ingress_size(1, CAPACITY)},
        };
        for (uint64_t n = 1 + check_random(&seed) % 3; n > 0; --n) {
            mutate(&seed, &places[check_random(&seed) % (sizeof places / sizeof *places)]);
        }
        /* what memory there is, the successor knows by the sizes of the objects */
        if (shmq_load_relaxed32(&control->append.arena_block_count) > BLOCKS) {
            shmq_store_relaxed32(&control->append.arena_block_count, BLOCKS);
        }
        if (fixture_adopt(copy) == SHMQ_OK) {
            ++adopted;
            for (uint32_t i = 0; i < WRITERS; ++i) {
                if (is_slot_right(shmq_control_session_slot(control, i))) {
                    fixture_resume(copy, i);
                    ++sessions;
                }
            }
            for (uint32_t i = 0; i < 5; ++i) {
                (void)shmq_turn_run(&copy->append, 1700000000001, 1 + i * SHMQ_SETTLE_INTERVAL_NS);
                (void)shmq_turn_settle(&copy->append, 1 + i * SHMQ_SETTLE_INTERVAL_NS);
            }
        } else {
            ++refused;
        }
        for (uint32_t i = 0; i < 4; ++i) { /* and readers of what is there */
            const struct shmq_queue_row *queue = shmq_control_queue_row(control, i);
            struct shmq_cursor cursor = {.block = (uint32_t)edge(check_random(&seed))};
            struct shmq_found found[8];
            int count = shmq_consume_queue_read(copy->arena, BLOCKS, queue, i, shmq_load_relaxed32(&queue->generation),
                                                check_random(&seed) % 60, 8, &cursor, found);
            TRUTH(count <= 8);
            entries += count > 0 ? (uint64_t)count : 0;
        }
        fixture_private_free(copy);
        free(copy);
    }
    printf("adopted %" PRIu64 ", refused %" PRIu64 ", sessions %" PRIu64 ", entries read %" PRIu64 "\n", adopted,
           refused, sessions, entries);
    CHECK(adopted > 100 && refused > 100 && sessions > 100);
    munmap(region, f->shared_size);
    fixture_close(f);
}

int main(void)
{
    RUN(test_changed_memory_is_adopted_or_refused_and_hurts_nobody);
    return 0;
}
