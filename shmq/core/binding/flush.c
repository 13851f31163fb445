/* flush.c: Flusher: copies committed frames from hot memory into CommitLog files and makes them durable.
 *
 * It writes with pwrite and fdatasync, never through a map: a writable map of a file stalls the appends
 * for as long as the kernel writes it back (docs/decisions). One call of run() serves one file; opening the
 * next is Python's. Whatever was committed while one fdatasync ran is the group of the next; while nobody waits
 * for the disk, groups are gathered for an interval, up to a size. An error is returned, never retried: after a
 * failed fdatasync the kernel may have thrown the pages away. */
#include "append.h"

#include <errno.h>

/* One pwrite at most: bounds how long a stop waits. */
#define FLUSH_WRITE_MAX (4u << 20)
#define FLUSH_IDLE_NS 1000000000u

struct shmq_flusher {
    PyObject_HEAD
    PyObject *appender;
    shmq_word32 stop;
    shmq_word64 interval_ns; /* ASYNC_FLUSH gathers a group for this long */
    shmq_word32 running;
    uint32_t fork_count;
};

static PyObject *flusher_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"appender", "interval", "bytes_max", NULL};
    PyObject *appender;
    double interval = 0.01;
    unsigned long long bytes_max = UINT64_MAX;
    struct shmq_module *module = shmq_module_of_type(type);
    if (module == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "O!|$dK:Flusher", names,
                                                       module->appender_type, &appender, &interval, &bytes_max)) {
        return NULL;
    }
    if (!(interval >= 0.0 && interval <= 60.0)) {
        PyErr_SetString(PyExc_ValueError, "Flusher: the interval is 0 to 60 seconds");
        return NULL;
    }
    struct shmq_flusher *self = (struct shmq_flusher *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->appender = Py_NewRef(appender);
        ((struct shmq_appender *)appender)->unflushed_max = bytes_max;
        self->interval_ns = (uint64_t)(interval * 1e9);
        self->fork_count = shmq_fork_count;
    }
    return (PyObject *)self;
}

static void flusher_dealloc(struct shmq_flusher *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->appender);
    type->tp_free(self);
    Py_DECREF(type);
}

/* Does nobody wait for what is not flushed, and is it not too much? */
static int flusher_has_time(const struct shmq_appender *appender, uint64_t unflushed)
{
    /* acquire: pairs with the release in after_turn */
    return shmq_load_acquire32(&appender->sync_wanted) == 0 && unflushed <= appender->unflushed_max;
}

/* Sleeps until a commit (idle) or until there is no time left (nap), at most timeout_ns. */
static void flusher_sleep(struct shmq_flusher *self, struct shmq_appender *appender, uint64_t flushed,
                          uint32_t state, uint64_t timeout_ns)
{
    /* acquire: pairs with the release of the bell in after_turn */
    uint32_t seen = shmq_load_acquire32(&appender->flusher_bell);
    shmq_store_relaxed32(&appender->flusher_state, state); /* relaxed: the fence orders it */
    shmq_fence_full(); /* pairs with the fence in shmq_turn_publish and after_turn */
    struct shmq_control *control = appender->append.control;
    /* acquire: pairs with the release of committed_position in shmq_turn_publish */
    uint64_t unflushed = shmq_load_acquire(&control->append.committed_position) - flushed;
    int work = state == SHMQ_FLUSHER_IDLE ? unflushed != 0 : !flusher_has_time(appender, unflushed);
    /* acquire: pairs with the release in flusher_stop */
    if (!work && shmq_load_acquire32(&self->stop) == 0) {
        shmq_futex_wait(&appender->flusher_bell, seen, timeout_ns);
    }
    shmq_store_relaxed32(&appender->flusher_state, SHMQ_FLUSHER_AWAKE); /* relaxed: own word */
}

struct flush_outcome {
    int status; /* SHMQ_OK: the file is complete and synced; SHMQ_STOPPED; SHMQ_FLUSH_FAILED */
    int error;  /* errno */
    const char *what;
};

