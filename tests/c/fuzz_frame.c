/* shmq-test: full-timeout 3000 */
/* The parsers of frames and properties over bytes that were right once, and a replay over a whole log of them: nothing
 * is read past what is available, every walk ends, and what passes the check is what was written. */
#define _GNU_SOURCE
#include "store_truth.h"

#define FILE_SIZE (1u << 14)

static uint64_t rounds(uint64_t by_default, uint64_t full)
{
    const char *is_full = getenv("SHMQ_FULL");
    return is_full != NULL && strcmp(is_full, "1") == 0 ? full : by_default;
}

static uint64_t edge(uint64_t random)
{
    static const uint64_t edges[] = {0,    1,     7,      8,      19,         20,         21,         90,        91,
                                     127,  128,   255,    32767,  32768,      65535,      0x7fffffff, 0x80000000,
                                     0xffffffff, SHMQ_MESSAGE_MAGIC_V1, SHMQ_MESSAGE_MAGIC_V2, SHMQ_MESSAGE_MAGIC_BLANK};
    return random % 3 == 0 ? edges[(random >> 8) % (sizeof edges / sizeof *edges)] : random >> 8;
}

/* Field places of a frame whose values decide what is read next. */
static const uint32_t places[] = {0, 4, 8, 12, 20, 28, 36, 40, 76, 84};

static void mutate(uint64_t *seed, uint8_t *bytes, uint32_t size)
{
    for (uint64_t n = 1 + check_random(seed) % 4; n > 0; --n) {
        uint64_t random = check_random(seed);
        uint32_t at = (uint32_t)(random >> 32) % size;
        uint32_t value = (uint32_t)edge(check_random(seed));
        switch (random % 6) {
        case 0:
            bytes[at] ^= (uint8_t)(1u << (random >> 8) % 8);
            break;
        case 1:
            bytes[at] = (uint8_t)value;
            break;
        case 2: /* one of the fields */
            at = places[(random >> 8) % (sizeof places / sizeof *places)];
            if (at + 4 <= size) {
                shmq_be32_store(bytes + at, value);
            }
            break;
        case 3: /* a length somewhere behind the header */
            if (at + 2 <= size) {
                shmq_be16_store(bytes + at, (uint16_t)value);
            }
            break;
        case 4: /* a piece of it elsewhere */
            if (at + 8 <= size) {
                memmove(bytes + (random >> 12) % (size - 7), bytes + at, 8);
            }
            break;
        default: /* separators */
            bytes[at] = (uint8_t)(random >> 8) % 4;
        }
    }
}

/* A right frame at physical_offset; its size. */
static uint32_t make_frame(uint64_t *seed, uint8_t *frame, uint64_t physical_offset, uint64_t queue_offset)
{
    uint64_t random = check_random(seed);
    uint8_t body[600];
    char topic[300];
    uint32_t body_size = (uint32_t)(random % 600);
    uint32_t topic_size = (random >> 16) % 8 == 0 ? 1 + (uint32_t)(random >> 24) % 255 : 4;
    memset(topic, 'a' + (int)((random >> 20) % 3), sizeof topic);
    check_fill_random(seed, body, body_size);
    const char *const properties[] = {"", "TAGS\001a\002", "KEYS\001k l\002TAGS\001b\002UNIQ_KEY\001u\002", "DELAY\0013\002"};
    const char *text = properties[(random >> 32) % 4];
    struct shmq_message_fields fields = {
        .topic = (const uint8_t *)topic,
        .topic_size = topic_size,
        .body_size = body_size,
        .properties_size = (uint32_t)strlen(text),
        .queue_id = (uint32_t)(random >> 40) % 2,
        .queue_offset = queue_offset,
        .physical_offset = physical_offset,
        .store_timestamp = 1700000000000,
    };
    CHECK_EQUAL(shmq_message_encode(frame, &fields, body, (const uint8_t *)text), SHMQ_OK);
    return shmq_message_size(topic_size, body_size, fields.properties_size + SHMQ_CRC_PROPERTY_SIZE);
}

