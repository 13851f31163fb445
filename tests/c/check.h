/* check.h: what a C test needs and no more. A test is a function named as a sentence; main()
 * runs each with RUN() and returns 1 after the first CHECK that fails, having printed where and
 * what. */
#ifndef SHMQ_TEST_CHECK_H
#define SHMQ_TEST_CHECK_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: failed: %s\n", __FILE__, __LINE__, __func__, #condition);  \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* Two integers of any kind, shown as unsigned hexadecimal and signed decimal when they differ. */
#define CHECK_EQUAL(seen, wanted)                                                                  \
    do {                                                                                           \
        uint64_t check_seen = (uint64_t)(seen), check_wanted = (uint64_t)(wanted);                 \
        if (check_seen != check_wanted) {                                                          \
            fprintf(stderr,                                                                        \
                    "%s:%d: %s: %s is 0x%" PRIx64 " (%" PRId64 "), wanted 0x%" PRIx64              \
                    " (%" PRId64 ")\n",                                                            \
                    __FILE__, __LINE__, __func__, #seen, check_seen, (int64_t)check_seen,          \
                    check_wanted, (int64_t)check_wanted);                                          \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define CHECK_BYTES(seen, wanted, size) CHECK(memcmp((seen), (wanted), (size)) == 0)

#define RUN(test)                                                                                  \
    do {                                                                                           \
        test();                                                                                    \
        printf("ok %s\n", #test);                                                                  \
        fflush(stdout); /* a sanitizer ends the process without it */                              \
    } while (0)

/* A small generator (xorshift64*), so that a printed seed replays a run on any machine. */
static inline uint64_t check_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1du;
}

static inline void check_fill_random(uint64_t *state, void *to, size_t size)
{
    uint8_t *bytes = to;
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(check_random(state) >> 32);
}

/* SHMQ_TEST_SEED replays a run; without it the seed is fixed, so that the default run is
 * deterministic. */
static inline uint64_t check_seed(void)
{
    const char *text = getenv("SHMQ_TEST_SEED");
    uint64_t seed = text != NULL ? strtoull(text, NULL, 0) : 0;
    seed = seed != 0 ? seed : 0x73686d71;
    printf("seed 0x%" PRIx64 "\n", seed);
    return seed;
}

#endif
