/* arguments.h: arguments of verbs that are called once per message, taken apart without a format string. */
#ifndef SHMQ_BINDING_ARGUMENTS_H
#define SHMQ_BINDING_ARGUMENTS_H

#include "binding.h"

/* Seconds as nanoseconds: below zero and NaN are 0, more than this many seconds is as good as for ever. */
#define SHMQ_TIMEOUT_S_MAX 1e9

static inline uint64_t shmq_timeout_ns(double seconds)
{
    if (!(seconds > 0.0)) {
        return 0;
    }
    return (uint64_t)((seconds < SHMQ_TIMEOUT_S_MAX ? seconds : SHMQ_TIMEOUT_S_MAX) * 1e9);
}

/* Fills out[] (NULL: not given) from a fast call. names[] ends with NULL; the first `required` must be there.
 * -1 with a TypeError. */
int shmq_arguments(const char *verb, const char *const *names, Py_ssize_t required, PyObject *const *args,
                   Py_ssize_t nargs, PyObject *kwnames, PyObject **out);

/* Seconds, or None for no bound; NULL leaves *out. */
int shmq_argument_timeout(PyObject *object, uint64_t *out);

int shmq_argument_u64(PyObject *object, const char *name, uint64_t *out);
int shmq_argument_u32(PyObject *object, const char *name, uint32_t *out);

/* Truth of an argument; NULL leaves *out. */
static inline int shmq_argument_bool(PyObject *object, int *out)
{
    if (object == NULL || object == Py_True || object == Py_False) {
        *out = object == NULL ? *out : object == Py_True;
        return 0;
    }
    *out = PyObject_IsTrue(object);
    return *out < 0 ? -1 : 0;
}

#endif
