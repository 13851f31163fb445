/* instructions.c: one message of 100 B through the core, for callgrind: which function does what is said by its name,
 * the driver (bench/instructions.py) divides the instructions collected in one of them by the messages it handled. */
#define _GNU_SOURCE
#include "store_fixture.h"

#define MESSAGES 4096u
#define BATCH 64u
#define BODY_SIZE 100u
#define FILE_SIZE (8u << 20)

static struct fixture *f;
static struct shmq_lane_writer w;
static uint32_t row, generation;
static uint8_t body[BODY_SIZE];
static const char properties[] = "UNIQ_KEY\0010123456789ABCDEF0123456789ABCDEF\002TAGS\001tag\002";

__attribute__((noinline)) void instructions_send(void)
{
    struct shmq_record record = fixture_record(row, generation, BODY_SIZE, sizeof properties - 1, SHMQ_RECORD_WAIT);
    if (fixture_put_record(&w, &record, body, properties) < 0) {
        abort();
    }
    (void)shmq_lane_publish(&w);
}

__attribute__((noinline)) void instructions_send_unpublished(void)
{
    struct shmq_record record = fixture_record(row, generation, BODY_SIZE, sizeof properties - 1, 0);
    if (fixture_put_record(&w, &record, body, properties) < 0) {
        abort();
    }
}

__attribute__((noinline)) void instructions_append_one(void)
{
    if (shmq_turn_run(&f->append, 1700000000000, 1) != 1) {
        abort();
    }
}

__attribute__((noinline)) void instructions_append_batch(void)
{
    if (shmq_turn_run(&f->append, 1700000000000, 1) != BATCH) {
        abort();
    }
}

__attribute__((noinline)) void instructions_complete(void)
{
    struct shmq_completion done;
    if (shmq_lane_completion(&w, w.sequence - 1, &done) != SHMQ_OK || done.status != 0) {
        abort();
    }
    shmq_lane_release(&w, w.sequence);
}

/* As a reader takes messages in place: entry, frame, head compared with the entry. */
static uint64_t receive(struct shmq_cursor *cursor, uint64_t queue_offset, uint32_t count)
{
    struct shmq_found found[BATCH];
    int got = shmq_consume_queue_read(f->arena, f->append.arena.block_count, shmq_control_queue_row(f->control, row),
                                      row, generation, queue_offset, count, cursor, found);
    if (got != (int)count) {
        abort();
    }
    for (uint32_t i = 0; i < count; ++i) {
        const uint8_t *frame = shmq_commit_log_at(&f->append.log, found[i].physical_offset);
        struct shmq_message_view view;
        if (shmq_message_parse(frame, found[i].size, &view) != SHMQ_OK || view.total_size != found[i].size ||
            view.queue_offset != queue_offset + i || view.body_size != BODY_SIZE) {
            abort();
        }
    }
    return queue_offset + count;
}

__attribute__((noinline)) uint64_t instructions_receive_one(struct shmq_cursor *cursor, uint64_t queue_offset)
{
    return receive(cursor, queue_offset, 1);
}

__attribute__((noinline)) uint64_t instructions_receive_batch(struct shmq_cursor *cursor, uint64_t queue_offset)
{
    return receive(cursor, queue_offset, BATCH);
}

int main(void)
{
    f = fixture_open(FILE_SIZE, 2, 256);
    fixture_queue(f, "instructions", 0, 0, &row, &generation);
    fixture_attach(f, 0, 1, 1u << 18, 256);
    fixture_writer(f, 0, 0, &w);
    for (uint32_t i = 0; i < BODY_SIZE; ++i) {
        body[i] = (uint8_t)i;
    }
    for (uint32_t i = 0; i < MESSAGES; ++i) {
        instructions_send();
        instructions_append_one();
        instructions_complete();
    }
    for (uint32_t i = 0; i < MESSAGES / BATCH; ++i) {
        for (uint32_t n = 0; n < BATCH; ++n) {
            instructions_send_unpublished();
        }
        (void)shmq_lane_publish(&w);
        instructions_append_batch();
        shmq_lane_release(&w, w.sequence);
    }
    struct shmq_cursor cursor = {0};
    uint64_t next = 0;
    while (next < MESSAGES) {
        next = instructions_receive_one(&cursor, next);
    }
    while (next < 2 * MESSAGES) {
        next = instructions_receive_batch(&cursor, next);
    }
    printf("%u\n", MESSAGES);
    fixture_close(f);
    return 0;
}
