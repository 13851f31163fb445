/* properties.h: message properties between Python objects and RocketMQ's bytes, name 0x01 value 0x02. */
#ifndef SHMQ_BINDING_PROPERTIES_H
#define SHMQ_BINDING_PROPERTIES_H

#include "binding.h"
#include "unique_key.h"

/* What a numpy body travels with. */
#define SHMQ_DTYPE_PROPERTY "__shmq_dtype"
#define SHMQ_SHAPE_PROPERTY "__shmq_shape"

/* Room for what a producer may send; the broker adds the CRC property. */
#define SHMQ_PROPERTIES_ROOM (SHMQ_PROPERTIES_SIZE_MAX - SHMQ_CRC_PROPERTY_SIZE)

/* What a message's properties are made of; borrowed. NULL or None: absent. */
struct shmq_property_parts {
    PyObject *tag;        /* str */
    PyObject *keys;       /* str, or iterable of str */
    PyObject *properties; /* mapping of str to str */
    PyObject *dtype;      /* str */
    PyObject *shape;      /* str */
    uint32_t grants;      /* SHMQ_GRANT_* bits: which reserved names may be set */
};

/* Encoded properties; without the unique key unless the caller brought one. */
struct shmq_property_bytes {
    uint32_t size;
    int has_unique_key;
    uint32_t delay_level; /* of the DELAY property, 0 without */
    uint8_t bytes[SHMQ_PROPERTIES_ROOM];
};

static inline int shmq_property_parts_empty(const struct shmq_property_parts *parts)
{
    return (parts->tag == NULL || parts->tag == Py_None) && (parts->keys == NULL || parts->keys == Py_None) &&
           (parts->properties == NULL || parts->properties == Py_None) && parts->dtype == NULL;
}

/* -1 with IllegalPropertyError, ReservedPropertyError or PropertiesTooLargeError. An explicit tag or key wins over
 * TAGS and KEYS among the properties. */
int shmq_properties_encode(const struct shmq_property_parts *parts, struct shmq_property_bytes *out);

/* Bytes of UTF-8 as a str; malformed ones become U+FFFD, as in Java. */
PyObject *shmq_properties_text(const uint8_t *at, uint32_t size);

/* A new dict of all properties but the CRC. */
PyObject *shmq_properties_dict(const uint8_t *properties, uint32_t size);

/* The value as a str, or None. */
PyObject *shmq_properties_get(const uint8_t *properties, uint32_t size, const char *name);

#endif
