/* endian.h: loads and stores of integers at any address, in the byte order named.
 *
 * RocketMQ's files are big-endian, the machine is little-endian (atomics.h asserts it). Every
 * access goes through memcpy, so no alignment is assumed and no aliasing rule is bent; compilers
 * make one instruction of it. */
#ifndef SHMQ_ENDIAN_H
#define SHMQ_ENDIAN_H

#include <stdint.h>
#include <string.h>

/* Always, because hostile.h counts on it. */
#define SHMQ_ENDIAN_INLINE static inline __attribute__((always_inline))

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the swaps assume little-endian");

SHMQ_ENDIAN_INLINE uint16_t shmq_be16_load(const void *from)
{
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return __builtin_bswap16(value);
}

SHMQ_ENDIAN_INLINE uint32_t shmq_be32_load(const void *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return __builtin_bswap32(value);
}

SHMQ_ENDIAN_INLINE uint64_t shmq_be64_load(const void *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return __builtin_bswap64(value);
}

SHMQ_ENDIAN_INLINE void shmq_be16_store(void *to, uint16_t value)
{
    value = __builtin_bswap16(value);
    memcpy(to, &value, sizeof value);
}

SHMQ_ENDIAN_INLINE void shmq_be32_store(void *to, uint32_t value)
{
    value = __builtin_bswap32(value);
    memcpy(to, &value, sizeof value);
}

SHMQ_ENDIAN_INLINE void shmq_be64_store(void *to, uint64_t value)
{
    value = __builtin_bswap64(value);
    memcpy(to, &value, sizeof value);
}

SHMQ_ENDIAN_INLINE uint32_t shmq_le32_load(const void *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

SHMQ_ENDIAN_INLINE uint64_t shmq_le64_load(const void *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

SHMQ_ENDIAN_INLINE void shmq_le32_store(void *to, uint32_t value)
{
    memcpy(to, &value, sizeof value);
}

SHMQ_ENDIAN_INLINE void shmq_le64_store(void *to, uint64_t value)
{
    memcpy(to, &value, sizeof value);
}

#endif
