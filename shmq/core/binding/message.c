/* message.c: Message: made to be sent, or received and then decoded in place, on access, out of the log. A received
 * one pins its file in the LogMap, and so does every view of its body, because the message is their exporter. */
#include "message_object.h"
#include "properties.h"

#include <stdlib.h>

/* Topics of messages that come again: to whom they come, the topic they were sent to is what counts. */
#define MESSAGE_RETRY_PREFIX "%RETRY%"
#define MESSAGE_RETRY_PREFIX_SIZE 7u

static struct shmq_draft *message_draft_new(struct shmq_module *module, PyObject *topic, PyObject *body,
                                            const struct shmq_property_parts *given)
{
    struct shmq_property_bytes encoded;
    struct shmq_property_parts parts = *given;
    struct shmq_draft *draft = calloc(1, sizeof *draft);
    if (draft == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    if (shmq_body_get(module, body, &draft->body) < 0) {
        free(draft);
        return NULL;
    }
    parts.dtype = draft->body.dtype;
    parts.shape = draft->body.shape;
    if (shmq_properties_encode(&parts, &encoded) == 0) {
        draft->properties = PyBytes_FromStringAndSize((const char *)encoded.bytes, encoded.size);
    }
    if (draft->properties == NULL) {
        shmq_body_release(&draft->body);
        free(draft);
        return NULL;
    }
    draft->has_unique_key = encoded.has_unique_key;
    draft->delay_level = encoded.delay_level;
    draft->topic = Py_NewRef(topic);
    draft->source = Py_NewRef(body);
    return draft;
}

static PyObject *message_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"topic", "body", "tag", "keys", "properties", "flag", NULL};
    PyObject *topic;
    PyObject *body;
    struct shmq_property_parts parts = {0};
    int flag = 0;
    struct shmq_module *module = shmq_module_of_type(type);
    if (module == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "UO|$OOOi:Message", names, &topic, &body,
                                                       &parts.tag, &parts.keys, &parts.properties, &flag)) {
        return NULL;
    }
    struct shmq_draft *draft = message_draft_new(module, topic, body, &parts);
    if (draft == NULL) {
        return NULL;
    }
    draft->flag = flag;
    struct shmq_message_object *self = PyObject_New(struct shmq_message_object, type);
    if (self == NULL) {
        Py_DECREF(draft->topic);
        Py_DECREF(draft->source);
        Py_DECREF(draft->properties);
        shmq_body_release(&draft->body);
        free(draft);
        return NULL;
    }
    self->log = NULL;
    self->entry = NULL;
    self->frame = NULL;
    self->frame_size = 0;
    self->draft = draft;
    self->keeper = NULL;
    return (PyObject *)self;
}

static void message_dealloc(struct shmq_message_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->draft != NULL) {
        shmq_body_release(&self->draft->body);
        Py_DECREF(self->draft->topic);
        Py_DECREF(self->draft->source);
        Py_DECREF(self->draft->properties);
        free(self->draft);
    } else {
        shmq_log_entry_unpin(self->entry);
        Py_DECREF(self->log);
        Py_XDECREF(self->keeper);
    }
    PyObject_Free(self);
    Py_DECREF(type);
}

/* The received frame, taken apart. -1 with CorruptMessageError. */
static int message_parse(const struct shmq_message_object *self, struct shmq_message_view *out)
{
    if (shmq_message_parse(self->frame, self->frame_size, out) != SHMQ_OK) {
        uint64_t place = self->entry->file_position + (uint64_t)(self->frame - self->entry->base);
        shmq_raise("CorruptMessageError", "read the message at physical offset %llu: its frame is damaged",
                   (unsigned long long)place);
        return -1;
    }
    return 0;
}

/* The properties as stored or as they will be sent. */
static int message_properties_bytes(const struct shmq_message_object *self, const uint8_t **properties,
                                    uint32_t *size)
{
    if (self->draft != NULL) {
        *properties = (const uint8_t *)PyBytes_AS_STRING(self->draft->properties);
        *size = (uint32_t)PyBytes_GET_SIZE(self->draft->properties);
        return 0;
    }
    struct shmq_message_view view;
    if (message_parse(self, &view) < 0) {
        return -1;
    }
    *properties = view.properties;
    *size = view.properties_size;
    return 0;
}

