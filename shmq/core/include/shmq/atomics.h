/* atomics.h: C11 atomics with the ordering in the name, nothing else.
 *
 * Shared words are declared `_Atomic` in layout.h (shmq_word32, shmq_word64), so a plain access by
 * mistake is at least sequentially consistent and shows in review. Every call site says in a comment
 * which access elsewhere it pairs with. Lock-freedom is asserted: a lock inside an atomic would be a
 * lock shared between processes. */
#ifndef SHMQ_ATOMICS_H
#define SHMQ_ATOMICS_H

#include <stdatomic.h>
#include <stdint.h>

typedef _Atomic uint32_t shmq_word32;
typedef _Atomic uint64_t shmq_word64;

_Static_assert(sizeof(shmq_word32) == 4 && sizeof(shmq_word64) == 8, "atomic words carry no lock");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2, "atomic words carry no lock");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the shared layouts are little-endian");

static inline uint64_t shmq_load_acquire(const shmq_word64 *word)
{
    return atomic_load_explicit((shmq_word64 *)(uintptr_t)word, memory_order_acquire);
}

static inline uint64_t shmq_load_relaxed(const shmq_word64 *word)
{
    return atomic_load_explicit((shmq_word64 *)(uintptr_t)word, memory_order_relaxed);
}

static inline void shmq_store_release(shmq_word64 *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}

static inline void shmq_store_relaxed(shmq_word64 *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

static inline uint32_t shmq_load_acquire32(const shmq_word32 *word)
{
    return atomic_load_explicit((shmq_word32 *)(uintptr_t)word, memory_order_acquire);
}

static inline uint32_t shmq_load_relaxed32(const shmq_word32 *word)
{
    return atomic_load_explicit((shmq_word32 *)(uintptr_t)word, memory_order_relaxed);
}

static inline void shmq_store_release32(shmq_word32 *word, uint32_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}

static inline void shmq_store_relaxed32(shmq_word32 *word, uint32_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

/* ThreadSanitizer models no fence, and gcc refuses to compile one for it. There the instruction alone
 * keeps the order, unseen: what a fence orders here are atomics, which need no happens-before to be free
 * of races, and a read-modify-write in its place would tie all threads together and hide the races of
 * others. */
#if defined(__SANITIZE_THREAD__)
#if defined(__x86_64__)
#define SHMQ_FENCE(order) __asm__ __volatile__("mfence" ::: "memory")
#elif defined(__aarch64__)
#define SHMQ_FENCE(order) __asm__ __volatile__("dmb ish" ::: "memory")
#endif
#else
#define SHMQ_FENCE(order) atomic_thread_fence(order)
#endif

/* The only full fence: between "I published" and "is anybody asleep?" on the waker's side, and between
 * "I am about to sleep" and "is there really nothing?" on the sleeper's. Each side's fence pairs with
 * the other's (Dekker); release and acquire alone would let both miss each other. */
static inline void shmq_fence_full(void)
{
    SHMQ_FENCE(memory_order_seq_cst);
}

/* Orders the reads of a seqlock's payload before the second look at its generation. */
static inline void shmq_fence_acquire(void)
{
    SHMQ_FENCE(memory_order_acquire);
}

static inline void shmq_fence_release(void)
{
    SHMQ_FENCE(memory_order_release);
}

static inline void shmq_cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

#endif
