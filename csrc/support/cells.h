// All boxes of an NMS, put in the order of the cells of one grid over their centres. A box that is kept suppresses
// whatever it overlaps within reach of its centre: a few rows of cells, each of them one stretch of memory, which
// vectorised loops run over. Where boxes are of similar size that is hardly more than what must be looked at; where
// they are not, a large box sees many small ones in vain, and the caller is told how much was looked at. The grid is
// made for most boxes; what lies outside of it counts to the cells at its edge, and a few large or far boxes change
// nothing for the others.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "ops/boxes.h"
#include "support/box_sizes.h"
#include "support/buffer.h"
#include "support/math.h"
#include "support/overlap.h"
#include "support/pack.h"

namespace fastssd::FASTSSD_ISA {

template <typename T>
class BoxCells {
  public:
    static constexpr int64_t kMostBoxes = int64_t{1} << 30;

    // For Sample<T>::kSize to kMostBoxes boxes.
    explicit BoxCells(int64_t n)
        : n_(n), blocks_(n / kStep + 1), cells_(n), starts_(most_cells(n) + 2), tiny_(n / kTinyShare + 1) {}

    // False where these boxes are not for cells: many are tiny, or so few lie within reach of each other that BoxGrid,
    // which looks at less, is faster.
    bool load(const T* boxes, const OverlapTest<T>& test) {
        if (!(test.limit >= kLeastLimit && test.limit < T(1))) return false;
        return measure(boxes, test.reach()) && place(boxes, test);
    }

    // By place: boxes have one each, from 0 on.
    uint32_t place_of(int64_t i) const { return cells_[i]; }
    uint32_t id(uint32_t place) const { return blocks_[place / kStep].ids[place % kStep]; }

    // Not suppressed yet. A box that is not finite never lives.
    FASTSSD_INLINE bool alive(uint32_t place) const {
        const T area = blocks_[place / kStep].area[place % kStep];
        return area == area;
    }

    // Suppresses what the living box there overlaps, and itself. Returns about how many boxes were looked at.
    FASTSSD_INLINE int64_t suppress_around(uint32_t place, const OverlapTest<T>& test) {
        const Box<T> box = blocks_[place / kStep].box(place % kStep);
        if (!test.can_overlap(box.area)) return 1;
        const T x = center(box.x1, box.x2), y = center(box.y1, box.y2);
        const T reach_x = (box.x2 - box.x1) * reach_ + error(x), reach_y = (box.y2 - box.y1) * reach_ + error(y);
        const int32_t left = cell(x - reach_x, kX), right = cell(x + reach_x, kX);
        const int32_t first = cell(y - reach_y, kY), last = cell(y + reach_y, kY);
        // Nearly always one or two rows, and the processor cannot guess which: so one is run over twice.
        int64_t looked =
            run_over(box, row_of(first), left, right, test) + run_over(box, row_of(last), left, right, test);
        for (int32_t row = first + 1; row < last; ++row) looked += run_over(box, row_of(row), left, right, test);
        if (test.tiny(box.area)) {  // may be of any distance from another tiny one
            for (int64_t i = 0; i < num_tiny_; ++i) look_closely(box, blocks_[tiny_[i] / kStep], test);
            looked += kStep * num_tiny_;
        }
        return looked;
    }

  private:
    enum Axis { kX = 0, kY = 1 };
    static constexpr int64_t kStep = 8;
    static constexpr T kLeastLimit = T(0.01);
    static constexpr double kLeastWithinReach = 2, kMost = static_cast<double>(std::numeric_limits<T>::max()) / 8;
    static constexpr T kDead = std::numeric_limits<T>::quiet_NaN();  // as an area: compares with nothing
    static constexpr int64_t kTinyShare = 64;                        // one box in so many may be tiny
    using Numbers = Pack<T, kStep>;
    using Mask = typename Numbers::Mask;

    // Boxes that follow each other: what is looked at together lies together.
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
    template <typename Number>
    static FASTSSD_INLINE Number center(Number low, Number high, Number half) {
        return low * half + high * half;
    }
    static FASTSSD_INLINE T center(T low, T high) { return center(low, high, T(0.5)); }
    static FASTSSD_INLINE T error(T center) {
        return larger(center, -center) * kCentreError<T> + 4 * std::numeric_limits<T>::min();
    }

