// Whether two boxes overlap by more than a threshold, and what that says of their sizes and distances.
#pragma once

#include <limits>

#include "ops/boxes.h"
#include "ops/iou.h"
#include "support/math.h"

namespace fastssd::FASTSSD_ISA {

// Whether the IoU of two boxes exceeds a threshold, mostly without dividing: with areas a and b, inter / (a + b -
// inter) > t means inter > t / (1 + t) * (a + b). Only within rounding of that is the quotient itself looked at.
template <typename T>
struct OverlapTest {
    T limit;      // of the quotient
    T low, high;  // inter > low * (a + b) is necessary, inter > high * (a + b) is sufficient

    // Of two boxes under this area, products may have lost their bits to underflow: then only the quotient tells, and
    // no bound of sizes or distances holds. One box of this area is enough: then an overlap that counts has all bits.
    static constexpr T kLeastArea = sizeof(T) == 4 ? T(1e-32) : T(1e-290);
    // Under this threshold there are no bounds either.
    static constexpr double kLeastLimit = 1e-6;

    explicit OverlapTest(T threshold) : limit(threshold), low(T(0)), high(kInf<T>) {
        constexpr double kMargin = 1e-5;
        const double t = static_cast<double>(threshold);
        if (t < kLeastLimit) return;
        low = static_cast<T>(t / (1 + t) * (1 - kMargin));
        high = static_cast<T>(t / (1 + t) * (1 + kMargin));
    }

    // An IoU with a box of no area, or of one too large for its type, is 0.
    static FASTSSD_INLINE bool can_overlap(T area) { return (area > T(0)) & (area < kInf<T>); }
    static FASTSSD_INLINE bool tiny(T area) { return (area > T(0)) & (area < kLeastArea); }

    // How much longer, at most, the side of one of two boxes is whose IoU exceeds the threshold.
    double most_ratio() const {
        const double t = static_cast<double>(limit);
        return t < kLeastLimit ? std::numeric_limits<double>::infinity() : (1 + kBoundMargin) / t;
    }
    // How far apart, at most, the centres of two boxes are on an axis, as a multiple of the side of either: their sides
    // a and b share more than t / (1 + t) * (a + b), and differ by most_ratio() at most.
    double reach() const {
        const double t = static_cast<double>(limit);
        return t < kLeastLimit ? std::numeric_limits<double>::infinity()
                               : (1 - t) / (2 * t) * (1 + kBoundMargin) + kBoundMargin;
    }
    // The same as a multiple of the longer of the two sides.
    double reach_of_longer() const {
        const double t = static_cast<double>(limit);
        return (1 - t) * (1 + kBoundMargin) + kBoundMargin;
    }

    // Where the union is 0 or NaN so is the quotient NaN; it is negative for no pair.
    FASTSSD_INLINE bool exact(T inter, T areas) const { return inter / (areas - inter) > limit; }

    static constexpr double kBoundMargin = 1e-5;  // far above the rounding of any bound
};

}  // namespace fastssd::FASTSSD_ISA
