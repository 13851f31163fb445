/* batch.c: Batch: many received messages as columns of numbers, without an object for each. It pins the files
 * they lie in and exports its columns, and their bodies in place, as buffers. */
#include "reader.h"

#include "arguments.h"

struct shmq_batch *shmq_batch_new(struct shmq_module *module, struct shmq_log_map *log, Py_ssize_t room)
{
    struct shmq_batch *self = (struct shmq_batch *)module->batch_type->tp_alloc(module->batch_type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->module = module;
    self->log = (struct shmq_log_map *)Py_NewRef((PyObject *)log);
    self->room = room;
    self->export_column = -1;
    self->export_body = -1;
    self->columns = PyMem_RawMalloc(((size_t)room * SHMQ_BATCH_COLUMNS + 1) * sizeof *self->columns);
    if (self->columns == NULL) {
        Py_DECREF(self);
        PyErr_NoMemory();
        return NULL;
    }
    return self;
}

int shmq_batch_pin(struct shmq_batch *self, struct shmq_log_entry *entry)
{
    if (self->pin_count != 0 && self->pins[self->pin_count - 1] == entry) {
        return 0;
    }
    if (self->pin_count == self->pin_room) {
        size_t room = self->pin_room == 0 ? 4 : self->pin_room * 2;
        struct shmq_log_entry **pins = PyMem_RawRealloc(self->pins, room * sizeof(struct shmq_log_entry *));
        if (pins == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        self->pins = pins;
        self->pin_room = room;
    }
    shmq_log_entry_pin(entry);
    self->pins[self->pin_count++] = entry;
    return 0;
}

static void batch_dealloc(struct shmq_batch *self)
{
    PyTypeObject *type = Py_TYPE(self);
    for (size_t i = 0; i < self->pin_count; ++i) {
        shmq_log_entry_unpin(self->pins[i]);
    }
    PyMem_RawFree(self->pins);
    PyMem_RawFree(self->columns);
    Py_XDECREF(self->log);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- buffers ------------------------------------------------------------------------------------------------ */

static const uint8_t *batch_body(const struct shmq_batch *self, Py_ssize_t index)
{
    return (const uint8_t *)(uintptr_t)shmq_batch_column(self, SHMQ_BATCH_BODY_ADDRESSES)[index];
}

static Py_ssize_t batch_body_size(const struct shmq_batch *self, Py_ssize_t index)
{
    return (Py_ssize_t)shmq_batch_column(self, SHMQ_BATCH_BODY_SIZES)[index];
}

static int batch_getbuffer(struct shmq_batch *self, Py_buffer *view, int flags)
{
    static Py_ssize_t stride = sizeof(uint64_t);
    view->obj = NULL;
    if (self->export_body >= 0) {
        return PyBuffer_FillInfo(view, (PyObject *)self, (void *)(uintptr_t)batch_body(self, self->export_body),
                                 batch_body_size(self, self->export_body), 1, flags);
    }
    if (self->export_column < 0 || (flags & PyBUF_WRITABLE) == PyBUF_WRITABLE) {
        PyErr_SetString(PyExc_BufferError, "a Batch is many buffers: take one of its columns, or bodies()");
        return -1;
    }
    uint64_t *column = shmq_batch_column(self, (enum shmq_batch_column)self->export_column);
    *view = (Py_buffer){
        .buf = column,
        .obj = Py_NewRef((PyObject *)self),
        .len = self->count * stride,
        .itemsize = stride,
        .readonly = 1,
        .ndim = 1,
        .format = "Q",
        .shape = &self->count,
        .strides = &stride,
    };
    return 0;
}

/* Of a column or a body; the other is -1. What is exported is said beside the call: without the collector, which may
 * run Python code as the view is allocated, and with it another thread that asks for something else. */
static PyObject *batch_view(struct shmq_batch *self, int column, Py_ssize_t body)
{
    int had_collector = PyGC_Disable();
    self->export_column = column;
    self->export_body = body;
    PyObject *view = PyMemoryView_FromObject((PyObject *)self);
    self->export_column = -1;
    self->export_body = -1;
    if (had_collector) {
        (void)PyGC_Enable();
    }
    return view;
}

static PyObject *batch_get_column(struct shmq_batch *self, void *closure)
{
    return batch_view(self, (int)*(const enum shmq_batch_column *)closure, -1);
}

static PyObject *batch_bodies(struct shmq_batch *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"copy", NULL};
    PyObject *given[1];
    int is_copied = 0;
    if (shmq_arguments("bodies", names, 0, args, nargs, kwnames, given) < 0 ||
        shmq_argument_bool(given[0], &is_copied) < 0) {
        return NULL;
    }
    PyObject *list = PyList_New(self->count);
    for (Py_ssize_t i = 0; list != NULL && i < self->count; ++i) {
        PyObject *body = is_copied ? PyBytes_FromStringAndSize((const char *)batch_body(self, i),
                                                               batch_body_size(self, i))
                                   : batch_view(self, -1, i);
        if (body == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, body);
    }
    return list;
}

/* ---- copies and messages ------------------------------------------------------------------------------------ */

static PyObject *batch_copy_bodies(struct shmq_batch *self, PyObject *ignored)
{
    (void)ignored;
    const uint64_t *sizes = shmq_batch_column(self, SHMQ_BATCH_BODY_SIZES);
    uint64_t total = 0;
    for (Py_ssize_t i = 0; i < self->count; ++i) {
        total += sizes[i];
    }
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)total);
    PyObject *places = PyBytes_FromStringAndSize(NULL, (self->count + 1) * (Py_ssize_t)sizeof(uint64_t));
    PyObject *view = bytes == NULL || places == NULL ? NULL : PyMemoryView_FromObject(places);
    PyObject *cast = view == NULL ? NULL : PyObject_CallMethod(view, "cast", "s", "Q");
    Py_XDECREF(view);
    if (cast == NULL) {
        Py_XDECREF(bytes);
        Py_XDECREF(places);
        return NULL;
    }
    uint8_t *to = (uint8_t *)PyBytes_AS_STRING(bytes);
    uint8_t *ends = (uint8_t *)PyBytes_AS_STRING(places);
    PyThreadState *state = total >= SHMQ_GIL_COPY_SIZE ? PyEval_SaveThread() : NULL;
    uint64_t at = 0;
    for (Py_ssize_t i = 0; i < self->count; ++i) {
        memcpy(ends + (size_t)i * sizeof at, &at, sizeof at);
        memcpy(to + at, batch_body(self, i), sizes[i]);
        at += sizes[i];
    }
    memcpy(ends + (size_t)self->count * sizeof at, &at, sizeof at);
    if (state != NULL) {
        PyEval_RestoreThread(state);
    }
    Py_DECREF(places); /* the view has it */
    return Py_BuildValue("(NN)", bytes, cast);
}

