/* reader.c: Reader: a consumer's side of the store: ConsumeQueue entries, then messages in place; waiting for queues
 * to grow; and the consumer page.
 *
 * A reader writes nothing that others read but its own consumer page. Every place it goes to is checked first: the
 * row is in use, the entry's file is mapped, the frame lies in it and says the same size and offsets as its entry.
 * An entry of size 0 is a hole that recovery left (a quarantined record); it is skipped and counted, as is a frame
 * that is not what its entry says. One thread reads at a time; others may wake it, watch and close. Readers that
 * share() made watch queues of their own and wait on the same bell; wait_any waits on bells of several brokers. */
#include "reader.h"

#include "arguments.h"
#include "sleepers.h"

#include "shmq/consumer_page.h"

#include <stdlib.h>

/* Entries looked at in one step; how far ahead frames are fetched into the cache. */
#define READ_STEP 128u
#define READ_AHEAD 4u
#define READ_COUNT 32u          /* RocketMQ's pullBatchSize */
#define READ_COUNT_MAX (1u << 24)
#define READ_TIMEOUT_NS UINT64_C(1000000000) /* for the broker to answer with a file */
#define READ_CODES_MAX 1024

struct reader_place {
    uint32_t row;
    uint32_t generation;        /* of the row; 0: a free place */
    uint32_t watch;             /* its watch, counted from 1; 0: not watched */
    struct shmq_cursor cursor;  /* a hint: whatever it says, a wrong block is seen to be wrong */
};

struct reader_watch {
    uint32_t row;
    uint32_t generation;
    uint64_t queue_offset;
};

/* The sleepers of one bell, of all readers that share it. With the GIL. */
struct reader_bed {
    struct shmq_sleepers sleepers;
    uint32_t reader_count;
};

struct reader {
    PyObject_HEAD
    struct shmq_module *module;
    struct shmq_mapping *control;
    struct shmq_mapping *arena; /* NULL: entries and messages come by the socket only */
    struct shmq_mapping *consumer;
    struct shmq_mapping *completion;
    struct shmq_log_map *log;
    struct shmq_log_entry *entry; /* the file read last, pinned */
    struct reader_place *places;  /* open addressing by row, a power of two, at most half full */
    uint32_t place_mask;
    uint32_t place_count;
    struct reader_watch *watches;
    uint32_t watch_count;
    uint32_t watch_room;
    uint32_t watch_next; /* where the next look begins: no queue starves another */
    PyObject *codes_source; /* what codes was made of, if that cannot change */
    int64_t *codes;         /* sorted */
    Py_ssize_t code_count;
    uint64_t lost_count;
    int64_t missing_file_position;
    uint32_t session;
    uint32_t bell;
    uint32_t claim_capacity;
    uint32_t policy;
    uint32_t fork_count;
    int closed;
    int is_woken;
    uint32_t armed; /* shmq_sleepers_arm; with the GIL */
    struct reader_bed *bed;
    uint32_t waiting_count; /* threads in wait() or wait_any(); with the GIL */
    shmq_word32 changes;    /* as in lane.h */
};

static void reader_dealloc(struct reader *self);

static int reader_check(struct reader *self, const char *what)
{
    if (self->fork_count != shmq_fork_count) {
        return shmq_fork_check(self->fork_count, "a Reader");
    }
    if (self->closed) {
        shmq_raise("ClosedError", "%s: the reader is closed", what);
        return -1;
    }
    return 0;
}

static struct shmq_control *reader_control(const struct reader *self)
{
    return (struct shmq_control *)(void *)self->control->base;
}

/* The row, or NULL with ValueError if there is none. */
static const struct shmq_queue_row *reader_row(struct reader *self, uint32_t row)
{
    struct shmq_control *control = reader_control(self);
    /* acquire: pairs with the release in shmq_append_add_row; the row is whole */
    uint32_t count = shmq_load_acquire32(&control->append.queue_row_count);
    uint64_t end = control->config.queue_rows_place + ((uint64_t)row + 1) * sizeof(struct shmq_queue_row);
    if (row >= count || end > self->control->reserve_bytes) {
        PyErr_Format(PyExc_ValueError, "read row %u: the store has %u", row, count);
        return NULL;
    }
    return shmq_control_queue_row(control, row);
}

/* ---- places: per row where the chain was left, and its watch --------------------------------------------------- */

static struct reader_place *reader_place_find(const struct reader *self, uint32_t row)
{
    uint32_t at = row * 2654435761u;
    at ^= at >> 16;
    while (self->places[at & self->place_mask].generation != 0 && self->places[at & self->place_mask].row != row) {
        at += 1; /* bounded: at most half of the places are taken */
    }
    return &self->places[at & self->place_mask];
}

