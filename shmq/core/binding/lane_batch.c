/* lane_batch.c: Lane.put_many: many bodies in one call, one after the other in the ring and in the queue. All are
 * looked at before the first is written. */
#include "lane.h"

#include "arguments.h"
#include "message_object.h"

/* Records between two looks at the clock, and between two publications: the broker begins while we go on. */
#define BATCH_CLOCK_RECORDS 64u

static const char *const put_many_names[] = {"row",  "generation", "bodies",  "tag",  "keys", "properties",
                                             "flag", "wait",       "timeout", "keep", NULL};

/* One body. Properties of its own come with a Message or an array; NULL: those of the call. */
struct batch_item {
    const uint8_t *body;
    uint64_t body_size;
    const uint8_t *properties;
    uint32_t properties_size;
    int32_t flag;
    int has_unique_key;
    uint32_t delay_level;
};

struct batch {
    PyObject *bodies; /* tuple: nobody changes it while we look */
    PyObject *kept;   /* list of encoded properties */
    struct batch_item *items;
    struct shmq_body *held; /* bodies that are not plain bytes */
    Py_ssize_t held_count;
    Py_ssize_t held_room;
};

static void batch_release(struct batch *batch)
{
    for (Py_ssize_t i = 0; i < batch->held_count; ++i) {
        shmq_body_release(&batch->held[i]);
    }
    PyMem_Free(batch->held);
    PyMem_Free(batch->items);
    Py_XDECREF(batch->kept);
    Py_XDECREF(batch->bodies);
}

/* An array in a batch: the call's properties, and its own dtype and shape. */
static int batch_array(struct batch *batch, const struct shmq_lane_call *call, const struct shmq_body *body,
                       struct batch_item *item)
{
    struct shmq_property_bytes encoded;
    struct shmq_property_parts parts = call->parts;
    parts.dtype = body->dtype;
    parts.shape = body->shape;
    if (shmq_properties_encode(&parts, &encoded) < 0) {
        return -1;
    }
    if (batch->kept == NULL && (batch->kept = PyList_New(0)) == NULL) {
        return -1;
    }
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)encoded.bytes, encoded.size);
    if (bytes == NULL || PyList_Append(batch->kept, bytes) < 0) {
        Py_XDECREF(bytes);
        return -1;
    }
    item->properties = (const uint8_t *)PyBytes_AS_STRING(bytes);
    item->properties_size = encoded.size;
    item->has_unique_key = encoded.has_unique_key;
    item->delay_level = encoded.delay_level;
    Py_DECREF(bytes); /* the list has it */
    return 0;
}

