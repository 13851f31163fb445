/* properties.c: message properties between Python objects and RocketMQ's bytes. All checks are made here, before
 * a byte of shared memory is touched; the broker makes them again on its own copy. */
#include "properties.h"

#include <string.h>

static int property_is(const char *name, Py_ssize_t size, const char *wanted)
{
    return (size_t)size == strlen(wanted) && memcmp(name, wanted, (size_t)size) == 0;
}

/* UTF-8 of a name or value that is fit to be one: not empty, no NUL and no separator. NULL with an exception. */
static const char *property_text(PyObject *object, const char *what, Py_ssize_t *size)
{
    if (!PyUnicode_Check(object)) {
        shmq_raise("IllegalPropertyError", "%s: want a str, got %R; write it as text", what, object);
        return NULL;
    }
    const char *text = PyUnicode_AsUTF8AndSize(object, size);
    if (text == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_MemoryError)) {
            PyErr_Clear();
            shmq_raise("IllegalPropertyError", "%s: %R is no valid text (a lone surrogate)", what, object);
        }
        return NULL;
    }
    int is_bad = *size == 0;
    for (Py_ssize_t i = 0; i < *size; ++i) {
        is_bad |= (uint8_t)text[i] <= SHMQ_PROPERTY_VALUE_END;
    }
    if (is_bad) {
        shmq_raise("IllegalPropertyError",
                   "%s: %R; want at least one character and no NUL, 0x01 or 0x02", what, object);
        return NULL;
    }
    return text;
}

static int property_put(struct shmq_property_bytes *out, const char *text, Py_ssize_t size, uint8_t end)
{
    uint32_t room = SHMQ_PROPERTIES_ROOM - (out->has_unique_key ? 0 : SHMQ_UNIQUE_PROPERTY_SIZE);
    if (out->size > room || (size_t)size + 1 > room - out->size) {
        shmq_raise("PropertiesTooLargeError",
                   "properties: more than %u bytes with names, values and separators; put more into the body",
                   room);
        return -1;
    }
    memcpy(out->bytes + out->size, text, (size_t)size);
    out->bytes[out->size + (uint32_t)size] = end;
    out->size += (uint32_t)size + 1;
    return 0;
}

static int property_put_pair(struct shmq_property_bytes *out, const char *name, PyObject *value)
{
    Py_ssize_t size;
    const char *text = property_text(value, name, &size);
    if (text == NULL || property_put(out, name, (Py_ssize_t)strlen(name), SHMQ_PROPERTY_NAME_END) < 0) {
        return -1;
    }
    return property_put(out, text, size, SHMQ_PROPERTY_VALUE_END);
}

/* Several keys are one value, joined by a space, so a key of its own holds none. */
static int property_put_keys(struct shmq_property_bytes *out, PyObject *keys)
{
    if (PyUnicode_Check(keys)) {
        return property_put_pair(out, "KEYS", keys);
    }
    PyObject *items = PySequence_Tuple(keys);
    if (items == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_MemoryError)) {
            PyErr_Clear();
            shmq_raise("IllegalPropertyError", "keys: want a str or several, got %R", keys);
        }
        return -1;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(items);
    int status = count == 0 ? 0 : property_put(out, "KEYS", 4, SHMQ_PROPERTY_NAME_END);
    for (Py_ssize_t i = 0; i < count && status == 0; ++i) {
        PyObject *key = PyTuple_GET_ITEM(items, i);
        Py_ssize_t size;
        const char *text = property_text(key, "a key", &size);
        if (text != NULL && memchr(text, ' ', (size_t)size) != NULL) {
            shmq_raise("IllegalPropertyError", "a key: %R holds a space, which separates keys", key);
            text = NULL;
        }
        status = text == NULL
                     ? -1
                     : property_put(out, text, size, i + 1 < count ? ' ' : SHMQ_PROPERTY_VALUE_END);
    }
    Py_DECREF(items);
    return status;
}

/* A tag is one word: a bar joins tags in a filter, so that nobody could subscribe to it. */
static int property_put_tag(struct shmq_property_bytes *out, PyObject *tag)
{
    Py_ssize_t size;
    const char *text = property_text(tag, "TAGS", &size);
    if (text == NULL) {
        return -1;
    }
    if (memchr(text, '|', (size_t)size) != NULL) {
        shmq_raise("IllegalPropertyError", "tag %R: holds |, which joins tags in a filter; a message has one tag",
                   tag);
        return -1;
    }
    return property_put(out, "TAGS", 4, SHMQ_PROPERTY_NAME_END) < 0
               ? -1
               : property_put(out, text, size, SHMQ_PROPERTY_VALUE_END);
}

/* A delay level as RocketMQ's clients write it; what it means is the broker's. */
static int property_delay_level(PyObject *value, const char *text, Py_ssize_t size, uint32_t *level)
{
    *level = 0;
    for (Py_ssize_t i = 0; i < size; ++i) {
        uint8_t decimal = (uint8_t)(text[i] - '0');
        if (decimal > 9 || size > 2) {
            shmq_raise("IllegalPropertyError", "DELAY: %R; want a delay level, 0 to 99", value);
            return -1;
        }
        *level = *level * 10 + decimal;
    }
    return 0;
}

