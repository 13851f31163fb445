/* crc.h: the CRC-32 of zlib, java.util.zip.CRC32 and RocketMQ (polynomial 0xEDB88320, reflected;
 * not CRC-32C).
 *
 * Byte table: none; this header owns no memory. The conventions are zlib's: a CRC is a uint32_t,
 *   the CRC of nothing is 0, and shmq_crc32(shmq_crc32(0, a), b) is the CRC of a followed by b.
 * Validity: every path gives the same value for the same bytes, and none reads a byte outside
 * [data, data + size).
 * Writer: shmq_crc32_copy() writes [to, to + size) and nothing else. Its source may be changed by a
 *   hostile process during the call: each source byte that counts is loaded once into a register,
 *   stored from there and checksummed from there, so the CRC is that of the bytes that landed in
 *   `to`, whatever they are.
 * Reader: shmq_crc32() and shmq_crc32_combine() change nothing.
 * Crash: a copy cut short leaves part of `to` written; whoever published nothing of it has nothing
 * to repair.
 *
 * How: a message is a polynomial over GF(2) and its CRC the remainder of (message * x^32) modulo
 * P. A block of 128 bits that lies d blocks before the last one counts as block * x^(128 d), and
 * x^(128 d) mod P is a constant; so short inputs are one independent carry-less multiplication
 * per 64 bits, all added up (no chain of dependent steps), and long inputs run four such sums
 * side by side. Then three multiplications reduce 128 bits to 32 (Barrett). A size that is no
 * multiple of 16 is padded with zeros *in front*, where zeros do not count, so there is no tail
 * and no alignment loop. The same in portable C by eight tables (slicing), and on arm64 by its
 * CRC32 instructions. Each path has a name so that tests reach it. */
#ifndef SHMQ_CRC_H
#define SHMQ_CRC_H

#include "endian.h"
#include "hostile.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <smmintrin.h>
#include <wmmintrin.h>
#define SHMQ_CRC32_HAS_PCLMUL 1
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#define SHMQ_CRC32_HAS_ARM64 1
#endif

/* ---- portable: slicing by eight -------------------------------------------------------------- */

/* Table k maps a byte that stands k bytes before the end of a word to its remainder. It is
 * linear in the byte, so each entry is the exclusive or of the eight constants of its table
 * (powers of x modulo P). */
#define SHMQ_CRC32_BIT(i, bit, power) (((i) >> (bit) & 1u) != 0 ? (power) : 0u)
#define SHMQ_CRC32_ENTRY(i, a, b, c, d, e, f, g, h)                                                \
    (SHMQ_CRC32_BIT(i, 0, a) ^ SHMQ_CRC32_BIT(i, 1, b) ^ SHMQ_CRC32_BIT(i, 2, c) ^                 \
     SHMQ_CRC32_BIT(i, 3, d) ^ SHMQ_CRC32_BIT(i, 4, e) ^ SHMQ_CRC32_BIT(i, 5, f) ^                 \
     SHMQ_CRC32_BIT(i, 6, g) ^ SHMQ_CRC32_BIT(i, 7, h))
#define SHMQ_CRC32_4(i, ...)                                                                       \
    SHMQ_CRC32_ENTRY((i), __VA_ARGS__), SHMQ_CRC32_ENTRY((i) + 1u, __VA_ARGS__),                   \
        SHMQ_CRC32_ENTRY((i) + 2u, __VA_ARGS__), SHMQ_CRC32_ENTRY((i) + 3u, __VA_ARGS__)
#define SHMQ_CRC32_16(i, ...)                                                                      \
    SHMQ_CRC32_4((i), __VA_ARGS__), SHMQ_CRC32_4((i) + 4u, __VA_ARGS__),                           \
        SHMQ_CRC32_4((i) + 8u, __VA_ARGS__), SHMQ_CRC32_4((i) + 12u, __VA_ARGS__)
