#pragma once

#include <algorithm>
#include <cstdint>

#include "bindings/array.h"
#include "bindings/launch.h"

namespace fastssd {

struct BoxIou {
    static constexpr double kNsPerRow = 3, kNsPerPair = 0.27;  // of float
    template <typename T>
    static auto of(const Kernels<T>& k) {
        return k.box_iou;
    }
};
struct GeneralizedBoxIou {
    static constexpr double kNsPerRow = 3, kNsPerPair = 0.6;
    template <typename T>
    static auto of(const Kernels<T>& k) {
        return k.generalized_box_iou;
    }
};
struct DistanceBoxIou {
    static constexpr double kNsPerRow = 3, kNsPerPair = 0.75;
    template <typename T>
    static auto of(const Kernels<T>& k) {
        return k.distance_box_iou;
    }
};
struct CompleteBoxIou {
    static constexpr double kNsPerRow = 45, kNsPerPair = 1.1;
    template <typename T>
    static auto of(const Kernels<T>& k) {
        return k.complete_box_iou;
    }
};

template <typename Measure, typename T>
void launch_pairwise(const T* boxes1, const T* boxes2, int64_t batch, int64_t n, int64_t m, T* out) {
    constexpr double scale = sizeof(T) / sizeof(float);
    launch(batch * n, scale * (Measure::kNsPerRow + static_cast<double>(m) * Measure::kNsPerPair),
           [&](int64_t begin, int64_t end) { Measure::of(kernels->of(T()))(boxes1, boxes2, n, m, begin, end, out); });
}

template <typename Measure>
void pairwise(py::handle boxes1_, py::handle boxes2_, py::handle out_) {
    const Array boxes1 = input("boxes1", boxes1_, {kAny, kAny, 4});
    const int64_t batch = boxes1.size(0), n = boxes1.size(1);
    const Array boxes2 = input("boxes2", boxes2_, {batch, kAny, 4});
    const int64_t m = boxes2.size(1);
    const Array out = output("out", out_, {batch, n, m});
    with_float(boxes1, [&](auto zero) {
        using T = decltype(zero);
        launch_pairwise<Measure>(boxes1.as<T>(), boxes2.as<T>(), batch, n, m, out.as<T>());
    });
}

// Whether writing `count` numbers to `to` changes one of the `rows` boxes.
template <typename T>
bool overlap(const T* to, int64_t count, const T* boxes, int64_t rows) {
    const auto address = [](const T* p) { return reinterpret_cast<std::uintptr_t>(p); };
    return address(to) < address(boxes + 4 * rows) && address(boxes) < address(to + count);
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
            launch_pairwise<Measure>(from1, from2, batch, n, m, Operand::memory<T>(out));
            return boxes1.like(std::move(out));
        }
        const Operand out(out_, true);
        if (out.type() != boxes1.type() || out.tensor() != boxes1.tensor() || out.axes() != axes ||
            !std::equal(shape, shape + axes, out.shape()) || overlap(out.data<T>(), batch * n * m, from1, batch * n) ||
            overlap(out.data<T>(), batch * n * m, from2, batch * m)) {
            return py::none();
        }
        launch_pairwise<Measure>(from1, from2, batch, n, m, out.data<T>());
        return py::reinterpret_borrow<py::object>(out_);
    });
}

template <typename T>
void launch_paired(const T* boxes1, const T* boxes2, int64_t n, T* out) {
    launch(n, 1.5,
           [&](int64_t begin, int64_t end) { kernels->of(T()).paired_box_iou(boxes1, boxes2, begin, end, out); });
}

inline void paired_box_iou(py::handle boxes1_, py::handle boxes2_, py::handle out_) {
    const Array boxes1 = input("boxes1", boxes1_, {kAny, 4});
    const int64_t n = boxes1.size(0);
    const Array boxes2 = input("boxes2", boxes2_, {n, 4}), out = output("out", out_, {n});
    with_float(boxes1, [&](auto zero) {
        using T = decltype(zero);
        launch_paired(boxes1.as<T>(), boxes2.as<T>(), n, out.as<T>());
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
        const int64_t n = boxes1.rows(1);
        launch_paired(boxes1.data<T>(), boxes2.data<T>(), n, Operand::memory<T>(out));
        return boxes1.like(std::move(out));
    });
}

}  // namespace fastssd
