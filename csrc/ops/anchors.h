// Anchors on a grid, cell-major: row, column, shape. Computed in double and rounded once, so that float32 anchors are
// the nearest to the true ones.
#pragma once

#include "dispatch.h"
#include "ops/boxes.h"
#include "support/math.h"

namespace fastssd::FASTSSD_ISA {

template <typename T>
void grid_anchors(int64_t height, int64_t width, const double* shapes, int64_t num_shapes, const double* scale,
                  bool clip_to_image, int64_t begin, int64_t end, T* out) {
    const auto place = [clip_to_image](double x) { return clip_to_image ? clip(x, 1.0) : x; };
    T* to = out + 4 * begin * width * num_shapes;
    for (int64_t row = begin; row < end; ++row) {
        const double cy = (static_cast<double>(row) + 0.5) / static_cast<double>(height);
        for (int64_t column = 0; column < width; ++column) {
            const double cx = (static_cast<double>(column) + 0.5) / static_cast<double>(width);
            for (int64_t shape = 0; shape < num_shapes; ++shape, to += 4) {
                const double half_width = shapes[2 * shape] / 2, half_height = shapes[2 * shape + 1] / 2;
                to[0] = static_cast<T>(place(cx - half_width) * scale[1]);
                to[1] = static_cast<T>(place(cy - half_height) * scale[0]);
                to[2] = static_cast<T>(place(cx + half_width) * scale[1]);
                to[3] = static_cast<T>(place(cy + half_height) * scale[0]);
            }
        }
    }
}

}  // namespace fastssd::FASTSSD_ISA
