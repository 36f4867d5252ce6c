// Arithmetic that all kernels share. Nothing here depends on how an instruction set orders NaN or signed zeros.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#if defined(_MSC_VER)
#pragma fp_contract(off)
#endif

#define FASTSSD_RESTRICT __restrict

// For functions that must not become calls in an inner loop: GCC stops inlining once a source has grown by a certain
// share, and the kernels are one source.
#if defined(_MSC_VER)
#define FASTSSD_INLINE __forceinline
#else
#define FASTSSD_INLINE inline __attribute__((always_inline))
#endif

namespace fastssd::FASTSSD_ISA {

template <typename T>
constexpr T kInf = std::numeric_limits<T>::infinity();

template <typename T>
FASTSSD_INLINE T smaller(T a, T b) {
    return a < b ? a : b;
}

template <typename T>
FASTSSD_INLINE T larger(T a, T b) {
    return a > b ? a : b;
}

// max(x, 0), which is +0 for -0 and for NaN.
template <typename T>
FASTSSD_INLINE T positive_part(T x) {
    return x > T(0) ? x : T(0);
}

// +0 where every argument is finite, else NaN.
template <typename T>
FASTSSD_INLINE T nan_unless_finite(T a, T b, T c, T d) {
    return ((a - a) + (b - b)) + ((c - c) + (d - d));
}

template <typename T>
FASTSSD_INLINE bool is_finite(T x) {
    return x - x == T(0);
}

// The largest of n numbers, -inf if there are none; NaN is ignored. In lanes, so that it vectorises.
template <typename T>
T max_of(const T* values, int64_t n) {
    constexpr int64_t kLanes = 16;
    T most[kLanes];
    for (T& lane : most) lane = -kInf<T>;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) most[lane] = larger(values[i + lane], most[lane]);
    }
    for (; i < n; ++i) most[0] = larger(values[i], most[0]);
    for (int64_t lane = 1; lane < kLanes; ++lane) most[0] = larger(most[lane], most[0]);
    return most[0];
}

// The first place of `value`, which must be there.
template <typename T>
int64_t index_of(const T* values, T value) {
    int64_t i = 0;
    while (values[i] != value) ++i;
    return i;
}

// For x of type T: x >= threshold (or <) iff x >= (or <) the smallest T that is not below the threshold, and x >
// threshold iff x > the largest T that is not above it. So a threshold is rounded once, and compared in T.
inline float round_up(float, double threshold) {
    const float near = static_cast<float>(threshold);
    return static_cast<double>(near) < threshold ? nextafterf(near, kInf<float>) : near;
}
inline float round_down(float, double threshold) {
    const float near = static_cast<float>(threshold);
    return static_cast<double>(near) > threshold ? nextafterf(near, -kInf<float>) : near;
}
inline double round_up(double, double threshold) { return threshold; }
inline double round_down(double, double threshold) { return threshold; }

}  // namespace fastssd::FASTSSD_ISA
