// The short ways: whole operators in one call, with the arguments of the public function in fastssd/ops, in its order.
// They exist because the checks and conversions of the long way, in Python, cost more than a small kernel. Nothing is
// converted or explained here: for any argument that is unusual a short way returns None, and then the long way runs,
// which also says what is wrong. `python -m benchmarks.short_ways` prints what each of them gains, and for thousands of
// boxes too, where the kernel takes most of the time.
//
// Microseconds of a call on 8 boxes, with the short way and with the long way only:
//
//                                    NumPy             torch
//     box_iou                  0.55    9.64      3.12   24.55
//     generalized_box_iou      0.98   15.00      3.19   24.90
//     distance_box_iou         0.57   10.65      3.20   25.52
//     complete_box_iou         0.81   10.75      3.42   26.03
//     paired_box_iou           0.73   14.96      3.00   24.12
//     match_anchors            4.02   71.49      6.05   80.59
//     assign_targets           2.95   83.52      7.47  124.57
//     encode_boxes             0.54   35.57      3.14   50.71
//     decode_boxes             0.53   11.10      3.12   25.36
//     nms                      0.65    9.17      3.23   25.95
//     batched_nms              0.81   10.58      4.31   37.56
//
// This file: an argument of a short way, a NumPy array or a torch tensor, examined without Python code.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>

#include "bindings/direct/dlpack.h"
#include "bindings/numpy.h"

namespace fastssd {

// Names and objects of torch. It is never imported here: a caller with a tensor has imported it.
struct Torch {
    PyObject *tensor, *float32, *float64, *int64, *from_numpy;
    PyObject *dtype, *shape, *is_cpu, *requires_grad, *is_contiguous, *is_neg, *data_ptr;
    int (*view)(void* tensor, dlpack::DLTensor* out);  // null before torch 2.10

    // Null where torch is not imported. Threads that come first at the same time all look; the result of one is kept.
    static const Torch* find() {
        static std::atomic<const Torch*> found{nullptr};
        const Torch* known = found.load(std::memory_order_acquire);
        if (known != nullptr) return known;
        try {
            auto fresh = std::make_unique<const Torch>();
            if (found.compare_exchange_strong(known, fresh.get())) known = fresh.release();
        } catch (const py::error_already_set&) {
        }
        return known;
    }

    // References that are never released: Python may end before a static object is destroyed.
    Torch() {
        const auto module = py::reinterpret_steal<py::object>(PyImport_GetModule(py::str("torch").ptr()));
        if (!module) {
            if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_ImportError, "torch is not imported");
            throw py::error_already_set();
        }
        const auto object = [&](const char* name) { return module.attr(name).cast<py::object>().release().ptr(); };
        const auto word = [](const char* name) { return py::str(name).release().ptr(); };
        tensor = object("Tensor"), from_numpy = object("from_numpy");
        float32 = object("float32"), float64 = object("float64"), int64 = object("int64");
        dtype = word("dtype"), shape = word("shape"), is_cpu = word("is_cpu"), requires_grad = word("requires_grad");
        view = dlpack::view_of(tensor);
        is_contiguous = word("is_contiguous"), is_neg = word("is_neg"), data_ptr = word("data_ptr");
    }
};

class Operand {
  public:
    enum class Type { other, float32, float64, int64 };
    static constexpr int kMaxAxes = 8;

    // Of type `other` unless the object is exactly an ndarray or a torch.Tensor, C-contiguous in the CPU's memory, in
    // native byte order, writeable where that is required, and without requires_grad.
    explicit Operand(py::handle object, bool writeable = false) {
        PyTypeObject* const kind = Py_TYPE(object.ptr());
        if (kind == numpy->PyArray_Type_) {
            read_array(object.ptr(), writeable);
        } else if (std::strcmp(kind->tp_name, "Tensor") == 0) {
            const Torch* const torch = Torch::find();
            if (torch == nullptr || reinterpret_cast<PyObject*>(kind) != torch->tensor) return;  // another library's
            tensor_ = true;
            if (!read_tensor(object.ptr(), *torch)) {
                PyErr_Clear();
                type_ = Type::other;
            }
        }
    }

    Type type() const { return type_; }
    bool is_float() const { return type_ == Type::float32 || type_ == Type::float64; }
    bool tensor() const { return tensor_; }
    int axes() const { return axes_; }
    const Py_intptr_t* shape() const { return shape_; }
    int64_t size(int axis) const { return shape_[axis < 0 ? axes_ + axis : axis]; }  // -1 is the last

    // The product of all lengths except the last `inner`; 0 where any length is 0, because then the others may be huge.
    int64_t rows(int inner) const {
        if (is_empty()) return 0;
        return std::accumulate(shape_, shape_ + axes_ - inner, int64_t(1), std::multiplies<>());
    }

    // Whether `other` is the same kind of array and has the same shape, except for the last `inner` axes.
    bool goes_with(const Operand& other, int inner) const {
        return tensor_ == other.tensor_ && axes_ == other.axes_ &&
               std::equal(shape_, shape_ + axes_ - inner, other.shape_);
    }

    template <typename T>
    T* data() const {
        return static_cast<T*>(data_);
    }

