/* chunk.c: ChunkMemory: the client's half of the chunk memory, which all lanes of a session share. A body's room
 * is free again once the turn that appended its record is committed; before that a successor of the broker
 * would read it once more. */
#include "chunk.h"

#include "arguments.h"

#define CHUNK_ALIGN 64u
#define CHUNK_CLAIMS_FIRST 64u

/* Frees what the broker has appended, in order. */
static void chunk_reclaim(struct shmq_chunk *self)
{
    struct shmq_control *control = (struct shmq_control *)(void *)self->control->base;
    while (self->claim_head != self->claim_tail) {
        const struct shmq_chunk_claim *claim = &self->claims[self->claim_head & (self->claim_room - 1)];
        if (!claim->is_free) {
            const struct shmq_ring_slot *slot =
                shmq_control_ring_slot(control, self->session * SHMQ_LANE_MAX + claim->lane);
            /* acquire: pairs with the release in shmq_turn_publish; the broker's reads of the body are over */
            if (claim->sequence == UINT64_MAX || shmq_load_acquire(&slot->completion_tail) <= claim->sequence) {
                break;
            }
        }
        self->head = claim->end;
        self->claim_head += 1;
    }
    if (self->claim_head == self->claim_tail) {
        /* empty: begin at the start of the memory, so that whatever can fit does */
        self->head = self->tail = shmq_layout_align(self->tail, self->capacity);
    }
}

