#pragma once

#include "bindings/array.h"
#include "bindings/launch.h"

namespace fastssd {

// The kernels of every pair, and what they cost for float.
struct BoxIou {
    static constexpr double kNsPerRow = 3, kNsPerPair = 0.27;
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
void launch_pairwise(const PairwiseTask<T>& task, int64_t batch) {
    constexpr double scale = sizeof(T) / sizeof(float);
    launch(Measure::of(kernels->of(T())), task, batch * task.n,
           scale * (Measure::kNsPerRow + static_cast<double>(task.m) * Measure::kNsPerPair));
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
        launch_pairwise<Measure, T>({boxes1.as<T>(), boxes2.as<T>(), n, m, out.as<T>()}, batch);
    });
}

template <typename T>
void launch_paired(const PairedTask<T>& task, int64_t n) {
    launch(kernels->of(T()).paired_box_iou, task, n, 1.5);
}

inline void paired_box_iou(py::handle boxes1_, py::handle boxes2_, py::handle out_) {
    const Array boxes1 = input("boxes1", boxes1_, {kAny, 4});
    const int64_t n = boxes1.size(0);
    const Array boxes2 = input("boxes2", boxes2_, {n, 4}), out = output("out", out_, {n});
    with_float(boxes1, [&](auto zero) {
        using T = decltype(zero);
        launch_paired<T>({boxes1.as<T>(), boxes2.as<T>(), out.as<T>()}, n);
    });
}

inline void register_iou(py::module_& m) {
    m.def("box_iou", pairwise<BoxIou>, "boxes1"_a, "boxes2"_a, "out"_a);
    m.def("generalized_box_iou", pairwise<GeneralizedBoxIou>, "boxes1"_a, "boxes2"_a, "out"_a);
    m.def("distance_box_iou", pairwise<DistanceBoxIou>, "boxes1"_a, "boxes2"_a, "out"_a);
    m.def("complete_box_iou", pairwise<CompleteBoxIou>, "boxes1"_a, "boxes2"_a, "out"_a);
    m.def("paired_box_iou", paired_box_iou, "boxes1"_a, "boxes2"_a, "out"_a);
}

}  // namespace fastssd
