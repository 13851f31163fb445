/* shmq-test: threads */
/* Goal: message.h writes exactly the bytes of RocketMQ's record, believes nothing it reads, and
 * finds every flipped bit. The judge of the bytes is a second, slow encoder written here field
 * by field. */
#define _GNU_SOURCE
#include "changing_memory.h"
#include "check.h"
#include "shmq/message.h"

#include <pthread.h>
#include <stdatomic.h>

#define FRAME_EXTENT (1u << 17)

static uint64_t random_state;
static uint8_t frame[FRAME_EXTENT];
static uint8_t wanted_frame[FRAME_EXTENT];
static uint8_t body[1u << 16];

static const uint8_t *bytes(const char *text)
{
    return (const uint8_t *)text;
}

static uint32_t random_below(uint32_t bound)
{
    return (uint32_t)(check_random(&random_state) % bound);
}

static struct shmq_message_fields fields_of(const char *topic, uint32_t body_size,
                                            const char *properties)
{
    return (struct shmq_message_fields){
        .topic = bytes(topic),
        .topic_size = (uint32_t)strlen(topic),
        .body_size = body_size,
        .properties_size = (uint32_t)strlen(properties),
        .queue_id = 3,
        .flag = -7,
        .sys_flag = SHMQ_SYS_FLAG_TRANSACTION_PREPARED | SHMQ_SYS_FLAG_COMPRESSED,
        .reconsume_times = 2,
        .born_timestamp = 1700000000123,
        .store_timestamp = 1700000000456,
        .queue_offset = 0x0102030405060708u,
        .physical_offset = 0x1112131415161718u,
        .prepared_transaction_offset = 0x2122232425262728u,
        .born_host = {127, 0, 0, 1, 0, 0, 0x2a, 0x9f},
        .store_host = {10, 1, 2, 3, 0, 0, 0x2a, 0x9f},
    };
}

/* ---- the slow encoder: one byte after another, big-endian ------------------------------- */

static uint8_t *put_number(uint8_t *at, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        *at++ = (uint8_t)(value >> 8 * (size - 1 - i));
    return at;
}

static uint8_t *put_bytes(uint8_t *at, const void *from, size_t size)
{
    for (size_t i = 0; i < size; i++)
        *at++ = ((const uint8_t *)from)[i];
    return at;
}

struct host {
    const uint8_t *bytes;
    uint32_t size;
};

static uint32_t encode_slowly(uint8_t *to, const struct shmq_message_fields *f,
                              const uint8_t *content, const uint8_t *properties, struct host born,
                              struct host store, int with_crc_property)
{
    uint32_t stored_size = f->properties_size + (with_crc_property ? 20u : 0u);
    unsigned topic_length_size = f->topic_size > 127 ? 2 : 1;
    uint8_t *at = put_number(to, 0, 4);
    at = put_number(at, f->topic_size > 127 ? 0xdaa320ab : 0xdaa320a7, 4);
    at = put_number(at, shmq_crc32_portable(0, content, f->body_size) & 0x7fffffff, 4);
    at = put_number(at, f->queue_id, 4);
    at = put_number(at, (uint32_t)f->flag, 4);
    at = put_number(at, f->queue_offset, 8);
    at = put_number(at, f->physical_offset, 8);
    at = put_number(at, f->sys_flag, 4);
    at = put_number(at, (uint64_t)f->born_timestamp, 8);
    at = put_bytes(at, born.bytes, born.size);
    at = put_number(at, (uint64_t)f->store_timestamp, 8);
    at = put_bytes(at, store.bytes, store.size);
    at = put_number(at, (uint32_t)f->reconsume_times, 4);
    at = put_number(at, f->prepared_transaction_offset, 8);
    at = put_number(at, f->body_size, 4);
    at = put_bytes(at, content, f->body_size);
    at = put_number(at, f->topic_size, topic_length_size);
    at = put_bytes(at, f->topic, f->topic_size);
    at = put_number(at, stored_size, 2);
    at = put_bytes(at, properties, f->properties_size);
    uint32_t total_size = (uint32_t)(at - to) + (with_crc_property ? 20u : 0u);
    put_number(to, total_size, 4);
    if (with_crc_property) {
        char digits[16];
        uint32_t crc = shmq_crc32_portable(0, to, (size_t)(at - to)) & 0x7fffffff;
        snprintf(digits, sizeof digits, "%010" PRIu32, crc);
        at = put_bytes(at, "__CRC32#\x01", 9);
        for (int i = 9; i >= 0; i--)
            *at++ = (uint8_t)digits[i];
        *at++ = 2;
    }
    CHECK_EQUAL(at - to, total_size);
    return total_size;
}

static uint32_t encode_slowly_v4(uint8_t *to, const struct shmq_message_fields *f,
                                 const uint8_t *content, const uint8_t *properties, int with_crc)
{
    struct host born = {f->born_host, 8}, store = {f->store_host, 8};
    return encode_slowly(to, f, content, properties, born, store, with_crc);
}

/* ---- writing ---------------------------------------------------------------------------- */

static void test_size_is_the_sum_of_the_parts_and_v2_begins_at_128(void)
{
    CHECK_EQUAL(shmq_message_size(1, 0, 0), 92);
    CHECK_EQUAL(shmq_message_size(127, 10, 20), 91 + 127 + 10 + 20);
    CHECK_EQUAL(shmq_message_size(128, 10, 20), 92 + 128 + 10 + 20);
    CHECK_EQUAL(shmq_message_size(32767, 1, 32767), 92 + 32767 + 1 + 32767);
    CHECK_EQUAL(shmq_message_size(1, 0x7fffffffu - 92, 0), 0x7fffffff);
}

static void test_size_is_zero_for_what_no_record_can_hold(void)
{
    CHECK_EQUAL(shmq_message_size(0, 1, 1), 0);
    CHECK_EQUAL(shmq_message_size(32768, 1, 1), 0);
    CHECK_EQUAL(shmq_message_size(1, 1, 32768), 0);
    CHECK_EQUAL(shmq_message_size(1, 0x7fffffffu - 91, 0), 0);
    CHECK_EQUAL(shmq_message_size(1, 0xffffffffu, 32767), 0);
}

