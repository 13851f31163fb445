/* lane.c: Lane: the producer's side of one ring (ingress.h): encodes records into it, waits for room and for
 * completions. Any number of threads may share a lane: they fill one after the other and wait side by side.
 *
 * Nothing is written before everything is checked, and nothing is published before it is whole: a thread that
 * dies, or an exception, at any point before shmq_lane_publish has sent nothing. A completion that somebody wants
 * is marked in `kept` and its entry stays until it is fetched; all others are let go of when room is needed. */
#include "lane.h"

#include "arguments.h"
#include "completions.h"
#include "message_object.h"

#include "shmq/stats.h"

#include <errno.h>
#include <fcntl.h>

#define LANE_TIMEOUT_NS UINT64_C(3000000000) /* RocketMQ's sendMsgTimeout */
/* How long spin() looks before an event loop goes on with something else: a broker that is awake answers within. */
#define LANE_SPIN_NS UINT64_C(10000)
/* Bodies in the chunk memory that another lane's records hold up: that lane's bell is not ours to sleep on. */
#define LANE_CHUNK_SLICE_NS UINT64_C(1000000)

int shmq_lane_check(struct shmq_lane_object *self, const char *what)
{
    if (self->fork_count != shmq_fork_count) {
        return shmq_fork_check(self->fork_count, "a Lane");
    }
    if (self->closed) {
        shmq_raise("ClosedError", "%s: the lane is closed", what);
        return -1;
    }
    return 0;
}

/* ---- filling ------------------------------------------------------------------------------------------------- */

static inline uint64_t lane_mask(const struct shmq_lane_object *self)
{
    return self->writer.completion_capacity - 1;
}

static inline int lane_is_kept(const struct shmq_lane_object *self, uint64_t sequence)
{
    uint64_t at = sequence & lane_mask(self);
    return (self->kept[at / 64] >> (at % 64) & 1) != 0;
}

/* Lets go of the completions that are done, up to the first that somebody wants. */
static void lane_release(struct shmq_lane_object *self)
{
    struct shmq_lane_writer *writer = &self->writer;
    /* acquire: pairs with the release of done_tail in shmq_turn_publish / shmq_turn_settle */
    uint64_t done = shmq_load_acquire(&writer->slot->done_tail);
    uint64_t sequence = writer->completion_read;
    while (sequence < done && !lane_is_kept(self, sequence)) {
        sequence += 1;
    }
    shmq_lane_release(writer, sequence);
}

int shmq_lane_claim_now(struct shmq_lane_object *self, uint64_t body_size, uint32_t properties_size,
                        struct shmq_lane_place *place)
{
    struct shmq_lane_writer *writer = &self->writer;
    if (writer->sequence - writer->completion_read >= writer->completion_capacity) {
        lane_release(self);
    }
    uint32_t size_max = (uint32_t)shmq_record_size_max(writer->capacity);
    uint32_t size = shmq_record_size((uint32_t)body_size, properties_size);
    place->kind = SHMQ_RECORD_MESSAGE;
    place->chunk_place = 0;
    if (size > size_max) {
        size = shmq_record_size(0, properties_size);
        place->kind = SHMQ_RECORD_LARGE;
        if (size > size_max) {
            shmq_raise("PropertiesTooLargeError", "send: %u bytes of properties, the ring takes records of %u bytes",
                       properties_size, size_max);
            return 1;
        }
        if (self->chunk == NULL) {
            return SHMQ_TOO_LARGE;
        }
    }
    int status = shmq_lane_claim(writer, size, &place->record);
    if (status != SHMQ_OK) {
        return status;
    }
    place->body = place->record + sizeof(struct shmq_record);
    if (place->kind == SHMQ_RECORD_LARGE) {
        status = shmq_chunk_claim(self->chunk, body_size, &place->chunk_ticket, &place->chunk_place);
        if (status == SHMQ_TOO_LARGE) {
            shmq_raise("MessageTooLargeError", "send: a body of %llu bytes, the chunk memory has %llu",
                       (unsigned long long)body_size, (unsigned long long)self->chunk->capacity);
            return 1;
        }
        if (status == SHMQ_OK) {
            place->body = shmq_chunk_at(self->chunk, place->chunk_place);
            place->chunk = self->chunk;
        }
    }
    return status;
}

uint64_t shmq_lane_write(struct shmq_lane_object *self, const struct shmq_lane_record *record,
                         const struct shmq_lane_place *place, uint64_t now_ns)
{
    uint64_t now_ms = now_ns / 1000000u;
    uint32_t inline_size = place->kind == SHMQ_RECORD_LARGE ? 0 : (uint32_t)record->body_size;
    uint32_t properties_size = shmq_lane_properties_size(record);
    uint32_t size = shmq_record_size(inline_size, properties_size);
    struct shmq_record *head = (struct shmq_record *)(void *)place->record;
    *head = (struct shmq_record){
        .size = size,
        .kind = (uint16_t)place->kind,
        .flags = record->is_waiting ? SHMQ_RECORD_WAIT : 0,
        .queue_row = record->queue_row,
        .row_generation = record->row_generation,
        .flag = record->flag,
        .born_timestamp = (int64_t)now_ms,
        .body_size = (uint32_t)record->body_size,
        .properties_size = properties_size,
        .delay_level = (uint16_t)record->delay_level,
        .chunk_place = place->chunk_place,
    };
    if (self->is_service) {
        head->service_index = (uint16_t)self->service.service_index;
        head->progress = self->service.progress;
        head->sys_flag = self->service.sys_flag;
        head->reconsume_times = self->service.reconsume_times;
        if (self->service.born_timestamp != 0) {
            head->born_timestamp = self->service.born_timestamp;
        }
    }
    uint8_t *at = place->record + sizeof *head + inline_size;
    uint64_t id = SHMQ_UNIQUE_KEY_CUSTOM;
    if (!record->has_unique_key) {
        id = shmq_unique_keys_put(&self->unique_keys, now_ms, at);
        at += SHMQ_UNIQUE_PROPERTY_SIZE;
    }
    if (record->properties_size != 0) {
        memcpy(at, record->properties, record->properties_size);
    }
    uint64_t sequence = shmq_lane_commit(&self->writer, size);
    uint64_t index = sequence & lane_mask(self);
    self->ids[index] = id;
    self->kept[index / 64] &= ~(UINT64_C(1) << (index % 64));
    self->kept[index / 64] |= (uint64_t)(record->is_kept != 0) << (index % 64);
    self->put_ns[index] = now_ns;
    if (place->kind == SHMQ_RECORD_LARGE) {
        shmq_chunk_commit(self->chunk, place->chunk_ticket, self->lane, sequence);
    }
    return sequence;
}

/* ---- turns of threads, and waiting for room -------------------------------------------------------------------- */

static void lane_hold(struct shmq_lane_object *self, struct shmq_mapping **held)
{
    held[0] = shmq_mapping_hold(self->control);
    held[1] = shmq_mapping_hold(self->completion);
    held[2] = shmq_mapping_hold(self->ingress);
    held[3] = self->chunk == NULL ? NULL : shmq_mapping_hold(self->chunk->memory);
}

static void lane_drop(struct shmq_mapping **held)
{
    for (int i = 0; i < 4; ++i) {
        shmq_mapping_drop(held[i]);
        held[i] = NULL;
    }
}