static int property_put_user(struct shmq_property_bytes *out, const struct shmq_property_parts *parts,
                             PyObject *name, PyObject *value)
{
    Py_ssize_t name_size;
    Py_ssize_t value_size;
    const char *name_text = property_text(name, "a property name", &name_size);
    const char *value_text = name_text == NULL ? NULL : property_text(value, name_text, &value_size);
    if (value_text == NULL) {
        return -1;
    }
    if ((property_is(name_text, name_size, "TAGS") && parts->tag != NULL && parts->tag != Py_None) ||
        (property_is(name_text, name_size, "KEYS") && parts->keys != NULL && parts->keys != Py_None) ||
        (parts->dtype != NULL && (property_is(name_text, name_size, SHMQ_DTYPE_PROPERTY) ||
                                  property_is(name_text, name_size, SHMQ_SHAPE_PROPERTY)))) {
        return 0; /* the explicit one wins */
    }
    if (parts->grants == 0 &&
        (property_is(name_text, name_size, "TAGS") || property_is(name_text, name_size, "KEYS"))) {
        shmq_raise("ReservedPropertyError", "property %R: give it as the argument %s", name,
                   name_text[0] == 'T' ? "tag" : "keys");
        return -1;
    }
    uint32_t needed = name_size > UINT16_MAX
                          ? 0
                          : shmq_property_grants((const uint8_t *)name_text, (uint32_t)name_size);
    if (needed != 0 && (needed & parts->grants) == 0) {
        shmq_raise("ReservedPropertyError", "property %R: shmq sets it itself; choose another name", name);
        return -1;
    }
    if (property_is(name_text, name_size, "UNIQ_KEY")) {
        out->has_unique_key = 1;
    } else if (property_is(name_text, name_size, "DELAY") &&
               property_delay_level(value, value_text, value_size, &out->delay_level) < 0) {
        return -1;
    }
    if (property_put(out, name_text, name_size, SHMQ_PROPERTY_NAME_END) < 0) {
        return -1;
    }
    return property_put(out, value_text, value_size, SHMQ_PROPERTY_VALUE_END);
}

static int property_put_mapping(struct shmq_property_bytes *out, const struct shmq_property_parts *parts)
{
    PyObject *dict = Py_NewRef(parts->properties);
    if (!PyDict_CheckExact(dict)) {
        /* A copy: no code of the caller's runs while its items are looked at. */
        Py_SETREF(dict, PyDict_New());
        if (dict != NULL && PyDict_Update(dict, parts->properties) < 0) {
            Py_CLEAR(dict);
        }
        if (dict == NULL) {
            if (!PyErr_ExceptionMatches(PyExc_MemoryError)) {
                PyErr_Clear();
                shmq_raise("IllegalPropertyError", "properties: want a mapping of str to str, got %R",
                           parts->properties);
            }
            return -1;
        }
    }
    PyObject *name;
    PyObject *value;
    Py_ssize_t at = 0;
    int status = 0;
    while (status == 0 && PyDict_Next(dict, &at, &name, &value)) {
        status = property_put_user(out, parts, name, value);
    }
    Py_DECREF(dict);
    return status;
}

int shmq_properties_encode(const struct shmq_property_parts *parts, struct shmq_property_bytes *out)
{
    out->size = 0;
    out->has_unique_key = 0;
    out->delay_level = 0;
    if (parts->properties != NULL && parts->properties != Py_None && property_put_mapping(out, parts) < 0) {
        return -1;
    }
    if (parts->tag != NULL && parts->tag != Py_None && property_put_tag(out, parts->tag) < 0) {
        return -1;
    }
    if (parts->keys != NULL && parts->keys != Py_None && property_put_keys(out, parts->keys) < 0) {
        return -1;
    }
    if (parts->dtype != NULL && (property_put_pair(out, SHMQ_DTYPE_PROPERTY, parts->dtype) < 0 ||
                                 property_put_pair(out, SHMQ_SHAPE_PROPERTY, parts->shape) < 0)) {
        return -1;
    }
    return 0;
}

PyObject *shmq_properties_text(const uint8_t *at, uint32_t size)
{
    return PyUnicode_DecodeUTF8((const char *)at, size, "replace");
}

PyObject *shmq_properties_dict(const uint8_t *properties, uint32_t size)
{
    PyObject *dict = PyDict_New();
    for (uint32_t at = 0; dict != NULL && at < size;) {
        const uint8_t *pair = properties + at;
        const uint8_t *end = memchr(pair, SHMQ_PROPERTY_VALUE_END, size - at);
        uint32_t pair_size = end != NULL ? (uint32_t)(end - pair) : size - at;
        const uint8_t *split = pair_size == 0 ? NULL : memchr(pair, SHMQ_PROPERTY_NAME_END, pair_size);
        at += pair_size + 1;
        if (split == NULL || split == pair || split == pair + pair_size - 1) {
            continue; /* RocketMQ's reader drops a pair without a name or a value, too */
        }
        uint32_t name_size = (uint32_t)(split - pair);
        if (name_size == SHMQ_CRC_PROPERTY_NAME_SIZE && memcmp(pair, SHMQ_CRC_PROPERTY_NAME, name_size) == 0) {
            continue;
        }
        PyObject *name = shmq_properties_text(pair, name_size);
        PyObject *value = name == NULL ? NULL : shmq_properties_text(split + 1, pair_size - name_size - 1);
        if (value == NULL || PyDict_SetItem(dict, name, value) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(name);
        Py_XDECREF(value);
    }
    return dict;
}

PyObject *shmq_properties_get(const uint8_t *properties, uint32_t size, const char *name)
{
    const uint8_t *value;
    uint32_t value_size;
    if (shmq_properties_find(properties, size, name, (uint32_t)strlen(name), &value, &value_size) != SHMQ_OK) {
        Py_RETURN_NONE;
    }
    return shmq_properties_text(value, value_size);
}
