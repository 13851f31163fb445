/* shmq-test: threads */
/* Goal: every path of crc.h gives zlib's value for every size and start, reads nothing outside
 * its input, and the copying twin gives the CRC of what it copied. */
#define _GNU_SOURCE
#include "changing_memory.h"
#include "check.h"
#include "shmq/crc.h"

#include <pthread.h>
#include <stdatomic.h>

#define EXTENT 4700u

typedef uint32_t (*crc_function)(uint32_t, const void *, size_t);
typedef uint32_t (*copy_function)(uint32_t, void *, const void *, size_t);

static const struct path {
    const char *name;
    crc_function crc;
    copy_function copy;
} paths[] = {
    {"dispatched", shmq_crc32, shmq_crc32_copy},
    {"portable", shmq_crc32_portable, shmq_crc32_copy_portable},
#if defined(SHMQ_CRC32_HAS_PCLMUL)
    {"pclmul", shmq_crc32_pclmul, shmq_crc32_copy_pclmul},
#endif
#if defined(SHMQ_CRC32_HAS_ARM64)
    {"arm64", shmq_crc32_arm64, shmq_crc32_copy_arm64},
#endif
};

#define PATH_COUNT (sizeof paths / sizeof paths[0])

static uint64_t random_state;

static int is_here(const struct path *path)
{
#if defined(SHMQ_CRC32_HAS_PCLMUL)
    if (strcmp(path->name, "pclmul") == 0)
        return shmq_crc32_has_pclmul();
#endif
#if defined(SHMQ_CRC32_HAS_ARM64)
    if (strcmp(path->name, "arm64") == 0)
        return shmq_crc32_has_arm64();
#endif
    return 1;
}

/* The definition itself, bit by bit: the judge of every path. */
static uint32_t crc_by_definition(uint32_t crc, const uint8_t *data, size_t size)
{
    uint32_t state = ~crc;
    for (size_t i = 0; i < size; i++) {
        state ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            state = state >> 1 ^ ((state & 1u) != 0 ? 0xedb88320u : 0u);
    }
    return ~state;
}

static void test_known_values_of_zlib(void)
{
    static const struct {
        const char *text;
        uint32_t crc;
    } known[] = {
        {"", 0},
        {"a", 0xe8b7be43u},
        {"abc", 0x352441c2u},
        {"123456789", 0xcbf43926u},
        {"message digest", 0x20159d7fu},
        {"abcdefghijklmnopqrstuvwxyz", 0x4c2750bdu},
        {"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", 0x1fc2e6d2u},
    };
    for (size_t p = 0; p < PATH_COUNT; p++)
        for (size_t i = 0; i < sizeof known / sizeof known[0] && is_here(&paths[p]); i++)
            CHECK_EQUAL(paths[p].crc(0, known[i].text, strlen(known[i].text)), known[i].crc);
}

static void test_every_size_and_start_agrees_with_the_definition(void)
{
    static uint8_t data[EXTENT + 64];
    check_fill_random(&random_state, data, sizeof data);
    for (size_t size = 0; size <= EXTENT; size += size < 700 ? 1 : 61) {
        uint8_t *exact = malloc(size + 1);
        CHECK(exact != NULL);
        size_t start = size % 33;
        uint32_t before = (uint32_t)check_random(&random_state);
        uint32_t wanted = crc_by_definition(before, data + start, size);
        for (size_t p = 0; p < PATH_COUNT; p++) {
            if (!is_here(&paths[p]))
                continue;
            CHECK_EQUAL(paths[p].crc(before, data + start, size), wanted);
            memset(exact, 0xa5, size + 1);
            CHECK_EQUAL(paths[p].copy(before, exact, data + start, size), wanted);
            CHECK_BYTES(exact, data + start, size);
            CHECK_EQUAL(exact[size], 0xa5);
            CHECK_EQUAL(paths[p].crc(before, exact, size), wanted);
        }
        free(exact);
    }
}

static void test_a_path_reads_and_writes_only_its_bytes(void)
{
    for (size_t size = 0; size <= 600; size++) {
        /* Exact sizes, so that a sanitizer sees one byte too many on either side. */
        uint8_t *from = malloc(size != 0 ? size : 1);
        uint8_t *to = malloc(size != 0 ? size : 1);
        CHECK(from != NULL && to != NULL);
        check_fill_random(&random_state, from, size);
        uint32_t wanted = crc_by_definition(0, from, size);
        for (size_t p = 0; p < PATH_COUNT; p++) {
            if (!is_here(&paths[p]))
                continue;
            CHECK_EQUAL(paths[p].crc(0, from, size), wanted);
            CHECK_EQUAL(paths[p].copy(0, to, from, size), wanted);
            CHECK_BYTES(to, from, size);
        }
        free(from);
        free(to);
    }
}