static int flush_write(int fd, const uint8_t *from, uint64_t size, uint64_t file_offset, int *error)
{
    while (size > 0) {
        ssize_t wrote = pwrite(fd, from, size < FLUSH_WRITE_MAX ? size : FLUSH_WRITE_MAX, (off_t)file_offset);
        if (wrote < 0) {
            if (errno == EINTR) {
                continue;
            }
            *error = errno;
            return -1;
        }
        from += wrote;
        size -= (uint64_t)wrote;
        file_offset += (uint64_t)wrote;
    }
    return 0;
}

static void flusher_file(struct shmq_flusher *self, struct shmq_appender *appender, int fd,
                         uint64_t file_position, const uint8_t *base, struct flush_outcome *outcome)
{
    struct shmq_control *control = appender->append.control;
    uint64_t file_end = file_position + appender->append.log.file_size_bytes;
    uint64_t flushed = shmq_load_relaxed(&control->flush.flushed_position); /* relaxed: own word */
    uint64_t group_since_ns = 0;
    for (;;) { /* until the file is complete, a stop or an error */
        /* acquire: pairs with the release in flusher_stop */
        int stopping = shmq_load_acquire32(&self->stop) != 0;
        /* acquire: pairs with the release in shmq_turn_publish; the frames below it are whole */
        uint64_t committed = shmq_load_acquire(&control->append.committed_position);
        uint64_t end = committed < file_end ? committed : file_end;
        if (end == flushed) {
            if (flushed == file_end) {
                outcome->status = SHMQ_OK;
                return;
            }
            if (stopping) {
                outcome->status = SHMQ_STOPPED;
                return;
            }
            flusher_sleep(self, appender, flushed, SHMQ_FLUSHER_IDLE, FLUSH_IDLE_NS);
            group_since_ns = 0;
            continue;
        }
        uint64_t interval_ns = shmq_load_relaxed(&self->interval_ns); /* relaxed: a setting */
        if (!stopping && interval_ns != 0 && end != file_end && flusher_has_time(appender, committed - flushed)) {
            uint64_t now_ns = shmq_clock_ns(CLOCK_MONOTONIC);
            if (group_since_ns == 0) {
                group_since_ns = now_ns;
            }
            if (now_ns - group_since_ns < interval_ns) {
                flusher_sleep(self, appender, flushed, SHMQ_FLUSHER_NAPS, interval_ns - (now_ns - group_since_ns));
                continue;
            }
        }
        group_since_ns = 0;
        if (flush_write(fd, base + (flushed - file_position), end - flushed, flushed - file_position,
                        &outcome->error) != 0) {
            outcome->status = SHMQ_FLUSH_FAILED;
            outcome->what = "pwrite";
            return;
        }
        /* release: pairs with the acquire of tools that show it */
        shmq_store_release(&control->flush.written_position, end);
        uint64_t begin_ns = shmq_clock_ns(CLOCK_MONOTONIC);
        if (fdatasync(fd) != 0) {
            outcome->error = errno;
            outcome->status = SHMQ_FLUSH_FAILED;
            outcome->what = "fdatasync";
            return;
        }
        uint64_t took_ns = shmq_clock_ns(CLOCK_MONOTONIC) - begin_ns;
        struct shmq_flush_positions *positions = &control->flush;
        /* relaxed: counters, own words */
        shmq_store_relaxed(&positions->flush_count, shmq_load_relaxed(&positions->flush_count) + 1);
        shmq_store_relaxed(&positions->flush_ns, shmq_load_relaxed(&positions->flush_ns) + took_ns);
        shmq_store_relaxed(&positions->flush_ns_last, took_ns);
        if (appender->append.stats != NULL) {
            shmq_latency_add(&appender->append.stats->flush, took_ns);
        }
        flushed = end;
        /* release: pairs with the acquire in shmq_turn_settle; the bytes below it are on disk */
        shmq_store_release(&positions->flushed_position, flushed);
        shmq_appender_nudge(appender);
    }
}