static int message_body_bytes(const struct shmq_message_object *self, const uint8_t **body, uint64_t *size)
{
    if (self->draft != NULL) {
        *body = self->draft->body.data;
        *size = self->draft->body.size;
        return 0;
    }
    struct shmq_message_view view;
    if (message_parse(self, &view) < 0) {
        return -1;
    }
    *body = view.body;
    *size = view.body_size;
    return 0;
}

/* ---- attributes ------------------------------------------------------------------------------------------- */

static int message_getbuffer(struct shmq_message_object *self, Py_buffer *view, int flags)
{
    const uint8_t *body;
    uint64_t size;
    if (message_body_bytes(self, &body, &size) < 0) {
        view->obj = NULL;
        return -1;
    }
    return PyBuffer_FillInfo(view, (PyObject *)self, (void *)(uintptr_t)body, (Py_ssize_t)size, 1, flags);
}

static Py_ssize_t message_length(struct shmq_message_object *self)
{
    const uint8_t *body;
    uint64_t size;
    return message_body_bytes(self, &body, &size) < 0 ? -1 : (Py_ssize_t)size;
}

/* A message with an empty body is a message. */
static int message_bool(PyObject *self)
{
    (void)self;
    return 1;
}

static PyObject *message_get_topic(struct shmq_message_object *self, void *closure)
{
    (void)closure;
    struct shmq_message_view view;
    if (self->draft != NULL) {
        return Py_NewRef(self->draft->topic);
    }
    if (message_parse(self, &view) < 0) {
        return NULL;
    }
    const uint8_t *topic = view.topic;
    uint32_t size = view.topic_size;
    if (size > MESSAGE_RETRY_PREFIX_SIZE && memcmp(topic, MESSAGE_RETRY_PREFIX, MESSAGE_RETRY_PREFIX_SIZE) == 0) {
        /* without the property: somebody sent to the retry topic itself, and that is its topic */
        (void)shmq_properties_find(view.properties, view.properties_size, "RETRY_TOPIC", 11, &topic, &size);
    }
    return shmq_properties_text(topic, size);
}

static PyObject *message_get_keeper(struct shmq_message_object *self, void *closure)
{
    (void)closure;
    return Py_NewRef(self->keeper == NULL ? Py_None : self->keeper);
}

static PyObject *message_get_body(struct shmq_message_object *self, void *closure)
{
    (void)closure;
    return PyMemoryView_FromObject((PyObject *)self);
}

static PyObject *message_get_body_bytes(struct shmq_message_object *self, void *closure)
{
    (void)closure;
    const uint8_t *body;
    uint64_t size;
    if (message_body_bytes(self, &body, &size) < 0) {
        return NULL;
    }
    return PyBytes_FromStringAndSize((const char *)body, (Py_ssize_t)size);
}

static PyObject *message_property(struct shmq_message_object *self, const char *name)
{
    const uint8_t *properties;
    uint32_t size;
    if (message_properties_bytes(self, &properties, &size) < 0) {
        return NULL;
    }
    return shmq_properties_get(properties, size, name);
}

static PyObject *message_get_tag(struct shmq_message_object *self, void *closure)
{
    (void)closure;
    return message_property(self, "TAGS");
}

static PyObject *message_get_keys(struct shmq_message_object *self, void *closure)
{
    (void)closure;
    PyObject *text = message_property(self, "KEYS");
    if (text == NULL || text == Py_None) {
        Py_XDECREF(text);
        return text == NULL ? NULL : PyTuple_New(0);
    }
    PyObject *list = PyUnicode_Split(text, NULL, -1);
    PyObject *keys = list == NULL ? NULL : PyList_AsTuple(list);
    Py_DECREF(text);
    Py_XDECREF(list);
    return keys;
}

static PyObject *message_get_properties(struct shmq_message_object *self, void *closure)
{
    (void)closure;
    const uint8_t *properties;
    uint32_t size;
    if (message_properties_bytes(self, &properties, &size) < 0) {
        return NULL;
    }
    return shmq_properties_dict(properties, size);
}