int shmq_lane_enter(struct shmq_lane_object *self, struct shmq_wait *wait)
{
    unsigned long thread = PyThread_get_thread_ident();
    while (self->busy) { /* bounded by the deadline */
        if (self->busy_thread == thread) {
            PyErr_SetString(PyExc_RuntimeError,
                            "send: this thread is amid a loan or a send of this lane; commit or abort it first");
            return 1;
        }
        if (wait->timeout_ns == 0) {
            return SHMQ_FULL;
        }
        uint64_t deadline_ns = shmq_wait_deadline(wait);
        uint64_t now_ns = shmq_clock_ns(CLOCK_MONOTONIC);
        if (now_ns >= deadline_ns) {
            return SHMQ_TIMED_OUT;
        }
        uint64_t left_ns = deadline_ns - now_ns;
        /* relaxed: changed with the GIL only */
        uint32_t seen = shmq_load_relaxed32(&self->busy_bell);
        self->busy_waiters += 1;
        Py_BEGIN_ALLOW_THREADS
        shmq_futex_wait(&self->busy_bell, seen, left_ns < SHMQ_SLEEP_SLICE_NS ? left_ns : SHMQ_SLEEP_SLICE_NS);
        Py_END_ALLOW_THREADS
        self->busy_waiters -= 1;
        if (PyErr_CheckSignals() < 0 || shmq_lane_check(self, "send") < 0) {
            return 1;
        }
    }
    self->busy = 1;
    self->busy_thread = thread;
    lane_hold(self, self->held);
    self->held_chunk = (struct shmq_chunk *)Py_XNewRef((PyObject *)self->chunk);
    return SHMQ_OK;
}

void shmq_lane_leave(struct shmq_lane_object *self)
{
    self->busy = 0;
    shmq_store_relaxed32(&self->busy_bell, shmq_load_relaxed32(&self->busy_bell) + 1); /* relaxed: as above */
    if (self->busy_waiters != 0) {
        shmq_futex_wake(&self->busy_bell);
    }
    lane_drop(self->held);
    Py_CLEAR(self->held_chunk);
}

/* How far things were when a thread began to wait for them to go on; looked at again without the GIL. */
struct lane_progress {
    struct shmq_lane_writer view; /* only what is the broker's */
    const shmq_word32 *changes;
    uint64_t read_position;
    uint64_t done;
    uint32_t changes_seen;
};

/* To be taken before the look that fails, so that nothing between the two is missed. */
static void lane_progress_begin(const struct shmq_lane_object *self, struct lane_progress *progress)
{
    progress->view = self->writer;
    progress->changes = &self->changes;
    /* relaxed: only compared */
    progress->read_position = shmq_load_relaxed(&self->writer.slot->read_position);
    progress->done = shmq_load_relaxed(&self->writer.slot->done_tail);
    progress->changes_seen = shmq_load_relaxed32(&self->changes); /* relaxed: changed with the GIL only */
}

static int lane_progress_is_over(void *what)
{
    const struct lane_progress *progress = what;
    /* acquire: pairs with the releases in shmq_turn_publish, shmq_turn_settle and shmq_ring_end, and of changes in
     * lane_change; what they announce is read after this */
    return shmq_load_acquire(&progress->view.slot->read_position) != progress->read_position ||
           shmq_load_acquire(&progress->view.slot->done_tail) != progress->done ||
           shmq_lane_ended(&progress->view) != 0 ||
           shmq_load_acquire32(progress->changes) != progress->changes_seen;
}

/* One round of waiting without the GIL, on memory that stays mapped meanwhile. */
static void lane_sleep(struct shmq_lane_object *self, int for_space, uint64_t until_ns, struct shmq_wait *wait,
                       int (*is_over)(void *), void *what)
{
    struct shmq_sleep sleep = {
        .bell = self->writer.bell,
        .sleep_epoch = &self->writer.lane->sleep_epoch,
        .sleep_reason = &self->writer.lane->sleep_reason,
        .for_space = for_space,
        .until_ns = until_ns,
        .is_over = is_over,
        .what = what,
        .is_quiet = wait->is_quiet,
    };
    struct shmq_mapping *held[4];
    lane_hold(self, held);
    Py_BEGIN_ALLOW_THREADS
    shmq_sleepers_round(&self->sleepers, &sleep, self->policy);
    Py_END_ALLOW_THREADS
    wait->is_quiet = sleep.is_quiet;
    lane_drop(held);
}

/* Why there is no room: 0, or a status that more waiting does not cure. */
static int lane_no_room(const struct shmq_lane_object *self, int *store_status)
{
    const struct shmq_control *control = (const struct shmq_control *)(const void *)self->control->base;
    /* acquire: pairs with the release in the appender's set_status */
    *store_status = -(int)shmq_load_acquire32(&control->append.store_status);
    if (shmq_lane_ended(&self->writer) != 0) {
        return SHMQ_CLOSED;
    }
    return *store_status == SHMQ_FLUSH_FAILED ? SHMQ_FLUSH_FAILED : 0;
}

int shmq_lane_claim_wait(struct shmq_lane_object *self, uint64_t body_size, uint32_t properties_size,
                         struct shmq_wait *wait, struct shmq_lane_place *place)
{
    uint64_t is_first = 1;
    for (;;) { /* bounded by the deadline */
        struct lane_progress progress;
        lane_progress_begin(self, &progress);
        int status = shmq_lane_claim_now(self, body_size, properties_size, place);
        if (status != SHMQ_FULL) {
            return status;
        }
        shmq_stats_add(&self->writer.lane->full_count, is_first);
        is_first = 0;
        int store_status;
        status = lane_no_room(self, &store_status);
        if (status != 0 || wait->timeout_ns == 0) {
            return status != 0 ? status : SHMQ_FULL;
        }
        uint64_t deadline_ns = shmq_wait_deadline(wait);
        uint64_t now_ns = shmq_clock_ns(CLOCK_MONOTONIC);
        if (now_ns >= deadline_ns) {
            return store_status != 0 ? store_status : SHMQ_TIMED_OUT;
        }
        uint64_t until_ns = deadline_ns;
        if (self->chunk != NULL && shmq_chunk_is_foreign(self->chunk, self->lane) &&
            now_ns + LANE_CHUNK_SLICE_NS < deadline_ns) {
            until_ns = now_ns + LANE_CHUNK_SLICE_NS;
        }
        lane_sleep(self, 1, until_ns, wait, lane_progress_is_over, &progress);
        if (PyErr_CheckSignals() < 0 || shmq_lane_check(self, "send") < 0) {
            return 1;
        }
    }
}

int shmq_lane_put(struct shmq_lane_object *self, const struct shmq_lane_record *record, struct shmq_wait *wait,
                  uint64_t *sequence)
{
    uint32_t properties_size = shmq_lane_properties_size(record);
    struct shmq_lane_place place;
    int is_ours = 0;
    int status = self->busy || record->body_size >= SHMQ_GIL_COPY_SIZE
                     ? SHMQ_FULL
                     : shmq_lane_claim_now(self, record->body_size, properties_size, &place);
    if (status == SHMQ_FULL) {
        status = shmq_lane_enter(self, wait);
        is_ours = status == SHMQ_OK;
        if (is_ours) {
            status = shmq_lane_claim_wait(self, record->body_size, properties_size, wait, &place);
        }
    }
    if (status == SHMQ_OK && record->body_size >= SHMQ_GIL_COPY_SIZE) {
        Py_BEGIN_ALLOW_THREADS
        memcpy(place.body, record->body, record->body_size);
        Py_END_ALLOW_THREADS
        if (shmq_lane_check(self, "send") < 0) { /* closed meanwhile: nothing was published */
            status = 1;
            if (place.kind == SHMQ_RECORD_LARGE) {
                shmq_chunk_abort(place.chunk, place.chunk_ticket);
            }
        }
    } else if (status == SHMQ_OK) {
        memcpy(place.body, record->body, record->body_size);
    }
    if (status == SHMQ_OK) {
        *sequence = shmq_lane_write(self, record, &place, shmq_clock_ns(CLOCK_REALTIME));
        (void)shmq_lane_publish(&self->writer);
    }
    if (is_ours) {
        shmq_lane_leave(self);
    }
    return status;
}

