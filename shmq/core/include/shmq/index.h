/* index.h: message keys to places in the log: what of a frame is indexed, and under which hash.
 *
 * Byte table (little-endian; one entry for each key of each message):
 *     0 | 8 | hash of (topic, key) for a word of KEYS, of ("", key) for the UNIQ_KEY
 *     8 | 4 | place of the frame in its CommitLog file
 *    12 | 4 | its storeTimestamp in whole seconds since 1970
 * Validity: an entry is a hint. Two keys may have one hash, a frame may be damaged since, its topic
 *   deleted: whoever looks up holds the frame itself against the key that was asked for.
 * Writer (one thread, over a file or committed memory): shmq_index_head(), then the bytes behind the
 *   body for shmq_index_tail(), then shmq_index_put(); bodies are never looked at. CRCs are not
 *   checked: what is wrong with a frame shows when it is looked up. Then shmq_index_sort().
 * Reader: shmq_index_hash() of what is asked for, a search in sorted entries.
 * Crash: entries are in nobody else's memory and can be made again from the log at any time.
 *
 * The hash is part of the file format (docs/formats/index_file.md): one multiplication for each
 * eight bytes, the words little-endian and filled up with zeros, the sizes mixed in behind each
 * part. Who chooses keys so that they collide makes lookups of his own keys slower. */
#ifndef SHMQ_INDEX_H
#define SHMQ_INDEX_H

#include "message.h"

struct shmq_index_entry {
    uint64_t hash;
    uint32_t place;
    uint32_t second;
};
_Static_assert(sizeof(struct shmq_index_entry) == 16, "store/index_files.py reads 16 bytes");

/* Bytes from the start of a frame to its body, both hosts IPv6: what shmq_index_head() may need. */
#define SHMQ_INDEX_HEAD_SIZE (SHMQ_MESSAGE_HEADER_SIZE + 2u * (SHMQ_HOST_SIZE_V6 - SHMQ_HOST_SIZE_V4))
/* Most bytes behind a body: two lengths, topic, properties. */
#define SHMQ_INDEX_TAIL_SIZE_MAX (4u + SHMQ_TOPIC_SIZE_V2_MAX + SHMQ_PROPERTIES_SIZE_MAX)

/* ---- hash ------------------------------------------------------------------------------------ */

#define SHMQ_INDEX_FACTOR 0x9e3779b97f4a7c15u

static inline uint64_t shmq_index_mix(uint64_t hash, uint64_t word)
{
    hash = (hash ^ word) * SHMQ_INDEX_FACTOR;
    return hash ^ hash >> 32;
}

static inline uint64_t shmq_index_hash_part(uint64_t hash, const uint8_t *at, uint32_t size)
{
    uint32_t left = size;
    for (; left >= 8; left -= 8, at += 8)
        hash = shmq_index_mix(hash, shmq_le64_load(at));
    uint64_t word = 0;
    for (uint32_t i = 0; i < left; ++i)
        word |= (uint64_t)at[i] << i * 8u;
    return shmq_index_mix(shmq_index_mix(hash, word), size);
}

static inline uint64_t shmq_index_hash(const uint8_t *topic, uint32_t topic_size,
                                       const uint8_t *key, uint32_t key_size)
{
    return shmq_index_hash_part(shmq_index_hash_part(0, topic, topic_size), key, key_size);
}

/* ---- frames ---------------------------------------------------------------------------------- */

/* What stands before the body. */
struct shmq_index_frame {
    uint32_t total_size;
    uint32_t tail_place; /* of the byte behind the body, from the start of the frame */
    uint32_t tail_size;  /* at most SHMQ_INDEX_TAIL_SIZE_MAX */
    uint32_t is_v2;
    uint32_t queue_id;
    uint32_t sys_flag;
    uint64_t queue_offset;
    int64_t store_timestamp;
};

/* What stands behind it; pointers lead into the caller's bytes. */
struct shmq_index_tail {
    const uint8_t *topic;
    const uint8_t *properties;
    uint32_t topic_size;
    uint32_t properties_size;
};