static PyObject *message_get_flag(struct shmq_message_object *self, void *closure)
{
    (void)closure;
    struct shmq_message_view view;
    if (self->draft != NULL) {
        return PyLong_FromLong(self->draft->flag);
    }
    return message_parse(self, &view) < 0 ? NULL : PyLong_FromLong(view.flag);
}

/* What only the broker knows. */
static int message_received_view(struct shmq_message_object *self, const char *name,
                                 struct shmq_message_view *view)
{
    if (self->draft != NULL) {
        PyErr_Format(PyExc_AttributeError, "%s: this message was made to be sent; only a received one has it",
                     name);
        return -1;
    }
    return message_parse(self, view);
}

enum message_number {
    MESSAGE_QUEUE_ID,
    MESSAGE_QUEUE_OFFSET,
    MESSAGE_PHYSICAL_OFFSET,
    MESSAGE_STORE_TIMESTAMP,
    MESSAGE_BORN_TIMESTAMP,
    MESSAGE_SYS_FLAG,
    MESSAGE_RECONSUME_TIMES,
    MESSAGE_SIZE,
};

struct message_attribute {
    enum message_number number;
    const char *name;
};

static PyObject *message_get_number(struct shmq_message_object *self, void *closure)
{
    const struct message_attribute *attribute = closure;
    struct shmq_message_view view;
    if (message_received_view(self, attribute->name, &view) < 0) {
        return NULL;
    }
    switch (attribute->number) {
    case MESSAGE_QUEUE_ID:
        return PyLong_FromUnsignedLong(view.queue_id);
    case MESSAGE_QUEUE_OFFSET:
        return PyLong_FromUnsignedLongLong(view.queue_offset);
    case MESSAGE_PHYSICAL_OFFSET:
        return PyLong_FromUnsignedLongLong(view.physical_offset);
    case MESSAGE_STORE_TIMESTAMP:
        return PyLong_FromLongLong(view.store_timestamp);
    case MESSAGE_BORN_TIMESTAMP:
        return PyLong_FromLongLong(view.born_timestamp);
    case MESSAGE_SYS_FLAG:
        return PyLong_FromUnsignedLong(view.sys_flag);
    case MESSAGE_RECONSUME_TIMES:
        return PyLong_FromLong(view.reconsume_times);
    case MESSAGE_SIZE:
    default:
        return PyLong_FromUnsignedLong(view.total_size);
    }
}

/* RocketMQ's offsetMsgId: address and port of the store, physical offset, in hexadecimal. */
static PyObject *message_offset_id(const struct shmq_message_view *view)
{
    uint8_t bytes[SHMQ_HOST_SIZE_V6 + 8];
    char text[2 * sizeof bytes];
    static const char digits[] = "0123456789ABCDEF";
    uint32_t size = view->store_host_size;
    memcpy(bytes, view->store_host, size);
    shmq_be64_store(bytes + size, view->physical_offset);
    size += 8;
    for (uint32_t i = 0; i < size; ++i) {
        text[2 * i] = digits[bytes[i] >> 4];
        text[2 * i + 1] = digits[bytes[i] & 15];
    }
    return PyUnicode_FromStringAndSize(text, (Py_ssize_t)(2 * size));
}

static PyObject *message_get_offset_message_id(struct shmq_message_object *self, void *closure)
{
    (void)closure;
    struct shmq_message_view view;
    return message_received_view(self, "offset_message_id", &view) < 0 ? NULL : message_offset_id(&view);
}

static PyObject *message_get_message_id(struct shmq_message_object *self, void *closure)
{
    (void)closure;
    PyObject *id = message_property(self, "UNIQ_KEY");
    if (id != Py_None) {
        return id;
    }
    Py_DECREF(id);
    struct shmq_message_view view;
    return message_received_view(self, "message_id", &view) < 0 ? NULL : message_offset_id(&view);
}

/* ---- methods ------------------------------------------------------------------------------------------------ */

