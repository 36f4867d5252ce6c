// IoU of every pair and its relatives. boxes2 is turned into columns, one tile after the other, each small enough for
// the first-level cache; each row of boxes1 is then compared with the tile in one vectorised loop. Boxes that are not
// finite need no branch: their area is NaN, so the union is NaN, and a union that is not positive gives IoU 0. The
// limit of the plain IoU is the number of the processor's ports, not division or memory. So it has a tile of its own
// that saves instructions: boxes that overlap nothing are replaced beforehand, and corners are compared as integers,
// which more ports can do.
//
// Sources: IoU as torchvision computes it; GIoU arXiv:1902.09630; DIoU and CIoU arXiv:1911.08287.
#pragma once

#include "geometry/box.h"
#include "support/math.h"
#include "support/order.h"
#include "support/simd.h"
#include "tasks.h"

namespace fastssd::FASTSSD_ISA {

// -1, as for a box infinitely far away, where one of the two is not finite. `areas` is the sum of the two areas, which
// is NaN exactly there.
template <typename T>
T far_unless_finite(T areas, T value) {
    return areas == areas ? value : T(-1);
}

// The measures. `trait` is what a measure needs of a single box, computed once and not for every pair.

struct PlainIou {
    template <typename T>
    static T trait(const Box<T>&) {
        return T(0);
    }

    template <typename T>
    static T measure(const Box<T>& a, const Box<T>& b, T, T) {
        return iou_of(a, b);
    }
};

struct GeneralizedIou : PlainIou {
    template <typename T>
    static T measure(const Box<T>& a, const Box<T>& b, T, T) {
        const T inter = intersection(a, b);
        const T areas = a.area + b.area;
        const T sum = areas - inter;
        const T iou = sum > T(0) ? inter / sum : T(0);
        const T hull = positive_part(larger(a.x2, b.x2) - smaller(a.x1, b.x1)) *
                       positive_part(larger(a.y2, b.y2) - smaller(a.y1, b.y1));
        const T penalty = (hull - sum) / hull;
        return far_unless_finite(areas, iou - (hull > T(0) && hull < kInf<T> ? penalty : T(0)));
    }
};

template <typename T>
constexpr T kEps = T(1e-7);  // as in the papers' code: keeps a pair of equal points finite

struct DistanceIou : PlainIou {
    template <typename T>
    static T measure(const Box<T>& a, const Box<T>& b, T, T) {
        const T hull_width = positive_part(larger(a.x2, b.x2) - smaller(a.x1, b.x1));
        const T hull_height = positive_part(larger(a.y2, b.y2) - smaller(a.y1, b.y1));
        const T diagonal = hull_width * hull_width + hull_height * hull_height + kEps<T>;
        const T dx = (a.x1 + a.x2) / 2 - (b.x1 + b.x2) / 2;
        const T dy = (a.y1 + a.y2) / 2 - (b.y1 + b.y2) / 2;
        const T penalty = (dx * dx + dy * dy) / diagonal;
        return far_unless_finite(a.area + b.area, iou_of(a, b) - (penalty < kInf<T> ? penalty : T(0)));
    }
};

struct CompleteIou {
    // The angle of the diagonal.
    template <typename T>
    static T trait(const Box<T>& box) {
        return std::atan2(positive_part(box.x2 - box.x1), positive_part(box.y2 - box.y1));
    }

    template <typename T>
    static T measure(const Box<T>& a, const Box<T>& b, T angle_a, T angle_b) {
        constexpr T scale = T(0.40528473456935108577551785283891);  // 4 / pi^2
        const T turn = angle_a - angle_b;
        const T v = scale * (turn * turn);
        const T alpha = v / (T(1) - iou_of(a, b) + v + kEps<T>);
        return far_unless_finite(a.area + b.area, DistanceIou::measure(a, b, T(0), T(0)) - alpha * v);
    }
};

// Some columns of boxes2. Many, so that rows of the output are written in long stretches (a jump to another page every
// 1 kB costs more than all arithmetic), but few enough for the first-level cache.
template <typename T>
struct TileColumns {
    static constexpr int64_t kSize = 4096 / static_cast<int64_t>(sizeof(T));
    static constexpr int64_t kLanes = kVectorBytes / sizeof(T);

    T block[BoxColumns<T>::kColumns * kSize];
    int64_t padded;  // the size rounded up to whole vectors, which is what measure() writes

    static int64_t whole_vectors(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }
    int64_t size() const { return padded / kLanes * kLanes; }  // tells the compiler that nothing is left over
    BoxColumns<T> columns() { return BoxColumns<T>(block, kSize); }
};

template <typename Measure, typename T>
class Tile : public TileColumns<T> {
  public:
    void load(const T* boxes, int64_t size) {
        constexpr T kNothing[4] = {};
        this->padded = this->whole_vectors(size);
        BoxColumns<T> columns = this->columns();
        for (int64_t j = 0; j < size; ++j) columns.set(j, boxes + 4 * j);
        for (int64_t j = size; j < this->padded; ++j) columns.set(j, kNothing);
        for (int64_t j = 0; j < this->padded; ++j) traits_[j] = Measure::trait(Box<T>(columns, j));
    }

