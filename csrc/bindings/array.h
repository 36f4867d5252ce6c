// A NumPy array that a face hands to a kernel. The face has validated it: what is checked here is only what would
// otherwise crash.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "bindings/operand.h"

namespace fastssd {

constexpr int64_t kAny = -1;

template <typename T>
bool is_type(int number) {
    using Api = py::detail::npy_api;
    if constexpr (std::is_same_v<T, float>) return number == Api::NPY_FLOAT_;
    if constexpr (std::is_same_v<T, double>) return number == Api::NPY_DOUBLE_;
    if constexpr (std::is_same_v<T, bool>) return number == Api::NPY_BOOL_;
    if constexpr (std::is_same_v<T, int64_t>) {
        return number == Api::NPY_LONGLONG_ || (sizeof(long) == 8 && number == Api::NPY_LONG_);
    }
}

class Array {
  public:
    Array(const char* name, py::handle object, std::initializer_list<int64_t> shape, int flags) : name_(name) {
        static const py::detail::npy_api& api = py::detail::npy_api::get();
        if (!api.PyArray_Check_(object.ptr())) throw py::type_error(std::string(name) + ": expected a NumPy array");
        array_ = py::detail::array_proxy(object.ptr());
        if ((array_->flags & flags) != flags || py::detail::array_descriptor_proxy(array_->descr)->byteorder == '>') {
            throw py::value_error(std::string(name) + ": expected a C-contiguous array in native byte order" +
                                  (flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_ ? ", writeable" : ""));
        }
        bool fits = array_->nd == static_cast<int>(shape.size());
        for (int axis = 0; fits && axis < array_->nd; ++axis) {
            const int64_t wanted = shape.begin()[axis];
            fits = wanted == kAny || wanted == size(axis);
        }
        if (!fits) throw py::value_error(std::string(name) + ": its shape does not fit the other arguments");
    }

    int64_t size(int axis) const { return array_->dimensions[axis]; }

    template <typename T>
    bool is() const {
        return is_type<T>(py::detail::array_descriptor_proxy(array_->descr)->type_num);
    }

    template <typename T>
    T* as() const {
        if (!is<T>()) throw py::type_error(std::string(name_) + ": its dtype does not fit the other arguments");
        return reinterpret_cast<T*>(array_->data);
    }

  private:
    const char* name_;
    const py::detail::PyArray_Proxy* array_;
};

constexpr int kReadable = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;

inline Array input(const char* name, py::handle object, std::initializer_list<int64_t> shape) {
    return Array(name, object, shape, kReadable);
}
inline Array output(const char* name, py::handle object, std::initializer_list<int64_t> shape) {
    return Array(name, object, shape, kReadable | py::detail::npy_api::NPY_ARRAY_WRITEABLE_);
}

// fn(T()) with the dtype of `array`, which must be a float dtype.
template <typename Fn>
auto with_float(const Array& array, const Fn& fn) {
    if (array.is<float>()) return fn(float());
    array.as<double>();
    return fn(double());
}
template <typename Fn>
auto with_float(const Operand& operand, const Fn& fn) {
    return operand.type() == Operand::Type::float32 ? fn(float()) : fn(double());
}

inline int64_t check_count(const char* name, int64_t count) {
    if (count > UINT32_MAX) throw py::value_error(std::string(name) + ": at most 4294967295 are supported");
    return count;
}

inline void check_offsets(const int64_t* offsets, int64_t images, int64_t total) {
    bool rising = images >= 0 && offsets[0] == 0 && offsets[images] == total;
    for (int64_t b = 0; b < images; ++b) rising = rising && offsets[b] <= offsets[b + 1];
    if (!rising) throw py::value_error("offsets: expected to rise from 0 to the number of ground truths");
}

}  // namespace fastssd
