/* message.h: one record of the CommitLog, byte for byte as Apache RocketMQ stores it.
 *
 * Byte table (big-endian; place | size | field):
 *     0 | 4 | totalSize, of the whole record
 *     4 | 4 | magic: V1 0xDAA320A7, V2 0xDAA320AB; BLANK 0xCBD43194 ends a file
 *     8 | 4 | bodyCRC = CRC-32(body) & 0x7FFFFFFF
 *    12 | 4 | queueId
 *    16 | 4 | flag
 *    20 | 8 | queueOffset
 *    28 | 8 | physicalOffset, the record's own place in the log
 *    36 | 4 | sysFlag
 *    40 | 8 | bornTimestamp, ms
 *    48 | 8 | bornHost: IPv4 4, port 4 (IPv6 16, port 4 if sysFlag has 0x10; all behind moves)
 *    56 | 8 | storeTimestamp, ms
 *    64 | 8 | storeHost (20 bytes if sysFlag has 0x20)
 *    72 | 4 | reconsumeTimes
 *    76 | 8 | preparedTransactionOffset
 *    84 | 4 + n | body length, body
 *       | 1 + n | topic length (V1, at most 127) or 2 + n (V2), topic
 *       | 2 + n | properties length (at most 32767), properties: (name 0x01 value 0x02)*
 *   The last 20 bytes of our properties are `__CRC32#` 0x01, ten decimal digits with the least
 *   significant first, 0x02: CRC-32 & 0x7FFFFFFF of all bytes of the record before those 20. A
 *   BLANK frame is its size and its magic; the size is the room left in the file, and what follows
 *   the eight bytes means nothing. Eight zero bytes are the end of the log: nothing was written
 *   here yet.
 *
 * Validity: totalSize is the sum of the parts, magic is known, physicalOffset is the place the
 *   record was read at, bodyCRC holds, and so does the CRC property; our own stores always carry
 *   it, so their readers demand it (SHMQ_CHECK_RECORD_CRC) and a damaged property name cannot pass
 *   as an absent one. The lost 32nd bit of both CRCs costs nothing against single flips: x^n = 1
 *   modulo P first happens at n = 2^32 - 1 bits.
 * Writer (the append role): shmq_message_fill() copies body and properties out of memory that a
 *   hostile producer may be changing, with lengths fixed beforehand by the caller, checksums what
 *   landed and writes the header; the caller judges the properties on the copy
 *   (shmq_properties_check); shmq_message_seal() adds the CRC property. Fields of the frame by
 *   source:
 *     copied    body, properties, flag, bornTimestamp
 *     computed  totalSize, magic, bodyCRC, queueId, queueOffset, physicalOffset, storeTimestamp,
 *               both hosts, topic, all lengths, the CRC property, tagsCode (for the ConsumeQueue),
 *               of a delayed message REAL_TOPIC and REAL_QID (shmq_message_extend)
 *     masked    by grant: sysFlag, reconsumeTimes, preparedTransactionOffset, reserved names
 * Reader: shmq_message_check() (or _parse() where the CRC is known good), then shmq_message_step()
 *   to the next place. Any bytes at all are safe to parse: nothing past `available` is read.
 * Crash: a frame is no message before the turn that holds it is committed (turn.h), so a
 *   half-written one is never reached; after a power cut it fails the check. Recovery repairs:
 *   behind the flushed position it is cut, before it it is quarantined. */
#ifndef SHMQ_MESSAGE_H
#define SHMQ_MESSAGE_H

#include "crc.h"
#include "endian.h"
#include "hostile.h"
#include "status.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SHMQ_MESSAGE_MAGIC_V1 0xdaa320a7u
#define SHMQ_MESSAGE_MAGIC_V2 0xdaa320abu
#define SHMQ_MESSAGE_MAGIC_BLANK 0xcbd43194u

#define SHMQ_SYS_FLAG_COMPRESSED 0x1u
#define SHMQ_SYS_FLAG_MULTI_TAGS 0x2u
#define SHMQ_SYS_FLAG_TRANSACTION_MASK 0xcu
#define SHMQ_SYS_FLAG_TRANSACTION_NONE 0x0u
#define SHMQ_SYS_FLAG_TRANSACTION_PREPARED 0x4u
#define SHMQ_SYS_FLAG_TRANSACTION_COMMIT 0x8u
#define SHMQ_SYS_FLAG_TRANSACTION_ROLLBACK 0xcu
#define SHMQ_SYS_FLAG_BORN_HOST_V6 0x10u
#define SHMQ_SYS_FLAG_STORE_HOST_V6 0x20u
#define SHMQ_SYS_FLAG_NEED_UNWRAP 0x40u
#define SHMQ_SYS_FLAG_INNER_BATCH 0x80u
#define SHMQ_SYS_FLAG_COMPRESSION_MASK 0x700u
#define SHMQ_SYS_FLAG_COMPRESSION_LZ4 0x100u
#define SHMQ_SYS_FLAG_COMPRESSION_ZSTD 0x200u
#define SHMQ_SYS_FLAG_COMPRESSION_ZLIB 0x300u

#define SHMQ_PROPERTY_NAME_END 0x01u    /* between name and value */
#define SHMQ_PROPERTY_VALUE_END 0x02u   /* after each value */
#define SHMQ_PROPERTIES_SIZE_MAX 32767u /* a signed 16-bit integer; includes the CRC property */
#define SHMQ_CRC_PROPERTY_SIZE 20u
#define SHMQ_CRC_PROPERTY_NAME "__CRC32#"
#define SHMQ_CRC_PROPERTY_NAME_SIZE 8u
/* "UNIQ_KEY" 0x01, 32 digits, 0x02: what our producers' properties begin with. */
#define SHMQ_KEY_PROPERTY_SIZE 42u
#define SHMQ_KEY_PROPERTY_NAME_SIZE 8u

