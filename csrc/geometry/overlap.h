// Whether the IoU of two boxes exceeds a threshold, and what that says about their sizes and distances.
#pragma once

#include <limits>

#include "geometry/box.h"
#include "support/math.h"

namespace fastssd::FASTSSD_ISA {

// Mostly without division: with areas a and b, inter / (a + b - inter) > t means inter > t / (1 + t) * (a + b). Only
// where the two sides are equal within rounding is the quotient computed.
template <typename T>
struct OverlapTest {
    T limit;      // of the quotient
    T low, high;  // inter > low * (a + b) is necessary, inter > high * (a + b) is sufficient

    // Where both areas are below this, products may have lost bits to underflow: only the quotient decides, and no
    // bound of sizes or distances holds. Where one box is larger, the intersection keeps all bits wherever the IoU can
    // exceed.
    static constexpr T kLeastArea = sizeof(T) == 4 ? T(1e-32) : T(1e-290);
    // Below this threshold there are no bounds either.
    static constexpr double kLeastLimit = 1e-6;

    explicit OverlapTest(T threshold) : limit(threshold), low(T(0)), high(kInf<T>) {
        constexpr double kMargin = 1e-5;
        const double t = static_cast<double>(threshold);
        if (t < kLeastLimit) return;
        low = static_cast<T>(t / (1 + t) * (1 - kMargin));
        high = static_cast<T>(t / (1 + t) * (1 + kMargin));
    }

    // The IoU with a box without area, or with an infinite one, is 0.
    static FASTSSD_INLINE bool can_overlap(T area) { return (area > T(0)) & (area < kInf<T>); }
    static FASTSSD_INLINE bool tiny(T area) { return (area > T(0)) & (area < kLeastArea); }

    // Two boxes whose IoU exceeds the threshold: the most by which a side of one is longer, as a ratio.
    double most_ratio() const {
        const double t = static_cast<double>(limit);
        return t < kLeastLimit ? std::numeric_limits<double>::infinity() : (1 + kBoundMargin) / t;
    }
    // The largest distance of their centres on an axis, as a multiple of the side of either: their sides a and b share
    // more than t / (1 + t) * (a + b), and their ratio is at most most_ratio().
    double reach() const {
        const double t = static_cast<double>(limit);
        return t < kLeastLimit ? std::numeric_limits<double>::infinity()
                               : (1 - t) / (2 * t) * (1 + kBoundMargin) + kBoundMargin;
    }
    // The same distance as a multiple of the longer side.
    double reach_of_longer() const {
        const double t = static_cast<double>(limit);
        return (1 - t) * (1 + kBoundMargin) + kBoundMargin;
    }

    // Where the union is 0 or NaN, the quotient is NaN; the union is never negative.
    FASTSSD_INLINE bool exact(T inter, T areas) const { return inter / (areas - inter) > limit; }

    static constexpr double kBoundMargin = 1e-5;  // far above the rounding of any bound
};

}  // namespace fastssd::FASTSSD_ISA
