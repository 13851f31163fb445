/* layout.c: the tables of layout.h and status.h as Python sees them: LAYOUT, STATUS, and the constants. */
#include "binding.h"

struct layout_field {
    uint32_t place;
    const char *type;
    const char *name;
    uint32_t count;
    const char *doc;
};

struct layout_struct {
    const char *name;
    uint32_t size;
    const struct layout_field *fields;
};

#define LAYOUT_FIELD(place, type, name, count, doc) {place, #type, #name, count, doc},
#define LAYOUT_FIELDS_OF(name, fields, size)                                                       \
    static const struct layout_field name##_fields[] = {fields(LAYOUT_FIELD){0, NULL, NULL, 0, NULL}};
SHMQ_LAYOUT_TABLE(LAYOUT_FIELDS_OF)

#define LAYOUT_STRUCT_OF(name, fields, size) {#name, size, name##_fields},
static const struct layout_struct layout_structs[] = {SHMQ_LAYOUT_TABLE(LAYOUT_STRUCT_OF){NULL, 0, NULL}};

static PyObject *layout_fields(const struct layout_field *field)
{
    PyObject *list = PyList_New(0);
    for (; list != NULL && field->name != NULL; ++field) {
        PyObject *row = Py_BuildValue("(sIsIs)", field->name, field->place, field->type, field->count, field->doc);
        if (row == NULL || PyList_Append(list, row) < 0) {
            Py_XDECREF(row);
            Py_CLEAR(list);
            break;
        }
        Py_DECREF(row);
    }
    return list;
}

struct constant {
    const char *name;
    unsigned long long value;
};

#define CONSTANT(name) {#name, SHMQ_##name}
static const struct constant constants[] = {
    CONSTANT(LINE),
    CONSTANT(PAGE),
    CONSTANT(TURN_RING_MAX),
    CONSTANT(SERVICE_MAX),
    CONSTANT(HOT_SLOT_MAX),
    CONSTANT(LANE_MAX),
    CONSTANT(CONSUMER_BELL_MAX),
    CONSTANT(TOPIC_SIZE_MAX),
    CONSTANT(BLOCK_SIZE),
    CONSTANT(BLOCK_ENTRIES),
    CONSTANT(MAGIC_CONTROL),
    CONSTANT(MAGIC_TOPICS),
    CONSTANT(MAGIC_ARENA),
    CONSTANT(MAGIC_COMPLETION),
    CONSTANT(MAGIC_INGRESS),
    CONSTANT(MAGIC_CONSUMER),
    CONSTANT(MAGIC_CHUNK),
    CONSTANT(MAGIC_STATS),
    CONSTANT(KIND_CONTROL),
    CONSTANT(KIND_TOPICS),
    CONSTANT(KIND_HOT),
    CONSTANT(KIND_ARENA),
    CONSTANT(KIND_COMPLETION),
    CONSTANT(KIND_INGRESS),
    CONSTANT(KIND_CONSUMER),
    CONSTANT(KIND_CHUNK),
    CONSTANT(KIND_STATS),
    CONSTANT(HOT_FREE),
    CONSTANT(HOT_READY),
    CONSTANT(HOT_LIVE),
    CONSTANT(HOT_RETIRED),
    CONSTANT(SESSION_FREE),
    CONSTANT(SESSION_LIVE),
    CONSTANT(ROW_FREE),
    CONSTANT(ROW_ACTIVE),
    CONSTANT(ROW_READ_ONLY),
    CONSTANT(ROW_DELETED),
    CONSTANT(ROW_FLUSH),
    CONSTANT(ROW_REPLICA),
    CONSTANT(ROW_SCHEDULE),
    CONSTANT(NEED_FLUSH),
    CONSTANT(NEED_REPLICA),
    CONSTANT(RECORD_MESSAGE),
    CONSTANT(RECORD_PAD),
    CONSTANT(RECORD_LARGE),
    CONSTANT(RECORD_WAIT),
    CONSTANT(LANES_PLACE),
    CONSTANT(RING_DATA_PLACE),
    CONSTANT(BELLS_PLACE),
    CONSTANT(COMPLETIONS_PLACE),
    CONSTANT(SLEEPERS_PLACE),
    CONSTANT(CLAIMS_PLACE),
    CONSTANT(CHUNK_DATA_PLACE),
    CONSTANT(TOPIC_ROWS_PLACE),
    CONSTANT(LANE_LATENCY_PLACE),
    CONSTANT(STATS_ROWS_PLACE),
    CONSTANT(STATS_FREE),
    CONSTANT(STATS_CONSUMER_OFFSET),
    CONSTANT(STATS_VALUE),
    CONSTANT(GRANT_SERVICE),
    CONSTANT(GRANT_TRANSACTION),
    CONSTANT(CHECK_RECORD_CRC),
    CONSTANT(PROPERTIES_SIZE_MAX),
    CONSTANT(CRC_PROPERTY_SIZE),
    CONSTANT(WAIT_BLOCKING),
    CONSTANT(WAIT_ADAPTIVE),
    CONSTANT(WAIT_BUSY_SPIN),
    {NULL, 0},
};

int shmq_add_layout(PyObject *module)
{
    PyObject *layout = PyDict_New();
    for (const struct layout_struct *row = layout_structs; layout != NULL && row->name != NULL; ++row) {
        PyObject *value = Py_BuildValue("(IN)", row->size, layout_fields(row->fields));
        if (value == NULL || PyDict_SetItemString(layout, row->name, value) < 0) {
            Py_XDECREF(value);
            Py_CLEAR(layout);
            break;
        }
        Py_DECREF(value);
    }
    if (layout == NULL || PyModule_AddObjectRef(module, "LAYOUT", layout) < 0) {
        Py_XDECREF(layout);
        return -1;
    }
    Py_DECREF(layout);
    PyObject *status = PyDict_New();
#define STATUS_ITEM(name, value, meaning) {#name, value, meaning},
    static const struct {
        const char *name;
        int value;
        const char *meaning;
    } items[] = {SHMQ_STATUS_TABLE(STATUS_ITEM){NULL, 0, NULL}};
    for (int i = 0; status != NULL && items[i].name != NULL; ++i) {
        PyObject *value = Py_BuildValue("(is)", items[i].value, items[i].meaning);
        if (value == NULL || PyDict_SetItemString(status, items[i].name, value) < 0) {
            Py_XDECREF(value);
            Py_CLEAR(status);
            break;
        }
        Py_DECREF(value);
    }
    if (status == NULL || PyModule_AddObjectRef(module, "STATUS", status) < 0) {
        Py_XDECREF(status);
        return -1;
    }
    Py_DECREF(status);
    for (const struct constant *constant = constants; constant->name != NULL; ++constant) {
        PyObject *value = PyLong_FromUnsignedLongLong(constant->value);
        if (value == NULL || PyModule_AddObjectRef(module, constant->name, value) < 0) {
            Py_XDECREF(value);
            return -1;
        }
        Py_DECREF(value);
    }
    return 0;
}