#define SHMQ_CRC32_64(i, ...)                                                                      \
    SHMQ_CRC32_16((i), __VA_ARGS__), SHMQ_CRC32_16((i) + 16u, __VA_ARGS__),                        \
        SHMQ_CRC32_16((i) + 32u, __VA_ARGS__), SHMQ_CRC32_16((i) + 48u, __VA_ARGS__)
#define SHMQ_CRC32_256(...)                                                                        \
    {SHMQ_CRC32_64(0u, __VA_ARGS__), SHMQ_CRC32_64(64u, __VA_ARGS__),                              \
     SHMQ_CRC32_64(128u, __VA_ARGS__), SHMQ_CRC32_64(192u, __VA_ARGS__)}

static const uint32_t shmq_crc32_slices[8][256] = {
    SHMQ_CRC32_256(0x77073096u, 0xee0e612cu, 0x076dc419u, 0x0edb8832u, 0x1db71064u, 0x3b6e20c8u,
                   0x76dc4190u, 0xedb88320u),
    SHMQ_CRC32_256(0x191b3141u, 0x32366282u, 0x646cc504u, 0xc8d98a08u, 0x4ac21251u, 0x958424a2u,
                   0xf0794f05u, 0x3b83984bu),
    SHMQ_CRC32_256(0x01c26a37u, 0x0384d46eu, 0x0709a8dcu, 0x0e1351b8u, 0x1c26a370u, 0x384d46e0u,
                   0x709a8dc0u, 0xe1351b80u),
    SHMQ_CRC32_256(0xb8bc6765u, 0xaa09c88bu, 0x8f629757u, 0xc5b428efu, 0x5019579fu, 0xa032af3eu,
                   0x9b14583du, 0xed59b63bu),
    SHMQ_CRC32_256(0x3d6029b0u, 0x7ac05360u, 0xf580a6c0u, 0x30704bc1u, 0x60e09782u, 0xc1c12f04u,
                   0x58f35849u, 0xb1e6b092u),
    SHMQ_CRC32_256(0xcb5cd3a5u, 0x4dc8a10bu, 0x9b914216u, 0xec53826du, 0x03d6029bu, 0x07ac0536u,
                   0x0f580a6cu, 0x1eb014d8u),
    SHMQ_CRC32_256(0xa6770bb4u, 0x979f1129u, 0xf44f2413u, 0x33ef4e67u, 0x67de9cceu, 0xcfbd399cu,
                   0x440b7579u, 0x8816eaf2u),
    SHMQ_CRC32_256(0xccaa009eu, 0x4225077du, 0x844a0efau, 0xd3e51bb5u, 0x7cbb312bu, 0xf9766256u,
                   0x299dc2edu, 0x533b85dau),
};

static inline uint32_t shmq_crc32_slice8(uint64_t word)
{
    return shmq_crc32_slices[7][word & 0xff] ^ shmq_crc32_slices[6][word >> 8 & 0xff] ^
           shmq_crc32_slices[5][word >> 16 & 0xff] ^ shmq_crc32_slices[4][word >> 24 & 0xff] ^
           shmq_crc32_slices[3][word >> 32 & 0xff] ^ shmq_crc32_slices[2][word >> 40 & 0xff] ^
           shmq_crc32_slices[1][word >> 48 & 0xff] ^ shmq_crc32_slices[0][word >> 56];
}

static inline uint32_t shmq_crc32_byte(uint32_t state, uint8_t byte)
{
    return state >> 8 ^ shmq_crc32_slices[0][(state ^ byte) & 0xff];
}

static inline uint32_t shmq_crc32_portable(uint32_t crc, const void *data, size_t size)
{
    const uint8_t *from = data;
    uint32_t state = ~crc;
    for (; size >= 8; size -= 8, from += 8)
        state = shmq_crc32_slice8(shmq_le64_load(from) ^ state);
    for (; size > 0; size--, from++)
        state = shmq_crc32_byte(state, *from);
    return ~state;
}