#define SHMQ_TOPIC_SIZE_V1_MAX 127u   /* the length is a signed 8-bit integer */
#define SHMQ_TOPIC_SIZE_V2_MAX 32767u /* the length is a signed 16-bit integer */
#define SHMQ_HOST_SIZE_V4 8u
#define SHMQ_HOST_SIZE_V6 20u

/* Bytes of a record before its body, with IPv4 hosts; and of all lengths, with an empty body,
 * topic and properties. */
#define SHMQ_MESSAGE_HEADER_SIZE 88u
#define SHMQ_MESSAGE_FIXED_SIZE_V1 91u
#define SHMQ_BLANK_SIZE 8u
#define SHMQ_MESSAGE_SIZE_MAX 0x7fffffffu /* totalSize is a signed 32-bit integer */

/* A whole-record CRC takes over the body's from this size on: one pass over the body instead of
 * two. */
#define SHMQ_BODY_CRC_REUSE_SIZE 512u

/* ---- writing --------------------------------------------------------------------------------- */

/* What a writer states, in host order. Nothing here lies in memory that a producer can change. */
struct shmq_message_fields {
    const uint8_t *topic;      /* UTF-8, topic_size bytes */
    uint32_t topic_size;       /* 1 .. 32767; V2 from 128 on */
    uint32_t body_size;        /* bytes at `body` */
    uint32_t properties_size;  /* bytes at `properties`, without the CRC property: at most 32747 */
    uint32_t queue_id;         /* RocketMQ queueId */
    int32_t flag;              /* the user's own integer */
    uint32_t sys_flag;         /* SHMQ_SYS_FLAG_*; hosts are IPv4 on writing */
    int32_t reconsume_times;   /* deliveries that failed before */
    int64_t born_timestamp;    /* ms since 1970, producer's clock */
    int64_t store_timestamp;   /* ms since 1970, stamped once per turn */
    uint64_t queue_offset;     /* index in the ConsumeQueue */
    uint64_t physical_offset;  /* where the frame begins in the log */
    uint64_t prepared_transaction_offset; /* of the half message this ends; else 0 */
    uint8_t born_host[8];      /* IPv4 4, port 4, network order */
    uint8_t store_host[8];
};

/* A frame that was filled and not yet sealed. */
struct shmq_message_draft {
    const uint8_t *body;       /* in the frame */
    const uint8_t *topic;      /* in the frame */
    uint8_t *properties;       /* in the frame */
    uint32_t body_size;
    uint32_t topic_size;
    uint32_t properties_size;  /* without the CRC property */
    uint32_t total_size;
    uint32_t body_crc;         /* all 32 bits */
    uint32_t key_size;         /* SHMQ_KEY_PROPERTY_SIZE: properties begin with a key; else 0 */
};

/* Bytes of the whole record, IPv4 hosts, V2 if and only if topic_size > 127; properties_size as
 * stored, so with the CRC property's 20 where there is one. 0 if no record can have these sizes. */
static inline uint32_t shmq_message_size(uint32_t topic_size, uint32_t body_size,
                                         uint32_t properties_size)
{
    if (topic_size == 0 || topic_size > SHMQ_TOPIC_SIZE_V2_MAX ||
        properties_size > SHMQ_PROPERTIES_SIZE_MAX)
        return 0;
    uint64_t size = (uint64_t)SHMQ_MESSAGE_FIXED_SIZE_V1 + (topic_size > SHMQ_TOPIC_SIZE_V1_MAX) +
                    topic_size + body_size + properties_size;
    return size <= SHMQ_MESSAGE_SIZE_MAX ? (uint32_t)size : 0;
}

/* The twenty bytes of the CRC property. Eight digits are split four by four, two by two, one by
 * one in the lanes of one word; the reciprocals are exact for operands below 10^4 and 10^2. */
static inline void shmq_crc_property_put(uint8_t *at, uint32_t record_crc)
{
    uint32_t value = record_crc & 0x7fffffffu;
    uint32_t top = value / 100000000u;
    uint32_t low = value % 100000000u;
    uint64_t fours = low % 10000u | (uint64_t)(low / 10000u) << 32;
    uint64_t hundreds = fours * 10486u >> 20 & 0x0000007f0000007fu;
    uint64_t twos = fours - 100u * hundreds + (hundreds << 16);
    uint64_t tens = twos * 103u >> 10 & 0x000f000f000f000fu;
    uint64_t ones = twos - 10u * tens + (tens << 8);
    memcpy(at, SHMQ_CRC_PROPERTY_NAME, SHMQ_CRC_PROPERTY_NAME_SIZE);
    at[8] = SHMQ_PROPERTY_NAME_END;
    shmq_le64_store(at + 9, ones + 0x3030303030303030u);
    at[17] = (uint8_t)('0' + top % 10u);
    at[18] = (uint8_t)('0' + top / 10u);
    at[19] = SHMQ_PROPERTY_VALUE_END;
}

/* Copies properties as shmq_hostile_copy does. Returns SHMQ_KEY_PROPERTY_SIZE if what landed begins
 * with the unique key as our producers write it, else 0 (and always 0 where there is no SSE2).
 * That is judged in the registers it is stored from: read back, it would wait for the stores. */
