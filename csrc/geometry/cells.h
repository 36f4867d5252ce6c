// All boxes of an NMS, sorted by the cells of one grid over their centres. A kept box suppresses the boxes that it
// overlaps within reach of its centre: a few rows of cells, each one stretch of memory, which vectorised loops run
// over. Where boxes have similar sizes, these are few more than must be compared. Where they do not, a large box is
// compared with many small ones for nothing; the caller learns how many were compared. The grid is made for most boxes:
// a centre outside of it belongs to a cell at the edge, so a few large or distant boxes change nothing for the others.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "geometry/box.h"
#include "geometry/box_sizes.h"
#include "geometry/overlap.h"
#include "support/buffer.h"
#include "support/math.h"
#include "support/simd.h"

namespace fastssd::FASTSSD_ISA {

template <typename T>
class BoxCells {
  public:
    static constexpr int64_t kMostBoxes = int64_t{1} << 30;

    // For Sample<T>::kSize to kMostBoxes boxes.
    explicit BoxCells(int64_t n)
        : n_(n), blocks_(n / kStep + 1), cells_(n), starts_(most_cells(n) + 2), tiny_(n / kTinyShare + 1) {}

    // False where cells do not suit these boxes: many are tiny, or so few are within reach of each other that BoxGrid
    // is faster, which compares fewer.
    bool load(const T* boxes, const OverlapTest<T>& test) {
        if (!(test.limit >= kLeastLimit && test.limit < T(1))) return false;
        return measure(boxes, test.reach()) && place(boxes, test);
    }

    // Each box has a place, from 0 on.
    uint32_t place_of(int64_t i) const { return cells_[i]; }
    uint32_t id(uint32_t place) const { return blocks_[place / kStep].ids[place % kStep]; }

    // Not suppressed yet. A box that is not finite is never alive.
    FASTSSD_INLINE bool alive(uint32_t place) const {
        const T area = blocks_[place / kStep].area[place % kStep];
        return area == area;
    }

    // Suppresses the boxes that the box at this place overlaps, and the box itself. Returns about how many were
    // compared.
    FASTSSD_INLINE int64_t suppress_around(uint32_t place, const OverlapTest<T>& test) {
        const Box<T> box = blocks_[place / kStep].box(place % kStep);
        if (!test.can_overlap(box.area)) return 1;
        const T x = center(box.x1, box.x2), y = center(box.y1, box.y2);
        const T reach_x = (box.x2 - box.x1) * reach_ + error(x), reach_y = (box.y2 - box.y1) * reach_ + error(y);
        const int32_t left = cell(x - reach_x, kX), right = cell(x + reach_x, kX);
        const int32_t first = cell(y - reach_y, kY), last = cell(y + reach_y, kY);
        // Nearly always one or two rows, and the processor cannot predict which: so a single row is compared twice.
        int64_t compared =
            run_over(box, row_of(first), left, right, test) + run_over(box, row_of(last), left, right, test);
        for (int32_t row = first + 1; row < last; ++row) compared += run_over(box, row_of(row), left, right, test);
        if (test.tiny(box.area)) {  // no bound of the distance from another tiny one
            for (int64_t i = 0; i < num_tiny_; ++i) compare_exactly(box, blocks_[tiny_[i] / kStep], test);
            compared += kStep * num_tiny_;
        }
        return compared;
    }

  private:
    enum Axis { kX = 0, kY = 1 };
    static constexpr int64_t kStep = 8;
    static constexpr T kLeastLimit = T(0.01);
    static constexpr double kLeastWithinReach = 2, kMost = static_cast<double>(std::numeric_limits<T>::max()) / 8;
    static constexpr T kDead = std::numeric_limits<T>::quiet_NaN();  // as an area: compares with nothing
    static constexpr int64_t kTinyShare = 64;                        // at most one box in so many may be tiny
    using Numbers = Pack<T, kStep>;
    using Mask = typename Numbers::Mask;

    // Boxes at kStep places in a row: what is compared together is together in memory.
    struct Block {
        T x1[kStep], y1[kStep], x2[kStep], y2[kStep], area[kStep];
        uint32_t ids[kStep];