SHMQ_COPIES_HOSTILE
static inline uint32_t shmq_crc32_copy_portable(uint32_t crc, void *to, const void *from,
                                                size_t size)
{
    const uint8_t *source = from;
    uint8_t *target = to;
    uint32_t state = ~crc;
    for (; size >= 8; size -= 8, source += 8, target += 8) {
        uint64_t word = shmq_le64_load(source);
        SHMQ_PIN(word);
        shmq_le64_store(target, word);
        state = shmq_crc32_slice8(word ^ state);
    }
    for (; size > 0; size--, source++, target++) {
        uint32_t byte = *source;
        SHMQ_PIN(byte);
        *target = (uint8_t)byte;
        state = shmq_crc32_byte(state, (uint8_t)byte);
    }
    return ~state;
}

/* ---- x86-64: carry-less multiplication ------------------------------------------------------- */

#if defined(SHMQ_CRC32_HAS_PCLMUL)

#define SHMQ_CRC32_TARGET __attribute__((target("pclmul,sse4.1")))
#define SHMQ_CRC32_INLINE static inline __attribute__((always_inline)) SHMQ_CRC32_TARGET

/* Inputs up to this many whole blocks are summed up directly; longer ones run four lanes first. */
#define SHMQ_CRC32_DIRECT_BLOCKS 16u

/* {x^(128 d + 63), x^(128 d - 1)} mod P for the low and the high half of a block that lies d
 * blocks before the last. Reflected, in the upper 32 bits; the one power less is the shift a
 * reflected product carries. */
static const uint64_t shmq_crc32_fold_powers[SHMQ_CRC32_DIRECT_BLOCKS + 1u][2] = {
    {0xb8bc676500000000u, 0xdb71064100000000u}, {0x65673b4600000000u, 0x9ba54c6f00000000u},
    {0x9570d49500000000u, 0x01b5fd1d00000000u}, {0x69ccfc0d00000000u, 0x2a28386200000000u},
    {0x653d982200000000u, 0xcad38e8f00000000u}, {0x5a03a0cf00000000u, 0x8e42b13e00000000u},
    {0x759fc69d00000000u, 0x101a233100000000u}, {0x019866e800000000u, 0xc64ac0b800000000u},
    {0x7d657a1000000000u, 0x7406fa9500000000u}, {0x72d2649a00000000u, 0x6dd804d900000000u},
    {0x199560db00000000u, 0x1d5dce4400000000u}, {0xdeb15a1f00000000u, 0xf09a54ac00000000u},
    {0x67f7947600000000u, 0xc56d949600000000u}, {0x733ffa0b00000000u, 0x523d48c400000000u},
    {0x8f739cb400000000u, 0xd63a56a600000000u}, {0x27d0443c00000000u, 0xc4d49c3900000000u},
    {0x7cc8e1e700000000u, 0x03f9f86300000000u},
};

/* Shuffles, sixteen bytes each. From place r: a register's first r bytes to its end, zeros before
 * them. From place 16 + r: its last 16 - r bytes to its front, zeros behind them. */
static const uint8_t shmq_crc32_shifts[48] = {
    0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80,
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f,
    0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80};

static inline int shmq_crc32_has_pclmul(void)
{
#if defined(__PCLMUL__) && defined(__SSE4_1__)
    return 1;
#else
    return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
#endif
}

/* block * x^(128 distance), for the powers of that distance. */
SHMQ_CRC32_INLINE __m128i shmq_crc32_fold(__m128i block, __m128i powers)
{
    return _mm_xor_si128(_mm_clmulepi64_si128(block, powers, 0x00),
                         _mm_clmulepi64_si128(block, powers, 0x11));
}

SHMQ_CRC32_INLINE __m128i shmq_crc32_powers(size_t distance)
{
    return _mm_loadu_si128((const __m128i *)(const void *)shmq_crc32_fold_powers[distance]);
}

/* (64 bits in the low half, times x^32) mod P. Quotient by floor(x^95 / P), then what it leaves
 * over. */