static int reader_places_grow(struct reader *self)
{
    uint32_t mask = self->place_mask * 2 + 1;
    uint32_t before_mask = self->place_mask;
    struct reader_place *before = self->places;
    struct reader_place *places = PyMem_RawCalloc((size_t)mask + 1, sizeof *places);
    if (places == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->places = places;
    self->place_mask = mask;
    for (uint32_t i = 0; i <= before_mask; ++i) {
        if (before[i].generation != 0) {
            *reader_place_find(self, before[i].row) = before[i];
        }
    }
    PyMem_RawFree(before);
    return 0;
}

/* The row's place, made if need be. NULL with an exception. */
static struct reader_place *reader_place(struct reader *self, uint32_t row, uint32_t generation)
{
    if (generation == 0) {
        PyErr_SetString(PyExc_ValueError, "generation: 0, want that of the queue's handle, from 1 on");
        return NULL;
    }
    struct reader_place *place = reader_place_find(self, row);
    if (place->generation == 0) {
        if (2 * (self->place_count + 1) > self->place_mask + 1) {
            if (reader_places_grow(self) < 0) {
                return NULL;
            }
            place = reader_place_find(self, row);
        }
        self->place_count += 1;
        *place = (struct reader_place){.row = row};
    }
    if (place->generation != generation) {
        place->generation = generation;
        place->cursor = (struct shmq_cursor){0};
    }
    return place;
}

/* ---- the tag filter ------------------------------------------------------------------------------------------ */

static int code_compare(const void *a, const void *b)
{
    int64_t left = *(const int64_t *)a;
    int64_t right = *(const int64_t *)b;
    return (left > right) - (left < right);
}

/* Makes self->codes of an iterable of ints; remembers one that cannot change. -1 with an exception. */
static int reader_set_codes(struct reader *self, PyObject *source)
{
    if (source == self->codes_source) {
        return 0;
    }
    PyObject *items = PySequence_Tuple(source);
    Py_ssize_t count = items == NULL ? 0 : PyTuple_GET_SIZE(items);
    int64_t *codes = NULL;
    if (count > READ_CODES_MAX) {
        PyErr_Format(PyExc_ValueError, "read: %zd tag codes, %d at most", count, READ_CODES_MAX);
    } else if (items != NULL && (codes = PyMem_RawMalloc(((size_t)count + 1) * sizeof *codes)) == NULL) {
        PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; codes != NULL && i < count; ++i) {
        codes[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(items, i));
        if (codes[i] == -1 && PyErr_Occurred()) {
            PyMem_RawFree(codes);
            codes = NULL;
        }
    }
    Py_XDECREF(items);
    if (codes == NULL) {
        return -1;
    }
    qsort(codes, (size_t)count, sizeof *codes, code_compare);
    PyMem_RawFree(self->codes);
    self->codes = codes;
    self->code_count = count;
    Py_XSETREF(self->codes_source, PyFrozenSet_CheckExact(source) || PyTuple_CheckExact(source)
                                       ? Py_NewRef(source)
                                       : NULL);
    return 0;
}

static inline int reader_wants(const struct reader *self, int64_t code)
{
    Py_ssize_t low = 0;
    Py_ssize_t high = self->code_count;
    while (low < high) { /* bounded: halves */
        Py_ssize_t middle = (low + high) / 2;
        if (self->codes[middle] == code) {
            return 1;
        }
        if (self->codes[middle] < code) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return 0;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

/* One read: what is wanted, where entries come from, where messages go. */
struct read_call {
    const struct shmq_queue_row *queue; /* entries of this row, or */
    const struct shmq_entry *entries;   /* these */
    uint64_t entry_count;
    uint64_t entries_begin; /* queue_offset of entries[0] */
    uint32_t row;
    uint32_t generation;
    uint64_t queue_offset; /* the next to look at */
    uint64_t count_max;    /* messages */
    uint64_t count;
    int is_filtered;
    int is_verified;
    uint64_t timeout_ns;
    PyObject *list;           /* messages, or */
    struct shmq_batch *batch; /* columns */
    PyObject *keeper; /* borrowed, or NULL */
};

/* Up to `count` entries from call->queue_offset on. How many, or a status. */
static int read_entries(struct reader *self, const struct read_call *call, uint32_t count, struct shmq_found *found)
{
    if (call->queue == NULL) {
        uint64_t at = call->queue_offset - call->entries_begin;
        if (at >= call->entry_count) {
            return SHMQ_EMPTY;
        }
        count = call->entry_count - at < count ? (uint32_t)(call->entry_count - at) : count;
        for (uint32_t i = 0; i < count; ++i) {
            const struct shmq_entry *entry = &call->entries[at + i];
            /* relaxed: a copy of our own, or a file that is complete */
            found[i].physical_offset = shmq_load_relaxed(&entry->physical_offset);
            found[i].tags_code = (int64_t)shmq_load_relaxed(&entry->tags_code);
            found[i].size = (uint32_t)shmq_load_relaxed(&entry->size);
        }
        return (int)count;
    }
    if (self->arena == NULL) {
        /* acquire: pairs with the release of visible_max in shmq_turn_publish / shmq_turn_settle */
        uint64_t visible = shmq_load_acquire(&call->queue->visible_max);
        /* relaxed: a generation that changes this moment is seen by the broker */
        if (shmq_load_relaxed32(&call->queue->generation) != call->generation) {
            return SHMQ_FENCED;
        }
        return call->queue_offset < visible ? SHMQ_OFFSET_TOO_SMALL : SHMQ_EMPTY; /* what is there is elsewhere */
    }
    struct shmq_cursor *cursor = &reader_place_find(self, call->row)->cursor;
    /* acquire: pairs with the release of whoever grows the arena; the blocks are allocated */
    uint64_t blocks = shmq_load_acquire32(&reader_control(self)->append.arena_block_count);
    uint64_t mapped = self->arena->reserve_bytes / SHMQ_BLOCK_SIZE;
    return shmq_consume_queue_read(self->arena->base, (uint32_t)(blocks < mapped ? blocks : mapped), call->queue,
                                   call->row, call->generation, call->queue_offset, count, cursor, found);
}

/* The frame of an entry in self->entry: OK; EMPTY: a hole; OVERRUN: its file is not mapped. */
static inline int read_frame(struct reader *self, const struct read_call *call, const struct shmq_found *found,
                             uint64_t queue_offset, const uint8_t **out)
{
    if (found->size < SHMQ_MESSAGE_FIXED_SIZE_V1) {
        return SHMQ_EMPTY;
    }
    struct shmq_log_entry *entry = self->entry;
    if (entry == NULL || found->physical_offset - entry->file_position >= entry->size_bytes) {
        entry = shmq_log_map_pin(self->log, found->physical_offset);
        if (entry == NULL) {
            return SHMQ_OVERRUN;
        }
        if (self->entry != NULL) {
            shmq_log_entry_unpin(self->entry);
        }
        self->entry = entry;
    }
    uint64_t place = found->physical_offset - entry->file_position;
    if (found->size > entry->size_bytes - place) {
        return SHMQ_EMPTY;
    }
    const uint8_t *frame = entry->base + place;
    uint32_t magic = shmq_be32_load(frame + 4);
    if (shmq_be32_load(frame) != found->size ||
        (magic != SHMQ_MESSAGE_MAGIC_V1 && magic != SHMQ_MESSAGE_MAGIC_V2) ||
        shmq_be64_load(frame + 20) != queue_offset || shmq_be64_load(frame + 28) != found->physical_offset) {
        return SHMQ_EMPTY;
    }
    /* relaxed: see log_retire. Memory was checked when it was written; a file may have been damaged since. */
    if (call->is_verified || shmq_load_relaxed32(&entry->is_file) != 0) {
        struct shmq_message_view view;
        if (shmq_message_check(frame, found->size, found->physical_offset, 0, &view) != SHMQ_OK) {
            return SHMQ_EMPTY;
        }
    }
    *out = frame;
    return SHMQ_OK;
}

/* Hands one message out. 0; 1: its body does not fit its frame; -1 with an exception. */
static inline int read_deliver(struct reader *self, struct read_call *call, const struct shmq_found *found,
                               uint64_t queue_offset, const uint8_t *frame)
{
    if (call->batch == NULL) {
        PyObject *message = shmq_message_received(self->module, self->log, self->entry, frame, found->size, call->keeper);
        if (message == NULL) {
            return -1;
        }
        PyList_SET_ITEM(call->list, (Py_ssize_t)call->count, message);
        call->count += 1;
        return 0;
    }
    uint32_t sys_flag = shmq_be32_load(frame + 36);
    uint32_t extra = (sys_flag & SHMQ_SYS_FLAG_BORN_HOST_V6 ? SHMQ_HOST_SIZE_V6 - SHMQ_HOST_SIZE_V4 : 0) +
                     (sys_flag & SHMQ_SYS_FLAG_STORE_HOST_V6 ? SHMQ_HOST_SIZE_V6 - SHMQ_HOST_SIZE_V4 : 0);
    uint32_t head = SHMQ_MESSAGE_HEADER_SIZE + extra;
    if (found->size < head + 3u || shmq_be32_load(frame + head - 4) > found->size - head - 3u) {
        return 1;
    }
    if (shmq_batch_pin(call->batch, self->entry) < 0) {
        return -1;
    }
    struct shmq_batch *batch = call->batch;
    shmq_batch_column(batch, SHMQ_BATCH_QUEUE_OFFSETS)[call->count] = queue_offset;
    shmq_batch_column(batch, SHMQ_BATCH_PHYSICAL_OFFSETS)[call->count] = found->physical_offset;
    shmq_batch_column(batch, SHMQ_BATCH_SIZES)[call->count] = found->size;
    shmq_batch_column(batch, SHMQ_BATCH_BODY_ADDRESSES)[call->count] = (uint64_t)(uintptr_t)(frame + head);
    shmq_batch_column(batch, SHMQ_BATCH_BODY_SIZES)[call->count] = shmq_be32_load(frame + head - 4);
    call->count += 1;
    batch->count = (Py_ssize_t)call->count;
    return 0;
}

/* Starts fetching the head of a frame that comes soon; any address is harmless. */
static inline void read_prefetch(const struct reader *self, const struct shmq_found *found)
{
    const struct shmq_log_entry *entry = self->entry;
    if (entry != NULL && found->physical_offset - entry->file_position < entry->size_bytes) {
        __builtin_prefetch(entry->base + (found->physical_offset - entry->file_position));
    }
}

/* Reads until count_max, the end of what is there, or a file that is not mapped (OVERRUN, with
 * missing_file_position). Status, or 1 with an exception. */
static int read_gather(struct reader *self, struct read_call *call)
{
    struct shmq_found found[READ_STEP];
    while (call->count < call->count_max) { /* bounded: each round takes an entry or returns */
        uint64_t left = call->count_max - call->count;
        int got = read_entries(self, call, left < READ_STEP ? (uint32_t)left : READ_STEP, found);
        if (got <= 0) {
            return got;
        }
        for (int i = 0; i < got; ++i) {
            if (i + (int)READ_AHEAD < got) {
                read_prefetch(self, &found[i + (int)READ_AHEAD]);
            }
            uint64_t queue_offset = call->queue_offset;
            const uint8_t *frame = NULL;
            /* A hole has no tag: it is counted whoever reads. */
            if (found[i].size != 0 && call->is_filtered && !reader_wants(self, found[i].tags_code)) {
                call->queue_offset += 1;
                continue;
            }
            int status = read_frame(self, call, &found[i], queue_offset, &frame);
            if (status == SHMQ_OVERRUN) {
                uint64_t place = found[i].physical_offset;
                self->missing_file_position = (int64_t)(place - place % self->log->file_size_bytes);
                return SHMQ_OVERRUN;
            }
            int delivered = status == SHMQ_OK ? read_deliver(self, call, &found[i], queue_offset, frame) : 1;
            if (delivered < 0) {
                return 1;
            }
            self->lost_count += (uint64_t)delivered;
            call->queue_offset += 1;
        }
    }
    return SHMQ_OK;
}

/* As read_gather, but asks the broker for a file that is missing, if there is nothing else to return. Who gives no time
 * asks for none: the caller may know of a better place to read it. */
static int read_run(struct reader *self, struct read_call *call)
{
    uint64_t deadline_ns = 0;
    for (;;) { /* bounded by the deadline: each round but the last has mapped one file more */
        int status = read_gather(self, call);
        if (call->count > 0 || status != SHMQ_OVERRUN) {
            return status > 0 ? status : call->count > 0 ? SHMQ_OK : status;
        }
        if (call->timeout_ns == 0) {
            return SHMQ_TIMED_OUT;
        }
        uint64_t now_ns = shmq_clock_ns(CLOCK_MONOTONIC);
        deadline_ns = deadline_ns == 0 ? now_ns + call->timeout_ns : deadline_ns;
        uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
        status = shmq_log_map_request(self->log, (uint64_t)self->missing_file_position, left_ns);
        if (status != SHMQ_OK) {
            return status;
        }
        if (reader_check(self, "read") < 0) {
            return 1;
        }
        self->missing_file_position = -1;
    }
}

enum read_argument {
    READ_ROW,
    READ_GENERATION,
    READ_OFFSET,
    READ_MAX_COUNT,
    READ_TAG_CODES,
    READ_VERIFY,
    READ_TIMEOUT,
    READ_KEEPER,
    READ_ARGUMENTS
};

/* What all kinds of read take. -1 with an exception. */
static int read_begin(struct reader *self, PyObject *const *given, struct read_call *call)
{
    uint32_t count_max = READ_COUNT;
    *call = (struct read_call){.timeout_ns = READ_TIMEOUT_NS};
    self->missing_file_position = -1;
    if (reader_check(self, "read") < 0 ||
        shmq_argument_u64(given[READ_OFFSET], "queue_offset", &call->queue_offset) < 0 ||
        (given[READ_MAX_COUNT] != NULL && shmq_argument_u32(given[READ_MAX_COUNT], "max_count", &count_max) < 0) ||
        shmq_argument_bool(given[READ_VERIFY], &call->is_verified) < 0 ||
        shmq_argument_timeout(given[READ_TIMEOUT], &call->timeout_ns) < 0) {
        return -1;
    }
    if (count_max == 0 || count_max > READ_COUNT_MAX) {
        PyErr_Format(PyExc_ValueError, "max_count: %u, want 1 to %u", count_max, READ_COUNT_MAX);
        return -1;
    }
    call->count_max = count_max;
    call->keeper = given[READ_KEEPER] == Py_None ? NULL : given[READ_KEEPER];
    call->is_filtered = given[READ_TAG_CODES] != NULL && given[READ_TAG_CODES] != Py_None;
    return call->is_filtered ? reader_set_codes(self, given[READ_TAG_CODES]) : 0;
}

static int read_begin_row(struct reader *self, PyObject *const *given, struct read_call *call)
{
    if (read_begin(self, given, call) < 0 || shmq_argument_u32(given[READ_ROW], "row", &call->row) < 0 ||
        shmq_argument_u32(given[READ_GENERATION], "generation", &call->generation) < 0) {
        return -1;
    }
    call->queue = reader_row(self, call->row);
    return call->queue == NULL || reader_place(self, call->row, call->generation) == NULL ? -1 : 0;
}

/* No more messages can come of it than entries are visible: bounds what is allocated for max_count. */
static Py_ssize_t read_room(const struct read_call *call)
{
    uint64_t available = call->entry_count;
    if (call->queue != NULL) {
        /* acquire: pairs with the release of visible_max in shmq_turn_publish / shmq_turn_settle */
        uint64_t visible = shmq_load_acquire(&call->queue->visible_max);
        available = visible > call->queue_offset ? visible - call->queue_offset : 0;
    }
    return (Py_ssize_t)(available < call->count_max ? available : call->count_max);
}

/* (status, messages, next_queue_offset) */
static PyObject *read_messages(struct reader *self, struct read_call *call)
{
    Py_ssize_t room = read_room(call);
    call->count_max = (uint64_t)(room == 0 ? 1 : room);
    call->list = PyList_New((Py_ssize_t)call->count_max);
    if (call->list == NULL) {
        return NULL;
    }
    PyObject_GC_UnTrack(call->list); /* it has holes, and read_run may let other threads run */
    int status = read_run(self, call);
    PyObject_GC_Track(call->list);
    if (status > 0 ||
        ((Py_ssize_t)call->count < PyList_GET_SIZE(call->list) &&
         PyList_SetSlice(call->list, (Py_ssize_t)call->count, PyList_GET_SIZE(call->list), NULL) < 0)) {
        Py_DECREF(call->list);
        return NULL;
    }
    return Py_BuildValue("(iNK)", status, call->list, (unsigned long long)call->queue_offset);
}

static PyObject *reader_read(struct reader *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"row",    "generation", "queue_offset", "max_count", "tag_codes",
                                        "verify", "timeout",    "keeper",       NULL};
    PyObject *given[READ_ARGUMENTS];
    struct read_call call;
    if (shmq_arguments("read", names, 3, args, nargs, kwnames, given) < 0 ||
        read_begin_row(self, given, &call) < 0) {
        return NULL;
    }
    return read_messages(self, &call);
}

/* read_entries: the same for entries that come from elsewhere: a file, or the broker's answer. */
static PyObject *reader_read_entries(struct reader *self, PyObject *const *args, Py_ssize_t nargs,
                                     PyObject *kwnames)
{
    static const char *const names[] = {"entries", "queue_offset", "max_count", "tag_codes", "verify", "timeout",
                                        "keeper",  NULL};
    PyObject *given[READ_ARGUMENTS] = {NULL};
    struct read_call call;
    Py_buffer view;
    /* as in read, with `entries` in the place of the generation */
    if (shmq_arguments("read_entries", names, 2, args, nargs, kwnames, given + READ_GENERATION) < 0 ||
        read_begin(self, given, &call) < 0 ||
        PyObject_GetBuffer(given[READ_GENERATION], &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    if (view.len % (Py_ssize_t)sizeof(struct shmq_entry) != 0 || (uintptr_t)view.buf % sizeof(uint64_t) != 0) {
        PyErr_Format(PyExc_ValueError, "read_entries: %zd bytes at %p; want entries of %zu bytes, aligned to 8",
                     view.len, view.buf, sizeof(struct shmq_entry));
    } else {
        call.entries = view.buf;
        call.entry_count = (uint64_t)view.len / sizeof(struct shmq_entry);
        call.entries_begin = call.queue_offset;
        result = read_messages(self, &call);
    }
    PyBuffer_Release(&view);
    return result;
}

static PyObject *reader_read_columns(struct reader *self, PyObject *const *args, Py_ssize_t nargs,
                                     PyObject *kwnames)
{
    static const char *const names[] = {"row",    "generation", "queue_offset", "max_count", "tag_codes",
                                        "verify", "timeout",    NULL};
    PyObject *given[READ_ARGUMENTS] = {NULL};
    struct read_call call;
    if (shmq_arguments("read_columns", names, 3, args, nargs, kwnames, given) < 0 ||
        read_begin_row(self, given, &call) < 0) {
        return NULL;
    }
    Py_ssize_t room = read_room(&call);
    call.count_max = (uint64_t)(room == 0 ? 1 : room);
    call.batch = shmq_batch_new(self->module, self->log, (Py_ssize_t)call.count_max);
    if (call.batch == NULL) {
        return NULL;
    }
    int status = read_run(self, &call);
    if (status > 0) {
        Py_DECREF(call.batch);
        return NULL;
    }
    return Py_BuildValue("(iNK)", status, call.batch, (unsigned long long)call.queue_offset);
}

/* message_at: one message by its place in the CommitLog, or None. */
static PyObject *reader_message_at(struct reader *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"physical_offset", "timeout", NULL};
    PyObject *given[2];
    uint64_t place;
    uint64_t timeout_ns = READ_TIMEOUT_NS;
    if (shmq_arguments("message_at", names, 1, args, nargs, kwnames, given) < 0 ||
        reader_check(self, "message_at") < 0 || shmq_argument_u64(given[0], "physical_offset", &place) < 0 ||
        shmq_argument_timeout(given[1], &timeout_ns) < 0) {
        return NULL;
    }
    /* acquire: pairs with the release in shmq_turn_publish; the frames below it are whole */
    if (place >= shmq_load_acquire(&reader_control(self)->append.committed_position)) {
        Py_RETURN_NONE;
    }
    struct shmq_log_entry *entry = shmq_log_map_pin(self->log, place);
    if (entry == NULL) {
        int status = shmq_log_map_request(self->log, place - place % self->log->file_size_bytes, timeout_ns);
        if (status > 0) {
            return NULL;
        }
        entry = status == SHMQ_OK ? shmq_log_map_pin(self->log, place) : NULL;
    }
    if (entry == NULL) {
        Py_RETURN_NONE;
    }
    struct shmq_message_view view;
    const uint8_t *frame = entry->base + (place - entry->file_position);
    size_t available = (size_t)(entry->size_bytes - (place - entry->file_position));
    PyObject *message = NULL;
    if (shmq_message_check(frame, available, place, 0, &view) == SHMQ_OK) {
        message = shmq_message_received(self->module, self->log, entry, frame, view.total_size, NULL);
    } else {
        message = Py_NewRef(Py_None);
    }
    shmq_log_entry_unpin(entry);
    return message;
}

/* ---- waiting ------------------------------------------------------------------------------------------------------ */

/* What a thread that waits looks at without the GIL: a copy, because others may watch meanwhile. */
struct reader_look {
    struct shmq_control *control;
    const struct reader_watch *watches;
    uint32_t watch_count;
    const shmq_word32 *changes;
    uint32_t changes_seen;
};

/* Is there something to read, or is it another queue now, which a read will tell? */
static inline int watch_is_ready(struct shmq_control *control, const struct reader_watch *watch)
{
    const struct shmq_queue_row *queue = shmq_control_queue_row(control, watch->row);
    /* acquire: pairs with the release of visible_max in shmq_turn_publish / shmq_turn_settle */
    return shmq_load_acquire(&queue->visible_max) > watch->queue_offset ||
           shmq_load_relaxed32(&queue->generation) != watch->generation; /* relaxed: a read will look again */
}

static int reader_look_is_over(void *what)
{
    const struct reader_look *look = what;
    for (uint32_t i = 0; i < look->watch_count; ++i) {
        if (watch_is_ready(look->control, &look->watches[i])) {
            return 1;
        }
    }
    /* acquire: pairs with the release in reader_change */
    return shmq_load_acquire32(look->changes) != look->changes_seen;
}

static const struct shmq_bell_line *reader_bell(const struct reader *self)
{
    return (const struct shmq_bell_line *)(const void *)(self->completion->base + SHMQ_BELLS_PLACE) + SHMQ_LANE_MAX +
           self->bell;
}

/* Gets up who waits. With the GIL. */
static void reader_change(struct reader *self)
{
    /* release: pairs with the acquire in reader_look_is_over */
    shmq_store_release32(&self->changes, shmq_load_relaxed32(&self->changes) + 1);
    if (self->completion != NULL && self->waiting_count != 0) { /* nobody else's thread is got up for nothing */
        shmq_sleepers_kick(&self->bed->sleepers, reader_bell(self));
    }
}

/* A watched row with something to read, or -1. Begins behind the last one that was. */
static int64_t reader_ready(struct reader *self)
{
    for (uint32_t i = 0; i < self->watch_count; ++i) {
        uint32_t at = (self->watch_next + i) % self->watch_count;
        if (watch_is_ready(reader_control(self), &self->watches[at])) {
            self->watch_next = at + 1;
            return self->watches[at].row;
        }
    }
    return -1;
}

/* One reader of those that a thread waits for. */
struct reader_wait {
    struct reader *reader;
    struct reader_watch *watches;
    struct reader_look look;
    struct shmq_mapping *held[3];
};

static void reader_wait_end(struct reader_wait *waits, uint32_t count)
{
    for (uint32_t i = 0; i < count; ++i) {
        for (int j = 0; j < 3; ++j) {
            shmq_mapping_drop(waits[i].held[j]);
        }
        PyMem_RawFree(waits[i].watches);
    }
}

static int reader_wait_begin(struct reader_wait *wait, struct shmq_sleep *sleep)
{
    struct reader *self = wait->reader;
    wait->watches = PyMem_RawMalloc((self->watch_count + 1) * sizeof(struct reader_watch));
    if (wait->watches == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (self->watch_count != 0) {
        memcpy(wait->watches, self->watches, self->watch_count * sizeof *wait->watches);
    }
    wait->look = (struct reader_look){
        .control = reader_control(self),
        .watches = wait->watches,
        .watch_count = self->watch_count,
        .changes = &self->changes,
        .changes_seen = shmq_load_relaxed32(&self->changes), /* relaxed: changed with the GIL only */
    };
    sleep->bell = reader_bell(self);
    sleep->sleep_epoch = &shmq_consumer_sleeper(self->consumer->base, self->bell)->sleep_epoch;
    sleep->is_over = reader_look_is_over;
    sleep->what = &wait->look;
    wait->held[0] = shmq_mapping_hold(self->control);
    wait->held[1] = shmq_mapping_hold(self->completion);
    wait->held[2] = shmq_mapping_hold(self->consumer);
    return 0;
}

/* One round of waiting without the GIL. -1 with MemoryError. */
static int reader_sleep(struct reader_wait *waits, uint32_t count, uint64_t until_ns, int *is_quiet)
{
    struct shmq_sleep sleeps[SHMQ_FUTEX_WAITV_MAX];
    struct shmq_sleepers *beds[SHMQ_FUTEX_WAITV_MAX];
    for (uint32_t i = 0; i < count; ++i) {
        sleeps[i] = (struct shmq_sleep){.until_ns = until_ns, .is_quiet = *is_quiet};
        beds[i] = &waits[i].reader->bed->sleepers;
        if (reader_wait_begin(&waits[i], &sleeps[i]) < 0) {
            reader_wait_end(waits, i);
            return -1;
        }
    }
    for (uint32_t i = 0; i < count; ++i) {
        waits[i].reader->waiting_count += 1;
    }
    uint32_t policy = waits[0].reader->policy;
    Py_BEGIN_ALLOW_THREADS
    if (count == 1) {
        shmq_sleepers_round(beds[0], &sleeps[0], policy);
    } else {
        shmq_sleepers_round_any(beds, sleeps, count, policy);
    }
    Py_END_ALLOW_THREADS
    *is_quiet = sleeps[0].is_quiet;
    for (uint32_t i = 0; i < count; ++i) {
        waits[i].reader->waiting_count -= 1;
    }
    reader_wait_end(waits, count);
    return 0;
}

/* Index of a reader to look after, -1 when time is up, -2 with an exception; the row that has something in *row. */
static int reader_wait_for(struct reader_wait *waits, uint32_t count, uint64_t timeout_ns, int64_t *row)
{
    uint64_t deadline_ns = 0;
    int is_quiet = 0;
    for (;;) { /* bounded by the deadline */
        for (uint32_t i = 0; i < count; ++i) {
            struct reader *self = waits[i].reader;
            *row = reader_ready(self);
            if (*row >= 0 || self->is_woken) {
                self->is_woken = *row >= 0 ? self->is_woken : 0;
                return (int)i;
            }
        }
        if (timeout_ns == 0) {
            return -1;
        }
        uint64_t now_ns = shmq_clock_ns(CLOCK_MONOTONIC);
        deadline_ns = deadline_ns == 0 ? now_ns + timeout_ns : deadline_ns;
        if (now_ns >= deadline_ns) {
            return -1;
        }
        if (reader_sleep(waits, count, deadline_ns, &is_quiet) < 0 || PyErr_CheckSignals() < 0) {
            return -2;
        }
        for (uint32_t i = 0; i < count; ++i) {
            if (reader_check(waits[i].reader, "wait") < 0) {
                return -2;
            }
        }
    }
}

static int reader_may_wait(struct reader *self, uint64_t timeout_ns)
{
    if (reader_check(self, "wait") < 0) {
        return -1;
    }
    if (timeout_ns != 0 && (self->consumer == NULL || self->completion == NULL)) {
        PyErr_SetString(PyExc_ValueError, "wait: this reader has no consumer page and no bell");
        return -1;
    }
    return 0;
}

static PyObject *reader_wait(struct reader *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"timeout", NULL};
    PyObject *given[1];
    uint64_t timeout_ns = 0;
    int64_t row = -1;
    struct reader_wait wait = {.reader = self};
    if (shmq_arguments("wait", names, 1, args, nargs, kwnames, given) < 0 ||
        shmq_argument_timeout(given[0], &timeout_ns) < 0 || reader_may_wait(self, timeout_ns) < 0 ||
        reader_wait_for(&wait, 1, timeout_ns, &row) < -1) {
        return NULL;
    }
    return PyLong_FromLongLong(row);
}

static PyObject *reader_wait_any(PyObject *ignored, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    (void)ignored;
    static const char *const names[] = {"readers", "timeout", NULL};
    PyObject *given[2];
    uint64_t timeout_ns = 0;
    struct reader_wait waits[SHMQ_FUTEX_WAITV_MAX];
    if (shmq_arguments("wait_any", names, 2, args, nargs, kwnames, given) < 0 ||
        shmq_argument_timeout(given[1], &timeout_ns) < 0) {
        return NULL;
    }
    PyObject *readers = PySequence_Tuple(given[0]); /* holds them while we wait */
    if (readers == NULL) {
        return NULL;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(readers);
    int index = -2;
    if (count < 1 || count > (Py_ssize_t)SHMQ_FUTEX_WAITV_MAX) {
        PyErr_Format(PyExc_ValueError, "wait_any: %zd readers, want 1 to %u", count, SHMQ_FUTEX_WAITV_MAX);
        goto end;
    }
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject *reader = PyTuple_GET_ITEM(readers, i);
        if (Py_TYPE(reader)->tp_dealloc != (destructor)(void (*)(void))reader_dealloc) {
            PyErr_Format(PyExc_TypeError, "wait_any: a %s, want a Reader", Py_TYPE(reader)->tp_name);
            goto end;
        }
        waits[i] = (struct reader_wait){.reader = (struct reader *)reader};
        if (reader_may_wait(waits[i].reader, timeout_ns) < 0) {
            goto end;
        }
    }
    int64_t row;
    index = reader_wait_for(waits, (uint32_t)count, timeout_ns, &row);
end:
    Py_DECREF(readers);
    return index < -1 ? NULL : PyLong_FromLong(index);
}

/* ---- event loops --------------------------------------------------------------------------------------------------- */

static struct shmq_sleep reader_sleep_of(const struct reader *self)
{
    return (struct shmq_sleep){.sleep_epoch = &shmq_consumer_sleeper(self->consumer->base, self->bell)->sleep_epoch};
}

static PyObject *reader_arm(struct reader *self, PyObject *ignored)
{
    (void)ignored;
    if (reader_may_wait(self, 1) < 0) {
        return NULL;
    }
    struct shmq_sleep sleep = reader_sleep_of(self);
    shmq_sleepers_arm(&self->bed->sleepers, &sleep, &self->armed);
    Py_RETURN_NONE;
}

static void reader_get_up(struct reader *self)
{
    if (self->armed != 0 && self->consumer != NULL) {
        struct shmq_sleep sleep = reader_sleep_of(self);
        shmq_sleepers_disarm(&self->bed->sleepers, &sleep, &self->armed);
    }
}

static PyObject *reader_disarm(struct reader *self, PyObject *ignored)
{
    (void)ignored;
    if (shmq_fork_check(self->fork_count, "a Reader") < 0) {
        return NULL;
    }
    reader_get_up(self);
    Py_RETURN_NONE;
}

static PyObject *reader_rings(struct reader *self, PyObject *ignored)
{
    (void)ignored;
    if (reader_may_wait(self, 1) < 0) {
        return NULL;
    }
    return PyLong_FromUnsignedLong(shmq_bell_seen(reader_bell(self)));
}

static PyObject *reader_wake(struct reader *self, PyObject *ignored)
{
    (void)ignored;
    if (reader_check(self, "wake") < 0) {
        return NULL;
    }
    self->is_woken = 1;
    reader_change(self);
    Py_RETURN_NONE;
}

static PyObject *reader_watch(struct reader *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"row", "generation", "queue_offset", NULL};
    PyObject *given[3];
    struct reader_watch watch;
    if (shmq_arguments("watch", names, 3, args, nargs, kwnames, given) < 0 || reader_check(self, "watch") < 0 ||
        shmq_argument_u32(given[0], "row", &watch.row) < 0 ||
        shmq_argument_u32(given[1], "generation", &watch.generation) < 0 ||
        shmq_argument_u64(given[2], "queue_offset", &watch.queue_offset) < 0 ||
        reader_row(self, watch.row) == NULL) {
        return NULL;
    }
    struct reader_place *place = reader_place(self, watch.row, watch.generation);
    if (place == NULL) {
        return NULL;
    }
    if (place->watch == 0) {
        if (self->watch_count == self->watch_room) {
            uint32_t room = self->watch_room == 0 ? 16 : self->watch_room * 2;
            struct reader_watch *watches = PyMem_RawRealloc(self->watches, room * sizeof *watches);
            if (watches == NULL) {
                return PyErr_NoMemory();
            }
            self->watches = watches;
            self->watch_room = room;
        }
        place->watch = ++self->watch_count;
    }
    self->watches[place->watch - 1] = watch;
    reader_change(self); /* a thread that waits looks at a copy */
    Py_RETURN_NONE;
}

static PyObject *reader_unwatch(struct reader *self, PyObject *argument)
{
    uint32_t row;
    if (reader_check(self, "unwatch") < 0 || shmq_argument_u32(argument, "row", &row) < 0) {
        return NULL;
    }
    struct reader_place *place = reader_place_find(self, row);
    if (place->generation != 0 && place->watch != 0) {
        const struct reader_watch *last = &self->watches[--self->watch_count];
        reader_place_find(self, last->row)->watch = place->watch;
        self->watches[place->watch - 1] = *last;
        place->watch = 0;
    }
    Py_RETURN_NONE;
}

/* ---- the consumer page -------------------------------------------------------------------------------------------- */

/* The claim's place, or NULL with an exception. */
static struct shmq_claim *reader_claim_at(struct reader *self, PyObject *index_object, const char *what)
{
    uint32_t index;
    if (reader_check(self, what) < 0 || shmq_argument_u32(index_object, "index", &index) < 0) {
        return NULL;
    }
    if (index >= self->claim_capacity) {
        PyErr_Format(PyExc_ValueError, "%s %u: the consumer page has %u", what, index, self->claim_capacity);
        return NULL;
    }
    return shmq_consumer_claim(self->consumer->base, index);
}

static PyObject *reader_claim(struct reader *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"index", "claim", "row", "generation", "consumer_offset", NULL};
    PyObject *given[5];
    uint64_t number;
    uint32_t row;
    uint32_t generation;
    uint64_t consumer_offset;
    if (shmq_arguments("claim", names, 5, args, nargs, kwnames, given) < 0 ||
        shmq_argument_u64(given[1], "claim", &number) < 0 || shmq_argument_u32(given[2], "row", &row) < 0 ||
        shmq_argument_u32(given[3], "generation", &generation) < 0 ||
        shmq_argument_u64(given[4], "consumer_offset", &consumer_offset) < 0) {
        return NULL;
    }
    struct shmq_claim *claim = reader_claim_at(self, given[0], "claim");
    if (claim == NULL) {
        return NULL;
    }
    shmq_claim_take(claim, number, row, generation, consumer_offset);
    Py_RETURN_NONE;
}

static PyObject *reader_report(struct reader *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"index", "consumer_offset", NULL};
    PyObject *given[2];
    uint64_t consumer_offset;
    if (shmq_arguments("report", names, 2, args, nargs, kwnames, given) < 0 ||
        shmq_argument_u64(given[1], "consumer_offset", &consumer_offset) < 0) {
        return NULL;
    }
    struct shmq_claim *claim = reader_claim_at(self, given[0], "report");
    if (claim == NULL) {
        return NULL;
    }
    shmq_claim_report(claim, consumer_offset);
    Py_RETURN_NONE;
}

