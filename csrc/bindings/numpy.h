// NumPy's C interface, as pybind11 finds it.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace fastssd {

namespace py = pybind11;

using NumpyApi = py::detail::npy_api;

// Set when the module loads. No function here has a static object that asks Python at the first call: Python may run
// another thread meanwhile, which then waits for the static object while it holds the GIL, for ever.
inline const NumpyApi* numpy = nullptr;

constexpr char kForeignByteOrder =
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    '<';
#else
    '>';
#endif

}  // namespace fastssd
