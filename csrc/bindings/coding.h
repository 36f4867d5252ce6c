#pragma once

#include "bindings/array.h"
#include "bindings/launch.h"
#include "plan_cache.h"

namespace fastssd {

// choose(Kernels<T>) is the kernel, `rows` how many boxes there are.
template <typename T, typename Choose>
void launch_code(const T* boxes, const T* anchors, int64_t rows, int64_t num_anchors, Variances variances, T* out,
                 const Choose& choose) {
    launch(rows, 25, [&](int64_t begin, int64_t end) {
        choose(kernels->of(T()))(boxes, anchors, num_anchors, variances, begin, end, out);
    });
}

template <typename Choose>
void code(const char* name, py::handle boxes_, py::handle anchors_, Variances variances, py::handle out_,
          const Choose& choose) {
    const Array boxes = input(name, boxes_, {kAny, kAny, 4});
    const int64_t batch = boxes.size(0), num_anchors = boxes.size(1);
    const Array anchors = input("anchors", anchors_, {num_anchors, 4}),
                out = output("out", out_, {batch, num_anchors, 4});
    with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        launch_code(boxes.as<T>(), anchors.as<T>(), batch * num_anchors, num_anchors, variances, out.as<T>(), choose);
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

// `check`: what is no box of positive extent cannot be encoded.
template <typename Choose>
py::object direct_code(py::handle boxes_, py::handle anchors_, py::handle variances_, bool check,
                       const Choose& choose) {
    const Operand boxes(boxes_), anchors(anchors_);
    const DirectVariances variances(variances_);
    if (!boxes.is_float() || anchors.type() != boxes.type() || anchors.tensor() != boxes.tensor() || !variances.good ||
        boxes.axes() < 2 || anchors.axes() != 2 || boxes.size(-1) != 4 || anchors.size(1) != 4 ||
        boxes.size(-2) != anchors.size(0)) {
        return py::none();
    }
    return with_float(boxes, [&](auto zero) -> py::object {
        using T = decltype(zero);
        const T *const from = boxes.data<T>(), *const anchor_boxes = anchors.data<T>();
        const int axes = boxes.axes();
        const int64_t num_anchors = anchors.size(0);
        const int64_t rows = boxes.rows(1);
        if (check && (look_at(from, rows) != Boxes::solid || look_at(anchor_boxes, num_anchors) != Boxes::solid)) {
            return py::none();
        }
        py::object out = Operand::fresh<T>(axes, boxes.shape());
        launch_code(from, anchor_boxes, rows, num_anchors, variances.value, Operand::memory<T>(out), choose);
        return boxes.like(std::move(out));
    });
}

inline py::object direct_encode_boxes(py::handle boxes, py::handle anchors, py::handle variances) {
    return direct_code(boxes, anchors, variances, true, [](const auto& k) { return k.encode_boxes; });
}
inline py::object direct_decode_boxes(py::handle deltas, py::handle anchors, py::handle variances) {
    return direct_code(deltas, anchors, variances, false, [](const auto& k) { return k.decode_boxes; });
}

}  // namespace fastssd
