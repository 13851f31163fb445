/* index.c: the entries of the message index: gathered from a CommitLog file by a thread that takes only what the
 * machine has left, or from memory, and found again. Everything runs without the GIL. A low priority cannot be given
 * back (only root may), so the work on a file has a thread of its own: one that held the GIL would be waited for.
 * The same holds for locks of the kernel: a thread that is not run while it changes the process's mappings stops
 * every other one at its next page fault. So all memory, its stack too, is made and touched before it begins. */
#include "binding.h"

#include "shmq/index.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#define SHMQ_INDEX_WINDOW_SIZE (256u << 10)
#define SHMQ_INDEX_NICE 19
#define SHMQ_INDEX_STACK_SIZE (256u << 10)

_Static_assert(SHMQ_INDEX_WINDOW_SIZE >= SHMQ_INDEX_TAIL_SIZE_MAX, "a tail fits into a window");

struct hole {
    uint64_t begin;
    uint64_t end;
};

/* One pass over the frames of one file. */
struct gathering {
    int fd;                /* of the file, or -1: all of it is in `window` */
    int stop_fd;           /* readable: stop; or -1 */
    int is_idle;           /* whether its thread takes only idle time */
    uint64_t file_position;
    uint64_t file_end;
    uint64_t end;          /* behind the last frame wanted */
    uint64_t place;        /* of the frame looked at */
    const uint8_t *window;
    uint8_t *buffer;       /* what `window` points to for a file */
    uint8_t *stack;        /* of the thread */
    uint64_t window_position;
    uint64_t window_size;
    struct hole *holes;    /* sorted */
    Py_ssize_t hole_count;
    Py_ssize_t hole;       /* the next one */
    struct shmq_index_entries out;
    int is_growing;        /* `out` may become larger: only where priority is normal */
    struct shmq_index_entry *sorted;
    struct shmq_index_entry *scratch;
    uint64_t frame_count;
    uint64_t frame_limit;
    int64_t first_timestamp;
    int64_t last_timestamp;
    int status;
    int error; /* errno of a read that failed, 0, or ENOMEM */
};

/* `size` bytes at `place`; NULL with status or error set. */
static const uint8_t *gathering_bytes(struct gathering *self, uint64_t place, uint64_t size)
{
    if (place >= self->window_position && place + size <= self->window_position + self->window_size) {
        return self->window + (place - self->window_position);
    }
    if (self->fd < 0) {
        self->status = SHMQ_CORRUPT; /* the frame leaves what is committed */
        return NULL;
    }
    struct pollfd stop = {.fd = self->stop_fd, .events = POLLIN};
    if (self->stop_fd >= 0 && poll(&stop, 1, 0) != 0) {
        self->status = SHMQ_STOPPED;
        return NULL;
    }
    uint64_t want = self->file_end - place;
    if (want > SHMQ_INDEX_WINDOW_SIZE) {
        want = SHMQ_INDEX_WINDOW_SIZE;
    }
    uint64_t got = 0;
    while (got < want) {
        ssize_t part = pread(self->fd, self->buffer + got, want - got, (off_t)(place - self->file_position + got));
        if (part <= 0) {
            if (part < 0 && errno == EINTR) {
                continue;
            }
            self->error = part < 0 ? errno : EIO; /* a file of the log has its full size */
            return NULL;
        }
        got += (uint64_t)part;
    }
    self->window_position = place;
    self->window_size = got;
    return self->window;
}

static int gathering_grow(struct gathering *self)
{
    if (!self->is_growing) {
        return SHMQ_FULL;
    }
    uint64_t capacity = self->out.capacity == 0 ? 4096u : self->out.capacity * 2;
    struct shmq_index_entry *entries = PyMem_RawRealloc(self->out.entries, capacity * sizeof *entries);
    if (entries == NULL) {
        self->error = ENOMEM;
        return SHMQ_FULL;
    }
    self->out.entries = entries;
    self->out.capacity = capacity;
    return SHMQ_OK;
}

/* The frame at `place`: its keys are added and the place moves on, or the status says why not. */
static void gathering_step(struct gathering *self)
{
    struct shmq_index_frame frame;
    struct shmq_index_tail tail;
    uint64_t room = self->file_end - self->place;
    uint64_t head_size = room < SHMQ_INDEX_HEAD_SIZE ? room : SHMQ_INDEX_HEAD_SIZE;
    if (self->fd < 0 && head_size > self->end - self->place) {
        head_size = self->end - self->place;
    }
    const uint8_t *bytes = gathering_bytes(self, self->place, head_size);
    if (bytes == NULL) {
        return;
    }
    self->status = shmq_index_head(bytes, head_size, self->place, room, &frame);
    if (self->status != SHMQ_OK) {
        return;
    }
    bytes = gathering_bytes(self, self->place + frame.tail_place, frame.tail_size);
    if (bytes == NULL) {
        return;
    }
    self->status = shmq_index_tail(bytes, &frame, &tail);
    if (self->status != SHMQ_OK) {
        return;
    }
    uint32_t place = (uint32_t)(self->place - self->file_position);
    while ((self->status = shmq_index_put(&self->out, &frame, &tail, place)) == SHMQ_FULL) { /* ends at the limit */
        if (gathering_grow(self) != SHMQ_OK) {
            return;
        }
    }
    if (self->frame_count == 0 || frame.store_timestamp < self->first_timestamp) {
        self->first_timestamp = frame.store_timestamp;
    }
    if (self->frame_count == 0 || frame.store_timestamp > self->last_timestamp) {
        self->last_timestamp = frame.store_timestamp;
    }
    self->frame_count += 1;
    self->place += frame.total_size;
}