/* Takes apart what stands before the body of the frame at `physical_offset`, of which `available`
 * bytes are there and for which its file has `room`. SHMQ_OK; SHMQ_BLANK; SHMQ_EMPTY for zeros;
 * SHMQ_CORRUPT. Any bytes are safe. */
static inline int shmq_index_head(const uint8_t *frame, uint64_t available,
                                  uint64_t physical_offset, uint64_t room,
                                  struct shmq_index_frame *out)
{
    if (available < SHMQ_BLANK_SIZE)
        return SHMQ_CORRUPT;
    const uint32_t total_size = shmq_be32_load(frame);
    const uint32_t magic = shmq_be32_load(frame + 4);
    if (total_size == 0 && magic == 0)
        return SHMQ_EMPTY;
    if (magic == SHMQ_MESSAGE_MAGIC_BLANK)
        return total_size == room ? SHMQ_BLANK : SHMQ_CORRUPT;
    if ((magic != SHMQ_MESSAGE_MAGIC_V1 && magic != SHMQ_MESSAGE_MAGIC_V2) ||
        total_size > SHMQ_MESSAGE_SIZE_MAX || total_size > room ||
        available < SHMQ_MESSAGE_HEADER_SIZE || shmq_be64_load(frame + 28) != physical_offset)
        return SHMQ_CORRUPT;
    const uint32_t sys_flag = shmq_be32_load(frame + 36);
    const uint32_t more = SHMQ_HOST_SIZE_V6 - SHMQ_HOST_SIZE_V4;
    const uint32_t born = (sys_flag & SHMQ_SYS_FLAG_BORN_HOST_V6) != 0 ? more : 0;
    const uint32_t stored = (sys_flag & SHMQ_SYS_FLAG_STORE_HOST_V6) != 0 ? more : 0;
    const uint32_t body_place = SHMQ_MESSAGE_HEADER_SIZE + born + stored;
    const uint32_t is_v2 = magic == SHMQ_MESSAGE_MAGIC_V2;
    if (available < body_place || total_size < body_place + 3u + is_v2)
        return SHMQ_CORRUPT;
    const uint32_t body_size = shmq_be32_load(frame + body_place - 4);
    if (body_size > total_size - body_place - 3u - is_v2)
        return SHMQ_CORRUPT;
    out->tail_place = body_place + body_size;
    out->tail_size = total_size - out->tail_place;
    if (out->tail_size > SHMQ_INDEX_TAIL_SIZE_MAX)
        return SHMQ_CORRUPT;
    out->total_size = total_size;
    out->is_v2 = is_v2;
    out->queue_id = shmq_be32_load(frame + 12);
    out->sys_flag = sys_flag;
    out->queue_offset = shmq_be64_load(frame + 20);
    out->store_timestamp = (int64_t)shmq_be64_load(frame + 56 + born);
    return SHMQ_OK;
}

/* Takes apart the `frame->tail_size` bytes behind the body. SHMQ_OK, or SHMQ_CORRUPT where the
 * parts do not add up. */
static inline int shmq_index_tail(const uint8_t *tail, const struct shmq_index_frame *frame,
                                  struct shmq_index_tail *out)
{
    const uint32_t fixed = 3u + frame->is_v2; /* tail_size is at least that */
    out->topic_size = frame->is_v2 ? shmq_be16_load(tail) : tail[0];
    out->topic = tail + 1 + frame->is_v2;
    if (out->topic_size > frame->tail_size - fixed)
        return SHMQ_CORRUPT;
    out->properties = out->topic + out->topic_size + 2;
    out->properties_size = shmq_be16_load(out->properties - 2);
    return out->properties_size == frame->tail_size - fixed - out->topic_size ? SHMQ_OK
                                                                              : SHMQ_CORRUPT;
}

/* ---- entries --------------------------------------------------------------------------------- */

/* Entries of one hash range as they are gathered. */
struct shmq_index_entries {
    struct shmq_index_entry *entries;
    uint64_t count;
    uint64_t capacity;
    uint64_t low;  /* hashes below it are left out */
    uint64_t high; /* and those above this one */
};