/* Everything the view says lies inside the frame. */
static void check_view(const uint8_t *frame, const struct shmq_message_view *view, uint32_t available)
{
    TRUTH(view->total_size <= available);
    TRUTH(view->body >= frame && view->body + view->body_size <= frame + view->total_size);
    TRUTH(view->topic >= frame && view->topic + view->topic_size <= frame + view->total_size);
    TRUTH(view->properties >= frame && view->properties + view->properties_size <= frame + view->total_size);
}

static void test_damaged_frame_is_refused_or_read_within_its_bounds(void)
{
    uint64_t seed = check_seed();
    uint64_t seen[4] = {0}; /* refused, BLANK, parsed, checked */
    for (uint64_t round = rounds(200000, 30000000); round > 0; --round) {
        uint8_t right[2048];
        uint32_t size = make_frame(&seed, right, 4096, 7);
        uint32_t available = check_random(&seed) % 4 == 0 ? (uint32_t)(check_random(&seed) % (size + 1)) : size;
        uint8_t *frame = malloc(available == 0 ? 1 : available); /* its end is the end of the world */
        CHECK(frame != NULL);
        memcpy(frame, right, available);
        if (available > 0) {
            mutate(&seed, frame, available);
        }
        snprintf(truth_context, sizeof truth_context, "round %" PRIu64, round);
        struct shmq_message_view view;
        int status = shmq_message_parse(frame, available, &view);
        if (status == SHMQ_OK) {
            check_view(frame, &view, available);
            struct shmq_properties_summary summary;
            (void)shmq_properties_check(view.properties, view.properties_size, 0, &summary);
            const uint8_t *value;
            uint32_t value_size;
            if (shmq_properties_find(view.properties, view.properties_size, "TAGS", 4, &value, &value_size) == SHMQ_OK) {
                TRUTH(value >= view.properties && value + value_size <= view.properties + view.properties_size);
                (void)shmq_tags_code(value, value_size);
            }
            status = shmq_message_check(frame, available, 4096, SHMQ_CHECK_RECORD_CRC, &view);
            /* what passes is what was written: 31 bits of CRC leave no room for luck here */
            TRUTH(status == SHMQ_CORRUPT || (status == SHMQ_OK && available == size && memcmp(frame, right, size) == 0));
            seen[status == SHMQ_OK ? 3 : 2] += 1;
        } else {
            TRUTH(status == SHMQ_CORRUPT || status == SHMQ_EMPTY || status == SHMQ_BLANK);
            TRUTH(status != SHMQ_BLANK || (view.total_size >= SHMQ_BLANK_SIZE && view.total_size <= available));
            seen[status == SHMQ_BLANK] += 1;
        }
        free(frame);
    }
    printf("refused %" PRIu64 ", BLANK %" PRIu64 ", parsed %" PRIu64 ", right %" PRIu64 "\n", seen[0], seen[1], seen[2],
           seen[3]);
    CHECK(seen[0] > 1000 && seen[1] > 10 && seen[2] > 1000);
}

static void test_random_properties_are_judged_within_their_bounds(void)
{
    uint64_t seed = check_seed() + 1;
    static const uint8_t alphabet[] = {'T', 'A', 'G', 'S', 'K', 'E', 'Y', 'a', 0, 1, 2, 1, 2, 0xc3, 0xa4};
    uint64_t right = 0;
    for (uint64_t round = rounds(200000, 30000000); round > 0; --round) {
        uint32_t size = (uint32_t)(check_random(&seed) % 90);
        uint8_t *properties = malloc(size == 0 ? 1 : size);
        CHECK(properties != NULL);
        for (uint32_t i = 0; i < size; ++i) {
            properties[i] = alphabet[check_random(&seed) % sizeof alphabet];
        }
        for (uint32_t i = 0; size >= 4 && check_random(&seed) % 2 == 0 && i + 4 <= size; i += 4) {
            memcpy(properties + i, "k\001v\002", 4); /* well formed up to here */
        }
        snprintf(truth_context, sizeof truth_context, "round %" PRIu64, round);
        struct shmq_properties_summary summary;
        int status = shmq_properties_check(properties, size, 0, &summary);
        TRUTH(status == SHMQ_OK || status == SHMQ_ILLEGAL || status == SHMQ_RESERVED);
        /* the rule, said the slow way */
        uint32_t in_name = 1, part = 0, well = 1;
        for (uint32_t i = 0; i < size && well; ++i) {
            uint8_t byte = properties[i];
            if (byte == 0 || (byte == SHMQ_PROPERTY_NAME_END && !in_name) || (byte == SHMQ_PROPERTY_VALUE_END && in_name)) {
                well = 0;
            } else if (byte == SHMQ_PROPERTY_NAME_END || byte == SHMQ_PROPERTY_VALUE_END) {
                well = part > 0;
                part = 0;
                in_name = byte == SHMQ_PROPERTY_VALUE_END;
            } else {
                ++part;
            }
        }
        well = well && in_name && part == 0;
        TRUTH(well ? status != SHMQ_ILLEGAL : status != SHMQ_OK);
        right += status == SHMQ_OK;
        const uint8_t *value;
        uint32_t value_size;
        (void)shmq_properties_find(properties, size, "TAGS", 4, &value, &value_size);
        free(properties);
    }
    CHECK(right > 100);
}