SHMQ_COPIES_HOSTILE
static inline uint32_t shmq_properties_copy(uint8_t *to, const uint8_t *from, uint32_t size)
{
#if defined(__SSE2__)
    if (size >= SHMQ_KEY_PROPERTY_SIZE) {
        const __m128i name = _mm_setr_epi8('U', 'N', 'I', 'Q', '_', 'K', 'E', 'Y',
                                           SHMQ_PROPERTY_NAME_END, 0, 0, 0, 0, 0, 0, 0);
        const __m128i is_name =
            _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0);
        const __m128i end =
            _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, SHMQ_PROPERTY_VALUE_END);
        const __m128i is_end = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1);
        const __m128i separators = _mm_set1_epi8(SHMQ_PROPERTY_VALUE_END);
        __m128i first = _mm_loadu_si128((const __m128i *)(const void *)from);
        __m128i second = _mm_loadu_si128((const __m128i *)(const void *)(from + 16));
        __m128i last =
            _mm_loadu_si128((const __m128i *)(const void *)(from + SHMQ_KEY_PROPERTY_SIZE - 16));
        __asm__("" : "+x"(first), "+x"(second), "+x"(last));
        _mm_storeu_si128((__m128i *)(void *)to, first);
        _mm_storeu_si128((__m128i *)(void *)(to + 16), second);
        _mm_storeu_si128((__m128i *)(void *)(to + SHMQ_KEY_PROPERTY_SIZE - 16), last);
        shmq_hostile_copy(to + SHMQ_KEY_PROPERTY_SIZE, from + SHMQ_KEY_PROPERTY_SIZE,
                          size - SHMQ_KEY_PROPERTY_SIZE);
        /* In the key's 32 digits no separator and no NUL; at the two ends what belongs there. */
        __m128i low = _mm_min_epu8(_mm_or_si128(first, is_name), _mm_or_si128(last, is_end));
        low = _mm_min_epu8(low, second);
        __m128i wrong = _mm_cmpeq_epi8(_mm_min_epu8(low, separators), low);
        wrong = _mm_or_si128(wrong, _mm_xor_si128(_mm_and_si128(first, is_name), name));
        wrong = _mm_or_si128(wrong, _mm_xor_si128(_mm_and_si128(last, is_end), end));
        int right = _mm_movemask_epi8(_mm_cmpeq_epi8(wrong, _mm_setzero_si128())) == 0xffff;
        return right ? SHMQ_KEY_PROPERTY_SIZE : 0;
    }
#endif
    shmq_hostile_copy(to, from, size);
    return 0;
}

/* Writes the header, copies body and properties behind it and leaves 20 bytes for the CRC
 * property. `frame` has room for shmq_message_size(topic_size, body_size, properties_size + 20)
 * bytes, which the caller made sure of. Both copies come from memory that may change during the
 * call: judge what landed, by `draft`. Always inlined, for its fields then stay in registers.
 * SHMQ_OK; SHMQ_PROPERTIES_TOO_LARGE or
 * SHMQ_TOO_LARGE for sizes that no record has; SHMQ_ILLEGAL for an empty topic or IPv6 bits in
 * sys_flag. Writes nothing unless it returns SHMQ_OK. */
SHMQ_ENDIAN_INLINE int shmq_message_fill(uint8_t *frame, const struct shmq_message_fields *fields,
                                         const uint8_t *body, const uint8_t *properties,
                                         struct shmq_message_draft *draft)
{
    const uint32_t topic_size = fields->topic_size;
    const uint32_t body_size = fields->body_size;
    const uint32_t properties_size = fields->properties_size;
    if (topic_size == 0 ||
        (fields->sys_flag & (SHMQ_SYS_FLAG_BORN_HOST_V6 | SHMQ_SYS_FLAG_STORE_HOST_V6)) != 0)
        return SHMQ_ILLEGAL;
    if (properties_size > SHMQ_PROPERTIES_SIZE_MAX - SHMQ_CRC_PROPERTY_SIZE)
        return SHMQ_PROPERTIES_TOO_LARGE;
    const uint32_t total_size =
        shmq_message_size(topic_size, body_size, properties_size + SHMQ_CRC_PROPERTY_SIZE);
    if (total_size == 0)
        return SHMQ_TOO_LARGE;

    uint8_t *at = frame + SHMQ_MESSAGE_HEADER_SIZE;
    const uint32_t body_crc = shmq_crc32_copy(0, at, body, body_size);
    const int is_v2 = topic_size > SHMQ_TOPIC_SIZE_V1_MAX;
    shmq_be32_store(frame, total_size);
    shmq_be32_store(frame + 4, is_v2 ? SHMQ_MESSAGE_MAGIC_V2 : SHMQ_MESSAGE_MAGIC_V1);
    shmq_be32_store(frame + 8, body_crc & 0x7fffffffu);
    shmq_be32_store(frame + 12, fields->queue_id);
    shmq_be32_store(frame + 16, (uint32_t)fields->flag);
    shmq_be64_store(frame + 20, fields->queue_offset);
    shmq_be64_store(frame + 28, fields->physical_offset);
    shmq_be32_store(frame + 36, fields->sys_flag);
    shmq_be64_store(frame + 40, (uint64_t)fields->born_timestamp);
    memcpy(frame + 48, fields->born_host, SHMQ_HOST_SIZE_V4);
    shmq_be64_store(frame + 56, (uint64_t)fields->store_timestamp);
    memcpy(frame + 64, fields->store_host, SHMQ_HOST_SIZE_V4);
    shmq_be32_store(frame + 72, (uint32_t)fields->reconsume_times);
    shmq_be64_store(frame + 76, fields->prepared_transaction_offset);
    shmq_be32_store(frame + 84, body_size);
    draft->body = at;
    at += body_size;
    if (is_v2)
        *at++ = (uint8_t)(topic_size >> 8);
    *at++ = (uint8_t)topic_size;
    shmq_hostile_copy(at, fields->topic, topic_size);
    draft->topic = at;
    at += topic_size;
    shmq_be16_store(at, (uint16_t)(properties_size + SHMQ_CRC_PROPERTY_SIZE));
    at += 2;
    draft->key_size = shmq_properties_copy(at, properties, properties_size);
    draft->properties = at;
    draft->body_size = body_size;
    draft->topic_size = topic_size;
    draft->properties_size = properties_size;
    draft->total_size = total_size;
    draft->body_crc = body_crc;
    return SHMQ_OK;
}

/* Puts properties of the broker's own behind the producer's. The frame has room for them, and the
 * producer's end with their separator, which shmq_draft_check() made sure of. */
static inline void shmq_message_extend(uint8_t *frame, struct shmq_message_draft *draft,
                                       const uint8_t *properties, uint32_t size)
{
    memcpy(draft->properties + draft->properties_size, properties, size);
    draft->properties_size += size;
    draft->total_size += size;
    shmq_be32_store(frame, draft->total_size);
    shmq_be16_store(draft->properties - 2,
                    (uint16_t)(draft->properties_size + SHMQ_CRC_PROPERTY_SIZE));
}

