// A NumPy array that an operator in fastssd/ops passes to a kernel. Python has validated it: here is checked only what
// would otherwise crash.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "bindings/numpy.h"

namespace fastssd {

using namespace py::literals;  // "name"_a

constexpr int64_t kAny = -1;

template <typename T>
bool is_type(int number) {
    using Api = NumpyApi;
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
        if (!numpy->PyArray_Check_(object.ptr())) throw py::type_error(std::string(name) + ": expected a NumPy array");
        array_ = py::detail::array_proxy(object.ptr());
        const auto expect = [&](bool met, const char* what) {
            if (!met) throw py::value_error(std::string(name) + ": expected " + what);
        };
        const int missing = flags & ~array_->flags;
        expect(!(missing & NumpyApi::NPY_ARRAY_C_CONTIGUOUS_), "a C-contiguous array");
        expect(!(missing & NumpyApi::NPY_ARRAY_ALIGNED_), "an array whose numbers are aligned in memory");
        expect(!(missing & NumpyApi::NPY_ARRAY_WRITEABLE_), "a writeable array");
        expect(py::detail::array_descriptor_proxy(array_->descr)->byteorder != kForeignByteOrder,
               "an array in native byte order");
        bool fits = array_->nd == static_cast<int>(shape.size());
        for (int axis = 0; fits && axis < array_->nd; ++axis) {
            const int64_t wanted = shape.begin()[axis];
            fits = wanted == kAny || wanted == size(axis);
        }
        expect(fits, "a shape that fits the other arguments");
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

constexpr int kReadable = NumpyApi::NPY_ARRAY_C_CONTIGUOUS_ | NumpyApi::NPY_ARRAY_ALIGNED_;

inline Array input(const char* name, py::handle object, std::initializer_list<int64_t> shape) {
    return Array(name, object, shape, kReadable);
}
inline Array output(const char* name, py::handle object, std::initializer_list<int64_t> shape) {
    return Array(name, object, shape, kReadable | NumpyApi::NPY_ARRAY_WRITEABLE_);
}

// fn(T()) with the dtype of `array`, which must be a float dtype.
template <typename Fn>
auto with_float(const Array& array, const Fn& fn) {
    if (array.is<float>()) return fn(float());
    array.as<double>();
    return fn(double());
}

// a * b of lengths, or kTooMany, which is the length of no array.
constexpr int64_t kTooMany = -2;
inline int64_t product(int64_t a, int64_t b) {
    if (a == 0 || b == 0) return 0;
    return a > 0 && b > 0 && a <= std::numeric_limits<int64_t>::max() / b ? a * b : kTooMany;
}

inline int64_t check_count(const char* name, int64_t count) {
    if (count > UINT32_MAX) throw py::value_error(std::string(name) + ": at most 4294967295 are supported");
    return count;
}

// For numbers that kernels convert to integers: NaN and negative numbers are errors.
template <typename T>
void check_not_negative(const char* name, T value) {
    if (!(value >= 0)) throw py::value_error(std::string(name) + ": expected no negative number");
}

// A copy of the offsets [B + 1], because they index memory and another thread may write to the array.
inline std::vector<int64_t> checked_offsets(const Array& array, int64_t total) {
    const int64_t* const values = array.as<int64_t>();
    std::vector<int64_t> offsets(values, values + array.size(0));
    if (offsets.empty() || offsets.front() != 0 || offsets.back() != total ||
        !std::is_sorted(offsets.begin(), offsets.end())) {
        throw py::value_error("offsets: expected to rise from 0 to the number of ground-truth boxes");
    }
    return offsets;
}

}  // namespace fastssd
