// How a kernel is started: without the GIL, on several threads where the work is worth it, ending early on Ctrl-C.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdint>
#include <new>
#include <stdexcept>

#include "dispatch.h"
#include "parallel.h"

namespace fastssd {

namespace py = pybind11;

inline const KernelTable* kernels = nullptr;  // chosen at import

// Below this much work, giving the GIL away and taking it back costs more than it gives the other threads.
constexpr double kKeepGilNs = 10e3;

inline std::atomic<PyObject*> thread_count{nullptr};  // a callable: how many threads to use now; kept for good

// This thread's state while it works without the GIL. Not PyGILState_Ensure, which must not be called when Python ends.
inline thread_local PyThreadState* detached = nullptr;

inline bool interrupted() {
    PyThreadState* const state = detached;
    if (state == nullptr) return false;
    detached = nullptr;
    PyEval_RestoreThread(state);
    const bool stop = PyErr_CheckSignals() != 0;
    detached = PyEval_SaveThread();
    return stop;
}

inline int num_threads() {
    PyObject* const ask = thread_count;
    return ask == nullptr ? 1 : py::cast<int>(py::handle(ask)());
}

// Runs fn(begin, end) over [0, n), without the GIL and on several threads where the work is worth it. Raises what a
// signal handler raised meanwhile.
template <typename Fn>
void launch(int64_t n, double ns_per_item, const Fn& fn) {
    const double cost = static_cast<double>(n) * ns_per_item;
    if (cost < kKeepGilNs) {
        if (n > 0) fn(int64_t(0), n);
        return;
    }
    const int threads = n > 1 && cost >= kParallelNs ? num_threads() : 1;
    // No destructors: Python may end this thread where it takes the GIL, which must not happen in one.
    detached = PyEval_SaveThread();
    const Outcome outcome = parallel_for(n, ns_per_item, threads, fn);
    PyThreadState* const state = detached;
    detached = nullptr;
    PyEval_RestoreThread(state);
    if (outcome == Outcome::out_of_memory) throw std::bad_alloc();
    if (outcome == Outcome::interrupted) {
        if (PyErr_Occurred()) throw py::error_already_set();
        throw std::runtime_error("a signal handler forked inside a kernel; its work is lost in the child");
    }
}

// Work that cannot be split.
template <typename Fn>
void launch(double ns, const Fn& fn) {
    launch(1, ns, [&](int64_t, int64_t) { fn(); });
}

}  // namespace fastssd