SHMQ_CRC32_INLINE uint32_t shmq_crc32_reduce64(__m128i value)
{
    const __m128i barrett = _mm_set_epi64x(0x1db710641, (long long)0xb4e5b025f7011641u);
    __m128i quotient = _mm_clmulepi64_si128(value, barrett, 0x00);
    __m128i product = _mm_clmulepi64_si128(quotient, barrett, 0x10);
    return (uint32_t)_mm_extract_epi32(_mm_xor_si128(value, product), 2);
}

/* (128 bits, times x^32) mod P: the high-order half first shrinks to 96 bits by x^95 mod P. */
SHMQ_CRC32_INLINE uint32_t shmq_crc32_reduce128(__m128i value)
{
    __m128i shrunk = _mm_clmulepi64_si128(value, _mm_cvtsi64_si128(0xccaa009e), 0x00);
    return shmq_crc32_reduce64(_mm_xor_si128(shrunk, _mm_srli_si128(value, 8)));
}

/* Loads one block, once; stores it as well if this is a copy. */
SHMQ_CRC32_INLINE __m128i shmq_crc32_take(uint8_t *to, const uint8_t *from, int is_copy)
{
    __m128i block = _mm_loadu_si128((const __m128i *)(const void *)from);
    if (is_copy) {
        __asm__("" : "+x"(block));
        _mm_storeu_si128((__m128i *)(void *)to, block);
    }
    return block;
}

/* Under 16 bytes: the bytes moved to the end of one zeroed block, the state added to the first
 * four. */
SHMQ_CRC32_INLINE uint32_t shmq_crc32_short_pclmul(uint32_t crc, uint8_t *to, const uint8_t *from,
                                                   size_t size, int is_copy)
{
    uint64_t state = (uint32_t)~crc;
    if (size >= 8) {
        uint64_t first = shmq_le64_load(from);
        uint64_t last = shmq_le64_load(from + size - 8);
        SHMQ_PIN(first);
        SHMQ_PIN(last);
        if (is_copy) {
            shmq_le64_store(to, first);
            shmq_le64_store(to + size - 8, last);
        }
        unsigned half = (unsigned)(16 - size) * 4u;
        __m128i block = _mm_set_epi64x((long long)(last ^ state >> (size - 8) * 8),
                                       (long long)((first ^ state) << half << half));
        return ~shmq_crc32_reduce128(block);
    }
    if (size >= 4) {
        uint32_t first = shmq_le32_load(from);
        uint32_t last = shmq_le32_load(from + size - 4);
        SHMQ_PIN(first);
        SHMQ_PIN(last);
        if (is_copy) {
            shmq_le32_store(to + size - 4, last);
            shmq_le32_store(to, first);
        }
        uint64_t word = first | (uint64_t)last >> (8 - size) * 8 << 32;
        word = (word ^ state) << (8 - size) * 8;
        return ~shmq_crc32_reduce64(_mm_cvtsi64_si128((long long)word));
    }
    uint32_t table_state = (uint32_t)state;
    for (size_t i = 0; i < size; i++) {
        uint32_t byte = from[i];
        SHMQ_PIN(byte);
        if (is_copy)
            to[i] = (uint8_t)byte;
        table_state = shmq_crc32_byte(table_state, (uint8_t)byte);
    }
    return ~table_state;
}

/* Sixteen bytes and more. The first size % 16 bytes become a block of their own, zeros before
 * them. */
