// The one thread pool. Knows neither Python nor kernels.
//
// The caller works too and never waits for a worker that has not started. A pool that is busy (another thread, or a
// call from inside a part) means that the caller does all the work itself. Workers are detached, with all signals
// blocked; where no thread can be made the caller works alone; a forked child starts with an empty pool. The parts of
// a call are taken from one counter, and each writes its own rows: results do not depend on the number of threads.
#pragma once

#include <cstdint>

namespace fastssd {

enum class Outcome { done, interrupted, out_of_memory };

// Below this much work a second thread does not pay: waking one that sleeps takes 60 to 170 us.
constexpr double kParallelNs = 200e3;

// More are never used, whatever is asked for.
constexpr int kMostThreads = 1024;

// Asked every 50 ms or so on the thread that called parallel_for, while it works; true cancels the call.
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