/* ---- completions ------------------------------------------------------------------------------------------------ */

/* Something that waiters must get up for and that the broker does not announce. With the GIL. */
static void lane_change(struct shmq_lane_object *self, const struct shmq_bell_line *bell)
{
    /* release: pairs with the acquire in lane_progress_is_over and lane_done_is_over */
    shmq_store_release32(&self->changes, shmq_load_relaxed32(&self->changes) + 1);
    shmq_sleepers_kick(&self->sleepers, bell);
}

/* Nobody will fetch this completion (any more). */
static void lane_forget(struct shmq_lane_object *self, uint64_t sequence)
{
    uint64_t index = sequence & lane_mask(self);
    if (sequence < self->writer.completion_read) {
        return; /* another thread fetched it meanwhile, and the bit may be a later record's */
    }
    self->kept[index / 64] &= ~(UINT64_C(1) << (index % 64));
    if (self->writer.sequence - self->writer.completion_read >= self->writer.completion_capacity) {
        lane_change(self, self->writer.bell); /* somebody may wait for just this entry */
    }
}

/* Somebody has this completion, or knows that it never comes. With the GIL; OK: the lane is open. By the wall clock,
 * which is read for born_timestamp anyway: where it steps, some sends count in a bucket that is not theirs. */
static void lane_fetched_at(struct shmq_lane_object *self, uint64_t sequence, int status, uint64_t now_ns)
{
    if (status == SHMQ_OK) {
        uint64_t since_ns = self->put_ns[sequence & lane_mask(self)];
        shmq_latency_add(self->latency, now_ns > since_ns ? now_ns - since_ns : 0);
    }
    lane_forget(self, sequence);
}

static void lane_fetched(struct shmq_lane_object *self, uint64_t sequence, int status)
{
    lane_fetched_at(self, sequence, status, shmq_clock_ns(CLOCK_REALTIME));
}

/* What a thread that waits for a completion looks at without the GIL. */
struct lane_done {
    struct shmq_lane_writer view; /* only what shmq_lane_completion reads */
    const shmq_word32 *changes;
    uint64_t sequence;
    struct shmq_completion completion;
    uint32_t changes_seen;
    int status;
};

/* shmq_lane_completion, and CLOSED, too, for what was appended and whose level nobody will report any more. */
static int lane_completion(const struct shmq_lane_writer *writer, uint64_t sequence, struct shmq_completion *out)
{
    int status = shmq_lane_completion(writer, sequence, out);
    if (status == SHMQ_EMPTY && shmq_lane_ended(writer) == (uint32_t)-SHMQ_CLOSED) {
        status = shmq_lane_completion(writer, sequence, out); /* it may have come right before the end */
        return status == SHMQ_EMPTY ? SHMQ_CLOSED : status;
    }
    return status;
}

static int lane_done_is_over(void *what)
{
    struct lane_done *done = what;
    done->status = lane_completion(&done->view, done->sequence, &done->completion);
    /* acquire: pairs with the release in lane_change */
    return done->status != SHMQ_EMPTY || shmq_load_acquire32(done->changes) != done->changes_seen;
}

/* True once the disk has refused: no completion comes any more. A successor may still append what was sent. */
static int lane_store_failed(const struct shmq_lane_object *self)
{
    int store_status;
    return lane_no_room(self, &store_status) == SHMQ_FLUSH_FAILED;
}

/* The completion of `sequence` in *out: OK; TIMED_OUT: its fate is not known yet; CLOSED: the session has ended and
 * it will never be; FLUSH_FAILED: nor will it here, the disk has refused; CORRUPT; 1 with an exception. */
static int lane_wait_done(struct shmq_lane_object *self, uint64_t sequence, struct shmq_wait *wait,
                          struct shmq_completion *out)
{
    int status = lane_completion(&self->writer, sequence, out);
    while (status == SHMQ_EMPTY) { /* bounded by the deadline */
        if (lane_store_failed(self)) {
            return SHMQ_FLUSH_FAILED;
        }
        if (wait->timeout_ns == 0 || shmq_clock_ns(CLOCK_MONOTONIC) >= shmq_wait_deadline(wait)) {
            return SHMQ_TIMED_OUT;
        }
        struct lane_done done = {
            .view = self->writer,
            .changes = &self->changes,
            .sequence = sequence,
            .changes_seen = shmq_load_relaxed32(&self->changes), /* relaxed: changed with the GIL only */
        };
        lane_sleep(self, 0, shmq_wait_deadline(wait), wait, lane_done_is_over, &done);
        if (PyErr_CheckSignals() < 0) {
            return 1;
        }
        if (self->closed) {
            return SHMQ_CLOSED; /* by another thread: the memory is gone, and with it what it would have said */
        }
        status = lane_completion(&self->writer, sequence, out);
    }
    return status;
}

/* What became of a message whose completion is there. */
static int completion_status(const struct shmq_completion *completion)
{
    return completion->status != 0 ? -(int)completion->status : -(int)completion->final_status;
}

/* (status, queue_offset, physical_offset, size) */
static PyObject *completion_tuple(int status, const struct shmq_completion *completion)
{
    if (status == SHMQ_OK) {
        status = completion_status(completion);
        if (completion->status == 0) {
            return Py_BuildValue("(iKKI)", status, (unsigned long long)completion->queue_offset,
                                 (unsigned long long)completion->physical_offset, completion->size);
        }
    }
    return Py_BuildValue("(iiiI)", status, -1, -1, 0u);
}

static int lane_check_kept(struct shmq_lane_object *self, uint64_t sequence, const char *what)
{
    if (sequence >= self->writer.sequence || sequence < self->writer.completion_read ||
        !lane_is_kept(self, sequence)) {
        PyErr_Format(PyExc_ValueError, "%s of %llu: it was not put with keep=True, or it was taken", what,
                     (unsigned long long)sequence);
        return -1;
    }
    return 0;
}

static int lane_sequence(struct shmq_lane_object *self, PyObject *object, const char *what, uint64_t *sequence)
{
    if (shmq_lane_check(self, what) < 0 || shmq_argument_u64(object, "sequence", sequence) < 0) {
        return -1;
    }
    return lane_check_kept(self, *sequence, what);
}

static PyObject *lane_wait(struct shmq_lane_object *self, PyObject *const *args, Py_ssize_t nargs,
                           PyObject *kwnames)
{
    static const char *const names[] = {"sequence", "timeout", NULL};
    PyObject *given[2];
    uint64_t sequence;
    struct shmq_wait wait = {.timeout_ns = LANE_TIMEOUT_NS};
    if (shmq_arguments("wait", names, 1, args, nargs, kwnames, given) < 0 ||
        lane_sequence(self, given[0], "wait for the completion", &sequence) < 0 ||
        shmq_argument_timeout(given[1], &wait.timeout_ns) < 0) {
        return NULL;
    }
    struct shmq_completion completion;
    int status = lane_wait_done(self, sequence, &wait, &completion);
    if (status > 0 || (status == SHMQ_CLOSED && shmq_lane_check(self, "wait for a completion") < 0)) {
        return NULL;
    }
    if (status != SHMQ_TIMED_OUT) {
        lane_fetched(self, sequence, status);
    }
    return completion_tuple(status, &completion);
}

