/* scan.c: frames of a CommitLog as recovery, the derived files and the tools read them: walked, found again behind
 * damage, sorted by queue, taken apart and made. Buffers are file contents, so any bytes at all; no shared
 * memory is touched. The GIL is let go while bytes are checked. */
#include "binding.h"

/* One frame as scan() gives it. Fixed width, native (little-endian) order; store/scan.py names the fields. */
struct shmq_scan_row {
    uint64_t physical_offset;
    uint64_t queue_offset;
    int64_t store_timestamp;
    int64_t tags_code;
    uint32_t total_size;
    uint32_t queue_id;
    uint32_t topic_number;
    uint32_t sys_flag;
};
_Static_assert(sizeof(struct shmq_scan_row) == 48, "store/scan.py reads 48 bytes");

#define SHMQ_FRAME_SIZE_MIN SHMQ_MESSAGE_FIXED_SIZE_V1
#define SHMQ_DELAY_LEVELS_MAX 64
#define SHMQ_SCHEDULE_TOPIC "SCHEDULE_TOPIC_XXXX"

/* ---- topics: name to number, open addressing --------------------------------------------------- */

struct topic_name {
    const uint8_t *name; /* in a bytes object that the caller keeps, or in the scanned buffer */
    uint32_t size;
    uint32_t hash;
};

struct topic_table {
    struct topic_name *names; /* by number */
    uint32_t *slots;          /* number + 1, 0: free; slot_count is a power of two */
    uint32_t slot_count;
    uint32_t count;
    uint32_t capacity;
};

static void topic_table_free(struct topic_table *table)
{
    PyMem_RawFree(table->names);
    PyMem_RawFree(table->slots);
    memset(table, 0, sizeof *table);
}

static void topic_table_place(struct topic_table *table, uint32_t number)
{
    uint32_t mask = table->slot_count - 1;
    uint32_t slot = table->names[number].hash & mask;
    while (table->slots[slot] != 0) { /* ends: at least half the slots are free */
        slot = (slot + 1) & mask;
    }
    table->slots[slot] = number + 1;
}

/* Room for one more name; -1 without memory. */
static int topic_table_reserve(struct topic_table *table)
{
    if (table->count < table->capacity) {
        return 0;
    }
    uint32_t capacity = table->capacity == 0 ? 64 : table->capacity * 2;
    struct topic_name *names = PyMem_RawRealloc(table->names, capacity * sizeof *names);
    if (names == NULL) {
        return -1;
    }
    table->names = names;
    uint32_t *slots = PyMem_RawCalloc((size_t)capacity * 2, sizeof *slots);
    if (slots == NULL) {
        return -1;
    }
    PyMem_RawFree(table->slots);
    table->slots = slots;
    table->slot_count = capacity * 2;
    table->capacity = capacity;
    for (uint32_t number = 0; number < table->count; ++number) {
        topic_table_place(table, number);
    }
    return 0;
}

/* The number of a topic, given a new one if it has none; UINT32_MAX without memory. */
static uint32_t topic_table_number(struct topic_table *table, const uint8_t *name, uint32_t size)
{
    uint32_t hash = shmq_crc32(0, name, size);
    if (table->slot_count != 0) {
        uint32_t mask = table->slot_count - 1;
        for (uint32_t slot = hash & mask; table->slots[slot] != 0; slot = (slot + 1) & mask) {
            const struct topic_name *topic = &table->names[table->slots[slot] - 1];
            if (topic->hash == hash && topic->size == size && memcmp(topic->name, name, size) == 0) {
                return table->slots[slot] - 1;
            }
        }
    }
    if (topic_table_reserve(table) < 0) {
        return UINT32_MAX;
    }
    uint32_t number = table->count++;
    table->names[number] = (struct topic_name){.name = name, .size = size, .hash = hash};
    topic_table_place(table, number);
    return number;
}

