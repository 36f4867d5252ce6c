// What a caller hands to an operator: a NumPy array, or a torch tensor, looked at without the Python faces, whose
// checks and conversions cost more than a small kernel. Nothing is explained or converted here: an operand that is
// unusual in any way is of type `other`, and then the face takes over.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>

#include "bindings/dlpack.h"
#include "dispatch.h"

namespace fastssd {

namespace py = pybind11;

using NumpyApi = py::detail::npy_api;

// Set when the module loads. No function here has a static object that is made at its first call by asking Python:
// Python may let another thread run meanwhile, which then waits for the static with the GIL in its hands, for ever.
inline const NumpyApi* numpy = nullptr;

constexpr char kForeignByteOrder =
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    '<';
#else
    '>';
#endif

// Names and objects of torch. It is never imported here: who holds a tensor has done so.
struct Torch {
    PyObject *tensor, *float32, *float64, *int64, *from_numpy;
    PyObject *dtype, *shape, *is_cpu, *requires_grad, *is_contiguous, *is_neg, *data_ptr;
    int (*view)(void* tensor, dlpack::DLTensor* out);  // null before torch 2.10

    // Null where torch is not imported. Threads that come first together all look, and what one of them found stays.
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

    // References that are kept for good: Python may be gone before a static object is.
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

    // Not `other`: exactly an ndarray or a torch.Tensor, C-contiguous in the CPU's memory, in native byte order,
    // writeable where that is asked for, and of which no gradient is wanted.
    explicit Operand(py::handle object, bool writeable = false) {
        PyTypeObject* const kind = Py_TYPE(object.ptr());
        if (kind == numpy->PyArray_Type_) {
            read_array(object.ptr(), writeable);
        } else if (std::strcmp(kind->tp_name, "Tensor") == 0) {
            const Torch* const torch = Torch::find();
            if (torch == nullptr || reinterpret_cast<PyObject*>(kind) != torch->tensor) return;  // of somebody else
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

    // The product of the lengths but for the last `but`; 0 where one length is, because the others may then be any.
    int64_t rows(int but) const {
        if (is_empty()) return 0;
        return std::accumulate(shape_, shape_ + axes_ - but, int64_t(1), std::multiplies<>());
    }

    // Whether `other` is the same kind of array and has, but for the last `but` axes, the same shape.
    bool goes_with(const Operand& other, int but) const {
        return tensor_ == other.tensor_ && axes_ == other.axes_ &&
               std::equal(shape_, shape_ + axes_ - but, other.shape_);
    }

    template <typename T>
    T* data() const {
        return static_cast<T*>(data_);
    }

    // An uninitialised array, and an array as what this operand is.
    template <typename T>
    static py::object fresh(int axes, const Py_intptr_t* shape) {
        PyObject* const dtype = numpy->PyArray_DescrFromType_(py::detail::npy_format_descriptor<T>::value);
        PyObject* const array =
            numpy->PyArray_NewFromDescr_(numpy->PyArray_Type_, dtype, axes, shape, nullptr, nullptr, 0, nullptr);
        if (array == nullptr) {
            if (PyErr_ExceptionMatches(PyExc_ValueError)) {  // more bytes than an address can say
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

    // False also where a question raises.
    bool read_tensor(PyObject* tensor, const Torch& torch) {
        if (!answers(tensor, torch.requires_grad, Py_False) || !says(tensor, torch.is_neg, Py_False)) return false;
        if (!(torch.view != nullptr ? view_tensor(tensor, torch) : ask_tensor(tensor, torch))) return false;
        // Zeros that torch's derivatives make have no memory, and do not say so.
        return data_ != nullptr || is_empty();
    }

    static bool answers(PyObject* tensor, PyObject* attribute, const PyObject* expected) {
        return py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, attribute)).ptr() == expected;
    }
    static bool says(PyObject* tensor, PyObject* method, const PyObject* expected) {
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
    bool ask_tensor(PyObject* tensor, const Torch& torch) {
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
        if (!answers(tensor, torch.is_cpu, Py_True) || !says(tensor, torch.is_contiguous, Py_True)) return false;

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

// Memory for several outputs side by side. Allocators give back several blocks of a few MB in each call, and keep one:
// the page faults of three fresh outputs for 32 images of SSD300 take 3.8 ms, the kernel 0.6 ms. Above kMostBytes (60
// such images) each output has its own memory: large blocks are fresh in every call, side by side or not, and who keeps
// one small output would keep them all.
class SharedBlock {
  public:
    static constexpr int64_t kMostBytes = int64_t(1) << 24;

    explicit SharedBlock(int64_t bytes) {
        if (bytes > kMostBytes) return;
        const Py_intptr_t size = bytes;
        block_ = Operand::fresh<uint8_t>(1, &size);
        next_ = Operand::memory<char>(block_);
    }

    // An uninitialised array; of wider types first, so that each is aligned.
    template <typename T>
    py::object take(int axes, const Py_intptr_t* shape) {
        if (!block_) return Operand::fresh<T>(axes, shape);
        PyObject* const dtype = numpy->PyArray_DescrFromType_(py::detail::npy_format_descriptor<T>::value);
        constexpr int kFlags =
            NumpyApi::NPY_ARRAY_C_CONTIGUOUS_ | NumpyApi::NPY_ARRAY_ALIGNED_ | NumpyApi::NPY_ARRAY_WRITEABLE_;
        const auto array = py::reinterpret_steal<py::object>(
            numpy->PyArray_NewFromDescr_(numpy->PyArray_Type_, dtype, axes, shape, nullptr, next_, kFlags, nullptr));
        if (!array || numpy->PyArray_SetBaseObject_(array.ptr(), block_.inc_ref().ptr()) < 0)
            throw py::error_already_set();
        int64_t bytes = sizeof(T);
        for (int axis = 0; axis < axes; ++axis) bytes *= shape[axis];
        next_ += bytes;
        return array;
    }

  private:
    py::object block_;
    char* next_ = nullptr;
};

// The coder's (center, size), if they are two plain floats that it can use.
struct DirectVariances {
    bool good = false;
    Variances value{};

    explicit DirectVariances(py::handle given) {
        if (!PyTuple_CheckExact(given.ptr()) || PyTuple_GET_SIZE(given.ptr()) != 2) return;
        PyObject *const center = PyTuple_GET_ITEM(given.ptr(), 0), *const size = PyTuple_GET_ITEM(given.ptr(), 1);
        if (!PyFloat_CheckExact(center) || !PyFloat_CheckExact(size)) return;
        value = {PyFloat_AS_DOUBLE(center), PyFloat_AS_DOUBLE(size)};
        const auto usable = [](double x) {
            return x >= static_cast<double>(std::numeric_limits<float>::min()) &&
                   x <= static_cast<double>(std::numeric_limits<float>::max());
        };
        good = usable(value.center) && usable(value.size);
    }
};

}  // namespace fastssd
