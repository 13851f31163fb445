/* shmq-test: threads */
/* Goal: a copy of memory that is being changed reads and writes its bytes only, and what it
 * copied is settled. */
#include "check.h"
#include "shmq/hostile.h"

#include <pthread.h>
#include <stdatomic.h>

static uint64_t random_state;

static void test_copies_every_size_and_nothing_beside_it(void)
{
    for (size_t size = 0; size <= 300; size++) {
        /* Exact sizes, so that a sanitizer sees one byte too many on either side. */
        uint8_t *from = malloc(size != 0 ? size : 1);
        uint8_t *to = malloc(size != 0 ? size : 1);
        CHECK(from != NULL && to != NULL);
        check_fill_random(&random_state, from, size);
        memset(to, 0, size != 0 ? size : 1);
        shmq_hostile_copy(to, from, size);
        CHECK_BYTES(to, from, size);
        free(from);
        free(to);
    }
}

static _Atomic uint8_t source[256];
static atomic_int stop;

static void *scribble(void *unused)
{
    (void)unused;
    /* relaxed, both: no partner; the race with the copy's plain reads is what the test is about. */
    for (uint32_t i = 0; !atomic_load_explicit(&stop, memory_order_relaxed); i++)
        atomic_store_explicit(&source[i % 256], (uint8_t)(i / 256 % 2 != 0 ? 0x55 : 0xaa),
                              memory_order_relaxed);
    return NULL;
}

static void test_every_byte_of_a_copy_is_one_that_was_there(void)
{
    pthread_t scribbler;
    for (size_t i = 0; i < 256; i++)
        atomic_store_explicit(&source[i], 0xaa, memory_order_relaxed); /* relaxed: no thread yet */
    CHECK(pthread_create(&scribbler, NULL, scribble, NULL) == 0);
    for (uint32_t round = 0; round < 30000; round++) {
        uint8_t copy[256];
        size_t size = round % 257;
        shmq_hostile_copy(copy, (const uint8_t *)source, size);
        for (size_t i = 0; i < size; i++)
            CHECK(copy[i] == 0xaa || copy[i] == 0x55);
    }
    atomic_store_explicit(&stop, 1, memory_order_relaxed); /* relaxed: only ends the loop */
    CHECK(pthread_join(scribbler, NULL) == 0);
}

int main(void)
{
    random_state = check_seed();
    RUN(test_copies_every_size_and_nothing_beside_it);
    RUN(test_every_byte_of_a_copy_is_one_that_was_there);
    return 0;
}
