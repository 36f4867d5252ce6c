// Boxes as deltas from anchors and back (SSD paper, equation 2), each box in one step.
#pragma once

#include "support/exp.h"
#include "support/math.h"
#include "tasks.h"

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

// One axis of a box. On numbers rather than on boxes, so that a loop over columns vectorises.
template <typename T>
FASTSSD_INLINE void decode(T center_delta, T size_delta, T anchor_low, T anchor_high, T center_variance,
                           T size_variance, T& low, T& high) {
    const T anchor_size = anchor_high - anchor_low;
    const T center = center_delta * center_variance * anchor_size + (anchor_low + anchor_high) / 2;
    const T half = exp_of(size_delta * size_variance) * anchor_size / 2;
    low = center - half;
    high = center + half;
}

template <typename T>
void decode(const T* deltas, const T* anchor_xyxy, T center_variance, T size_variance, T* box) {
    for (int axis = 0; axis < 2; ++axis) {
        decode(deltas[axis], deltas[2 + axis], anchor_xyxy[axis], anchor_xyxy[2 + axis], center_variance, size_variance,
               box[axis], box[2 + axis]);
    }
}

template <typename T>
void encode_boxes(const CodingTask<T>& task, int64_t begin, int64_t end) {
    const T *const boxes = task.boxes_or_deltas, *const anchors = task.anchors;
    T* const out = task.out;
    const int64_t num_anchors = task.num_anchors;
    const T center = static_cast<T>(task.variances.center), size = static_cast<T>(task.variances.size);
    for (int64_t i = begin; i < end; ++i) {
        encode(boxes + 4 * i, anchors + 4 * (i % num_anchors), center, size, out + 4 * i);
    }
}

template <typename T>
void decode_boxes(const CodingTask<T>& task, int64_t begin, int64_t end) {
    const T *const deltas = task.boxes_or_deltas, *const anchors = task.anchors;
    T* const out = task.out;
    const int64_t num_anchors = task.num_anchors;
    const T center = static_cast<T>(task.variances.center), size = static_cast<T>(task.variances.size);
    for (int64_t i = begin; i < end; ++i) {
        decode(deltas + 4 * i, anchors + 4 * (i % num_anchors), center, size, out + 4 * i);
    }
}

}  // namespace fastssd::FASTSSD_ISA