static void test_encode_writes_the_bytes_of_the_slow_encoder(void)
{
    static uint8_t topic[300], properties[4000];
    memset(topic, 't', sizeof topic);
    for (size_t i = 0; i < sizeof properties; i++)
        properties[i] = (uint8_t)('a' + i % 26);
    check_fill_random(&random_state, body, sizeof body);
    for (uint32_t round = 0; round < 3000; round++) {
        struct shmq_message_fields f = {
            .topic = topic,
            .topic_size = 1 + random_below(round % 2 ? 20 : 299),
            .body_size = random_below(round % 10 == 0 ? 60000 : 1500),
            .properties_size = random_below(round % 10 == 1 ? 4000 : 100),
            .queue_id = (uint32_t)check_random(&random_state),
            .flag = (int32_t)check_random(&random_state),
            .sys_flag = (uint32_t)check_random(&random_state) & ~0x30u,
            .reconsume_times = (int32_t)check_random(&random_state),
            .born_timestamp = (int64_t)check_random(&random_state),
            .store_timestamp = (int64_t)check_random(&random_state),
            .queue_offset = check_random(&random_state),
            .physical_offset = check_random(&random_state),
            .prepared_transaction_offset = check_random(&random_state),
        };
        check_fill_random(&random_state, f.born_host, 8);
        check_fill_random(&random_state, f.store_host, 8);
        uint32_t size = encode_slowly_v4(wanted_frame, &f, body, properties, 1);
        CHECK_EQUAL(shmq_message_size(f.topic_size, f.body_size, f.properties_size + 20), size);
        memset(frame, 0xee, size + 8);
        CHECK_EQUAL(shmq_message_encode(frame, &f, body, properties), SHMQ_OK);
        CHECK_BYTES(frame, wanted_frame, size);
        CHECK_EQUAL(frame[size], 0xee);
        struct shmq_message_view view;
        CHECK_EQUAL(shmq_message_check(frame, size, f.physical_offset, 1, &view), SHMQ_OK);
    }
}

static void test_fill_refuses_what_no_record_can_hold_and_writes_nothing(void)
{
    struct shmq_message_draft draft;
    struct shmq_message_fields f = fields_of("T", 4, "");
    memset(frame, 0, 256);
    f.sys_flag = SHMQ_SYS_FLAG_BORN_HOST_V6;
    CHECK_EQUAL(shmq_message_fill(frame, &f, body, body, &draft), SHMQ_ILLEGAL);
    f.sys_flag = SHMQ_SYS_FLAG_STORE_HOST_V6;
    CHECK_EQUAL(shmq_message_fill(frame, &f, body, body, &draft), SHMQ_ILLEGAL);
    f.sys_flag = 0;
    f.properties_size = 32767 - 19;
    CHECK_EQUAL(shmq_message_fill(frame, &f, body, body, &draft), SHMQ_PROPERTIES_TOO_LARGE);
    f.properties_size = 0xffffffffu;
    CHECK_EQUAL(shmq_message_fill(frame, &f, body, body, &draft), SHMQ_PROPERTIES_TOO_LARGE);
    f.properties_size = 0;
    f.topic_size = 0;
    CHECK_EQUAL(shmq_message_fill(frame, &f, body, body, &draft), SHMQ_ILLEGAL);
    f.topic_size = 32768;
    CHECK_EQUAL(shmq_message_fill(frame, &f, body, body, &draft), SHMQ_TOO_LARGE);
    f.topic_size = 1;
    f.body_size = 0x7fffffff;
    CHECK_EQUAL(shmq_message_fill(frame, &f, body, body, &draft), SHMQ_TOO_LARGE);
    for (size_t i = 0; i < 256; i++)
        CHECK_EQUAL(frame[i], 0);
}

static void test_largest_properties_fit(void)
{
    static uint8_t properties[32747];
    memset(properties, 'p', sizeof properties);
    struct shmq_message_fields f = fields_of("T", 0, "");
    f.properties_size = sizeof properties;
    struct shmq_message_view view;
    CHECK_EQUAL(shmq_message_encode(frame, &f, NULL, properties), SHMQ_OK);
    CHECK_EQUAL(shmq_message_check(frame, FRAME_EXTENT, f.physical_offset, 1, &view), SHMQ_OK);
    CHECK_EQUAL(view.properties_size, 32767);
}

static void test_draft_shows_the_copies_before_the_seal(void)
{
    struct shmq_message_fields f = fields_of("TopicTest", 5, "TAGS\1a\2");
    struct shmq_message_draft draft;
    struct shmq_message_view view;
    memset(frame, 0, 512);
    CHECK_EQUAL(shmq_message_fill(frame, &f, bytes("hello"), bytes("TAGS\1a\2"), &draft), SHMQ_OK);
    CHECK_EQUAL(draft.total_size, shmq_message_size(9, 5, 27));
    CHECK_EQUAL(draft.properties_size, 7);
    CHECK_BYTES(draft.properties, "TAGS\1a\2", 7);
    CHECK_BYTES(draft.body, "hello", 5);
    CHECK_BYTES(draft.topic, "TopicTest", 9);
    CHECK_EQUAL(draft.body_crc, shmq_crc32_portable(0, "hello", 5));
    CHECK_EQUAL(shmq_message_check(frame, 512, f.physical_offset, 1, &view), SHMQ_CORRUPT);
    CHECK_EQUAL(view.reason, SHMQ_REASON_NO_RECORD_CRC);
    shmq_message_seal(frame, &draft);
    CHECK_EQUAL(shmq_message_check(frame, 512, f.physical_offset, 1, &view), SHMQ_OK);
}

static void test_crc_property_shows_ten_digits_least_significant_first(void)
{
    uint32_t value = 0;
    for (int round = 0; round < 200000; round++) {
        uint8_t property[20];
        char forward[16], backward[16] = {0};
        snprintf(forward, sizeof forward, "%010" PRIu32, value & 0x7fffffff);
        for (int i = 0; i < 10; i++)
            backward[i] = forward[9 - i];
        shmq_crc_property_put(property, value);
        CHECK_BYTES(property, "__CRC32#\x01", 9);
        CHECK_BYTES(property + 9, backward, 10);
        CHECK_EQUAL(property[19], 2);
        value = round < 20000 ? value + 1 : (uint32_t)check_random(&random_state);
        value = round == 150000 ? 0xffffffffu : value;
    }
}