/* CRC-32 of the whole record up to its CRC property, given that of its body. */
static inline uint32_t shmq_message_record_crc(const uint8_t *frame, const uint8_t *body,
                                               uint32_t body_size, uint32_t body_crc,
                                               const uint8_t *end)
{
    if (body_size < SHMQ_BODY_CRC_REUSE_SIZE)
        return shmq_crc32(0, frame, (size_t)(end - frame));
    uint32_t crc = shmq_crc32(0, frame, (size_t)(body - frame));
    crc = shmq_crc32_combine(crc, body_crc, body_size);
    return shmq_crc32(crc, body + body_size, (size_t)(end - body) - body_size);
}

/* Adds the CRC property: from here on the frame is a valid record. */
static inline void shmq_message_seal(uint8_t *frame, const struct shmq_message_draft *draft)
{
    uint8_t *end = draft->properties + draft->properties_size;
    shmq_crc_property_put(end, shmq_message_record_crc(frame, draft->body, draft->body_size,
                                                       draft->body_crc, end));
}

/* fill and seal in one, for writers that own their input. */
static inline int shmq_message_encode(uint8_t *frame, const struct shmq_message_fields *fields,
                                      const uint8_t *body, const uint8_t *properties)
{
    struct shmq_message_draft draft;
    int status = shmq_message_fill(frame, fields, body, properties, &draft);
    if (status == SHMQ_OK)
        shmq_message_seal(frame, &draft);
    return status;
}

/* The frame that says "nothing more in this file"; `room` is what is left of the file.
 * SHMQ_ILLEGAL if a BLANK frame has no room: whoever appends keeps 8 bytes behind each record. */
