#pragma once

#include <algorithm>
#include <memory>

#include "bindings/array.h"
#include "bindings/launch.h"

namespace fastssd {

// run(Kernels<T>, boxes, scores) starts the kernel and returns how many it kept.
template <typename T, typename Run>
int64_t suppress(const T* boxes, const T* scores, int64_t count, const Run& run) {
    const double n = static_cast<double>(count);
    int64_t kept = 0;
    launch(n * (50 + n / 4), [&] { kept = run(kernels->of(T()), boxes, scores); });
    return kept;
}

template <typename Run>
int64_t suppress(const Array& boxes, const Array& scores, const Run& run) {
    check_count("boxes", boxes.size(0));
    return with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        return suppress(boxes.as<T>(), scores.as<T>(), boxes.size(0), run);
    });
}

// run(Kernels<T>, boxes, scores, threshold, keep). `idxs` is null where there are no groups.
template <typename Run>
py::object direct_suppress(py::handle boxes_, py::handle scores_, const Operand* idxs, py::handle iou_threshold,
                           py::handle nonfinite, const Run& run) {
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
        return suppress(boxes.data<T>(), scores.data<T>(), n, [&](const auto& k, const T* from, const T* values) {
            return run(k, from, values, n, threshold, keep);
        });
    });
    py::object out = Operand::fresh<int64_t>(1, &kept);
    std::copy(keep, keep + kept, Operand::memory<int64_t>(out));
    return boxes.like(std::move(out));
}

inline py::object direct_nms(py::handle boxes, py::handle scores, py::handle iou_threshold, py::handle nonfinite) {
    return direct_suppress(boxes, scores, nullptr, iou_threshold, nonfinite,
                           [](const auto& k, auto... arguments) { return k.nms(arguments...); });
}

inline py::object direct_batched_nms(py::handle boxes, py::handle scores, py::handle idxs_, py::handle iou_threshold,
                                     py::handle nonfinite) {
    const Operand idxs(idxs_);
    return direct_suppress(boxes, scores, &idxs, iou_threshold, nonfinite,
                           [&](const auto& k, auto from, auto values, int64_t n, double threshold, int64_t* keep) {
                               return k.batched_nms(from, values, idxs.data<int64_t>(), n, threshold, keep);
                           });
}

inline int64_t nms(py::handle boxes_, py::handle scores_, double iou_threshold, py::handle keep_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    const Array scores = input("scores", scores_, {n});
    int64_t* const keep = output("keep", keep_, {n}).as<int64_t>();
    return suppress(boxes, scores, [&](const auto& k, const auto* from, const auto* values) {
        return k.nms(from, values, n, iou_threshold, keep);
    });
}

inline int64_t batched_nms(py::handle boxes_, py::handle scores_, py::handle idxs_, double iou_threshold,
                           py::handle keep_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    const Array scores = input("scores", scores_, {n});
    const int64_t* const idxs = input("idxs", idxs_, {n}).as<int64_t>();
    int64_t* const keep = output("keep", keep_, {n}).as<int64_t>();
    return suppress(boxes, scores, [&](const auto& k, const auto* from, const auto* values) {
        return k.batched_nms(from, values, idxs, n, iou_threshold, keep);
    });
}

inline int64_t soft_nms(py::handle boxes_, py::handle scores_, int method, double iou_threshold, double sigma,
                        double score_threshold, py::handle keep_, py::handle kept_scores_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    const Array scores = input("scores", scores_, {n}), kept_scores = output("kept_scores", kept_scores_, {n});
    int64_t* const keep = output("keep", keep_, {n}).as<int64_t>();
    return suppress(boxes, scores, [&](const auto& k, const auto* from, const auto* values) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
        return k.soft_nms(from, values, n, SoftNms{method}, iou_threshold, sigma, score_threshold, keep,
                          kept_scores.as<T>());
    });
}

}  // namespace fastssd
