// Areas, formats, clipping, removal of small boxes. One pass over the boxes; the area carries what later steps need to
// know: 0 says degenerate and NaN says non-finite, so that no IoU has to look at coordinates again.
#pragma once

#include "dispatch.h"
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
void box_area(const T* boxes, int64_t begin, int64_t end, T* out) {
    for (int64_t i = begin; i < end; ++i) out[i] = area_of(boxes + 4 * i);
}

template <typename T>
void box_convert(const T* boxes, BoxFormat in_fmt, BoxFormat out_fmt, int64_t begin, int64_t end, T* out) {
    for (int64_t i = begin; i < end; ++i) {
        const T a = boxes[4 * i], b = boxes[4 * i + 1], c = boxes[4 * i + 2], d = boxes[4 * i + 3];
        T* const to = out + 4 * i;
        if (in_fmt == out_fmt) {
            to[0] = a, to[1] = b, to[2] = c, to[3] = d;
            continue;
        }
        T x1 = a, y1 = b, x2 = c, y2 = d;
        if (in_fmt == BoxFormat::xywh) {
            x2 = a + c, y2 = b + d;
        } else if (in_fmt == BoxFormat::cxcywh) {
            x1 = a - c / 2, y1 = b - d / 2, x2 = a + c / 2, y2 = b + d / 2;
        }
        if (out_fmt == BoxFormat::xyxy) {
            to[0] = x1, to[1] = y1, to[2] = x2, to[3] = y2;
        } else if (out_fmt == BoxFormat::xywh) {
            to[0] = x1, to[1] = y1, to[2] = x2 - x1, to[3] = y2 - y1;
        } else {
            to[0] = (x1 + x2) / 2, to[1] = (y1 + y2) / 2, to[2] = x2 - x1, to[3] = y2 - y1;
        }
    }
}

// To [0, limit]; NaN stays NaN.
template <typename T>
T clip(T x, T limit) {
    const T above = x < T(0) ? T(0) : x;
    return above > limit ? limit : above;
}

template <typename T>
void clip_boxes_to_image(const T* boxes, T height, T width, int64_t begin, int64_t end, T* out) {
    for (int64_t i = 4 * begin; i < 4 * end; i += 2) {
        out[i] = clip(boxes[i], width);
        out[i + 1] = clip(boxes[i + 1], height);
    }
}

template <typename T>
int64_t remove_small_boxes(const T* boxes, int64_t n, double min_size, int64_t* keep) {
    const T limit = round_up(T(), min_size);
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
        const T* const box = boxes + 4 * i;
        keep[kept] = i;
        kept += static_cast<int64_t>((box[2] - box[0] >= limit) & (box[3] - box[1] >= limit));
    }
    return kept;
}

}  // namespace fastssd::FASTSSD_ISA