/* Fills the table from the caller's dict, whose keys `keys` keeps alive. */
static int topic_table_load(struct topic_table *table, PyObject *topics, PyObject *keys)
{
    Py_ssize_t count = PyList_GET_SIZE(keys);
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject *name = PyList_GET_ITEM(keys, i);
        PyObject *number = PyDict_GetItemWithError(topics, name);
        if (!PyBytes_Check(name) || number == NULL || PyLong_AsSsize_t(number) != i) {
            if (!PyErr_Occurred()) {
                PyErr_SetString(PyExc_ValueError, "scan: topics maps bytes to 0, 1, 2 ... in that order");
            }
            return -1;
        }
        uint32_t given = topic_table_number(table, (const uint8_t *)PyBytes_AS_STRING(name),
                                            (uint32_t)PyBytes_GET_SIZE(name));
        if (given == UINT32_MAX) {
            PyErr_NoMemory();
            return -1;
        }
    }
    return 0;
}

/* Adds the names found in the buffer to the caller's dict. */
static int topic_table_store(const struct topic_table *table, PyObject *topics, uint32_t from)
{
    for (uint32_t number = from; number < table->count; ++number) {
        const struct topic_name *topic = &table->names[number];
        PyObject *name = PyBytes_FromStringAndSize((const char *)topic->name, (Py_ssize_t)topic->size);
        PyObject *value = PyLong_FromUnsignedLong(number);
        int failed = name == NULL || value == NULL || PyDict_SetItem(topics, name, value) < 0;
        Py_XDECREF(name);
        Py_XDECREF(value);
        if (failed) {
            return -1;
        }
    }
    return 0;
}

/* ---- scan --------------------------------------------------------------------------------------- */

/* A window of the log: bytes [position, position + size) of the file that ends at file_end. */
struct window {
    const uint8_t *bytes;
    uint64_t position;
    uint64_t end;      /* behind the last byte there is, at most file_end */
    uint64_t file_end;
    uint32_t demands;
};

struct delay_levels {
    uint64_t ms[SHMQ_DELAY_LEVELS_MAX + 1];
    uint32_t count;
};

/* The frame at `place` of the window: statuses of shmq_message_check, and CORRUPT for a BLANK frame that does not
 * reach exactly to the end of its file. */
static int window_check(const struct window *window, uint64_t place, struct shmq_message_view *view)
{
    const uint8_t *frame = window->bytes + (place - window->position);
    uint64_t available = window->end - place;
    view->reason = SHMQ_REASON_NONE;
    if (available >= SHMQ_BLANK_SIZE && shmq_be32_load(frame + 4) == SHMQ_MESSAGE_MAGIC_BLANK) {
        view->total_size = shmq_be32_load(frame);
        view->magic = SHMQ_MESSAGE_MAGIC_BLANK;
        return view->total_size == window->file_end - place
                   ? SHMQ_BLANK
                   : shmq_message_refuse(view, SHMQ_REASON_TOTAL_SIZE);
    }
    int status = shmq_message_check(frame, available, place, window->demands, view);
    if (status == SHMQ_OK && view->total_size > window->file_end - place - SHMQ_BLANK_SIZE) {
        /* no writer leaves less than a BLANK frame behind a record */
        return shmq_message_refuse(view, SHMQ_REASON_TOTAL_SIZE);
    }
    return status;
}

/* What the ConsumeQueue entry says of the tag: its hash; of a scheduled message the time it is due. Found as
 * leniently as RocketMQ does, since a foreign store's properties are as they are. */
static int64_t scan_tags_code(const struct shmq_message_view *view, const struct delay_levels *delays)
{
    const uint8_t *value;
    uint32_t size;
    if (view->topic_size == sizeof SHMQ_SCHEDULE_TOPIC - 1 &&
        memcmp(view->topic, SHMQ_SCHEDULE_TOPIC, view->topic_size) == 0 &&
        shmq_properties_find(view->properties, view->properties_size, "DELAY", 5, &value, &size) == SHMQ_OK) {
        uint32_t level = 0;
        for (uint32_t i = 0; i < size && i < 3 && value[i] >= '0' && value[i] <= '9'; ++i) {
            level = level * 10 + (uint32_t)(value[i] - '0');
        }
        if (level > delays->count) {
            level = delays->count;
        }
        if (level > 0) {
            return view->store_timestamp + (int64_t)delays->ms[level];
        }
    }
    if (shmq_properties_find(view->properties, view->properties_size, "TAGS", 4, &value, &size) == SHMQ_OK) {
        return shmq_tags_code(value, size);
    }
    return 0;
}