    // Rises with `at`, and that is all that is asked of it.
    FASTSSD_INLINE int32_t cell(T at, Axis axis) const { return cell(at, origin_[axis], inverse_[axis], last_[axis]); }
    static FASTSSD_INLINE int32_t cell(T at, T origin, T inverse, T last) {
        return static_cast<int32_t>(larger(smaller((at - origin) * inverse, last), T(0)));
    }
    FASTSSD_INLINE const uint32_t* row_of(int32_t row) const { return &starts_[int64_t{row} * sizes_[kX]]; }

    // Which share of boxes of this mean size, whose corners spread over this extent, lies within reach of one.
    static double density(double reach, double extent, double size) { return 2 * reach * size / (extent + size); }

    // Chooses the cells. Any choice gives the same NMS. Where a glance at a few boxes says that they are sparse, the
    // others are not looked at.
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

        // Of four numbers the first two are of interest, x and y; the others belong to the corner after. NaN is passed
        // over.
        Four<T> first = Four<T>::all(kInf<T>), last = Four<T>::all(-kInf<T>);
        for (int64_t i = 0; i + 1 < n_; ++i) {
            first = smaller(Four<T>::load(boxes + 4 * i), first);
            last = larger(Four<T>::load(boxes + 4 * i + 2), last);
        }
        const T* const last_box = boxes + 4 * (n_ - 1);
        first = smaller(Four<T>{{last_box[0], last_box[1], T(0), T(0)}}, first);
        last = larger(Four<T>{{last_box[2], last_box[3], T(0), T(0)}}, last);
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
        // Counted two places on, so that writing leaves each start where it belongs.
        uint32_t* FASTSSD_RESTRICT const starts = starts_.data();
        std::memset(starts, 0, static_cast<std::size_t>(num_cells + 2) * sizeof(uint32_t));
        const auto count = [&](int64_t i, int32_t column, int32_t row) {
            cells[i] = static_cast<uint32_t>(row) * static_cast<uint32_t>(sizes_[kX]) + static_cast<uint32_t>(column);
            ++starts[cells[i] + 2];
        };
        const Four<T> origin{{origin_[kX], origin_[kY], T(0), T(0)}}, inverse{{inverse_[kX], inverse_[kY], T(0), T(0)}};
        const Four<T> last{{last_[kX], last_[kY], T(0), T(0)}}, half = Four<T>::all(T(0.5)), zero = Four<T>::all(T(0));
        for (int64_t i = 0; i + 1 < n_; ++i) {
            const Four<T> at = center(Four<T>::load(boxes + 4 * i), Four<T>::load(boxes + 4 * i + 2), half);
            const Four<T> cell = larger(smaller((at - origin) * inverse, last), zero);
            count(i, static_cast<int32_t>(cell.get(kX)), static_cast<int32_t>(cell.get(kY)));
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

    // Some cells of a row, and what else lies in the same blocks, which is tested too and so changes nothing.
    FASTSSD_INLINE int64_t run_over(const Box<T>& box, const uint32_t* row, int32_t left, int32_t right,
                                    const OverlapTest<T>& test) {
        const int64_t begin = row[left] / kStep, end = (int64_t{row[right + 1]} + kStep - 1) / kStep;
        Mask unsure = look(box, blocks_[begin], test);
        for (int64_t i = begin + 1; i < end; ++i) unsure = unsure | look(box, blocks_[i], test);
        if (any(unsure)) {
            for (int64_t i = begin; i < end; ++i) look_closely(box, blocks_[i], test);
        }
        return (end - begin + 1) * kStep;
    }

    static FASTSSD_INLINE Mask look(const Box<T>& box, Block& block, const OverlapTest<T>& test) {
        const Overlap overlap(block, box);
        const Mask surely = above(overlap.inter, Numbers::all(test.high) * overlap.areas);
        choose(surely, Numbers::all(kDead), overlap.area).store(block.area);
        return surely ^ above(overlap.inter, Numbers::all(test.low) * overlap.areas);
    }

    static void look_closely(const Box<T>& box, Block& block, const OverlapTest<T>& test) {
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
    Buffer<uint32_t> cells_;  // of each box: its cell, and in the end its place
    Buffer<uint32_t> starts_;
    int64_t sizes_[2];
    Buffer<uint32_t> tiny_;  // their places
    int64_t num_tiny_ = 0;
    T origin_[2], inverse_[2], last_[2], reach_;
};

}  // namespace fastssd::FASTSSD_ISA
