/* body.c: what a caller gives as the body of a message: any contiguous buffer, a str as UTF-8, or a numpy
 * array, whose dtype and shape travel as properties. Nothing is copied here. */
#include "body.h"

/* numpy's array type, or NULL if nobody has imported numpy: then there is no array either. */
static PyTypeObject *body_ndarray_type(struct shmq_module *module)
{
    if (module->ndarray_type == NULL) {
        PyObject *modules = PyImport_GetModuleDict();
        PyObject *numpy = modules == NULL ? NULL : PyDict_GetItemString(modules, "numpy"); /* borrowed */
        PyObject *type = numpy == NULL ? NULL : PyObject_GetAttrString(numpy, "ndarray");
        if (type != NULL && PyType_Check(type)) {
            module->ndarray_type = (PyTypeObject *)type;
        } else {
            Py_XDECREF(type);
            PyErr_Clear(); /* a module that is half imported has no array to offer yet */
        }
    }
    return module->ndarray_type;
}

/* "1000,3"; "()" for an array without dimensions, because a property is never empty. */
static PyObject *body_shape(PyObject *array)
{
    PyObject *shape = PyObject_GetAttrString(array, "shape");
    PyObject *text = NULL;
    if (shape != NULL && PyTuple_Check(shape) && PyTuple_GET_SIZE(shape) == 0) {
        text = PyUnicode_FromString("()");
    } else if (shape != NULL && PyTuple_Check(shape)) {
        PyObject *parts = PyList_New(PyTuple_GET_SIZE(shape));
        PyObject *comma = PyUnicode_FromString(",");
        for (Py_ssize_t i = 0; parts != NULL && i < PyTuple_GET_SIZE(shape); ++i) {
            PyObject *part = PyObject_Str(PyTuple_GET_ITEM(shape, i));
            if (part == NULL) {
                Py_CLEAR(parts);
                break;
            }
            PyList_SET_ITEM(parts, i, part);
        }
        text = parts == NULL || comma == NULL ? NULL : PyUnicode_Join(comma, parts);
        Py_XDECREF(parts);
        Py_XDECREF(comma);
    }
    Py_XDECREF(shape);
    return text;
}

static PyObject *body_dtype(PyObject *array)
{
    PyObject *dtype = PyObject_GetAttrString(array, "dtype");
    PyObject *text = dtype == NULL ? NULL : PyObject_GetAttrString(dtype, "str");
    Py_XDECREF(dtype);
    return text;
}

/* Whether items of this buffer format hold Python objects: their bytes would be addresses. Names of fields stand
 * between colons. */
static int body_holds_objects(const char *format)
{
    int in_name = 0;
    for (; format != NULL && *format != '\0'; ++format) {
        in_name ^= *format == ':';
        if (*format == 'O' && !in_name) {
            return 1;
        }
    }
    return 0;
}

