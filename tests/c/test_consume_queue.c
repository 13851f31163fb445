/* consume_queue.h: entries in chains of blocks, found, trimmed and reused. Readers that race with all this are in
 * test_threads.c. */
#define _GNU_SOURCE
#include "store_truth.h"

#define BLOCKS 1024u

/* One queue, filled without a log: entry q says position q * 100, size 100 + q % 7, tags q * 3. */
struct bench {
    struct fixture *f;
    struct shmq_queue_row *queue;
    struct shmq_row *shadow;
    uint32_t row, generation;
    struct shmq_cursor cursor;
};

static struct bench bench_open(void)
{
    struct bench b = {0};
    b.f = fixture_open(1u << 16, 2, BLOCKS);
    fixture_queue(b.f, "t", 0, 0, &b.row, &b.generation);
    b.queue = shmq_control_queue_row(b.f->control, b.row);
    b.shadow = &b.f->append.rows[b.row];
    return b;
}

static void fill_row(struct bench *b, uint32_t row, uint64_t count)
{
    struct shmq_queue_row *queue = shmq_control_queue_row(b->f->control, row);
    struct shmq_row *shadow = &b->f->append.rows[row];
    for (uint64_t i = 0; i < count; ++i) {
        uint64_t q = shadow->next_queue_offset++;
        shmq_consume_queue_put(&b->f->append.arena, queue, row, &shadow->chain, q, q * 100, 100 + (uint32_t)(q % 7),
                               (int64_t)(q * 3));
    }
    shmq_store_release(&queue->max_queue_offset, shadow->next_queue_offset);
    shmq_store_release(&queue->visible_max, shadow->next_queue_offset);
}

static int read_at(struct bench *b, uint64_t queue_offset, uint32_t count, struct shmq_found *found)
{
    return shmq_consume_queue_read(b->f->arena, BLOCKS, b->queue, b->row, b->generation, queue_offset, count,
                                   &b->cursor, found);
}

static void expect(const struct shmq_found *found, uint64_t q)
{
    CHECK_EQUAL(found->physical_offset, q * 100);
    CHECK_EQUAL(found->size, 100 + q % 7);
    CHECK_EQUAL(found->tags_code, (int64_t)(q * 3));
}

static void test_entries_of_a_long_chain_are_found_in_any_order(void)
{
    struct bench b = bench_open();
    uint64_t seed = check_seed();
    struct shmq_found found[8];
    fill_row(&b, b.row, 100000);
    for (uint32_t i = 0; i < 20000; ++i) {
        uint64_t q = check_random(&seed) % 100000;
        if (i % 2 == 0) {
            memset(&b.cursor, 0, sizeof b.cursor); /* as if never here before */
        }
        CHECK_EQUAL(read_at(&b, q, 1, found), 1);
        expect(found, q);
    }
    fixture_close(b.f);
}

static void test_one_call_reads_across_blocks_up_to_what_is_visible(void)
{
    struct bench b = bench_open();
    static struct shmq_found found[2000];
    fill_row(&b, b.row, 1000);
    for (uint32_t begin = 0; begin < 1000; begin += 37) {
        for (uint32_t count = 1; count < 1400; count += 211) {
            int wanted = (int)(count < 1000 - begin ? count : 1000 - begin);
            CHECK_EQUAL(read_at(&b, begin, count, found), wanted);
            for (int i = 0; i < wanted; ++i) {
                expect(&found[i], begin + (uint32_t)i);
            }
        }
    }
    shmq_store_release(&b.queue->visible_max, 500); /* held back: there, but not to be seen */
    CHECK_EQUAL(read_at(&b, 499, 100, found), 1);
    CHECK_EQUAL(read_at(&b, 500, 100, found), SHMQ_EMPTY);
    CHECK_EQUAL(read_at(&b, UINT64_MAX, 100, found), SHMQ_EMPTY);
    fixture_close(b.f);
}

