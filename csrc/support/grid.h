// A grid of boxes that answers: does any of them overlap this box by more than a threshold? Built for NMS, where boxes
// are asked one by one and those that are kept go in.
//
// An IoU over t bounds how far two boxes may differ: the ratio of their widths (heights) lies in (t, 1 / t), and their
// centres lie closer than a multiple of the larger width. So boxes are put in classes by size, a factor of 4 wide, each
// with cells in proportion: a box of this class or of a smaller one reaches half a cell at most. A box lies in the cell
// of its centre, in its own class and in the larger ones within the ratio; it is compared with what lies in the two by
// two cells around its centre, in the same classes. Cells are places in one hash table: what lands there by accident
// costs time and changes nothing, since the overlap is computed anyway. Memory is linear in the number of boxes.
#pragma once

#include <cstdint>
#include <cstring>

#include "ops/boxes.h"
#include "ops/iou.h"
#include "support/buffer.h"
#include "support/math.h"
#include "support/pack.h"
#include "support/sort.h"

namespace fastssd::FASTSSD_ISA {

#if defined(__GNUC__)
#define FASTSSD_PREFETCH(address) __builtin_prefetch(address)
#else
#define FASTSSD_PREFETCH(address) static_cast<void>(address)
#endif

// Whether the IoU of two boxes exceeds a threshold, mostly without dividing: with areas a and b, inter / (a + b -
// inter) > t means inter > t / (1 + t) * (a + b). Only within rounding of that is the quotient itself looked at.
template <typename T>
struct OverlapTest {
    T limit;      // of the quotient
    T low, high;  // inter > low * (a + b) is necessary, inter > high * (a + b) is sufficient

    // Under this area a product may have lost its bits to underflow, and only the quotient tells.
    static constexpr T kLeastArea = sizeof(T) == 4 ? T(1e-28) : T(1e-280);

    explicit OverlapTest(T threshold) : limit(threshold), low(T(0)), high(kInf<T>) {
        constexpr double kMargin = 1e-5, kLeast = 1e-6;
        const double t = static_cast<double>(threshold);
        if (t < kLeast) return;
        low = static_cast<T>(t / (1 + t) * (1 - kMargin));
        high = static_cast<T>(t / (1 + t) * (1 + kMargin));
    }

    // Where the union is 0 or NaN so is the quotient NaN; it is negative for no pair.
    FASTSSD_INLINE bool exact(T inter, T areas) const { return inter / (areas - inter) > limit; }
};

template <typename T>
class BoxGrid {
  public:
    // For boxes of finite area, at least OverlapTest<T>::kLeastArea, all of which are among the first n of `boxes`.
    BoxGrid(const BoxColumns<T>& boxes, int64_t n, const OverlapTest<T>& test)
        : test_(test),
          num_buckets_(buckets_for(n)),
          blocks_(2 * num_buckets_),
          next_(2 * num_buckets_),
          last_bucket_(static_cast<uint32_t>(num_buckets_ - 1)) {
        std::memset(blocks_.data(), 0, static_cast<std::size_t>(num_buckets_) * sizeof(Block));
        used_ = num_buckets_;
        measure(boxes, n);
    }

    // An IoU with a box of no area, or of one too large for its type, is 0.
    static FASTSSD_INLINE bool can_overlap(T area) { return (area > T(0)) & (area < kInf<T>); }

    struct Square {
        uint32_t buckets[4];  // of two cells by two: first the one that holds the centre
    };
    struct Place {
        T x, y;  // the centre
        T width, height;
        int first, last;  // classes of which a box may overlap this one
        Square square;    // in the first of them
    };

    // Does not look into the table, but starts to load what suppresses() will need.
    FASTSSD_INLINE Place locate(const Box<T>& box) const {
        Place place;
        place.x = box.x1 * T(0.5) + box.x2 * T(0.5);
        place.y = box.y1 * T(0.5) + box.y2 * T(0.5);
        place.width = box.x2 - box.x1;
        place.height = box.y2 - box.y1;
        const T size = size_of(place.width, place.height);
        place.first = smaller(class_of(size), last_class_);
        place.last = smaller(class_of(size * most_ratio_), last_class_);
        place.square = square(place.first, place);
        for (const uint32_t b : place.square.buckets) FASTSSD_PREFETCH(&blocks_[b]);
        return place;
    }

