// Typical sizes and distances of many boxes, on which a few far larger, smaller or more distant boxes have no effect.
#pragma once

#include <cstdint>
#include <limits>

#include "geometry/box.h"
#include "geometry/overlap.h"
#include "support/math.h"
#include "support/sort.h"

namespace fastssd::FASTSSD_ISA {

// The largest error of a centre, and of what is computed from it, as a share of its coordinate.
template <typename T>
constexpr T kCentreError = 4 * std::numeric_limits<T>::epsilon();

// A sorted sample of many numbers, without the lowest and the highest few.
template <typename T>
class Sample {
  public:
    static constexpr int64_t kSize = 32;

    // number(i) is the i-th number of the sample.
    template <typename Number>
    explicit Sample(const Number& number) {
        Entry<KeyOf<T>> entries[kSize], scratch[kSize];
        T values[kSize];
        for (int64_t i = 0; i < kSize; ++i) {
            values[i] = number(i);
            entries[i] = {ascending_key(values[i]), static_cast<uint32_t>(i)};
        }
        rank_sort(entries, scratch, kSize);
        for (int64_t i = 0; i < kSize; ++i) sorted_[i] = static_cast<double>(values[entries[i].index]);
    }

    double low() const { return sorted_[kLeftOut]; }
    double high() const { return sorted_[kSize - 1 - kLeftOut]; }
    double mean() const {
        double sum = 0;
        for (int64_t i = kLeftOut; i < kSize - kLeftOut; ++i) {
            sum += sorted_[i] / static_cast<double>(kSize - 2 * kLeftOut);
        }
        return sum;
    }

  private:
    static constexpr int64_t kLeftOut = kSize / 8;  // at each end

    double sorted_[kSize];
};

// Of the boxes that can overlap: the largest sides, the largest absolute coordinate, and the mean sides of a sample,
// which a grid takes as the unit of its cells.
template <typename T>
struct BoxSizes {
    T most[2], furthest;
    double mean[2];
    bool thin, tiny;  // whether some boxes are far longer on one axis than on the other; whether any box is tiny

    using Flag = typename Bits<T>::Signed;  // as wide as T, so that loops vectorise

    BoxSizes(const BoxColumns<T>& boxes, int64_t n) {
        constexpr int64_t kWide = 16;
        T width[kWide] = {}, height[kWide] = {}, distance[kWide] = {};
        Flag any_tiny[kWide] = {};
        const auto see = [&](int64_t i, int64_t lane) {
            const bool counts = OverlapTest<T>::can_overlap(boxes.area[i]);
            const T x = larger(boxes.x2[i], -boxes.x1[i]), y = larger(boxes.y2[i], -boxes.y1[i]);
            width[lane] = larger(width[lane], counts ? boxes.x2[i] - boxes.x1[i] : T(0));
            height[lane] = larger(height[lane], counts ? boxes.y2[i] - boxes.y1[i] : T(0));
            distance[lane] = larger(distance[lane], counts ? larger(x, y) : T(0));
            any_tiny[lane] |= static_cast<Flag>(OverlapTest<T>::tiny(boxes.area[i]));
        };
        int64_t i = 0;
        for (; i + kWide <= n; i += kWide) {
            for (int64_t lane = 0; lane < kWide; ++lane) see(i + lane, lane);
        }
        for (; i < n; ++i) see(i, 0);
        most[0] = max_of(width, kWide);
        most[1] = max_of(height, kWide);
        furthest = max_of(distance, kWide);
        tiny = false;
        for (const Flag any : any_tiny) tiny |= any != 0;
        const auto side = [&](const T* low, const T* high, int64_t k) {
            const int64_t chosen = k * n / Sample<T>::kSize;
            return OverlapTest<T>::can_overlap(boxes.area[chosen]) ? high[chosen] - low[chosen] : T(0);
        };
        mean[0] = Sample<T>([&](int64_t k) { return side(boxes.x1, boxes.x2, k); }).mean();
        mean[1] = Sample<T>([&](int64_t k) { return side(boxes.y1, boxes.y2, k); }).mean();
        constexpr double kThin = 16;
        int64_t num_thin = 0;
        for (int64_t k = 0; k < Sample<T>::kSize; ++k) {
            const double wide = static_cast<double>(side(boxes.x1, boxes.x2, k)) * mean[1];
            const double tall = static_cast<double>(side(boxes.y1, boxes.y2, k)) * mean[0];
            num_thin += static_cast<int64_t>(larger(wide, tall) > kThin * smaller(wide, tall));
        }
        thin = num_thin > 1;
    }

    // No box is tiny, far larger than most or far away, and few are thin: then a grid needs fewer steps for each box.
    bool regular() const {
        const double least = smaller(mean[0], mean[1]), error = static_cast<double>(kCentreError<T>);
        return !thin && !tiny && static_cast<double>(most[0]) <= 4 * mean[0] &&
               static_cast<double>(most[1]) <= 4 * mean[1] && 64 * error * static_cast<double>(furthest) <= least;
    }
};

}  // namespace fastssd::FASTSSD_ISA
