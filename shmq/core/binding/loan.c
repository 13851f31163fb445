/* loan.c: Loan: a claimed and unpublished record of a lane, whose body the program fills in place.
 *
 * While it is open its lane fills nothing else: other threads that send wait. The memory becomes other records'
 * once it is committed or aborted, so both refuse while a view of it is alive; a loan that is dropped with its
 * views aborts. A program that dies in between has sent nothing. */
#include "lane.h"

#include "arguments.h"

enum loan_state { LOAN_OPEN, LOAN_COMMITTED, LOAN_ABORTED };

struct loan {
    PyObject_HEAD
    struct shmq_lane_object *lane;
    PyObject *properties; /* bytes, or NULL */
    PyObject *entered;    /* the view that __enter__ gave, until __exit__ */
    struct shmq_lane_record record;
    struct shmq_lane_place place;
    enum loan_state state;
    Py_ssize_t export_count;
    uint64_t sequence;
};

static const char *const loan_names[] = {"row",  "generation", "nbytes",  "tag",  "keys", "properties",
                                         "flag", "wait",       "timeout", "keep", NULL};

static void loan_abort_claim(struct loan *self)
{
    self->state = LOAN_ABORTED;
    if (self->place.kind == SHMQ_RECORD_LARGE) {
        shmq_chunk_abort(self->place.chunk, self->place.chunk_ticket);
    }
    shmq_lane_leave(self->lane);
}

PyObject *shmq_lane_loan(struct shmq_lane_object *self, PyObject *const *args, Py_ssize_t nargs,
                         PyObject *kwnames)
{
    PyObject *given[SHMQ_LANE_ARGUMENTS];
    struct shmq_lane_call call;
    if (shmq_arguments("loan", loan_names, 3, args, nargs, kwnames, given) < 0 ||
        shmq_lane_check(self, "loan") < 0 || shmq_lane_call_begin(self, given, &call) < 0 ||
        shmq_argument_u64(given[SHMQ_LANE_BODY], "nbytes", &call.record.body_size) < 0 ||
        shmq_lane_check_size(self, call.record.body_size) < 0 || shmq_lane_call_properties(&call) < 0) {
        return NULL;
    }
    PyTypeObject *type = self->module->loan_type;
    struct loan *loan = (struct loan *)type->tp_alloc(type, 0);
    if (loan == NULL) {
        return NULL;
    }
    loan->state = LOAN_ABORTED;
    loan->lane = (struct shmq_lane_object *)Py_NewRef((PyObject *)self);
    loan->record = call.record;
    loan->record.properties = NULL;
    if (call.record.properties_size != 0) {
        loan->properties =
            PyBytes_FromStringAndSize((const char *)call.record.properties, call.record.properties_size);
        if (loan->properties == NULL) {
            Py_DECREF(loan);
            return NULL;
        }
        loan->record.properties = (const uint8_t *)PyBytes_AS_STRING(loan->properties);
    }
    int status = shmq_lane_enter(self, &call.wait);
    if (status == SHMQ_OK) {
        status = shmq_lane_claim_wait(self, call.record.body_size, shmq_lane_properties_size(&call.record),
                                      &call.wait, &loan->place);
        if (status == SHMQ_OK) {
            loan->state = LOAN_OPEN;
            return (PyObject *)loan;
        }
        shmq_lane_leave(self);
    }
    Py_DECREF(loan);
    return status > 0 ? NULL : PyLong_FromLong(status);
}

static void loan_dealloc(struct loan *self)
{
    PyTypeObject *type = Py_TYPE(self);
    /* In a child of fork the lane's turn is the parent's. */
    if (self->state == LOAN_OPEN && self->lane->fork_count == shmq_fork_count) {
        loan_abort_claim(self);
    }
    Py_XDECREF(self->lane);
    Py_XDECREF(self->properties);
    type->tp_free(self);
    Py_DECREF(type);
}

static int loan_getbuffer(struct loan *self, Py_buffer *view, int flags)
{
    view->obj = NULL;
    if (self->state != LOAN_OPEN) {
        PyErr_SetString(PyExc_BufferError, "view a loan: it was committed or aborted");
        return -1;
    }
    if (shmq_lane_check(self->lane, "view a loan") < 0 ||
        PyBuffer_FillInfo(view, (PyObject *)self, self->place.body, (Py_ssize_t)self->record.body_size, 0,
                          flags) < 0) {
        return -1;
    }
    self->export_count += 1;
    return 0;
}

static void loan_releasebuffer(struct loan *self, Py_buffer *view)
{
    (void)view;
    self->export_count -= 1;
}

/* May the loan end now? 1; 0: it has ended already, as `wanted`; -1 with an exception. */
static int loan_may_end(struct loan *self, enum loan_state wanted, const char *what)
{
    if (shmq_fork_check(self->lane->fork_count, "a Loan") < 0) {
        return -1;
    }
    if (self->state != LOAN_OPEN) {
        if (self->state == wanted) {
            return 0;
        }
        PyErr_Format(PyExc_ValueError, "%s a loan: it was %s", what,
                     self->state == LOAN_COMMITTED ? "committed" : "aborted");
        return -1;
    }
    if (self->export_count > 0) {
        PyErr_Format(PyExc_BufferError, "%s a loan: %zd views of its memory are alive; release them first", what,
                     self->export_count);
        return -1;
    }
    return 1;
}