struct scan {
    struct window window;
    struct delay_levels delays;
    struct topic_table topics;
    uint64_t place; /* of the frame looked at */
    uint64_t end;
    struct shmq_scan_row *rows;
    uint64_t row_count;
    uint64_t row_limit;
    int status;
    enum shmq_message_reason reason;
    int without_memory;
};

static void scan_run(struct scan *scan)
{
    struct shmq_message_view view;
    uint32_t topic_number = 0;
    const uint8_t *topic = NULL;
    uint32_t topic_size = 0;
    scan->status = SHMQ_OK;
    scan->reason = SHMQ_REASON_NONE;
    while (scan->place < scan->end && scan->row_count < scan->row_limit) {
        int status = window_check(&scan->window, scan->place, &view);
        if (status != SHMQ_OK) {
            scan->status = status;
            scan->reason = view.reason;
            return;
        }
        if (topic == NULL || topic_size != view.topic_size || memcmp(topic, view.topic, topic_size) != 0) {
            topic_number = topic_table_number(&scan->topics, view.topic, view.topic_size);
            if (topic_number == UINT32_MAX) {
                scan->without_memory = 1;
                return;
            }
            topic = view.topic;
            topic_size = view.topic_size;
        }
        scan->rows[scan->row_count++] = (struct shmq_scan_row){
            .physical_offset = scan->place,
            .queue_offset = view.queue_offset,
            .store_timestamp = view.store_timestamp,
            .tags_code = scan_tags_code(&view, &scan->delays),
            .total_size = view.total_size,
            .queue_id = view.queue_id,
            .topic_number = topic_number,
            .sys_flag = view.sys_flag,
        };
        scan->place += view.total_size;
    }
}

/* Common arguments of scan() and resync(). Returns -1 with an exception set; the buffer is released then. */
static int window_take(Py_buffer *buffer, unsigned long long position, unsigned long long begin,
                       unsigned long long end, unsigned long long file_end, unsigned int demands,
                       const char *what, struct window *window)
{
    uint64_t size = (uint64_t)buffer->len;
    if (position > UINT64_MAX / 2 || file_end > UINT64_MAX / 2 || begin < position || end < begin ||
        end > position + size || end > file_end) {
        PyErr_Format(PyExc_ValueError, "%s: %llu..%llu of a window of %llu bytes at %llu, file end %llu", what,
                     begin, end, (unsigned long long)size, position, file_end);
        PyBuffer_Release(buffer);
        return -1;
    }
    window->bytes = buffer->buf;
    window->position = position;
    window->end = position + size < file_end ? position + size : file_end;
    window->file_end = file_end;
    window->demands = demands;
    return 0;
}

static int delay_levels_take(PyObject *object, struct delay_levels *delays)
{
    memset(delays, 0, sizeof *delays);
    if (object == NULL || object == Py_None) {
        return 0;
    }
    PyObject *list = PySequence_Fast(object, "scan: delay_ms is not a sequence");
    if (list == NULL) {
        return -1;
    }
    Py_ssize_t count = PySequence_Fast_GET_SIZE(list);
    int result = 0;
    if (count > SHMQ_DELAY_LEVELS_MAX) {
        PyErr_Format(PyExc_ValueError, "scan: %zd delay levels, at most %d", count, SHMQ_DELAY_LEVELS_MAX);
        result = -1;
    }
    for (Py_ssize_t i = 0; i < count && result == 0; ++i) {
        delays->ms[i + 1] = PyLong_AsUnsignedLongLong(PySequence_Fast_GET_ITEM(list, i));
        result = PyErr_Occurred() ? -1 : 0;
    }
    delays->count = result == 0 ? (uint32_t)count : 0;
    Py_DECREF(list);
    return result;
}

