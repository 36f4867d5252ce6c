#pragma once

#include "bindings/array.h"
#include "bindings/launch.h"

namespace fastssd {

inline void grid_anchors(int64_t height, int64_t width, py::handle shapes_, py::handle scale_, bool clip,
                         py::handle out_) {
    const Array shapes = input("shapes", shapes_, {kAny, 2});
    const int64_t num_shapes = shapes.size(0);
    if (height < 0 || width < 0) throw py::value_error("height, width: expected no negative number");
    const double* const scale = input("scale", scale_, {2}).as<double>();
    const double* const sizes = shapes.as<double>();
    const int64_t row = product(width, num_shapes);
    const Array out = output("out", out_, {product(height, row), 4});
    if (out.size(0) == 0) return;
    with_float(out, [&](auto zero) {
        using T = decltype(zero);
        T* const to = out.as<T>();
        launch(height, static_cast<double>(row) * 4, [&](int64_t begin, int64_t end) {
            kernels->of(zero).grid_anchors(height, width, sizes, num_shapes, scale, clip, begin, end, to);
        });
    });
}

}  // namespace fastssd