    // Whether a box of the grid overlaps `box` by more than the threshold. Adds what it cost, in ns, to `work`.
    FASTSSD_INLINE bool suppresses(const Box<T>& box, const Place& place, int64_t& work) const {
        if (square_suppresses(place.square, box, work)) return true;
        for (int c = place.first + 1; c <= place.last; ++c) {
            if (square_suppresses(square(c, place), box, work)) return true;
        }
        return false;
    }

    FASTSSD_INLINE void insert(const Box<T>& box, const Place& place) {
        append(place.square.buckets[0], box);
        for (int c = place.first + 1; c <= place.last; ++c) {
            append(square(c, place).buckets[0], box);
        }
    }

  private:
    enum Axis { kX = 0, kY = 1 };
    static constexpr int kExponentBits = sizeof(T) == 4 ? 8 : 11;
    static constexpr int kMantissaBits = 8 * static_cast<int>(sizeof(T)) - 1 - kExponentBits;
    static constexpr int kClasses = (1 << (kExponentBits - 1)) + 1;

    // One cache line for float. Places that are not taken hold boxes of no extent, which overlap nothing.
    struct Block {
        Four<T> x1, y1, x2, y2;

        FASTSSD_INLINE bool full() const { return taken(kFour - 1); }
        FASTSSD_INLINE bool taken(int lane) const { return x2.get(lane) > x1.get(lane); }

        // True where that makes it full.
        FASTSSD_INLINE bool add(const Box<T>& box) {
            const int lane = taken(0) + taken(1) + taken(2);  // no loop: it would end anywhere
            x1.set(lane, box.x1);
            y1.set(lane, box.y1);
            x2.set(lane, box.x2);
            y2.set(lane, box.y2);
            return lane == kFour - 1;
        }
    };
    static int64_t buckets_for(int64_t n) {
        int64_t buckets = 64;
        while (buckets < n / 2) buckets *= 2;
        return buckets;
    }

    static FASTSSD_INLINE int class_of(T size) {
        KeyOf<T> bits;
        std::memcpy(&bits, &size, sizeof(T));
        return static_cast<int>(((bits >> kMantissaBits) + 1) >> 1);
    }

    // 1 is twice the mean: there a class ends, so that most boxes are in the one below.
    FASTSSD_INLINE T size_of(T width, T height) const {
        return positive_part(larger(width * scale_[kX], height * scale_[kY]));
    }

