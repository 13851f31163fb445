/* completions.c: Completions: what became of many messages put one after the other. Numbers only: a tuple is made of
 * those that are asked for, and the text of a unique key. A value that never changes; it needs no lane. */
#include "completions.h"

struct shmq_completions *shmq_completions_new(struct shmq_module *module, const struct shmq_unique_keys *keys,
                                              uint32_t room)
{
    struct shmq_completions *self =
        (struct shmq_completions *)module->completions_type->tp_alloc(module->completions_type, (Py_ssize_t)room);
    if (self != NULL) {
        self->unique_keys = *keys;
        self->count = 0;
    }
    return self;
}

static void completions_dealloc(struct shmq_completions *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static Py_ssize_t completions_length(struct shmq_completions *self)
{
    return self->count;
}

/* status, queue_offset, unique key */
static PyObject *completions_item(struct shmq_completions *self, Py_ssize_t index)
{
    if (index < 0 || index >= self->count) {
        PyErr_Format(PyExc_IndexError, "completion %zd of %zd", index, self->count);
        return NULL;
    }
    const struct shmq_completion_row *row = &self->rows[index];
    PyObject *key = row->id == SHMQ_UNIQUE_KEY_CUSTOM ? Py_NewRef(Py_None)
                                                      : shmq_unique_key_text(&self->unique_keys, row->id);
    return key == NULL ? NULL : Py_BuildValue("(iLN)", (int)row->status, (long long)row->queue_offset, key);
}

/* The status that all have; None where they differ, or there is none. */
static PyObject *completions_get_status(struct shmq_completions *self, void *closure)
{
    (void)closure;
    for (Py_ssize_t i = 1; i < self->count; ++i) {
        if (self->rows[i].status != self->rows[0].status) {
            Py_RETURN_NONE;
        }
    }
    if (self->count == 0) {
        Py_RETURN_NONE;
    }
    return PyLong_FromLong(self->rows[0].status);
}

static PyGetSetDef completions_getset[] = {
    {"status", (getter)(void (*)(void))completions_get_status, NULL,
     "the status that all of them have; None where they differ, or without any", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot completions_slots[] = {
    {Py_tp_dealloc, (void *)(uintptr_t)completions_dealloc},
    {Py_tp_getset, completions_getset},
    {Py_sq_length, (void *)(uintptr_t)completions_length},
    {Py_sq_item, (void *)(uintptr_t)completions_item},
    {Py_tp_doc, "Completions: of records put one after the other; len() and completions[i], (status, queue_offset, "
                "unique_key); made by Lane.wait_many."},
    {0, NULL},
};

static PyType_Spec completions_spec = {
    .name = "shmq.core._core.Completions",
    .basicsize = offsetof(struct shmq_completions, rows),
    .itemsize = sizeof(struct shmq_completion_row),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = completions_slots,
};

int shmq_add_completions(PyObject *module)
{
    struct shmq_module *state = shmq_module_state(module);
    state->completions_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &completions_spec, NULL);
    return state->completions_type == NULL ? -1 : PyModule_AddType(module, state->completions_type);
}
