// Reading at the speed of the memory what the processor does not foresee: rows here and there, and an array from end to
// end, since its own prefetching starts anew with each page, which is only a few rows of logits.
#pragma once

#include <cstdint>

#include "support/math.h"

namespace fastssd::FASTSSD_ISA {

// Asks for `count` numbers that will be needed soon. Where there are none any more nothing happens.
template <typename T>
FASTSSD_INLINE void prefetch(std::uintptr_t begin, int64_t count) {
#if defined(__GNUC__)
    constexpr std::uintptr_t kLine = 64;
    const std::uintptr_t bytes = static_cast<std::uintptr_t>(count) * sizeof(T);
    for (std::uintptr_t at = begin; at < begin + bytes; at += kLine) {
        __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 3);
    }
#else
    static_cast<void>(begin);
    static_cast<void>(count);
#endif
}

template <typename T>
FASTSSD_INLINE void prefetch(const T* from, int64_t count) {
    prefetch<T>(reinterpret_cast<std::uintptr_t>(from), count);
}

// So far behind `now` that they come in time.
template <typename T>
FASTSSD_INLINE void prefetch_behind(const T* now, int64_t count) {
    constexpr std::uintptr_t kAhead = 4096;
    prefetch<T>(reinterpret_cast<std::uintptr_t>(now) + kAhead, count);
}

}  // namespace fastssd::FASTSSD_ISA