/* ---- reading ---------------------------------------------------------------------------- */

static void test_parse_gives_back_every_field(void)
{
    struct shmq_message_fields f = fields_of("TopicTest", 11, "TAGS\1a\2");
    struct shmq_message_view view;
    CHECK_EQUAL(shmq_message_encode(frame, &f, bytes("hello world"), bytes("TAGS\1a\2")), SHMQ_OK);
    CHECK_EQUAL(shmq_message_parse(frame, FRAME_EXTENT, &view), SHMQ_OK);
    CHECK_EQUAL(view.reason, SHMQ_REASON_NONE);
    CHECK_EQUAL(view.total_size, 91 + 9 + 11 + 27);
    CHECK_EQUAL(view.magic, SHMQ_MESSAGE_MAGIC_V1);
    CHECK_EQUAL(view.body_crc, 0x0d4a1185u);
    CHECK_EQUAL(view.queue_id, 3);
    CHECK_EQUAL(view.flag, -7);
    CHECK_EQUAL(view.queue_offset, 0x0102030405060708u);
    CHECK_EQUAL(view.physical_offset, 0x1112131415161718u);
    CHECK_EQUAL(view.sys_flag, 5);
    CHECK_EQUAL(view.born_timestamp, 1700000000123);
    CHECK_EQUAL(view.store_timestamp, 1700000000456);
    CHECK_EQUAL(view.born_host_size, 8);
    CHECK_EQUAL(view.store_host_size, 8);
    CHECK_BYTES(view.born_host, f.born_host, 8);
    CHECK_BYTES(view.store_host, f.store_host, 8);
    CHECK_EQUAL(view.reconsume_times, 2);
    CHECK_EQUAL(view.prepared_transaction_offset, 0x2122232425262728u);
    CHECK_EQUAL(view.body_size, 11);
    CHECK_BYTES(view.body, "hello world", 11);
    CHECK_EQUAL(view.topic_size, 9);
    CHECK_BYTES(view.topic, "TopicTest", 9);
    CHECK_EQUAL(view.properties_size, 27);
    CHECK_BYTES(view.properties, "TAGS\1a\2__CRC32#\1", 16);
}

static void test_ipv6_hosts_are_read(void)
{
    uint8_t v6[2][20];
    check_fill_random(&random_state, v6, sizeof v6);
    for (uint32_t hosts = 0; hosts < 4; hosts++) {
        struct shmq_message_fields f = fields_of("TopicTest", 5, "TAGS\1a\2");
        f.sys_flag = (hosts & 1 ? SHMQ_SYS_FLAG_BORN_HOST_V6 : 0) |
                     (hosts & 2 ? SHMQ_SYS_FLAG_STORE_HOST_V6 : 0);
        struct host born = {hosts & 1 ? v6[0] : f.born_host, hosts & 1 ? 20 : 8};
        struct host store = {hosts & 2 ? v6[1] : f.store_host, hosts & 2 ? 20 : 8};
        uint32_t size =
            encode_slowly(frame, &f, bytes("hello"), bytes("TAGS\1a\2"), born, store, 1);
        struct shmq_message_view view;
        CHECK_EQUAL(shmq_message_check(frame, size, f.physical_offset, 1, &view), SHMQ_OK);
        CHECK_EQUAL(view.born_host_size, born.size);
        CHECK_EQUAL(view.store_host_size, store.size);
        CHECK_BYTES(view.born_host, born.bytes, born.size);
        CHECK_BYTES(view.store_host, store.bytes, store.size);
        CHECK_EQUAL(view.store_timestamp, 1700000000456);
        CHECK_EQUAL(view.reconsume_times, 2);
        CHECK_BYTES(view.body, "hello", 5);
        CHECK_BYTES(view.topic, "TopicTest", 9);
    }
}

static void test_blank_and_empty_frames_are_told_apart(void)
{
    struct shmq_message_view view;
    memset(frame, 0, 64);
    CHECK_EQUAL(shmq_message_parse(frame, 64, &view), SHMQ_EMPTY);
    CHECK_EQUAL(shmq_message_put_blank(frame, 64), SHMQ_OK);
    CHECK_BYTES(frame, "\0\0\0\x40\xcb\xd4\x31\x94\0", 9);
    CHECK_EQUAL(shmq_message_parse(frame, 64, &view), SHMQ_BLANK);
    CHECK_EQUAL(view.total_size, 64);
    CHECK_EQUAL(shmq_message_check(frame, 64, 999, 1, &view), SHMQ_BLANK);
    CHECK_EQUAL(shmq_message_parse(frame, 63, &view), SHMQ_CORRUPT);
    CHECK_EQUAL(view.reason, SHMQ_REASON_CUT);
    CHECK_EQUAL(shmq_message_put_blank(frame, 8), SHMQ_OK);
    CHECK_EQUAL(shmq_message_parse(frame, 8, &view), SHMQ_BLANK);
    CHECK_EQUAL(shmq_message_put_blank(frame, 7), SHMQ_ILLEGAL);
    CHECK_EQUAL(shmq_message_put_blank(frame, 0x80000000u), SHMQ_ILLEGAL);
    shmq_be32_store(frame, 7);
    CHECK_EQUAL(shmq_message_parse(frame, 64, &view), SHMQ_CORRUPT);
    CHECK_EQUAL(view.reason, SHMQ_REASON_TOTAL_SIZE);
    memset(frame, 0, 8);
    frame[3] = 64; /* a size without a magic is no end of the log */
    CHECK_EQUAL(shmq_message_parse(frame, 64, &view), SHMQ_CORRUPT);
    CHECK_EQUAL(view.reason, SHMQ_REASON_MAGIC);
}