static PyObject *lane_take(struct shmq_lane_object *self, PyObject *argument)
{
    uint64_t sequence;
    if (lane_sequence(self, argument, "take the completion", &sequence) < 0) {
        return NULL;
    }
    struct shmq_completion completion;
    int status = lane_completion(&self->writer, sequence, &completion);
    if (status == SHMQ_EMPTY) {
        Py_RETURN_NONE;
    }
    lane_fetched(self, sequence, status);
    return completion_tuple(status, &completion);
}

/* ---- event loops ------------------------------------------------------------------------------------------------ */

static struct shmq_sleep lane_bed(struct shmq_lane_object *self, int for_space)
{
    return (struct shmq_sleep){.sleep_epoch = &self->writer.lane->sleep_epoch,
                               .sleep_reason = &self->writer.lane->sleep_reason,
                               .for_space = for_space};
}

static PyObject *lane_arm(struct shmq_lane_object *self, PyObject *argument)
{
    int for_space = PyObject_IsTrue(argument);
    if (for_space < 0 || shmq_lane_check(self, "arm") < 0) {
        return NULL;
    }
    struct shmq_sleep sleep = lane_bed(self, for_space);
    shmq_sleepers_arm(&self->sleepers, &sleep, &self->armed);
    Py_RETURN_NONE;
}

static PyObject *lane_disarm(struct shmq_lane_object *self, PyObject *ignored)
{
    (void)ignored;
    if (!self->closed && shmq_fork_check(self->fork_count, "a Lane") == 0) {
        struct shmq_sleep sleep = lane_bed(self, 0);
        shmq_sleepers_disarm(&self->sleepers, &sleep, &self->armed);
    }
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* What wait() gives, if it is there within a few microseconds; else None. */
static PyObject *lane_spin(struct shmq_lane_object *self, PyObject *argument)
{
    uint64_t sequence;
    if (lane_sequence(self, argument, "spin for the completion", &sequence) < 0) {
        return NULL;
    }
    struct shmq_completion completion;
    int status = lane_completion(&self->writer, sequence, &completion);
    if (status == SHMQ_EMPTY) {
        struct shmq_mapping *held[4];
        lane_hold(self, held);
        struct shmq_lane_writer view = self->writer;
        Py_BEGIN_ALLOW_THREADS
        uint64_t until_ns = shmq_clock_ns(CLOCK_MONOTONIC) + LANE_SPIN_NS;
        do { /* bounded by the clock */
            for (uint32_t i = 0; i < SHMQ_LADDER_PAUSES && status == SHMQ_EMPTY; ++i) {
                shmq_cpu_relax();
                status = lane_completion(&view, sequence, &completion);
            }
            if (status == SHMQ_EMPTY) {
                sched_yield();
            }
        } while (status == SHMQ_EMPTY && shmq_clock_ns(CLOCK_MONOTONIC) < until_ns);
        Py_END_ALLOW_THREADS
        lane_drop(held);
        if (shmq_lane_check(self, "spin for the completion") < 0) {
            return NULL;
        }
    }
    if (status == SHMQ_EMPTY) {
        Py_RETURN_NONE;
    }
    lane_fetched(self, sequence, status);
    return completion_tuple(status, &completion);
}

/* wait_many: what is there when the time is up. The keys are read first: a lane that is closed meanwhile has none. */
static PyObject *lane_wait_many(struct shmq_lane_object *self, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *kwnames)
{
    static const char *const names[] = {"first_sequence", "count", "timeout", NULL};
    PyObject *given[3];
    uint64_t first;
    uint32_t count;
    struct shmq_wait wait = {.timeout_ns = LANE_TIMEOUT_NS};
    if (shmq_arguments("wait_many", names, 2, args, nargs, kwnames, given) < 0 ||
        shmq_argument_u32(given[1], "count", &count) < 0 ||
        shmq_argument_timeout(given[2], &wait.timeout_ns) < 0 || shmq_lane_check(self, "wait_many") < 0 ||
        shmq_argument_u64(given[0], "first_sequence", &first) < 0) {
        return NULL;
    }
    /* Both ends: so there are no more of them than the lane keeps. */
    if (count != 0 && (lane_check_kept(self, first, "wait for the completion") < 0 ||
                       lane_check_kept(self, first + count - 1, "wait for the completion") < 0)) {
        return NULL;
    }
    struct shmq_completions *found = shmq_completions_new(self->module, &self->unique_keys, count);
    if (found == NULL) {
        return NULL;
    }
    for (uint32_t i = 0; i < count; ++i) {
        found->rows[i].id = self->ids[(first + i) & lane_mask(self)];
    }
    uint64_t now_ns = 0; /* of the last look that found one there: what is there with it came by then */
    for (uint32_t i = 0; i < count; ++i) {
        struct shmq_completion completion = {0};
        int status = SHMQ_CLOSED;
        if (!self->closed) {
            status = lane_check_kept(self, first + i, "wait for the completion") < 0
                         ? 1
                         : lane_completion(&self->writer, first + i, &completion);
        }
        if (status == SHMQ_EMPTY) {
            now_ns = 0;
            status = lane_wait_done(self, first + i, &wait, &completion);
        }
        if (status > 0) {
            Py_DECREF(found);
            return NULL;
        }
        if (status == SHMQ_TIMED_OUT) {
            break;
        }
        if (!self->closed) {
            now_ns = now_ns != 0 ? now_ns : shmq_clock_ns(CLOCK_REALTIME);
            lane_fetched_at(self, first + i, status, now_ns);
        }
        found->rows[i].status = status == SHMQ_OK ? completion_status(&completion) : status;
        found->rows[i].queue_offset =
            status == SHMQ_OK && completion.status == 0 ? (int64_t)completion.queue_offset : -1;
        found->count = (Py_ssize_t)i + 1;
    }
    return (PyObject *)found;
}

static PyObject *lane_forget_completion(struct shmq_lane_object *self, PyObject *argument)
{
    uint64_t sequence;
    if (lane_sequence(self, argument, "forget the completion", &sequence) < 0) {
        return NULL;
    }
    lane_forget(self, sequence);
    Py_RETURN_NONE;
}

static PyObject *lane_set_service(struct shmq_lane_object *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"progress", "sys_flag", "reconsume_times", "born_timestamp", "service_index", NULL};
    unsigned long long progress = 0;
    unsigned int service_index = 0;
    int sys_flag = 0;
    int reconsume_times = 0;
    long long born_timestamp = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$KiiLI:set_service", names, &progress, &sys_flag,
                                     &reconsume_times, &born_timestamp, &service_index) ||
        shmq_lane_check(self, "set_service") < 0) {
        return NULL;
    }
    if (!self->is_service) {
        shmq_raise("PermissionDeniedError", "set_service: session %u is a client's, not a service's", self->session);
        return NULL;
    }
    if (service_index >= SHMQ_SERVICE_MAX) {
        PyErr_Format(PyExc_ValueError, "service_index: %u, want less than %u", service_index, SHMQ_SERVICE_MAX);
        return NULL;
    }
    self->service = (struct shmq_lane_service){progress, born_timestamp, sys_flag, reconsume_times, service_index};
    Py_RETURN_NONE;
}

