/* completions.h: Completions: what became of many messages put one after the other. */
#ifndef SHMQ_BINDING_COMPLETIONS_H
#define SHMQ_BINDING_COMPLETIONS_H

#include "unique_key.h"

#include <stddef.h>

struct shmq_completion_row {
    uint64_t id; /* of the unique key, or SHMQ_UNIQUE_KEY_CUSTOM */
    int64_t queue_offset; /* -1: not stored, or not known to be */
    int32_t status;       /* negative enum shmq_status, 0 */
};

struct shmq_completions {
    PyObject_VAR_HEAD
    struct shmq_unique_keys unique_keys; /* as they were: a producer may change its prefix later */
    Py_ssize_t count;                    /* rows filled; ob_size is their room */
    struct shmq_completion_row rows[];
};

/* Empty, with room for so many; NULL with an exception. */
struct shmq_completions *shmq_completions_new(struct shmq_module *module, const struct shmq_unique_keys *keys,
                                              uint32_t room);

int shmq_add_completions(PyObject *module);

#endif