static PyObject *reader_drop_claim(struct reader *self, PyObject *argument)
{
    struct shmq_claim *claim = reader_claim_at(self, argument, "drop claim");
    if (claim == NULL) {
        return NULL;
    }
    shmq_claim_drop(claim);
    Py_RETURN_NONE;
}

/* ---- the type ------------------------------------------------------------------------------------------------------ */

static int reader_attach_consumer(struct reader *self, PyObject *consumer, PyObject *completion)
{
    struct shmq_mapping *mapping;
    const struct shmq_control *control = reader_control(self);
    if (self->session >= control->config.session_slot_count || self->bell >= SHMQ_CONSUMER_BELL_MAX) {
        PyErr_Format(PyExc_ValueError, "Reader: bell %u of session %u; the store has %u sessions of %u bells",
                     self->bell, self->session, control->config.session_slot_count, SHMQ_CONSUMER_BELL_MAX);
        return -1;
    }
    if (completion != Py_None) {
        if (shmq_mapping_get(self->module, completion, SHMQ_PAGE, "completion", &mapping) < 0) {
            return -1;
        }
        self->completion = shmq_mapping_hold(mapping);
    }
    if (consumer != Py_None) {
        if (shmq_mapping_get(self->module, consumer, SHMQ_CLAIMS_PLACE, "consumer", &mapping) < 0) {
            return -1;
        }
        if (!mapping->writable) {
            PyErr_SetString(PyExc_ValueError, "Reader: the consumer page is mapped read-only");
            return -1;
        }
        self->consumer = shmq_mapping_hold(mapping);
        self->claim_capacity = (uint32_t)((mapping->size_bytes - SHMQ_CLAIMS_PLACE) / sizeof(struct shmq_claim));
    }
    return 0;
}