/* "1000,3" as a tuple of ints, "()" as the empty one; NULL with ValueError. */
static PyObject *message_shape(PyObject *text)
{
    if (PyUnicode_CompareWithASCIIString(text, "()") == 0) {
        return PyTuple_New(0);
    }
    PyObject *comma = PyUnicode_FromString(",");
    PyObject *parts = comma == NULL ? NULL : PyUnicode_Split(text, comma, -1);
    Py_ssize_t count = parts == NULL ? 0 : PyList_GET_SIZE(parts);
    PyObject *shape = parts == NULL ? NULL : PyTuple_New(count);
    for (Py_ssize_t i = 0; shape != NULL && i < count; ++i) {
        PyObject *size = PyLong_FromUnicodeObject(PyList_GET_ITEM(parts, i), 10);
        if (size == NULL) {
            Py_CLEAR(shape);
            break;
        }
        PyTuple_SET_ITEM(shape, i, size);
    }
    Py_XDECREF(comma);
    Py_XDECREF(parts);
    return shape;
}

/* The producer's dtype and shape are anybody's text: numpy itself refuses what is no dtype, object arrays and
 * sizes that do not fit. */
static PyObject *message_shaped(struct shmq_message_object *self, PyObject *numpy, PyObject *dtype_text,
                                PyObject *shape_text)
{
    PyObject *dtype = PyObject_CallMethod(numpy, "dtype", "O", dtype_text);
    PyObject *shape = dtype == NULL ? NULL : message_shape(shape_text);
    PyObject *flat = NULL;
    if (shape != NULL && message_length(self) == 0) {
        flat = PyObject_CallMethod(numpy, "empty", "iO", 0, dtype); /* frombuffer refuses an empty body */
        PyObject *no = flat == NULL ? NULL : PyObject_CallMethod(flat, "setflags", "O", Py_False);
        if (no == NULL) {
            Py_CLEAR(flat);
        }
        Py_XDECREF(no);
    } else if (shape != NULL) {
        flat = PyObject_CallMethod(numpy, "frombuffer", "OO", (PyObject *)self, dtype);
    }
    PyObject *array = flat == NULL ? NULL : PyObject_CallMethod(flat, "reshape", "(O)", shape);
    Py_XDECREF(dtype);
    Py_XDECREF(shape);
    Py_XDECREF(flat);
    return array;
}

static PyObject *message_array(struct shmq_message_object *self, PyObject *ignored)
{
    (void)ignored;
    PyObject *dtype = message_property(self, SHMQ_DTYPE_PROPERTY);
    PyObject *shape = dtype == NULL ? NULL : message_property(self, SHMQ_SHAPE_PROPERTY);
    PyObject *numpy = shape == NULL ? NULL : PyImport_ImportModule("numpy");
    PyObject *array = NULL;
    if (numpy != NULL) {
        if (dtype == Py_None || shape == Py_None) {
            Py_SETREF(dtype, PyUnicode_FromString("u1"));
            Py_SETREF(shape, PyUnicode_FromFormat("%zd", message_length(self)));
        }
        array = dtype == NULL || shape == NULL ? NULL : message_shaped(self, numpy, dtype, shape);
    }
    Py_XDECREF(dtype);
    Py_XDECREF(shape);
    Py_XDECREF(numpy);
    return array;
}

/* Tells the keeper, whose own verb of that name takes the message. */
static PyObject *message_tell(struct shmq_message_object *self, const char *verb)
{
    if (self->keeper == NULL) {
        PyErr_Format(PyExc_TypeError, "%s a message: no consumer handed it out, there is nothing to settle", verb);
        return NULL;
    }
    return PyObject_CallMethod(self->keeper, verb, "O", (PyObject *)self);
}

static PyObject *message_process(struct shmq_message_object *self, PyObject *ignored)
{
    (void)ignored;
    return message_tell(self, "process");
}

static PyObject *message_settle(struct shmq_message_object *self, PyObject *ignored)
{
    (void)ignored;
    return message_tell(self, "settle");
}

static PyObject *message_reduce(PyObject *self, PyObject *ignored)
{
    (void)self;
    (void)ignored;
    PyErr_SetString(PyExc_TypeError, "a Message is not pickled or copied: it may lie in shared memory; take "
                                     "bytes(message) and message.properties");
    return NULL;
}

