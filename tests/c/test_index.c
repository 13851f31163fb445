/* Tests of index.h: frames are taken apart without a byte too many being read, keys become entries, entries sort. */
#include "shmq/index.h"

#include "check.h"

static uint64_t seed = 0x5eed1de;

/* A frame of its own allocation, so that the sanitizer sees a byte read beyond it. */
static uint8_t *frame_new(const char *topic, const char *properties, uint32_t body_size, uint32_t *size)
{
    static uint8_t body[70000];
    struct shmq_message_fields fields = {
        .topic = (const uint8_t *)topic,
        .topic_size = (uint32_t)strlen(topic),
        .body_size = body_size,
        .properties_size = (uint32_t)strlen(properties),
        .queue_id = 3,
        .queue_offset = 77,
        .physical_offset = 4096,
        .store_timestamp = 1700000000123,
    };
    *size = shmq_message_size(fields.topic_size, body_size, fields.properties_size + SHMQ_CRC_PROPERTY_SIZE);
    uint8_t *frame = malloc(*size);
    CHECK(frame != NULL);
    CHECK_EQUAL(shmq_message_encode(frame, &fields, body, (const uint8_t *)properties), SHMQ_OK);
    return frame;
}

static int entries_of(const char *topic, const char *properties, struct shmq_index_entry *entries, uint64_t capacity)
{
    uint32_t size;
    uint8_t *frame = frame_new(topic, properties, 10, &size);
    struct shmq_index_frame head;
    struct shmq_index_tail tail;
    CHECK_EQUAL(shmq_index_head(frame, size, 4096, 100000, &head), SHMQ_OK);
    CHECK_EQUAL(shmq_index_tail(frame + head.tail_place, &head, &tail), SHMQ_OK);
    struct shmq_index_entries to = {.entries = entries, .capacity = capacity, .high = UINT64_MAX};
    int status = shmq_index_put(&to, &head, &tail, 4096);
    free(frame);
    return status == SHMQ_OK ? (int)to.count : -status;
}

static uint64_t hash_of(const char *topic, const char *key)
{
    return shmq_index_hash((const uint8_t *)topic, (uint32_t)strlen(topic), (const uint8_t *)key,
                           (uint32_t)strlen(key));
}

static void each_key_becomes_an_entry(void)
{
    struct shmq_index_entry entries[4];
    CHECK_EQUAL(entries_of("T", "UNIQ_KEY\x01" "id\x02" "KEYS\x01" "a  bc\x02", entries, 4), 3);
    CHECK_EQUAL(entries[0].hash, hash_of("", "id"));
    CHECK_EQUAL(entries[1].hash, hash_of("T", "a"));
    CHECK_EQUAL(entries[2].hash, hash_of("T", "bc"));
    CHECK_EQUAL(entries[2].place, 4096);
    CHECK_EQUAL(entries[2].second, 1700000000);
    CHECK_EQUAL(entries_of("T", "XKEYS\x01" "a\x02" "KEYS\x01\x02" "TAGS\x01" "b\x02", entries, 4), 0);
}

static void message_whose_keys_have_no_room_adds_none(void)
{
    struct shmq_index_entry entries[2];
    CHECK_EQUAL(entries_of("T", "UNIQ_KEY\x01" "id\x02" "KEYS\x01" "a b\x02", entries, 2), -SHMQ_FULL);
}

static void seconds_stay_in_their_range(void)
{
    CHECK_EQUAL(shmq_index_second(-1), 0);
    CHECK_EQUAL(shmq_index_second(INT64_MIN), 0);
    CHECK_EQUAL(shmq_index_second(1999), 1);
    CHECK_EQUAL(shmq_index_second(INT64_MAX), UINT32_MAX);
}

static void entries_sort_by_hash_and_keep_their_order(void)
{
    enum { COUNT = 3000 };
    static struct shmq_index_entry entries[COUNT];
    static struct shmq_index_entry scratch[COUNT];
    for (uint32_t kinds = 1; kinds < 100000; kinds *= 10) {
        for (uint32_t i = 0; i < COUNT; i++) {
            uint64_t kind = check_random(&seed) % kinds;
            entries[i] = (struct shmq_index_entry){kind * 0x0123456789abcdefu, i, 0};
        }
        const struct shmq_index_entry *sorted = shmq_index_sort(entries, scratch, COUNT);
        for (uint32_t i = 1; i < COUNT; i++)
            CHECK(sorted[i - 1].hash < sorted[i].hash ||
                  (sorted[i - 1].hash == sorted[i].hash && sorted[i - 1].place < sorted[i].place));
    }
}

/* What the index passes over differs from the whole check in CRCs only. */
static void index_and_message_agree_on_what_a_frame_is(void)
{
    for (uint32_t round = 0; round < 200000; round++) {
        uint32_t size;
        uint8_t *frame = frame_new("orders", "UNIQ_KEY\x01" "id\x02" "KEYS\x01" "a b\x02",
                                   (uint32_t)(check_random(&seed) % 3), &size);
        uint32_t changes = (uint32_t)(check_random(&seed) % 4);
        for (uint32_t i = 0; i < changes; i++)
            frame[check_random(&seed) % size] = (uint8_t)check_random(&seed);
        uint32_t available = check_random(&seed) % 8 == 0 ? (uint32_t)(check_random(&seed) % (size + 1)) : size;
        uint8_t *bytes = malloc(available + 1); /* exactly these, for the sanitizer */
        CHECK(bytes != NULL);
        memcpy(bytes, frame, available);
        uint8_t *exact = available == 0 ? bytes : realloc(bytes, available);
        CHECK(exact != NULL);
        struct shmq_message_view view;
        struct shmq_index_frame head;
        struct shmq_index_tail tail = {0};
        int whole = shmq_message_parse(exact, available, &view);
        if (whole == SHMQ_OK && view.physical_offset != 4096)
            whole = SHMQ_CORRUPT;
        int part = shmq_index_head(exact, available, 4096, available, &head);
        if (part == SHMQ_OK)
            part = shmq_index_tail(exact + head.tail_place, &head, &tail);
        if (whole == SHMQ_OK || part == SHMQ_OK) {
            CHECK_EQUAL(part, whole);
            CHECK_EQUAL(head.total_size, view.total_size);
            CHECK_EQUAL(head.store_timestamp, view.store_timestamp);
            CHECK_EQUAL(head.queue_offset, view.queue_offset);
            CHECK(tail.topic == view.topic && tail.topic_size == view.topic_size);
            CHECK(tail.properties == view.properties && tail.properties_size == view.properties_size);
            struct shmq_index_entry entries[64];
            struct shmq_index_entries to = {.entries = entries, .capacity = 64, .high = UINT64_MAX};
            (void)shmq_index_put(&to, &head, &tail, 0);
        }
        free(exact);
        free(frame);
    }
}

int main(void)
{
    RUN(each_key_becomes_an_entry);
    RUN(message_whose_keys_have_no_room_adds_none);
    RUN(seconds_stay_in_their_range);
    RUN(entries_sort_by_hash_and_keep_their_order);
    RUN(index_and_message_agree_on_what_a_frame_is);
    return 0;
}