static PyObject *core_scan(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"buffer",  "position", "begin",       "end",      "file_end",
                            "topics", "demands",  "frame_limit", "delay_ms", NULL};
    Py_buffer buffer;
    unsigned long long position;
    unsigned long long begin;
    unsigned long long end;
    unsigned long long file_end;
    unsigned int demands = SHMQ_CHECK_RECORD_CRC;
    unsigned long long frame_limit = UINT64_MAX;
    PyObject *topics;
    PyObject *delay_ms = NULL;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*KKKKO!|$IKO:scan", names, &buffer, &position, &begin, &end,
                                     &file_end, &PyDict_Type, &topics, &demands, &frame_limit, &delay_ms)) {
        return NULL;
    }
    struct scan scan = {.place = begin, .end = end};
    if (window_take(&buffer, position, begin, end, file_end, demands, "scan", &scan.window) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    PyObject *rows = NULL;
    PyObject *keys = PyDict_Keys(topics);
    if (keys == NULL || topic_table_load(&scan.topics, topics, keys) < 0 ||
        delay_levels_take(delay_ms, &scan.delays) < 0) {
        goto done;
    }
    uint32_t topics_before = scan.topics.count;
    scan.row_limit = (end - begin) / SHMQ_FRAME_SIZE_MIN + 1;
    if (scan.row_limit > frame_limit) {
        scan.row_limit = frame_limit;
    }
    rows = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(scan.row_limit * sizeof *scan.rows));
    if (rows == NULL) {
        goto done;
    }
    scan.rows = (struct shmq_scan_row *)(void *)PyBytes_AS_STRING(rows);
    Py_BEGIN_ALLOW_THREADS
    scan_run(&scan);
    Py_END_ALLOW_THREADS
    if (scan.without_memory) {
        PyErr_NoMemory();
        goto done;
    }
    if (topic_table_store(&scan.topics, topics, topics_before) < 0 ||
        _PyBytes_Resize(&rows, (Py_ssize_t)(scan.row_count * sizeof *scan.rows)) < 0) {
        goto done;
    }
    result = Py_BuildValue("(KiiO)", (unsigned long long)scan.place, scan.status, (int)scan.reason, rows);
done:
    Py_XDECREF(rows);
    Py_XDECREF(keys);
    topic_table_free(&scan.topics);
    PyBuffer_Release(&buffer);
    return result;
}

/* ---- resync ------------------------------------------------------------------------------------- */

/* Whether eight bytes look like the start of a frame that fits into its file. */
static int resync_is_candidate(const struct window *window, uint64_t place)
{
    const uint8_t *at = window->bytes + (place - window->position);
    uint32_t magic = shmq_be32_load(at + 4);
    uint64_t size = shmq_be32_load(at);
    uint64_t room = window->file_end - place;
    if (magic == SHMQ_MESSAGE_MAGIC_BLANK) {
        return size == room;
    }
    return (magic == SHMQ_MESSAGE_MAGIC_V1 || magic == SHMQ_MESSAGE_MAGIC_V2) && size >= SHMQ_FRAME_SIZE_MIN &&
           size + SHMQ_BLANK_SIZE <= room;
}

/* Whether the rest of a candidate's header agrees: then it is worth reading further than the window. */
static int resync_is_plausible(const struct window *window, uint64_t place)
{
    const uint8_t *at = window->bytes + (place - window->position);
    return window->end - place < SHMQ_MESSAGE_HEADER_SIZE || shmq_be64_load(at + 28) == place;
}

/* The first place from *place on that holds a valid frame. OK: *place is it; CORRUPT: *place may be one, but the
 * window ends inside it; EMPTY: none, and *place is where to go on with the next window. */
static int resync_run(const struct window *window, uint64_t end, uint64_t *place)
{
    struct shmq_message_view view;
    uint64_t at = *place;
    for (; at < end && window->end - at >= SHMQ_BLANK_SIZE; ++at) {
        if (!resync_is_candidate(window, at)) {
            continue;
        }
        int status = window_check(window, at, &view);
        if (status == SHMQ_OK || status == SHMQ_BLANK) {
            *place = at;
            return SHMQ_OK;
        }
        if (status == SHMQ_CORRUPT && view.reason == SHMQ_REASON_CUT && resync_is_plausible(window, at)) {
            *place = at;
            return SHMQ_CORRUPT;
        }
    }
    *place = at;
    return SHMQ_EMPTY;
}

