/* core.c: the stages of one message in C, each alone and the first two side by side.
 *
 *   core stages SIZE COUNT   producer, append role and reader take turns in one thread: prints ns of each
 *   core pipe SIZE COUNT     a producer thread and an append thread, until the last message is appended
 *   core hop SIZE COUNT      one message at a time through both threads, each on a core of its own and spinning:
 *                            prints the median from before the send until the sender sees it committed
 *   core wake 0 COUNT        a futex wakes a thread on an idle core, each millisecond: prints the median
 *
 * Memory was touched before, as a broker's is; nothing sleeps, nothing is flushed. */
#define _GNU_SOURCE
#include "store_fixture.h"

#include <pthread.h>
#include <sched.h>

#define FILE_SIZE (64u << 20)
#define FILES 5u
#define BLOCKS 12288u
#define RING_SIZE (256u << 10)
#define COMPLETIONS 1024u
#define CHUNK_SIZE (8u << 20)
#define READ_BATCH 64u

static const char properties[] = "UNIQ_KEY\0010123456789ABCDEF0123456789ABCDEF\002";

static struct fixture *f;
static struct shmq_lane_writer w;
static uint32_t row, generation, size;
static uint64_t count;
static uint8_t *body;
static struct shmq_record record;
static uint64_t chunk_slots, sent;

static double now_ns(void)
{
    return (double)shmq_clock_ns(CLOCK_MONOTONIC);
}

/* 0 if there is no room now. */
static int put(void)
{
    if (record.kind == SHMQ_RECORD_LARGE) {
        if (w.sequence - w.completion_read >= chunk_slots) {
            return 0;
        }
        record.chunk_place = sent % chunk_slots * size;
        memcpy(f->chunk[0] + SHMQ_CHUNK_DATA_PLACE + record.chunk_place, body, size);
    }
    int64_t sequence = fixture_put_record(&w, &record, body, properties);
    sent += sequence >= 0;
    return sequence >= 0;
}

static void *append(void *ignored)
{
    (void)ignored;
    struct shmq_ladder ladder = {.policy = SHMQ_WAIT_ADAPTIVE};
    for (uint64_t taken = 0; taken < count;) {
        uint32_t now = shmq_turn_run(&f->append, 1700000000000, 1);
        taken += now;
        if (f->append.blocked != 0) {
            abort();
        }
        if (now != 0 || !shmq_ladder_climb(&ladder)) {
            ladder.step = 0;
        }
    }
    return NULL;
}

static void stages(void)
{
    double put_ns = 0;
    double append_ns = 0;
    for (uint64_t done = 0; done < count;) {
        double begin_ns = now_ns();
        uint64_t filled = 0;
        while (done + filled < count && put()) {
            ++filled;
        }
        (void)shmq_lane_publish(&w);
        double filled_ns = now_ns();
        for (uint64_t taken = 0; taken < filled;) {
            taken += shmq_turn_run(&f->append, 1700000000000, 1);
            if (f->append.blocked != 0) {
                abort();
            }
        }
        append_ns += now_ns() - filled_ns;
        put_ns += filled_ns - begin_ns;
        shmq_lane_release(&w, w.sequence);
        done += filled;
    }
    struct shmq_cursor cursor = {0};
    struct shmq_found found[READ_BATCH];
    uint64_t sum = 0;
    double begin_ns = now_ns();
    for (uint64_t next = 0; next < count;) {
        int got = shmq_consume_queue_read(f->arena, f->append.arena.block_count,
                                          shmq_control_queue_row(f->control, row), row, generation, next, READ_BATCH,
                                          &cursor, found);
        if (got <= 0) {
            abort();
        }
        for (int i = 0; i < got; ++i) {
            struct shmq_message_view view;
            const uint8_t *frame = shmq_commit_log_at(&f->append.log, found[i].physical_offset);
            if (shmq_message_parse(frame, found[i].size, &view) != SHMQ_OK || view.body_size != size) {
                abort();
            }
            sum += view.body[0];
        }
        next += (uint64_t)got;
    }
    double read_ns = now_ns() - begin_ns;
    double messages = (double)count;
    printf("{\"put\": %.2f, \"append\": %.2f, \"read\": %.2f, \"sum\": %llu}\n", put_ns / messages,
           append_ns / messages, read_ns / messages, (unsigned long long)sum);
}

static void pipe_through(void)
{
    pthread_t thread;
    struct shmq_ladder ladder = {.policy = SHMQ_WAIT_ADAPTIVE};
    double begin_ns = now_ns();
    if (pthread_create(&thread, NULL, append, NULL) != 0) {
        abort();
    }
    for (uint64_t done = 0; done < count;) {
        if (put()) {
            ++done;
            if (done % 16 == 0 || done == count || size >= 4096) {
                (void)shmq_lane_publish(&w);
            }
        } else {
            (void)shmq_lane_publish(&w);
            shmq_lane_release(&w, w.sequence);
            if (!shmq_ladder_climb(&ladder)) {
                ladder.step = 0;
            }
            continue;
        }
        ladder.step = 0;
    }
    pthread_join(thread, NULL);
    printf("{\"pipe\": %.2f}\n", (now_ns() - begin_ns) / (double)count);
}

