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
        const T* const from = boxes.as<T>();
        T* const to = out.as<T>();
        launch(n, 2, [&](int64_t begin, int64_t end) { kernels->of(zero).box_area(from, begin, end, to); });
    });
}

inline void box_convert(py::handle boxes_, int in_fmt, int out_fmt, py::handle out_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    const Array out = output("out", out_, {n, 4});
    with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const T* const from = boxes.as<T>();
        T* const to = out.as<T>();
        launch(n, 3, [&](int64_t begin, int64_t end) {
            kernels->of(zero).box_convert(from, BoxFormat{in_fmt}, BoxFormat{out_fmt}, begin, end, to);
        });
    });
}

inline void clip_boxes_to_image(py::handle boxes_, double height, double width, py::handle out_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    const Array out = output("out", out_, {n, 4});
    with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const T* const from = boxes.as<T>();
        T* const to = out.as<T>();
        launch(n, 2, [&](int64_t begin, int64_t end) {
            kernels->of(zero).clip_boxes_to_image(from, static_cast<T>(height), static_cast<T>(width), begin, end, to);
        });
    });
}

inline int64_t remove_small_boxes(py::handle boxes_, double min_size, py::handle keep_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    int64_t* const keep = output("keep", keep_, {n}).as<int64_t>();
    int64_t kept = 0;
    with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const T* const from = boxes.as<T>();
        launch(static_cast<double>(n), [&] { kept = kernels->of(zero).remove_small_boxes(from, n, min_size, keep); });
    });
    return kept;
}

}  // namespace fastssd