static PyObject *core_resync(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"buffer", "position", "begin", "end", "file_end", "demands", NULL};
    Py_buffer buffer;
    unsigned long long position;
    unsigned long long begin;
    unsigned long long end;
    unsigned long long file_end;
    unsigned int demands = SHMQ_CHECK_RECORD_CRC;
    struct window window;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*KKKK|$I:resync", names, &buffer, &position, &begin, &end,
                                     &file_end, &demands) ||
        window_take(&buffer, position, begin, end, file_end, demands, "resync", &window) < 0) {
        return NULL;
    }
    uint64_t place = begin;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = resync_run(&window, end, &place);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&buffer);
    return Py_BuildValue("(Ki)", (unsigned long long)place, status);
}

/* ---- group: rows of scan() sorted into the runs of each queue --------------------------------- */

/* Contiguous queue offsets of one queue. */
struct run {
    uint64_t first_queue_offset;
    uint64_t count; /* entries, holes included */
    uint64_t holes;
    uint64_t place; /* index in the output of its first entry; group_entries moves it and first_queue_offset on */
    int64_t first_store_timestamp;
    int64_t last_store_timestamp;
    uint32_t topic_number;
    uint32_t queue_id;
};

struct group {
    struct run *runs;
    uint32_t *slots; /* newest run of a queue + 1; power of two */
    uint32_t *run_of_row; /* UINT32_MAX: in no queue */
    uint64_t repeated; /* rows whose queue offset was there already */
    uint64_t entry_count;
    uint64_t gap_limit; /* missing offsets that may still be filled with holes */
    uint32_t run_count;
    uint32_t run_capacity;
    uint32_t slot_count;
    uint32_t reserved;
};

static uint32_t group_hash(uint32_t topic_number, uint32_t queue_id)
{
    uint64_t key = (uint64_t)topic_number << 32 | queue_id;
    return (uint32_t)(key * 0x9e3779b97f4a7c15u >> 32);
}

/* The slot of a queue: free, or holding its newest run. */
static uint32_t *group_slot(const struct group *group, uint32_t topic_number, uint32_t queue_id)
{
    uint32_t mask = group->slot_count - 1;
    uint32_t slot = group_hash(topic_number, queue_id) & mask;
    while (group->slots[slot] != 0) { /* ends: at least half the slots are free */
        const struct run *run = &group->runs[group->slots[slot] - 1];
        if (run->topic_number == topic_number && run->queue_id == queue_id) {
            break;
        }
        slot = (slot + 1) & mask;
    }
    return &group->slots[slot];
}

static int group_reserve(struct group *group)
{
    if (group->run_count < group->run_capacity) {
        return 0;
    }
    uint32_t capacity = group->run_capacity == 0 ? 256 : group->run_capacity * 2;
    struct run *runs = PyMem_RawRealloc(group->runs, capacity * sizeof *runs);
    if (runs == NULL) {
        return -1;
    }
    group->runs = runs;
    uint32_t *slots = PyMem_RawCalloc((size_t)capacity * 2, sizeof *slots);
    if (slots == NULL) {
        return -1;
    }
    PyMem_RawFree(group->slots);
    group->slots = slots;
    group->slot_count = capacity * 2;
    group->run_capacity = capacity;
    for (uint32_t i = 0; i < group->run_count; ++i) { /* in order: the newest run of a queue stays */
        *group_slot(group, runs[i].topic_number, runs[i].queue_id) = i + 1;
    }
    return 0;
}

/* Prepared and rolled back transaction messages are in no queue (RocketMQ CommitLogDispatcherBuildConsumeQueue). */
static int row_is_queued(const struct shmq_scan_row *row)
{
    uint32_t transaction = row->sys_flag & SHMQ_SYS_FLAG_TRANSACTION_MASK;
    return transaction != SHMQ_SYS_FLAG_TRANSACTION_PREPARED && transaction != SHMQ_SYS_FLAG_TRANSACTION_ROLLBACK;
}