static void test_replay_of_a_damaged_log_ends_and_stays_within_it(void)
{
    uint64_t seed = check_seed() + 2;
    uint64_t stops[4] = {0};
    for (uint64_t round = rounds(400, 60000); round > 0; --round) {
        struct fixture *f = fixture_open(FILE_SIZE, 2, 16);
        struct shmq_commit_log *log = &f->append.log;
        uint64_t queue_offset = 0;
        while (log->log_end < 2 * FILE_SIZE - 3000) {
            uint8_t frame[2048];
            uint8_t *at;
            uint32_t rolled = 0;
            uint64_t before = seed;
            uint32_t size = make_frame(&seed, frame, 0, 0);
            CHECK_EQUAL(shmq_commit_log_claim(log, size, &at, &rolled), SHMQ_OK);
            seed = before;
            (void)make_frame(&seed, at, log->log_end, queue_offset++ / 6);
            log->log_end += size;
        }
        for (uint64_t n = check_random(&seed) % 6; n > 0; --n) {
            mutate(&seed, f->hot[check_random(&seed) % 2] + check_random(&seed) % (FILE_SIZE - 700), 700);
        }
        snprintf(truth_context, sizeof truth_context, "round %" PRIu64, round);
        struct shmq_replay replay = {.limit = 2 * FILE_SIZE, .frames_max = 100000};
        uint32_t demands = round % 2 == 0 ? SHMQ_CHECK_RECORD_CRC : 0;
        for (uint32_t tries = 0; tries < 400; ++tries) { /* as recovery goes on behind damage */
            int status = shmq_log_replay(&f->append, demands, &replay);
            TRUTH(replay.position <= 2 * FILE_SIZE);
            if (status == SHMQ_NO_TOPIC) {
                uint32_t row, generation;
                char topic[SHMQ_TOPIC_SIZE_MAX + 1] = {0};
                TRUTH(replay.view.topic_size > 0 || demands == 0);
                if (replay.view.topic_size == 0 || replay.view.topic_size > SHMQ_TOPIC_SIZE_MAX ||
                    memchr(replay.view.topic, 0, replay.view.topic_size) != NULL ||
                    shmq_load_relaxed32(&f->control->append.queue_row_count) == FIXTURE_ROWS) {
                    replay.position += replay.view.total_size;
                    continue;
                }
                memcpy(topic, replay.view.topic, replay.view.topic_size);
                fixture_queue(f, topic, replay.view.queue_id, 0, &row, &generation);
            } else if (status == SHMQ_OK || status == SHMQ_ARENA_FULL || status == SHMQ_OFFSET_TOO_SMALL) {
                stops[status == SHMQ_OK ? 0 : 1] += 1;
                break;
            } else {
                TRUTH(status == SHMQ_CORRUPT || status == SHMQ_EMPTY);
                stops[2] += 1;
                replay.position += 1 + check_random(&seed) % 600;
                if (replay.position >= 2 * FILE_SIZE) {
                    break;
                }
            }
        }
        fixture_close(f);
    }
    printf("ends %" PRIu64 ", memory %" PRIu64 ", damage %" PRIu64 "\n", stops[0], stops[1], stops[2]);
}

int main(void)
{
    RUN(test_damaged_frame_is_refused_or_read_within_its_bounds);
    RUN(test_random_properties_are_judged_within_their_bounds);
    RUN(test_replay_of_a_damaged_log_ends_and_stays_within_it);
    return 0;
}
