/* The kernels as a Python module. Tensors are passed as addresses; the Python files next to the kernels check them. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "isa/table.h"
#include "memory_bound/selection.h"

typedef unsigned long long address;
static const kernel_table *kernels; /* those in use */

#define AT(type, where) ((type *)(uintptr_t)(where))

static PyObject *py_norm_forward(PyObject *self, PyObject *arguments)
{
    (void)self;
    norm_work w;
    norm_shape *s = &w.shape;
    int threads;
    address x, bias, residual, gamma, beta, y, chosen, statistics;
    if (!PyArg_ParseTuple(arguments, "(lllllpppf)iKKKKKKKK", &s->images, &s->channels, &s->height, &s->width,
                          &s->groups, &s->last, &s->pool, &s->relu, &s->eps, &threads, &x, &bias, &residual, &gamma,
                          &beta, &y, &chosen, &statistics))
        return NULL;
    w.x = AT(float, x), w.bias = AT(float, bias), w.residual = AT(float, residual), w.gamma = AT(float, gamma);
    w.beta = AT(float, beta), w.y = AT(float, y), w.chosen = AT(uint8_t, chosen), w.statistics = AT(float, statistics);
    Py_BEGIN_ALLOW_THREADS
    kernels->norm_forward(&w, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_norm_backward(PyObject *self, PyObject *arguments)
{
    (void)self;
    norm_gradients w;
    norm_shape *s = &w.shape;
    int threads, done;
    address dy, x, y, chosen, bias, gamma, statistics, dx, dresidual, parameters;
    if (!PyArg_ParseTuple(arguments, "(lllllpppf)iKKKKKKKKKK", &s->images, &s->channels, &s->height, &s->width,
                          &s->groups, &s->last, &s->pool, &s->relu, &s->eps, &threads, &dy, &x, &y, &chosen, &bias,
                          &gamma, &statistics, &dx, &dresidual, &parameters))
        return NULL;
    w.dy = AT(float, dy), w.x = AT(float, x), w.y = AT(float, y), w.chosen = AT(uint8_t, chosen);
    w.bias = AT(float, bias), w.gamma = AT(float, gamma), w.statistics = AT(float, statistics);
    w.dx = AT(float, dx), w.dresidual = AT(float, dresidual), w.parameters = AT(float, parameters);
    Py_BEGIN_ALLOW_THREADS
    done = kernels->norm_backward(&w, threads);
    Py_END_ALLOW_THREADS
    if (!done)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_conv_forward(PyObject *self, PyObject *arguments)
{
    (void)self;
    conv_shape s;
    int done;
    address x, filters, y;
    if (!PyArg_ParseTuple(arguments, "(llllll)KKK", &s.images, &s.groups, &s.in, &s.out, &s.height, &s.width, &x,
                          &filters, &y))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    done = kernels->conv_forward(&s, AT(float, x), AT(float, filters), AT(float, y));
    Py_END_ALLOW_THREADS
    if (!done)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_conv_backward(PyObject *self, PyObject *arguments)
{
    (void)self;
    conv_shape s;
    int done;
    address dy, x, filters, dx, dfilters;
    if (!PyArg_ParseTuple(arguments, "(llllll)KKKKK", &s.images, &s.groups, &s.in, &s.out, &s.height, &s.width, &dy,
                          &x, &filters, &dx, &dfilters))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    done = kernels->conv_backward(&s, AT(float, dy), AT(float, x), AT(float, filters), AT(float, dx), AT(float, dfilters));
    Py_END_ALLOW_THREADS
    if (!done)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_winograd(PyObject *self, PyObject *arguments)
{
    (void)self;
    int done;
    winograd_work w;
    winograd_shape *s = &w.shape;
    address x, filters, bias, dy, y, dx, dfilters;
    if (!PyArg_ParseTuple(arguments, "(llllll)ifKKKKKKK", &s->images, &s->in, &s->out, &s->height, &s->width,
                          &s->stride, &w.threads, &w.least, &x, &filters, &bias, &dy, &y, &dx, &dfilters))
        return NULL;
    w.x = AT(float, x), w.filters = AT(float, filters), w.bias = AT(float, bias), w.dy = AT(float, dy);
    w.y = AT(float, y), w.dx = AT(float, dx), w.dfilters = AT(float, dfilters);
    Py_BEGIN_ALLOW_THREADS
    done = kernels->winograd(&w);
    Py_END_ALLOW_THREADS
    if (!done)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_expand(PyObject *self, PyObject *arguments)
{
    (void)self;
    int threads;
    long size, kept, ones;
    address mask, values, out;
    if (!PyArg_ParseTuple(arguments, "KlKlKi", &mask, &size, &values, &kept, &out, &threads))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    ones = kernels->expand(AT(uint8_t, mask), size, AT(float, values), kept, AT(float, out), threads);
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(ones);
}

static PyObject *py_pack(PyObject *self, PyObject *arguments)
{
    (void)self;
    long size, kept;
    address mask, values, out;
    if (!PyArg_ParseTuple(arguments, "KlKlK", &mask, &size, &values, &kept, &out))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    pack_masked(AT(uint8_t, mask), size, AT(float, values), kept, AT(float, out));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_multiply_by_mask(PyObject *self, PyObject *arguments)
{
    (void)self;
    int threads;
    long size;
    address mask, values;
    if (!PyArg_ParseTuple(arguments, "KlKi", &mask, &size, &values, &threads))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    kernels->multiply_by_mask(AT(uint8_t, mask), size, AT(float, values), threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_weighted_sum(PyObject *self, PyObject *arguments)
{
    (void)self;
    int threads;
    long count, size;
    address vectors, weights, out;
    if (!PyArg_ParseTuple(arguments, "KKllKi", &vectors, &weights, &count, &size, &out, &threads))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    kernels->weighted_sum(AT(const float *const, vectors), AT(float, weights), count, size, AT(float, out), threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_select_largest(PyObject *self, PyObject *arguments)
{
    (void)self;
    int done;
    long count;
    address values, segments, out;
    if (!PyArg_ParseTuple(arguments, "KKlK", &values, &segments, &count, &out))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    done = select_segments(AT(float, values), AT(selection, segments), count, AT(uint8_t, out));
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(done);
}

static PyObject *py_gather(PyObject *self, PyObject *arguments)
{
    (void)self;
    image_batch b;
    int floats, inside;
    long images;
    address rows, offsets, flips, source, first, second, out;
    if (!PyArg_ParseTuple(arguments, "(lllllp)lpKKKKKKK", &b.count, &b.channels, &b.height, &b.width, &b.padding,
                          &b.last, &images, &floats, &rows, &offsets, &flips, &source, &first, &second, &out))
        return NULL;
    b.rows = AT(int64_t, rows);
    b.offsets = AT(int64_t, offsets);
    b.flips = AT(uint8_t, flips);
    Py_BEGIN_ALLOW_THREADS
    inside = batch_is_inside(&b, images);
    if (inside && floats)
        kernels->gather_floats(&b, AT(float, source), AT(float, first), AT(float, second), AT(float, out));
    else if (inside)
        kernels->gather_bytes(&b, AT(uint8_t, source), AT(float, first), AT(float, out));
    Py_END_ALLOW_THREADS
    if (inside)
        Py_RETURN_NONE;
    PyErr_SetString(PyExc_IndexError, "a row that is not there, or a crop outside of its padded image");
    return NULL;
}

static PyObject *move_slices(PyObject *arguments, int (*move)(const slices *, const float *, float *))
{
    slices s;
    int there, done = 0;
    address rows, columns, x, out;
    if (!PyArg_ParseTuple(arguments, "(lll)KlKlKK", &s.rows.count, &s.columns.count, &s.inner, &rows,
                          &s.rows.chosen, &columns, &s.columns.chosen, &x, &out))
        return NULL;
    s.rows.at = AT(int64_t, rows);
    s.columns.at = AT(int64_t, columns);
    Py_BEGIN_ALLOW_THREADS
    there = slices_are_there(&s);
    if (there)
        done = move(&s, AT(float, x), AT(float, out));
    Py_END_ALLOW_THREADS
    if (done)
        Py_RETURN_NONE;
    if (there)
        return PyErr_NoMemory();
    PyErr_SetString(PyExc_IndexError, "numbers of rows or columns that are not there, or that do not ascend");
    return NULL;
}

static PyObject *py_gather_slices(PyObject *self, PyObject *arguments)
{
    (void)self;
    return move_slices(arguments, kernels->gather_slices);
}

static PyObject *py_scatter_slices(PyObject *self, PyObject *arguments)
{
    (void)self;
    return move_slices(arguments, kernels->scatter_slices);
}

static PyObject *py_usable(PyObject *self, PyObject *arguments)
{
    (void)self, (void)arguments;
    const kernel_table *const *all = usable_kernels();
    Py_ssize_t count = 0;
    while (all[count])
        count++;
    PyObject *names = PyTuple_New(count);
    for (Py_ssize_t i = 0; names && i < count; i++)
        PyTuple_SET_ITEM(names, i, PyUnicode_FromString(all[i]->name));
    return names;
}

static PyObject *py_used(PyObject *self, PyObject *arguments)
{
    (void)self, (void)arguments;
    return PyUnicode_FromString(kernels->name);
}

static PyObject *py_use(PyObject *self, PyObject *arguments)
{
    (void)self;
    const char *name;
    if (!PyArg_ParseTuple(arguments, "s", &name))
        return NULL;
    for (const kernel_table *const *all = usable_kernels(); *all; all++)
        if (!strcmp((*all)->name, name)) {
            kernels = *all;
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "this processor has no %s", name);
}

static PyMethodDef functions[] = {
    {"norm_forward", py_norm_forward, METH_VARARGS, "GroupNorm, ReLU, pooling: group_norm/"},
    {"norm_backward", py_norm_backward, METH_VARARGS, "Its gradients: group_norm/"},
    {"conv_forward", py_conv_forward, METH_VARARGS, "3x3 convolutions of small groups: group_conv/"},
    {"conv_backward", py_conv_backward, METH_VARARGS, "Their gradients: group_conv/"},
    {"winograd", py_winograd, METH_VARARGS, "3x3 convolutions of channels that are last: winograd/"},
    {"expand", py_expand, METH_VARARGS, "Values to the places of a mask: memory_bound/"},
    {"pack", py_pack, METH_VARARGS, "The values on a mask: memory_bound/"},
    {"multiply_by_mask", py_multiply_by_mask, METH_VARARGS, "Zero what a mask drops: memory_bound/"},
    {"weighted_sum", py_weighted_sum, METH_VARARGS, "Sum of vectors with weights: memory_bound/"},
    {"select_largest", py_select_largest, METH_VARARGS, "Mark the largest values of segments: memory_bound/"},
    {"gather", py_gather, METH_VARARGS, "A minibatch of images: memory_bound/"},
    {"gather_slices", py_gather_slices, METH_VARARGS, "Chosen rows and columns side by side: memory_bound/"},
    {"scatter_slices", py_scatter_slices, METH_VARARGS, "And back among zeros: memory_bound/"},
    {"usable", py_usable, METH_NOARGS, "Instruction sets that this processor has, the widest registers first"},
    {"used", py_used, METH_NOARGS, "The one whose kernels are used"},
    {"use", py_use, METH_VARARGS, "From now on, the kernels of one of them"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "kernels", "Kernels of ssfl.native.", -1, functions,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_kernels(void)
{
    kernels = usable_kernels()[0];
    return PyModule_Create(&definition);
}
