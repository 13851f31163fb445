/* stats.c: the stats object (stats.h) as the broker's control code writes it: what producers have counted, taken by
 * Appender.look, and StatsRows. Everything here happens with the GIL, which is what makes the writer one. */
#include "append.h"

#include "shmq/stats.h"

static struct shmq_lane_seen *lane_seen(struct shmq_appender *self, uint32_t session)
{
    return self->lane_seen + (size_t)session * SHMQ_LANE_MAX;
}

/* The ingress memory of a session and how many lanes it has; NULL without. */
static const uint8_t *session_lanes(struct shmq_appender *self, uint32_t session, uint32_t *lane_count)
{
    const struct shmq_mapping *ingress =
        (const struct shmq_mapping *)(void *)self->memories[session * SHMQ_MEMORY_KINDS + SHMQ_MEMORY_INGRESS];
    if (ingress == NULL) {
        return NULL;
    }
    *lane_count = shmq_control_session_slot(self->append.control, session)->lane_count;
    return ingress->base;
}

static const struct shmq_latency *lane_latency(const uint8_t *ingress, uint32_t lane)
{
    return (const struct shmq_latency *)(const void *)(ingress + SHMQ_LANE_LATENCY_PLACE) + lane;
}

static const struct shmq_lane *lane_line(const uint8_t *ingress, uint32_t lane)
{
    return (const struct shmq_lane *)(const void *)(ingress + SHMQ_LANES_PLACE) + lane;
}

void shmq_appender_begin_counts(struct shmq_appender *self, uint32_t session)
{
    uint32_t lane_count;
    const uint8_t *ingress = session_lanes(self, session, &lane_count);
    for (uint32_t lane = 0; ingress != NULL && lane < lane_count; ++lane) {
        struct shmq_lane_seen *seen = lane_seen(self, session) + lane;
        const struct shmq_latency *latency = lane_latency(ingress, lane);
        for (uint32_t i = 0; i <= SHMQ_LATENCY_BOUND_COUNT; ++i) {
            seen->counts[i] = shmq_load_relaxed(&latency->counts[i]); /* relaxed: hostile, any value will do */
        }
        seen->sum_ns = shmq_load_relaxed(&latency->sum_ns); /* relaxed: as above */
        seen->full_count = shmq_load_relaxed(&lane_line(ingress, lane)->full_count);
    }
}

void shmq_appender_take_counts(struct shmq_appender *self, uint32_t session)
{
    uint32_t lane_count;
    const uint8_t *ingress = session_lanes(self, session, &lane_count);
    for (uint32_t lane = 0; ingress != NULL && self->append.stats != NULL && lane < lane_count; ++lane) {
        shmq_stats_take_lane(self->append.stats, lane_line(ingress, lane), lane_latency(ingress, lane),
                             lane_seen(self, session) + lane);
    }
}