static int batch_other(struct shmq_lane_object *self, struct batch *batch, const struct shmq_lane_call *call,
                       PyObject *object, struct batch_item *item)
{
    if (Py_IS_TYPE(object, self->module->message_type)) {
        const struct shmq_draft *draft = ((struct shmq_message_object *)object)->draft;
        if (draft == NULL || !shmq_property_parts_empty(&call->parts)) {
            shmq_raise("BodyTypeError", "put_many: a Message that was received, or that comes with properties "
                                        "beside its own; give new ones, or bodies");
            return -1;
        }
        item->body = draft->body.data;
        item->body_size = draft->body.size;
        item->properties = (const uint8_t *)PyBytes_AS_STRING(draft->properties);
        item->properties_size = (uint32_t)PyBytes_GET_SIZE(draft->properties);
        item->has_unique_key = draft->has_unique_key;
        item->delay_level = draft->delay_level;
        item->flag = draft->flag;
        return 0;
    }
    if (batch->held_count == batch->held_room) {
        Py_ssize_t room = batch->held_room == 0 ? 16 : batch->held_room * 2;
        struct shmq_body *held = PyMem_Realloc(batch->held, (size_t)room * sizeof *held);
        if (held == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        batch->held = held;
        batch->held_room = room;
    }
    struct shmq_body *body = &batch->held[batch->held_count];
    if (shmq_body_get(self->module, object, body) < 0) {
        return -1;
    }
    batch->held_count += 1;
    item->body = body->data;
    item->body_size = body->size;
    return body->dtype == NULL ? 0 : batch_array(batch, call, body, item);
}

/* Looks at every body. -1 with an exception: nothing was written. */
static int batch_begin(struct shmq_lane_object *self, PyObject *bodies, const struct shmq_lane_call *call,
                       struct batch *batch)
{
    batch->bodies = PySequence_Tuple(bodies);
    if (batch->bodies == NULL) {
        return -1;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(batch->bodies);
    batch->items = PyMem_Malloc((size_t)(count + 1) * sizeof *batch->items);
    if (batch->items == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject *object = PyTuple_GET_ITEM(batch->bodies, i);
        struct batch_item *item = &batch->items[i];
        item->properties = call->record.properties;
        item->properties_size = call->record.properties_size;
        item->has_unique_key = call->record.has_unique_key;
        item->delay_level = call->record.delay_level;
        item->flag = call->record.flag;
        if (PyBytes_CheckExact(object)) {
            item->body = (const uint8_t *)PyBytes_AS_STRING(object);
            item->body_size = (uint64_t)PyBytes_GET_SIZE(object);
        } else if (batch_other(self, batch, call, object, item) < 0) {
            return -1;
        }
        if (item->body_size > self->message_size_max) {
            return shmq_lane_check_size(self, item->body_size);
        }
    }
    return 0;
}

/* Whether room can only come from completions that this very batch wants kept. */
static int batch_blocks_itself(const struct shmq_lane_object *self, const struct shmq_lane_record *record,
                               uint64_t first)
{
    const struct shmq_lane_writer *writer = &self->writer;
    return record->is_kept && writer->sequence - writer->completion_read >= writer->completion_capacity &&
           writer->completion_read >= first;
}

static void batch_take_item(struct shmq_lane_record *record, const struct batch_item *item)
{
    record->body = item->body;
    record->body_size = item->body_size;
    record->properties = item->properties;
    record->properties_size = item->properties_size;
    record->has_unique_key = item->has_unique_key;
    record->delay_level = item->delay_level;
    record->flag = item->flag;
}

/* Sends items in the caller's turn; *count of them went. Status, or 1 with an exception. */
static int batch_put(struct shmq_lane_object *self, struct shmq_lane_call *call, const struct batch *batch,
                     Py_ssize_t wanted, Py_ssize_t *count)
{
    struct shmq_lane_record *record = &call->record;
    uint64_t first = self->writer.sequence;
    uint64_t now_ns = 0;
    int status = SHMQ_OK;
    for (*count = 0; *count < wanted; ++*count) {
        if (*count % BATCH_CLOCK_RECORDS == 0) {
            now_ns = shmq_clock_ns(CLOCK_REALTIME);
            if (*count != 0) {
                (void)shmq_lane_publish(&self->writer);
            }
        }
        batch_take_item(record, &batch->items[*count]);
        uint32_t properties_size = shmq_lane_properties_size(record);
        struct shmq_lane_place place;
        status = shmq_lane_claim_now(self, record->body_size, properties_size, &place);
        if (status == SHMQ_FULL) {
            (void)shmq_lane_publish(&self->writer);
            if (batch_blocks_itself(self, record, first)) {
                break;
            }
            status = shmq_lane_claim_wait(self, record->body_size, properties_size, &call->wait, &place);
            now_ns = shmq_clock_ns(CLOCK_REALTIME);
        }
        if (status != SHMQ_OK) {
            break;
        }
        if (record->body_size >= SHMQ_GIL_COPY_SIZE) {
            Py_BEGIN_ALLOW_THREADS
            memcpy(place.body, record->body, record->body_size);
            Py_END_ALLOW_THREADS
            if (shmq_lane_check(self, "put_many") < 0) {
                if (place.kind == SHMQ_RECORD_LARGE) {
                    shmq_chunk_abort(place.chunk, place.chunk_ticket);
                }
                return 1;
            }
        } else {
            memcpy(place.body, record->body, record->body_size);
        }
        (void)shmq_lane_write(self, record, &place, now_ns);
    }
    if (!self->closed) {
        (void)shmq_lane_publish(&self->writer);
    }
    return status;
}

PyObject *shmq_lane_put_many(struct shmq_lane_object *self, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    PyObject *given[SHMQ_LANE_ARGUMENTS];
    struct shmq_lane_call call;
    struct batch batch = {0};
    if (shmq_arguments("put_many", put_many_names, 3, args, nargs, kwnames, given) < 0 ||
        shmq_lane_check(self, "put_many") < 0 || shmq_lane_call_begin(self, given, &call) < 0 ||
        shmq_lane_call_properties(&call) < 0) {
        return NULL;
    }
    Py_ssize_t count = 0;
    uint64_t first = 0;
    int status = 1;
    if (batch_begin(self, given[SHMQ_LANE_BODY], &call, &batch) == 0 && shmq_lane_check(self, "put_many") == 0) {
        status = shmq_lane_enter(self, &call.wait);
        if (status == SHMQ_OK) {
            first = self->writer.sequence;
            status = batch_put(self, &call, &batch, PyTuple_GET_SIZE(batch.bodies), &count);
            shmq_lane_leave(self);
        }
    }
    batch_release(&batch);
    if (status > 0) {
        return NULL;
    }
    return Py_BuildValue("(iKn)", status, (unsigned long long)first, count);
}