/* drain: waits until all that was put is done. */
static PyObject *lane_drain(struct shmq_lane_object *self, PyObject *const *args, Py_ssize_t nargs,
                            PyObject *kwnames)
{
    static const char *const names[] = {"timeout", NULL};
    PyObject *given[1];
    struct shmq_wait wait = {.timeout_ns = LANE_TIMEOUT_NS};
    if (shmq_arguments("drain", names, 0, args, nargs, kwnames, given) < 0 ||
        shmq_lane_check(self, "drain") < 0 || shmq_argument_timeout(given[0], &wait.timeout_ns) < 0) {
        return NULL;
    }
    uint64_t end = self->writer.sequence;
    for (;;) { /* bounded by the deadline */
        struct lane_progress progress;
        lane_progress_begin(self, &progress);
        uint32_t ended = shmq_lane_ended(&self->writer);
        if (progress.done >= end && ended != (uint32_t)-SHMQ_CLOSED) {
            return PyLong_FromLong(SHMQ_OK);
        }
        if (ended != 0) {
            return PyLong_FromLong(SHMQ_CLOSED);
        }
        if (lane_store_failed(self)) {
            return PyLong_FromLong(SHMQ_FLUSH_FAILED);
        }
        if (wait.timeout_ns == 0 || shmq_clock_ns(CLOCK_MONOTONIC) >= shmq_wait_deadline(&wait)) {
            return PyLong_FromLong(SHMQ_TIMED_OUT);
        }
        lane_sleep(self, 0, shmq_wait_deadline(&wait), &wait, lane_progress_is_over, &progress);
        if (PyErr_CheckSignals() < 0 || shmq_lane_check(self, "drain") < 0) {
            return NULL;
        }
    }
}

/* ---- put and send ------------------------------------------------------------------------------------------------ */

static const char *const lane_put_names[] = {"row", "generation", "body",    "tag",  "keys", "properties",
                                             "flag", "wait",       "timeout", "keep", NULL};
static const char *const lane_send_names[] = {"row", "generation", "body", "tag", "keys", "properties",
                                              "flag", "wait", "timeout", NULL};

int shmq_lane_check_size(const struct shmq_lane_object *self, uint64_t body_size)
{
    if (body_size > self->message_size_max) {
        shmq_raise("MessageTooLargeError", "send: a body of %llu bytes, the broker takes %u (maxMessageSize)",
                   (unsigned long long)body_size, self->message_size_max);
        return -1;
    }
    return 0;
}

int shmq_lane_call_begin(struct shmq_lane_object *self, PyObject *const *given, struct shmq_lane_call *call)
{
    struct shmq_lane_record *record = &call->record;
    record->flag = 0;
    record->is_waiting = 1;
    record->is_kept = 0;
    call->wait.timeout_ns = LANE_TIMEOUT_NS;
    call->wait.deadline_ns = 0;
    call->wait.is_quiet = 0;
    if (given[SHMQ_LANE_FLAG] != NULL) {
        long flag = PyLong_AsLong(given[SHMQ_LANE_FLAG]);
        if (flag < INT32_MIN || flag > INT32_MAX) {
            PyErr_Format(PyExc_ValueError, "flag: want a 32-bit integer, got %R", given[SHMQ_LANE_FLAG]);
        }
        record->flag = (int32_t)flag;
        if (PyErr_Occurred()) {
            return -1;
        }
    }
    call->parts = (struct shmq_property_parts){
        .tag = given[SHMQ_LANE_TAG],
        .keys = given[SHMQ_LANE_KEYS],
        .properties = given[SHMQ_LANE_PROPERTIES],
        .grants = self->property_grants,
    };
    if (shmq_argument_u32(given[SHMQ_LANE_ROW], "row", &record->queue_row) < 0 ||
        shmq_argument_u32(given[SHMQ_LANE_GENERATION], "generation", &record->row_generation) < 0 ||
        shmq_argument_bool(given[SHMQ_LANE_WAIT], &record->is_waiting) < 0 ||
        shmq_argument_timeout(given[SHMQ_LANE_TIMEOUT], &call->wait.timeout_ns) < 0 ||
        shmq_argument_bool(given[SHMQ_LANE_KEEP], &record->is_kept) < 0) {
        return -1;
    }
    return 0;
}

int shmq_lane_call_properties(struct shmq_lane_call *call)
{
    struct shmq_lane_record *record = &call->record;
    record->properties_size = 0;
    record->has_unique_key = 0;
    record->delay_level = 0;
    if (!shmq_property_parts_empty(&call->parts)) {
        if (shmq_properties_encode(&call->parts, &call->encoded) < 0) {
            return -1;
        }
        record->properties = call->encoded.bytes;
        record->properties_size = call->encoded.size;
        record->has_unique_key = call->encoded.has_unique_key;
        record->delay_level = call->encoded.delay_level;
    }
    return 0;
}

/* A Message brings its own properties and flag. */
static int lane_call_message(struct shmq_lane_call *call, PyObject *const *given)
{
    const struct shmq_draft *draft = ((struct shmq_message_object *)given[SHMQ_LANE_BODY])->draft;
    if (draft == NULL) {
        shmq_raise("BodyTypeError",
                   "send: a received Message; send its body, or make Message(topic, received.body, ...)");
        return -1;
    }
    if (!shmq_property_parts_empty(&call->parts) || given[SHMQ_LANE_FLAG] != NULL) {
        PyErr_SetString(PyExc_TypeError, "send: a Message brings its own tag, keys, properties and flag");
        return -1;
    }
    call->record.body = draft->body.data;
    call->record.body_size = draft->body.size;
    call->record.flag = draft->flag;
    call->record.properties = (const uint8_t *)PyBytes_AS_STRING(draft->properties);
    call->record.properties_size = (uint32_t)PyBytes_GET_SIZE(draft->properties);
    call->record.has_unique_key = draft->has_unique_key;
    call->record.delay_level = draft->delay_level;
    return 0;
}

/* Checks and sends what `given` says. Status, or 1 with an exception. */
static int lane_call_put(struct shmq_lane_object *self, PyObject *const *given, struct shmq_lane_call *call,
                         uint64_t *sequence)
{
    if (shmq_lane_check(self, "send") < 0 || shmq_lane_call_begin(self, given, call) < 0) {
        return 1;
    }
    struct shmq_body body;
    int is_message = Py_IS_TYPE(given[SHMQ_LANE_BODY], self->module->message_type);
    if (is_message) {
        if (lane_call_message(call, given) < 0 || shmq_lane_check_size(self, call->record.body_size) < 0) {
            return 1;
        }
        return shmq_lane_put(self, &call->record, &call->wait, sequence);
    }
    if (shmq_body_get(self->module, given[SHMQ_LANE_BODY], &body) < 0) {
        return 1;
    }
    call->parts.dtype = body.dtype;
    call->parts.shape = body.shape;
    call->record.body = body.data;
    call->record.body_size = body.size;
    int status = 1;
    /* Looking at the body may have run code that closed the lane. */
    if (shmq_lane_check_size(self, body.size) == 0 && shmq_lane_call_properties(call) == 0 &&
        shmq_lane_check(self, "send") == 0) {
        status = shmq_lane_put(self, &call->record, &call->wait, sequence);
    }
    shmq_body_release(&body);
    return status;
}