    void measure(const T* box, T* FASTSSD_RESTRICT to) {
        const BoxColumns<T> columns = this->columns();
        const Box<T> a(box);
        const T trait = Measure::trait(a);
        const int64_t size = this->size();
        for (int64_t j = 0; j < size; ++j) to[j] = Measure::measure(a, Box<T>(columns, j), trait, traits_[j]);
    }

  private:
    T traits_[TileColumns<T>::kSize];
};

template <typename T>
class Tile<PlainIou, T> : public TileColumns<T> {
  public:
    void load(const T* boxes, int64_t size) {
        constexpr T kNothing[4] = {};
        this->padded = this->whole_vectors(size);
        BoxColumns<T> columns = this->columns();
        bool negative = false;
        for (int64_t j = 0; j < this->padded; ++j) {
            const Box<T> box = regular(j < size ? boxes + 4 * j : kNothing);
            columns.x1[j] = box.x1, columns.y1[j] = box.y1, columns.x2[j] = box.x2, columns.y2[j] = box.y2;
            columns.area[j] = box.area;
            negative |= (box.x1 < T(0)) | (box.y1 < T(0));
        }
        negative_ = negative;
    }

    void measure(const T* box, T* to) {
        const Box<T> a = regular(box);
        if (kIntegersPay<T> && !(negative_ & ((a.x1 < T(0)) | (a.y1 < T(0))))) {
            run<true>(a, to);
        } else {
            run<false>(a, to);
        }
    }

  private:
    // The box; or a box without extent and of area 1 where every IoU is 0 (the area is 0, infinite or NaN). So neither
    // the intersection nor the quotient of a pair is NaN or needs a check. Never holds -0.
    static FASTSSD_INLINE Box<T> regular(const T* from) {
        Box<T> box(from);
        const bool counts = (box.area > T(0)) & (box.area < kInf<T>);
        box.x1 = counts ? box.x1 + T(0) : T(0), box.y1 = counts ? box.y1 + T(0) : T(0);
        box.x2 = counts ? box.x2 + T(0) : T(0), box.y2 = counts ? box.y2 + T(0) : T(0);
        box.area = counts ? box.area : T(1);
        return box;
    }

    template <bool kAsIntegers>
    void run(const Box<T>& a, T* FASTSSD_RESTRICT to) {
        using Order = OrderOf<T, kAsIntegers>;
        const BoxColumns<T> b = this->columns();
        const int64_t size = this->size();
        for (int64_t j = 0; j < size; ++j) {
            const T width = Order::smaller(a.x2, b.x2[j]) - Order::larger(a.x1, b.x1[j]);
            const T height = Order::smaller(a.y2, b.y2[j]) - Order::larger(a.y1, b.y1[j]);
            const T inter = Order::larger(width, T(0)) * Order::larger(height, T(0));
            to[j] = inter / (a.area + b.area[j] - inter);
        }
    }

    bool negative_;
};

template <typename Measure, typename T>
void pairwise(const PairwiseTask<T>& task, int64_t begin, int64_t end) {
    const T *const boxes1 = task.boxes1, *const boxes2 = task.boxes2;
    T* const out = task.out;
    const int64_t n = task.n, m = task.m;
    Tile<Measure, T> tile;
    for (int64_t row = begin; row < end;) {
        const int64_t batch = row / n;
        const int64_t stop = smaller((batch + 1) * n, end);
        for (int64_t start = 0; start < m; start += tile.kSize) {
            const int64_t size = smaller(tile.kSize, m - start);
            tile.load(boxes2 + 4 * (batch * m + start), size);
            for (int64_t i = row; i < stop; ++i) {
                // Whole vectors are written. What is too much may land in the rows that follow, which are written
                // later, but not in columns of another tile: there, and at the end, it is cut off.
                T* const to = out + i * m + start;
                const T* const room = size < m ? to + size : out + end * m;
                if (room - to >= tile.padded) {
                    tile.measure(boxes1 + 4 * i, to);
                } else {
                    T whole[tile.kSize];
                    tile.measure(boxes1 + 4 * i, whole);
                    for (int64_t j = 0; j < size; ++j) to[j] = whole[j];
                }
            }
        }
        row = stop;
    }
}

template <typename T>
void box_iou(const PairwiseTask<T>& task, int64_t begin, int64_t end) {
    pairwise<PlainIou>(task, begin, end);
}
template <typename T>
void generalized_box_iou(const PairwiseTask<T>& task, int64_t begin, int64_t end) {
    pairwise<GeneralizedIou>(task, begin, end);
}
template <typename T>
void distance_box_iou(const PairwiseTask<T>& task, int64_t begin, int64_t end) {
    pairwise<DistanceIou>(task, begin, end);
}
template <typename T>
void complete_box_iou(const PairwiseTask<T>& task, int64_t begin, int64_t end) {
    pairwise<CompleteIou>(task, begin, end);
}

template <typename T>
void paired_box_iou(const PairedTask<T>& task, int64_t begin, int64_t end) {
    const T *const boxes1 = task.boxes1, *const boxes2 = task.boxes2;
    T* const out = task.out;
    for (int64_t i = begin; i < end; ++i) out[i] = iou_of(Box<T>(boxes1 + 4 * i), Box<T>(boxes2 + 4 * i));
}

}  // namespace fastssd::FASTSSD_ISA
