/* body.h: what a caller gives as the body of a message, as bytes in memory. */
#ifndef SHMQ_BINDING_BODY_H
#define SHMQ_BINDING_BODY_H

#include "binding.h"

struct shmq_body {
    const uint8_t *data;
    uint64_t size;
    Py_buffer view;  /* held while view.obj is not NULL */
    PyObject *dtype; /* of a numpy array: both are str; else NULL */
    PyObject *shape;
};

/* Everything but exact bytes. -1 with BodyTypeError. */
int shmq_body_get_other(struct shmq_module *module, PyObject *object, struct shmq_body *out);

/* The bytes of `object`, which the caller keeps alive until shmq_body_release. -1 with BodyTypeError. */
static inline int shmq_body_get(struct shmq_module *module, PyObject *object, struct shmq_body *out)
{
    out->view.obj = NULL;
    out->dtype = NULL;
    out->shape = NULL;
    if (PyBytes_CheckExact(object)) {
        out->data = (const uint8_t *)PyBytes_AS_STRING(object);
        out->size = (uint64_t)PyBytes_GET_SIZE(object);
        return 0;
    }
    return shmq_body_get_other(module, object, out);
}

static inline void shmq_body_release(struct shmq_body *body)
{
    if (body->view.obj != NULL) {
        PyBuffer_Release(&body->view);
    }
    Py_XDECREF(body->dtype);
    Py_XDECREF(body->shape);
}

#endif
