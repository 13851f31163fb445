/* arguments.c: arguments of verbs that are called once per message, taken apart without a format string. */
#include "arguments.h"

int shmq_arguments(const char *verb, const char *const *names, Py_ssize_t required, PyObject *const *args,
                   Py_ssize_t nargs, PyObject *kwnames, PyObject **out)
{
    Py_ssize_t count = 0;
    for (; names[count] != NULL; ++count) {
        out[count] = count < nargs ? args[count] : NULL;
    }
    if (nargs > count) {
        PyErr_Format(PyExc_TypeError, "%s takes at most %zd arguments, got %zd", verb, count, nargs);
        return -1;
    }
    Py_ssize_t keywords = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < keywords; ++i) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        Py_ssize_t at = nargs; /* most likely one that has no value yet */
        while (at < count && PyUnicode_CompareWithASCIIString(name, names[at]) != 0) {
            ++at;
        }
        for (Py_ssize_t taken = 0; at == count && taken < nargs; ++taken) {
            at = PyUnicode_CompareWithASCIIString(name, names[taken]) == 0 ? taken : count;
        }
        if (at == count || out[at] != NULL) {
            PyErr_Format(PyExc_TypeError, at == count ? "%s has no argument %R" : "%s got two values for %R", verb,
                         name);
            return -1;
        }
        out[at] = args[nargs + i];
    }
    for (Py_ssize_t i = 0; i < required; ++i) {
        if (out[i] == NULL) {
            PyErr_Format(PyExc_TypeError, "%s needs the argument '%s'", verb, names[i]);
            return -1;
        }
    }
    return 0;
}

int shmq_argument_timeout(PyObject *object, uint64_t *out)
{
    if (object == NULL) {
        return 0;
    }
    if (object == Py_None) {
        *out = shmq_timeout_ns(SHMQ_TIMEOUT_S_MAX);
        return 0;
    }
    double seconds = PyFloat_AsDouble(object);
    if (seconds == -1.0 && PyErr_Occurred()) {
        return -1;
    }
    *out = shmq_timeout_ns(seconds);
    return 0;
}

int shmq_argument_u64(PyObject *object, const char *name, uint64_t *out)
{
    unsigned long long value = PyLong_Check(object) ? PyLong_AsUnsignedLongLong(object) : (unsigned long long)-1;
    if (value == (unsigned long long)-1 && (!PyLong_Check(object) || PyErr_Occurred())) {
        if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_OverflowError)) {
            PyErr_Format(PyLong_Check(object) ? PyExc_ValueError : PyExc_TypeError,
                         "%s: want an int from 0 to 2**64 - 1, got %R", name, object);
        }
        return -1;
    }
    *out = value;
    return 0;
}

int shmq_argument_u32(PyObject *object, const char *name, uint32_t *out)
{
    long value = PyLong_Check(object) ? PyLong_AsLong(object) : -1;
    if (value < 0 || value > (long)UINT32_MAX) {
        PyErr_Clear();
        PyErr_Format(PyLong_Check(object) ? PyExc_ValueError : PyExc_TypeError,
                     "%s: want an int from 0 to 2**32 - 1, got %R", name, object);
        return -1;
    }
    *out = (uint32_t)value;
    return 0;
}