/* A cold reader must not step through every block: those that the skips leave out are made unreadable. */
static void test_cold_reader_skips_most_of_a_long_chain(void)
{
    struct bench b = bench_open();
    struct shmq_found found;
    fill_row(&b, b.row, 900 * SHMQ_BLOCK_ENTRIES);
    for (uint32_t n = 1; n < BLOCKS; ++n) {
        struct shmq_block_header *head = &shmq_arena_block(b.f->arena, n)->header;
        uint32_t ordinal = shmq_load_relaxed32(&head->ordinal);
        if (ordinal % SHMQ_SKIP_DISTANCE == 0 || ordinal >= 896 ||
            (ordinal >= 10 && ordinal < SHMQ_SKIP_DISTANCE)) {
            continue;
        }
        shmq_store_relaxed32(&head->queue_row, SHMQ_NO_ROW);
    }
    /* from the tail to 896, by skips to 64, then one by one to 12 */
    CHECK_EQUAL(read_at(&b, 12 * SHMQ_BLOCK_ENTRIES + 5, 1, &found), 1);
    expect(&found, 12 * SHMQ_BLOCK_ENTRIES + 5);
    fixture_close(b.f);
}

static void test_warm_reader_goes_forward_from_where_it_stands(void)
{
    struct bench b = bench_open();
    struct shmq_found found;
    fill_row(&b, b.row, 50 * SHMQ_BLOCK_ENTRIES);
    CHECK_EQUAL(read_at(&b, 0, 1, &found), 1);
    uint32_t tail = shmq_load_relaxed32(&b.queue->tail_block);
    shmq_store_relaxed32(&b.queue->tail_block, 0); /* nobody can come from the tail now */
    for (uint64_t q = 0; q < 50 * SHMQ_BLOCK_ENTRIES; q += 100) {
        CHECK_EQUAL(read_at(&b, q, 1, &found), 1);
        expect(&found, q);
    }
    shmq_store_relaxed32(&b.queue->tail_block, tail);
    fixture_close(b.f);
}

static uint32_t trim(struct bench *b, uint64_t min_position)
{
    uint32_t freed = shmq_consume_queue_trim(&b->f->append.arena, b->queue, &b->shadow->chain, min_position);
    b->shadow->staged_room = b->shadow->chain.tail_room;
    return freed;
}

static void test_trim_frees_blocks_whose_entries_are_all_below(void)
{
    struct bench b = bench_open();
    struct shmq_found found;
    fill_row(&b, b.row, 10 * SHMQ_BLOCK_ENTRIES + 7);
    uint32_t free_before = b.f->append.arena.free_count;
    CHECK_EQUAL(read_at(&b, 0, 1, &found), 1); /* a reader stands at the head */
    CHECK_EQUAL(trim(&b, 0), 0);
    CHECK_EQUAL(trim(&b, (SHMQ_BLOCK_ENTRIES - 1) * 100), 0); /* its last entry is still needed */
    CHECK_EQUAL(trim(&b, (SHMQ_BLOCK_ENTRIES - 1) * 100 + 1), 1);
    CHECK_EQUAL(trim(&b, 3 * SHMQ_BLOCK_ENTRIES * 100), 2);
    CHECK_EQUAL(b.f->append.arena.free_count, free_before + 3);
    CHECK_EQUAL(shmq_load_relaxed(&b.queue->hot_min_queue_offset), 3 * SHMQ_BLOCK_ENTRIES);
    for (uint64_t q = 0; q < 10 * SHMQ_BLOCK_ENTRIES + 7; q += 11) {
        if (q < 3 * SHMQ_BLOCK_ENTRIES) {
            CHECK_EQUAL(read_at(&b, q, 1, &found), SHMQ_OFFSET_TOO_SMALL);
        } else {
            CHECK_EQUAL(read_at(&b, q, 1, &found), 1);
            expect(&found, q);
        }
    }
    fixture_close(b.f);
}

static void test_trim_keeps_what_is_not_visible_yet(void)
{
    struct bench b = bench_open();
    fill_row(&b, b.row, 3 * SHMQ_BLOCK_ENTRIES);
    shmq_store_release(&b.queue->visible_max, SHMQ_BLOCK_ENTRIES + 1);
    CHECK_EQUAL(trim(&b, UINT64_MAX), 1);
    shmq_store_release(&b.queue->visible_max, 2 * SHMQ_BLOCK_ENTRIES);
    CHECK_EQUAL(trim(&b, UINT64_MAX), 1);
    shmq_store_release(&b.queue->visible_max, 3 * SHMQ_BLOCK_ENTRIES);
    CHECK_EQUAL(trim(&b, UINT64_MAX), 1);
    CHECK_EQUAL(b.f->append.arena.free_count, BLOCKS - 1);
    fixture_close(b.f);
}

