// Four numbers that are worked on at once, where a loop over four does not vectorise: GCC and Clang turn a loop with a
// yes or no at its end into shuffles and stores that cost more than the arithmetic (measured: 2 to 3 times as much).
#pragma once

#include <cstdint>

#include "support/math.h"

namespace fastssd::FASTSSD_ISA {

constexpr int kFour = 4;

#if defined(__GNUC__)

template <typename T>
struct FourOf;
template <>
struct FourOf<float> {
    typedef float Type __attribute__((vector_size(16)));
    typedef int64_t Halves __attribute__((vector_size(16)));
};
template <>
struct FourOf<double> {
    typedef double Type __attribute__((vector_size(32)));
    typedef int64_t Halves __attribute__((vector_size(32)));
};

template <typename T>
struct Four {
    using Halves = typename FourOf<T>::Halves;

    typename FourOf<T>::Type v;

    // Yes or no for each.
    struct Mask {
        Halves v;

        friend FASTSSD_INLINE Mask operator|(const Mask& a, const Mask& b) { return {a.v | b.v}; }
        friend FASTSSD_INLINE bool any(const Mask& mask) {
            if constexpr (sizeof(T) == 4) {
                return (mask.v[0] | mask.v[1]) != 0;
            } else {
                return ((mask.v[0] | mask.v[1]) | (mask.v[2] | mask.v[3])) != 0;
            }
        }
    };

    static FASTSSD_INLINE Four all(T x) { return {typename FourOf<T>::Type{x, x, x, x}}; }
    FASTSSD_INLINE T get(int lane) const { return v[lane]; }
    FASTSSD_INLINE void set(int lane, T x) { v[lane] = x; }

    friend FASTSSD_INLINE Four operator+(const Four& a, const Four& b) { return {a.v + b.v}; }
    friend FASTSSD_INLINE Four operator-(const Four& a, const Four& b) { return {a.v - b.v}; }
    friend FASTSSD_INLINE Four operator*(const Four& a, const Four& b) { return {a.v * b.v}; }
    friend FASTSSD_INLINE Four operator/(const Four& a, const Four& b) { return {a.v / b.v}; }
    friend FASTSSD_INLINE Four smaller(const Four& a, const Four& b) { return {a.v < b.v ? a.v : b.v}; }
    friend FASTSSD_INLINE Four larger(const Four& a, const Four& b) { return {a.v > b.v ? a.v : b.v}; }
    friend FASTSSD_INLINE Mask above(const Four& a, const Four& b) { return {reinterpret_cast<Halves>(a.v > b.v)}; }
};

#else

template <typename T>
struct Four {
    T v[kFour];

    struct Mask {
        bool v[kFour];

        friend FASTSSD_INLINE Mask operator|(const Mask& a, const Mask& b) {
            return {{a.v[0] || b.v[0], a.v[1] || b.v[1], a.v[2] || b.v[2], a.v[3] || b.v[3]}};
        }
        friend FASTSSD_INLINE bool any(const Mask& mask) { return mask.v[0] || mask.v[1] || mask.v[2] || mask.v[3]; }
    };

    template <typename Fn>
    static Four each(const Fn& fn) {
        Four result;
        for (int lane = 0; lane < kFour; ++lane) result.v[lane] = fn(lane);
        return result;
    }
    static FASTSSD_INLINE Four all(T x) {
        return each([&](int) { return x; });
    }
    FASTSSD_INLINE T get(int lane) const { return v[lane]; }
    FASTSSD_INLINE void set(int lane, T x) { v[lane] = x; }

    friend FASTSSD_INLINE Four operator+(const Four& a, const Four& b) {
        return each([&](int i) { return a.v[i] + b.v[i]; });
    }
    friend FASTSSD_INLINE Four operator-(const Four& a, const Four& b) {
        return each([&](int i) { return a.v[i] - b.v[i]; });
    }
    friend FASTSSD_INLINE Four operator*(const Four& a, const Four& b) {
        return each([&](int i) { return a.v[i] * b.v[i]; });
    }
    friend FASTSSD_INLINE Four operator/(const Four& a, const Four& b) {
        return each([&](int i) { return a.v[i] / b.v[i]; });
    }
    friend FASTSSD_INLINE Four smaller(const Four& a, const Four& b) {
        return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
    }
    friend FASTSSD_INLINE Four larger(const Four& a, const Four& b) {
        return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    }
    friend FASTSSD_INLINE Mask above(const Four& a, const Four& b) {
        Mask mask;
        for (int i = 0; i < kFour; ++i) mask.v[i] = a.v[i] > b.v[i];
        return mask;
    }
};

#endif

}  // namespace fastssd::FASTSSD_ISA
