// shim.hpp: the core's own headers under Relacy, the checker of relaxed memory models.
//
// atomics.h is replaced by this file: every shared word that a model has registered is an rl::atomic, so that a load may
// see any value the C11 model lets it see, and every access is a point where Relacy may switch threads. All else of the
// core is compiled as it is. memcpy into or out of tracked bytes is watched for data races; eventfd and futex are
// modelled, so that a lost wake-up is a deadlock.
//
// Each access has a site: its function, its order, its word. --weaken SITE makes that one access relaxed, or leaves that
// fence out: a planted bug in any place, without a second build.
#ifndef SHMQ_MODEL_SHIM_HPP
#define SHMQ_MODEL_SHIM_HPP

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum shim_kind { SHIM_RELAXED, SHIM_ORDERED, SHIM_FENCE_FULL, SHIM_FENCE_ACQUIRE, SHIM_FENCE_RELEASE };

int shim_site(const char *function, const char *what, shim_kind kind);
uint64_t shim_load(const void *word, unsigned size, int is_acquire, int site);
void shim_store(void *word, unsigned size, uint64_t value, int is_release, int site);
void shim_fence(int kind, int site);
void *shim_memcpy(void *to, const void *from, size_t size);
long shim_syscall(long number, const void *word, int operation, unsigned value, ...);
ssize_t shim_write(int fd, const void *bytes, size_t size);
int shim_sched_yield();

#define SHMQ_ATOMICS_H
typedef uint32_t shmq_word32;
typedef uint64_t shmq_word64;
#define SHIM_SITE(what, kind)                                                                                          \
    ({                                                                                                                 \
        static const int site_ = shim_site(__func__, what, kind);                                                      \
        site_;                                                                                                         \
    })