static void test_step_stays_within_the_limit(void)
{
    uint64_t next = 0;
    CHECK_EQUAL(shmq_message_step(100, 92, 1000, &next), SHMQ_OK);
    CHECK_EQUAL(next, 192);
    CHECK_EQUAL(shmq_message_step(908, 92, 1000, &next), SHMQ_OK);
    CHECK_EQUAL(next, 1000);
    CHECK_EQUAL(shmq_message_step(909, 92, 1000, &next), SHMQ_CORRUPT);
    CHECK_EQUAL(shmq_message_step(1001, 92, 1000, &next), SHMQ_CORRUPT);
    CHECK_EQUAL(shmq_message_step(100, 7, 1000, &next), SHMQ_CORRUPT);
    CHECK_EQUAL(shmq_message_step(UINT64_MAX - 10, 92, UINT64_MAX, &next), SHMQ_CORRUPT);
    CHECK_EQUAL(next, 1000);
}

static void test_check_names_the_reason(void)
{
    struct shmq_message_fields f = fields_of("TopicTest", 5, "TAGS\1a\2");
    struct shmq_message_view view;
    uint32_t size = encode_slowly_v4(wanted_frame, &f, bytes("hello"), bytes("TAGS\1a\2"), 1);
    const struct {
        uint32_t place;
        uint8_t flip;
        enum shmq_message_reason reason;
    } damages[] = {
        {0, 0x40, SHMQ_REASON_CUT},          {3, 0x01, SHMQ_REASON_TOTAL_SIZE},
        {4, 0x01, SHMQ_REASON_MAGIC},        {28, 0x01, SHMQ_REASON_PHYSICAL_OFFSET},
        {84, 0x80, SHMQ_REASON_BODY_SIZE},   {88, 0x01, SHMQ_REASON_BODY_CRC},
        {8, 0x80, SHMQ_REASON_BODY_CRC},     {93, 0x80, SHMQ_REASON_TOPIC_SIZE},
        {103, 0x80, SHMQ_REASON_PROPERTIES_SIZE}, {12, 0x01, SHMQ_REASON_RECORD_CRC},
        {size - 20, 0x01, SHMQ_REASON_NO_RECORD_CRC}, {size - 2, 0x01, SHMQ_REASON_RECORD_CRC},
        {size - 1, 0x01, SHMQ_REASON_RECORD_CRC},
    };
    for (size_t i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        memcpy(frame, wanted_frame, size);
        frame[damages[i].place] ^= damages[i].flip;
        CHECK_EQUAL(shmq_message_check(frame, size + 64, f.physical_offset, 1, &view),
                    SHMQ_CORRUPT);
        CHECK_EQUAL(view.reason, damages[i].reason);
    }
}

static void test_a_foreign_record_without_crc_property_passes_unless_demanded(void)
{
    struct shmq_message_fields f = fields_of("TopicTest", 5, "TAGS\1a\2");
    struct shmq_message_view view;
    uint32_t size = encode_slowly_v4(frame, &f, bytes("hello"), bytes("TAGS\1a\2"), 0);
    CHECK_EQUAL(shmq_message_check(frame, size, f.physical_offset, 0, &view), SHMQ_OK);
    CHECK_EQUAL(view.properties_size, 7);
    CHECK_EQUAL(shmq_message_check(frame, size, f.physical_offset, 1, &view), SHMQ_CORRUPT);
    CHECK_EQUAL(view.reason, SHMQ_REASON_NO_RECORD_CRC);
}

static void test_a_present_crc_property_is_verified_even_if_not_demanded(void)
{
    struct shmq_message_fields f = fields_of("TopicTest", 5, "TAGS\1a\2");
    struct shmq_message_view view;
    uint32_t size = encode_slowly_v4(frame, &f, bytes("hello"), bytes("TAGS\1a\2"), 1);
    CHECK_EQUAL(shmq_message_check(frame, size, f.physical_offset, 0, &view), SHMQ_OK);
    frame[12] ^= 1;
    CHECK_EQUAL(shmq_message_check(frame, size, f.physical_offset, 0, &view), SHMQ_CORRUPT);
    CHECK_EQUAL(view.reason, SHMQ_REASON_RECORD_CRC);
}

static void test_every_flipped_bit_is_found(void)
{
    const struct {
        uint32_t topic_size, body_size, properties_size;
    } shapes[] = {{9, 0, 0}, {9, 5, 7}, {127, 100, 60}, {128, 100, 60}, {9, 511, 30}, {9, 512, 30},
                  {200, 2000, 0}};
    char topic[201], properties[61];
    memset(topic, 'T', sizeof topic);
    memset(properties, 'p', sizeof properties);
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        struct shmq_message_fields f = fields_of("x", shapes[s].body_size, "");
        struct shmq_message_view view;
        f.topic = bytes(topic);
        f.topic_size = shapes[s].topic_size;
        f.properties_size = shapes[s].properties_size;
        CHECK_EQUAL(shmq_message_encode(frame, &f, body, bytes(properties)), SHMQ_OK);
        uint32_t size = shmq_message_size(f.topic_size, f.body_size, f.properties_size + 20);
        for (uint32_t bit = 0; bit < size * 8; bit++) {
            frame[bit / 8] ^= (uint8_t)(1u << bit % 8);
            CHECK_EQUAL(shmq_message_check(frame, size, f.physical_offset, 1, &view), SHMQ_CORRUPT);
            CHECK(view.reason != SHMQ_REASON_NONE);
            frame[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        CHECK_EQUAL(shmq_message_check(frame, size, f.physical_offset, 1, &view), SHMQ_OK);
    }
}

/* Touches everything a view points to, so that a sanitizer sees a pointer that leads astray. */
static uint64_t touch(const struct shmq_message_view *view)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < view->body_size; i++)
        sum += view->body[i];
    for (uint32_t i = 0; i < view->topic_size; i++)
        sum += view->topic[i];
    for (uint32_t i = 0; i < view->properties_size; i++)
        sum += view->properties[i];
    for (uint32_t i = 0; i < view->born_host_size; i++)
        sum += view->born_host[i];
    for (uint32_t i = 0; i < view->store_host_size; i++)
        sum += view->store_host[i];
    return sum;
}

