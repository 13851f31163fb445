/* Goal: the core reads the hand-written frames of tests/unit/golden as they say, and writes the
 * same bytes. */
#include "check.h"
#include "shmq/message.h"

#include <dirent.h>

#define EXTENT 4096u
#define WANTED_MAX 32

struct golden {
    uint8_t bytes[EXTENT];
    uint32_t size;
    struct {
        char name[40], value[80];
    } wanted[WANTED_MAX];
    int wanted_count;
};

static const char *value_of(const struct golden *golden, const char *name)
{
    for (int i = 0; i < golden->wanted_count; i++)
        if (strcmp(golden->wanted[i].name, name) == 0)
            return golden->wanted[i].value;
    return "";
}

static uint64_t number_of(const struct golden *golden, const char *name)
{
    const char *value = value_of(golden, name);
    CHECK(*value != '\0');
    return value[0] == '-' ? (uint64_t)strtoll(value, NULL, 10) : strtoull(value, NULL, 10);
}

/* Whether these bytes are the ones given in hexadecimal. */
static int is_hex(const uint8_t *seen, size_t size, const char *hex)
{
    char text[80] = "";
    for (size_t i = 0; i < size; i++)
        snprintf(text + 2 * i, 3, "%02x", seen[i]);
    return strcmp(text, hex) == 0;
}

static void read_bytes(struct golden *golden, char *line)
{
    char *comment = strchr(line, '#');
    if (comment != NULL)
        *comment = '\0';
    char *at;
    CHECK_EQUAL(strtoul(line + 1, &at, 10), golden->size);
    for (;;) {
        char *next;
        unsigned long byte = strtoul(at, &next, 16);
        if (next == at)
            return;
        CHECK(golden->size < EXTENT && byte < 256);
        golden->bytes[golden->size++] = (uint8_t)byte;
        at = next;
    }
}

static void read_golden(const char *path, struct golden *golden)
{
    char line[512];
    FILE *file = fopen(path, "r");
    CHECK(file != NULL);
    memset(golden, 0, sizeof *golden);
    while (fgets(line, sizeof line, file) != NULL) {
        if (line[0] == '@')
            read_bytes(golden, line);
        if (strncmp(line, "#= ", 3) == 0) {
            CHECK(golden->wanted_count < WANTED_MAX);
            int i = golden->wanted_count++;
            CHECK_EQUAL(2, sscanf(line + 3, "%39s %79s", golden->wanted[i].name,
                                  golden->wanted[i].value));
        }
    }
    fclose(file);
}

static void check_view(const struct golden *g, const struct shmq_message_view *view)
{
    CHECK_EQUAL(view->total_size, number_of(g, "total_size"));
    CHECK_EQUAL(view->total_size, g->size);
    CHECK_EQUAL(view->magic, number_of(g, "version") == 1 ? SHMQ_MESSAGE_MAGIC_V1
                                                          : SHMQ_MESSAGE_MAGIC_V2);
    CHECK_EQUAL(view->body_crc, number_of(g, "body_crc"));
    CHECK_EQUAL(view->queue_id, number_of(g, "queue_id"));
    CHECK_EQUAL(view->flag, number_of(g, "flag"));
    CHECK_EQUAL(view->queue_offset, number_of(g, "queue_offset"));
    CHECK_EQUAL(view->physical_offset, number_of(g, "physical_offset"));
    CHECK_EQUAL(view->sys_flag, number_of(g, "sys_flag"));
    CHECK_EQUAL(view->born_timestamp, number_of(g, "born_timestamp"));
    CHECK_EQUAL(view->store_timestamp, number_of(g, "store_timestamp"));
    CHECK_EQUAL(view->reconsume_times, number_of(g, "reconsume_times"));
    CHECK_EQUAL(view->prepared_transaction_offset, number_of(g, "prepared_transaction_offset"));
    CHECK_EQUAL(view->body_size, number_of(g, "body_size"));
    CHECK_EQUAL(view->topic_size, number_of(g, "topic_size"));
    CHECK_EQUAL(view->properties_size, number_of(g, "properties_size"));
    CHECK(is_hex(view->born_host, view->born_host_size, value_of(g, "born_host")));
    CHECK(is_hex(view->store_host, view->store_host_size, value_of(g, "store_host")));
    const uint8_t *tags = NULL;
    uint32_t tags_size = 0;
    shmq_properties_find(view->properties, view->properties_size, "TAGS", 4, &tags, &tags_size);
    CHECK_EQUAL(shmq_tags_code(tags, tags_size), number_of(g, "tags_code"));
}

static void check_encodes(const struct golden *golden, const struct shmq_message_view *view)
{
    uint8_t frame[EXTENT];
    struct shmq_message_fields fields = {
        .topic = view->topic,
        .topic_size = view->topic_size,
        .body_size = view->body_size,
        .properties_size = view->properties_size - SHMQ_CRC_PROPERTY_SIZE,
        .queue_id = view->queue_id,
        .flag = view->flag,
        .sys_flag = view->sys_flag,
        .reconsume_times = view->reconsume_times,
        .born_timestamp = view->born_timestamp,
        .store_timestamp = view->store_timestamp,
        .queue_offset = view->queue_offset,
        .physical_offset = view->physical_offset,
        .prepared_transaction_offset = view->prepared_transaction_offset,
    };
    memcpy(fields.born_host, view->born_host, 8);
    memcpy(fields.store_host, view->store_host, 8);
    CHECK_EQUAL(shmq_message_encode(frame, &fields, view->body, view->properties), SHMQ_OK);
    CHECK_BYTES(frame, golden->bytes, golden->size);
}

static void check_golden(const struct golden *golden)
{
    struct shmq_message_view view;
    const char *status = value_of(golden, "status");
    int seen = shmq_message_parse(golden->bytes, golden->size, &view);
    if (strcmp(status, "EMPTY") == 0) {
        CHECK_EQUAL(seen, SHMQ_EMPTY);
        return;
    }
    if (strcmp(status, "BLANK") == 0) {
        CHECK_EQUAL(seen, SHMQ_BLANK);
        CHECK_EQUAL(view.total_size, number_of(golden, "total_size"));
        return;
    }
    CHECK_EQUAL(seen, SHMQ_OK);
    check_view(golden, &view);
    uint64_t physical_offset = number_of(golden, "physical_offset");
    int is_sealed = strcmp(value_of(golden, "record_crc"), "none") != 0;
    CHECK_EQUAL(shmq_message_check(golden->bytes, golden->size, physical_offset, 0, &view),
                SHMQ_OK);
    CHECK_EQUAL(shmq_message_check(golden->bytes, golden->size, physical_offset,
                                   SHMQ_CHECK_RECORD_CRC, &view),
                is_sealed ? SHMQ_OK : SHMQ_CORRUPT);
    if (strcmp(value_of(golden, "encode"), "yes") == 0)
        check_encodes(golden, &view);
}

static void test_core_reads_and_writes_the_golden_frames(void)
{
    static struct golden golden;
    char folder[512], path[1024];
    const char *slash = strrchr(__FILE__, '/');
    snprintf(folder, sizeof folder, "%.*s/../unit/golden", slash ? (int)(slash - __FILE__) : 1,
             slash ? __FILE__ : ".");
    DIR *files = opendir(folder);
    CHECK(files != NULL);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(files)) != NULL;) {
        if (strstr(entry->d_name, ".hex") == NULL)
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        read_golden(path, &golden);
        check_golden(&golden);
        count++;
    }
    closedir(files);
    CHECK(count >= 16);
}

int main(void)
{
    RUN(test_core_reads_and_writes_the_golden_frames);
    return 0;
}