static void gathering_run(struct gathering *self)
{
    self->status = SHMQ_OK;
    while (self->place < self->end && self->frame_count < self->frame_limit) {
        while (self->hole < self->hole_count && self->holes[self->hole].end <= self->place) {
            self->hole += 1;
        }
        if (self->hole < self->hole_count && self->holes[self->hole].begin <= self->place) {
            self->place = self->holes[self->hole].end;
            continue;
        }
        gathering_step(self);
        if (self->status != SHMQ_OK || self->error != 0) {
            return;
        }
    }
}

static void *gathering_thread(void *argument)
{
    struct gathering *self = argument;
    if (self->is_idle) {
        /* Where the kernel refuses (a seccomp filter), the work is done all the same. */
        struct sched_param parameters = {0};
        (void)sched_setscheduler(0, SCHED_IDLE, &parameters);
        (void)setpriority(PRIO_PROCESS, 0, SHMQ_INDEX_NICE);
    }
    gathering_run(self);
    if (self->status == SHMQ_OK || self->status == SHMQ_BLANK) {
        self->sorted = shmq_index_sort(self->out.entries, self->scratch, self->out.count);
    }
    return NULL;
}

/* Memory for a thread that must not ask for any. -1 with MemoryError. */
static int gathering_reserve(struct gathering *self, uint64_t entry_limit)
{
    size_t size = entry_limit > SIZE_MAX / sizeof *self->scratch ? SIZE_MAX : entry_limit * sizeof *self->scratch;
    self->buffer = PyMem_RawMalloc(SHMQ_INDEX_WINDOW_SIZE);
    self->stack = PyMem_RawMalloc(SHMQ_INDEX_STACK_SIZE);
    self->out.entries = PyMem_RawMalloc(size);
    self->scratch = PyMem_RawMalloc(size);
    if (self->buffer == NULL || self->stack == NULL || self->out.entries == NULL || self->scratch == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    memset(self->buffer, 0, SHMQ_INDEX_WINDOW_SIZE);
    memset(self->stack, 0, SHMQ_INDEX_STACK_SIZE);
    memset(self->out.entries, 0, size);
    memset(self->scratch, 0, size);
    Py_END_ALLOW_THREADS
    self->out.capacity = entry_limit;
    self->window = self->buffer;
    return 0;
}

/* Runs the pass in a thread of its own and waits for it; returns an errno. */
static int gathering_run_aside(struct gathering *self)
{
    pthread_attr_t attributes;
    pthread_t thread;
    int error = pthread_attr_init(&attributes);
    if (error != 0) {
        return error;
    }
    error = pthread_attr_setstack(&attributes, self->stack, SHMQ_INDEX_STACK_SIZE);
    if (error == 0) {
        error = pthread_create(&thread, &attributes, gathering_thread, self);
    }
    if (error == 0) {
        error = pthread_join(thread, NULL);
    }
    (void)pthread_attr_destroy(&attributes);
    return error;
}

static void gathering_free(struct gathering *self)
{
    PyMem_RawFree(self->stack);
    PyMem_RawFree(self->out.entries);
    PyMem_RawFree(self->scratch);
    PyMem_RawFree(self->buffer);
    PyMem_RawFree(self->holes);
}

static int gathering_take_holes(struct gathering *self, PyObject *object)
{
    PyObject *list = PySequence_Fast(object, "index_file: holes is not a sequence");
    if (list == NULL) {
        return -1;
    }
    int result = 0;
    self->hole_count = PySequence_Fast_GET_SIZE(list);
    self->holes = PyMem_RawCalloc((size_t)self->hole_count + 1, sizeof *self->holes);
    if (self->holes == NULL) {
        PyErr_NoMemory();
        result = -1;
    }
    for (Py_ssize_t i = 0; i < self->hole_count && result == 0; ++i) {
        unsigned long long begin;
        unsigned long long end;
        if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(list, i), "KK", &begin, &end)) {
            result = -1;
        } else if (begin >= end || end > self->file_end || (i > 0 && begin < self->holes[i - 1].end)) {
            PyErr_SetString(PyExc_ValueError, "index_file: holes in order, inside the file");
            result = -1;
        } else {
            self->holes[i] = (struct hole){begin, end};
        }
    }
    Py_DECREF(list);
    return result;
}

