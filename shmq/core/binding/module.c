/* module.c: the extension shmq.core._core: its state, its tables, and the error that carries a status. */
#include "binding.h"

#include <pthread.h>
#include <stdarg.h>

uint32_t shmq_fork_count;

static void shmq_after_fork_in_child(void)
{
    shmq_fork_count += 1;
}

struct shmq_module *shmq_module_state(PyObject *module)
{
    return (struct shmq_module *)PyModule_GetState(module);
}

struct shmq_module *shmq_module_of_type(PyTypeObject *type)
{
    return (struct shmq_module *)PyType_GetModuleState(type);
}

int shmq_fork_check(uint32_t fork_count, const char *what)
{
    if (fork_count == shmq_fork_count) {
        return 0;
    }
    shmq_raise("ForkError",
               "use %s in process %d: it was opened before fork, and shared memory handles do not survive "
               "one; open it anew in the process that uses it",
               what, (int)getpid());
    return -1;
}

PyObject *shmq_raise(const char *error, const char *format, ...)
{
    PyObject *errors = PyImport_ImportModule("shmq.errors");
    PyObject *type = errors == NULL ? NULL : PyObject_GetAttrString(errors, error);
    Py_XDECREF(errors);
    if (type != NULL) {
        va_list arguments;
        va_start(arguments, format);
        PyErr_FormatV(type, format, arguments);
        va_end(arguments);
        Py_DECREF(type);
    }
    return NULL;
}

PyObject *shmq_raise_status(struct shmq_module *module, int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    PyObject *detail = PyUnicode_FromFormatV(format, arguments);
    va_end(arguments);
    if (detail == NULL) {
        return NULL;
    }
    PyObject *args = Py_BuildValue("(iN)", status, detail);
    if (args != NULL) {
        PyErr_SetObject(module->core_error, args);
        Py_DECREF(args);
    }
    return NULL;
}

#if defined(__SANITIZE_ADDRESS__)
#define SHMQ_BUILD "address"
#elif defined(__SANITIZE_THREAD__)
#define SHMQ_BUILD "thread"
#else
#define SHMQ_BUILD "release"
#endif

#ifndef SHMQ_BUILD_FLAGS
#define SHMQ_BUILD_FLAGS "" /* built by hand, not by setup.py */
#endif

static int shmq_module_exec(PyObject *module)
{
    struct shmq_module *state = shmq_module_state(module);
    /* registered once per process; the handler only counts */
    static int registered;
    if (!registered) {
        registered = 1;
        (void)pthread_atfork(NULL, NULL, shmq_after_fork_in_child);
    }
    state->core_error = PyErr_NewExceptionWithDoc(
        "shmq.core._core.CoreError", "A verb of the core refused: args are (status, detail).", NULL, NULL);
    if (state->core_error == NULL || PyModule_AddObjectRef(module, "CoreError", state->core_error) < 0 ||
        PyModule_AddStringConstant(module, "BUILD", SHMQ_BUILD) < 0 ||
        PyModule_AddStringConstant(module, "BUILD_FLAGS", SHMQ_BUILD_FLAGS) < 0 ||
        PyModule_AddIntConstant(module, "LAYOUT_VERSION", SHMQ_LAYOUT_VERSION) < 0) {
        return -1;
    }
    if (shmq_add_layout(module) < 0 || shmq_add_mapping(module) < 0 || shmq_add_append(module) < 0 ||
        shmq_add_flush(module) < 0 || shmq_add_scan(module) < 0 || shmq_add_index(module) < 0 || shmq_add_log_map(module) < 0 ||
        shmq_add_message(module) < 0 || shmq_add_lane(module) < 0 || shmq_add_reader(module) < 0 ||
        shmq_add_stats(module) < 0) {
        return -1;
    }
    return 0;
}

static int shmq_module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct shmq_module *state = shmq_module_state(module);
    Py_VISIT(state->core_error);
    Py_VISIT(state->mapping_type);
    Py_VISIT(state->appender_type);
    Py_VISIT(state->flusher_type);
    Py_VISIT(state->log_map_type);
    Py_VISIT(state->lane_type);
    Py_VISIT(state->reader_type);
    Py_VISIT(state->message_type);
    Py_VISIT(state->loan_type);
    Py_VISIT(state->chunk_type);
    Py_VISIT(state->batch_type);
    Py_VISIT(state->completions_type);
    Py_VISIT(state->stats_rows_type);
    Py_VISIT(state->targets_name);
    Py_VISIT(state->turn_name);
    Py_VISIT(state->send_oneway_name);
    Py_VISIT(state->no_time);
    Py_VISIT(state->ndarray_type);
    return 0;
}

static int shmq_module_clear(PyObject *module)
{
    struct shmq_module *state = shmq_module_state(module);
    Py_CLEAR(state->core_error);
    Py_CLEAR(state->mapping_type);
    Py_CLEAR(state->appender_type);
    Py_CLEAR(state->flusher_type);
    Py_CLEAR(state->log_map_type);
    Py_CLEAR(state->lane_type);
    Py_CLEAR(state->reader_type);
    Py_CLEAR(state->message_type);
    Py_CLEAR(state->loan_type);
    Py_CLEAR(state->chunk_type);
    Py_CLEAR(state->batch_type);
    Py_CLEAR(state->completions_type);
    Py_CLEAR(state->stats_rows_type);
    Py_CLEAR(state->targets_name);
    Py_CLEAR(state->turn_name);
    Py_CLEAR(state->send_oneway_name);
    Py_CLEAR(state->no_time);
    Py_CLEAR(state->ndarray_type);
    return 0;
}

static PyModuleDef_Slot shmq_module_slots[] = {
    {Py_mod_exec, (void *)(uintptr_t)shmq_module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef shmq_module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "shmq.core._core",
    .m_doc = "The compiled core of shmq behind a thin binding; see shmq/core/include/shmq.",
    .m_size = sizeof(struct shmq_module),
    .m_slots = shmq_module_slots,
    .m_traverse = shmq_module_traverse,
    .m_clear = shmq_module_clear,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&shmq_module_definition);
}
