/* unique_key.h: the producer's ids of messages, RocketMQ's UNIQ_KEY: 32 hexadecimal digits of address 4 bytes,
 * process id 2, something of this producer's own 4 (here: random), ms since the begin of a month 4, count 2.
 *
 * An id here is the last 48 bits, with the number of the prefix that they were made under above them. */
#ifndef SHMQ_BINDING_UNIQUE_KEY_H
#define SHMQ_BINDING_UNIQUE_KEY_H

#include "binding.h"

/* "UNIQ_KEY" 0x01, 32 hexadecimal digits, 0x02. */
#define SHMQ_UNIQUE_KEY_SIZE 32u
#define SHMQ_UNIQUE_KEY_PREFIX_SIZE 20u
#define SHMQ_UNIQUE_KEY_PLACE 9u
#define SHMQ_UNIQUE_PROPERTY_SIZE (SHMQ_UNIQUE_KEY_PLACE + SHMQ_UNIQUE_KEY_SIZE + 1u)
#define SHMQ_UNIQUE_ID_BITS 48u
#define SHMQ_UNIQUE_KEY_CUSTOM UINT64_MAX /* instead of an id: the caller brought the key; no id has all bits set */

struct shmq_unique_keys {
    uint64_t month_begin_ms;
    uint64_t last_id;
    uint32_t prefix_index;
    uint8_t property[2][SHMQ_UNIQUE_PROPERTY_SIZE]; /* by prefix: the property, but for the last 12 digits */
};

/* -1 with errno if there is no randomness. */
int shmq_unique_keys_begin(struct shmq_unique_keys *self);

/* The 48 bits have run out (a producer of 50 days): another random part begins. Returns the first id under it. */
uint64_t shmq_unique_keys_wrap(struct shmq_unique_keys *self);

/* Eight hexadecimal digits, the most significant first, as the bytes of a word to be stored. */
static inline uint64_t shmq_hex_digits(uint32_t value)
{
    uint64_t spread = value;
    spread = (spread | spread << 16) & 0x0000ffff0000ffffu;
    spread = (spread | spread << 8) & 0x00ff00ff00ff00ffu;
    spread = (spread | spread << 4) & 0x0f0f0f0f0f0f0f0fu;
    uint64_t letters = (spread + 0x0606060606060606u) >> 4 & 0x0101010101010101u;
    return __builtin_bswap64(spread + 0x3030303030303030u + letters * 7u);
}

static inline void shmq_unique_id_put(uint8_t *digits, uint64_t id)
{
    uint64_t low = shmq_hex_digits((uint32_t)(id << 16));
    shmq_le64_store(digits, shmq_hex_digits((uint32_t)(id >> 16)));
    memcpy(digits + 8, &low, 4);
}

/* Writes a new key's property and returns its id. Ids strictly grow, whatever the clock does: time where it leads,
 * else one more than the last. */
static inline uint64_t shmq_unique_keys_put(struct shmq_unique_keys *self, uint64_t now_ms, uint8_t *at)
{
    uint64_t since = now_ms > self->month_begin_ms ? now_ms - self->month_begin_ms : 0;
    uint64_t id = (since & UINT32_MAX) << 16;
    if (id <= self->last_id) {
        id = self->last_id + 1;
        if (id >> SHMQ_UNIQUE_ID_BITS != 0) {
            id = shmq_unique_keys_wrap(self);
        }
    }
    self->last_id = id;
    memcpy(at, self->property[self->prefix_index], SHMQ_UNIQUE_PROPERTY_SIZE);
    shmq_unique_id_put(at + SHMQ_UNIQUE_KEY_PLACE + SHMQ_UNIQUE_KEY_PREFIX_SIZE, id);
    return id | (uint64_t)self->prefix_index << SHMQ_UNIQUE_ID_BITS;
}

/* The key of an id that is not older than the prefix before this one, as text. */
static inline void shmq_unique_keys_text(const struct shmq_unique_keys *self, uint64_t id, uint8_t *text)
{
    memcpy(text, self->property[id >> SHMQ_UNIQUE_ID_BITS & 1] + SHMQ_UNIQUE_KEY_PLACE,
           SHMQ_UNIQUE_KEY_PREFIX_SIZE);
    shmq_unique_id_put(text + SHMQ_UNIQUE_KEY_PREFIX_SIZE, id & ((UINT64_C(1) << SHMQ_UNIQUE_ID_BITS) - 1));
}

/* The same as a str; NULL with an exception. */
PyObject *shmq_unique_key_text(const struct shmq_unique_keys *self, uint64_t id);

#endif