        FASTSSD_INLINE Box<T> box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i], area[i]}; }
        FASTSSD_INLINE void set(int64_t i, const T* box, uint32_t id) {
            x1[i] = box[0], y1[i] = box[1], x2[i] = box[2], y2[i] = box[3];
            area[i] = area_of(box);
            ids[i] = id;
        }
    };

    static int64_t most_cells(int64_t n) { return n + 64; }
    // x and y, and two numbers that do not matter.
    static Four<T> four(const T* xy) {
        const T numbers[4] = {xy[0], xy[1]};
        return Four<T>::load(numbers);
    }
    template <typename Number>
    static FASTSSD_INLINE Number center(Number low, Number high, Number half) {
        return low * half + high * half;
    }
    static FASTSSD_INLINE T center(T low, T high) { return center(low, high, T(0.5)); }
    static FASTSSD_INLINE T error(T center) {
        return larger(center, -center) * kCentreError<T> + 4 * std::numeric_limits<T>::min();
    }

    // All that matters is that a larger coordinate never has a smaller cell.
    FASTSSD_INLINE int32_t cell(T coordinate, Axis axis) const {
        return static_cast<int32_t>(larger(smaller((coordinate - origin_[axis]) * inverse_[axis], last_[axis]), T(0)));
    }
    FASTSSD_INLINE const uint32_t* row_of(int32_t row) const { return &starts_[int64_t{row} * sizes_[kX]]; }

    // The share of boxes that are within reach of one, where they have this mean size and spread over this extent.
    static double density(double reach, double extent, double size) { return 2 * reach * size / (extent + size); }

    // Chooses the cells. Any choice gives the same NMS. False where a sample says that the boxes are sparse, before the
    // others are read.
    bool measure(const T* boxes, double reach) {
        double low[2], high[2], unit[2], within_reach = static_cast<double>(n_);
        for (int axis = 0; axis < 2; ++axis) {
            const auto box = [&](int64_t k) { return boxes + 4 * (k * n_ / Sample<T>::kSize) + axis; };
            const auto finite = [](T x) { return is_finite(x) ? x : T(0); };
            const Sample<T> centers([&](int64_t k) { return finite(center(box(k)[0], box(k)[2])); });
            const Sample<T> sizes([&](int64_t k) { return finite(positive_part(box(k)[2] - box(k)[0])); });
            const double spread = centers.high() - centers.low();
            unit[axis] = sizes.mean();
            if (!(unit[axis] > 0 && spread < kMost)) return false;
            within_reach *= density(reach, spread, unit[axis]);
            low[axis] = centers.low() - spread - unit[axis];
            high[axis] = centers.high() + spread + unit[axis];
        }
        if (within_reach < kLeastWithinReach) return false;

        // The least and largest corners. A vector of four numbers holds x and y of a corner, and two numbers of the
        // corner after it, which are ignored. So is NaN.
        Four<T> first = Four<T>::all(kInf<T>), last = Four<T>::all(-kInf<T>);
        for (int64_t i = 0; i + 1 < n_; ++i) {
            first = smaller(Four<T>::load(boxes + 4 * i), first);
            last = larger(Four<T>::load(boxes + 4 * i + 2), last);
        }
        const T* const last_box = boxes + 4 * (n_ - 1);
        first = smaller(four(last_box), first);
        last = larger(four(last_box + 2), last);
        double extent[2], cells = 1;
        for (int axis = 0; axis < 2; ++axis) {
            low[axis] = larger(static_cast<double>(first.get(axis)), low[axis]);
            high[axis] = smaller(static_cast<double>(last.get(axis)), high[axis]);
            extent[axis] = larger(high[axis] - low[axis], 0.0);
            cells *= extent[axis] / unit[axis] + 1;
        }
        const double coarser = larger(std::sqrt(cells / static_cast<double>(n_)), 1.0);
        double room = static_cast<double>(most_cells(n_));
        for (int axis = 0; axis < 2; ++axis) {
            sizes_[axis] = static_cast<int64_t>(smaller(extent[axis] / (unit[axis] * coarser) + 1, room));
            room = std::floor(room / static_cast<double>(sizes_[axis]));
            last_[axis] = static_cast<T>(sizes_[axis] - 1);
            origin_[axis] = static_cast<T>(low[axis]);
            inverse_[axis] = static_cast<T>(static_cast<double>(sizes_[axis]) / (extent[axis] + unit[axis] * 1e-3));
        }
        reach_ = static_cast<T>(reach);
        return true;
    }

    // False where too many are tiny.
    bool place(const T* boxes, const OverlapTest<T>& test) {
        const int64_t num_cells = sizes_[kX] * sizes_[kY];
        uint32_t* FASTSSD_RESTRICT const cells = cells_.data();
        // Counted two places further on, so that each start is in its place after the boxes are written.
        uint32_t* FASTSSD_RESTRICT const starts = starts_.data();
        std::memset(starts, 0, static_cast<std::size_t>(num_cells + 2) * sizeof(uint32_t));
        const auto count = [&](int64_t i, int32_t column, int32_t row) {
            cells[i] = static_cast<uint32_t>(row) * static_cast<uint32_t>(sizes_[kX]) + static_cast<uint32_t>(column);
            ++starts[cells[i] + 2];
        };
        const Four<T> origin = four(origin_), inverse = four(inverse_), last = four(last_);
        const Four<T> half = Four<T>::all(T(0.5)), zero = Four<T>::all(T(0));
        for (int64_t i = 0; i + 1 < n_; ++i) {
            const Four<T> middle = center(Four<T>::load(boxes + 4 * i), Four<T>::load(boxes + 4 * i + 2), half);
            const Four<T> cells_of_box = larger(smaller((middle - origin) * inverse, last), zero);
            count(i, static_cast<int32_t>(cells_of_box.get(kX)), static_cast<int32_t>(cells_of_box.get(kY)));
        }
        const T* const last_box = boxes + 4 * (n_ - 1);
        count(n_ - 1, cell(center(last_box[0], last_box[2]), kX), cell(center(last_box[1], last_box[3]), kY));
        for (int64_t c = 2; c < num_cells + 2; ++c) starts[c] += starts[c - 1];
        constexpr T kNoBox[4] = {};
        for (int64_t i = n_; i < (n_ / kStep + 1) * kStep; ++i) blocks_[i / kStep].set(i % kStep, kNoBox, 0);
        for (int64_t i = 0; i < n_; ++i) {
            const uint32_t to = starts[cells[i] + 1]++;
            Block& block = blocks_[to / kStep];
            block.set(to % kStep, boxes + 4 * i, static_cast<uint32_t>(i));
            cells[i] = to;
            if (test.tiny(block.area[to % kStep])) {
                if (num_tiny_ > n_ / kTinyShare) return false;
                tiny_[num_tiny_++] = to;
            }
        }
        return true;
    }

    // Compares with some cells of a row, and with the other boxes in the same blocks; more comparisons change no
    // result.
    FASTSSD_INLINE int64_t run_over(const Box<T>& box, const uint32_t* row, int32_t left, int32_t right,
                                    const OverlapTest<T>& test) {
        const int64_t begin = row[left] / kStep, end = (int64_t{row[right + 1]} + kStep - 1) / kStep;
        Mask unsure = compare(box, blocks_[begin], test);
        for (int64_t i = begin + 1; i < end; ++i) unsure = unsure | compare(box, blocks_[i], test);
        if (any(unsure)) {
            for (int64_t i = begin; i < end; ++i) compare_exactly(box, blocks_[i], test);
        }
        return (end - begin + 1) * kStep;
    }

    // Suppresses what surely overlaps; returns where only the quotient can tell.
    static FASTSSD_INLINE Mask compare(const Box<T>& box, Block& block, const OverlapTest<T>& test) {
        const Overlap overlap(block, box);
        const Mask surely = above(overlap.inter, Numbers::all(test.high) * overlap.areas);
        choose(surely, Numbers::all(kDead), overlap.area).store(block.area);
        return surely ^ above(overlap.inter, Numbers::all(test.low) * overlap.areas);
    }

    static void compare_exactly(const Box<T>& box, Block& block, const OverlapTest<T>& test) {
        const Overlap overlap(block, box);
        const Mask dead = above(overlap.inter / (overlap.areas - overlap.inter), Numbers::all(test.limit));
        choose(dead, Numbers::all(kDead), overlap.area).store(block.area);
    }

    struct Overlap {
        Numbers area, areas, inter;

        FASTSSD_INLINE Overlap(const Block& block, const Box<T>& box) {
            const Numbers zero = Numbers::all(T(0));
            const Numbers width = smaller(Numbers::load(block.x2), Numbers::all(box.x2)) -
                                  larger(Numbers::load(block.x1), Numbers::all(box.x1));
            const Numbers height = smaller(Numbers::load(block.y2), Numbers::all(box.y2)) -
                                   larger(Numbers::load(block.y1), Numbers::all(box.y1));
            inter = larger(width, zero) * larger(height, zero);
            area = Numbers::load(block.area);
            areas = area + Numbers::all(box.area);
        }
    };

    const int64_t n_;
    Buffer<Block> blocks_;
    Buffer<uint32_t> cells_;   // of each box: first its cell, in the end its place
    Buffer<uint32_t> starts_;  // of each cell: the place of its first box
    int64_t sizes_[2];
    Buffer<uint32_t> tiny_;  // the places of tiny boxes
    int64_t num_tiny_ = 0;
    T origin_[2], inverse_[2], last_[2], reach_;
};

}  // namespace fastssd::FASTSSD_ISA