/* Finds the run of one row, beginning one where there is none or the gap is too wide. -1 without memory. */
static int group_count(struct group *group, const struct shmq_scan_row *row, uint32_t *run_of_row)
{
    *run_of_row = UINT32_MAX;
    if (!row_is_queued(row)) {
        return 0;
    }
    if (group_reserve(group) < 0) {
        return -1;
    }
    uint32_t *slot = group_slot(group, row->topic_number, row->queue_id);
    uint32_t previous = *slot - 1;
    if (*slot != 0) {
        struct run *run = &group->runs[previous];
        uint64_t next = run->first_queue_offset + run->count;
        if (row->queue_offset < next) {
            group->repeated += 1;
            return 0;
        }
        uint64_t gap = row->queue_offset - next;
        if (gap <= group->gap_limit) {
            group->gap_limit -= gap;
            group->entry_count += gap + 1;
            run->count += gap + 1;
            run->holes += gap;
            run->last_store_timestamp = row->store_timestamp;
            *run_of_row = previous;
            return 0;
        }
    }
    group->runs[group->run_count] = (struct run){
        .first_queue_offset = row->queue_offset,
        .count = 1,
        .first_store_timestamp = row->store_timestamp,
        .last_store_timestamp = row->store_timestamp,
        .topic_number = row->topic_number,
        .queue_id = row->queue_id,
    };
    group->entry_count += 1;
    *run_of_row = group->run_count;
    *slot = ++group->run_count;
    return 0;
}

static int group_runs(struct group *group, const uint8_t *bytes, uint64_t row_count)
{
    group->run_of_row = PyMem_RawMalloc((row_count + 1) * sizeof *group->run_of_row);
    if (group->run_of_row == NULL) {
        return -1;
    }
    for (uint64_t i = 0; i < row_count; ++i) {
        struct shmq_scan_row row;
        memcpy(&row, bytes + i * sizeof row, sizeof row);
        if (group_count(group, &row, &group->run_of_row[i]) < 0) {
            return -1;
        }
    }
    uint64_t place = 0;
    for (uint32_t i = 0; i < group->run_count; ++i) {
        group->runs[i].place = place;
        place += group->runs[i].count;
    }
    return 0;
}

/* Writes the entries, run behind run. A hole has size 0 and the place of the frame behind it, as in the arena. */
static void group_entries(struct group *group, const uint8_t *bytes, uint64_t row_count, uint8_t *out)
{
    for (uint64_t i = 0; i < row_count; ++i) {
        if (group->run_of_row[i] == UINT32_MAX) {
            continue;
        }
        struct shmq_scan_row row;
        memcpy(&row, bytes + i * sizeof row, sizeof row);
        struct run *run = &group->runs[group->run_of_row[i]];
        uint64_t next = run->first_queue_offset;
        for (; next <= row.queue_offset; ++next) {
            int hole = next != row.queue_offset;
            uint64_t entry[3] = {row.physical_offset, hole ? 0 : (uint64_t)row.tags_code,
                                 hole ? 0 : row.total_size};
            memcpy(out + run->place * sizeof entry, entry, sizeof entry);
            run->place += 1;
        }
        run->first_queue_offset = next;
    }
}

