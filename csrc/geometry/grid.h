// A grid of boxes that answers: does any of them overlap this box by more than a threshold? For NMS, which asks for one
// box after the other and inserts those that it keeps.
//
// An IoU above t bounds how much two boxes may differ: the ratio of their widths (heights) is in (t, 1 / t), and the
// distance of their centres is less than a multiple of the larger width. So boxes are divided into size classes, a
// factor of 4 wide, and each class has cells in proportion: a box of the class or of a smaller one reaches at most half
// a cell. A box is inserted in the cell of its centre, in its own class and in the larger classes within the ratio; it
// is compared with the boxes in the two by two cells around its centre, in the same classes. Cells are buckets of one
// hash table: boxes of other cells in the same bucket cost time and change nothing, since the overlap is computed
// anyway. Memory is linear in the number of boxes.
//
// A class with few boxes of its own and many smaller boxes has two tables: the smaller boxes are compared only with the
// boxes of the class. A class without boxes of its own is left out.
//
// No single box makes the others slow. Far from the origin, where coordinates are coarse, a box counts as large as the
// error of its centre requires, so its class has cells to match. Where many boxes are long and thin, width and height
// have separate classes: otherwise thin boxes that cross would fill each other's cells.
#pragma once

#include <cstdint>
#include <cstring>

#include "geometry/box.h"
#include "geometry/box_sizes.h"
#include "geometry/overlap.h"
#include "support/buffer.h"
#include "support/math.h"
#include "support/prefetch.h"
#include "support/simd.h"
#include "support/sort.h"

namespace fastssd::FASTSSD_ISA {

// kRegular: for boxes whose sizes are regular (BoxSizes).
template <typename T, bool kRegular>
class BoxGrid {
  public:
    // For boxes that can overlap and are among the first n >= Sample<T>::kSize of `boxes`. Of two tiny boxes the answer
    // may be wrong (OverlapTest).
    BoxGrid(const BoxColumns<T>& boxes, int64_t n, const BoxSizes<T>& sizes, const OverlapTest<T>& test)
        : test_(test),
          num_buckets_(buckets_for(n)),
          blocks_(2 * num_buckets_),
          next_(2 * num_buckets_),
          last_bucket_(static_cast<uint32_t>(num_buckets_ - 1)) {
        std::memset(blocks_.data(), 0, static_cast<std::size_t>(num_buckets_) * sizeof(Block));
        used_ = num_buckets_;
        measure(boxes, n, sizes);
    }

    struct Square {
        uint32_t buckets[4];  // of two cells by two, first the cell of the centre
    };
    struct Place {
        T center[2], size[2];
        int first[2], last[2];  // the classes that this box is inserted in and compared with
        Square square;          // in the first of them
    };

    // Does not read the table, but starts to load what suppresses() will need.
    FASTSSD_INLINE Place locate(const Box<T>& box) const {
        Place place = classes_of(box);
        place.square = square(2 * place.first[kX], 2 * place.first[kRegular ? kX : kY], place);
        for (const uint32_t b : place.square.buckets) FASTSSD_PREFETCH(&blocks_[b]);
        return place;
    }

    // Whether a box of the grid overlaps `box` by more than the threshold. Adds what it cost, in ns, to `work`.
    FASTSSD_INLINE bool suppresses(const Box<T>& box, const Place& place, int64_t& work) const {
        if (square_suppresses(place.square, box, work)) return true;
        if constexpr (kRegular) {
            for (int c = place.first[kX] + 1; c <= place.last[kX]; ++c) {
                if (square_suppresses(square(2 * c, 2 * c, place), box, work)) return true;
            }
            return false;
        }
        return in_further_tables<false>(
            place, [&](int x, int y) { return square_suppresses(square(x, y, place), box, work); });
    }

