// A box with its area, boxes by coordinate, and the IoU of two boxes. The area carries what later steps need to know:
// it is 0 for a box without extent and NaN for a box that is not finite, so no IoU has to look at coordinates again.
#pragma once

#include "support/math.h"

namespace fastssd::FASTSSD_ISA {

template <typename T>
FASTSSD_INLINE T area_of(T x1, T y1, T x2, T y2) {
    const T width = x2 - x1, height = y2 - y1;
    const T area = width > T(0) && height > T(0) ? width * height : T(0);
    return area + nan_unless_finite(x1, y1, x2, y2);
}

template <typename T>
FASTSSD_INLINE T area_of(const T* box) {
    return area_of(box[0], box[1], box[2], box[3]);
}

// Boxes by coordinate, with their areas: what vectorised loops read. Views of one block of kColumns * n numbers.
template <typename T>
struct BoxColumns {
    static constexpr int64_t kColumns = 5;

    T *x1, *y1, *x2, *y2, *area;

    BoxColumns(T* block, int64_t n)
        : x1(block), y1(block + n), x2(block + 2 * n), y2(block + 3 * n), area(block + 4 * n) {}

    FASTSSD_INLINE void set(int64_t i, const T* box) {
        x1[i] = box[0];
        y1[i] = box[1];
        x2[i] = box[2];
        y2[i] = box[3];
        area[i] = area_of(box);
    }

    FASTSSD_INLINE void copy(int64_t to, int64_t from) {
        x1[to] = x1[from];
        y1[to] = y1[from];
        x2[to] = x2[from];
        y2[to] = y2[from];
        area[to] = area[from];
    }
};

template <typename T>
struct Box {
    T x1, y1, x2, y2, area;

    FASTSSD_INLINE Box(T left, T top, T right, T bottom, T its_area)
        : x1(left), y1(top), x2(right), y2(bottom), area(its_area) {}
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

// To [0, limit]; NaN stays NaN.
template <typename T>
FASTSSD_INLINE T clip(T x, T limit) {
    const T above = x < T(0) ? T(0) : x;
    return above > limit ? limit : above;
}

template <typename T>
FASTSSD_INLINE void clip(const T* box, T height, T width, T* out) {
    out[0] = clip(box[0], width), out[1] = clip(box[1], height);
    out[2] = clip(box[2], width), out[3] = clip(box[3], height);
}

}  // namespace fastssd::FASTSSD_ISA
