// Reading an array once, from end to end, at the speed of the memory: the processor's own prefetching starts anew with
// each page, which is only a few rows of logits.
#pragma once

#include <cstdint>

#include "support/math.h"

namespace fastssd::FASTSSD_ISA {

// Asks for `count` numbers that will be needed soon, so far behind `now` that they come in time. Where the array has
// ended by then nothing happens.
template <typename T>
FASTSSD_INLINE void prefetch_behind(const T* now, int64_t count) {
#if defined(__GNUC__)
    constexpr std::uintptr_t kLine = 64, kAhead = 4096;
    const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(now) + kAhead;
    const std::uintptr_t bytes = static_cast<std::uintptr_t>(count) * sizeof(T);
    for (std::uintptr_t at = begin; at < begin + bytes; at += kLine) {
        __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 3);
    }
#else
    static_cast<void>(now);
    static_cast<void>(count);
#endif
}

}  // namespace fastssd::FASTSSD_ISA