PyObject *shmq_appender_set_stats(struct shmq_appender *self, PyObject *argument)
{
    struct shmq_mapping *stats;
    if (shmq_appender_open(self, "set_stats") < 0 ||
        shmq_mapping_get(shmq_module_of_type(Py_TYPE(self)), argument, SHMQ_STATS_ROWS_PLACE, "stats", &stats) < 0) {
        return NULL;
    }
    if (!stats->writable || self->stats != NULL) {
        PyErr_SetString(PyExc_ValueError, "set_stats: want a writable mapping, once");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    shmq_role_take(self);
    self->append.stats = (struct shmq_stats *)(void *)stats->base;
    shmq_role_give(self);
    Py_END_ALLOW_THREADS
    self->stats = Py_NewRef(argument);
    Py_RETURN_NONE;
}

PyObject *shmq_appender_look(struct shmq_appender *self, PyObject *ignored)
{
    (void)ignored;
    if (shmq_appender_open(self, "look at the producers' counts") < 0) {
        return NULL;
    }
    struct shmq_stats *stats = self->append.stats;
    if (stats == NULL) {
        PyErr_SetString(PyExc_ValueError, "look at the producers' counts: no stats object was set");
        return NULL;
    }
    struct shmq_control *control = self->append.control;
    uint64_t used_max = 0;
    uint64_t capacity = 0;
    for (uint32_t session = 0; session < control->config.session_slot_count; ++session) {
        uint32_t lane_count;
        const uint8_t *ingress = session_lanes(self, session, &lane_count);
        shmq_appender_take_counts(self, session);
        for (uint32_t lane = 0; ingress != NULL && lane < lane_count; ++lane) {
            const struct shmq_ring_slot *slot = shmq_control_ring_slot(control, session * SHMQ_LANE_MAX + lane);
            uint64_t lane_bytes = shmq_control_session_slot(control, session)->lane_capacity_bytes;
            /* relaxed: a tail from before the position would only make a ring look empty */
            uint64_t used = shmq_load_relaxed(&lane_line(ingress, lane)->tail) -
                            shmq_load_relaxed(&slot->read_position);
            if (used <= lane_bytes && used >= used_max) {
                used_max = used;
                capacity = lane_bytes;
            }
        }
    }
    /* relaxed: statistics */
    shmq_store_relaxed(&stats->head.ring_used_bytes_max, used_max);
    shmq_store_relaxed(&stats->head.ring_capacity_bytes, capacity);
    shmq_store_relaxed(&stats->head.looked_ns, shmq_clock_ns(CLOCK_MONOTONIC));
    Py_RETURN_NONE;
}

/* ---- rows ------------------------------------------------------------------------------------------------ */

struct shmq_stats_rows {
    PyObject_HEAD
    struct shmq_mapping *mapping;
};

static PyObject *stats_rows_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"stats", NULL};
    PyObject *object;
    struct shmq_mapping *mapping;
    struct shmq_module *module = shmq_module_of_type(type);
    if (module == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "O:StatsRows", names, &object) ||
        shmq_mapping_get(module, object, SHMQ_STATS_ROWS_PLACE, "stats", &mapping) < 0) {
        return NULL;
    }
    if (!mapping->writable) {
        PyErr_SetString(PyExc_ValueError, "StatsRows: want a writable mapping");
        return NULL;
    }
    struct shmq_stats_rows *self = (struct shmq_stats_rows *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->mapping = shmq_mapping_hold(mapping);
    }
    return (PyObject *)self;
}

static void stats_rows_dealloc(struct shmq_stats_rows *self)
{
    PyTypeObject *type = Py_TYPE(self);
    shmq_mapping_drop(self->mapping);
    type->tp_free(self);
    Py_DECREF(type);
}

/* The row of that index, or NULL with an exception. */
static struct shmq_stats_row *stats_rows_at(struct shmq_stats_rows *self, unsigned int index)
{
    uint64_t room = self->mapping == NULL
                        ? 0
                        : (self->mapping->size_bytes - SHMQ_STATS_ROWS_PLACE) / sizeof(struct shmq_stats_row);
    if (index >= room) {
        PyErr_Format(PyExc_ValueError, "stats row %u: there is room for %llu", index, (unsigned long long)room);
        return NULL;
    }
    return shmq_stats_row((struct shmq_stats *)(void *)self->mapping->base, index);
}

