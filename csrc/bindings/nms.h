#pragma once

#include "bindings/array.h"
#include "bindings/launch.h"

namespace fastssd {

// Returns how many boxes the kernel kept.
template <typename Task>
int64_t launch_nms(int64_t (*kernel)(const Task&), const Task& task) {
    const double n = static_cast<double>(task.n);
    return launch(kernel, task, n * (50 + n / 4));
}

inline int64_t nms(py::handle boxes_, py::handle scores_, double iou_threshold, py::handle keep_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = check_count("boxes", boxes.size(0));
    const Array scores = input("scores", scores_, {n}), keep = output("keep", keep_, {n});
    return with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const NmsTask<T> task{boxes.as<T>(), scores.as<T>(), n, iou_threshold, keep.as<int64_t>()};
        return launch_nms(kernels->of(zero).nms, task);
    });
}

inline int64_t batched_nms(py::handle boxes_, py::handle scores_, py::handle idxs_, double iou_threshold,
                           py::handle keep_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = check_count("boxes", boxes.size(0));
    const Array scores = input("scores", scores_, {n}), idxs = input("idxs", idxs_, {n}),
                keep = output("keep", keep_, {n});
    return with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const BatchedNmsTask<T> task{boxes.as<T>(), scores.as<T>(),    idxs.as<int64_t>(), n,
                                     iou_threshold, keep.as<int64_t>()};
        return launch_nms(kernels->of(zero).batched_nms, task);
    });
}

inline int64_t soft_nms(py::handle boxes_, py::handle scores_, int method, double iou_threshold, double sigma,
                        double score_threshold, py::handle keep_, py::handle kept_scores_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = check_count("boxes", boxes.size(0));
    const Array scores = input("scores", scores_, {n}), keep = output("keep", keep_, {n}),
                kept_scores = output("kept_scores", kept_scores_, {n});
    return with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const SoftNmsTask<T> task{boxes.as<T>(),         scores.as<T>(),     n,
                                  SoftNmsMethod{method}, iou_threshold,      sigma,
                                  score_threshold,       keep.as<int64_t>(), kept_scores.as<T>()};
        return launch_nms(kernels->of(zero).soft_nms, task);
    });
}

inline int64_t matrix_nms(py::handle boxes_, py::handle scores_, py::handle idxs_, int method, double sigma,
                          double score_threshold, py::handle keep_, py::handle kept_scores_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = check_count("boxes", boxes.size(0));
    const Array scores = input("scores", scores_, {n}), idxs = input("idxs", idxs_, {n}),
                keep = output("keep", keep_, {n}), kept_scores = output("kept_scores", kept_scores_, {n});
    return with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const MatrixNmsTask<T> task{boxes.as<T>(),         scores.as<T>(), idxs.as<int64_t>(), n,
                                    SoftNmsMethod{method}, sigma,          score_threshold,    keep.as<int64_t>(),
                                    kept_scores.as<T>()};
        return launch_nms(kernels->of(zero).matrix_nms, task);
    });
}

inline void register_nms(py::module_& m) {
    m.def("nms", nms, "boxes"_a, "scores"_a, "iou_threshold"_a, "keep"_a);
    m.def("batched_nms", batched_nms, "boxes"_a, "scores"_a, "idxs"_a, "iou_threshold"_a, "keep"_a);
    m.def("soft_nms", soft_nms, "boxes"_a, "scores"_a, "method"_a, "iou_threshold"_a, "sigma"_a, "score_threshold"_a,
          "keep"_a, "kept_scores"_a);
    m.def("matrix_nms", matrix_nms, "boxes"_a, "scores"_a, "idxs"_a, "method"_a, "sigma"_a, "score_threshold"_a,
          "keep"_a, "kept_scores"_a);
}

}  // namespace fastssd
