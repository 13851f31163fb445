/* mapping.c: mapped memory as a Python object. It may reserve more address space than the object behind it
 * has bytes now: segments grow at their end, and what was mapped stays where it is. */
#include "binding.h"

#include <sys/mman.h>

static PyObject *mapping_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "size", "writable", "reserve", "populate", NULL};
    int fd = -1;
    int writable = 0;
    int populate = 0;
    unsigned long long size = 0;
    unsigned long long reserve = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iK|$pKp:Mapping", names, &fd, &size, &writable, &reserve,
                                     &populate)) {
        return NULL;
    }
    if (reserve < size) {
        reserve = size;
    }
    if (reserve == 0 || reserve > (UINT64_C(1) << 46)) {
        PyErr_Format(PyExc_ValueError, "map fd %d: %llu bytes, want 1 to 2**46", fd, reserve);
        return NULL;
    }
    struct shmq_mapping *self = (struct shmq_mapping *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    void *base = NULL;
    int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    Py_BEGIN_ALLOW_THREADS /* populating a segment takes milliseconds */
    base = mmap(NULL, reserve, protection, MAP_SHARED | (populate ? MAP_POPULATE : 0), fd, 0);
    Py_END_ALLOW_THREADS
    if (base == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    self->base = base;
    self->size_bytes = size;
    self->reserve_bytes = reserve;
    self->writable = writable;
    self->fork_count = shmq_fork_count;
    return (PyObject *)self;
}

static void mapping_unmap(struct shmq_mapping *self)
{
    if (self->base != NULL) {
        (void)munmap(self->base, self->reserve_bytes);
        self->base = NULL;
        self->size_bytes = 0;
    }
}

static void mapping_dealloc(struct shmq_mapping *self)
{
    PyTypeObject *type = Py_TYPE(self);
    mapping_unmap(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* -1 with ForkError or ClosedError. */
static int mapping_check(const struct shmq_mapping *self, const char *what)
{
    if (shmq_fork_check(self->fork_count, "a Mapping") < 0) {
        return -1;
    }
    if (self->base == NULL) {
        shmq_raise("ClosedError", "%s: the mapping is closed", what);
        return -1;
    }
    return 0;
}

static int mapping_getbuffer(struct shmq_mapping *self, Py_buffer *view, int flags)
{
    view->obj = NULL;
    if (mapping_check(self, "view a mapping") < 0) {
        return -1;
    }
    if (PyBuffer_FillInfo(view, (PyObject *)self, self->base, (Py_ssize_t)self->size_bytes, !self->writable,
                          flags) < 0) {
        return -1;
    }
    self->export_count += 1;
    return 0;
}

static void mapping_releasebuffer(struct shmq_mapping *self, Py_buffer *view)
{
    (void)view;
    self->export_count -= 1;
}

static PyObject *mapping_close(struct shmq_mapping *self, PyObject *ignored)
{
    (void)ignored;
    if (self->export_count > 0) {
        PyErr_Format(PyExc_BufferError, "close a mapping: %zd views of it are alive; release them first",
                     self->export_count);
        return NULL;
    }
    mapping_unmap(self);
    Py_RETURN_NONE;
}

static PyObject *mapping_grow(struct shmq_mapping *self, PyObject *argument)
{
    unsigned long long size = PyLong_AsUnsignedLongLong(argument);
    if ((size == (unsigned long long)-1 && PyErr_Occurred()) || mapping_check(self, "grow a mapping") < 0) {
        return NULL;
    }
    if (size < self->size_bytes || size > self->reserve_bytes) {
        PyErr_Format(PyExc_ValueError, "grow a mapping to %llu bytes: it has %llu and reserves %llu", size,
                     (unsigned long long)self->size_bytes, (unsigned long long)self->reserve_bytes);
        return NULL;
    }
    self->size_bytes = size;
    if (self->writable) {
        /* release: pairs with the acquire of readers that bound their accesses by it; the bytes are allocated */
        shmq_store_release(&((struct shmq_segment_header *)(void *)self->base)->size_bytes, size);
    }
    Py_RETURN_NONE;
}

static PyObject *mapping_init_header(struct shmq_mapping *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"kind",      "magic",     "store_generation", "boot_id",      "owner_pid",
                            "owner_uid", "owner_start_time", "master_epoch", "number", NULL};
    struct shmq_segment_header values = {0};
    unsigned long long magic = 0;
    unsigned long long generation = 0;
    unsigned long long start_time = 0;
    unsigned long long epoch = 0;
    unsigned long long number = 0;
    const char *boot_id = NULL;
    Py_ssize_t boot_id_size = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$IKKy#IIKKK:init_header", names, &values.kind, &magic,
                                     &generation, &boot_id, &boot_id_size, &values.owner_pid,
                                     &values.owner_uid, &start_time, &epoch, &number)) {
        return NULL;
    }
    if (mapping_check(self, "write a segment head") < 0) {
        return NULL;
    }
    if (!self->writable || self->size_bytes < sizeof values || boot_id_size != 16) {
        PyErr_SetString(PyExc_ValueError,
                        "write a segment head: want a writable mapping and a boot id of 16 bytes");
        return NULL;
    }
    shmq_store_relaxed(&values.size_bytes, self->size_bytes); /* relaxed: a local */
    values.store_generation = generation;
    memcpy(values.boot_id, boot_id, sizeof values.boot_id);
    values.owner_start_time = start_time;
    values.master_epoch = epoch;
    values.number = number;
    shmq_segment_init((struct shmq_segment_header *)(void *)self->base, &values, magic);
    Py_RETURN_NONE;
}