    // An uninitialised array.
    template <typename T>
    static py::object fresh(int axes, const Py_intptr_t* shape) {
        PyObject* const dtype = numpy->PyArray_DescrFromType_(py::detail::npy_format_descriptor<T>::value);
        PyObject* const array =
            numpy->PyArray_NewFromDescr_(numpy->PyArray_Type_, dtype, axes, shape, nullptr, nullptr, 0, nullptr);
        if (array == nullptr) {
            if (PyErr_ExceptionMatches(PyExc_ValueError)) {  // more bytes than an address can hold
                PyErr_SetString(PyExc_MemoryError, "the output is too large");
            }
            throw py::error_already_set();
        }
        return py::reinterpret_steal<py::object>(array);
    }
    template <typename T>
    static T* memory(const py::object& array) {
        return reinterpret_cast<T*>(py::detail::array_proxy(array.ptr())->data);
    }
    // `array`, as a tensor where this operand is one.
    py::object like(py::object array) const {
        if (!tensor_) return array;
        PyObject* const tensor = PyObject_CallOneArg(Torch::find()->from_numpy, array.ptr());
        if (tensor == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(tensor);
    }

  private:
    using Api = NumpyApi;

    bool is_empty() const { return std::find(shape_, shape_ + axes_, 0) != shape_ + axes_; }

    void read_array(PyObject* object, bool writeable) {
        const auto* const array = py::detail::array_proxy(object);
        const auto* const dtype = py::detail::array_descriptor_proxy(array->descr);
        const int flags =
            Api::NPY_ARRAY_C_CONTIGUOUS_ | Api::NPY_ARRAY_ALIGNED_ | (writeable ? int{Api::NPY_ARRAY_WRITEABLE_} : 0);
        if ((array->flags & flags) != flags || dtype->byteorder == kForeignByteOrder || array->nd > kMaxAxes) return;
        switch (dtype->type_num) {
            case Api::NPY_FLOAT_:
                type_ = Type::float32;
                break;
            case Api::NPY_DOUBLE_:
                type_ = Type::float64;
                break;
            case Api::NPY_LONG_:
                type_ = sizeof(long) == 8 ? Type::int64 : Type::other;
                break;
            case Api::NPY_LONGLONG_:
                type_ = Type::int64;
                break;
            default:
                return;
        }
        data_ = array->data;
        axes_ = array->nd;
        std::copy(array->dimensions, array->dimensions + axes_, shape_);
    }

    // False also where an exception is set.
    bool read_tensor(PyObject* tensor, const Torch& torch) {
        if (!attribute_is(tensor, torch.requires_grad, Py_False) || !returns(tensor, torch.is_neg, Py_False))
            return false;
        if (!(torch.view != nullptr ? view_tensor(tensor, torch) : query_tensor(tensor, torch))) return false;
        // Zero tensors that torch makes in derivatives have no memory, and nothing else shows it.
        return data_ != nullptr || is_empty();
    }

    static bool attribute_is(PyObject* tensor, PyObject* attribute, const PyObject* expected) {
        return py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, attribute)).ptr() == expected;
    }
    static bool returns(PyObject* tensor, PyObject* method, const PyObject* expected) {
        return py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, method)).ptr() == expected;
    }

    bool view_tensor(PyObject* tensor, const Torch& torch) {
        dlpack::DLTensor view;
        if (torch.view(tensor, &view) != 0) return false;  // no memory: sparse, fake, mapped
        if (view.device.type != dlpack::kCpu || view.dtype.lanes != 1 || view.ndim > kMaxAxes) return false;
        if (view.dtype.code == dlpack::kFloat && view.dtype.bits == 32) {
            type_ = Type::float32;
        } else if (view.dtype.code == dlpack::kFloat && view.dtype.bits == 64) {
            type_ = Type::float64;
        } else if (view.dtype.code == dlpack::kInt && view.dtype.bits == 64) {
            type_ = Type::int64;
        } else {
            return false;
        }
        axes_ = view.ndim;
        std::copy(view.shape, view.shape + axes_, shape_);
        data_ = static_cast<char*>(view.data) + view.byte_offset;
        return is_contiguous(view.strides);
    }

    bool is_contiguous(const int64_t* strides) const {
        if (is_empty()) return true;
        int64_t expected = 1;
        bool fits = true;
        for (int axis = axes_; --axis >= 0; expected *= shape_[axis]) {
            fits &= shape_[axis] == 1 || strides[axis] == expected;
        }
        return fits;
    }

    // By attributes, about 50 ns each, where tensor.numpy() takes a microsecond.
    bool query_tensor(PyObject* tensor, const Torch& torch) {
        const auto get = [&](PyObject* name) {
            return py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, name));
        };
        const PyObject* const dtype = get(torch.dtype).ptr();
        if (dtype == torch.float32) {
            type_ = Type::float32;
        } else if (dtype == torch.float64) {
            type_ = Type::float64;
        } else if (dtype == torch.int64) {
            type_ = Type::int64;
        } else {
            return false;
        }
        if (!attribute_is(tensor, torch.is_cpu, Py_True) || !returns(tensor, torch.is_contiguous, Py_True))
            return false;

        const py::object shape = get(torch.shape);
        if (!shape || !PyTuple_Check(shape.ptr()) || PyTuple_GET_SIZE(shape.ptr()) > kMaxAxes) return false;
        axes_ = static_cast<int>(PyTuple_GET_SIZE(shape.ptr()));
        for (int axis = 0; axis < axes_; ++axis) {
            shape_[axis] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape.ptr(), axis));
            if (shape_[axis] < 0) return false;
        }
        // Raises where there is no memory: sparse, fake, mapped.
        const auto address = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, torch.data_ptr));
        if (!address) return false;
        data_ = PyLong_AsVoidPtr(address.ptr());
        return PyErr_Occurred() == nullptr;
    }

    Type type_ = Type::other;
    bool tensor_ = false;
    int axes_ = 0;
    void* data_ = nullptr;
    Py_intptr_t shape_[kMaxAxes];
};

// fn(T()) with the dtype of `operand`, which is_float().
template <typename Fn>
auto with_float(const Operand& operand, const Fn& fn) {
    return operand.type() == Operand::Type::float32 ? fn(float()) : fn(double());
}

}  // namespace fastssd