static PyObject *stats_rows_put(struct shmq_stats_rows *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"index", "kind", "label", "queue_row", "row_generation", NULL};
    unsigned int index;
    unsigned int kind;
    const char *label;
    Py_ssize_t label_size;
    unsigned int queue_row = 0;
    unsigned int row_generation = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IIy#|$II:put", names, &index, &kind, &label, &label_size,
                                     &queue_row, &row_generation)) {
        return NULL;
    }
    struct shmq_stats_row *row = stats_rows_at(self, index);
    if (row == NULL) {
        return NULL;
    }
    if (label_size > (Py_ssize_t)sizeof row->label) {
        PyErr_Format(PyExc_ValueError, "stats row %u: a label of %zd bytes, it takes %zu", index, label_size,
                     sizeof row->label);
        return NULL;
    }
    shmq_stats_row_put(row, kind, queue_row, row_generation, (const uint8_t *)label, (uint32_t)label_size);
    shmq_word32 *count = &((struct shmq_stats *)(void *)self->mapping->base)->head.row_count;
    if (index >= shmq_load_relaxed32(count)) { /* relaxed: own word */
        /* release: pairs with the acquire of readers; the rows below it are whole */
        shmq_store_release32(count, index + 1);
    }
    Py_RETURN_NONE;
}

static PyObject *stats_rows_set(struct shmq_stats_rows *self, PyObject *args)
{
    unsigned int index;
    unsigned long long value;
    unsigned long long passed_count = 0;
    unsigned long long waiting_since = 0;
    if (!PyArg_ParseTuple(args, "IK|KK:set", &index, &value, &passed_count, &waiting_since)) {
        return NULL;
    }
    struct shmq_stats_row *row = stats_rows_at(self, index);
    if (row == NULL) {
        return NULL;
    }
    /* relaxed: statistics */
    shmq_store_relaxed(&row->value, value);
    shmq_store_relaxed(&row->passed_count, passed_count);
    shmq_store_relaxed(&row->waiting_since, waiting_since);
    Py_RETURN_NONE;
}

static PyObject *stats_rows_close(struct shmq_stats_rows *self, PyObject *ignored)
{
    (void)ignored;
    shmq_mapping_drop(self->mapping);
    self->mapping = NULL;
    Py_RETURN_NONE;
}

static PyMethodDef stats_rows_methods[] = {
    {"put", (PyCFunction)(void (*)(void))stats_rows_put, METH_VARARGS | METH_KEYWORDS,
     "put(index, kind, label: bytes, *, queue_row=0, row_generation=0): the row is about that now, its values 0."},
    {"set", (PyCFunction)(void (*)(void))stats_rows_set, METH_VARARGS,
     "set(index, value, passed_count=0, waiting_since=0): its values."},
    {"close", (PyCFunction)(void (*)(void))stats_rows_close, METH_NOARGS, "Lets go of the mapping."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot stats_rows_slots[] = {
    {Py_tp_new, (void *)(uintptr_t)stats_rows_new},
    {Py_tp_dealloc, (void *)(uintptr_t)stats_rows_dealloc},
    {Py_tp_methods, stats_rows_methods},
    {Py_tp_doc, "StatsRows(stats): the rows of a stats object, for the one who writes them."},
    {0, NULL},
};

static PyType_Spec stats_rows_spec = {
    .name = "shmq.core._core.StatsRows",
    .basicsize = sizeof(struct shmq_stats_rows),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = stats_rows_slots,
};

int shmq_add_stats(PyObject *module)
{
    static const uint32_t bounds[SHMQ_LATENCY_BOUND_COUNT] = SHMQ_LATENCY_BOUNDS;
    PyObject *shown = PyTuple_New(SHMQ_LATENCY_BOUND_COUNT);
    for (Py_ssize_t i = 0; shown != NULL && i < (Py_ssize_t)SHMQ_LATENCY_BOUND_COUNT; ++i) {
        PyObject *bound = PyLong_FromUnsignedLong(bounds[i]);
        if (bound == NULL) {
            Py_CLEAR(shown);
        } else {
            PyTuple_SET_ITEM(shown, i, bound);
        }
    }
    int failed = shown == NULL || PyModule_AddObjectRef(module, "LATENCY_BOUNDS_NS", shown) < 0;
    Py_XDECREF(shown);
    struct shmq_module *state = shmq_module_state(module);
    state->stats_rows_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &stats_rows_spec, NULL);
    return failed || state->stats_rows_type == NULL ? -1 : PyModule_AddType(module, state->stats_rows_type);
}