/* put: a sequence, or a negative status and nothing was sent. */
static PyObject *lane_put(struct shmq_lane_object *self, PyObject *const *args, Py_ssize_t nargs,
                          PyObject *kwnames)
{
    PyObject *given[SHMQ_LANE_ARGUMENTS];
    struct shmq_lane_call call;
    uint64_t sequence = 0;
    if (shmq_arguments("put", lane_put_names, 3, args, nargs, kwnames, given) < 0) {
        return NULL;
    }
    int status = lane_call_put(self, given, &call, &sequence);
    if (status > 0) {
        return NULL;
    }
    return status == SHMQ_OK ? PyLong_FromUnsignedLongLong(sequence) : PyLong_FromLong(status);
}

int shmq_lane_put_now(struct shmq_lane_object *self, PyObject *const *given)
{
    struct shmq_lane_call call;
    uint64_t sequence;
    int status = self->closed ? SHMQ_CLOSED : lane_call_put(self, given, &call, &sequence);
    if (status > 0 && self->closed && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear(); /* looking at the body has closed it; whoever sends by another lane finds what else is wrong */
        status = SHMQ_CLOSED;
    }
    return status;
}

/* send: put, then the wait for its completion within the same timeout. */
static PyObject *lane_send(struct shmq_lane_object *self, PyObject *const *args, Py_ssize_t nargs,
                           PyObject *kwnames)
{
    PyObject *given[SHMQ_LANE_ARGUMENTS];
    struct shmq_lane_call call;
    uint64_t sequence = 0;
    given[SHMQ_LANE_KEEP] = Py_True;
    if (shmq_arguments("send", lane_send_names, 3, args, nargs, kwnames, given) < 0) {
        return NULL;
    }
    int status = lane_call_put(self, given, &call, &sequence);
    if (status > 0) {
        return NULL;
    }
    if (status != SHMQ_OK) {
        return Py_BuildValue("(iiiiIO)", status, -1, -1, -1, 0u, Py_None);
    }
    PyObject *key;
    if (!call.record.has_unique_key) {
        key = shmq_unique_key_text(&self->unique_keys, self->ids[sequence & lane_mask(self)]);
    } else {
        key = shmq_properties_get(call.record.properties, call.record.properties_size, "UNIQ_KEY");
    }
    struct shmq_completion completion = {0};
    status = key == NULL ? 1 : lane_wait_done(self, sequence, &call.wait, &completion);
    if (!self->closed) {
        lane_fetched(self, sequence, status);
    }
    PyObject *result = NULL;
    if (status == SHMQ_OK && completion.status == 0) {
        result = Py_BuildValue("(iKKKIO)", completion_status(&completion), (unsigned long long)sequence,
                               (unsigned long long)completion.queue_offset,
                               (unsigned long long)completion.physical_offset, completion.size, key);
    } else if (status <= 0) {
        status = status == SHMQ_OK ? completion_status(&completion) : status;
        result = Py_BuildValue("(iKiiIO)", status, (unsigned long long)sequence, -1, -1, 0u, key);
    }
    Py_XDECREF(key);
    return result;
}

static PyObject *lane_unique_key(struct shmq_lane_object *self, PyObject *argument)
{
    uint64_t sequence;
    if (shmq_lane_check(self, "unique_key") < 0 || shmq_argument_u64(argument, "sequence", &sequence) < 0) {
        return NULL;
    }
    if (sequence >= self->writer.sequence ||
        self->writer.sequence - sequence > self->writer.completion_capacity) {
        PyErr_Format(PyExc_ValueError, "unique_key of %llu: kept for the last %llu records only, now at %llu",
                     (unsigned long long)sequence, (unsigned long long)self->writer.completion_capacity,
                     (unsigned long long)self->writer.sequence);
        return NULL;
    }
    uint64_t id = self->ids[sequence & lane_mask(self)];
    if (id == SHMQ_UNIQUE_KEY_CUSTOM) {
        Py_RETURN_NONE;
    }
    return shmq_unique_key_text(&self->unique_keys, id);
}

/* ---- the type ---------------------------------------------------------------------------------------------------- */