static Py_ssize_t batch_length(struct shmq_batch *self)
{
    return self->count;
}

/* Which pin covers a frame; there are few. */
static struct shmq_log_entry *batch_entry(const struct shmq_batch *self, uint64_t physical_offset)
{
    for (size_t i = 0; i < self->pin_count; ++i) {
        struct shmq_log_entry *entry = self->pins[i];
        if (physical_offset - entry->file_position < entry->size_bytes) {
            return entry;
        }
    }
    return NULL;
}

static PyObject *batch_item(struct shmq_batch *self, Py_ssize_t index)
{
    if (index < 0 || index >= self->count) {
        PyErr_Format(PyExc_IndexError, "message %zd of a batch of %zd", index, self->count);
        return NULL;
    }
    uint64_t physical_offset = shmq_batch_column(self, SHMQ_BATCH_PHYSICAL_OFFSETS)[index];
    struct shmq_log_entry *entry = batch_entry(self, physical_offset);
    if (entry == NULL) {
        PyErr_SetString(PyExc_SystemError, "a batch holds a message of a file that it did not pin");
        return NULL;
    }
    return shmq_message_received(self->module, self->log, entry,
                                 entry->base + (physical_offset - entry->file_position),
                                 (uint32_t)shmq_batch_column(self, SHMQ_BATCH_SIZES)[index], NULL);
}

#define COLUMN(name, column, doc)                                                                  \
    {name, (getter)(void (*)(void))batch_get_column, NULL, doc, &(enum shmq_batch_column){column}}

static PyGetSetDef batch_getset[] = {
    COLUMN("queue_offsets", SHMQ_BATCH_QUEUE_OFFSETS, "(n,) uint64 memoryview: places in the queue"),
    COLUMN("physical_offsets", SHMQ_BATCH_PHYSICAL_OFFSETS, "(n,) uint64 memoryview: places in the CommitLog"),
    COLUMN("sizes", SHMQ_BATCH_SIZES, "(n,) uint64 memoryview: bytes of the frames"),
    COLUMN("body_addresses", SHMQ_BATCH_BODY_ADDRESSES, "(n,) uint64 memoryview: addresses in this process"),
    COLUMN("body_sizes", SHMQ_BATCH_BODY_SIZES, "(n,) uint64 memoryview: bytes of the bodies"),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef batch_methods[] = {
    {"bodies", (PyCFunction)(void (*)(void))batch_bodies, METH_FASTCALL | METH_KEYWORDS,
     "bodies(copy=False) -> list of read-only memoryviews, in place; or of bytes."},
    {"copy_bodies", (PyCFunction)(void (*)(void))batch_copy_bodies, METH_NOARGS,
     "copy_bodies() -> (bytes, places): all bodies, one after the other; body i is bytes[places[i]:places[i + 1]]."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot batch_slots[] = {
    {Py_tp_dealloc, (void *)(uintptr_t)batch_dealloc},
    {Py_tp_methods, batch_methods},
    {Py_tp_getset, batch_getset},
    {Py_sq_length, (void *)(uintptr_t)batch_length},
    {Py_sq_item, (void *)(uintptr_t)batch_item},
    {Py_bf_getbuffer, (void *)(uintptr_t)batch_getbuffer},
    {Py_tp_doc, "Batch: received messages as columns; len() and batch[i], a Message; made by Reader.read_columns."},
    {0, NULL},
};

static PyType_Spec batch_spec = {
    .name = "shmq.core._core.Batch",
    .basicsize = sizeof(struct shmq_batch),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = batch_slots,
};

int shmq_add_batch(PyObject *module)
{
    struct shmq_module *state = shmq_module_state(module);
    state->batch_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &batch_spec, NULL);
    return state->batch_type == NULL ? -1 : PyModule_AddType(module, state->batch_type);
}
