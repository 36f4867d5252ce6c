// Loads memory before it is needed, where the processor does not foresee it: rows in different places, and an array
// from end to end (the processor's own prefetching starts again with each page, which is only a few rows of logits).
#pragma once

#include <cstdint>

#include "support/math.h"

#if defined(__GNUC__)
#define FASTSSD_PREFETCH(address) __builtin_prefetch(address)
#else
#define FASTSSD_PREFETCH(address) static_cast<void>(address)
#endif

namespace fastssd::FASTSSD_ISA {

// Loads `count` numbers. The address may be invalid: then nothing happens.
template <typename T>
FASTSSD_INLINE void prefetch(std::uintptr_t begin, int64_t count) {
    constexpr std::uintptr_t kLine = 64;
    const std::uintptr_t bytes = static_cast<std::uintptr_t>(count) * sizeof(T);
    for (std::uintptr_t address = begin; address < begin + bytes; address += kLine) {
        FASTSSD_PREFETCH(reinterpret_cast<const void*>(address));
    }
}

template <typename T>
FASTSSD_INLINE void prefetch(const T* from, int64_t count) {
    prefetch<T>(reinterpret_cast<std::uintptr_t>(from), count);
}

// Loads the numbers that are so far after `from` that they arrive in time.
template <typename T>
FASTSSD_INLINE void prefetch_behind(const T* from, int64_t count) {
    constexpr std::uintptr_t kAhead = 4096;
    prefetch<T>(reinterpret_cast<std::uintptr_t>(from) + kAhead, count);
}

}  // namespace fastssd::FASTSSD_ISA