static int chunk_more_claims(struct shmq_chunk *self)
{
    uint64_t room = self->claim_room * 2;
    struct shmq_chunk_claim *claims = PyMem_RawMalloc(room * sizeof *claims);
    if (claims == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (uint64_t i = self->claim_head; i != self->claim_tail; ++i) {
        claims[i & (room - 1)] = self->claims[i & (self->claim_room - 1)];
    }
    PyMem_RawFree(self->claims);
    self->claims = claims;
    self->claim_room = room;
    return 0;
}

int shmq_chunk_claim(struct shmq_chunk *self, uint64_t size, uint64_t *ticket, uint64_t *place)
{
    size = shmq_layout_align(size, CHUNK_ALIGN);
    if (size > self->capacity) {
        return SHMQ_TOO_LARGE;
    }
    chunk_reclaim(self);
    uint64_t index = self->tail % self->capacity;
    uint64_t skipped = index + size > self->capacity ? self->capacity - index : 0;
    if (self->tail + skipped + size - self->head > self->capacity) {
        return SHMQ_FULL;
    }
    if (self->claim_tail - self->claim_head == self->claim_room && chunk_more_claims(self) < 0) {
        return 1;
    }
    *place = (index + skipped) % self->capacity;
    *ticket = self->claim_tail++;
    self->tail += skipped + size;
    self->claims[*ticket & (self->claim_room - 1)] =
        (struct shmq_chunk_claim){.end = self->tail, .sequence = UINT64_MAX};
    return SHMQ_OK;
}

void shmq_chunk_commit(struct shmq_chunk *self, uint64_t ticket, uint32_t lane, uint64_t sequence)
{
    struct shmq_chunk_claim *claim = &self->claims[ticket & (self->claim_room - 1)];
    claim->lane = lane;
    claim->sequence = sequence;
}

void shmq_chunk_abort(struct shmq_chunk *self, uint64_t ticket)
{
    self->claims[ticket & (self->claim_room - 1)].is_free = 1;
}

/* ---- the type ----------------------------------------------------------------------------------------------- */

static int chunk_set_control(struct shmq_chunk *self, struct shmq_module *module, PyObject *object)
{
    struct shmq_mapping *control;
    if (shmq_mapping_get(module, object, sizeof(struct shmq_control), "control", &control) < 0) {
        return -1;
    }
    const struct shmq_control *head = (const struct shmq_control *)(const void *)control->base;
    if (self->session >= head->config.session_slot_count) {
        PyErr_Format(PyExc_ValueError, "ChunkMemory: session %u of %u", self->session,
                     head->config.session_slot_count);
        return -1;
    }
    struct shmq_mapping *before = self->control;
    self->control = shmq_mapping_hold(control);
    shmq_mapping_drop(before);
    return 0;
}

static PyObject *chunk_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"control", "memory", "session", NULL};
    PyObject *control;
    PyObject *memory_object;
    unsigned int session;
    struct shmq_mapping *memory;
    struct shmq_module *module = shmq_module_of_type(type);
    if (module == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "OO$I:ChunkMemory", names, &control,
                                                       &memory_object, &session) ||
        shmq_mapping_get(module, memory_object, SHMQ_CHUNK_DATA_PLACE + CHUNK_ALIGN, "memory", &memory) < 0) {
        return NULL;
    }
    if (!memory->writable) {
        PyErr_SetString(PyExc_ValueError, "ChunkMemory: the memory is mapped read-only");
        return NULL;
    }
    struct shmq_chunk *self = (struct shmq_chunk *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->session = session;
    self->fork_count = shmq_fork_count;
    self->claim_room = CHUNK_CLAIMS_FIRST;
    self->claims = PyMem_RawMalloc(self->claim_room * sizeof *self->claims);
    if (self->claims == NULL) {
        PyErr_NoMemory();
    }
    if (self->claims == NULL || chunk_set_control(self, module, control) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->memory = shmq_mapping_hold(memory);
    self->capacity = (memory->size_bytes - SHMQ_CHUNK_DATA_PLACE) / CHUNK_ALIGN * CHUNK_ALIGN;
    return (PyObject *)self;
}

static void chunk_dealloc(struct shmq_chunk *self)
{
    PyTypeObject *type = Py_TYPE(self);
    shmq_mapping_drop(self->control);
    shmq_mapping_drop(self->memory);
    PyMem_RawFree(self->claims);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *chunk_resume(struct shmq_chunk *self, PyObject *control)
{
    if (shmq_fork_check(self->fork_count, "a ChunkMemory") < 0 ||
        chunk_set_control(self, shmq_module_of_type(Py_TYPE(self)), control) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *chunk_get_capacity(struct shmq_chunk *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(self->capacity);
}

static PyObject *chunk_get_used(struct shmq_chunk *self, void *closure)
{
    (void)closure;
    if (shmq_fork_check(self->fork_count, "a ChunkMemory") < 0) {
        return NULL;
    }
    chunk_reclaim(self);
    return PyLong_FromUnsignedLongLong(self->tail - self->head);
}

static PyMethodDef chunk_methods[] = {
    {"resume", (PyCFunction)(void (*)(void))chunk_resume, METH_O,
     "resume(control): a successor of the broker goes on with this memory."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef chunk_getset[] = {
    {"capacity_bytes", (getter)(void (*)(void))chunk_get_capacity, NULL, "bytes for bodies", NULL},
    {"used_bytes", (getter)(void (*)(void))chunk_get_used, NULL, "bytes of bodies that are not appended yet", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot chunk_slots[] = {
    {Py_tp_new, (void *)(uintptr_t)chunk_new},
    {Py_tp_dealloc, (void *)(uintptr_t)chunk_dealloc},
    {Py_tp_methods, chunk_methods},
    {Py_tp_getset, chunk_getset},
    {Py_tp_doc, "ChunkMemory(control, memory, *, session): bodies too large for a ring; shared by a session's lanes."},
    {0, NULL},
};

static PyType_Spec chunk_spec = {
    .name = "shmq.core._core.ChunkMemory",
    .basicsize = sizeof(struct shmq_chunk),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = chunk_slots,
};

int shmq_add_chunk(PyObject *module)
{
    struct shmq_module *state = shmq_module_state(module);
    state->chunk_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &chunk_spec, NULL);
    return state->chunk_type == NULL ? -1 : PyModule_AddType(module, state->chunk_type);
}
