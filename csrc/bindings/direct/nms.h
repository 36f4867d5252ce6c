#pragma once

#include <algorithm>
#include <memory>

#include "bindings/direct/operand.h"
#include "bindings/nms.h"

namespace fastssd {

// launch(T(), boxes, scores, n, threshold, keep) returns how many it kept. `idxs` is null where there are no groups.
template <typename Launch>
py::object direct_suppress(py::handle boxes_, py::handle scores_, const Operand* idxs, py::handle iou_threshold,
                           py::handle nonfinite, const Launch& launch) {
    const Operand boxes(boxes_), scores(scores_);
    if (!boxes.is_float() || scores.type() != boxes.type() || scores.tensor() != boxes.tensor() || boxes.axes() != 2 ||
        boxes.size(1) != 4 || scores.axes() != 1 || scores.size(0) != boxes.size(0) || boxes.size(0) > UINT32_MAX ||
        !PyFloat_CheckExact(iou_threshold.ptr()) || !PyUnicode_Check(nonfinite.ptr()) ||
        PyUnicode_CompareWithASCIIString(nonfinite.ptr(), "drop") != 0) {
        return py::none();
    }
    const double threshold = PyFloat_AS_DOUBLE(iou_threshold.ptr());
    if (!(threshold >= 0 && threshold <= 1)) return py::none();
    const int64_t n = boxes.size(0);
    if (idxs != nullptr && (idxs->type() != Operand::Type::int64 || idxs->tensor() != boxes.tensor() ||
                            idxs->axes() != 1 || idxs->size(0) != n)) {
        return py::none();
    }
    int64_t few[64];
    const std::unique_ptr<int64_t[]> many(n > 64 ? new int64_t[static_cast<std::size_t>(n)] : nullptr);
    int64_t* const keep = many ? many.get() : few;
    const Py_intptr_t kept = with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        return launch(zero, boxes.data<T>(), scores.data<T>(), n, threshold, keep);
    });
    py::object out = Operand::fresh<int64_t>(1, &kept);
    std::copy(keep, keep + kept, Operand::memory<int64_t>(out));
    return boxes.like(std::move(out));
}

inline py::object direct_nms(py::handle boxes, py::handle scores, py::handle iou_threshold, py::handle nonfinite) {
    return direct_suppress(boxes, scores, nullptr, iou_threshold, nonfinite,
                           [](auto zero, auto* from, auto* values, int64_t n, double threshold, int64_t* keep) {
                               return launch_nms(kernels->of(zero).nms,
                                                 NmsTask<decltype(zero)>{from, values, n, threshold, keep});
                           });
}

inline py::object direct_batched_nms(py::handle boxes, py::handle scores, py::handle idxs_, py::handle iou_threshold,
                                     py::handle nonfinite) {
    const Operand idxs(idxs_);
    return direct_suppress(boxes, scores, &idxs, iou_threshold, nonfinite,
                           [&](auto zero, auto* from, auto* values, int64_t n, double threshold, int64_t* keep) {
                               const BatchedNmsTask<decltype(zero)> task{from, values,    idxs.data<int64_t>(),
                                                                         n,    threshold, keep};
                               return launch_nms(kernels->of(zero).batched_nms, task);
                           });
}

inline void register_direct_nms(py::module_& m) {
    m.def("direct_nms", direct_nms, "boxes"_a, "scores"_a, "iou_threshold"_a, "nonfinite"_a);
    m.def("direct_batched_nms", direct_batched_nms, "boxes"_a, "scores"_a, "idxs"_a, "iou_threshold"_a, "nonfinite"_a);
}

}  // namespace fastssd