static void test_pieces_give_the_value_of_the_whole(void)
{
    static uint8_t data[EXTENT];
    check_fill_random(&random_state, data, sizeof data);
    uint32_t whole = crc_by_definition(0, data, sizeof data);
    for (size_t p = 0; p < PATH_COUNT; p++)
        for (int round = 0; round < 200 && is_here(&paths[p]); round++) {
            uint32_t crc = 0;
            for (size_t done = 0, piece; done < sizeof data; done += piece) {
                piece = check_random(&random_state) % 300;
                piece = piece < sizeof data - done ? piece : sizeof data - done;
                crc = paths[p].crc(crc, data + done, piece);
            }
            CHECK_EQUAL(crc, whole);
        }
}

static void test_combine_equals_the_crc_of_the_concatenation(void)
{
    static uint8_t data[EXTENT];
    check_fill_random(&random_state, data, sizeof data);
    for (size_t size_b = 0; size_b <= EXTENT; size_b += size_b < 600 ? 1 : 97) {
        size_t size_a = EXTENT - size_b;
        uint32_t a = crc_by_definition(0, data, size_a);
        uint32_t b = crc_by_definition(0, data + size_a, size_b);
        CHECK_EQUAL(shmq_crc32_combine(a, b, size_b), crc_by_definition(0, data, EXTENT));
    }
}

static void test_combine_takes_sizes_up_to_64_bits(void)
{
    /* Appending m and then n zeros is appending m + n zeros; 2^32 - 1 of them change nothing
     * (order of x). */
    uint32_t crc = 0x12345678u;
    for (int round = 0; round < 2000; round++) {
        uint64_t m = check_random(&random_state) >> 1 >> (round % 63);
        uint64_t n = check_random(&random_state) >> 1 >> (round % 61);
        uint32_t apart = shmq_crc32_combine(shmq_crc32_combine(crc, 0, m), 0, n);
        CHECK_EQUAL(shmq_crc32_combine(crc, 0, m + n), apart);
        crc = apart;
    }
    CHECK_EQUAL(shmq_crc32_combine(crc, 0, 0xffffffffu), crc);
    CHECK_EQUAL(shmq_crc32_combine(crc, 7, 0), crc ^ 7);
}

static void test_both_multiplications_agree(void)
{
#if defined(SHMQ_CRC32_HAS_PCLMUL)
    for (int round = 0; round < 10000 && shmq_crc32_has_pclmul(); round++) {
        uint32_t a = (uint32_t)check_random(&random_state);
        uint32_t b = (uint32_t)check_random(&random_state);
        CHECK_EQUAL(shmq_crc32_multiply_pclmul(a, b), shmq_crc32_multiply_portable(a, b));
    }
#endif
}

static void test_crc_of_a_copy_is_of_what_landed_even_if_each_read_sees_other_bytes(void)
{
#if defined(CHANGING_MEMORY)
    static uint8_t landed[EXTENT];
    changing_memory_open(NULL);
    for (size_t p = 0; p < PATH_COUNT; p++)
        for (size_t size = 1; size <= 1200 && is_here(&paths[p]); size += size < 300 ? 1 : 111) {
            uint32_t reads = changing_read_count;
            uint32_t crc = paths[p].copy(0, landed, changing_memory + size % 17, size);
            CHECK_EQUAL(crc, crc_by_definition(0, landed, size));
            CHECK(changing_read_count > reads);
        }
    changing_memory_close();
#endif
}

static _Atomic uint8_t scribbled[EXTENT];
static atomic_int stop;

static void *scribble(void *unused)
{
    (void)unused;
    /* relaxed, both: no partner; the race with the copy's plain reads is what the test is about. */
    for (uint32_t i = 0; !atomic_load_explicit(&stop, memory_order_relaxed); i++)
        atomic_store_explicit(&scribbled[i % 64], (uint8_t)(i / 64), memory_order_relaxed);
    return NULL;
}

static void test_copy_of_memory_that_another_thread_writes_is_no_race_that_counts(void)
{
    static uint8_t landed[EXTENT];
    pthread_t scribbler;
    CHECK(pthread_create(&scribbler, NULL, scribble, NULL) == 0);
    for (size_t p = 0; p < PATH_COUNT; p++)
        for (size_t round = 0; round < 20000 && is_here(&paths[p]); round++) {
            size_t size = round % 50 == 0 ? EXTENT : round % 90;
            uint32_t crc = paths[p].copy(0, landed, (const uint8_t *)scribbled, size);
            CHECK_EQUAL(crc, shmq_crc32_portable(0, landed, size));
        }
    atomic_store_explicit(&stop, 1, memory_order_relaxed); /* relaxed: only ends the loop */
    CHECK(pthread_join(scribbler, NULL) == 0);
}

int main(void)
{
    random_state = check_seed();
    RUN(test_known_values_of_zlib);
    RUN(test_every_size_and_start_agrees_with_the_definition);
    RUN(test_a_path_reads_and_writes_only_its_bytes);
    RUN(test_pieces_give_the_value_of_the_whole);
    RUN(test_combine_equals_the_crc_of_the_concatenation);
    RUN(test_combine_takes_sizes_up_to_64_bits);
    RUN(test_both_multiplications_agree);
    RUN(test_crc_of_a_copy_is_of_what_landed_even_if_each_read_sees_other_bytes);
    RUN(test_copy_of_memory_that_another_thread_writes_is_no_race_that_counts);
    return 0;
}
