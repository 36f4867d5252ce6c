#pragma once

#include "bindings/array.h"
#include "bindings/launch.h"

namespace fastssd {

inline void grid_anchors(int64_t height, int64_t width, py::handle shapes_, py::handle scale_, bool clip,
                         py::handle out_) {
    const Array shapes = input("shapes", shapes_, {kAny, 2}), scale = input("scale", scale_, {2});
    const int64_t num_shapes = shapes.size(0);
    if (height < 0 || width < 0) throw py::value_error("height, width: expected no negative number");
    const int64_t row = product(width, num_shapes);
    const Array out = output("out", out_, {product(height, row), 4});
    if (out.size(0) == 0) return;
    with_float(out, [&](auto zero) {
        using T = decltype(zero);
        const GridAnchorsTask<T> task{height, width,      shapes.as<double>(), num_shapes, scale.as<double>(),
                                      clip,   out.as<T>()};
        launch(kernels->of(zero).grid_anchors, task, height, static_cast<double>(row) * 4);
    });
}

inline void register_anchors(py::module_& m) {
    m.def("grid_anchors", grid_anchors, "height"_a, "width"_a, "shapes"_a, "scale"_a, "clip"_a, "out"_a);
}

}  // namespace fastssd
