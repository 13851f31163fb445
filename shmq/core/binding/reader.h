/* reader.h: Batch, as the reader fills it. */
#ifndef SHMQ_BINDING_READER_H
#define SHMQ_BINDING_READER_H

#include "message_object.h"

/* Columns of a batch, each `room` words of 64 bits, one after the other in one allocation. */
enum shmq_batch_column {
    SHMQ_BATCH_QUEUE_OFFSETS,
    SHMQ_BATCH_PHYSICAL_OFFSETS,
    SHMQ_BATCH_SIZES,
    SHMQ_BATCH_BODY_ADDRESSES,
    SHMQ_BATCH_BODY_SIZES,
    SHMQ_BATCH_COLUMNS
};

struct shmq_batch {
    PyObject_HEAD
    struct shmq_module *module;
    struct shmq_log_map *log;
    uint64_t *columns;
    Py_ssize_t room;
    Py_ssize_t count;
    struct shmq_log_entry **pins; /* files that the messages lie in, each pinned once per run of messages */
    size_t pin_count;
    size_t pin_room;
    /* What the next buffer request exports: set right before it is made, with the GIL. */
    int export_column;
    Py_ssize_t export_body;
};

static inline uint64_t *shmq_batch_column(const struct shmq_batch *self, enum shmq_batch_column column)
{
    return self->columns + (size_t)column * (size_t)self->room;
}

/* An empty batch with room, or NULL with an exception. */
struct shmq_batch *shmq_batch_new(struct shmq_module *module, struct shmq_log_map *log, Py_ssize_t room);

/* Pins `entry` for the messages to come. -1 with an exception. */
int shmq_batch_pin(struct shmq_batch *self, struct shmq_log_entry *entry);

int shmq_add_batch(PyObject *module);

#endif