static void test_a_cut_frame_is_corrupt_at_every_length(void)
{
    struct shmq_message_fields f = fields_of("TopicTest", 40, "TAGS\1a\2");
    uint32_t size = encode_slowly_v4(frame, &f, body, bytes("TAGS\1a\2"), 1);
    for (uint32_t available = 0; available < size; available++) {
        uint8_t *exact = malloc(available != 0 ? available : 1);
        struct shmq_message_view view;
        CHECK(exact != NULL);
        memcpy(exact, frame, available);
        CHECK_EQUAL(shmq_message_check(exact, available, f.physical_offset, 0, &view),
                    SHMQ_CORRUPT);
        CHECK_EQUAL(view.reason, SHMQ_REASON_CUT);
        free(exact);
    }
}

static void test_any_garbage_is_safe_to_parse(void)
{
    volatile uint64_t sum = 0;
    int parsed_count = 0;
    for (int round = 0; round < 60000; round++) {
        struct shmq_message_fields f = fields_of("TopicTest", random_below(40), "TAGS\1a\2");
        f.sys_flag = (uint32_t)check_random(&random_state) & 0x7ff;
        uint8_t v6[20] = {0};
        struct host born = {v6, f.sys_flag & 0x10 ? 20 : 8};
        struct host store = {v6, f.sys_flag & 0x20 ? 20 : 8};
        uint32_t size = encode_slowly(frame, &f, body, bytes("TAGS\1a\2"), born, store, round % 2);
        uint32_t available = round % 5 == 0 ? random_below(size + 1) : size;
        uint8_t *exact = malloc(available != 0 ? available : 1);
        CHECK(exact != NULL);
        if (round % 3 == 0)
            check_fill_random(&random_state, frame + 8, size - 8);
        memcpy(exact, frame, available);
        for (uint32_t hits = random_below(4); hits > 0 && available > 0; hits--)
            exact[random_below(available)] = (uint8_t)check_random(&random_state);
        struct shmq_message_view view;
        int status = shmq_message_parse(exact, available, &view);
        if (status == SHMQ_OK) {
            CHECK(view.total_size <= available);
            sum += touch(&view);
            parsed_count++;
        }
        shmq_message_check(exact, available, f.physical_offset, (uint32_t)round % 2,
                           &view);
        free(exact);
    }
    CHECK(parsed_count > 1000); /* or the mutations are too coarse to test what follows the sizes */
}

/* ---- properties ------------------------------------------------------------------------- */

/* Checks a copy that ends where its memory ends. */
static int check_properties(const char *text, size_t size, uint64_t grants,
                            struct shmq_properties_summary *out)
{
    static uint8_t *exact;
    free(exact);
    exact = malloc(size != 0 ? size : 1);
    CHECK(exact != NULL);
    memcpy(exact, text, size);
    return shmq_properties_check(exact, (uint32_t)size, grants, out);
}

#define CHECK_PROPERTIES(literal, grants, out)                                                     \
    check_properties((literal), sizeof(literal) - 1, (grants), (out))

static void test_properties_summary_finds_what_the_append_role_needs(void)
{
    struct shmq_properties_summary s;
    CHECK_EQUAL(CHECK_PROPERTIES("KEYS\1k1 k2\2colour\1blue\2UNIQ_KEY\0010A0B\2"
                                 "DELAY\0013\2TAGS\1hello\2",
                                 0, &s),
                SHMQ_OK);
    CHECK_EQUAL(s.property_count, 5);
    CHECK_EQUAL(s.tags_size, 5);
    CHECK_BYTES(s.tags, "hello", 5);
    CHECK_EQUAL(s.keys_size, 5);
    CHECK_BYTES(s.keys, "k1 k2", 5);
    CHECK_EQUAL(s.unique_key_size, 4);
    CHECK_BYTES(s.unique_key, "0A0B", 4);
    CHECK_EQUAL(s.delay_size, 1);
    CHECK_BYTES(s.delay, "3", 1);
    CHECK_EQUAL(shmq_tags_code(s.tags, s.tags_size), 99162322);
    CHECK_EQUAL(CHECK_PROPERTIES("", 0, &s), SHMQ_OK);
    CHECK_EQUAL(s.property_count, 0);
    CHECK_EQUAL(s.tags_size, 0);
    CHECK_EQUAL(CHECK_PROPERTIES("TAGS\1a\2TAGS\1b\2", 0, &s), SHMQ_OK);
    CHECK_BYTES(s.tags, "b", 1);
}

static void test_malformed_properties_are_illegal(void)
{
    struct shmq_properties_summary s;
    CHECK_EQUAL(CHECK_PROPERTIES("TAGS\1a", 0, &s), SHMQ_ILLEGAL);
    CHECK_EQUAL(CHECK_PROPERTIES("TAGS", 0, &s), SHMQ_ILLEGAL);
    CHECK_EQUAL(CHECK_PROPERTIES("TAGS\2", 0, &s), SHMQ_ILLEGAL);
    CHECK_EQUAL(CHECK_PROPERTIES("TAGS\1\2", 0, &s), SHMQ_ILLEGAL);
    CHECK_EQUAL(CHECK_PROPERTIES("\1a\2", 0, &s), SHMQ_ILLEGAL);
    CHECK_EQUAL(CHECK_PROPERTIES("\2", 0, &s), SHMQ_ILLEGAL);
    CHECK_EQUAL(CHECK_PROPERTIES("\1", 0, &s), SHMQ_ILLEGAL);
    CHECK_EQUAL(CHECK_PROPERTIES("\0", 0, &s), SHMQ_ILLEGAL);
    CHECK_EQUAL(CHECK_PROPERTIES("a\1b\2\2", 0, &s), SHMQ_ILLEGAL);
    CHECK_EQUAL(CHECK_PROPERTIES("a\1b\1c\2", 0, &s), SHMQ_ILLEGAL);
    CHECK_EQUAL(CHECK_PROPERTIES("a\1b\0c\2", 0, &s), SHMQ_ILLEGAL);
    CHECK_EQUAL(CHECK_PROPERTIES("a\1b\2c\0\1d\2", 0, &s), SHMQ_ILLEGAL);
    CHECK_EQUAL(CHECK_PROPERTIES("a\1b\2c", 0, &s), SHMQ_ILLEGAL);
    CHECK_EQUAL(CHECK_PROPERTIES("a\1b\2c\1", 0, &s), SHMQ_ILLEGAL);
    CHECK_EQUAL(CHECK_PROPERTIES("a\1b\2", 0, &s), SHMQ_OK);
    CHECK_EQUAL(CHECK_PROPERTIES("a\1\3\2", 0, &s), SHMQ_OK);
    CHECK_EQUAL(CHECK_PROPERTIES("a\1\x80\x81\x82\xff\2", 0, &s), SHMQ_OK);
}

