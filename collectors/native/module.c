/* The ring's frequent calls as a Python module: a row costs half of what it costs through ctypes, in a process whose
 * caches are busy with a model (14 us and 7 us of CPU, a collective 29 us and 18 us). Limited API, so that one file
 * serves every CPython from 3.10 on; where it cannot be imported, or was built without Python's headers, the agent goes
 * through ctypes. Called with the GIL held, all are shorter than giving it up. */
#if __has_include(<Python.h>)
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#include "ring.h"

#define NONE INT64_MIN /* stands for None among whole numbers (collectors/agent/packed.py) */
#define FIELDS_MAX 16
#define SIZES_MAX 4096 /* ranks of a group, sent and received together */

static PyObject *nbytes_name, *shape_name, *dtype_name;

static const char *text_of(PyObject *name) {
    Py_ssize_t length;
    return PyUnicode_AsUTF8AndSize(name, &length);
}

/* A range that a model names: `with phase(name, layer, micro_batch): ...`. */
struct phase {
    PyObject_HEAD
    PyObject *name;
    uint64_t place, id;
};

/* The low bits of a number plus one; 0 for None and for what is no whole number: a model that names its ranges oddly
 * must not fail for being recorded. */
static uint64_t told(PyObject *number, uint64_t mask) {
    if (!number) return 0;
    unsigned long long value = PyLong_AsUnsignedLongLongMask(number);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    return (value + 1) & mask;
}

static PyObject *phase_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *name, *layer = NULL, *micro_batch = NULL;
    if (!PyArg_ParseTuple(args, "U|OO", &name, &layer, &micro_batch)) return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct phase *self = (struct phase *)allocate(type, 0);
    if (!self) return NULL;
    Py_INCREF(name);
    self->name = name;
    /* As pack_place (collectors/agent/ring.py) has it. */
    self->place = told(micro_batch, 0xFF) << 8 | told(layer, 0xFFFF) << 16;
    return (PyObject *)self;
}

static void phase_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(((struct phase *)object)->name);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *phase_enter(PyObject *object, PyObject *unused) {
    (void)unused;
    struct phase *self = (struct phase *)object;
    const char *name = text_of(self->name);
    if (!name) return NULL;
    self->id = moescope_phase_begin(name, self->place);
    Py_RETURN_NONE;
}

static PyObject *phase_exit(PyObject *object, PyObject *args) {
    (void)args;
    moescope_phase_end(((struct phase *)object)->id);
    Py_RETURN_NONE;
}

