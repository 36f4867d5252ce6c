#pragma once

#include "bindings/array.h"
#include "bindings/launch.h"

namespace fastssd {

struct Encode {
    template <typename T>
    static auto of(const Kernels<T>& k) {
        return k.encode_boxes;
    }
};
struct Decode {
    template <typename T>
    static auto of(const Kernels<T>& k) {
        return k.decode_boxes;
    }
};

template <typename Direction, typename T>
void launch_coding(const CodingTask<T>& task, int64_t boxes) {
    launch(Direction::of(kernels->of(T())), task, boxes, 25);
}

template <typename Direction>
void code_boxes(const char* name, py::handle boxes_, py::handle anchors_, Variances variances, py::handle out_) {
    const Array boxes = input(name, boxes_, {kAny, kAny, 4});
    const int64_t batch = boxes.size(0), num_anchors = boxes.size(1);
    const Array anchors = input("anchors", anchors_, {num_anchors, 4}),
                out = output("out", out_, {batch, num_anchors, 4});
    with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        launch_coding<Direction, T>({boxes.as<T>(), anchors.as<T>(), num_anchors, variances, out.as<T>()},
                                    batch * num_anchors);
    });
}

inline void encode_boxes(py::handle boxes, py::handle anchors, double center_variance, double size_variance,
                         py::handle out) {
    code_boxes<Encode>("boxes", boxes, anchors, {center_variance, size_variance}, out);
}
inline void decode_boxes(py::handle deltas, py::handle anchors, double center_variance, double size_variance,
                         py::handle out) {
    code_boxes<Decode>("deltas", deltas, anchors, {center_variance, size_variance}, out);
}

inline void register_coding(py::module_& m) {
    m.def("encode_boxes", encode_boxes, "boxes"_a, "anchors"_a, "center_variance"_a, "size_variance"_a, "out"_a);
    m.def("decode_boxes", decode_boxes, "deltas"_a, "anchors"_a, "center_variance"_a, "size_variance"_a, "out"_a);
}

}  // namespace fastssd