/* The rule, one byte at a time. */
static int is_well_formed(const uint8_t *text, uint32_t size)
{
    uint32_t part_size = 0;
    int in_value = 0;
    for (uint32_t i = 0; i < size; i++) {
        if (text[i] == 0)
            return 0;
        if (text[i] != (in_value ? 2 : 1)) {
            if (text[i] == 1 || text[i] == 2)
                return 0;
            part_size++;
            continue;
        }
        if (part_size == 0)
            return 0;
        in_value = !in_value;
        part_size = 0;
    }
    return !in_value && part_size == 0;
}

static void test_properties_check_agrees_with_the_rule_at_every_size(void)
{
    int legal_count = 0;
    for (int round = 0; round < 60000; round++) {
        uint8_t text[220];
        uint32_t size = random_below(round % 2 ? 40 : 220);
        int in_value = 0;
        for (uint32_t i = 0; i < size; i++) {
            text[i] = (uint8_t)(3 + random_below(253));
            if (i + 1 == size || (i > 0 && text[i - 1] > 2 && random_below(9) == 0)) {
                text[i] = in_value ? 2 : 1;
                in_value = !in_value;
            }
        }
        if (size > 0 && round % 3 == 0)
            text[random_below(size)] = (uint8_t)random_below(4);
        struct shmq_properties_summary s;
        int status = check_properties((const char *)text, size, 0, &s);
        CHECK_EQUAL(status, is_well_formed(text, size) ? SHMQ_OK : SHMQ_ILLEGAL);
        legal_count += status == SHMQ_OK;
    }
    CHECK(legal_count > 5000);
}

#define KEY_PROPERTY "UNIQ_KEY\0010123456789ABCDEF0123456789ABCDEF\2"

/* What the append role does with properties: copy them, then judge with what the copy knows. */
static int fill_and_judge(const uint8_t *properties, uint32_t size,
                          struct shmq_message_draft *draft, struct shmq_properties_summary *out)
{
    struct shmq_message_fields f = fields_of("TopicTest", 0, "");
    f.properties_size = size;
    CHECK_EQUAL(shmq_message_fill(frame, &f, properties, properties, draft), SHMQ_OK);
    CHECK_BYTES(draft->properties, properties, size);
    return shmq_draft_check(draft, 0, out);
}

static void test_a_draft_is_judged_as_its_properties_are(void)
{
    static const char *const more[] = {"",
                                       "TAGS\1a\2",
                                       "KEYS\1k\2colour\1blue\2TAGS\1b\2",
                                       "PGROUP\1g\2",
                                       "TAGS\1a",
                                       "UNIQ_KEY\1x\2"};
    uint32_t key_count = 0;
    for (uint32_t round = 0; round < 60000; round++) {
        uint8_t text[128];
        struct shmq_message_draft draft;
        struct shmq_properties_summary seen, wanted;
        uint32_t size =
            (uint32_t)snprintf((char *)text, sizeof text, KEY_PROPERTY "%s", more[round % 6]);
        CHECK_EQUAL(strlen(KEY_PROPERTY), SHMQ_KEY_PROPERTY_SIZE);
        if (round % 5 != 0)
            text[random_below(round % 2 ? size : SHMQ_KEY_PROPERTY_SIZE)] =
                (uint8_t)random_below(round % 3 ? 4 : 256);
        if (round % 7 == 0)
            size = random_below(size + 1);
        int status = fill_and_judge(text, size, &draft, &seen);
        CHECK_EQUAL(status, shmq_properties_check(draft.properties, size, 0, &wanted));
        key_count += draft.key_size != 0;
        CHECK(draft.key_size == 0 || memcmp(text, "UNIQ_KEY\1", 9) == 0);
        if (status == SHMQ_OK)
            CHECK(memcmp(&seen, &wanted, sizeof seen) == 0);
    }
#if defined(__SSE2__)
    CHECK(key_count > 10000);
#endif
}

static void test_both_ways_of_marking_separators_agree(void)
{
    for (int round = 0; round < 40000; round++) {
        uint32_t left = 1 + random_below(100);
        uint8_t *exact = malloc(left);
        CHECK(exact != NULL);
        for (uint32_t i = 0; i < left; i++)
            exact[i] = (uint8_t)(round % 2 ? random_below(4) : check_random(&random_state) >> 40);
        struct shmq_properties_marks fast, slow, rule = {0, 0, 0};
        shmq_properties_mark(exact, left, &fast);
        shmq_properties_mark_portable(exact, left, &slow);
        for (uint32_t i = 0; i < 64 && i < left; i++) {
            rule.nuls |= (uint64_t)(exact[i] == 0) << i;
            rule.name_ends |= (uint64_t)(exact[i] == 1) << i;
            rule.value_ends |= (uint64_t)(exact[i] == 2) << i;
        }
        CHECK(memcmp(&fast, &rule, sizeof rule) == 0);
        CHECK(memcmp(&slow, &rule, sizeof rule) == 0);
        free(exact);
    }
}

static int check_name(const char *name, uint64_t grants)
{
    char pair[64];
    struct shmq_properties_summary s;
    int size = snprintf(pair, sizeof pair, "a\1b\2%s\1x\2", name);
    return check_properties(pair, (size_t)size, grants, &s);
}

