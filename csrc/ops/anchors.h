// Anchors on a grid, cell-major: row, column, shape. Computed in double and rounded once, so that float32 anchors are
// the nearest to the true ones.
#pragma once

#include "geometry/box.h"
#include "tasks.h"

namespace fastssd::FASTSSD_ISA {

template <typename T>
void grid_anchors(const GridAnchorsTask<T>& task, int64_t begin, int64_t end) {
    const int64_t height = task.height, width = task.width, num_shapes = task.num_shapes;
    const double* const shapes = task.shapes;
    const double* const scale = task.scale;
    const bool clips = task.clip;
    const auto place = [clips](double x) { return clips ? clip(x, 1.0) : x; };
    T* to = task.out + 4 * begin * width * num_shapes;
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