static inline int shmq_message_put_blank(uint8_t *at, uint32_t room)
{
    if (room < SHMQ_BLANK_SIZE || room > SHMQ_MESSAGE_SIZE_MAX)
        return SHMQ_ILLEGAL;
    shmq_be32_store(at, room);
    shmq_be32_store(at + 4, SHMQ_MESSAGE_MAGIC_BLANK);
    return SHMQ_OK;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Why a frame is SHMQ_CORRUPT: R(NAME, sentence for people). */
#define SHMQ_MESSAGE_REASON_TABLE(R)                                                               \
    R(NONE, "nothing wrong")                                                                       \
    R(CUT, "fewer bytes than the frame needs")                                                     \
    R(MAGIC, "neither a message nor a BLANK frame")                                                \
    R(TOTAL_SIZE, "totalSize is not the sum of the parts")                                         \
    R(BODY_SIZE, "the body does not fit into the record")                                          \
    R(TOPIC_SIZE, "the topic does not fit into the record")                                        \
    R(PROPERTIES_SIZE, "the properties do not fit into the record")                                \
    R(PHYSICAL_OFFSET, "physicalOffset is not where the record lies")                              \
    R(BODY_CRC, "bodyCRC differs from the body")                                                   \
    R(NO_RECORD_CRC, "the __CRC32# property is missing or damaged")                                \
    R(RECORD_CRC, "the __CRC32# property differs from the record")

enum shmq_message_reason {
#define SHMQ_REASON_MEMBER(name, text) SHMQ_REASON_##name,
    SHMQ_MESSAGE_REASON_TABLE(SHMQ_REASON_MEMBER)
#undef SHMQ_REASON_MEMBER
};

/* A record in place. Pointers lead into the frame and live as long as it does. */
struct shmq_message_view {
    const uint8_t *body;
    const uint8_t *topic;
    const uint8_t *properties;  /* as stored, so with the CRC property */
    const uint8_t *born_host;   /* born_host_size bytes: address, then port, network order */
    const uint8_t *store_host;
    uint64_t queue_offset;
    uint64_t physical_offset;
    uint64_t prepared_transaction_offset;
    int64_t born_timestamp;
    int64_t store_timestamp;
    uint32_t total_size;        /* of the BLANK frame, too */
    uint32_t magic;
    uint32_t body_crc;          /* as stored: 31 bits */
    uint32_t queue_id;
    uint32_t sys_flag;
    uint32_t body_size;
    uint32_t topic_size;
    uint32_t properties_size;
    uint32_t born_host_size;    /* 8 or 20 */
    uint32_t store_host_size;
    int32_t flag;
    int32_t reconsume_times;
    enum shmq_message_reason reason; /* SHMQ_REASON_NONE unless the status is SHMQ_CORRUPT */
};

static inline int shmq_message_refuse(struct shmq_message_view *out,
                                      enum shmq_message_reason reason)
{
    out->reason = reason;
    return SHMQ_CORRUPT;
}

/* Takes a frame apart without believing it: any bytes are safe, none past `available` is read.
 * SHMQ_OK with every field of `out`; SHMQ_BLANK with magic and total_size (at least 8, at most
 * `available`); SHMQ_EMPTY for eight zero bytes; SHMQ_CORRUPT with out->reason for everything
 * else, and then total_size is not to be used. */
static inline int shmq_message_parse(const uint8_t *frame, size_t available,
                                     struct shmq_message_view *out)
{
    out->reason = SHMQ_REASON_NONE;
    if (available < SHMQ_BLANK_SIZE)
        return shmq_message_refuse(out, SHMQ_REASON_CUT);
    const uint32_t total_size = shmq_be32_load(frame);
    const uint32_t magic = shmq_be32_load(frame + 4);
    out->total_size = total_size;
    out->magic = magic;
    if (total_size == 0 && magic == 0)
        return SHMQ_EMPTY;
    const int is_v2 = magic == SHMQ_MESSAGE_MAGIC_V2;
    if (!is_v2 && magic != SHMQ_MESSAGE_MAGIC_V1 && magic != SHMQ_MESSAGE_MAGIC_BLANK)
        return shmq_message_refuse(out, SHMQ_REASON_MAGIC);
    if (total_size > available)
        return shmq_message_refuse(out, SHMQ_REASON_CUT);
    if (magic == SHMQ_MESSAGE_MAGIC_BLANK)
        return total_size >= SHMQ_BLANK_SIZE ? SHMQ_BLANK
                                             : shmq_message_refuse(out, SHMQ_REASON_TOTAL_SIZE);

    /* `rest` is what of the record is still unclaimed: each part takes its bytes from it or does
     * not fit. */
    uint32_t rest = total_size;
    if (rest < SHMQ_MESSAGE_FIXED_SIZE_V1 + (uint32_t)is_v2 || rest > SHMQ_MESSAGE_SIZE_MAX)
        return shmq_message_refuse(out, SHMQ_REASON_TOTAL_SIZE);
    const uint32_t sys_flag = shmq_be32_load(frame + 36);
    const uint32_t born_host_size =
        (sys_flag & SHMQ_SYS_FLAG_BORN_HOST_V6) != 0 ? SHMQ_HOST_SIZE_V6 : SHMQ_HOST_SIZE_V4;
    const uint32_t store_host_size =
        (sys_flag & SHMQ_SYS_FLAG_STORE_HOST_V6) != 0 ? SHMQ_HOST_SIZE_V6 : SHMQ_HOST_SIZE_V4;
    const uint32_t extra = born_host_size + store_host_size - 2u * SHMQ_HOST_SIZE_V4;
    rest -= SHMQ_MESSAGE_FIXED_SIZE_V1 + (uint32_t)is_v2;
    if (rest < extra)
        return shmq_message_refuse(out, SHMQ_REASON_TOTAL_SIZE);
    rest -= extra;

    out->body_crc = shmq_be32_load(frame + 8);
    out->queue_id = shmq_be32_load(frame + 12);
    out->flag = (int32_t)shmq_be32_load(frame + 16);
    out->queue_offset = shmq_be64_load(frame + 20);
    out->physical_offset = shmq_be64_load(frame + 28);
    out->sys_flag = sys_flag;
    out->born_timestamp = (int64_t)shmq_be64_load(frame + 40);
    const uint8_t *at = frame + 48;
    out->born_host = at;
    out->born_host_size = born_host_size;
    at += born_host_size;
    out->store_timestamp = (int64_t)shmq_be64_load(at);
    at += 8;
    out->store_host = at;
    out->store_host_size = store_host_size;
    at += store_host_size;
    out->reconsume_times = (int32_t)shmq_be32_load(at);
    out->prepared_transaction_offset = shmq_be64_load(at + 4);

    const uint32_t body_size = shmq_be32_load(at + 12);
    at += 16;
    if (body_size > rest)
        return shmq_message_refuse(out, SHMQ_REASON_BODY_SIZE);
    rest -= body_size;
    out->body = at;
    out->body_size = body_size;
    at += body_size;

    const uint32_t topic_size = is_v2 ? shmq_be16_load(at) : *at;
    at += is_v2 ? 2 : 1;
    if (topic_size > rest ||
        topic_size > (is_v2 ? SHMQ_TOPIC_SIZE_V2_MAX : SHMQ_TOPIC_SIZE_V1_MAX))
        return shmq_message_refuse(out, SHMQ_REASON_TOPIC_SIZE);
    rest -= topic_size;
    out->topic = at;
    out->topic_size = topic_size;
    at += topic_size;

    const uint32_t properties_size = shmq_be16_load(at);
    at += 2;
    if (properties_size > rest || properties_size > SHMQ_PROPERTIES_SIZE_MAX)
        return shmq_message_refuse(out, SHMQ_REASON_PROPERTIES_SIZE);
    if (properties_size != rest)
        return shmq_message_refuse(out, SHMQ_REASON_TOTAL_SIZE);
    out->properties = at;
    out->properties_size = properties_size;
    return SHMQ_OK;
}

/* Demands of shmq_message_check(). */
#define SHMQ_CHECK_RECORD_CRC 0x1u /* the CRC property must be there: any store that we wrote */

/* Whether the properties end with something that claims to be the CRC property. */
static inline int shmq_message_has_record_crc(const struct shmq_message_view *view)
{
    if (view->properties_size < SHMQ_CRC_PROPERTY_SIZE)
        return 0;
    const uint8_t *at = view->properties + view->properties_size - SHMQ_CRC_PROPERTY_SIZE;
    return memcmp(at, SHMQ_CRC_PROPERTY_NAME "\x01", SHMQ_CRC_PROPERTY_NAME_SIZE + 1u) == 0;
}

/* parse, and then: the record lies where it says, its bodyCRC holds, and so does its CRC
 * property if it has one; with SHMQ_CHECK_RECORD_CRC in `demands` it must have one. Statuses as
 * shmq_message_parse(). */
static inline int shmq_message_check(const uint8_t *frame, size_t available,
                                     uint64_t physical_offset, uint32_t demands,
                                     struct shmq_message_view *out)
{
    int status = shmq_message_parse(frame, available, out);
    if (status != SHMQ_OK)
        return status;
    if (out->physical_offset != physical_offset)
        return shmq_message_refuse(out, SHMQ_REASON_PHYSICAL_OFFSET);
    const uint32_t body_crc = shmq_crc32(0, out->body, out->body_size);
    if (out->body_crc != (body_crc & 0x7fffffffu))
        return shmq_message_refuse(out, SHMQ_REASON_BODY_CRC);
    if (!shmq_message_has_record_crc(out))
        return (demands & SHMQ_CHECK_RECORD_CRC) == 0
                   ? SHMQ_OK
                   : shmq_message_refuse(out, SHMQ_REASON_NO_RECORD_CRC);
    const uint8_t *end = out->properties + out->properties_size - SHMQ_CRC_PROPERTY_SIZE;
    uint8_t wanted[SHMQ_CRC_PROPERTY_SIZE];
    shmq_crc_property_put(
        wanted, shmq_message_record_crc(frame, out->body, out->body_size, body_crc, end));
    if (memcmp(end, wanted, SHMQ_CRC_PROPERTY_SIZE) != 0)
        return shmq_message_refuse(out, SHMQ_REASON_RECORD_CRC);
    return SHMQ_OK;
}

/* The place behind a frame. SHMQ_CORRUPT if that is beyond `limit` (the end of the file, or of
 * what is committed) or the frame is smaller than any frame. */
static inline int shmq_message_step(uint64_t physical_offset, uint32_t total_size, uint64_t limit,
                                    uint64_t *next)
{
    if (total_size < SHMQ_BLANK_SIZE || physical_offset > limit ||
        total_size > limit - physical_offset)
        return SHMQ_CORRUPT;
    *next = physical_offset + total_size;
    return SHMQ_OK;
}

/* ---- properties ------------------------------------------------------------------------------ */

/* What a session may be granted, beyond the names any producer may set. */
#define SHMQ_GRANT_SERVICE 0x1u     /* a service of the broker, or a proxy: all reserved names */
#define SHMQ_GRANT_TRANSACTION 0x2u /* a transaction producer: the names of half messages */

/* Reserved property names that need a grant: S(size, name, grants, any of which suffices).
 * Ordered by size. A producer needs none for the reserved names not listed here: KEYS TAGS WAIT
 * UNIQ_KEY DELAY BUYER_ID INSTANCE_ID CORRELATION_ID REPLY_TO_CLIENT TTL CLUSTER MSG_TYPE
 * __SHARDINGKEY TIMER_DELAY_SEC TIMER_DELAY_MS TIMER_DELIVER_MS MSG_REGION TRACE_ON
 * TRANSFER_FLAG CORRECTION_FLAG MQ2_FLAG EXTEND_UNIQ_INFO. */
#define SHMQ_RESERVED_NAME_TABLE(S)                                                                \
    S(6, "PGROUP", SHMQ_GRANT_SERVICE | SHMQ_GRANT_TRANSACTION)                                    \
    S(6, "POP_CK", SHMQ_GRANT_SERVICE)                                                             \
    S(8, "DUP_INFO", SHMQ_GRANT_SERVICE)                                                           \
    S(8, "REAL_QID", SHMQ_GRANT_SERVICE)                                                           \
    S(8, "REDIRECT", SHMQ_GRANT_SERVICE)                                                           \
    S(8, "TRAN_MSG", SHMQ_GRANT_SERVICE | SHMQ_GRANT_TRANSACTION)                                  \
    S(8, "__CRC32#", SHMQ_GRANT_SERVICE)                                                           \
    S(9, "INNER_NUM", SHMQ_GRANT_SERVICE)                                                          \
    S(10, "INNER_BASE", SHMQ_GRANT_SERVICE)                                                        \
    S(10, "MAX_OFFSET", SHMQ_GRANT_SERVICE)                                                        \
    S(10, "MIN_OFFSET", SHMQ_GRANT_SERVICE)                                                        \
    S(10, "REAL_TOPIC", SHMQ_GRANT_SERVICE)                                                        \
    S(10, "__BORNHOST", SHMQ_GRANT_SERVICE)                                                        \
    S(11, "ARRIVE_TIME", SHMQ_GRANT_SERVICE)                                                       \
    S(11, "RETRY_TOPIC", SHMQ_GRANT_SERVICE)                                                       \
    S(12, "1ST_POP_TIME", SHMQ_GRANT_SERVICE)                                                      \
    S(12, "TIMER_OUT_MS", SHMQ_GRANT_SERVICE)                                                      \
    S(13, "POP_CK_OFFSET", SHMQ_GRANT_SERVICE)                                                     \
    S(13, "TRACE_CONTEXT", SHMQ_GRANT_SERVICE)                                                     \
    S(14, "BORN_TIMESTAMP", SHMQ_GRANT_SERVICE)                                                    \
    S(14, "RECONSUME_TIME", SHMQ_GRANT_SERVICE)                                                    \
    S(15, "PUSH_REPLY_TIME", SHMQ_GRANT_SERVICE)                                                   \
    S(16, "DLQ_ORIGIN_TOPIC", SHMQ_GRANT_SERVICE)                                                  \
    S(16, "TIMER_DEQUEUE_MS", SHMQ_GRANT_SERVICE)                                                  \
    S(16, "TIMER_ENQUEUE_MS", SHMQ_GRANT_SERVICE)                                                  \
    S(16, "TIMER_ROLL_TIMES", SHMQ_GRANT_SERVICE)                                                  \
    S(17, "ORIGIN_MESSAGE_ID", SHMQ_GRANT_SERVICE)                                                 \
    S(17, "TIMER_DELAY_LEVEL", SHMQ_GRANT_SERVICE)                                                 \
    S(17, "TIMER_DEL_UNIQKEY", SHMQ_GRANT_SERVICE)                                                 \
    S(17, "__transactionId__", SHMQ_GRANT_SERVICE | SHMQ_GRANT_TRANSACTION)                        \
    S(18, "CONSUME_START_TIME", SHMQ_GRANT_SERVICE)                                                \
    S(19, "MAX_RECONSUME_TIMES", SHMQ_GRANT_SERVICE)                                               \
    S(20, "INNER_MULTI_DISPATCH", SHMQ_GRANT_SERVICE)                                              \
    S(21, "DLQ_ORIGIN_MESSAGE_ID", SHMQ_GRANT_SERVICE)                                             \
    S(23, "TRANSACTION_CHECK_TIMES", SHMQ_GRANT_SERVICE)                                           \
    S(24, "INNER_MULTI_QUEUE_OFFSET", SHMQ_GRANT_SERVICE)                                          \
    S(25, "PROPERTY_FORWARD_QUEUE_ID", SHMQ_GRANT_SERVICE)                                         \
    S(26, "TRAN_PREPARED_QUEUE_OFFSET", SHMQ_GRANT_SERVICE)                                        \
    S(30, "CHECK_IMMUNITY_TIME_IN_SECONDS", SHMQ_GRANT_SERVICE | SHMQ_GRANT_TRANSACTION)

/* The grants any of which allows this name; 0 if everybody may use it. Most names have a size of
 * their own, so the sizes decide and few names are ever compared. */
static inline uint32_t shmq_property_grants(const uint8_t *name, uint32_t size)
{
#define SHMQ_RESERVED_NAME_IF(row_size, row_name, grants)                                          \
    if (size == (row_size) && memcmp(name, row_name, (row_size)) == 0)                             \
        return (grants);
    if (size >= 6 && size <= 30) {
        SHMQ_RESERVED_NAME_TABLE(SHMQ_RESERVED_NAME_IF)
    }
    return 0;
#undef SHMQ_RESERVED_NAME_IF
}

/* What the append role wants to know of a message's properties. Pointers lead into the buffer;
 * size 0 = absent. */
struct shmq_properties_summary {
    const uint8_t *tags;
    const uint8_t *keys;
    const uint8_t *unique_key;
    const uint8_t *delay;
    uint32_t tags_size;
    uint32_t keys_size;
    uint32_t unique_key_size;
    uint32_t delay_size;
    uint32_t property_count;
};

/* Files one property under its name. SHMQ_RESERVED if its name needs a grant that is not there. */
static inline int shmq_properties_note(const uint8_t *name, uint32_t name_size,
                                       const uint8_t *value, uint32_t value_size, uint64_t grants,
                                       struct shmq_properties_summary *out)
{
    out->property_count++;
    if (name_size == 8 && memcmp(name, "UNIQ_KEY", 8) == 0) {
        out->unique_key = value;
        out->unique_key_size = value_size;
    } else if (name_size == 4 && memcmp(name, "TAGS", 4) == 0) {
        out->tags = value;
        out->tags_size = value_size;
    } else if (name_size == 4 && memcmp(name, "KEYS", 4) == 0) {
        out->keys = value;
        out->keys_size = value_size;
    } else if (name_size == 5 && memcmp(name, "DELAY", 5) == 0) {
        out->delay = value;
        out->delay_size = value_size;
    } else {
        uint32_t needed = shmq_property_grants(name, name_size);
        if (needed != 0 && (needed & grants) == 0)
            return SHMQ_RESERVED;
    }
    return SHMQ_OK;
}

/* Up to eight bytes from `at` as a word, 0xff where `left` (at least 1) says that there are
 * fewer. */
static inline uint64_t shmq_properties_word(const uint8_t *at, uint32_t left)
{
    if (left >= 8)
        return shmq_le64_load(at);
    uint64_t beyond = ~(uint64_t)0 << left * 8u;
    if (left >= 4)
        return shmq_le32_load(at) |
               (uint64_t)shmq_le32_load(at + left - 4) << (left - 4) * 8u | beyond;
    return at[0] | (uint64_t)at[left / 2] << left / 2 * 8u |
           (uint64_t)at[left - 1] << (left - 1) * 8u | beyond;
}

/* Where the bytes 0x00, 0x01 and 0x02 stand in a window of up to 64 bytes: bit i = byte i. */
struct shmq_properties_marks {
    uint64_t nuls;
    uint64_t name_ends;
    uint64_t value_ends;
};

/* Bit i is set if byte i of the word equals `byte` (below 0x80); exact, no borrow runs from byte
 * to byte. The multiplication gathers the eight low bits of the bytes in the top byte. */
static inline uint64_t shmq_properties_equal(uint64_t word, uint8_t byte)
{
    const uint64_t low = 0x7f7f7f7f7f7f7f7fu;
    uint64_t differing = word ^ 0x0101010101010101u * byte;
    uint64_t equal = ~(((differing & low) + low) | differing | low);
    return (equal >> 7) * 0x0102040810204080u >> 56;
}

static inline void shmq_properties_mark_portable(const uint8_t *at, uint32_t left,
                                                 struct shmq_properties_marks *marks)
{
    marks->nuls = marks->name_ends = marks->value_ends = 0;
    for (uint32_t i = 0; i < 64 && i < left; i += 8) {
        uint64_t word = shmq_properties_word(at + i, left - i);
        marks->nuls |= shmq_properties_equal(word, 0) << i;
        marks->name_ends |= shmq_properties_equal(word, SHMQ_PROPERTY_NAME_END) << i;
        marks->value_ends |= shmq_properties_equal(word, SHMQ_PROPERTY_VALUE_END) << i;
    }
}

#if defined(__SSE2__)
static inline uint64_t shmq_properties_equal16(__m128i block, char byte)
{
    return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(block, _mm_set1_epi8(byte)));
}

