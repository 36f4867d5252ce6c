// The smaller and the larger of two floats, of which at least one is not negative and none is -0 or NaN. Then their
// bits, read as integers, are in the same order. Minimum and maximum of integers use ports that floats leave idle (Zen
// 3: four ports; those of floats have two, shared with addition and subtraction).
#pragma once

#include <cstdint>
#include <cstring>

#include "support/math.h"

namespace fastssd::FASTSSD_ISA {

// Where there is one instruction for it. (SSE2 has none; for 64 bits only AVX-512 has one, and it is slow.)
template <typename T>
constexpr bool kIntegersPay = false;
#if defined(__AVX2__) || defined(__ARM_NEON)
template <>
constexpr bool kIntegersPay<float> = true;
#endif

template <typename T, bool kAsIntegers>
struct OrderOf {
    static FASTSSD_INLINE T smaller(T a, T b) { return a < b ? a : b; }
    static FASTSSD_INLINE T larger(T a, T b) { return a > b ? a : b; }
};

// One of the two may be -0, which is below everything else.
template <>
struct OrderOf<float, true> {
    static FASTSSD_INLINE int32_t bits(float x) {
        int32_t bits;
        std::memcpy(&bits, &x, sizeof x);
        return bits;
    }
    static FASTSSD_INLINE float value(int32_t bits) {
        float x;
        std::memcpy(&x, &bits, sizeof x);
        return x;
    }
    static FASTSSD_INLINE float smaller(float a, float b) {
        const int32_t x = bits(a), y = bits(b);
        return value(x < y ? x : y);
    }
    static FASTSSD_INLINE float larger(float a, float b) {
        const int32_t x = bits(a), y = bits(b);
        return value(x > y ? x : y);
    }
};

}  // namespace fastssd::FASTSSD_ISA