    void measure(const BoxColumns<T>& boxes, int64_t n) {
        constexpr int64_t kWide = 16;
        T width[kWide] = {}, height[kWide] = {}, distance[kWide] = {};
        const auto see = [&](int64_t i, int64_t lane) {
            const bool counts = can_overlap(boxes.area[i]);
            const T x = larger(boxes.x2[i], -boxes.x1[i]), y = larger(boxes.y2[i], -boxes.y1[i]);
            width[lane] = larger(width[lane], counts ? boxes.x2[i] - boxes.x1[i] : T(0));
            height[lane] = larger(height[lane], counts ? boxes.y2[i] - boxes.y1[i] : T(0));
            distance[lane] = larger(distance[lane], counts ? larger(x, y) : T(0));
        };
        int64_t i = 0;
        for (; i + kWide <= n; i += kWide) {
            for (int64_t lane = 0; lane < kWide; ++lane) see(i + lane, lane);
        }
        for (; i < n; ++i) see(i, 0);
        const double most[2] = {static_cast<double>(max_of(width, kWide)), static_cast<double>(max_of(height, kWide))};
        const double furthest = static_cast<double>(max_of(distance, kWide));

        double sum[2] = {0, 0};
        const int64_t step = larger<int64_t>(n / 256, 1);
        double count = 1;
        for (i = 0; i < n; i += step) {
            if (!can_overlap(boxes.area[i])) continue;
            sum[kX] += static_cast<double>(boxes.x2[i]) / 256 - static_cast<double>(boxes.x1[i]) / 256;
            sum[kY] += static_cast<double>(boxes.y2[i]) / 256 - static_cast<double>(boxes.y1[i]) / 256;
            count += 1;
        }

        constexpr double kTiny = 4 * static_cast<double>(std::numeric_limits<T>::min());
        double unit[2];
        for (int axis = 0; axis < 2; ++axis) {
            const double typical = 2 * sum[axis] / count * 256;
            unit[axis] = larger(smaller(typical, most[axis] * (1 + kMargin)), kTiny);
            scale_[axis] = clamped(1 / unit[axis]);
        }
        const double t = static_cast<double>(test_.limit);
        most_ratio_ = static_cast<T>((1 + kMargin) / larger(t, 1e-30));
        // A box of width w and one of at most w / t overlap too much only where their centres are at most this many w
        // apart. (The smaller lies in the larger at the far end.)
        reach_ = clamped(larger(1 - t, (1 / larger(t, 1e-30) - 1) / 2) * (1 + kMargin) + kMargin);
        const double slack = 8 * static_cast<double>(std::numeric_limits<T>::epsilon()) * furthest + kTiny;
        slack_ = static_cast<T>(slack);
        last_class_ = class_of(size_of(static_cast<T>(most[kX]), static_cast<T>(most[kY])));
        // Two boxes, one of a class and one of it or a smaller one, overlap too much only where their centres are at
        // most 1 - t of the largest width of the class apart.
        double largest = std::ldexp(1.0, smaller(2 * last_class_ + 2 - (1 << (kExponentBits - 1)), 1000));
        for (int c = last_class_; c >= 0; --c, largest /= 4) {
            for (int axis = 0; axis < 2; ++axis) {
                inverse_[c][axis] = clamped(1 / (2 * (1 - t + 0.02) * largest * unit[axis] + 16 * slack));
                most_reach_[c][axis] = clamped((1 - t + 0.01) * largest * unit[axis]);
            }
        }
    }

    static T clamped(double value) {
        constexpr double kMost = static_cast<double>(std::numeric_limits<T>::max());
        return static_cast<T>(smaller(value, kMost));
    }

    // Rises with `at`, and that is all that is asked of it.
    static FASTSSD_INLINE int64_t cell(T at) {
        constexpr T kMost = T(4e18);
        return static_cast<int64_t>(larger(smaller(at, kMost), -kMost));
    }

    // The cells within reach of the centre, which are two at most on each axis.
    FASTSSD_INLINE Square square(int c, const Place& place) const {
        const Span x = span(place.x, place.width, c, kX), y = span(place.y, place.height, c, kY);
        const uint64_t own_row = row(c, y.own), other_row = row(c, y.other);
        return {
            {bucket(own_row, x.own), bucket(own_row, x.other), bucket(other_row, x.own), bucket(other_row, x.other)}};
    }
    struct Span {
        uint64_t own, other;  // the same where one cell is enough
    };
    FASTSSD_INLINE Span span(T center, T width, int c, Axis axis) const {
        const T inverse = inverse_[c][axis];
        const T reach = smaller(width * reach_, most_reach_[c][axis]) + slack_;
        const auto own = static_cast<uint64_t>(cell(center * inverse));
        const auto first = static_cast<uint64_t>(cell((center - reach) * inverse));
        const auto last = static_cast<uint64_t>(cell((center + reach) * inverse));
        return {own, first + last - own};
    }
    static FASTSSD_INLINE uint64_t row(int c, uint64_t y) {
        return y * 0x9e3779b1u + static_cast<uint64_t>(c) * 0x85ebca6bu;
    }
    FASTSSD_INLINE uint32_t bucket(uint64_t row, uint64_t x) const {
        return static_cast<uint32_t>(row + x) & last_bucket_;
    }

