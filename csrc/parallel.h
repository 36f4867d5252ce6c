// The one thread pool. Knows neither Python nor kernels.
//
// The caller works too and never waits for a worker that has not started. Where the pool is busy (with another thread,
// or with the call that this call is part of), the caller does all the work itself. Workers are detached, with all
// signals blocked; where no thread can be created the caller works alone; a forked child starts with an empty pool.
// Threads take the parts of a call from one counter, and each part writes its own rows: results do not depend on the
// number of threads.
#pragma once

#include <cstdint>

namespace fastssd {

enum class Outcome { done, interrupted, out_of_memory };

// Below this much work a second thread does not pay: waking one that sleeps takes 60 to 170 us.
constexpr double kParallelNs = 200e3;

// The most threads that are used, whatever is asked for; as in fastssd/backends/threads.py.
constexpr int kMostThreads = 1024;

// Called about every 50 ms on the thread that called parallel_for, while it works; true cancels the call.
using InterruptCheck = bool (*)();
void set_interrupt_check(InterruptCheck check);

using RangeFn = void (*)(const void* context, int64_t begin, int64_t end);
[[nodiscard]] Outcome parallel_for(int64_t n, double ns_per_item, int threads, RangeFn fn, const void* context);

// Calls fn(begin, end) on parts that make up [0, n), on at most `threads` threads. `fn` may throw std::bad_alloc.
template <typename Fn>
[[nodiscard]] Outcome parallel_for(int64_t n, double ns_per_item, int threads, const Fn& fn) {
    const RangeFn call = [](const void* context, int64_t begin, int64_t end) {
        (*static_cast<const Fn*>(context))(begin, end);
    };
    return parallel_for(n, ns_per_item, threads, call, &fn);
}

}  // namespace fastssd