SHMQ_CRC32_INLINE uint32_t shmq_crc32_long_pclmul(uint32_t crc, uint8_t *to, const uint8_t *from,
                                                  size_t size, int is_copy)
{
    size_t odd = size % 16u;
    size_t blocks = size / 16u;
    const uint8_t *shifts = shmq_crc32_shifts;
    __m128i to_end = _mm_loadu_si128((const __m128i *)(const void *)(shifts + odd));
    __m128i to_front = _mm_loadu_si128((const __m128i *)(const void *)(shifts + 16 + odd));
    __m128i state = _mm_cvtsi32_si128((int)~crc);
    __m128i front = _mm_xor_si128(shmq_crc32_take(to, from, is_copy), state);
    front = _mm_shuffle_epi8(front, to_end);
    from += odd;
    to += is_copy ? odd : 0;
    __m128i block = shmq_crc32_take(to, from, is_copy);
    block = _mm_xor_si128(block, _mm_shuffle_epi8(state, to_front));

    __m128i sum;
    if (blocks <= SHMQ_CRC32_DIRECT_BLOCKS) {
        sum = shmq_crc32_fold(front, shmq_crc32_powers(blocks));
    } else {
        const __m128i powers = shmq_crc32_powers(4);
        __m128i lane0 = _mm_xor_si128(block, shmq_crc32_fold(front, shmq_crc32_powers(1)));
        __m128i lane1 = shmq_crc32_take(to + 16 * is_copy, from + 16, is_copy);
        __m128i lane2 = shmq_crc32_take(to + 32 * is_copy, from + 32, is_copy);
        __m128i lane3 = shmq_crc32_take(to + 48 * is_copy, from + 48, is_copy);
        for (;;) {
            from += 64;
            to += is_copy ? 64 : 0;
            blocks -= 4;
            if (blocks < 8)
                break;
            lane0 = _mm_xor_si128(shmq_crc32_fold(lane0, powers),
                                  shmq_crc32_take(to, from, is_copy));
            lane1 = _mm_xor_si128(shmq_crc32_fold(lane1, powers),
                                  shmq_crc32_take(to + 16 * is_copy, from + 16, is_copy));
            lane2 = _mm_xor_si128(shmq_crc32_fold(lane2, powers),
                                  shmq_crc32_take(to + 32 * is_copy, from + 32, is_copy));
            lane3 = _mm_xor_si128(shmq_crc32_fold(lane3, powers),
                                  shmq_crc32_take(to + 48 * is_copy, from + 48, is_copy));
        }
        sum = _mm_xor_si128(_mm_xor_si128(shmq_crc32_fold(lane0, shmq_crc32_powers(blocks + 3)),
                                          shmq_crc32_fold(lane1, shmq_crc32_powers(blocks + 2))),
                            _mm_xor_si128(shmq_crc32_fold(lane2, shmq_crc32_powers(blocks + 1)),
                                          shmq_crc32_fold(lane3, shmq_crc32_powers(blocks))));
        block = shmq_crc32_take(to, from, is_copy);
    }
    while (--blocks > 0) {
        sum = _mm_xor_si128(sum, shmq_crc32_fold(block, shmq_crc32_powers(blocks)));
        from += 16;
        to += is_copy ? 16 : 0;
        block = shmq_crc32_take(to, from, is_copy);
    }
    return ~shmq_crc32_reduce128(_mm_xor_si128(sum, block));
}

SHMQ_CRC32_TARGET
static inline uint32_t shmq_crc32_pclmul(uint32_t crc, const void *data, size_t size)
{
    if (size < 16)
        return shmq_crc32_short_pclmul(crc, NULL, data, size, 0);
    return shmq_crc32_long_pclmul(crc, NULL, data, size, 0);
}

SHMQ_COPIES_HOSTILE SHMQ_CRC32_TARGET
static inline uint32_t shmq_crc32_copy_pclmul(uint32_t crc, void *to, const void *from, size_t size)
{
    if (size < 16)
        return shmq_crc32_short_pclmul(crc, to, from, size, 1);
    return shmq_crc32_long_pclmul(crc, to, from, size, 1);
}

/* crc * power * x^33 mod P. */
SHMQ_CRC32_TARGET
static inline uint32_t shmq_crc32_multiply_pclmul(uint32_t crc, uint32_t power)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi32_si128((int)crc),
                                           _mm_cvtsi32_si128((int)power), 0x00);
    return shmq_crc32_reduce64(_mm_move_epi64(product));
}

#endif

/* ---- arm64: CRC32 instructions --------------------------------------------------------------- */

#if defined(SHMQ_CRC32_HAS_ARM64)

#define SHMQ_CRC32_TARGET __attribute__((target("+crc")))