static PyObject *core_group(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"rows", "gap_limit", NULL};
    Py_buffer buffer;
    unsigned long long gap_limit;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*K:group", names, &buffer, &gap_limit)) {
        return NULL;
    }
    struct group group = {.gap_limit = gap_limit};
    PyObject *result = NULL;
    PyObject *list = NULL;
    PyObject *entries = NULL;
    uint64_t row_count = (uint64_t)buffer.len / sizeof(struct shmq_scan_row);
    if (row_count * sizeof(struct shmq_scan_row) != (uint64_t)buffer.len) {
        PyErr_Format(PyExc_ValueError, "group: %zd bytes are no whole number of rows", buffer.len);
        goto done;
    }
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = group_runs(&group, buffer.buf, row_count);
    Py_END_ALLOW_THREADS
    if (failed) {
        PyErr_NoMemory();
        goto done;
    }
    list = PyList_New((Py_ssize_t)group.run_count);
    entries = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(group.entry_count * sizeof(struct shmq_entry)));
    if (list == NULL || entries == NULL) {
        goto done;
    }
    for (uint32_t i = 0; i < group.run_count; ++i) {
        const struct run *run = &group.runs[i];
        PyObject *item = Py_BuildValue(
            "(IIKKKKLL)", run->topic_number, run->queue_id, (unsigned long long)run->first_queue_offset,
            (unsigned long long)run->count, (unsigned long long)run->holes, (unsigned long long)run->place,
            (long long)run->first_store_timestamp, (long long)run->last_store_timestamp);
        if (item == NULL) {
            goto done;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
    uint8_t *out = (uint8_t *)PyBytes_AS_STRING(entries);
    Py_BEGIN_ALLOW_THREADS
    group_entries(&group, buffer.buf, row_count, out);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("(OOK)", list, entries, (unsigned long long)group.repeated);
done:
    Py_XDECREF(list);
    Py_XDECREF(entries);
    PyMem_RawFree(group.runs);
    PyMem_RawFree(group.slots);
    PyMem_RawFree(group.run_of_row);
    PyBuffer_Release(&buffer);
    return result;
}

/* ---- one frame ---------------------------------------------------------------------------------- */

static PyObject *core_parse_frame(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"buffer", "physical_offset", "demands", "believe", NULL};
    Py_buffer buffer;
    unsigned long long physical_offset;
    unsigned int demands = SHMQ_CHECK_RECORD_CRC;
    int believe = 0;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*K|$Ip:parse_frame", names, &buffer, &physical_offset,
                                     &demands, &believe)) {
        return NULL;
    }
    struct shmq_message_view view;
    struct shmq_message_view parsed;
    memset(&view, 0, sizeof view);
    memset(&parsed, 0, sizeof parsed);
    int status = shmq_message_check(buffer.buf, (size_t)buffer.len, physical_offset, demands, &view);
    int shape = shmq_message_parse(buffer.buf, (size_t)buffer.len, &parsed);
    PyObject *result;
    if (shape == SHMQ_OK && (status == SHMQ_OK || believe)) {
        result = Py_BuildValue(
            "(ii{s:I,s:I,s:I,s:I,s:i,s:K,s:K,s:I,s:L,s:y#,s:L,s:y#,s:i,s:K,s:y#,s:y#,s:y#})", status,
            (int)view.reason, "totalSize", parsed.total_size, "magic", parsed.magic, "bodyCRC", parsed.body_crc,
            "queueId", parsed.queue_id, "flag", (int)parsed.flag, "queueOffset",
            (unsigned long long)parsed.queue_offset, "physicalOffset",
            (unsigned long long)parsed.physical_offset, "sysFlag", parsed.sys_flag, "bornTimestamp",
            (long long)parsed.born_timestamp, "bornHost", parsed.born_host, (Py_ssize_t)parsed.born_host_size,
            "storeTimestamp", (long long)parsed.store_timestamp, "storeHost", parsed.store_host,
            (Py_ssize_t)parsed.store_host_size, "reconsumeTimes", (int)parsed.reconsume_times,
            "preparedTransactionOffset", (unsigned long long)parsed.prepared_transaction_offset, "body",
            parsed.body, (Py_ssize_t)parsed.body_size, "topic", parsed.topic, (Py_ssize_t)parsed.topic_size,
            "properties", parsed.properties, (Py_ssize_t)parsed.properties_size);
    } else if (status == SHMQ_BLANK) {
        result = Py_BuildValue("(ii{s:I,s:I})", status, 0, "totalSize", view.total_size, "magic", view.magic);
    } else {
        result = Py_BuildValue("(iiO)", status, (int)view.reason, Py_None);
    }
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *core_encode_frame(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"topic",    "queue_id",        "queue_offset",   "physical_offset", "store_timestamp",
                            "sys_flag", "born_timestamp", "born_host",       "store_host",     "body",
                            "properties", NULL};
    Py_buffer topic;
    Py_buffer body;
    Py_buffer properties;
    const char *born_host;
    const char *store_host;
    Py_ssize_t born_host_size;
    Py_ssize_t store_host_size;
    unsigned int queue_id;
    unsigned int sys_flag;
    unsigned long long queue_offset;
    unsigned long long physical_offset;
    long long store_timestamp;
    long long born_timestamp;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*IKKLILy#y#y*y*:encode_frame", names, &topic, &queue_id,
                                     &queue_offset, &physical_offset, &store_timestamp, &sys_flag,
                                     &born_timestamp, &born_host, &born_host_size, &store_host,
                                     &store_host_size, &body, &properties)) {
        return NULL;
    }
    PyObject *frame = NULL;
    struct shmq_message_fields fields = {
        .topic = topic.buf,
        .topic_size = topic.len > SHMQ_TOPIC_SIZE_V2_MAX ? 0 : (uint32_t)topic.len,
        .body_size = (uint32_t)body.len,
        .properties_size = (uint32_t)properties.len,
        .queue_id = queue_id,
        .sys_flag = sys_flag,
        .born_timestamp = born_timestamp,
        .store_timestamp = store_timestamp,
        .queue_offset = queue_offset,
        .physical_offset = physical_offset,
    };
    uint32_t size = 0;
    if (body.len <= (Py_ssize_t)SHMQ_MESSAGE_SIZE_MAX && properties.len <= (Py_ssize_t)SHMQ_PROPERTIES_SIZE_MAX) {
        size = shmq_message_size(fields.topic_size, fields.body_size,
                                 fields.properties_size + SHMQ_CRC_PROPERTY_SIZE);
    }
    if (size == 0 || born_host_size != SHMQ_HOST_SIZE_V4 || store_host_size != SHMQ_HOST_SIZE_V4) {
        shmq_raise_status(shmq_module_state(module), SHMQ_ILLEGAL, "encode a frame: sizes that no record has");
        goto done;
    }
    memcpy(fields.born_host, born_host, SHMQ_HOST_SIZE_V4);
    memcpy(fields.store_host, store_host, SHMQ_HOST_SIZE_V4);
    frame = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (frame != NULL) {
        int status = shmq_message_encode((uint8_t *)PyBytes_AS_STRING(frame), &fields, body.buf, properties.buf);
        if (status != SHMQ_OK) {
            Py_CLEAR(frame);
            shmq_raise_status(shmq_module_state(module), status, "encode a frame");
        }
    }