static PyObject *gathering_result(struct gathering *self)
{
    if (self->error != 0) {
        errno = self->error;
        return self->error == ENOMEM ? PyErr_NoMemory() : PyErr_SetFromErrno(PyExc_OSError);
    }
    int is_done = self->status == SHMQ_OK || self->status == SHMQ_BLANK;
    return Py_BuildValue("(iKy#KLL)", self->status, (unsigned long long)self->place,
                         is_done && self->sorted != NULL ? (const char *)self->sorted : "",
                         is_done ? (Py_ssize_t)(self->out.count * sizeof *self->sorted) : 0,
                         (unsigned long long)self->frame_count, (long long)self->first_timestamp,
                         (long long)self->last_timestamp);
}

/* Whether a file of the log may have this place and size. */
static int gathering_take_file(struct gathering *self, unsigned long long file_position,
                               unsigned long long file_size)
{
    if (file_position > UINT64_MAX / 2 || file_size > UINT32_MAX) {
        PyErr_Format(PyExc_ValueError, "index: a file of %llu bytes at %llu", file_size, file_position);
        return -1;
    }
    self->file_position = file_position;
    self->file_end = file_position + file_size;
    return 0;
}

static PyObject *core_index_file(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd",  "file_position", "file_size", "holes",  "low",
                            "high", "entry_limit",  "idle",      "stop_fd", NULL};
    int fd;
    unsigned long long file_position;
    unsigned long long file_size;
    PyObject *holes;
    unsigned long long low;
    unsigned long long high;
    unsigned long long entry_limit;
    int is_idle;
    int stop_fd;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i$KKOKKKpi:index_file", names, &fd, &file_position, &file_size,
                                     &holes, &low, &high, &entry_limit, &is_idle, &stop_fd)) {
        return NULL;
    }
    struct gathering self = {
        .fd = fd,
        .stop_fd = stop_fd,
        .is_idle = is_idle,
        .place = file_position,
        .frame_limit = UINT64_MAX,
        .out = {.low = low, .high = high},
    };
    PyObject *result = NULL;
    if (gathering_take_file(&self, file_position, file_size) < 0 || gathering_take_holes(&self, holes) < 0) {
        goto done;
    }
    self.end = self.file_end;
    if (gathering_reserve(&self, entry_limit) < 0) {
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    int error = gathering_run_aside(&self);
    if (error != 0) {
        self.error = error;
    }
    Py_END_ALLOW_THREADS
    result = gathering_result(&self);
done:
    gathering_free(&self);
    return result;
}

static PyObject *core_index_memory(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"buffer", "file_position", "begin", "end", "frame_limit", NULL};
    Py_buffer buffer;
    unsigned long long file_position;
    unsigned long long begin;
    unsigned long long end;
    unsigned long long frame_limit;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*$KKKK:index_memory", names, &buffer, &file_position, &begin,
                                     &end, &frame_limit)) {
        return NULL;
    }
    struct gathering self = {
        .fd = -1,
        .stop_fd = -1,
        .window = buffer.buf,
        .place = begin,
        .end = end,
        .frame_limit = frame_limit,
        .out = {.high = UINT64_MAX},
        .is_growing = 1,
    };
    PyObject *result = NULL;
    if (gathering_take_file(&self, file_position, (unsigned long long)buffer.len) < 0) {
        goto done;
    }
    if (begin < file_position || end < begin || end > self.file_end) {
        PyErr_Format(PyExc_ValueError, "index_memory: %llu..%llu of a file at %llu", begin, end, file_position);
        goto done;
    }
    self.window_position = file_position;
    self.window_size = end - file_position;
    Py_BEGIN_ALLOW_THREADS
    gathering_run(&self);
    Py_END_ALLOW_THREADS
    self.sorted = self.out.entries; /* as they come */
    result = gathering_result(&self);
done:
    gathering_free(&self);
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *core_index_hash(PyObject *module, PyObject *args)
{
    Py_buffer topic;
    Py_buffer key;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*:index_hash", &topic, &key)) {
        return NULL;
    }
    PyObject *result = NULL;
    if (topic.len > UINT32_MAX || key.len > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "index_hash: longer than any topic or key");
    } else {
        result = PyLong_FromUnsignedLongLong(
            shmq_index_hash(topic.buf, (uint32_t)topic.len, key.buf, (uint32_t)key.len));
    }
    PyBuffer_Release(&topic);
    PyBuffer_Release(&key);
    return result;
}