/* Sixteen bytes at a time; the last block overlaps the one before it, so that nothing past the
 * end is read. */
static inline void shmq_properties_mark(const uint8_t *at, uint32_t left,
                                        struct shmq_properties_marks *marks)
{
    if (left < 16) {
        shmq_properties_mark_portable(at, left, marks);
        return;
    }
    marks->nuls = marks->name_ends = marks->value_ends = 0;
    for (uint32_t i = 0; i < 64 && i < left; i += 16) {
        uint32_t from = i + 16 <= left ? i : left - 16;
        __m128i block = _mm_loadu_si128((const __m128i *)(const void *)(at + from));
        marks->nuls |= shmq_properties_equal16(block, 0) << from;
        marks->name_ends |= shmq_properties_equal16(block, SHMQ_PROPERTY_NAME_END) << from;
        marks->value_ends |= shmq_properties_equal16(block, SHMQ_PROPERTY_VALUE_END) << from;
    }
}
#else
#define shmq_properties_mark shmq_properties_mark_portable
#endif

/* shmq_properties_check from `begin` on, where a name begins. */
static inline int shmq_properties_check_from(const uint8_t *properties, uint32_t size,
                                             uint32_t begin, uint64_t grants,
                                             struct shmq_properties_summary *out)
{
    uint32_t name_start = begin;
    uint32_t value_start = 0; /* 0 while in a name */
    for (uint32_t window = begin; window < size; window += 64) {
        struct shmq_properties_marks marks;
        shmq_properties_mark(properties + window, size - window, &marks);
        if (marks.nuls != 0)
            return SHMQ_ILLEGAL;
        for (uint64_t left = marks.name_ends | marks.value_ends; left != 0; left &= left - 1) {
            const uint32_t bit = (uint32_t)__builtin_ctzll(left);
            const uint32_t place = window + bit;
            if ((marks.value_ends >> bit & 1u) == 0) {
                if (value_start != 0 || place == name_start)
                    return SHMQ_ILLEGAL;
                value_start = place + 1;
                continue;
            }
            if (value_start == 0 || place == value_start)
                return SHMQ_ILLEGAL;
            int status = shmq_properties_note(properties + name_start, value_start - 1 - name_start,
                                              properties + value_start, place - value_start, grants,
                                              out);
            if (status != SHMQ_OK)
                return status;
            name_start = place + 1;
            value_start = 0;
        }
    }
    return value_start == 0 && name_start == size ? SHMQ_OK : SHMQ_ILLEGAL;
}