#define shmq_load_acquire(word) shim_load((word), 8, 1, SHIM_SITE("load_acquire(" #word ")", SHIM_ORDERED))
#define shmq_load_relaxed(word) shim_load((word), 8, 0, SHIM_SITE("load_relaxed(" #word ")", SHIM_RELAXED))
#define shmq_load_acquire32(word)                                                                                      \
    ((uint32_t)shim_load((word), 4, 1, SHIM_SITE("load_acquire(" #word ")", SHIM_ORDERED)))
#define shmq_load_relaxed32(word)                                                                                      \
    ((uint32_t)shim_load((word), 4, 0, SHIM_SITE("load_relaxed(" #word ")", SHIM_RELAXED)))
#define shmq_store_release(word, value)                                                                                \
    shim_store((word), 8, (value), 1, SHIM_SITE("store_release(" #word ")", SHIM_ORDERED))
#define shmq_store_relaxed(word, value)                                                                                \
    shim_store((word), 8, (value), 0, SHIM_SITE("store_relaxed(" #word ")", SHIM_RELAXED))
#define shmq_store_release32(word, value)                                                                              \
    shim_store((word), 4, (value), 1, SHIM_SITE("store_release(" #word ")", SHIM_ORDERED))
#define shmq_store_relaxed32(word, value)                                                                              \
    shim_store((word), 4, (value), 0, SHIM_SITE("store_relaxed(" #word ")", SHIM_RELAXED))
#define shmq_fence_full() shim_fence(SHIM_FENCE_FULL, SHIM_SITE("fence_full", SHIM_FENCE_FULL))
#define shmq_fence_acquire() shim_fence(SHIM_FENCE_ACQUIRE, SHIM_SITE("fence_acquire", SHIM_FENCE_ACQUIRE))
#define shmq_fence_release() shim_fence(SHIM_FENCE_RELEASE, SHIM_SITE("fence_release", SHIM_FENCE_RELEASE))
#define shmq_cpu_relax() ((void)0)

#define _Static_assert static_assert
#define syscall shim_syscall
#define write shim_write
#define sched_yield shim_sched_yield
#define memcpy shim_memcpy

// Copies out of a ring go through registers, not through memcpy: watched all the same.
void shim_copied(const void *to, const void *from, size_t size);
#define shmq_hostile_copy16 shmq_hostile_copy16_core
#include "shmq/hostile.h"
#undef shmq_hostile_copy16

static inline void shmq_hostile_copy16(uint8_t *to, const uint8_t *from)
{
    shim_copied(to, from, 16);
    shmq_hostile_copy16_core(to, from);
}

// What a model wants to know of the inside of a turn: it renames the verb, and wraps it.
#define shmq_lane_completion shmq_lane_completion_core
#define shmq_ring_consume shmq_ring_consume_core
#include "shmq/ingress.h"
#undef shmq_lane_completion
#undef shmq_ring_consume

void shim_note_completion(const void *entry, int is_write);

static inline int shmq_lane_completion(const struct shmq_lane_writer *writer, uint64_t sequence,
                                       struct shmq_completion *out)
{
    int status = shmq_lane_completion_core(writer, sequence, out);
    if (status == SHMQ_OK) {
        shim_note_completion(&writer->completions[sequence & (writer->completion_capacity - 1)], 0);
    }
    return status;
}

static inline void shmq_ring_consume(struct shmq_ring *ring, uint32_t size, const struct shmq_completion *completion)
{
    shim_note_completion(&ring->completions[ring->completion_tail & (ring->completion_capacity - 1)], 1);
    shmq_ring_consume_core(ring, size, completion);
}

#include "shmq/recovery.h"

#define FIXTURE_SESSIONS 3u
#include "store_fixture.h"

#undef syscall
#undef write
#undef sched_yield
#undef memcpy

#include <relacy/relacy.hpp>
#undef new
#undef delete
#undef malloc
#undef calloc
#undef realloc
#undef free
#undef errno

// ---- sites -------------------------------------------------------------------------------------------------

#define SHIM_SITES 1024

struct shim_site_info {
    char name[200];
    shim_kind kind;
    uint64_t hits;
};
static shim_site_info shim_sites[SHIM_SITES];
static int shim_site_count;
static const char *shim_weakened; // name of the site to weaken, or NULL

static bool shim_is_weak(int site)
{
    return shim_weakened != NULL && strcmp(shim_sites[site].name, shim_weakened) == 0;
}

int shim_site(const char *function, const char *what, shim_kind kind)
{
    char name[200];
    snprintf(name, sizeof name, "%s: %s", function, what);
    for (int i = 0; i < shim_site_count; ++i) {
        if (strcmp(shim_sites[i].name, name) == 0) {
            return i; // the same function, order and word: one site
        }
    }
    if (shim_site_count == SHIM_SITES) {
        abort();
    }
    snprintf(shim_sites[shim_site_count].name, sizeof name, "%s", name);
    shim_sites[shim_site_count].kind = kind;
    return shim_site_count++;
}

// ---- words -------------------------------------------------------------------------------------------------

#define SHIM_WORDS 96
#define SHIM_VARS 96
#define SHIM_HASH 4096 // slots, a power of two

// What one iteration of a model consists of; a member of the test suite, so made anew each time.
struct shim_state {
    rl::atomic<uint64_t> words[SHIM_WORDS];
    rl::var<int> vars[SHIM_VARS];
    rl::mutex kernel; // what the kernel orders: futex and eventfd
    rl::condition_variable kernel_wakes;
    uint64_t event_count;
};

static shim_state *shim_now; // of the running iteration; NULL outside of one

struct shim_range {
    const uint8_t *begin;
    const uint8_t *end;
    unsigned granule;
    int first_var;
};

static const void *shim_word_at[SHIM_WORDS];
static unsigned shim_word_size[SHIM_WORDS];
static int shim_word_count;
static shim_range shim_ranges[8];
static int shim_range_count;
static int shim_var_count;

// Address -> registered word + 1; and for the others, who touched them in this iteration.
struct shim_slot {
    const void *address;
    int word;
    uint64_t iteration;
    int reader, writer;
};
static shim_slot shim_slots[SHIM_HASH];
static uint64_t shim_iteration;

static shim_slot *shim_find(const void *address)
{
    size_t at = ((uintptr_t)address >> 2) * 2654435761u % SHIM_HASH;
    while (shim_slots[at].address != NULL && shim_slots[at].address != address) {
        at = (at + 1) % SHIM_HASH;
    }
    shim_slots[at].address = address;
    return &shim_slots[at];
}

// Before the first iteration: this word is shared. Its value is the one in memory when an iteration begins.
template <typename T>
static void shim_register(T *word)
{
    shim_slot *slot = shim_find(word);
    if (slot->word == 0) {
        if (shim_word_count == SHIM_WORDS) {
            abort();
        }
        shim_word_at[shim_word_count] = word;
        shim_word_size[shim_word_count] = sizeof *word;
        slot->word = ++shim_word_count;
    }
}

// memcpy into or out of these bytes counts as an access to plain memory, by granules.
static void shim_track(const void *begin, size_t size, unsigned granule)
{
    shim_range *range = &shim_ranges[shim_range_count++];
    range->begin = (const uint8_t *)begin;
    range->end = range->begin + size;
    range->granule = granule;
    range->first_var = shim_var_count;
    shim_var_count += (int)((size + granule - 1) / granule);
    if (shim_var_count > SHIM_VARS) {
        abort();
    }
}

static int shim_new_var()
{
    return shim_var_count++;
}

static void shim_begin_iteration(shim_state *state)
{
    ++shim_iteration;
    shim_now = state;
    state->event_count = 0;
    for (int i = 0; i < shim_word_count; ++i) {
        uint64_t value = 0;
        memcpy(&value, shim_word_at[i], shim_word_size[i]);
        state->words[i].store(value, rl::mo_relaxed, $);
    }
    for (int i = 0; i < shim_var_count; ++i) {
        state->vars[i]($) = 0;
    }
}

static void shim_end_iteration()
{
    shim_now = NULL;
}

// A word that nobody registered must belong to one thread, else Relacy would not see who reads what.
static void shim_claim(const void *address, int is_write, int site)
{
    shim_slot *slot = shim_find(address);
    int thread = (int)rl::ctx().threadx_->index_ + 1;
    if (slot->iteration != shim_iteration) {
        slot->iteration = shim_iteration;
        slot->reader = slot->writer = 0;
    }
    bool alone = (slot->writer == 0 || slot->writer == thread) && (!is_write || slot->reader == 0 || slot->reader == thread);
    if (!alone) {
        fprintf(stderr, "not registered, but shared: %s\n", shim_sites[site].name);
        exit(3);
    }
    (is_write ? slot->writer : slot->reader) = thread;
}

static uint64_t shim_raw(const void *word, unsigned size)
{
    uint64_t value = 0;
    memcpy(&value, word, size);
    return value;
}

uint64_t shim_load(const void *word, unsigned size, int is_acquire, int site)
{
    if (shim_now == NULL) {
        return shim_raw(word, size);
    }
    shim_sites[site].hits += 1;
    int index = shim_find(word)->word;
    if (index == 0) {
        shim_claim(word, 0, site);
        return shim_raw(word, size);
    }
    is_acquire = is_acquire && !shim_is_weak(site);
    return shim_now->words[index - 1].load(is_acquire ? rl::mo_acquire : rl::mo_relaxed, $);
}

static const void *shim_watched_word;     // a store of it ...
static void (*shim_on_watched)(int after); // ... calls this before and after

void shim_store(void *word, unsigned size, uint64_t value, int is_release, int site)
{
    if (shim_now == NULL) {
        memcpy(word, &value, size);
        return;
    }
    shim_sites[site].hits += 1;
    if (word == shim_watched_word) {
        shim_on_watched(0);
    }
    int index = shim_find(word)->word;
    if (index == 0) {
        shim_claim(word, 1, site);
    } else {
        is_release = is_release && !shim_is_weak(site);
        shim_now->words[index - 1].store(value, is_release ? rl::mo_release : rl::mo_relaxed, $);
    }
    memcpy(word, &value, size);
    if (word == shim_watched_word) {
        shim_on_watched(1);
    }
}

void shim_fence(int kind, int site)
{
    if (shim_now == NULL) {
        return;
    }
    shim_sites[site].hits += 1;
    if (shim_is_weak(site)) {
        return;
    }
    rl::atomic_thread_fence(kind == SHIM_FENCE_FULL      ? rl::mo_seq_cst
                            : kind == SHIM_FENCE_ACQUIRE ? rl::mo_acquire
                                                         : rl::mo_release, $);
}

// ---- plain memory ------------------------------------------------------------------------------------------

static void shim_touch(const void *address, size_t size, int is_write)
{
    const uint8_t *at = (const uint8_t *)address;
    for (int i = 0; i < shim_range_count; ++i) {
        const shim_range *range = &shim_ranges[i];
        if (at >= range->end || at + size <= range->begin) {
            continue;
        }
        size_t first = at < range->begin ? 0 : (size_t)(at - range->begin) / range->granule;
        size_t last = (size_t)((at + size < range->end ? at + size : range->end) - range->begin - 1) / range->granule;
        for (size_t n = first; n <= last; ++n) {
            if (is_write) {
                shim_now->vars[range->first_var + (int)n]($) = 1;
            } else {
                (void)(int)shim_now->vars[range->first_var + (int)n]($);
            }
        }
    }
}

void shim_copied(const void *to, const void *from, size_t size)
{
    if (shim_now != NULL && size > 0) {
        shim_touch(from, size, 0);
        shim_touch(to, size, 1);
    }
}

void *shim_memcpy(void *to, const void *from, size_t size)
{
    shim_copied(to, from, size);
    return memcpy(to, from, size);
}

void shim_note_completion(const void *entry, int is_write)
{
    if (shim_now != NULL) {
        shim_touch(entry, sizeof(struct shmq_completion), is_write);
    }
}

// ---- the kernel --------------------------------------------------------------------------------------------

// FUTEX_WAIT compares under the kernel's lock, so it sees what was stored before a FUTEX_WAKE that came first.
long shim_syscall(long number, const void *word, int operation, unsigned value, ...)
{
    if (shim_now == NULL || number != SYS_futex) {
        return 0;
    }
    shim_now->kernel.lock($);
    if (operation == FUTEX_WAIT) {
        static const int site = shim_site("kernel", "load(futex word)", SHIM_RELAXED);
        if (shim_load(word, 4, 0, site) == value) {
            shim_now->kernel_wakes.wait(shim_now->kernel, $); // may wake up for nothing, as a futex may
        }
    } else {
        shim_now->kernel_wakes.notify_all($);
    }
    shim_now->kernel.unlock($);
    return 0;
}

ssize_t shim_write(int fd, const void *bytes, size_t size)
{
    (void)fd;
    (void)bytes;
    if (shim_now != NULL) { // an eventfd: counts, and wakes
        shim_now->kernel.lock($);
        shim_now->event_count += 1;
        shim_now->kernel_wakes.notify_all($);
        shim_now->kernel.unlock($);
    }
    return (ssize_t)size;
}

// epoll_wait on an edge-triggered eventfd: returns once something was written since the last return.
static void shim_event_wait()
{
    shim_now->kernel.lock($);
    while (shim_now->event_count == 0) {
        shim_now->kernel_wakes.wait(shim_now->kernel, $);
    }
    shim_now->event_count = 0;
    shim_now->kernel.unlock($);
}

int shim_sched_yield()
{
    rl::yield(1, $);
    return 0;
}

// ---- running a model ---------------------------------------------------------------------------------------

// run NAME [--weaken SITE] [--iterations N] [--sites]: 0 if nothing was found in N random schedules.
struct shim_model {
    const char *name;
    bool (*simulate)(rl::test_params &);
    uint64_t iterations;
};

static int shim_main(int argc, char **argv, const shim_model *models)
{
    const char *name = argc > 1 ? argv[1] : "";
    uint64_t iterations = 0;
    bool list = false;
    for (int i = 2; i < argc; ++i) {
        if (strcmp(argv[i], "--weaken") == 0 && i + 1 < argc) {
            shim_weakened = argv[++i];
        } else if (strcmp(argv[i], "--iterations") == 0 && i + 1 < argc) {
            iterations = strtoull(argv[++i], NULL, 0);
        } else if (strcmp(argv[i], "--sites") == 0) {
            list = true;
        } else {
            return 2;
        }
    }
    for (; models->name != NULL; ++models) {
        if (strcmp(models->name, name) != 0) {
            continue;
        }
        rl::test_params params;
        static std::ostream nowhere(NULL); // must not allocate: Relacy has its own heap inside an iteration
        params.iteration_count = iterations != 0 ? iterations : models->iterations;
        params.execution_depth_limit = 100000;
        params.progress_stream = &nowhere;
        params.output_stream = &std::cout;
        bool held = models->simulate(params);
        printf("%s: %s after %llu schedules\n", name, held ? "holds" : rl::test_result_str(params.test_result),
               (unsigned long long)params.stop_iteration);
        int weakened_hit = shim_weakened == NULL;
        for (int i = 0; i < shim_site_count; ++i) {
            if (shim_sites[i].hits != 0 && shim_sites[i].kind != SHIM_RELAXED && list) {
                printf("site %s\n", shim_sites[i].name);
            }
            weakened_hit |= shim_is_weak(i) && shim_sites[i].hits != 0;
        }
        if (!weakened_hit) {
            fprintf(stderr, "no such site in %s: %s\n", name, shim_weakened);
            return 4;
        }
        return held ? 0 : 1;
    }
    return 2;
}

#endif