static PyObject *core_index_directory(PyObject *module, PyObject *args)
{
    Py_buffer entries;
    unsigned int page_size;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*I:index_directory", &entries, &page_size)) {
        return NULL;
    }
    PyObject *rows = NULL;
    if (page_size < sizeof(struct shmq_index_entry)) {
        PyErr_Format(PyExc_ValueError, "index_directory: pages of %u bytes", page_size);
        goto done;
    }
    Py_ssize_t count = (entries.len + (Py_ssize_t)page_size - 1) / (Py_ssize_t)page_size;
    rows = PyBytes_FromStringAndSize(NULL, count * 16);
    if (rows == NULL) {
        goto done;
    }
    const uint8_t *page = entries.buf;
    uint8_t *row = (uint8_t *)PyBytes_AS_STRING(rows);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t left = entries.len; left > 0; left -= (Py_ssize_t)page_size, page += page_size, row += 16) {
        size_t size = left < (Py_ssize_t)page_size ? (size_t)left : page_size;
        shmq_le64_store(row, size >= 8 ? shmq_le64_load(page) : 0);
        shmq_le64_store(row + 8, shmq_crc32(0, page, size));
    }
    Py_END_ALLOW_THREADS
done:
    PyBuffer_Release(&entries);
    return rows;
}

static PyObject *core_index_find(PyObject *module, PyObject *args)
{
    Py_buffer buffer;
    unsigned long long hash;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*K:index_find", &buffer, &hash)) {
        return NULL;
    }
    const uint8_t *entries = buffer.buf;
    const Py_ssize_t count = buffer.len / (Py_ssize_t)sizeof(struct shmq_index_entry);
    PyObject *found = PyList_New(0);
    Py_ssize_t at = 0;
    while (found != NULL && at < count) {
        struct shmq_index_entry entry = {0};
        Py_BEGIN_ALLOW_THREADS
        for (; at < count; ++at) {
            memcpy(&entry, entries + at * (Py_ssize_t)sizeof entry, sizeof entry);
            if (entry.hash == hash) {
                break;
            }
        }
        Py_END_ALLOW_THREADS
        if (at++ < count) {
            PyObject *item = Py_BuildValue("(II)", entry.place, entry.second);
            if (item == NULL || PyList_Append(found, item) < 0) {
                Py_CLEAR(found);
            }
            Py_XDECREF(item);
        }
    }
    PyBuffer_Release(&buffer);
    return found;
}

static PyObject *core_frame_head(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"buffer", "physical_offset", "room", NULL};
    Py_buffer buffer;
    unsigned long long physical_offset;
    unsigned long long room;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*$KK:frame_head", names, &buffer, &physical_offset, &room)) {
        return NULL;
    }
    struct shmq_index_frame frame;
    int status = shmq_index_head(buffer.buf, (uint64_t)buffer.len, physical_offset, room, &frame);
    PyBuffer_Release(&buffer);
    if (status != SHMQ_OK) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("(IIIIIKL)", frame.total_size, frame.tail_place, frame.tail_size, frame.is_v2,
                         frame.queue_id, (unsigned long long)frame.queue_offset, (long long)frame.store_timestamp);
}

static PyMethodDef index_methods[] = {
    {"index_file", (PyCFunction)(void (*)(void))core_index_file, METH_VARARGS | METH_KEYWORDS,
     "index_file(fd, *, file_position, file_size, holes, low, high, entry_limit, idle, stop_fd)\n"
     "-> (status, place, sorted entries, frame_count, first, last store time in ms): the keys of a file's frames,\n"
     "of hashes low to high. FULL: more than entry_limit. CORRUPT or EMPTY: no frame at place, and no hole."},
    {"index_memory", (PyCFunction)(void (*)(void))core_index_memory, METH_VARARGS | METH_KEYWORDS,
     "index_memory(buffer, *, file_position, begin, end, frame_limit) -> as index_file, entries in order of places:\n"
     "the keys of committed frames in the memory of one file."},
    {"index_hash", core_index_hash, METH_VARARGS, "index_hash(topic, key) -> what an entry has for this key."},
    {"index_directory", core_index_directory, METH_VARARGS,
     "index_directory(entries, page_size) -> for each page its first hash and its CRC-32, 8 bytes each."},
    {"index_find", core_index_find, METH_VARARGS,
     "index_find(entries, hash) -> [(place, second), ...] of unsorted entries, in their order."},
    {"frame_head", (PyCFunction)(void (*)(void))core_frame_head, METH_VARARGS | METH_KEYWORDS,
     "frame_head(buffer, *, physical_offset, room) -> (total_size, tail_place, tail_size, is_v2, queue_id,\n"
     "queue_offset, store_timestamp) of a frame by what stands before its body, or None."},
    {NULL, NULL, 0, NULL},
};

int shmq_add_index(PyObject *module)
{
    return PyModule_AddFunctions(module, index_methods);
}