static void test_queue_whose_whole_chain_is_cold_keeps_no_block_and_goes_on(void)
{
    struct bench b = bench_open();
    struct shmq_found found[300];
    fill_row(&b, b.row, SHMQ_BLOCK_ENTRIES + 40);
    CHECK_EQUAL(read_at(&b, SHMQ_BLOCK_ENTRIES + 39, 1, found), 1);
    CHECK_EQUAL(trim(&b, UINT64_MAX), 2);
    CHECK_EQUAL(b.f->append.arena.free_count, BLOCKS - 1);
    CHECK_EQUAL(shmq_load_relaxed32(&b.queue->head_block), 0);
    CHECK_EQUAL(shmq_load_relaxed32(&b.queue->tail_block), 0);
    uint64_t cold = SHMQ_BLOCK_ENTRIES + 40;
    CHECK_EQUAL(shmq_load_relaxed(&b.queue->hot_min_queue_offset), cold);
    CHECK_EQUAL(read_at(&b, cold - 1, 1, found), SHMQ_OFFSET_TOO_SMALL);
    CHECK_EQUAL(read_at(&b, cold, 1, found), SHMQ_EMPTY);
    CHECK_EQUAL(trim(&b, UINT64_MAX), 0);
    fill_row(&b, b.row, 2 * SHMQ_BLOCK_ENTRIES); /* the next block begins where the last one stopped */
    CHECK_EQUAL(shmq_load_relaxed(&b.queue->hot_min_queue_offset), cold);
    CHECK_EQUAL(read_at(&b, cold - 1, 1, found), SHMQ_OFFSET_TOO_SMALL);
    CHECK_EQUAL(read_at(&b, cold, 300, found), 300);
    for (uint32_t i = 0; i < 300; ++i) {
        expect(&found[i], cold + i);
    }
    fixture_close(b.f);
}

/* A reader's remembered block may be anything by now: another queue's, or a later part of its own chain. */
static void test_remembered_block_that_changed_hands_misleads_nobody(void)
{
    struct bench b = bench_open();
    struct shmq_found found;
    uint32_t other, generation;
    fixture_queue(b.f, "t", 1, 0, &other, &generation);
    fill_row(&b, b.row, 4 * SHMQ_BLOCK_ENTRIES);
    CHECK_EQUAL(read_at(&b, 5, 1, &found), 1);
    struct shmq_cursor stale = b.cursor;
    CHECK_EQUAL(trim(&b, SHMQ_BLOCK_ENTRIES * 100), 1);
    uint32_t number = stale.block;
    CHECK_EQUAL(b.f->append.arena.free_blocks[b.f->append.arena.free_count - 1], number);
    CHECK_EQUAL(read_at(&b, 2 * SHMQ_BLOCK_ENTRIES, 1, &found), 1); /* the block is free: odd */
    fill_row(&b, other, 10); /* it is the other queue's */
    CHECK_EQUAL(shmq_load_relaxed32(&shmq_control_queue_row(b.f->control, other)->tail_block), number);
    b.cursor = stale;
    CHECK_EQUAL(read_at(&b, 2 * SHMQ_BLOCK_ENTRIES + 1, 1, &found), 1);
    expect(&found, 2 * SHMQ_BLOCK_ENTRIES + 1);
    b.cursor = stale;
    CHECK_EQUAL(read_at(&b, 5, 1, &found), SHMQ_OFFSET_TOO_SMALL);
    shmq_append_delete_row(&b.f->append, other);
    fill_row(&b, b.row, SHMQ_BLOCK_ENTRIES); /* now it is the tail of its own old chain */
    CHECK_EQUAL(shmq_load_relaxed32(&b.queue->tail_block), number);
    b.cursor = stale;
    CHECK_EQUAL(read_at(&b, 5, 1, &found), SHMQ_OFFSET_TOO_SMALL);
    for (uint64_t q = SHMQ_BLOCK_ENTRIES; q < 5 * SHMQ_BLOCK_ENTRIES; q += 50) {
        b.cursor = stale;
        CHECK_EQUAL(read_at(&b, q, 1, &found), 1);
        expect(&found, q);
    }
    fixture_close(b.f);
}

static void test_block_that_changes_while_it_is_read_is_read_again(void)
{
    struct bench b = bench_open();
    struct shmq_found found;
    fill_row(&b, b.row, 10);
    struct shmq_block_header *head =
        &shmq_arena_block(b.f->arena, shmq_load_relaxed32(&b.queue->head_block))->header;
    uint64_t generation = shmq_load_relaxed(&head->generation);
    shmq_store_relaxed(&head->generation, generation | 1); /* it is changing hands at this moment, for ever */
    CHECK_EQUAL(read_at(&b, 5, 1, &found), SHMQ_OFFSET_TOO_SMALL); /* bounded, and no entry of it */
    shmq_store_relaxed(&head->generation, generation);
    CHECK_EQUAL(read_at(&b, 5, 1, &found), 1);
    fixture_close(b.f);
}