static void test_reserved_names_need_their_grant(void)
{
    static const struct {
        const char *name;
        uint32_t size, grants;
    } rows[] = {
#define ROW(size, name, grants) {name, size, grants},
        SHMQ_RESERVED_NAME_TABLE(ROW)
#undef ROW
    };
    CHECK_EQUAL(sizeof rows / sizeof rows[0], 39);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        CHECK_EQUAL(strlen(rows[i].name), rows[i].size);
        CHECK_EQUAL(check_name(rows[i].name, 0), SHMQ_RESERVED);
        CHECK_EQUAL(check_name(rows[i].name, ~(uint64_t)0 << 2), SHMQ_RESERVED);
        CHECK_EQUAL(check_name(rows[i].name, SHMQ_GRANT_SERVICE), SHMQ_OK);
        CHECK_EQUAL(check_name(rows[i].name, SHMQ_GRANT_TRANSACTION),
                    rows[i].grants & SHMQ_GRANT_TRANSACTION ? SHMQ_OK : SHMQ_RESERVED);
        char near[40];
        snprintf(near, sizeof near, "%sX", rows[i].name);
        CHECK_EQUAL(check_name(near, 0), SHMQ_OK);
        snprintf(near, sizeof near, "%s", rows[i].name);
        near[rows[i].size - 1] = '~';
        CHECK_EQUAL(check_name(near, 0), SHMQ_OK);
        snprintf(near, sizeof near, "%s", rows[i].name);
        near[0] = '~';
        CHECK_EQUAL(check_name(near, 0), SHMQ_OK);
    }
}