static PyObject *message_repr(struct shmq_message_object *self)
{
    if (self->draft != NULL) {
        return PyUnicode_FromFormat("<Message topic=%R body=%llu bytes>", self->draft->topic,
                                    (unsigned long long)self->draft->body.size);
    }
    struct shmq_message_view view;
    PyObject *topic = message_get_topic(self, NULL);
    if (topic == NULL || message_parse(self, &view) < 0) {
        Py_XDECREF(topic);
        return NULL;
    }
    PyObject *text = PyUnicode_FromFormat("<Message topic=%R queue_id=%u queue_offset=%llu body=%u bytes>", topic,
                                          view.queue_id, (unsigned long long)view.queue_offset,
                                          view.body_size);
    Py_DECREF(topic);
    return text;
}

#define NUMBER(attribute, value, doc)                                                              \
    {                                                                                              \
        attribute, (getter)(void (*)(void))message_get_number, NULL, doc,                          \
            &(struct message_attribute){value, attribute}                                          \
    }
#define TEXT(attribute, function, doc) {attribute, (getter)(void (*)(void))function, NULL, doc, NULL}

static PyGetSetDef message_getset[] = {
    TEXT("topic", message_get_topic, "the topic that it was sent to; of one that comes again, too"),
    TEXT("keeper", message_get_keeper, "whom process() and settle() tell, or None"),
    TEXT("body", message_get_body, "memoryview, read-only; of a received message in place"),
    TEXT("body_bytes", message_get_body_bytes, "a copy of the body"),
    TEXT("tag", message_get_tag, "the tag, or None"),
    TEXT("keys", message_get_keys, "the keys, a tuple of str"),
    TEXT("properties", message_get_properties, "a new dict of all properties but the CRC"),
    TEXT("flag", message_get_flag, "the user's own integer"),
    TEXT("message_id", message_get_message_id, "the producer's id (UNIQ_KEY), else offset_message_id"),
    TEXT("offset_message_id", message_get_offset_message_id, "store host and physical offset in hexadecimal"),
    NUMBER("queue_id", MESSAGE_QUEUE_ID, "its queue"),
    NUMBER("queue_offset", MESSAGE_QUEUE_OFFSET, "its place in the queue"),
    NUMBER("physical_offset", MESSAGE_PHYSICAL_OFFSET, "byte place of its frame in the CommitLog"),
    NUMBER("store_timestamp", MESSAGE_STORE_TIMESTAMP, "ms since 1970, broker's clock"),
    NUMBER("born_timestamp", MESSAGE_BORN_TIMESTAMP, "ms since 1970, producer's clock"),
    NUMBER("sys_flag", MESSAGE_SYS_FLAG, "RocketMQ's sysFlag"),
    NUMBER("reconsume_times", MESSAGE_RECONSUME_TIMES, "deliveries that failed before"),
    NUMBER("size", MESSAGE_SIZE, "bytes of its frame"),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef message_methods[] = {
    {"array", (PyCFunction)(void (*)(void))message_array, METH_NOARGS,
     "array() -> numpy array on the body, read-only, with the dtype and shape it was sent with."},
    {"process", (PyCFunction)(void (*)(void))message_process, METH_NOARGS,
     "process() -> context manager: settles the message at its end; after an exception it is delivered again."},
    {"settle", (PyCFunction)(void (*)(void))message_settle, METH_NOARGS, "settle(): it is done with. Any thread."},
    {"__reduce__", message_reduce, METH_NOARGS, "Refuses."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot message_slots[] = {
    {Py_tp_new, (void *)(uintptr_t)message_new},
    {Py_tp_dealloc, (void *)(uintptr_t)message_dealloc},
    {Py_tp_repr, (void *)(uintptr_t)message_repr},
    {Py_tp_methods, message_methods},
    {Py_tp_getset, message_getset},
    {Py_sq_length, (void *)(uintptr_t)message_length},
    {Py_nb_bool, (void *)(uintptr_t)message_bool},
    {Py_bf_getbuffer, (void *)(uintptr_t)message_getbuffer},
    {Py_tp_doc, "Message(topic, body, *, tag=None, keys=(), properties=None, flag=0): never changes."},
    {0, NULL},
};

static PyType_Spec message_spec = {
    .name = "shmq.core._core.Message",
    .basicsize = sizeof(struct shmq_message_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = message_slots,
};

int shmq_add_message(PyObject *module)
{
    struct shmq_module *state = shmq_module_state(module);
    state->message_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &message_spec, NULL);
    return state->message_type == NULL ? -1 : PyModule_AddType(module, state->message_type);
}
