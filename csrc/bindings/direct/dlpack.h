// The exchange of arrays by function pointers that DLPack defines (github.com/dmlc/dlpack, version 1.3): one call gives
// what takes seven attributes in Python. A type that supports it has a capsule with the functions.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace fastssd::dlpack {

namespace py = pybind11;

// Layout and names as in the standard; functions that are not used here are plain pointers.
struct DLTensor {
    void* data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;  // borrowed from the array; strides in numbers
    uint64_t byte_offset;
};
constexpr int32_t kCpu = 1;
constexpr uint8_t kInt = 0, kFloat = 2;

struct ExchangeApi {
    uint32_t major, minor;
    ExchangeApi* older;
    void *allocate, *from_object, *to_object;
    int (*view)(void* object, DLTensor* out);  // 0, or else an exception is set; may be null
    void* stream;
};

// The function that examines arrays of this Python type; null where the type has none that is known here.
inline decltype(ExchangeApi::view) view_of(const py::handle& type) {
    const py::object capsule = py::getattr(type, "__dlpack_c_exchange_api__", py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
    const auto* api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (api != nullptr && api->major > 1) api = api->older;
    return api != nullptr && api->major == 1 ? api->view : nullptr;
}

}  // namespace fastssd::dlpack