static int loan_commit_size(struct loan *self, uint64_t size)
{
    if (shmq_lane_check(self->lane, "commit a loan") < 0) {
        return -1;
    }
    self->record.body_size = size;
    self->sequence =
        shmq_lane_write(self->lane, &self->record, &self->place, shmq_clock_ns(CLOCK_REALTIME));
    (void)shmq_lane_publish(&self->lane->writer);
    self->state = LOAN_COMMITTED;
    shmq_lane_leave(self->lane);
    return 0;
}

static PyObject *loan_commit(struct loan *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"nbytes", NULL};
    PyObject *given[1];
    uint64_t size = self->record.body_size;
    if (shmq_arguments("commit", names, 0, args, nargs, kwnames, given) < 0 ||
        (given[0] != NULL && given[0] != Py_None && shmq_argument_u64(given[0], "nbytes", &size) < 0)) {
        return NULL;
    }
    if (size > self->record.body_size) {
        PyErr_Format(PyExc_ValueError, "commit a loan: %llu bytes of %llu", (unsigned long long)size,
                     (unsigned long long)self->record.body_size);
        return NULL;
    }
    int may_end = loan_may_end(self, LOAN_COMMITTED, "commit");
    if (may_end < 0 || (may_end > 0 && loan_commit_size(self, size) < 0)) {
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(self->sequence);
}

static PyObject *loan_abort(struct loan *self, PyObject *ignored)
{
    (void)ignored;
    int may_end = loan_may_end(self, LOAN_ABORTED, "abort");
    if (may_end < 0) {
        return NULL;
    }
    if (may_end > 0) {
        loan_abort_claim(self);
    }
    Py_RETURN_NONE;
}

static PyObject *loan_enter(struct loan *self, PyObject *ignored)
{
    (void)ignored;
    if (self->entered != NULL) {
        PyErr_SetString(PyExc_ValueError, "enter a loan: it is entered");
        return NULL;
    }
    self->entered = PyMemoryView_FromObject((PyObject *)self);
    return Py_XNewRef(self->entered);
}

static PyObject *loan_exit(struct loan *self, PyObject *args)
{
    PyObject *type;
    PyObject *value;
    PyObject *traceback;
    if (!PyArg_ParseTuple(args, "OOO:__exit__", &type, &value, &traceback)) {
        return NULL;
    }
    PyObject *view = self->entered;
    self->entered = NULL; /* from here on no cycle, whatever happens */
    PyObject *released = view == NULL ? NULL : PyObject_CallMethod(view, "release", NULL);
    Py_XDECREF(view);
    if (view != NULL && released == NULL) {
        return NULL; /* BufferError: something made from the view is alive; the loan stays open */
    }
    Py_XDECREF(released);
    if (self->state != LOAN_OPEN) {
        Py_RETURN_NONE; /* ended inside */
    }
    int may_end = loan_may_end(self, LOAN_OPEN, "end");
    if (may_end < 0) {
        return NULL;
    }
    if (type != Py_None) {
        loan_abort_claim(self);
        Py_RETURN_NONE;
    }
    if (loan_commit_size(self, self->record.body_size) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *loan_get_view(struct loan *self, void *closure)
{
    (void)closure;
    return PyMemoryView_FromObject((PyObject *)self);
}

static PyObject *loan_get_sequence(struct loan *self, void *closure)
{
    (void)closure;
    if (self->state != LOAN_COMMITTED) {
        PyErr_SetString(PyExc_ValueError, "sequence of a loan: it was not committed");
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(self->sequence);
}

static PyObject *loan_get_committed(struct loan *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong(self->state == LOAN_COMMITTED);
}

static PyMethodDef loan_methods[] = {
    {"commit", (PyCFunction)(void (*)(void))loan_commit, METH_FASTCALL | METH_KEYWORDS,
     "commit(nbytes=None) -> sequence: sends the first nbytes (default: all). BufferError while views are alive."},
    {"abort", (PyCFunction)(void (*)(void))loan_abort, METH_NOARGS,
     "Sends nothing. BufferError while views are alive."},
    {"__enter__", (PyCFunction)(void (*)(void))loan_enter, METH_NOARGS, "Gives a writable memoryview of the body."},
    {"__exit__", (PyCFunction)(void (*)(void))loan_exit, METH_VARARGS,
     "Releases that view and commits; aborts on an exception."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef loan_getset[] = {
    {"view", (getter)(void (*)(void))loan_get_view, NULL, "a new writable memoryview of the body", NULL},
    {"sequence", (getter)(void (*)(void))loan_get_sequence, NULL, "of the record, once committed", NULL},
    {"committed", (getter)(void (*)(void))loan_get_committed, NULL, "True once committed", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot loan_slots[] = {
    {Py_tp_dealloc, (void *)(uintptr_t)loan_dealloc},
    {Py_tp_methods, loan_methods},
    {Py_tp_getset, loan_getset},
    {Py_bf_getbuffer, (void *)(uintptr_t)loan_getbuffer},
    {Py_bf_releasebuffer, (void *)(uintptr_t)loan_releasebuffer},
    {Py_tp_doc, "Loan: room for a body in a lane's ring, claimed and not sent; made by Lane.loan."},
    {0, NULL},
};

static PyType_Spec loan_spec = {
    .name = "shmq.core._core.Loan",
    .basicsize = sizeof(struct loan),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = loan_slots,
};

int shmq_add_loan(PyObject *module)
{
    struct shmq_module *state = shmq_module_state(module);
    state->loan_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &loan_spec, NULL);
    return state->loan_type == NULL ? -1 : PyModule_AddType(module, state->loan_type);
}