done:
    PyBuffer_Release(&topic);
    PyBuffer_Release(&body);
    PyBuffer_Release(&properties);
    return frame;
}

static PyMethodDef scan_methods[] = {
    {"scan", (PyCFunction)(void (*)(void))core_scan, METH_VARARGS | METH_KEYWORDS,
     "scan(buffer, *, position, begin, end, file_end, topics, demands, frame_limit, delay_ms)\n"
     "-> (next position, status, reason, rows): walks the frames from begin until end or one that does not hold."},
    {"resync", (PyCFunction)(void (*)(void))core_resync, METH_VARARGS | METH_KEYWORDS,
     "resync(buffer, *, position, begin, end, file_end, demands) -> (place, status): finds the next frame."},
    {"group", (PyCFunction)(void (*)(void))core_group, METH_VARARGS | METH_KEYWORDS,
     "group(rows, *, gap_limit) -> (runs, entries, repeated): rows of scan() as ConsumeQueue entries by queue."},
    {"parse_frame", (PyCFunction)(void (*)(void))core_parse_frame, METH_VARARGS | METH_KEYWORDS,
     "parse_frame(buffer, *, physical_offset, demands, believe) -> (status, reason, fields or None)."},
    {"encode_frame", (PyCFunction)(void (*)(void))core_encode_frame, METH_VARARGS | METH_KEYWORDS,
     "encode_frame(topic, *, queue_id, ...) -> bytes: one record with both CRCs."},
    {NULL, NULL, 0, NULL},
};

int shmq_add_scan(PyObject *module)
{
    static const struct {
        const char *name;
        const char *text;
    } reasons[] = {
#define REASON_ROW(name, text) {#name, text},
        SHMQ_MESSAGE_REASON_TABLE(REASON_ROW)
#undef REASON_ROW
    };
    Py_ssize_t count = (Py_ssize_t)(sizeof reasons / sizeof reasons[0]);
    PyObject *table = PyTuple_New(count);
    for (Py_ssize_t i = 0; table != NULL && i < count; ++i) {
        PyObject *row = Py_BuildValue("(ss)", reasons[i].name, reasons[i].text);
        if (row == NULL) {
            Py_CLEAR(table);
            break;
        }
        PyTuple_SET_ITEM(table, i, row);
    }
    if (table == NULL || PyModule_AddObjectRef(module, "MESSAGE_REASONS", table) < 0) {
        Py_XDECREF(table);
        return -1;
    }
    Py_DECREF(table);
    return PyModule_AddFunctions(module, scan_methods);
}
