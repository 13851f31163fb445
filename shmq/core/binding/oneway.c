/* oneway.c: Oneway: what a producer's send_oneway does while nothing is in its way: the topic is known and the next
 * queue's ring has room. Everything else, and who chooses a queue or a delay, is the business of the class that is made
 * of it: its _send_oneway is called with the same arguments. Keeps nothing. */
#include "lane.h"

#include "arguments.h"

/* No key, no queue, no delay: as if it was not given. */
static int oneway_says_nothing(PyObject *name, PyObject *value)
{
    if (value == Py_None) {
        return PyUnicode_CompareWithASCIIString(name, "key") == 0 ||
               PyUnicode_CompareWithASCIIString(name, "queue") == 0;
    }
    return PyLong_CheckExact(value) && !PyObject_IsTrue(value) &&
           PyUnicode_CompareWithASCIIString(name, "delay_level") == 0;
}

/* Sorts keywords into given[] and *timeout, all borrowed. 0: there is one that says something else. */
static int oneway_keywords(PyObject *const *values, PyObject *kwnames, PyObject **given, PyObject **timeout)
{
    static const struct {
        const char *name;
        int at; /* in given[] */
    } passed[] = {{"tag", SHMQ_LANE_TAG},
                  {"keys", SHMQ_LANE_KEYS},
                  {"properties", SHMQ_LANE_PROPERTIES},
                  {"flag", SHMQ_LANE_FLAG}};
    const size_t known = sizeof passed / sizeof passed[0];
    Py_ssize_t count = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        size_t at = 0;
        if (PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
            *timeout = values[i];
            continue;
        }
        while (at < known && PyUnicode_CompareWithASCIIString(name, passed[at].name) != 0) {
            ++at;
        }
        if (at == known) {
            if (!oneway_says_nothing(name, values[i])) {
                return 0;
            }
            continue;
        }
        given[passed[at].at] = values[i];
    }
    return 1;
}

/* Whether it is a time that one can wait, and not one to be converted first. */
static int oneway_is_timeout(PyObject *object)
{
    double seconds = -1.0;
    if (PyFloat_CheckExact(object)) {
        seconds = PyFloat_AS_DOUBLE(object);
    } else if (PyLong_CheckExact(object)) {
        int overflow = 0;
        seconds = (double)PyLong_AsLongAndOverflow(object, &overflow); /* an overflow is a -1 */
    }
    return seconds >= 0.0 && seconds <= SHMQ_TIMEOUT_S_MAX;
}

/* (lane, row, generation, queue) whose turn it is: new; NULL without an exception where there is none. */
static PyObject *oneway_next(const struct shmq_module *module, PyObject *self, PyObject *topic)
{
    PyObject *targets = PyObject_GetAttr(self, module->targets_name);
    if (targets == NULL) {
        return NULL;
    }
    PyObject *target = PyDict_Check(targets) ? Py_XNewRef(PyDict_GetItemWithError(targets, topic)) : NULL;
    Py_DECREF(targets);
    PyObject *turn = target == NULL ? NULL : PyObject_GetAttr(target, module->turn_name);
    Py_XDECREF(target);
    PyObject *place = turn != NULL && PyIter_Check(turn) ? PyIter_Next(turn) : NULL;
    Py_XDECREF(turn);
    return place;
}

static PyObject *oneway_send_oneway(PyObject *self, PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs,
                                    PyObject *kwnames)
{
    const struct shmq_module *module = shmq_module_of_type(type);
    PyObject *given[SHMQ_LANE_ARGUMENTS] = {NULL};
    PyObject *timeout = NULL;
    int is_usual = nargs == 2 && PyUnicode_CheckExact(args[0]) &&
                   oneway_keywords(args + nargs, kwnames, given, &timeout) &&
                   (timeout == NULL || oneway_is_timeout(timeout)) &&
                   /* Another attempt would find an iterator at its end. */
                   (given[SHMQ_LANE_KEYS] == NULL || !PyIter_Check(given[SHMQ_LANE_KEYS]));
    PyObject *place = is_usual ? oneway_next(module, self, args[0]) : NULL;
    if (place != NULL && PyTuple_CheckExact(place) && PyTuple_GET_SIZE(place) == 4 &&
        Py_IS_TYPE(PyTuple_GET_ITEM(place, 0), module->lane_type)) {
        given[SHMQ_LANE_ROW] = PyTuple_GET_ITEM(place, 1);
        given[SHMQ_LANE_GENERATION] = PyTuple_GET_ITEM(place, 2);
        given[SHMQ_LANE_BODY] = args[1];
        given[SHMQ_LANE_TIMEOUT] = module->no_time; /* who has to wait does so elsewhere */
        int status = shmq_lane_put_now((struct shmq_lane_object *)PyTuple_GET_ITEM(place, 0), given);
        Py_DECREF(place);
        place = NULL;
        if (status == SHMQ_OK) {
            Py_RETURN_NONE;
        }
        if (status > 0) {
            return NULL;
        }
    }
    Py_XDECREF(place);
    if (PyErr_Occurred()) {
        return NULL;
    }
    PyObject *slow = PyObject_GetAttr(self, module->send_oneway_name);
    PyObject *result = slow == NULL ? NULL : PyObject_Vectorcall(slow, args, (size_t)nargs, kwnames);
    Py_XDECREF(slow);
    return result;
}

static PyMethodDef oneway_methods[] = {
    {"send_oneway", (PyCFunction)(void (*)(void))oneway_send_oneway, METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     "send_oneway($self, topic, body, *, tag=None, keys=None, properties=None, flag=0, key=None, queue=None,\n"
     "            delay_level=0, timeout=3.0)\n--\n\n"
     "Put one message into the ring and do not wait for what becomes of it: the quickest way.\n\n"
     "It survives the death of its broker, in the ring; it is lost if the broker then has to make\n"
     "new memory, and if the broker refuses it. `drain` waits until the rings are empty.\n\n"
     "Raises:\n"
     "    SendTimeoutError: the ring was full for `timeout` seconds: nothing was sent.\n"
     "    Others as `send`."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot oneway_slots[] = {
    {Py_tp_methods, oneway_methods},
    {Py_tp_doc, "Oneway: the begin of a producer; see send_oneway. Its class has _targets and _send_oneway."},
    {0, NULL},
};

static PyType_Spec oneway_spec = {
    .name = "shmq.core._core.Oneway",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_BASETYPE,
    .slots = oneway_slots,
};

int shmq_add_oneway(PyObject *module)
{
    struct shmq_module *state = shmq_module_state(module);
    state->targets_name = PyUnicode_InternFromString("_targets");
    state->turn_name = PyUnicode_InternFromString("turn");
    state->send_oneway_name = PyUnicode_InternFromString("_send_oneway");
    state->no_time = PyFloat_FromDouble(0.0);
    if (state->targets_name == NULL || state->turn_name == NULL || state->send_oneway_name == NULL ||
        state->no_time == NULL) {
        return -1;
    }
    PyObject *type = PyType_FromModuleAndSpec(module, &oneway_spec, NULL);
    int status = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return status;
}