static int body_buffer(PyObject *object, struct shmq_body *out)
{
    if (PyObject_GetBuffer(object, &out->view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
        out->view.obj = NULL;
        return -1;
    }
    if (body_holds_objects(out->view.format)) {
        PyBuffer_Release(&out->view);
        PyErr_SetString(PyExc_BufferError, "its items are objects");
        return -1;
    }
    out->data = out->view.buf;
    out->size = (uint64_t)out->view.len;
    return 0;
}

/* Times have no format in the buffer protocol: their bytes are taken as void items of the same size. */
static int body_array_of_times(PyObject *array, struct shmq_body *out)
{
    if (PyErr_ExceptionMatches(PyExc_BufferError) || PyErr_ExceptionMatches(PyExc_MemoryError)) {
        return -1;
    }
    PyErr_Clear();
    PyObject *size = PyObject_GetAttrString(array, "itemsize");
    PyObject *name = size == NULL ? NULL : PyUnicode_FromFormat("V%S", size);
    PyObject *view = name == NULL ? NULL : PyObject_CallMethod(array, "view", "O", name);
    int status = view == NULL ? -1 : body_buffer(view, out);
    Py_XDECREF(size);
    Py_XDECREF(name);
    Py_XDECREF(view);
    return status;
}

/* An array of Python objects would give away their addresses. */
static int body_array_has_objects(PyObject *array)
{
    PyObject *dtype = PyObject_GetAttrString(array, "dtype");
    PyObject *has_objects = dtype == NULL ? NULL : PyObject_GetAttrString(dtype, "hasobject");
    int answer = has_objects == NULL ? -1 : PyObject_IsTrue(has_objects);
    Py_XDECREF(dtype);
    Py_XDECREF(has_objects);
    return answer;
}

static int body_array(PyObject *array, struct shmq_body *out)
{
    int has_objects = body_array_has_objects(array);
    if (has_objects > 0) {
        shmq_raise("BodyTypeError", "body: an array of Python objects; serialise them first");
    }
    if (has_objects != 0) {
        return -1;
    }
    PyObject *flags = PyObject_GetAttrString(array, "flags");
    PyObject *contiguous = flags == NULL ? NULL : PyObject_GetAttrString(flags, "c_contiguous");
    int is_contiguous = contiguous == NULL ? -1 : PyObject_IsTrue(contiguous);
    Py_XDECREF(flags);
    Py_XDECREF(contiguous);
    if (is_contiguous == 0) {
        shmq_raise("BodyTypeError",
                   "body: an array that is not C-contiguous; send numpy.ascontiguousarray(array)");
    }
    if (is_contiguous <= 0) {
        return -1;
    }
    if (body_buffer(array, out) < 0 && body_array_of_times(array, out) < 0) {
        if (!PyErr_ExceptionMatches(PyExc_MemoryError)) {
            PyErr_Clear();
            shmq_raise("BodyTypeError", "body: an array of %R has no bytes of its own; serialise it first",
                       (PyObject *)Py_TYPE(array));
        }
        return -1;
    }
    out->dtype = body_dtype(array);
    out->shape = out->dtype == NULL ? NULL : body_shape(array);
    if (out->shape == NULL) {
        shmq_body_release(out);
        return -1;
    }
    return 0;
}

int shmq_body_get_other(struct shmq_module *module, PyObject *object, struct shmq_body *out)
{
    if (PyUnicode_Check(object)) {
        Py_ssize_t size;
        const char *text = PyUnicode_AsUTF8AndSize(object, &size);
        if (text == NULL) {
            if (!PyErr_ExceptionMatches(PyExc_MemoryError)) {
                PyErr_Clear();
                shmq_raise("BodyTypeError", "body: a str with a lone surrogate; send bytes");
            }
            return -1;
        }
        out->data = (const uint8_t *)text;
        out->size = (uint64_t)size;
        return 0;
    }
    PyTypeObject *array_type = PyObject_CheckBuffer(object) && !PyByteArray_CheckExact(object) &&
                                       !PyMemoryView_Check(object) && !PyBytes_Check(object)
                                   ? body_ndarray_type(module)
                                   : NULL;
    if (array_type != NULL && PyObject_TypeCheck(object, array_type)) {
        return body_array(object, out);
    }
    if (!PyObject_CheckBuffer(object)) {
        shmq_raise("BodyTypeError",
                   "body: %s; give bytes, any contiguous buffer or a str, serialise anything else first",
                   Py_TYPE(object)->tp_name);
        return -1;
    }
    if (body_buffer(object, out) < 0) {
        if (!PyErr_ExceptionMatches(PyExc_MemoryError)) {
            PyErr_Clear();
            shmq_raise("BodyTypeError",
                       "body: a %s that is not contiguous or holds objects; send a copy, as bytes(...), or serialise "
                       "it",
                       Py_TYPE(object)->tp_name);
        }
        return -1;
    }
    return 0;
}