/* run(fd, file_position, hot) -> (status, errno, what) */
static PyObject *flusher_run(struct shmq_flusher *self, PyObject *args)
{
    int fd;
    unsigned long long file_position;
    PyObject *object;
    struct shmq_mapping *mapping;
    struct shmq_appender *appender = (struct shmq_appender *)self->appender;
    if (!PyArg_ParseTuple(args, "iKO:run", &fd, &file_position, &object) ||
        shmq_fork_check(self->fork_count, "a Flusher") < 0) {
        return NULL;
    }
    if (appender->closed || file_position % appender->append.log.file_size_bytes != 0) {
        PyErr_Format(PyExc_ValueError, "flush the file at %llu: want an open Appender and the first byte of a file",
                     file_position);
        return NULL;
    }
    uint64_t flushed = shmq_load_relaxed(&appender->append.control->flush.flushed_position); /* relaxed: own */
    if (flushed < file_position || flushed > file_position + appender->append.log.file_size_bytes ||
        shmq_mapping_get(shmq_module_of_type(Py_TYPE(self)), object, appender->append.log.file_size_bytes,
                         "flush", &mapping) < 0) {
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_ValueError, "flush the file at %llu: flushed_position is %llu, not in it",
                         file_position, (unsigned long long)flushed);
        }
        return NULL;
    }
    uint32_t idle = 0;
    if (!atomic_compare_exchange_strong(&self->running, &idle, 1)) {
        PyErr_SetString(PyExc_RuntimeError, "flush: another thread is the flusher already");
        return NULL;
    }
    struct flush_outcome outcome = {0, 0, ""};
    Py_INCREF(object);
    Py_BEGIN_ALLOW_THREADS
    flusher_file(self, appender, fd, file_position, mapping->base, &outcome);
    Py_END_ALLOW_THREADS
    Py_DECREF(object);
    shmq_store_release32(&self->running, 0); /* release: pairs with the compare-exchange above */
    return Py_BuildValue("(iis)", outcome.status, outcome.error, outcome.what);
}

static PyObject *flusher_stop(struct shmq_flusher *self, PyObject *ignored)
{
    (void)ignored;
    struct shmq_appender *appender = (struct shmq_appender *)self->appender;
    shmq_store_release32(&self->stop, 1); /* release: pairs with the acquire in flusher_file */
    shmq_fence_full(); /* pairs with the fence in flusher_sleep */
    /* release: pairs with the acquire in flusher_sleep */
    atomic_fetch_add_explicit(&appender->flusher_bell, 1, memory_order_acq_rel);
    shmq_futex_wake(&appender->flusher_bell);
    Py_RETURN_NONE;
}

static PyObject *flusher_set_interval(struct shmq_flusher *self, PyObject *argument)
{
    double interval = PyFloat_AsDouble(argument);
    if (interval == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    if (!(interval >= 0.0 && interval <= 60.0)) {
        PyErr_Format(PyExc_ValueError, "flush interval %R s, want 0 to 60", argument);
        return NULL;
    }
    shmq_store_relaxed(&self->interval_ns, (uint64_t)(interval * 1e9)); /* relaxed: a setting */
    Py_RETURN_NONE;
}

static PyMethodDef flusher_methods[] = {
    {"run", (PyCFunction)(void (*)(void))flusher_run, METH_VARARGS,
     "run(fd, file_position, hot) -> (status, errno, what): flushes one file, without the GIL, until it is "
     "complete (OK), stop() was called and everything is flushed (STOPPED), or the disk failed."},
    {"stop", (PyCFunction)(void (*)(void))flusher_stop, METH_NOARGS, "Asks run() to flush and return."},
    {"set_interval", (PyCFunction)(void (*)(void))flusher_set_interval, METH_O,
     "set_interval(seconds): how long ASYNC_FLUSH gathers a group."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot flusher_slots[] = {
    {Py_tp_new, (void *)(uintptr_t)flusher_new},
    {Py_tp_dealloc, (void *)(uintptr_t)flusher_dealloc},
    {Py_tp_methods, flusher_methods},
    {Py_tp_doc, "Flusher(appender, *, interval=0.01, bytes_max=...): the flusher of one store. It gathers for "
                "`interval` seconds while nobody waits for the disk, but no more than `bytes_max`."},
    {0, NULL},
};

static PyType_Spec flusher_spec = {
    .name = "shmq.core._core.Flusher",
    .basicsize = sizeof(struct shmq_flusher),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = flusher_slots,
};

int shmq_add_flush(PyObject *module)
{
    struct shmq_module *state = shmq_module_state(module);
    state->flusher_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &flusher_spec, NULL);
    return state->flusher_type == NULL ? -1 : PyModule_AddType(module, state->flusher_type);
}