static inline int shmq_index_add(struct shmq_index_entries *to, uint64_t hash, uint32_t place,
                                 uint32_t second)
{
    if (hash < to->low || hash > to->high)
        return SHMQ_OK;
    if (to->count == to->capacity)
        return SHMQ_FULL;
    to->entries[to->count++] = (struct shmq_index_entry){hash, place, second};
    return SHMQ_OK;
}

/* Seconds since 1970 as an entry has them: up to the year 2106. */
static inline uint32_t shmq_index_second(int64_t timestamp_ms)
{
    int64_t second = timestamp_ms / 1000;
    return second < 0 ? 0 : second > UINT32_MAX ? UINT32_MAX : (uint32_t)second;
}

/* Adds the keys of a frame: its UNIQ_KEY and each word of KEYS, as RocketMQ's IndexService does;
 * rolled back transaction messages have none. SHMQ_FULL without room: then `to` holds the entries of
 * the frames before it. */
static inline int shmq_index_put(struct shmq_index_entries *to, const struct shmq_index_frame *frame,
                                 const struct shmq_index_tail *tail, uint32_t place)
{
    if ((frame->sys_flag & SHMQ_SYS_FLAG_TRANSACTION_MASK) == SHMQ_SYS_FLAG_TRANSACTION_ROLLBACK)
        return SHMQ_OK;
    const uint64_t before = to->count;
    const uint32_t second = shmq_index_second(frame->store_timestamp);
    const uint8_t *unique_key = NULL;
    const uint8_t *keys = NULL;
    uint32_t unique_key_size = 0;
    uint32_t keys_size = 0;
    for (uint32_t at = 0; at < tail->properties_size;) {
        const uint8_t *pair = tail->properties + at;
        const uint32_t left = tail->properties_size - at;
        const uint8_t *end = memchr(pair, SHMQ_PROPERTY_VALUE_END, left);
        const uint32_t size = end != NULL ? (uint32_t)(end - pair) : left;
        if (size > 9 && memcmp(pair, "UNIQ_KEY\x01", 9) == 0) {
            unique_key = pair + 9;
            unique_key_size = size - 9;
        } else if (size > 5 && memcmp(pair, "KEYS\x01", 5) == 0) {
            keys = pair + 5;
            keys_size = size - 5;
        }
        at += size + 1;
    }
    int status = SHMQ_OK;
    if (unique_key != NULL)
        status = shmq_index_add(to, shmq_index_hash(NULL, 0, unique_key, unique_key_size), place,
                                second);
    const uint64_t topic = shmq_index_hash_part(0, tail->topic, tail->topic_size);
    for (uint32_t at = 0; at < keys_size && status == SHMQ_OK;) {
        const uint8_t *space = memchr(keys + at, ' ', keys_size - at);
        const uint32_t size = space != NULL ? (uint32_t)(space - keys) - at : keys_size - at;
        if (size != 0)
            status = shmq_index_add(to, shmq_index_hash_part(topic, keys + at, size), place, second);
        at += size + 1;
    }
    if (status != SHMQ_OK)
        to->count = before;
    return status;
}

/* Sorts by hash, and by place among equals, for entries come in order of places: eight stable passes,
 * so that no choice of keys makes it slow. Returns where the sorted entries are: `entries` or
 * `scratch`, which has as much room. */
static inline struct shmq_index_entry *shmq_index_sort(struct shmq_index_entry *entries,
                                                       struct shmq_index_entry *scratch,
                                                       uint64_t count)
{
    struct shmq_index_entry *from = entries;
    struct shmq_index_entry *to = scratch;
    for (uint32_t shift = 0; shift < 64; shift += 8) {
        uint64_t places[256] = {0};
        for (uint64_t i = 0; i < count; ++i)
            places[from[i].hash >> shift & 255u] += 1;
        uint64_t place = 0;
        for (uint32_t digit = 0; digit < 256; ++digit) {
            const uint64_t size = places[digit];
            places[digit] = place;
            place += size;
        }
        for (uint64_t i = 0; i < count; ++i)
            to[places[from[i].hash >> shift & 255u]++] = from[i];
        struct shmq_index_entry *swapped = from;
        from = to;
        to = swapped;
    }
    return from;
}

#endif
