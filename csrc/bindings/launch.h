// How a kernel is started: without the GIL, on several threads where the work is worth it, and so that Ctrl-C ends it.
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

// Below this much work, to release the GIL and take it again costs more than the other threads gain.
constexpr double kKeepGilNs = 10e3;

inline std::atomic<PyObject*> thread_count{nullptr};  // a callable: how many threads to use now; never freed

// This thread's state while it works without the GIL. PyGILState_Ensure would not do: it must not be called when Python
// ends.
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
    PyObject* const callable = thread_count;
    return callable == nullptr ? 1 : py::cast<int>(py::handle(callable)());
}

// Runs fn(begin, end) over [0, n), without the GIL and on several threads where the work is worth it. Raises what a
// signal handler raised meanwhile.
template <typename Fn>
void run_parts(int64_t n, double ns_per_item, const Fn& fn) {
    const double cost = static_cast<double>(n) * ns_per_item;
    if (cost < kKeepGilNs) {
        if (n > 0) fn(int64_t(0), n);
        return;
    }
    const int threads = n > 1 && cost >= kParallelNs ? num_threads() : 1;
    // Not in a destructor: Python may end this thread where it takes the GIL, which must not happen in one.
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

// A kernel over the rows [0, n) of its task.
template <typename Task>
void launch(void (*kernel)(const Task&, int64_t, int64_t), const Task& task, int64_t n, double ns_per_row) {
    run_parts(n, ns_per_row, [&](int64_t begin, int64_t end) { kernel(task, begin, end); });
}

// A kernel whose task has no rows.
template <typename Task>
int64_t launch(int64_t (*kernel)(const Task&), const Task& task, double ns) {
    int64_t result = 0;
    run_parts(1, ns, [&](int64_t, int64_t) { result = kernel(task); });
    return result;
}

}  // namespace fastssd