static int reader_make_places(struct reader *self)
{
    self->place_mask = 15;
    self->places = PyMem_RawCalloc(self->place_mask + 1, sizeof *self->places);
    if (self->places == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static int reader_make_bed(struct reader *self)
{
    self->bed = PyMem_RawCalloc(1, sizeof *self->bed);
    if (self->bed == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    shmq_sleepers_init(&self->bed->sleepers);
    self->bed->reader_count = 1;
    return 0;
}

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"control", "arena", "log_map", "consumer", "completion", "session", "bell", "policy",
                            NULL};
    PyObject *control_object;
    PyObject *arena_object;
    PyObject *log_map;
    PyObject *consumer = Py_None;
    PyObject *completion = Py_None;
    unsigned int session = 0;
    unsigned int bell = 0;
    unsigned int policy = SHMQ_WAIT_ADAPTIVE;
    struct shmq_mapping *control;
    struct shmq_mapping *arena = NULL;
    struct shmq_module *module = shmq_module_of_type(type);
    if (module == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "OOO!|$OOIII:Reader", names, &control_object, &arena_object,
                                     module->log_map_type, &log_map, &consumer, &completion, &session, &bell,
                                     &policy) ||
        shmq_mapping_get(module, control_object, sizeof(struct shmq_control), "control", &control) < 0 ||
        (arena_object != Py_None &&
         shmq_mapping_get(module, arena_object, SHMQ_BLOCK_SIZE, "arena", &arena) < 0)) {
        return NULL;
    }
    const struct shmq_control *head = (const struct shmq_control *)(const void *)control->base;
    uint64_t file_size = ((struct shmq_log_map *)log_map)->file_size_bytes;
    if (policy > SHMQ_WAIT_BUSY_SPIN || head->config.file_size_bytes != file_size) {
        PyErr_Format(PyExc_ValueError, "Reader: policy %u; a log map of files of %llu bytes for a store of %llu",
                     policy, (unsigned long long)file_size, (unsigned long long)head->config.file_size_bytes);
        return NULL;
    }
    struct reader *self = (struct reader *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->module = module;
    self->control = shmq_mapping_hold(control);
    self->arena = arena == NULL ? NULL : shmq_mapping_hold(arena);
    self->log = (struct shmq_log_map *)Py_NewRef(log_map);
    self->session = session;
    self->bell = bell;
    self->policy = policy;
    self->fork_count = shmq_fork_count;
    self->missing_file_position = -1;
    if (reader_make_places(self) < 0 || reader_make_bed(self) < 0 ||
        reader_attach_consumer(self, consumer, completion) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyObject *reader_share(struct reader *self, PyObject *ignored)
{
    (void)ignored;
    if (reader_check(self, "share") < 0) {
        return NULL;
    }
    PyTypeObject *type = Py_TYPE(self);
    struct reader *made = (struct reader *)type->tp_alloc(type, 0);
    if (made == NULL) {
        return NULL;
    }
    made->module = self->module;
    made->control = shmq_mapping_hold(self->control);
    made->arena = self->arena == NULL ? NULL : shmq_mapping_hold(self->arena);
    made->consumer = self->consumer == NULL ? NULL : shmq_mapping_hold(self->consumer);
    made->completion = self->completion == NULL ? NULL : shmq_mapping_hold(self->completion);
    made->log = (struct shmq_log_map *)Py_NewRef((PyObject *)self->log);
    made->session = self->session;
    made->bell = self->bell;
    made->claim_capacity = self->claim_capacity;
    made->policy = self->policy;
    made->fork_count = self->fork_count;
    made->missing_file_position = -1;
    made->bed = self->bed;
    made->bed->reader_count += 1;
    if (reader_make_places(made) < 0) {
        Py_DECREF(made);
        return NULL;
    }
    return (PyObject *)made;
}

static void reader_let_go(struct reader *self)
{
    if (self->entry != NULL) {
        shmq_log_entry_unpin(self->entry);
        self->entry = NULL;
    }
    shmq_mapping_drop(self->control);
    shmq_mapping_drop(self->arena);
    shmq_mapping_drop(self->consumer);
    shmq_mapping_drop(self->completion);
    self->control = self->arena = self->consumer = self->completion = NULL;
    Py_CLEAR(self->log);
    Py_CLEAR(self->codes_source);
}

static void reader_dealloc(struct reader *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->bed != NULL && self->fork_count == shmq_fork_count) {
        reader_get_up(self);
    }
    reader_let_go(self);
    PyMem_RawFree(self->places);
    PyMem_RawFree(self->watches);
    PyMem_RawFree(self->codes);
    if (self->bed != NULL && --self->bed->reader_count == 0) {
        (void)pthread_mutex_destroy(&self->bed->sleepers.lock);
        PyMem_RawFree(self->bed);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *reader_close(struct reader *self, PyObject *args)
{
    (void)args;
    if (shmq_fork_check(self->fork_count, "a Reader") < 0) {
        return NULL;
    }
    if (!self->closed) {
        reader_get_up(self);
        self->closed = 1;
        reader_change(self); /* waiters hold the memory; they get up, see it and leave */
        reader_let_go(self);
    }
    Py_RETURN_NONE;
}

static PyObject *reader_self(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    return Py_NewRef(self);
}

static PyObject *reader_row_word(struct reader *self, PyObject *argument, size_t place)
{
    uint32_t row;
    if (reader_check(self, "read a row") < 0 || shmq_argument_u32(argument, "row", &row) < 0) {
        return NULL;
    }
    const struct shmq_queue_row *queue = reader_row(self, row);
    if (queue == NULL) {
        return NULL;
    }
    /* acquire: pairs with the release of that word in turn.h and append.h */
    return PyLong_FromUnsignedLongLong(
        shmq_load_acquire((const shmq_word64 *)(const void *)((const uint8_t *)queue + place)));
}

static PyObject *reader_visible_max(struct reader *self, PyObject *row)
{
    return reader_row_word(self, row, offsetof(struct shmq_queue_row, visible_max));
}

static PyObject *reader_max(struct reader *self, PyObject *row)
{
    return reader_row_word(self, row, offsetof(struct shmq_queue_row, max_queue_offset));
}

static PyObject *reader_min(struct reader *self, PyObject *row)
{
    return reader_row_word(self, row, offsetof(struct shmq_queue_row, min_queue_offset));
}

static PyObject *reader_hot_min(struct reader *self, PyObject *row)
{
    return reader_row_word(self, row, offsetof(struct shmq_queue_row, hot_min_queue_offset));
}

static PyObject *reader_get_lost_count(struct reader *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(self->lost_count);
}

static PyObject *reader_get_missing(struct reader *self, void *closure)
{
    (void)closure;
    return PyLong_FromLongLong(self->missing_file_position);
}

static PyObject *reader_get_claim_capacity(struct reader *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLong(self->claim_capacity);
}

static PyObject *reader_get_closed(struct reader *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong(self->closed);
}

static PyMethodDef reader_methods[] = {
#define METHOD(name, function, flags, doc) {name, (PyCFunction)(void (*)(void))function, flags, doc}
    METHOD("read", reader_read, METH_FASTCALL | METH_KEYWORDS,
           "read(row, generation, queue_offset, max_count=32, tag_codes=None, verify=False, timeout=1.0, "
           "keeper=None) -> (status, messages, next_queue_offset). TIMED_OUT: a file that is missing did not come in "
           "time; with timeout=0 nobody was asked for it. A frame that lies in a file is checked before it is handed "
           "out; verify=True: one in memory, too. keeper: whose process(message) and settle(message) the messages' own "
           "call."),
    METHOD("read_columns", reader_read_columns, METH_FASTCALL | METH_KEYWORDS,
           "read_columns(row, generation, queue_offset, ...) -> (status, Batch, next_queue_offset)."),
    METHOD("read_entries", reader_read_entries, METH_FASTCALL | METH_KEYWORDS,
           "read_entries(entries, queue_offset, ...): as read, of entries of 24 bytes from elsewhere."),
    METHOD("message_at", reader_message_at, METH_FASTCALL | METH_KEYWORDS,
           "message_at(physical_offset, timeout=1.0) -> Message, checked, or None."),
    METHOD("watch", reader_watch, METH_FASTCALL | METH_KEYWORDS,
           "watch(row, generation, queue_offset): wait() waits for that queue_offset to be visible."),
    METHOD("unwatch", reader_unwatch, METH_O, "unwatch(row)."),
    METHOD("wait", reader_wait, METH_FASTCALL | METH_KEYWORDS,
           "wait(timeout) -> a watched row with something to read, or -1: time ran out, or wake()."),
    METHOD("wake", reader_wake, METH_NOARGS, "Makes the wait() that is on, or else the next, return -1."),
    METHOD("arm", reader_arm, METH_NOARGS,
           "arm(): from now on the session's socket gets a byte when the bell is rung; once, until one of the readers "
           "that share it is armed again. Look after arming: wait(0)."),
    METHOD("disarm", reader_disarm, METH_NOARGS, "disarm(): no more."),
    METHOD("rings", reader_rings, METH_NOARGS, "rings() -> how often the bell was rung."),
    METHOD("wait_any", reader_wait_any, METH_FASTCALL | METH_KEYWORDS | METH_STATIC,
           "wait_any(readers, timeout) -> index of a reader that has something to read or was woken, or -1."),
    METHOD("share", reader_share, METH_NOARGS,
           "share() -> a Reader of the same session and bell that watches and reads on its own."),
    METHOD("claim", reader_claim, METH_FASTCALL | METH_KEYWORDS,
           "claim(index, claim, row, generation, consumer_offset): progress goes under this claim from now on."),
    METHOD("report", reader_report, METH_FASTCALL | METH_KEYWORDS,
           "report(index, consumer_offset): the next queue_offset to consume."),
    METHOD("drop_claim", reader_drop_claim, METH_O, "drop_claim(index)."),
    METHOD("visible_max", reader_visible_max, METH_O, "visible_max(row): consumers read below it."),
    METHOD("max_queue_offset", reader_max, METH_O, "max_queue_offset(row): of the next message."),
    METHOD("min_queue_offset", reader_min, METH_O, "min_queue_offset(row): first kept."),
    METHOD("hot_min_queue_offset", reader_hot_min, METH_O, "hot_min_queue_offset(row): first in memory."),
    METHOD("close", reader_close, METH_NOARGS, "Gets waiters up and lets go of the memory; messages live on."),
    METHOD("__enter__", reader_self, METH_NOARGS, "Gives itself."),
    METHOD("__exit__", reader_close, METH_VARARGS, "Closes."),
#undef METHOD
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef reader_getset[] = {
    {"lost_count", (getter)(void (*)(void))reader_get_lost_count, NULL,
     "entries skipped because their record is lost", NULL},
    {"missing_file_position", (getter)(void (*)(void))reader_get_missing, NULL,
     "the file that the last read wanted and did not get, or -1", NULL},
    {"claim_capacity", (getter)(void (*)(void))reader_get_claim_capacity, NULL, "claims in the consumer page", NULL},
    {"closed", (getter)(void (*)(void))reader_get_closed, NULL, "True once closed", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_new, (void *)(uintptr_t)reader_new},
    {Py_tp_dealloc, (void *)(uintptr_t)reader_dealloc},
    {Py_tp_methods, reader_methods},
    {Py_tp_getset, reader_getset},
    {Py_tp_doc, "Reader(control, arena, log_map, *, consumer=None, completion=None, session=0, bell=0, "
                "policy=WAIT_ADAPTIVE): a consumer's side of the store. Without an arena a read says "
                "OFFSET_TOO_SMALL of whatever is there: the broker has it."},
    {0, NULL},
};

static PyType_Spec reader_spec = {
    .name = "shmq.core._core.Reader",
    .basicsize = sizeof(struct reader),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = reader_slots,
};

int shmq_add_reader(PyObject *module)
{
    struct shmq_module *state = shmq_module_state(module);
    if (shmq_add_batch(module) < 0) {
        return -1;
    }
    state->reader_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &reader_spec, NULL);
    return state->reader_type == NULL ? -1 : PyModule_AddType(module, state->reader_type);
}
