// IoU of every pair and its relatives. boxes2 is turned into columns, a tile at a time that stays in the first-level
// cache; each row of boxes1 then runs over the tile in one vectorised loop. Non-finite boxes need no branch: their area
// is NaN, which makes the union NaN, and a union that is not positive gives IoU 0.
//
// Sources: IoU as torchvision computes it; GIoU arXiv:1902.09630; DIoU and CIoU arXiv:1911.08287.
#pragma once

#include "dispatch.h"
#include "ops/boxes.h"
#include "support/math.h"

namespace fastssd::FASTSSD_ISA {

template <typename T>
struct Box {
    T x1, y1, x2, y2, area;

    FASTSSD_INLINE explicit Box(const T* box) : x1(box[0]), y1(box[1]), x2(box[2]), y2(box[3]), area(area_of(box)) {}
    FASTSSD_INLINE Box(const BoxColumns<T>& boxes, int64_t i)
        : x1(boxes.x1[i]), y1(boxes.y1[i]), x2(boxes.x2[i]), y2(boxes.y2[i]), area(boxes.area[i]) {}
};

template <typename T>
FASTSSD_INLINE T intersection(const Box<T>& a, const Box<T>& b) {
    return positive_part(smaller(a.x2, b.x2) - larger(a.x1, b.x1)) *
           positive_part(smaller(a.y2, b.y2) - larger(a.y1, b.y1));
}

template <typename T>
FASTSSD_INLINE T iou_of(const Box<T>& a, const Box<T>& b) {
    const T inter = intersection(a, b);
    const T sum = a.area + b.area - inter;
    return sum > T(0) ? inter / sum : T(0);
}

struct PlainIou {
    template <typename T>
    static T measure(const Box<T>& a, const Box<T>& b) {
        return iou_of(a, b);
    }
};

// -1, a box infinitely far away, where either is not finite.
template <typename T>
T far_unless_finite(const Box<T>& a, const Box<T>& b, T value) {
    const T finite = nan_unless_finite(a.x1, a.y1, a.x2, a.y2) + nan_unless_finite(b.x1, b.y1, b.x2, b.y2);
    return finite == T(0) ? value : T(-1);
}

struct GeneralizedIou {
    template <typename T>
    static T measure(const Box<T>& a, const Box<T>& b) {
        const T inter = intersection(a, b);
        const T sum = a.area + b.area - inter;
        const T iou = sum > T(0) ? inter / sum : T(0);
        const T hull = positive_part(larger(a.x2, b.x2) - smaller(a.x1, b.x1)) *
                       positive_part(larger(a.y2, b.y2) - smaller(a.y1, b.y1));
        const T penalty = hull > T(0) && is_finite(hull) ? (hull - sum) / hull : T(0);
        return far_unless_finite(a, b, iou - penalty);
    }
};

template <typename T>
constexpr T kEps = T(1e-7);  // as in the papers' code: keeps a pair of equal points finite

struct DistanceIou {
    template <typename T>
    static T measure(const Box<T>& a, const Box<T>& b) {
        const T hull_width = positive_part(larger(a.x2, b.x2) - smaller(a.x1, b.x1));
        const T hull_height = positive_part(larger(a.y2, b.y2) - smaller(a.y1, b.y1));
        const T diagonal = hull_width * hull_width + hull_height * hull_height + kEps<T>;
        const T dx = (a.x1 + a.x2) / 2 - (b.x1 + b.x2) / 2;
        const T dy = (a.y1 + a.y2) / 2 - (b.y1 + b.y2) / 2;
        const T penalty = (dx * dx + dy * dy) / diagonal;
        return far_unless_finite(a, b, iou_of(a, b) - (is_finite(penalty) ? penalty : T(0)));
    }
};

struct CompleteIou {
    template <typename T>
    static T angle(const Box<T>& box) {
        return std::atan2(positive_part(box.x2 - box.x1), positive_part(box.y2 - box.y1));
    }

    template <typename T>
    static T measure(const Box<T>& a, const Box<T>& b) {
        constexpr T scale = T(0.40528473456935108577551785283891);  // 4 / pi^2
        const T turn = angle(a) - angle(b);
        const T v = scale * (turn * turn);
        const T alpha = v / (T(1) - iou_of(a, b) + v + kEps<T>);
        return far_unless_finite(a, b, DistanceIou::measure(a, b) - alpha * v);
    }
};

template <typename Measure, typename T>
void pairwise(const T* boxes1, const T* boxes2, int64_t n, int64_t m, int64_t begin, int64_t end, T* out) {
    constexpr int64_t kTile = 256;
    T block[BoxColumns<T>::kColumns * kTile];
    const BoxColumns<T> tile(block, kTile);

    for (int64_t row = begin; row < end;) {
        const int64_t batch = row / n;
        const int64_t stop = smaller((batch + 1) * n, end);
        for (int64_t start = 0; start < m; start += kTile) {
            const int64_t size = smaller(kTile, m - start);
            for (int64_t j = 0; j < size; ++j) {
                BoxColumns<T>(block, kTile).set(j, boxes2 + 4 * (batch * m + start + j));
            }
            for (int64_t i = row; i < stop; ++i) {
                const Box<T> box(boxes1 + 4 * i);
                T* FASTSSD_RESTRICT const to = out + i * m + start;
                for (int64_t j = 0; j < size; ++j) to[j] = Measure::measure(box, Box<T>(tile, j));
            }
        }
        row = stop;
    }
}

template <typename T>
void paired_box_iou(const T* boxes1, const T* boxes2, int64_t begin, int64_t end, T* out) {
    for (int64_t i = begin; i < end; ++i) out[i] = iou_of(Box<T>(boxes1 + 4 * i), Box<T>(boxes2 + 4 * i));
}

}  // namespace fastssd::FASTSSD_ISA