/* One pass over properties as a producer sent them (no CRC property yet): well formed means
 * names and values not empty, no NUL, separators only as separators, the last 0x02 present.
 * SHMQ_OK with `out`; SHMQ_ILLEGAL if malformed; SHMQ_RESERVED if a name needs a grant that
 * `grants` lacks. Of a name that comes twice the last counts, as in Java. */
static inline int shmq_properties_check(const uint8_t *properties, uint32_t size, uint64_t grants,
                                        struct shmq_properties_summary *out)
{
    memset(out, 0, sizeof *out);
    return shmq_properties_check_from(properties, size, 0, grants, out);
}

/* shmq_properties_check of a draft, without looking again at the key that it is known to begin
 * with. */
static inline int shmq_draft_check(const struct shmq_message_draft *draft, uint64_t grants,
                                   struct shmq_properties_summary *out)
{
    memset(out, 0, sizeof *out);
    if (draft->key_size != 0) {
        out->property_count = 1;
        out->unique_key = draft->properties + SHMQ_KEY_PROPERTY_NAME_SIZE + 1;
        out->unique_key_size = SHMQ_KEY_PROPERTY_SIZE - SHMQ_KEY_PROPERTY_NAME_SIZE - 2;
        if (draft->properties_size == SHMQ_KEY_PROPERTY_SIZE)
            return SHMQ_OK;
    }
    return shmq_properties_check_from(draft->properties, draft->properties_size, draft->key_size,
                                      grants, out);
}