static inline int shmq_crc32_has_arm64(void)
{
#if defined(__ARM_FEATURE_CRC32)
    return 1;
#else
    return (getauxval(AT_HWCAP) & 1ul << 7) != 0; /* HWCAP_CRC32 */
#endif
}

SHMQ_CRC32_TARGET
static inline uint32_t shmq_crc32_arm64(uint32_t crc, const void *data, size_t size)
{
    const uint8_t *from = data;
    uint32_t state = ~crc;
    for (; size >= 8; size -= 8, from += 8)
        state = __crc32d(state, shmq_le64_load(from));
    for (; size > 0; size--, from++)
        state = __crc32b(state, *from);
    return ~state;
}

SHMQ_COPIES_HOSTILE SHMQ_CRC32_TARGET
static inline uint32_t shmq_crc32_copy_arm64(uint32_t crc, void *to, const void *from, size_t size)
{
    const uint8_t *source = from;
    uint8_t *target = to;
    uint32_t state = ~crc;
    for (; size >= 8; size -= 8, source += 8, target += 8) {
        uint64_t word = shmq_le64_load(source);
        SHMQ_PIN(word);
        shmq_le64_store(target, word);
        state = __crc32d(state, word);
    }
    for (; size > 0; size--, source++, target++) {
        uint32_t byte = *source;
        SHMQ_PIN(byte);
        *target = (uint8_t)byte;
        state = __crc32b(state, (uint8_t)byte);
    }
    return ~state;
}

#endif

/* ---- the verbs ------------------------------------------------------------------------------- */

/* CRC of `size` bytes at `data`, going on from `crc` (0 to begin with). */
static inline uint32_t shmq_crc32(uint32_t crc, const void *data, size_t size)
{
#if defined(SHMQ_CRC32_HAS_PCLMUL)
    if (shmq_crc32_has_pclmul())
        return shmq_crc32_pclmul(crc, data, size);
#elif defined(SHMQ_CRC32_HAS_ARM64)
    if (shmq_crc32_has_arm64())
        return shmq_crc32_arm64(crc, data, size);
#endif
    return shmq_crc32_portable(crc, data, size);
}

/* Copies `size` bytes and gives back the CRC of what landed in `to`. The regions do not overlap. */
static inline uint32_t shmq_crc32_copy(uint32_t crc, void *to, const void *from, size_t size)
{
#if defined(SHMQ_CRC32_HAS_PCLMUL)
    if (shmq_crc32_has_pclmul())
        return shmq_crc32_copy_pclmul(crc, to, from, size);
#elif defined(SHMQ_CRC32_HAS_ARM64)
    if (shmq_crc32_has_arm64())
        return shmq_crc32_copy_arm64(crc, to, from, size);
#endif
    return shmq_crc32_copy_portable(crc, to, from, size);
}

/* x^(8 d 16^j - 33) mod P for digit d at place j of a size written in base 16: appending `size`
 * bytes to a message multiplies its CRC by x^(8 size). The 33 is what one reduction of a
 * reflected product adds. */
