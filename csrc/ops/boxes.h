// Areas, formats, clipping, removal of small boxes: one pass over the boxes each.
#pragma once

#include "geometry/box.h"
#include "support/math.h"
#include "tasks.h"

namespace fastssd::FASTSSD_ISA {

template <typename T>
void box_area(const BoxAreaTask<T>& task, int64_t begin, int64_t end) {
    const T* const boxes = task.boxes;
    T* const out = task.out;
    for (int64_t i = begin; i < end; ++i) out[i] = area_of(boxes + 4 * i);
}

template <typename T>
void box_convert(const BoxConvertTask<T>& task, int64_t begin, int64_t end) {
    const T* const boxes = task.boxes;
    T* const out = task.out;
    const BoxFormat in_fmt = task.in_fmt, out_fmt = task.out_fmt;
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

template <typename T>
void clip_boxes_to_image(const ClipBoxesToImageTask<T>& task, int64_t begin, int64_t end) {
    const T* const boxes = task.boxes;
    T* const out = task.out;
    const T height = static_cast<T>(task.height), width = static_cast<T>(task.width);
    for (int64_t i = 4 * begin; i < 4 * end; i += 2) {
        out[i] = clip(boxes[i], width);
        out[i + 1] = clip(boxes[i + 1], height);
    }
}

template <typename T>
int64_t remove_small_boxes(const RemoveSmallBoxesTask<T>& task) {
    const T* const boxes = task.boxes;
    int64_t* const keep = task.keep;
    const int64_t n = task.n;
    const T limit = round_up(T(), task.min_size);
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
        const T* const box = boxes + 4 * i;
        keep[kept] = i;
        kept += static_cast<int64_t>((box[2] - box[0] >= limit) & (box[3] - box[1] >= limit));
    }
    return kept;
}

}  // namespace fastssd::FASTSSD_ISA