    FASTSSD_INLINE bool square_suppresses(const Square& square, const Box<T>& box, int64_t& work) const {
        const uint32_t* const b = square.buckets;

        work += 8;
        if (block_suppresses(blocks_[b[0]], box)) return true;
        Match match(box, blocks_[b[1]], test_);
        match.add(Match(box, blocks_[b[2]], test_));
        match.add(Match(box, blocks_[b[3]], test_));
        if (any(match.maybe)) {
            if (any(match.surely)) return true;
            for (int i = 1; i < 4; ++i) {
                if (block_suppresses(blocks_[b[i]], box)) return true;
            }
        }
        if (!(blocks_[b[0]].full() | blocks_[b[1]].full() | blocks_[b[2]].full() | blocks_[b[3]].full())) return false;
        for (int i = 0; i < 4; ++i) {
            if ((i % 2 == 1 && b[i] == b[i - 1]) || (i >= 2 && b[i] == b[i - 2])) continue;  // asked already
            for (uint32_t next = b[i]; blocks_[next].full() && (next = next_[next]) != 0;) {
                work += 4;
                if (block_suppresses(blocks_[next], box)) return true;
            }
        }
        return false;
    }

    struct Match {
        typename Four<T>::Mask maybe, surely;

        FASTSSD_INLINE Match(const Box<T>& box, const Block& block, const OverlapTest<T>& test) {
            const Overlap overlap(block, box);
            maybe = above(overlap.inter, Four<T>::all(test.low) * overlap.areas);
            surely = above(overlap.inter, Four<T>::all(test.high) * overlap.areas);
        }
        FASTSSD_INLINE void add(const Match& other) {
            maybe = maybe | other.maybe;
            surely = surely | other.surely;
        }
    };

    struct Overlap {
        Four<T> inter, areas;

        FASTSSD_INLINE Overlap(const Block& block, const Box<T>& box) {
            const Four<T> zero = Four<T>::all(T(0));
            const Four<T> width = smaller(block.x2, Four<T>::all(box.x2)) - larger(block.x1, Four<T>::all(box.x1));
            const Four<T> height = smaller(block.y2, Four<T>::all(box.y2)) - larger(block.y1, Four<T>::all(box.y1));
            inter = larger(width, zero) * larger(height, zero);
            areas = (block.x2 - block.x1) * (block.y2 - block.y1) + Four<T>::all(box.area);
        }
    };

    FASTSSD_INLINE bool block_suppresses(const Block& block, const Box<T>& box) const {
        const Overlap overlap(block, box);
        if (!any(above(overlap.inter, Four<T>::all(test_.low) * overlap.areas))) return false;
        return any(above(overlap.inter, Four<T>::all(test_.high) * overlap.areas)) ||
               any(above(overlap.inter / (overlap.areas - overlap.inter), Four<T>::all(test_.limit)));
    }

    FASTSSD_INLINE void append(uint32_t b, const Box<T>& box) {
        while (blocks_[b].full()) {
            if (next_[b] == 0) {
                blocks_.reserve(used_ + 1, used_);
                next_.reserve(used_ + 1, used_);
                std::memset(&blocks_[used_], 0, sizeof(Block));
                next_[b] = static_cast<uint32_t>(used_++);
            }
            b = next_[b];
        }
        if (blocks_[b].add(box)) next_[b] = 0;
    }

    static constexpr double kMargin = 1e-5;  // far above the rounding of any bound

    const OverlapTest<T> test_;
    const int64_t num_buckets_;
    Buffer<Block> blocks_;   // the buckets, then what they overflow into
    Buffer<uint32_t> next_;  // of each full block: where it overflows into, or 0
    int64_t used_;
    T scale_[2], most_ratio_, reach_, slack_;
    const uint32_t last_bucket_;
    int last_class_;
    // Of each class up to the last: 1 / the extent of a cell, and what its boxes reach at most.
    T inverse_[kClasses][2], most_reach_[kClasses][2];
};

}  // namespace fastssd::FASTSSD_ISA
