/* message_object.h: Message, as the lane sends it and the reader makes it. */
#ifndef SHMQ_BINDING_MESSAGE_OBJECT_H
#define SHMQ_BINDING_MESSAGE_OBJECT_H

#include "body.h"
#include "log_map.h"

/* A message that was made to be sent. */
struct shmq_draft {
    PyObject *topic;      /* str */
    PyObject *source;     /* what `body` lies in */
    PyObject *properties; /* bytes, encoded; without the unique key unless has_unique_key */
    struct shmq_body body;
    int has_unique_key;
    uint32_t delay_level; /* of its DELAY property, 0 without */
    int32_t flag;
};

struct shmq_message_object {
    PyObject_HEAD
    struct shmq_log_map *log;     /* received: keeps entry's table; NULL for a draft */
    struct shmq_log_entry *entry; /* received: pinned */
    const uint8_t *frame;         /* received: in the entry */
    struct shmq_draft *draft;     /* made to be sent, or NULL */
    PyObject *keeper;             /* received: who is told that it is done with, or NULL */
    uint32_t frame_size;
};

/* A received message: `frame` lies whole in `entry`, which the caller has pinned. Takes a pin of its own. */
static inline PyObject *shmq_message_received(struct shmq_module *module, struct shmq_log_map *log,
                                              struct shmq_log_entry *entry, const uint8_t *frame, uint32_t size,
                                              PyObject *keeper)
{
    struct shmq_message_object *self = PyObject_New(struct shmq_message_object, module->message_type);
    if (self != NULL) {
        shmq_log_entry_pin(entry);
        Py_INCREF(log);
        self->log = log;
        self->entry = entry;
        self->frame = frame;
        self->draft = NULL;
        self->keeper = Py_XNewRef(keeper);
        self->frame_size = size;
    }
    return (PyObject *)self;
}

#endif