static void test_names_of_ordinary_producers_need_no_grant(void)
{
    static const char *const names[] = {
        "KEYS", "TAGS", "WAIT", "UNIQ_KEY", "DELAY", "BUYER_ID", "INSTANCE_ID", "CORRELATION_ID",
        "REPLY_TO_CLIENT", "TTL", "CLUSTER", "MSG_TYPE", "__SHARDINGKEY", "TIMER_DELAY_SEC",
        "TIMER_DELAY_MS", "TIMER_DELIVER_MS", "MSG_REGION", "TRACE_ON", "TRANSFER_FLAG",
        "CORRECTION_FLAG", "MQ2_FLAG", "EXTEND_UNIQ_INFO", "x", "colour", "pgroup", "POP_C",
        "a-name-that-is-longer-than-any-reserved-one"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        CHECK_EQUAL(check_name(names[i], 0), SHMQ_OK);
}

static void test_find_gives_the_value_of_a_name_or_empty(void)
{
    const uint8_t *value = NULL;
    uint32_t size = 0;
    const char text[] = "TAGS\1a\2KEYS\1k1 k2\2TAGSX\1no\2TAG\1no\2xTAGS\1no\2last\1one";
    uint32_t text_size = sizeof text - 1;
#define FIND(name)                                                                                 \
    shmq_properties_find(bytes(text), text_size, name, sizeof(name) - 1, &value, &size)
    CHECK_EQUAL(FIND("TAGS"), SHMQ_OK);
    CHECK_EQUAL(size, 1);
    CHECK_BYTES(value, "a", 1);
    CHECK_EQUAL(FIND("KEYS"), SHMQ_OK);
    CHECK_EQUAL(size, 5);
    CHECK_EQUAL(FIND("last"), SHMQ_OK);
    CHECK_BYTES(value, "one", 3);
    CHECK_EQUAL(FIND("one"), SHMQ_EMPTY);
    CHECK_EQUAL(FIND("TA"), SHMQ_EMPTY);
    CHECK_EQUAL(FIND("a\2KEYS"), SHMQ_EMPTY);
#undef FIND
    CHECK_EQUAL(shmq_properties_find(bytes("T\1a\2T\1b\2"), 8, "T", 1, &value, &size), SHMQ_OK);
    CHECK_BYTES(value, "b", 1);
    CHECK_EQUAL(shmq_properties_find(bytes("T\1\2\2T"), 5, "T", 1, &value, &size), SHMQ_EMPTY);
    CHECK_EQUAL(shmq_properties_find(bytes(""), 0, "T", 1, &value, &size), SHMQ_EMPTY);
}

static void test_java_hash_equals_javas(void)
{
    /* Printed by String.hashCode() of OpenJDK 17 over new String(bytes, UTF_8). */
    static const struct {
        const char *utf8;
        int32_t hash;
    } known[] = {
        {"", 0}, {"a", 97}, {"hello", 99162322}, {"TagA", 2598919}, {"TagA||TagB", 1789476431},
        {"order-paid", 710106603}, {"polygenelubricants", INT32_MIN}, {"caf\xc3\xa9", 3045921},
        {"\xc3\xa5\xc3\xa4\xc3\xb6", 227383},
        {"\xe6\xb6\x88\xe6\x81\xaf\xe9\x98\x9f\xe5\x88\x97", 860276223},
        {"\xd0\x96", 1046}, {"\xf0\x9f\x98\x80", 1772899},
        {"tag\xf0\x9f\x9a\x80\xf0\x9f\x9a\x80", 154046880}, {"\xf4\x8f\xbf\xbf", 1803232},
        {"\xef\xbf\xbd", 65533}, {"\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf", 2096190},
        {"zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz", -863013888},
        /* malformed: cut short, overlong, surrogates, beyond U+10FFFF */
        {"\x80", 65533},
        {"\xc3", 65533},
        {"\xc3\xc3\xa9", 2031756},
        {"\xe2\x82\x41", 2031588},
        {"\xed\xa0", 65533},
        {"\xed\xa0\x80", 65533},
        {"\xf0\x9f\x98", 65533},
        {"\xf0\x9f\x98\x41", 2031588},
        {"\xf4\x90\x80\x80", 2017367872},
        {"\xc0\x80", 2097056},
        {"\xff\x41", 2031588},
        {"\xe0\x80\x9f", 65074269},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        size_t size = strlen(known[i].utf8);
        uint8_t *exact = malloc(size != 0 ? size : 1);
        CHECK(exact != NULL);
        memcpy(exact, known[i].utf8, size);
        CHECK_EQUAL(shmq_java_hash(exact, (uint32_t)size), known[i].hash);
        free(exact);
    }
    CHECK_EQUAL(shmq_tags_code(bytes("polygenelubricants"), 18), INT32_MIN);
    CHECK_EQUAL(shmq_tags_code(NULL, 0), 0);
}

/* ---- a producer that keeps writing while its message is copied -------------------------- */

struct mutated {
    atomic_int stop;
    uint8_t body[3000];
    uint8_t properties[200];
};

static void scribble_byte(uint8_t *at, uint8_t value)
{
    /* relaxed: no partner; the race with fill's plain reads is what the test is about. */
    atomic_store_explicit((_Atomic uint8_t *)at, value, memory_order_relaxed);
}

static void *scribble(void *argument)
{
    struct mutated *shared = argument;
    uint64_t state = 99;
    /* relaxed: only ends the loop. */
    while (!atomic_load_explicit(&shared->stop, memory_order_relaxed)) {
        uint64_t dice = check_random(&state);
        scribble_byte(&shared->body[dice % sizeof shared->body], (uint8_t)(dice >> 32));
        scribble_byte(&shared->properties[dice % sizeof shared->properties],
                      (uint8_t)"abc\1\2"[(dice >> 40) % 5]);
    }
    return NULL;
}

static void test_a_producer_that_scribbles_meanwhile_cannot_make_a_bad_record(void)
{
    static struct mutated shared;
    pthread_t scribbler;
    memset(shared.properties, 'p', sizeof shared.properties);
    CHECK(pthread_create(&scribbler, NULL, scribble, &shared) == 0);
    for (uint32_t round = 0; round < 20000; round++) {
        struct shmq_message_fields f = fields_of("TopicTest", 0, "");
        struct shmq_message_draft draft;
        struct shmq_message_view view;
        struct shmq_properties_summary summary;
        f.body_size = round % 4 == 0 ? random_below(3000) : random_below(300);
        f.properties_size = random_below(200);
        CHECK_EQUAL(shmq_message_fill(frame, &f, shared.body, shared.properties, &draft), SHMQ_OK);
        int legal = shmq_draft_check(&draft, 0, &summary);
        CHECK(legal == SHMQ_OK || legal == SHMQ_ILLEGAL);
        CHECK_EQUAL(shmq_properties_check(draft.properties, draft.properties_size, 0, &summary),
                    legal);
        shmq_message_seal(frame, &draft);
        CHECK_EQUAL(shmq_message_check(frame, draft.total_size, f.physical_offset, 1, &view),
                    SHMQ_OK);
        CHECK_EQUAL(view.body_size, f.body_size);
        CHECK_EQUAL(view.properties_size, f.properties_size + 20);
    }
    atomic_store_explicit(&shared.stop, 1, memory_order_relaxed); /* relaxed: only ends the loop */
    CHECK(pthread_join(scribbler, NULL) == 0);
}

static void test_a_producer_that_changes_what_each_read_sees_cannot_make_a_bad_record(void)
{
#if defined(CHANGING_MEMORY)
    uint32_t key_count = 0;
    changing_memory_open(NULL);
    for (uint32_t round = 0; round < 800; round++) {
        changing_alphabet = round < 600 ? "abcdefgh\1\2" : "\1\2";
        changing_text = round < 600 ? NULL : KEY_PROPERTY;
        struct shmq_message_fields f = fields_of("TopicTest", 0, "");
        struct shmq_message_draft draft;
        struct shmq_message_view view;
        struct shmq_properties_summary before, after;
        f.body_size = round % 20 == 0 ? 2000 : round % 100;
        f.properties_size = round % 60;
        const uint8_t *properties = changing_memory + 30000 + round % 16;
        if (round >= 600) {
            f.properties_size = SHMQ_KEY_PROPERTY_SIZE;
            properties = changing_memory + 700 * SHMQ_KEY_PROPERTY_SIZE;
        }
        CHECK_EQUAL(shmq_message_fill(frame, &f, changing_memory + 100 + round % 16, properties,
                                      &draft),
                    SHMQ_OK);
        int judged = shmq_draft_check(&draft, 0, &before);
        key_count += draft.key_size != 0;
        shmq_message_seal(frame, &draft);
        CHECK_EQUAL(shmq_message_check(frame, draft.total_size, f.physical_offset, 1, &view),
                    SHMQ_OK);
        CHECK_EQUAL(shmq_properties_check(view.properties, f.properties_size, 0, &after), judged);
    }
    changing_memory_close();
    CHECK(changing_read_count > 600);
    CHECK(key_count > 50);
#endif
}

int main(void)
{
    random_state = check_seed();
    RUN(test_size_is_the_sum_of_the_parts_and_v2_begins_at_128);
    RUN(test_size_is_zero_for_what_no_record_can_hold);
    RUN(test_encode_writes_the_bytes_of_the_slow_encoder);
    RUN(test_fill_refuses_what_no_record_can_hold_and_writes_nothing);
    RUN(test_largest_properties_fit);
    RUN(test_draft_shows_the_copies_before_the_seal);
    RUN(test_crc_property_shows_ten_digits_least_significant_first);
    RUN(test_parse_gives_back_every_field);
    RUN(test_ipv6_hosts_are_read);
    RUN(test_blank_and_empty_frames_are_told_apart);
    RUN(test_step_stays_within_the_limit);
    RUN(test_check_names_the_reason);
    RUN(test_a_foreign_record_without_crc_property_passes_unless_demanded);
    RUN(test_a_present_crc_property_is_verified_even_if_not_demanded);
    RUN(test_every_flipped_bit_is_found);
    RUN(test_a_cut_frame_is_corrupt_at_every_length);
    RUN(test_any_garbage_is_safe_to_parse);
    RUN(test_properties_summary_finds_what_the_append_role_needs);
    RUN(test_malformed_properties_are_illegal);
    RUN(test_properties_check_agrees_with_the_rule_at_every_size);
    RUN(test_a_draft_is_judged_as_its_properties_are);
    RUN(test_both_ways_of_marking_separators_agree);
    RUN(test_reserved_names_need_their_grant);
    RUN(test_names_of_ordinary_producers_need_no_grant);
    RUN(test_find_gives_the_value_of_a_name_or_empty);
    RUN(test_java_hash_equals_javas);
    RUN(test_a_producer_that_changes_what_each_read_sees_cannot_make_a_bad_record);
    RUN(test_a_producer_that_scribbles_meanwhile_cannot_make_a_bad_record);
    return 0;
}