static const uint32_t shmq_crc32_size_powers[8][16] = {
    {0xb66b1fa6u, 0x3f036dc2u, 0x7555a0f1u, 0xcacf972au, 0xdb710641u, 0x01000000u, 0x00010000u,
     0x00000100u, 0x00000001u, 0x77073096u, 0x191b3141u, 0x01c26a37u, 0xb8bc6765u, 0x3d6029b0u,
     0xcb5cd3a5u, 0xa6770bb4u},
    {0xb66b1fa6u, 0xccaa009eu, 0x81256527u, 0xaf449247u, 0x1d9513d7u, 0xae0b5394u, 0x57c54819u,
     0x0cbec0edu, 0x910eeec1u, 0x3f41287au, 0x9026d5b1u, 0xd1df2327u, 0xf5e48c85u, 0x3c656cedu,
     0xfe807bbdu, 0x1f0c2cddu},
    {0xb66b1fa6u, 0xe95c1271u, 0x0c30f51du, 0x1d6708a0u, 0xbbf2f6d6u, 0xb8e0e4a8u, 0x1753ab84u,
     0x3fc33de4u, 0x7b4aa8b7u, 0x3954de39u, 0xcae68461u, 0x41e7589cu, 0xa0decef3u, 0xefb0a128u,
     0x48d72bb1u, 0xd51917a4u},
    {0xb66b1fa6u, 0x68c0a2c5u, 0x2339d155u, 0x4470c029u, 0xe0ee5efeu, 0xf5ddd5adu, 0x64f34a05u,
     0xee2d04bbu, 0x29c2448bu, 0xfa8a435du, 0xb2263f5cu, 0xfc0e4453u, 0x49893408u, 0xa981caafu,
     0xb2f1596au, 0x900f3e84u},
    {0xb66b1fa6u, 0x4b912f53u, 0x79d78d2cu, 0x6b44d80eu, 0xb04e2d4bu, 0xbfe619f4u, 0x00ac8af9u,
     0x246d9f73u, 0x6a0ea34fu, 0xae40bdaeu, 0x81865de8u, 0xad774ddfu, 0xe47e3eeeu, 0x9fafa3cbu,
     0x61e7e093u, 0xf8436227u},
    {0xb66b1fa6u, 0x4d06c8dfu, 0xce4366bfu, 0x1d3a44a4u, 0x98964c55u, 0x74d265a3u, 0x69d3a45au,
     0x1edf9b10u, 0x42572086u, 0xc6d68ebfu, 0x604d9a18u, 0xdea87096u, 0x6bc3b9f3u, 0x0c5e3de9u,
     0xa40cf243u, 0x64b09d7fu},
    {0xb66b1fa6u, 0x4a8257e2u, 0x2b116eb6u, 0x1c6af682u, 0xdfa06ca7u, 0x10eb53fcu, 0x6a10d2b1u,
     0x0cd4ea3fu, 0xb1c2baffu, 0x69b4b5f2u, 0x99fe04a2u, 0x709ad6a4u, 0xcb76ca66u, 0xf130713du,
     0x9178bd38u, 0xacf67fb1u},
    {0xb66b1fa6u, 0x94829948u, 0x5b358fd3u, 0x4a414ca4u, 0xc02244c9u, 0x2520a652u, 0x8da9a144u,
     0x12905329u, 0x46d4d0a2u, 0xe4f0aab4u, 0x236a6851u, 0x7278555au, 0xfc0db708u, 0x393c2aadu,
     0x7e06db84u, 0xf1269676u},
};

/* crc * power * x^33 mod P, in plain C. */
static inline uint32_t shmq_crc32_multiply_portable(uint32_t crc, uint32_t power)
{
    uint64_t product = 0;
    for (unsigned bit = 0; bit < 32; bit++)
        product ^= (uint64_t)power << bit & (0u - (uint64_t)(crc >> bit & 1u));
    return shmq_crc32_slice8(product);
}

static inline uint32_t shmq_crc32_multiply(uint32_t crc, uint32_t power)
{
#if defined(SHMQ_CRC32_HAS_PCLMUL)
    if (shmq_crc32_has_pclmul())
        return shmq_crc32_multiply_pclmul(crc, power);
#endif
    return shmq_crc32_multiply_portable(crc, power);
}

/* CRC of a followed by b, from the CRC of each and the size of b in bytes. */
static inline uint32_t shmq_crc32_combine(uint32_t crc_a, uint32_t crc_b, uint64_t size_b)
{
    /* x has order 2^32 - 1 modulo P, so sizes count modulo that; twice, for the carry of the
     * first sum. */
    size_b = (size_b & 0xffffffffu) + (size_b >> 32);
    size_b = (size_b & 0xffffffffu) + (size_b >> 32);
    for (unsigned place = 0; size_b != 0; place++, size_b >>= 4)
        if ((size_b & 15u) != 0)
            crc_a = shmq_crc32_multiply(crc_a, shmq_crc32_size_powers[place][size_b & 15u]);
    return crc_a ^ crc_b;
}

#endif