static void test_handle_of_a_queue_that_is_gone_is_fenced(void)
{
    struct bench b = bench_open();
    struct shmq_found found;
    fill_row(&b, b.row, 10);
    shmq_append_delete_row(&b.f->append, b.row);
    CHECK_EQUAL(b.f->append.arena.free_count, BLOCKS - 1);
    CHECK_EQUAL(read_at(&b, 5, 1, &found), SHMQ_FENCED);
    uint32_t row, generation;
    fixture_queue(b.f, "other", 0, 0, &row, &generation);
    CHECK_EQUAL(row, b.row);
    fill_row(&b, row, 20);
    CHECK_EQUAL(read_at(&b, 5, 1, &found), SHMQ_FENCED);
    b.generation = generation;
    CHECK_EQUAL(read_at(&b, 5, 1, &found), 1);
    fixture_close(b.f);
}

/* Chains of many queues come and go at random; every entry that must be there is, and no block is lost. */
static void test_blocks_shared_by_many_queues_stay_whole_at_random(void)
{
    enum { QUEUES = 8 };
    struct bench b = bench_open();
    uint64_t seed = check_seed();
    uint32_t rows[QUEUES], generations[QUEUES];
    for (uint32_t i = 0; i < QUEUES; ++i) {
        fixture_queue(b.f, "many", i, 0, &rows[i], &generations[i]);
    }
    for (uint32_t step = 0; step < 3000; ++step) {
        uint32_t i = (uint32_t)(check_random(&seed) % QUEUES);
        struct bench one = b;
        one.row = rows[i];
        one.generation = generations[i];
        one.queue = shmq_control_queue_row(b.f->control, rows[i]);
        one.shadow = &b.f->append.rows[rows[i]];
        memset(&one.cursor, 0, sizeof one.cursor);
        uint64_t max = one.shadow->next_queue_offset;
        uint64_t min = shmq_load_relaxed(&one.queue->hot_min_queue_offset);
        switch (check_random(&seed) % 4) {
        case 0:
        case 1:
            if (b.f->append.arena.free_count > 4) {
                fill_row(&b, rows[i], check_random(&seed) % 400);
            }
            break;
        case 2:
            (void)trim(&one, (min + check_random(&seed) % (max - min + 1)) * 100);
            break;
        default:
            for (uint32_t n = 0; n < 20 && max > min; ++n) {
                uint64_t q = min + check_random(&seed) % (max - min);
                struct shmq_found found;
                CHECK_EQUAL(read_at(&one, q, 1, &found), 1);
                expect(&found, q);
            }
        }
    }
    uint32_t used = 0;
    for (uint32_t i = 0; i < QUEUES; ++i) {
        struct shmq_queue_row *queue = shmq_control_queue_row(b.f->control, rows[i]);
        for (uint32_t n = shmq_load_relaxed32(&queue->head_block); n != 0;
             n = shmq_load_relaxed32(&shmq_arena_block(b.f->arena, n)->header.next_block)) {
            ++used;
        }
    }
    CHECK_EQUAL(used + b.f->append.arena.free_count, BLOCKS - 1);
    fixture_close(b.f);
}

int main(void)
{
    RUN(test_entries_of_a_long_chain_are_found_in_any_order);
    RUN(test_one_call_reads_across_blocks_up_to_what_is_visible);
    RUN(test_cold_reader_skips_most_of_a_long_chain);
    RUN(test_warm_reader_goes_forward_from_where_it_stands);
    RUN(test_trim_frees_blocks_whose_entries_are_all_below);
    RUN(test_trim_keeps_what_is_not_visible_yet);
    RUN(test_queue_whose_whole_chain_is_cold_keeps_no_block_and_goes_on);
    RUN(test_remembered_block_that_changed_hands_misleads_nobody);
    RUN(test_block_that_changes_while_it_is_read_is_read_again);
    RUN(test_handle_of_a_queue_that_is_gone_is_fenced);
    RUN(test_blocks_shared_by_many_queues_stay_whole_at_random);
    return 0;
}