static PyMethodDef phase_methods[] = {
    {"__enter__", phase_enter, METH_NOARGS, NULL},
    {"__exit__", phase_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot phase_slots[] = {
    {Py_tp_new, phase_new},
    {Py_tp_dealloc, phase_dealloc},
    {Py_tp_methods, phase_methods},
    {0, NULL},
};
static PyType_Spec phase_spec = {"_moescope_ring.phase", sizeof(struct phase), 0, Py_TPFLAGS_DEFAULT, phase_slots};

/* Rows of one kind: `row(kind, keys, integers, floats, names, counts)` packs a dict and writes it; False where it does not
 * fit. keys: of all fields, in this order, so many of each; counts: of a list of whole numbers behind them, "" for none. */
struct row {
    PyObject_HEAD
    PyObject *kind, *keys, *counts; /* bytes, a tuple, and text or NULL */
    Py_ssize_t integers, floats, names;
};

static PyObject *row_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *kind, *keys, *counts;
    Py_ssize_t integers, floats, names;
    if (!PyArg_ParseTuple(args, "SO!nnnU", &kind, &PyTuple_Type, &keys, &integers, &floats, &names, &counts)) return NULL;
    if (integers < 0 || floats < 0 || names < 0 || integers + floats + names != PyTuple_Size(keys) || PyTuple_Size(keys) > FIELDS_MAX) {
        PyErr_SetString(PyExc_ValueError, "not as many fields as were told");
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct row *self = (struct row *)allocate(type, 0);
    if (!self) return NULL;
    Py_INCREF(kind);
    Py_INCREF(keys);
    self->kind = kind;
    self->keys = keys;
    self->counts = PyUnicode_GetLength(counts) ? counts : NULL;
    Py_XINCREF(self->counts);
    self->integers = integers;
    self->floats = floats;
    self->names = names;
    return (PyObject *)self;
}

static void row_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(((struct row *)object)->kind);
    Py_XDECREF(((struct row *)object)->keys);
    Py_XDECREF(((struct row *)object)->counts);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

/* The whole number that `value` stands for, those of numpy too; 0 where it is none, maybe with an exception. */
static int whole(PyObject *value, int64_t *out) {
    PyObject *number = PyNumber_Index(value);
    if (!number) return 0;
    *out = PyLong_AsLongLong(number);
    Py_DECREF(number);
    return *out != -1 || !PyErr_Occurred();
}

/* Packs the fields of `values`; 0 where one does not fit, maybe with an exception. */
static int row_pack(struct row *self, PyObject *values, unsigned char *out) {
    for (Py_ssize_t i = 0; i < PyTuple_Size(self->keys); i++) {
        PyObject *value = PyDict_GetItemWithError(values, PyTuple_GetItem(self->keys, i));
        if (!value) return 0;
        if (i < self->integers) {
            int64_t number = NONE;
            if (value == Py_None ? self->counts != NULL : !whole(value, &number)) return 0;
            memcpy(out, &number, 8);
            out += 8;
        } else if (i < self->integers + self->floats) {
            double number = PyFloat_AsDouble(value);
            if (number == -1.0 && PyErr_Occurred()) return 0;
            memcpy(out, &number, 8);
            out += 8;
        } else {
            uint32_t number = 0;
            if (value != Py_None) {
                Py_ssize_t length;
                const char *text = PyUnicode_Check(value) ? PyUnicode_AsUTF8AndSize(value, &length) : NULL;
                if (!text || length > (Py_ssize_t)NAME_MAX_BYTES || strlen(text) != (size_t)length) return 0;
                if (!(number = moescope_name(text))) return 0;
            }
            memcpy(out, &number, 4);
            out += 4;
        }
    }
    return 1;
}

/* Packs the list of `values`; how many, -1 where it does not fit, maybe with an exception. */
static Py_ssize_t row_pack_counts(struct row *self, PyObject *values, unsigned char *out) {
    if (!self->counts) return 0;
    PyObject *list = PyDict_GetItemWithError(values, self->counts);
    Py_ssize_t count = list && PyList_Check(list) ? PyList_Size(list) : -1;
    if (count > SIZES_MAX) return -1;
    for (Py_ssize_t i = 0; i < count; i++, out += 8) {
        int64_t number;
        /* An element may be any object, and shorten the list while it is asked. */
        PyObject *value = i < PyList_Size(list) ? PyList_GetItem(list, i) : NULL;
        if (!value) return -1;
        Py_INCREF(value);
        int fits = whole(value, &number);
        Py_DECREF(value);
        if (!fits) return -1;
        memcpy(out, &number, 8);
    }
    return count;
}

static PyObject *row_call(PyObject *object, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    struct row *self = (struct row *)object;
    PyObject *values = PyTuple_Size(args) == 1 ? PyTuple_GetItem(args, 0) : NULL;
    static __thread unsigned char packed[8 * (FIELDS_MAX + SIZES_MAX)];
    Py_ssize_t fields = 8 * (self->integers + self->floats) + 4 * self->names, counts = -1;
    if (values && PyDict_Check(values) && row_pack(self, values, packed)) counts = row_pack_counts(self, values, packed + fields);
    if (counts < 0) {
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    moescope_blob(PyBytes_AsString(self->kind), packed, (uint32_t)(fields + 8 * counts));
    Py_RETURN_TRUE;
}

static PyType_Slot row_slots[] = {
    {Py_tp_new, row_new},
    {Py_tp_dealloc, row_dealloc},
    {Py_tp_call, row_call},
    {0, NULL},
};
static PyType_Spec row_spec = {"_moescope_ring.row", sizeof(struct row), 0, Py_TPFLAGS_DEFAULT, row_slots};

/* Appends the sizes of a list to `words`; how many, -1 for None, -2 with an exception for anything else. */
static Py_ssize_t sizes_of(PyObject *sizes, int64_t *words, Py_ssize_t room) {
    if (sizes == Py_None) return -1;
    Py_ssize_t count = PyList_Check(sizes) ? PyList_Size(sizes) : -1;
    if (count < 0 || count > room) {
        PyErr_SetString(PyExc_ValueError, "sizes are a list, and not that many");
        return -2;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        words[i] = PyLong_AsLongLong(PyList_GetItem(sizes, i));
        if (words[i] == -1 && PyErr_Occurred()) return -2;
    }
    return count;
}

/* comm(kind, number, issue_ns, sent, received): a collective's issue, as pack_comm (collectors/agent/packed.py) packs it. */
static PyObject *comm(PyObject *module, PyObject *args) {
    (void)module;
    static __thread int64_t words[4 + SIZES_MAX];
    PyObject *kind, *sent, *received;
    long long number, issue_ns;
    if (!PyArg_ParseTuple(args, "SLLOO", &kind, &number, &issue_ns, &sent, &received)) return NULL;
    int whole = PyLong_Check(sent); /* the operand's bytes: who gets them is not known */
    if (whole) words[4] = PyLong_AsLongLong(sent);
    Py_ssize_t n_sent = whole ? (PyErr_Occurred() ? -2 : 1) : sizes_of(sent, words + 4, SIZES_MAX);
    Py_ssize_t used = n_sent < 0 ? 0 : n_sent;
    Py_ssize_t n_received = n_sent < -1 ? -2 : sizes_of(received, words + 4 + used, SIZES_MAX - used);
    if (n_received < -1) return NULL;
    if (whole) n_sent = -2;
    used += n_received < 0 ? 0 : n_received;
    words[0] = number, words[1] = issue_ns, words[2] = n_sent, words[3] = n_received;
    moescope_blob(PyBytes_AsString(kind), words, (uint32_t)(8 * (4 + used)));
    Py_RETURN_NONE;
}

/* Appends the bytes of each of `n` parts of a tensor, split along its first dimension as `splits` tells, evenly where it
 * tells nothing; how many, -2 with an exception for anything else. */
static Py_ssize_t parts_of(PyObject *tensor, PyObject *splits, Py_ssize_t n, int64_t *words, Py_ssize_t room) {
    PyObject *bytes = PyObject_GetAttr(tensor, nbytes_name);
    long long total = bytes ? PyLong_AsLongLong(bytes) : -1;
    Py_XDECREF(bytes);
    if (PyErr_Occurred()) return -2;
    Py_ssize_t count = splits == Py_None ? 0 : PyList_Check(splits) ? PyList_Size(splits) : -1;
    if (count < 0 || count > room || n > room || n < 1) {
        PyErr_SetString(PyExc_ValueError, "splits are a list, and not that many");
        return -2;
    }
    if (!count) {
        for (Py_ssize_t i = 0; i < n; i++) words[i] = total / n;
        return n;
    }
    PyObject *shape = PyObject_GetAttr(tensor, shape_name);
    PyObject *first = shape && PySequence_Size(shape) > 0 ? PySequence_GetItem(shape, 0) : NULL;
    long long rows = first ? PyLong_AsLongLong(first) : 1;
    Py_XDECREF(shape);
    Py_XDECREF(first);
    if (PyErr_Occurred()) return -2;
    for (Py_ssize_t i = 0; i < count; i++) {
        long long part = PyLong_AsLongLong(PyList_GetItem(splits, i));
        if (part == -1 && PyErr_Occurred()) return -2;
        words[i] = total / (rows > 0 ? rows : 1) * part;
    }
    return count;
}

/* Tells the issue of an all-to-all; 0, with no exception left, where its arguments are not as it takes them. */
static int tell_uneven(const char *kind, long long number, long long issue_ns, Py_ssize_t ranks, PyObject *input, PyObject *ins,
                       PyObject *output, PyObject *outs) {
    static __thread int64_t words[4 + SIZES_MAX];
    Py_ssize_t sent = parts_of(input, ins, ranks, words + 4, SIZES_MAX / 2);
    Py_ssize_t received = sent < 0 ? -2 : parts_of(output, outs, ranks, words + 4 + sent, SIZES_MAX / 2);
    PyErr_Clear();
    if (received < 0) return 0;
    words[0] = number, words[1] = issue_ns, words[2] = sent, words[3] = received;
    moescope_blob(kind, words, (uint32_t)(8 * (4 + sent + received)));
    return 1;
}

/* uneven(kind, number, issue_ns, ranks, input, in_splits, output, out_splits): the issue of an all-to-all; False where
 * `comm` has to tell it. */
static PyObject *uneven(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *kind, *input, *ins, *output, *outs;
    long long number, issue_ns;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "SLLnOOOO", &kind, &number, &issue_ns, &n, &input, &ins, &output, &outs)) return NULL;
    return PyBool_FromLong(tell_uneven(PyBytes_AsString(kind), number, issue_ns, n, input, ins, output, outs));
}

static PyObject *settled(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromLong(moescope_settled());
}

static PyObject *phase_begin(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *name;
    unsigned long long place;
    if (!PyArg_ParseTuple(args, "UK", &name, &place)) return NULL;
    const char *text = text_of(name);
    return text ? PyLong_FromUnsignedLongLong(moescope_phase_begin(text, place)) : NULL;
}

static PyObject *phase_end(PyObject *module, PyObject *id) {
    (void)module;
    unsigned long long number = PyLong_AsUnsignedLongLong(id);
    if (PyErr_Occurred()) return NULL;
    moescope_phase_end(number);
    Py_RETURN_NONE;
}

static PyObject *expect(PyObject *module, PyObject *args) {
    (void)module;
    const char *name;
    unsigned long long call;
    unsigned int group;
    if (!PyArg_ParseTuple(args, "yKI", &name, &call, &group)) return NULL;
    return PyLong_FromLong(moescope_expect(name, call, group));
}

static PyObject *next_call(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(moescope_next_call());
}

/* issue_begins(range, group): this thread is about to issue a call, and gloo's next range of this name is to be its. The
 * call's number; 0 where torch's ranges are not on as the thread left them, or too many calls wait for theirs. */
static PyObject *issue_begins(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    const char *range = count == 2 ? PyBytes_AsString(args[0]) : NULL;
    unsigned long group = range ? PyLong_AsUnsignedLong(args[1]) : 0;
    if (PyErr_Occurred()) return NULL;
    if (!range || !moescope_settled()) return PyLong_FromLong(0);
    uint64_t number = moescope_next_call();
    if (moescope_expect(range, number, (uint32_t)group)) return PyLong_FromLong(0);
    moescope_announce(1);
    return PyLong_FromUnsignedLongLong(number);
}

enum { ISSUE_TOLD = 1, ISSUE_SETTLED = 2 };

/* issue_ends(number, issue_ns, kinds, ranks, args): it has been issued. ISSUE_TOLD where it is told, as an all-to-all is
 * that a group's method was called for with `args`; kinds: `comm_kind` by element type, None for all other calls.
 * ISSUE_SETTLED where torch's ranges are on as they were. */
static PyObject *issue_ends(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    moescope_announce(0);
    long state = moescope_settled() ? ISSUE_SETTLED : 0;
    if (count != 5 || !PyDict_Check(args[2]) || !PyTuple_Check(args[4]) || PyTuple_Size(args[4]) < 4) return PyLong_FromLong(state);
    PyObject *output = PyTuple_GetItem(args[4], 0), *input = PyTuple_GetItem(args[4], 1);
    PyObject *outs = PyTuple_GetItem(args[4], 2), *ins = PyTuple_GetItem(args[4], 3);
    long long number = PyLong_AsLongLong(args[0]), issue_ns = PyLong_AsLongLong(args[1]);
    Py_ssize_t ranks = PyLong_AsSsize_t(args[3]);
    PyObject *dtype = PyErr_Occurred() ? NULL : PyObject_GetAttr(input, dtype_name);
    PyObject *kind = dtype ? PyDict_GetItemWithError(args[2], dtype) : NULL;
    Py_XDECREF(dtype);
    if (kind && PyBytes_Check(kind) && PyBytes_Size(kind) &&
        tell_uneven(PyBytes_AsString(kind), number, issue_ns, ranks, input, ins, output, outs))
        state |= ISSUE_TOLD;
    PyErr_Clear();
    return PyLong_FromLong(state);
}

static PyObject *call_begin(PyObject *module, PyObject *call) {
    (void)module;
    unsigned long long number = PyLong_AsUnsignedLongLong(call);
    if (PyErr_Occurred()) return NULL;
    return PyLong_FromLong(moescope_call_begin(number));
}

static PyObject *call_end(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    moescope_call_end();
    Py_RETURN_NONE;
}

static PyObject *mute(PyObject *module, PyObject *on) {
    (void)module;
    long value = PyLong_AsLong(on);
    if (PyErr_Occurred()) return NULL;
    moescope_mute((int)value);
    Py_RETURN_NONE;
}

static PyObject *announce(PyObject *module, PyObject *on) {
    (void)module;
    long value = PyLong_AsLong(on);
    if (PyErr_Occurred()) return NULL;
    moescope_announce((int)value);
    Py_RETURN_NONE;
}

static PyObject *thread_operators(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(moescope_thread_operators());
}

static PyMethodDef functions[] = {
    {"comm", comm, METH_VARARGS, NULL},       {"phase_begin", phase_begin, METH_VARARGS, NULL},
    {"phase_end", phase_end, METH_O, NULL},   {"expect", expect, METH_VARARGS, NULL},
    {"mute", mute, METH_O, NULL},             {"thread_operators", thread_operators, METH_NOARGS, NULL},
    {"uneven", uneven, METH_VARARGS, NULL},   {"settled", settled, METH_NOARGS, NULL},
    {"call_begin", call_begin, METH_O, NULL}, {"call_end", call_end, METH_NOARGS, NULL},
    {"next_call", next_call, METH_NOARGS, NULL}, {"announce", announce, METH_O, NULL},
    {"issue_begins", (PyCFunction)(void (*)(void))issue_begins, METH_FASTCALL, NULL},
    {"issue_ends", (PyCFunction)(void (*)(void))issue_ends, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_moescope_ring", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__moescope_ring(void) {
    PyObject *module = PyModule_Create(&definition);
    PyObject *phase = PyType_FromSpec(&phase_spec), *row = PyType_FromSpec(&row_spec);
    nbytes_name = PyUnicode_InternFromString("nbytes");
    shape_name = PyUnicode_InternFromString("shape");
    dtype_name = PyUnicode_InternFromString("dtype");
    if (!nbytes_name || !shape_name || !dtype_name) return NULL;
    if (!module || !phase || !row || PyModule_AddObject(module, "phase", phase) || PyModule_AddObject(module, "row", row)) return NULL;
    return module;
}
#endif
