#pragma once

#include "bindings/array.h"
#include "bindings/launch.h"

namespace fastssd {

template <typename Choose>
void code(const char* name, py::handle boxes_, py::handle anchors_, Variances variances, py::handle out_,
          const Choose& choose) {
    const Array boxes = input(name, boxes_, {kAny, kAny, 4});
    const int64_t batch = boxes.size(0), num_anchors = boxes.size(1);
    const Array anchors = input("anchors", anchors_, {num_anchors, 4}),
                out = output("out", out_, {batch, num_anchors, 4});
    with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const T *const from = boxes.as<T>(), *const anchor_boxes = anchors.as<T>();
        T* const to = out.as<T>();
        launch(batch * num_anchors, 25, [&](int64_t begin, int64_t end) {
            choose(kernels->of(zero))(from, anchor_boxes, num_anchors, variances, begin, end, to);
        });
    });
}

inline void encode_boxes(py::handle boxes, py::handle anchors, double center_variance, double size_variance,
                         py::handle out) {
    code("boxes", boxes, anchors, {center_variance, size_variance}, out, [](const auto& k) { return k.encode_boxes; });
}
inline void decode_boxes(py::handle deltas, py::handle anchors, double center_variance, double size_variance,
                         py::handle out) {
    code("deltas", deltas, anchors, {center_variance, size_variance}, out,
         [](const auto& k) { return k.decode_boxes; });
}

}  // namespace fastssd
