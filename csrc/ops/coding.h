// Boxes as deltas from anchors and back (SSD paper, equation 2), each box in one step.
#pragma once

#include "dispatch.h"
#include "support/math.h"

namespace fastssd::FASTSSD_ISA {

template <typename T>
struct CenterBox {
    T cx, cy, width, height;

    explicit CenterBox(const T* box)
        : cx((box[0] + box[2]) / 2), cy((box[1] + box[3]) / 2), width(box[2] - box[0]), height(box[3] - box[1]) {}
};

template <typename T>
void encode(const T* box_xyxy, const T* anchor_xyxy, T center_variance, T size_variance, T* deltas) {
    const CenterBox<T> box(box_xyxy), anchor(anchor_xyxy);
    deltas[0] = (box.cx - anchor.cx) / anchor.width / center_variance;
    deltas[1] = (box.cy - anchor.cy) / anchor.height / center_variance;
    deltas[2] = std::log(box.width / anchor.width) / size_variance;
    deltas[3] = std::log(box.height / anchor.height) / size_variance;
}

template <typename T>
void decode(const T* deltas, const T* anchor_xyxy, T center_variance, T size_variance, T* box) {
    const CenterBox<T> anchor(anchor_xyxy);
    const T cx = deltas[0] * center_variance * anchor.width + anchor.cx;
    const T cy = deltas[1] * center_variance * anchor.height + anchor.cy;
    const T half_width = std::exp(deltas[2] * size_variance) * anchor.width / 2;
    const T half_height = std::exp(deltas[3] * size_variance) * anchor.height / 2;
    box[0] = cx - half_width;
    box[1] = cy - half_height;
    box[2] = cx + half_width;
    box[3] = cy + half_height;
}

template <typename T>
void encode_boxes(const T* boxes, const T* anchors, int64_t num_anchors, Variances variances, int64_t begin,
                  int64_t end, T* out) {
    const T center = static_cast<T>(variances.center), size = static_cast<T>(variances.size);
    for (int64_t i = begin; i < end; ++i) {
        encode(boxes + 4 * i, anchors + 4 * (i % num_anchors), center, size, out + 4 * i);
    }
}

template <typename T>
void decode_boxes(const T* deltas, const T* anchors, int64_t num_anchors, Variances variances, int64_t begin,
                  int64_t end, T* out) {
    const T center = static_cast<T>(variances.center), size = static_cast<T>(variances.size);
    for (int64_t i = begin; i < end; ++i) {
        decode(deltas + 4 * i, anchors + 4 * (i % num_anchors), center, size, out + 4 * i);
    }
}

}  // namespace fastssd::FASTSSD_ISA
