/* hostile.h: taking bytes out of memory that another process may be changing at this moment.
 *
 * Byte table: none; the source is a producer's ring or a consumer's page, as somebody else laid it
 * out.
 * Validity: nothing in the source is valid. What counts is the private copy, judged after it was
 * made.
 * Writer: shmq_hostile_copy() loads a word once into a register, makes it opaque (so that no
 *   compiler fetches it again) and stores it. Bytes of one copy may be of different ages, never of
 *   an age after the call.
 * Reader: the caller, of the copy only, with lengths it had fixed before.
 * Crash: a copy cut short is garbage that nobody was told about; the next attempt overwrites it. */
#ifndef SHMQ_HOSTILE_H
#define SHMQ_HOSTILE_H

#include "endian.h"

#include <stddef.h>
#include <stdint.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/* This is the one deliberate race of the core, so ThreadSanitizer is told not to watch it;
 * functions that are compiled into one so marked must be inlined into it (always_inline), or
 * they would be watched again. */
#if defined(__SANITIZE_THREAD__)
#define SHMQ_COPIES_HOSTILE __attribute__((no_sanitize("thread")))
#else
#define SHMQ_COPIES_HOSTILE
#endif

/* Makes a loaded integer opaque to the compiler: it is what it is, wherever it came from. */
#define SHMQ_PIN(value) __asm__("" : "+r"(value))

/* Sixteen bytes: in one register where there is one, because whoever reads the copy next by
 * sixteen bytes gets it out of the store buffer only if it was stored so. */
SHMQ_ENDIAN_INLINE void shmq_hostile_copy16(uint8_t *to, const uint8_t *from)
{
#if defined(__SSE2__)
    __m128i block = _mm_loadu_si128((const __m128i *)(const void *)from);
    __asm__("" : "+x"(block));
    _mm_storeu_si128((__m128i *)(void *)to, block);
#else
    uint64_t first = shmq_le64_load(from);
    uint64_t second = shmq_le64_load(from + 8);
    SHMQ_PIN(first);
    SHMQ_PIN(second);
    shmq_le64_store(to, first);
    shmq_le64_store(to + 8, second);
#endif
}

/* Copies `size` bytes; the regions do not overlap. The last block overlaps the one before it:
 * its bytes are fetched twice, and the later ones stay. */
SHMQ_COPIES_HOSTILE
static inline void shmq_hostile_copy(void *to, const void *from, size_t size)
{
    const uint8_t *source = from;
    uint8_t *target = to;
    if (size >= 16) {
        for (size_t done = 0; done + 16 <= size; done += 16)
            shmq_hostile_copy16(target + done, source + done);
        shmq_hostile_copy16(target + size - 16, source + size - 16);
    } else if (size >= 8) {
        uint64_t first = shmq_le64_load(source);
        uint64_t last = shmq_le64_load(source + size - 8);
        SHMQ_PIN(first);
        SHMQ_PIN(last);
        shmq_le64_store(target, first);
        shmq_le64_store(target + size - 8, last);
    } else if (size >= 4) {
        uint32_t first = shmq_le32_load(source);
        uint32_t last = shmq_le32_load(source + size - 4);
        SHMQ_PIN(first);
        SHMQ_PIN(last);
        shmq_le32_store(target, first);
        shmq_le32_store(target + size - 4, last);
    } else {
        for (size_t done = 0; done < size; done++) {
            uint32_t byte = source[done];
            SHMQ_PIN(byte);
            target[done] = (uint8_t)byte;
        }
    }
}

#endif
