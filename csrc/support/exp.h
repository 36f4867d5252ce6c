// exp in plain arithmetic, so that it vectorises and gives the same bits on every instruction set (the standard library
// may use fused operations where the processor has them). x = n log 2 + r with |r| <= log(2) / 2; a polynomial gives
// exp(r), and 2^n is two factors, so that the result can underflow gradually. Within 2 ULP; exp(0) is 1.
#pragma once

#include <cstdint>
#include <cstring>

#include "support/math.h"
#include "support/sort.h"

namespace fastssd::FASTSSD_ISA {

// `log2_high` has so few bits that its product with n is exact. Adding and subtracting `rounder` rounds to an integer;
// after the addition the integer is in the last bits. The coefficients are those of (exp(r) - 1 - r) / r^2,
// interpolated at the Chebyshev nodes.
template <typename T>
struct ExpTerms;
template <>
struct ExpTerms<float> {
    static constexpr float least = -110, most = 100;
    static constexpr float log2_high = 0.693359375f, log2_low = -0.000212194440055f, rounder = 12582912.0f;
    static constexpr int fraction_bits = 23, bias = 127;

    static FASTSSD_INLINE float tail(float r) {
        return (((0.00139261835877f * r + 0.00836317905227f) * r + 0.0416665546172f) * r + 0.166665769697f) * r + 0.5f;
    }
};
template <>
struct ExpTerms<double> {
    static constexpr double least = -750, most = 720;
    static constexpr double log2_high = 0.6931471803691238, log2_low = 1.9082149292705878161e-10,
                            rounder = 6755399441055744.0;
    static constexpr int fraction_bits = 52, bias = 1023;

    static FASTSSD_INLINE double tail(double r) {
        constexpr double c[] = {0.5,
                                0.1666666666666666745,
                                0.04166666666662412787,
                                0.008333333333330061833,
                                0.00138888889172137169,
                                0.0001984126986305361688,
                                0.00002480152129595437513,
                                2.755726845999706477e-6,
                                2.762008844540974816e-7,
                                2.510038549551031908e-8};
        double sum = c[9];
        for (int i = 8; i >= 0; --i) sum = sum * r + c[i];
        return sum;
    }
};

// 2^n for an integer n, where `shifted` is n + rounder.
template <typename T>
FASTSSD_INLINE T power_of_2(T shifted) {
    using Terms = ExpTerms<T>;
    KeyOf<T> bits;
    std::memcpy(&bits, &shifted, sizeof(T));
    bits = (bits + KeyOf<T>(Terms::bias)) << Terms::fraction_bits;  // the other bits of `shifted` are shifted out
    T power;
    std::memcpy(&power, &bits, sizeof(T));
    return power;
}

template <typename T>
FASTSSD_INLINE T exp_of(T x) {
    using Terms = ExpTerms<T>;
    constexpr T kLog2OfE = T(1.4426950408889634074);
    x = larger(Terms::least, x);  // NaN stays
    x = smaller(Terms::most, x);
    const T n = (x * kLog2OfE + Terms::rounder) - Terms::rounder;
    const T r = (x - n * Terms::log2_high) - n * Terms::log2_low;
    const T result = T(1) + (r + r * r * Terms::tail(r));
    const T half = n * T(0.5) + Terms::rounder;
    return result * power_of_2(half) * power_of_2((n - (half - Terms::rounder)) + Terms::rounder);
}

}  // namespace fastssd::FASTSSD_ISA
