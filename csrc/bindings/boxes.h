#pragma once

#include "bindings/array.h"
#include "bindings/launch.h"

namespace fastssd {

inline void box_area(py::handle boxes_, py::handle out_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    const Array out = output("out", out_, {n});
    with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        launch(kernels->of(zero).box_area, BoxAreaTask<T>{boxes.as<T>(), out.as<T>()}, n, 2);
    });
}

inline void box_convert(py::handle boxes_, int in_fmt, int out_fmt, py::handle out_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    const Array out = output("out", out_, {n, 4});
    with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const BoxConvertTask<T> task{boxes.as<T>(), BoxFormat{in_fmt}, BoxFormat{out_fmt}, out.as<T>()};
        launch(kernels->of(zero).box_convert, task, n, 3);
    });
}

inline void clip_boxes_to_image(py::handle boxes_, double height, double width, py::handle out_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    const Array out = output("out", out_, {n, 4});
    with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const ClipBoxesToImageTask<T> task{boxes.as<T>(), height, width, out.as<T>()};
        launch(kernels->of(zero).clip_boxes_to_image, task, n, 2);
    });
}

inline int64_t remove_small_boxes(py::handle boxes_, double min_size, py::handle keep_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    const Array keep = output("keep", keep_, {n});
    return with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const RemoveSmallBoxesTask<T> task{boxes.as<T>(), n, min_size, keep.as<int64_t>()};
        return launch(kernels->of(zero).remove_small_boxes, task, static_cast<double>(n));
    });
}

inline void register_boxes(py::module_& m) {
    m.def("box_area", box_area, "boxes"_a, "out"_a);
    m.def("box_convert", box_convert, "boxes"_a, "in_fmt"_a, "out_fmt"_a, "out"_a);
    m.def("clip_boxes_to_image", clip_boxes_to_image, "boxes"_a, "height"_a, "width"_a, "out"_a);
    m.def("remove_small_boxes", remove_small_boxes, "boxes"_a, "min_size"_a, "keep"_a);
}

}  // namespace fastssd