/* ---- one at a time ------------------------------------------------------------------------------------------- */

static void pin(int core)
{
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    (void)sched_setaffinity(0, sizeof cores, &cores);
}

static int compare(const void *a, const void *b)
{
    double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

static void *append_spinning(void *ignored)
{
    (void)ignored;
    pin(1);
    for (uint64_t taken = 0; taken < count;) {
        taken += shmq_turn_run(&f->append, 1700000000000, 1);
    }
    return NULL;
}

static void hop(void)
{
    pthread_t thread;
    double *there_and_back_ns = fixture_private_memory(count * sizeof *there_and_back_ns);
    if (pthread_create(&thread, NULL, append_spinning, NULL) != 0) {
        abort();
    }
    pin(0);
    for (uint64_t i = 0; i < count; ++i) {
        /* acquire: pairs with the release in shmq_turn_publish */
        uint64_t before = shmq_load_acquire(&f->append.control->append.committed_position);
        double begin_ns = now_ns();
        if (!put()) {
            abort();
        }
        (void)shmq_lane_publish(&w);
        while (shmq_load_acquire(&f->append.control->append.committed_position) == before) { /* acquire: as above */
        }
        there_and_back_ns[i] = now_ns() - begin_ns;
        shmq_lane_release(&w, w.sequence);
    }
    pthread_join(thread, NULL);
    qsort(there_and_back_ns, count, sizeof *there_and_back_ns, compare);
    printf("{\"hop\": %.0f}\n", there_and_back_ns[count / 2]);
    free(there_and_back_ns);
}

/* ---- wake-ups ------------------------------------------------------------------------------------------------- */

static shmq_word32 word;
static shmq_word64 woken_at_ns;
static double *latencies_ns;

static void *sleeper(void *ignored)
{
    (void)ignored;
    pin(1);
    for (uint32_t seen = 0; seen < count; ++seen) {
        while (shmq_load_acquire32(&word) == seen) { /* acquire: pairs with the release in wake_up */
            shmq_futex_wait(&word, seen, 1000000000u);
        }
        latencies_ns[seen] = now_ns() - (double)shmq_load_relaxed(&woken_at_ns); /* relaxed: before the word */
    }
    return NULL;
}

static void wake_up(void)
{
    pthread_t thread;
    latencies_ns = fixture_private_memory(count * sizeof *latencies_ns);
    if (pthread_create(&thread, NULL, sleeper, NULL) != 0) {
        abort();
    }
    pin(0);
    struct timespec pause = {0, 1000000};
    for (uint32_t i = 0; i < count; ++i) {
        (void)nanosleep(&pause, NULL);
        shmq_store_relaxed(&woken_at_ns, shmq_clock_ns(CLOCK_MONOTONIC)); /* relaxed: the word releases it */
        shmq_store_release32(&word, i + 1);                              /* release: pairs with sleeper */
        shmq_futex_wake(&word);
    }
    pthread_join(thread, NULL);
    qsort(latencies_ns, count, sizeof *latencies_ns, compare);
    printf("{\"wake\": %.0f}\n", latencies_ns[count / 2]);
    free(latencies_ns);
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        return 2;
    }
    size = (uint32_t)strtoul(argv[2], NULL, 10);
    count = strtoull(argv[3], NULL, 10);
    if (strcmp(argv[1], "wake") == 0) {
        wake_up();
        return 0;
    }
    f = fixture_open(FILE_SIZE, FILES, BLOCKS);
    fixture_queue(f, "core", 0, 0, &row, &generation);
    fixture_attach(f, 0, 1, RING_SIZE, COMPLETIONS);
    record = fixture_record(row, generation, size, sizeof properties - 1, 0);
    if (record.size > shmq_record_size_max(RING_SIZE)) {
        fixture_chunk(f, 0, CHUNK_SIZE + SHMQ_CHUNK_DATA_PLACE);
        record.kind = SHMQ_RECORD_LARGE;
        record.size = shmq_record_size(0, sizeof properties - 1);
        chunk_slots = CHUNK_SIZE / size;
    }
    fixture_writer(f, 0, 0, &w);
    body = fixture_private_memory(size);
    memset(body, 'x', size);
    for (uint32_t i = 0; i < FILES; ++i) {
        memset(f->hot[i], 0, FILE_SIZE);
    }
    for (uint32_t block = 1; block < BLOCKS; ++block) {
        f->arena[(size_t)block * SHMQ_BLOCK_SIZE + SHMQ_BLOCK_SIZE - 1] = 0;
    }
    if (strcmp(argv[1], "pipe") == 0) {
        pipe_through();
    } else if (strcmp(argv[1], "hop") == 0) {
        hop();
    } else {
        stages();
    }
    fixture_close(f);
    return 0;
}