/* Points the writer at the broker's memory. -1 with an exception. */
static int lane_attach(struct shmq_lane_object *self, PyObject *control_object, PyObject *completion_object,
                       int event_fd)
{
    struct shmq_module *module = self->module;
    struct shmq_mapping *control;
    struct shmq_mapping *completion;
    if (shmq_mapping_get(module, control_object, sizeof(struct shmq_control), "control", &control) < 0) {
        return -1;
    }
    struct shmq_control *head = (struct shmq_control *)(void *)control->base;
    if (self->session >= head->config.session_slot_count ||
        head->config.queue_rows_place > control->reserve_bytes) {
        PyErr_Format(PyExc_ValueError, "Lane: session %u, the control segment has %u", self->session,
                     head->config.session_slot_count);
        return -1;
    }
    const struct shmq_session_slot *slot = shmq_control_session_slot(head, self->session);
    uint32_t lanes = slot->lane_count;
    uint64_t capacity = slot->lane_capacity_bytes;
    uint64_t completions = slot->completion_capacity;
    if (self->lane >= lanes || lanes > SHMQ_LANE_MAX || capacity < SHMQ_PAGE || (capacity & (capacity - 1)) != 0 ||
        completions == 0 || (completions & (completions - 1)) != 0 ||
        (self->writer.capacity != 0 &&
         (self->writer.capacity != capacity || self->writer.completion_capacity != completions))) {
        PyErr_Format(PyExc_ValueError, "Lane: lane %u of session %u, which has %u of %llu bytes and %llu completions",
                     self->lane, self->session, lanes, (unsigned long long)capacity,
                     (unsigned long long)completions);
        return -1;
    }
    if (self->ingress->size_bytes < shmq_ingress_size(lanes, (uint32_t)capacity)) {
        PyErr_Format(PyExc_ValueError, "Lane: an ingress of %llu bytes for %u lanes of %llu",
                     (unsigned long long)self->ingress->size_bytes, lanes, (unsigned long long)capacity);
        return -1;
    }
    if (shmq_mapping_get(module, completion_object, shmq_completion_size(lanes, (uint32_t)completions),
                         "completion", &completion) < 0) {
        return -1;
    }
    const struct shmq_ring_slot *ring_slot =
        shmq_control_ring_slot(head, self->session * SHMQ_LANE_MAX + self->lane);
    /* acquire: pairs with the releases in shmq_turn_publish; what a predecessor of this broker took is taken */
    uint64_t read_position = shmq_load_acquire(&ring_slot->read_position);
    uint64_t done = shmq_load_acquire(&ring_slot->done_tail);
    uint64_t appended = shmq_load_acquire(&ring_slot->completion_tail);
    uint32_t generation = slot->generation;
    if (self->writer.tail - read_position > capacity || done > appended || appended > self->writer.sequence ||
        (self->writer.session_generation != 0 && self->writer.session_generation != generation)) {
        shmq_raise("FencedError",
                   "attach lane %u of session %u: the broker stands at %llu with %llu records, we sent %llu bytes "
                   "and %llu records; open a new session",
                   self->lane, self->session, (unsigned long long)read_position, (unsigned long long)appended,
                   (unsigned long long)self->writer.tail, (unsigned long long)self->writer.sequence);
        return -1;
    }
    int own_fd = fcntl(event_fd, F_DUPFD_CLOEXEC, 0);
    if (own_fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if (self->writer.event_fd >= 0) {
        (void)close(self->writer.event_fd);
    }
    struct shmq_mapping *before[2] = {self->control, self->completion};
    self->control = shmq_mapping_hold(control);
    self->completion = shmq_mapping_hold(completion);
    self->writer.event_fd = own_fd;
    self->writer.slot = ring_slot;
    /* relaxed: it changes with the session only, and this one is ours */
    self->writer.session_generation = shmq_load_relaxed32(&ring_slot->session_generation);
    self->writer.completions =
        (const struct shmq_completion *)(const void *)(completion->base + SHMQ_COMPLETIONS_PLACE) +
        self->lane * completions;
    self->writer.bell = (const struct shmq_bell_line *)(const void *)(completion->base + SHMQ_BELLS_PLACE) + self->lane;
    self->writer.append_sleep = &head->sleep;
    self->writer.answered = 0; /* the eventfd is another */
    self->writer.capacity = capacity;
    self->writer.completion_capacity = completions;
    self->writer.read_position = read_position;
    self->property_grants = slot->property_grants;
    self->is_service = slot->service_id != 0;
    self->message_size_max = head->config.message_size_max;
    shmq_mapping_drop(before[0]);
    shmq_mapping_drop(before[1]);
    return 0;
}

static int lane_set_chunk(struct shmq_lane_object *self, PyObject *object)
{
    if (!Py_IS_TYPE(object, self->module->chunk_type)) {
        PyErr_Format(PyExc_TypeError, "chunk: want a ChunkMemory, got %s", Py_TYPE(object)->tp_name);
        return -1;
    }
    struct shmq_chunk *chunk = (struct shmq_chunk *)object;
    if (chunk->session != self->session || self->chunk != NULL) {
        PyErr_Format(PyExc_ValueError, "chunk: of session %u for a lane of session %u, which has %s",
                     chunk->session, self->session, self->chunk == NULL ? "none" : "one");
        return -1;
    }
    self->chunk = (struct shmq_chunk *)Py_NewRef(object);
    return 0;
}

static int lane_prepare(struct shmq_lane_object *self)
{
    const struct shmq_lane *line =
        (const struct shmq_lane *)(const void *)(self->ingress->base + SHMQ_LANES_PLACE) + self->lane;
    if (shmq_load_relaxed(&line->tail) != 0) { /* relaxed: whoever wrote it would be us */
        PyErr_Format(PyExc_ValueError, "Lane: lane %u of session %u was used by another Lane", self->lane,
                     self->session);
        return -1;
    }
    self->writer.lane = (struct shmq_lane *)(uintptr_t)line;
    self->latency = (struct shmq_latency *)(void *)(self->ingress->base + SHMQ_LANE_LATENCY_PLACE) + self->lane;
    self->writer.data =
        self->ingress->base + SHMQ_RING_DATA_PLACE + (uint64_t)self->lane * self->writer.capacity;
    uint64_t completions = self->writer.completion_capacity;
    self->kept = PyMem_RawCalloc((completions + 63) / 64, sizeof *self->kept);
    self->ids = PyMem_RawCalloc(completions, sizeof *self->ids);
    self->put_ns = PyMem_RawCalloc(completions, sizeof *self->put_ns);
    if (self->kept == NULL || self->ids == NULL || self->put_ns == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (shmq_unique_keys_begin(&self->unique_keys) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

static PyObject *lane_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"control", "ingress", "completion", "session", "lane", "event_fd", "chunk",
                            "policy", NULL};
    PyObject *control;
    PyObject *ingress_object;
    PyObject *completion;
    PyObject *chunk = Py_None;
    unsigned int session;
    unsigned int lane;
    int event_fd;
    unsigned int policy = SHMQ_WAIT_ADAPTIVE;
    struct shmq_mapping *ingress;
    struct shmq_module *module = shmq_module_of_type(type);
    if (module == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$IIiOI:Lane", names, &control, &ingress_object,
                                     &completion, &session, &lane, &event_fd, &chunk, &policy) ||
        shmq_mapping_get(module, ingress_object, SHMQ_RING_DATA_PLACE, "ingress", &ingress) < 0) {
        return NULL;
    }
    if (!ingress->writable || policy > SHMQ_WAIT_BUSY_SPIN) {
        PyErr_Format(PyExc_ValueError, "Lane: policy %u and %s ingress; want WAIT_* and a writable one", policy,
                     ingress->writable ? "a writable" : "a read-only");
        return NULL;
    }
    struct shmq_lane_object *self = (struct shmq_lane_object *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    shmq_sleepers_init(&self->sleepers);
    self->module = module;
    self->session = session;
    self->lane = lane;
    self->policy = policy;
    self->fork_count = shmq_fork_count;
    self->writer.event_fd = -1;
    self->ingress = shmq_mapping_hold(ingress);
    if (lane_attach(self, control, completion, event_fd) < 0 || lane_prepare(self) < 0 ||
        (chunk != Py_None && lane_set_chunk(self, chunk) < 0)) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void lane_let_go(struct shmq_lane_object *self)
{
    if (self->writer.event_fd >= 0) {
        (void)close(self->writer.event_fd);
        self->writer.event_fd = -1;
    }
    shmq_mapping_drop(self->control);
    shmq_mapping_drop(self->completion);
    shmq_mapping_drop(self->ingress);
    self->control = self->completion = self->ingress = NULL;
    Py_CLEAR(self->chunk);
}

static void lane_dealloc(struct shmq_lane_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    lane_let_go(self);
    PyMem_RawFree(self->kept);
    PyMem_RawFree(self->ids);
    PyMem_RawFree(self->put_ns);
    (void)pthread_mutex_destroy(&self->sleepers.lock);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *lane_close(struct shmq_lane_object *self, PyObject *args)
{
    (void)args;
    if (shmq_fork_check(self->fork_count, "a Lane") < 0) {
        return NULL;
    }
    if (!self->closed) {
        struct shmq_sleep sleep = lane_bed(self, 0);
        shmq_sleepers_disarm(&self->sleepers, &sleep, &self->armed);
        self->closed = 1;
        lane_change(self, self->writer.bell); /* waiters hold the memory; they get up, see it and leave */
        lane_let_go(self);
    }
    Py_RETURN_NONE;
}

static PyObject *lane_self(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    return Py_NewRef(self);
}

static PyObject *lane_attach_chunk(struct shmq_lane_object *self, PyObject *chunk)
{
    if (shmq_lane_check(self, "attach_chunk") < 0 || lane_set_chunk(self, chunk) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *lane_resume(struct shmq_lane_object *self, PyObject *args)
{
    PyObject *control;
    PyObject *completion;
    int event_fd;
    if (shmq_lane_check(self, "resume") < 0 ||
        !PyArg_ParseTuple(args, "OOi:resume", &control, &completion, &event_fd)) {
        return NULL;
    }
    /* The bell that waiters sleep on now, kept mapped over the change. */
    const struct shmq_bell_line *bell = self->writer.bell;
    struct shmq_mapping *before = shmq_mapping_hold(self->completion);
    int status = lane_attach(self, control, completion, event_fd);
    if (status == 0) {
        lane_change(self, bell);
        (void)shmq_lane_publish(&self->writer); /* the successor may sleep already */
    }
    shmq_mapping_drop(before);
    if (status < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *lane_get_closed(struct shmq_lane_object *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong(self->closed);
}

static PyObject *lane_get_ended(struct shmq_lane_object *self, void *closure)
{
    (void)closure;
    if (shmq_lane_check(self, "ended") < 0) {
        return NULL;
    }
    return PyLong_FromLong(-(long)shmq_lane_ended(&self->writer));
}

enum lane_number {
    LANE_NEXT_SEQUENCE,
    LANE_DONE_SEQUENCE,
    LANE_APPENDED_SEQUENCE,
    LANE_CAPACITY,
    LANE_COMPLETION_CAPACITY,
    LANE_RECORD_SIZE_MAX,
};

static PyObject *lane_get_number(struct shmq_lane_object *self, void *closure)
{
    if (shmq_lane_check(self, "read a lane") < 0) {
        return NULL;
    }
    switch (*(const enum lane_number *)closure) {
    case LANE_NEXT_SEQUENCE:
        return PyLong_FromUnsignedLongLong(self->writer.sequence);
    case LANE_DONE_SEQUENCE:
        /* acquire: pairs with the release of done_tail in shmq_turn_publish / shmq_turn_settle */
        return PyLong_FromUnsignedLongLong(shmq_load_acquire(&self->writer.slot->done_tail));
    case LANE_APPENDED_SEQUENCE:
        /* acquire: pairs with the release of completion_tail in shmq_turn_publish */
        return PyLong_FromUnsignedLongLong(shmq_load_acquire(&self->writer.slot->completion_tail));
    case LANE_CAPACITY:
        return PyLong_FromUnsignedLongLong(self->writer.capacity);
    case LANE_COMPLETION_CAPACITY:
        return PyLong_FromUnsignedLongLong(self->writer.completion_capacity);
    case LANE_RECORD_SIZE_MAX:
    default:
        return PyLong_FromUnsignedLongLong(shmq_record_size_max(self->writer.capacity));
    }
}

static PyMethodDef lane_methods[] = {
#define METHOD(name, function, flags, doc) {name, (PyCFunction)(void (*)(void))function, flags, doc}
    METHOD("put", lane_put, METH_FASTCALL | METH_KEYWORDS,
           "put(row, generation, body, tag=None, keys=None, properties=None, flag=0, wait=True, timeout=3.0, "
           "keep=False) -> sequence, or a negative status: nothing was sent. timeout=0 never waits."),
    METHOD("put_many", shmq_lane_put_many, METH_FASTCALL | METH_KEYWORDS,
           "put_many(row, generation, bodies, tag=None, keys=None, properties=None, flag=0, wait=True, "
           "timeout=3.0, keep=False) -> (status, first_sequence, count): the first count bodies were sent."),
    METHOD("send", lane_send, METH_FASTCALL | METH_KEYWORDS,
           "send(row, generation, body, ...) -> (status, sequence, queue_offset, physical_offset, size, "
           "unique_key): put, then wait; TIMED_OUT, or CLOSED by another thread, with a unique_key: its fate is not "
           "known."),
    METHOD("loan", shmq_lane_loan, METH_FASTCALL | METH_KEYWORDS,
           "loan(row, generation, nbytes, ...) -> Loan, or a negative status: room for a body in the ring."),
    METHOD("wait", lane_wait, METH_FASTCALL | METH_KEYWORDS,
           "wait(sequence, timeout=3.0) -> (status, queue_offset, physical_offset, size). FLUSH_FAILED: the disk has "
           "refused; a successor of the store may still append it."),
    METHOD("wait_many", lane_wait_many, METH_FASTCALL | METH_KEYWORDS,
           "wait_many(first_sequence, count, timeout=3.0) -> Completions; shorter if time ran out. CLOSED from the "
           "first one on that is not known when another thread closes the lane."),
    METHOD("take", lane_take, METH_O, "take(sequence): what wait() gives, or None if it is not done yet."),
    METHOD("spin", lane_spin, METH_O, "spin(sequence): as take(), looking for some microseconds."),
    METHOD("arm", lane_arm, METH_O,
           "arm(for_space): from now on the session's socket gets a byte when a completion is there, or room; once, "
           "until it is armed again. Look after arming."),
    METHOD("disarm", lane_disarm, METH_NOARGS, "disarm(): no more."),
    METHOD("forget", lane_forget_completion, METH_O, "forget(sequence): nobody will wait for it any more."),
    METHOD("drain", lane_drain, METH_FASTCALL | METH_KEYWORDS,
           "drain(timeout=3.0) -> status: waits until everything that was put is done."),
    METHOD("unique_key", lane_unique_key, METH_O,
           "unique_key(sequence) -> str of one of the last completion_capacity records; None if it brought its own."),
    METHOD("attach_chunk", lane_attach_chunk, METH_O,
           "attach_chunk(chunk: ChunkMemory): large bodies go through it from now on."),
    METHOD("set_service", lane_set_service, METH_VARARGS | METH_KEYWORDS,
           "set_service(*, progress=0, sys_flag=0, reconsume_times=0, born_timestamp=0, service_index=0): what the "
           "records put from now on carry; of a service's session only."),
    METHOD("resume", lane_resume, METH_VARARGS,
           "resume(control, completion, event_fd): a successor of the broker adopted this ring."),
    METHOD("close", lane_close, METH_NOARGS, "Gets waiters up and lets go of the memory; sends nothing more."),
    METHOD("__enter__", lane_self, METH_NOARGS, "Gives itself."),
    METHOD("__exit__", lane_close, METH_VARARGS, "Closes."),
#undef METHOD
    {NULL, NULL, 0, NULL},
};

#define NUMBER(name, number, doc)                                                                  \
    {name, (getter)(void (*)(void))lane_get_number, NULL, doc, &(enum lane_number){number}}

static PyGetSetDef lane_getset[] = {
    {"closed", (getter)(void (*)(void))lane_get_closed, NULL, "True once closed", NULL},
    {"ended", (getter)(void (*)(void))lane_get_ended, NULL,
     "0, or the (negative) status why the broker ended the session", NULL},
    NUMBER("next_sequence", LANE_NEXT_SEQUENCE, "sequence of the next record"),
    NUMBER("done_sequence", LANE_DONE_SEQUENCE, "records below it are done"),
    NUMBER("appended_sequence", LANE_APPENDED_SEQUENCE, "records below it are appended"),
    NUMBER("capacity_bytes", LANE_CAPACITY, "bytes of the ring"),
    NUMBER("completion_capacity", LANE_COMPLETION_CAPACITY, "records that may be under way"),
    NUMBER("record_size_max", LANE_RECORD_SIZE_MAX, "larger records go through the chunk memory"),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot lane_slots[] = {
    {Py_tp_new, (void *)(uintptr_t)lane_new},
    {Py_tp_dealloc, (void *)(uintptr_t)lane_dealloc},
    {Py_tp_methods, lane_methods},
    {Py_tp_getset, lane_getset},
    {Py_tp_doc, "Lane(control, ingress, completion, *, session, lane, event_fd, chunk=None, policy=WAIT_ADAPTIVE): "
                "the producer's side of one ring."},
    {0, NULL},
};

static PyType_Spec lane_spec = {
    .name = "shmq.core._core.Lane",
    .basicsize = sizeof(struct shmq_lane_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = lane_slots,
};

int shmq_add_lane(PyObject *module)
{
    struct shmq_module *state = shmq_module_state(module);
    if (shmq_add_chunk(module) < 0 || shmq_add_loan(module) < 0 || shmq_add_completions(module) < 0 ||
        shmq_add_oneway(module) < 0) {
        return -1;
    }
    state->lane_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &lane_spec, NULL);
    return state->lane_type == NULL ? -1 : PyModule_AddType(module, state->lane_type);
}
