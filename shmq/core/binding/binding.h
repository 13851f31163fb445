/* binding.h: what the files of the binding share. No logic lives in this folder that the core could hold:
 * it parses arguments, keeps memory alive, lets go of the GIL to wait, and names errors. */
#ifndef SHMQ_BINDING_H
#define SHMQ_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef Py_GIL_DISABLED
#error "shmq needs an interpreter with the GIL: this one is free-threaded; install the ordinary build"
#endif
#ifndef __linux__
#error "shmq needs Linux 6.1 or newer"
#endif

#include "shmq/recovery.h"

/* Copies of at least this many bytes let go of the GIL (docs/decisions: a release costs 20 ns). */
#define SHMQ_GIL_COPY_SIZE 65536

/* Counts forks: bumped in the child. A handle remembers the count it was made under. */
extern uint32_t shmq_fork_count;

/* Per-module state. */
struct shmq_module {
    PyObject *core_error; /* shmq.core._core.CoreError(status, detail) */
    PyTypeObject *mapping_type;
    PyTypeObject *appender_type;
    PyTypeObject *flusher_type;
    PyTypeObject *log_map_type;
    PyTypeObject *lane_type;
    PyTypeObject *reader_type;
    PyTypeObject *message_type;
    PyTypeObject *loan_type;
    PyTypeObject *chunk_type;
    PyTypeObject *batch_type;
    PyTypeObject *completions_type;
    PyTypeObject *stats_rows_type;
    PyObject *targets_name; /* of oneway.c: what it looks up, and a timeout of 0 */
    PyObject *turn_name;
    PyObject *send_oneway_name;
    PyObject *no_time;
    PyTypeObject *ndarray_type; /* numpy's, once a body was looked at after somebody imported it */
};

struct shmq_module *shmq_module_of_type(PyTypeObject *type); /* through its defining module */
struct shmq_module *shmq_module_state(PyObject *module);

/* Mapped memory with the buffer protocol. Whoever keeps an address out of it keeps the object. */
struct shmq_mapping {
    PyObject_HEAD
    uint8_t *base;          /* NULL when closed */
    uint64_t size_bytes;    /* usable now */
    uint64_t reserve_bytes; /* mapped address space; >= size_bytes, room to grow into */
    int writable;
    uint32_t fork_count;
    Py_ssize_t export_count;
};

/* Raises and returns -1 if the handle was made before a fork; `what` names it. */
int shmq_fork_check(uint32_t fork_count, const char *what);

/* Raises the class of that name in shmq.errors; always returns NULL. */
PyObject *shmq_raise(const char *error, const char *format, ...);

/* Raises CoreError for a status of the core; always returns NULL. */
PyObject *shmq_raise_status(struct shmq_module *module, int status, const char *format, ...);

/* Borrows a Mapping's memory: raises and returns -1 if `object` is not an open Mapping of at least `size`. */
int shmq_mapping_get(struct shmq_module *module, PyObject *object, uint64_t size, const char *what,
                     struct shmq_mapping **out);

/* Keeps a Mapping mapped: its close() refuses until the same number of drops. */
static inline struct shmq_mapping *shmq_mapping_hold(struct shmq_mapping *mapping)
{
    Py_INCREF(mapping);
    mapping->export_count += 1;
    return mapping;
}

static inline void shmq_mapping_drop(struct shmq_mapping *mapping)
{
    if (mapping != NULL) {
        mapping->export_count -= 1;
        Py_DECREF(mapping);
    }
}

int shmq_add_mapping(PyObject *module);
int shmq_add_layout(PyObject *module);
int shmq_add_append(PyObject *module);
int shmq_add_flush(PyObject *module);
int shmq_add_scan(PyObject *module);
int shmq_add_index(PyObject *module);
int shmq_add_log_map(PyObject *module);
int shmq_add_message(PyObject *module);
int shmq_add_lane(PyObject *module);
int shmq_add_reader(PyObject *module);
int shmq_add_stats(PyObject *module);

#endif
