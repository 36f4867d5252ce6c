#pragma once

#include <limits>

#include "bindings/coding.h"
#include "bindings/direct/operand.h"
#include "plan_cache.h"

namespace fastssd {

// (center, size), if they are two plain floats that the coder can use.
struct DirectVariances {
    bool usable = false;
    Variances value{};

    explicit DirectVariances(py::handle variances) {
        if (!PyTuple_CheckExact(variances.ptr()) || PyTuple_GET_SIZE(variances.ptr()) != 2) return;
        PyObject *const center = PyTuple_GET_ITEM(variances.ptr(), 0), *const size =
                                                                           PyTuple_GET_ITEM(variances.ptr(), 1);
        if (!PyFloat_CheckExact(center) || !PyFloat_CheckExact(size)) return;
        value = {PyFloat_AS_DOUBLE(center), PyFloat_AS_DOUBLE(size)};
        const auto fits = [](double x) {
            return x >= static_cast<double>(std::numeric_limits<float>::min()) &&
                   x <= static_cast<double>(std::numeric_limits<float>::max());
        };
        usable = fits(value.center) && fits(value.size);
    }
};

// `least`: boxes and anchors of less than this quality are declined.
template <typename Direction>
py::object direct_coding(py::handle boxes_, py::handle anchors_, py::handle variances_, BoxQuality least) {
    const Operand boxes(boxes_), anchors(anchors_);
    const DirectVariances variances(variances_);
    if (!boxes.is_float() || anchors.type() != boxes.type() || anchors.tensor() != boxes.tensor() ||
        !variances.usable || boxes.axes() < 2 || anchors.axes() != 2 || boxes.size(-1) != 4 || anchors.size(1) != 4 ||
        boxes.size(-2) != anchors.size(0)) {
        return py::none();
    }
    return with_float(boxes, [&](auto zero) -> py::object {
        using T = decltype(zero);
        const T *const from = boxes.data<T>(), *const anchor_boxes = anchors.data<T>();
        const int64_t num_anchors = anchors.size(0), rows = boxes.rows(1);
        if (least > BoxQuality::any &&
            (quality_of(from, rows) < least || quality_of(anchor_boxes, num_anchors) < least)) {
            return py::none();
        }
        py::object out = Operand::fresh<T>(boxes.axes(), boxes.shape());
        launch_coding<Direction, T>({from, anchor_boxes, num_anchors, variances.value, Operand::memory<T>(out)}, rows);
        return boxes.like(std::move(out));
    });
}

inline py::object direct_encode_boxes(py::handle boxes, py::handle anchors, py::handle variances) {
    return direct_coding<Encode>(boxes, anchors, variances, BoxQuality::positive);
}
inline py::object direct_decode_boxes(py::handle deltas, py::handle anchors, py::handle variances) {
    return direct_coding<Decode>(deltas, anchors, variances, BoxQuality::any);
}

inline void register_direct_coding(py::module_& m) {
    m.def("direct_encode_boxes", direct_encode_boxes, "boxes"_a, "anchors"_a, "variances"_a);
    m.def("direct_decode_boxes", direct_decode_boxes, "deltas"_a, "anchors"_a, "variances"_a);
}

}  // namespace fastssd
