#pragma once

#include <algorithm>
#include <cstdint>

#include "bindings/direct/operand.h"
#include "bindings/iou.h"

namespace fastssd {

// Whether the memory of `count` numbers at `out` and of `rows` boxes overlaps.
template <typename T>
bool overlap(const T* out, int64_t count, const T* boxes, int64_t rows) {
    const auto address = [](const T* p) { return reinterpret_cast<std::uintptr_t>(p); };
    return address(out) < address(boxes + 4 * rows) && address(boxes) < address(out + count);
}

template <typename Measure>
py::object direct_pairwise(py::handle boxes1_, py::handle boxes2_, py::handle out_) {
    const Operand boxes1(boxes1_), boxes2(boxes2_);
    const int axes = boxes1.axes();
    if (!boxes1.is_float() || boxes2.type() != boxes1.type() || axes < 2 || !boxes2.goes_with(boxes1, 2) ||
        boxes1.size(-1) != 4 || boxes2.size(-1) != 4) {
        return py::none();
    }
    const int64_t n = boxes1.size(-2), m = boxes2.size(-2);
    Py_intptr_t shape[Operand::kMaxAxes];
    std::copy(boxes1.shape(), boxes1.shape() + axes, shape);
    shape[axes - 1] = m;
    const int64_t batch = boxes1.rows(2);
    return with_float(boxes1, [&](auto zero) -> py::object {
        using T = decltype(zero);
        const T *const from1 = boxes1.data<T>(), *const from2 = boxes2.data<T>();
        if (out_.is_none()) {
            py::object out = Operand::fresh<T>(axes, shape);
            launch_pairwise<Measure, T>({from1, from2, n, m, Operand::memory<T>(out)}, batch);
            return boxes1.like(std::move(out));
        }
        const Operand out(out_, true);
        if (out.type() != boxes1.type() || out.tensor() != boxes1.tensor() || out.axes() != axes ||
            !std::equal(shape, shape + axes, out.shape()) || overlap(out.data<T>(), batch * n * m, from1, batch * n) ||
            overlap(out.data<T>(), batch * n * m, from2, batch * m)) {
            return py::none();
        }
        launch_pairwise<Measure, T>({from1, from2, n, m, out.data<T>()}, batch);
        return py::reinterpret_borrow<py::object>(out_);
    });
}

inline py::object direct_paired_box_iou(py::handle boxes1_, py::handle boxes2_) {
    const Operand boxes1(boxes1_), boxes2(boxes2_);
    const int axes = boxes1.axes();
    if (!boxes1.is_float() || boxes2.type() != boxes1.type() || axes < 1 || !boxes2.goes_with(boxes1, 0) ||
        boxes1.size(-1) != 4) {
        return py::none();
    }
    return with_float(boxes1, [&](auto zero) {
        using T = decltype(zero);
        py::object out = Operand::fresh<T>(axes - 1, boxes1.shape());
        launch_paired<T>({boxes1.data<T>(), boxes2.data<T>(), Operand::memory<T>(out)}, boxes1.rows(1));
        return boxes1.like(std::move(out));
    });
}

inline void register_direct_iou(py::module_& m) {
    m.def("direct_box_iou", direct_pairwise<BoxIou>, "boxes1"_a, "boxes2"_a, "out"_a);
    m.def("direct_generalized_box_iou", direct_pairwise<GeneralizedBoxIou>, "boxes1"_a, "boxes2"_a, "out"_a);
    m.def("direct_distance_box_iou", direct_pairwise<DistanceBoxIou>, "boxes1"_a, "boxes2"_a, "out"_a);
    m.def("direct_complete_box_iou", direct_pairwise<CompleteBoxIou>, "boxes1"_a, "boxes2"_a, "out"_a);
    m.def("direct_paired_box_iou", direct_paired_box_iou, "boxes1"_a, "boxes2"_a);
}

}  // namespace fastssd