static PyObject *mapping_load64(struct shmq_mapping *self, PyObject *argument)
{
    unsigned long long place = PyLong_AsUnsignedLongLong(argument);
    if ((place == (unsigned long long)-1 && PyErr_Occurred()) || mapping_check(self, "load a word") < 0) {
        return NULL;
    }
    if (self->size_bytes < 8 || place > self->size_bytes - 8 || place % 8 != 0) {
        PyErr_Format(PyExc_ValueError, "load the word at %llu of a mapping of %llu bytes", place,
                     (unsigned long long)self->size_bytes);
        return NULL;
    }
    /* acquire: pairs with the release of whoever publishes that word */
    return PyLong_FromUnsignedLongLong(
        shmq_load_acquire((const shmq_word64 *)(const void *)(self->base + place)));
}

static PyObject *mapping_load32(struct shmq_mapping *self, PyObject *argument)
{
    unsigned long long place = PyLong_AsUnsignedLongLong(argument);
    if ((place == (unsigned long long)-1 && PyErr_Occurred()) || mapping_check(self, "load a word") < 0) {
        return NULL;
    }
    if (self->size_bytes < 4 || place > self->size_bytes - 4 || place % 4 != 0) {
        PyErr_Format(PyExc_ValueError, "load the word at %llu of a mapping of %llu bytes", place,
                     (unsigned long long)self->size_bytes);
        return NULL;
    }
    /* acquire: pairs with the release of whoever publishes that word */
    return PyLong_FromUnsignedLong(
        shmq_load_acquire32((const shmq_word32 *)(const void *)(self->base + place)));
}

static PyObject *mapping_get_size(struct shmq_mapping *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(self->size_bytes);
}

static PyObject *mapping_get_reserve(struct shmq_mapping *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(self->base == NULL ? 0 : self->reserve_bytes);
}

static PyObject *mapping_enter(struct shmq_mapping *self, PyObject *ignored)
{
    (void)ignored;
    return Py_NewRef((PyObject *)self);
}

static PyObject *mapping_exit(struct shmq_mapping *self, PyObject *args)
{
    return mapping_close(self, args);
}

static PyObject *mapping_get_address(struct shmq_mapping *self, void *closure)
{
    (void)closure;
    return PyLong_FromVoidPtr(self->base);
}

static PyObject *mapping_get_closed(struct shmq_mapping *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong(self->base == NULL);
}

static PyMethodDef mapping_methods[] = {
    {"__enter__", (PyCFunction)(void (*)(void))mapping_enter, METH_NOARGS, "Gives itself."},
    {"__exit__", (PyCFunction)(void (*)(void))mapping_exit, METH_VARARGS, "Closes."},
    {"close", (PyCFunction)(void (*)(void))mapping_close, METH_NOARGS,
     "Unmaps. BufferError while views are alive; twice is once."},
    {"grow", (PyCFunction)(void (*)(void))mapping_grow, METH_O,
     "grow(size): the headed segment behind it has size bytes now; a writable one says so in its head."},
    {"init_header", (PyCFunction)(void (*)(void))mapping_init_header, METH_VARARGS | METH_KEYWORDS,
     "Writes the segment header, the magic last."},
    {"load64", (PyCFunction)(void (*)(void))mapping_load64, METH_O,
     "load64(place) -> int: the 64-bit word there, with acquire."},
    {"load32", (PyCFunction)(void (*)(void))mapping_load32, METH_O,
     "load32(place) -> int: the 32-bit word there, with acquire."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef mapping_getset[] = {
    {"size_bytes", (getter)(void (*)(void))mapping_get_size, NULL, "usable bytes now", NULL},
    {"reserve_bytes", (getter)(void (*)(void))mapping_get_reserve, NULL, "address space it may grow into",
     NULL},
    {"address", (getter)(void (*)(void))mapping_get_address, NULL, "address of the first byte", NULL},
    {"closed", (getter)(void (*)(void))mapping_get_closed, NULL, "True once closed", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot mapping_slots[] = {
    {Py_tp_new, (void *)(uintptr_t)mapping_new},
    {Py_tp_dealloc, (void *)(uintptr_t)mapping_dealloc},
    {Py_tp_methods, mapping_methods},
    {Py_tp_getset, mapping_getset},
    {Py_bf_getbuffer, (void *)(uintptr_t)mapping_getbuffer},
    {Py_bf_releasebuffer, (void *)(uintptr_t)mapping_releasebuffer},
    {Py_tp_doc, "Mapping(fd, size, *, writable=False, reserve=0, populate=False): shared memory, mapped."},
    {0, NULL},
};

static PyType_Spec mapping_spec = {
    .name = "shmq.core._core.Mapping",
    .basicsize = sizeof(struct shmq_mapping),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = mapping_slots,
};

int shmq_mapping_get(struct shmq_module *module, PyObject *object, uint64_t size, const char *what,
                     struct shmq_mapping **out)
{
    if (!PyObject_TypeCheck(object, module->mapping_type)) {
        PyErr_Format(PyExc_TypeError, "%s: want a Mapping, got %s", what, Py_TYPE(object)->tp_name);
        return -1;
    }
    struct shmq_mapping *mapping = (struct shmq_mapping *)object;
    if (shmq_fork_check(mapping->fork_count, what) < 0) {
        return -1;
    }
    if (mapping->base == NULL || mapping->size_bytes < size) {
        PyErr_Format(PyExc_ValueError, "%s: want an open mapping of at least %llu bytes, got %llu", what,
                     (unsigned long long)size, (unsigned long long)mapping->size_bytes);
        return -1;
    }
    *out = mapping;
    return 0;
}

int shmq_add_mapping(PyObject *module)
{
    struct shmq_module *state = shmq_module_state(module);
    state->mapping_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &mapping_spec, NULL);
    return state->mapping_type == NULL ? -1 : PyModule_AddType(module, state->mapping_type);
}