    FASTSSD_INLINE void insert(const Box<T>& box, const Place& place) {
        append(place.square.buckets[0], box);
        if constexpr (kRegular) {
            for (int c = place.first[kX] + 1; c <= place.last[kX]; ++c)
                append(square(2 * c, 2 * c, place).buckets[0], box);
            return;
        }
        in_further_tables<true>(place, [&](int x, int y) {
            append(square(x, y, place).buckets[0], box);
            return false;
        });
    }

  private:
    enum Axis { kX = 0, kY = 1 };
    static constexpr int kExponentBits = sizeof(T) == 4 ? 8 : 11;
    static constexpr int kMantissaBits = 8 * static_cast<int>(sizeof(T)) - 1 - kExponentBits;
    static constexpr int kClasses = (1 << (kExponentBits - 1)) + 1;

    // One cache line for float. Lanes without a box hold one without extent, which overlaps nothing.
    struct Block {
        Four<T> x1, y1, x2, y2;

        FASTSSD_INLINE bool full() const { return taken(Four<T>::kCount - 1); }
        FASTSSD_INLINE bool taken(int lane) const { return x2.get(lane) > x1.get(lane); }

        // True where that makes it full.
        FASTSSD_INLINE bool add(const Box<T>& box) {
            const int lane = taken(0) + taken(1) + taken(2);  // not a loop, whose end could not be predicted
            x1.set(lane, box.x1);
            y1.set(lane, box.y1);
            x2.set(lane, box.x2);
            y2.set(lane, box.y2);
            return lane == Four<T>::kCount - 1;
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

    // Calls visit(table, table) for the tables of a box after the first, until a call returns true. Class c has table 2
    // c and, where it has two, table 2 c + 1 for smaller boxes. A box of the class is inserted in the first and
    // compared with both; a smaller box is inserted in the second and compared with the first.
    template <bool kToInsert, typename Visit>
    FASTSSD_INLINE bool in_further_tables(const Place& place, const Visit& visit) const {
        if (!by_aspect_) {
            return in_tables<kToInsert>(place, kX, true, [&](int table) { return visit(table, table); });
        }
        bool first = true;
        return in_tables<kToInsert>(place, kY, false, [&](int y) {
            const bool skip = first;
            first = false;
            return in_tables<kToInsert>(place, kX, skip, [&](int x) { return visit(x, y); });
        });
    }

    template <bool kToInsert, typename Visit>
    FASTSSD_INLINE bool in_tables(const Place& place, Axis axis, bool skip_first, const Visit& visit) const {
        const int own = place.first[axis];
        if (!skip_first && visit(2 * own)) return true;
        if (!kToInsert && in_two_[axis][own] && visit(2 * own + 1)) return true;
        for (int c = own + 1; c <= place.last[axis]; ++c) {
            if (taken_[axis][c] && visit(2 * c + static_cast<int>(kToInsert && in_two_[axis][c]))) return true;
        }
        return false;
    }

    FASTSSD_INLINE Place classes_of(const Box<T>& box) const {
        Place place;
        place.center[kX] = box.x1 * T(0.5) + box.x2 * T(0.5);
        place.center[kY] = box.y1 * T(0.5) + box.y2 * T(0.5);
        place.size[kX] = box.x2 - box.x1;
        place.size[kY] = box.y2 - box.y1;
        if constexpr (kRegular) {
            const T longer = positive_part(larger(place.size[kX] * scale_[kX], place.size[kY] * scale_[kY]));
            place.first[kX] = smaller(class_of(longer), last_class_);
            place.last[kX] = smaller(class_of(longer * most_ratio_), last_class_);
            return place;
        }
        T wide = class_size(place.size[kX], place.center[kX], kX);
        T tall = class_size(place.size[kY], place.center[kY], kY);
        if (!by_aspect_) wide = tall = larger(wide, tall);
        place.first[kX] = smaller(class_of(wide), last_class_);
        place.first[kY] = smaller(class_of(tall), last_class_);
        place.last[kX] = smaller(class_of(wide * most_ratio_), last_class_);
        place.last[kY] = smaller(class_of(tall * most_ratio_), last_class_);
        return place;
    }

    // In units of about twice the mean: a class ends at 1, so that most boxes are in the class below. Far from the
    // origin a box counts as so large that the error of its centre is small.
    FASTSSD_INLINE T class_size(T size, T center, Axis axis) const {
        if constexpr (kRegular) return positive_part(size * scale_[axis]);
        const T distance = larger(center, -center);
        return positive_part(larger(size, distance * (kCentreError<T> * kErrorsInSize)) * scale_[axis]);
    }

    void measure(const BoxColumns<T>& boxes, int64_t n, const BoxSizes<T>& sizes) {
        const T* const most = sizes.most;
        const T furthest = sizes.furthest;
        constexpr double kTiny = 4 * static_cast<double>(std::numeric_limits<T>::min());
        double unit[2], factor = 1;
        for (int axis = 0; axis < 2; ++axis) {
            const double largest = static_cast<double>(most[axis]) * (1 + test_.kBoundMargin);
            // One class for all boxes where none is far larger than most.
            unit[axis] = larger(largest <= 3 * sizes.mean[axis] ? largest : 2 * sizes.mean[axis], kTiny);
            // So that no size in units overflows, and the last class has an end.
            constexpr double kMostUnits = 1e18;
            const double error = static_cast<double>(furthest) * static_cast<double>(kCentreError<T> * kErrorsInSize);
            factor = larger(factor, larger(largest, error) / kMostUnits / unit[axis]);
        }
        for (int axis = 0; axis < 2; ++axis) {
            unit[axis] = smaller(unit[axis] * factor, 1e300);
            scale_[axis] = clamped(1 / unit[axis]);
        }
        by_aspect_ = sizes.thin;
        slack_ = kCentreError<T> * furthest + T(kTiny);
        most_ratio_ = clamped(test_.most_ratio());
        reach_ = clamped(test_.reach());
        last_class_ = class_of(larger(class_size(most[kX], furthest, kX), class_size(most[kY], furthest, kY)));
        // A box of a class, and a box of the class or of a smaller one, can overlap too much only where the distance of
        // their centres is at most this multiple of the largest width of the class.
        const double reach = test_.reach_of_longer() + 0.01;
        double largest = std::ldexp(1.0, 2 * last_class_ + 2 - (1 << (kExponentBits - 1)));
        for (int c = last_class_; c >= 0; --c, largest /= 4) {
            for (int axis = 0; axis < 2; ++axis) {
                inverse_[c][axis] = clamped(1 / (2 * (reach + 0.01) * largest * unit[axis] +
                                                 16 * (kRegular ? static_cast<double>(slack_) : kTiny)));
                most_reach_[c][axis] = clamped(reach * largest * unit[axis]);
            }
        }
        if constexpr (!kRegular) count_classes(boxes, n);
    }

    void count_classes(const BoxColumns<T>& boxes, int64_t n) {
        constexpr uint32_t kManyMore = 4;
        uint32_t counts[2][kClasses];
        std::memset(counts, 0, sizeof counts);
        for (int64_t i = 0; i < n; ++i) {
            const Place place = classes_of(Box<T>(boxes, i));
            ++counts[kX][place.first[kX]];
            ++counts[kY][place.first[kY]];
        }
        // By how many classes two boxes can differ whose sizes are within the ratio.
        const int below = smaller(class_of(most_ratio_) - class_of(T(1)) + 1, last_class_);
        for (int axis = 0; axis < 2; ++axis) {
            for (int c = 0; c <= last_class_; ++c) {
                uint64_t smaller_ones = 0;
                for (int k = 1; k <= below && k <= c; ++k) smaller_ones += counts[axis][c - k];
                taken_[axis][c] = counts[axis][c] > 0;
                in_two_[axis][c] = taken_[axis][c] && smaller_ones > uint64_t{kManyMore} * counts[axis][c];
            }
        }
    }

    static T clamped(double value) {
        constexpr double kMost = static_cast<double>(std::numeric_limits<T>::max());
        return static_cast<T>(smaller(value, kMost));
    }

    // All that matters is that a larger coordinate never has a smaller cell.
    static FASTSSD_INLINE int64_t cell(T coordinate) {
        constexpr T kMost = T(4e18);
        return static_cast<int64_t>(larger(smaller(coordinate, kMost), -kMost));
    }

    // The cells within reach of the centre: at most two on each axis.
    FASTSSD_INLINE Square square(int table_x, int table_y, const Place& place) const {
        const Span x = span(place, table_x / 2, kX), y = span(place, table_y / 2, kY);
        const uint64_t tables =
            static_cast<uint64_t>(table_x) * 0x85ebca6bu + static_cast<uint64_t>(table_y) * 0xc2b2ae35u;
        const uint64_t own_row = row(tables, y.own), other_row = row(tables, y.other);
        return {
            {bucket(own_row, x.own), bucket(own_row, x.other), bucket(other_row, x.own), bucket(other_row, x.other)}};
    }
    struct Span {
        uint64_t own, other;  // the same where one cell is enough
    };
    FASTSSD_INLINE Span span(const Place& place, int c, Axis axis) const {
        constexpr T kTiny = 4 * std::numeric_limits<T>::min();
        const T center = place.center[axis], inverse = inverse_[c][axis];
        const T error = kRegular ? slack_ : larger(center, -center) * kCentreError<T> + kTiny;
        const T reach = smaller(place.size[axis] * reach_, most_reach_[c][axis]) + error;
        const auto own = static_cast<uint64_t>(cell(center * inverse));
        const auto first = static_cast<uint64_t>(cell((center - reach) * inverse));
        const auto last = static_cast<uint64_t>(cell((center + reach) * inverse));
        return {own, first + last - own};
    }
    static FASTSSD_INLINE uint64_t row(uint64_t tables, uint64_t y) { return y * 0x9e3779b1u + tables; }
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
            if ((i % 2 == 1 && b[i] == b[i - 1]) || (i >= 2 && b[i] == b[i - 2])) continue;  // compared already
            if (!blocks_[b[i]].full()) continue;
            for (uint32_t next = next_[b[i]]; next != 0; next = next_[next]) {
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
        if (!blocks_[b].full()) {
            if (blocks_[b].add(box)) next_[b] = 0;
            return;
        }
        uint32_t newest = next_[b];
        if (newest == 0 || blocks_[newest].full()) {
            blocks_.reserve(used_ + 1, used_);
            next_.reserve(used_ + 1, used_);
            std::memset(&blocks_[used_], 0, sizeof(Block));
            next_[used_] = newest;
            newest = static_cast<uint32_t>(used_++);
            next_[b] = newest;
        }
        blocks_[newest].add(box);
    }

    // The smallest box has a size of this many errors of its centre.
    static constexpr T kErrorsInSize = 256;

    const OverlapTest<T> test_;
    const int64_t num_buckets_;
    Buffer<Block> blocks_;   // the first blocks of all buckets, then further blocks
    Buffer<uint32_t> next_;  // of a full block: the next block of its bucket, the newest first, or 0
    int64_t used_;           // blocks
    T scale_[2], most_ratio_, reach_;
    T slack_;         // the largest error of a centre
    bool by_aspect_;  // classes of width and of height, else of the larger of the two

    const uint32_t last_bucket_;
    int last_class_;
    // Of each class up to the last: 1 / the extent of a cell, the largest reach of its boxes, whether it has boxes of
    // its own, and whether it has two tables.
    T inverse_[kClasses][2], most_reach_[kClasses][2];
    bool taken_[2][kClasses], in_two_[2][kClasses];
};

}  // namespace fastssd::FASTSSD_ISA