/* The value of one property in stored properties, lenient as RocketMQ's reader: the last 0x02
 * may be missing, and of a name that comes twice the last counts. SHMQ_OK, or SHMQ_EMPTY if
 * there is none. */
static inline int shmq_properties_find(const uint8_t *properties, uint32_t size, const void *name,
                                       uint32_t name_size, const uint8_t **value,
                                       uint32_t *value_size)
{
    int status = SHMQ_EMPTY;
    for (uint32_t at = 0; at < size;) {
        const uint8_t *pair = properties + at;
        const uint8_t *pair_end = memchr(pair, SHMQ_PROPERTY_VALUE_END, size - at);
        const uint32_t pair_size = pair_end != NULL ? (uint32_t)(pair_end - pair) : size - at;
        if (pair_size > name_size + 1 && memcmp(pair, name, name_size) == 0 &&
            pair[name_size] == SHMQ_PROPERTY_NAME_END) {
            *value = pair + name_size + 1;
            *value_size = pair_size - name_size - 1;
            status = SHMQ_OK;
        }
        at += pair_size + 1;
    }
    return status;
}

/* One character of UTF-8 at `at` (left >= 1 bytes): its code point, and how many bytes it takes.
 * Malformed bytes are U+FFFD each or, for a cut sequence, once for its valid beginning: what
 * Java's decoder makes of them. */
static inline uint32_t shmq_utf8_decode(const uint8_t *at, uint32_t left, uint32_t *used)
{
    const uint32_t lead = at[0];
    *used = 1;
    if (lead < 0x80)
        return lead;
    if (lead < 0xc2 || lead > 0xf4)
        return 0xfffd;
    const uint32_t more = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
    /* The second byte's range also rules out overlong forms and what lies beyond U+10FFFF. */
    const uint32_t second_min = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const uint32_t second_max = lead == 0xf4 ? 0x8f : 0xbf;
    uint32_t code = lead & (0x3fu >> more);
    for (uint32_t i = 1; i <= more; i++) {
        const uint32_t min = i == 1 ? second_min : 0x80;
        const uint32_t max = i == 1 ? second_max : 0xbf;
        if (i == left || at[i] < min || at[i] > max)
            return 0xfffd;
        code = code << 6 | (at[i] & 0x3fu);
        *used = i + 1;
    }
    if (code >= 0xd800 && code <= 0xdfff)
        return 0xfffd; /* an encoded surrogate: Java drops all three bytes for one replacement */
    return code;
}

/* String.hashCode() of Java for a text given as UTF-8: h = 31 h + unit over its UTF-16 units, 32
 * bits. */
static inline int32_t shmq_java_hash(const uint8_t *utf8, uint32_t size)
{
    uint32_t hash = 0;
    uint32_t used;
    for (uint32_t at = 0; at < size; at += used) {
        uint32_t code = shmq_utf8_decode(utf8 + at, size - at, &used);
        if (code >= 0x10000) {
            hash = 31u * hash + (0xd7c0u + (code >> 10));
            code = 0xdc00u + (code & 0x3ffu);
        }
        hash = 31u * hash + code;
    }
    return (int32_t)hash;
}

/* What the ConsumeQueue entry keeps of the tag: its hash, sign-extended; 0 without a tag. */
static inline int64_t shmq_tags_code(const uint8_t *tags, uint32_t size)
{
    return size != 0 ? shmq_java_hash(tags, size) : 0;
}

#endif
