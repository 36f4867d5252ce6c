// Arithmetic that all kernels share. Nothing here depends on how an instruction set orders NaN or signed zeros.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#if defined(_MSC_VER)
#pragma fp_contract(off)
#endif

#define FASTSSD_RESTRICT __restrict

namespace fastssd::FASTSSD_ISA {

template <typename T>
constexpr T kInf = std::numeric_limits<T>::infinity();

template <typename T>
T smaller(T a, T b) {
    return a < b ? a : b;
}

template <typename T>
T larger(T a, T b) {
    return a > b ? a : b;
}

// max(x, 0), which is +0 for -0 and for NaN.
template <typename T>
T positive_part(T x) {
    return x > T(0) ? x : T(0);
}

// +0 where every argument is finite, else NaN.
template <typename T>
T nan_unless_finite(T a, T b, T c, T d) {
    return ((a - a) + (b - b)) + ((c - c) + (d - d));
}

template <typename T>
bool is_finite(T x) {
    return x - x == T(0);
}

// The largest of n numbers, -inf if there are none; NaN is passed over. In lanes, so that it vectorises; the last lanes
// may overlap those before.
template <typename T>
T max_of(const T* values, int64_t n) {
    constexpr int64_t kLanes = 16;
    T most = -kInf<T>;
    if (n < kLanes) {
        for (int64_t i = 0; i < n; ++i) most = larger(values[i], most);
        return most;
    }
    T lanes[kLanes];
    for (T& lane : lanes) lane = most;
    for (int64_t begin = 0; begin < n; begin += kLanes) {
        const T* const from = values + smaller(begin, n - kLanes);
        for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = larger(from[lane], lanes[lane]);
    }
    for (int64_t width = kLanes / 2; width > 0; width /= 2) {
        for (int64_t lane = 0; lane < width; ++lane) lanes[lane] = larger(lanes[lane + width], lanes[lane]);
    }
    return lanes[0];
}

// The first place of `value`, which must be there.
template <typename T>
int64_t index_of(const T* values, T value) {
    int64_t i = 0;
    while (values[i] != value) ++i;
    return i;
}

// A number x of type T is >= (or <) a double threshold iff it is >= (or <) the smallest T that is not below it, and
// x > threshold iff x > the largest T that is not above it: so thresholds are rounded once, and compared in T.
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
