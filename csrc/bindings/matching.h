#pragma once

#include <memory>

#include "bindings/array.h"
#include "bindings/launch.h"
#include "plan_cache.h"

namespace fastssd {

template <typename T>
inline PlanCache<T> plans;  // guarded by the GIL

template <typename T>
typename PlanCache<T>::Entry plan_of(const T* anchors, int64_t num_anchors) {
    typename PlanCache<T>::Entry plan;
    launch(static_cast<double>(num_anchors), [&, known = plans<T>] { plan = known.find(anchors, num_anchors); });
    if (plan == nullptr) {
        const auto made =
            std::make_shared<AnchorPlan<T>>(anchors, num_anchors, kernels->of(T()).anchor_plan_size(num_anchors));
        launch(200.0 * static_cast<double>(num_anchors),
               [&] { kernels->of(T()).plan_anchors(anchors, num_anchors, made->data()); });
        plan = made;
    }
    plans<T>.use(plan);
    return plan;
}

// What match_anchors and assign_targets have in common; run(task, anchors, ns_per_image) starts the kernel.
template <typename T, typename Run>
void with_match_task(const Array& anchors_, const Array& gt_boxes_, const Array& offsets_, double iou_threshold,
                     double background_threshold, int force_match, const Array& gt_idx, const Run& run) {
    const int64_t num_anchors = check_count("anchors", anchors_.size(0)), images = offsets_.size(0) - 1;
    const int64_t num_gt = gt_boxes_.size(0);
    const T* const anchors = anchors_.as<T>();
    const T* const gt_boxes = gt_boxes_.as<T>();
    const int64_t* const offsets = offsets_.as<int64_t>();
    check_offsets(offsets, images, num_gt);

    const auto plan = plan_of(anchors, num_anchors);
    const MatchTask<T> task{plan->data(),
                            num_anchors,
                            gt_boxes,
                            offsets,
                            iou_threshold,
                            background_threshold,
                            ForceMatch{force_match},
                            gt_idx.as<int64_t>(),
                            nullptr};
    const double gt_per_image = static_cast<double>(num_gt) / static_cast<double>(images > 0 ? images : 1);
    run(task, anchors, static_cast<double>(num_anchors) * (2 + gt_per_image / 5));
}

inline void match_anchors(py::handle anchors_, py::handle gt_boxes_, py::handle offsets_, double iou_threshold,
                          double background_threshold, int force_match, py::handle gt_idx_, py::handle iou_) {
    const Array anchors = input("anchors", anchors_, {kAny, 4}), gt_boxes = input("gt_boxes", gt_boxes_, {kAny, 4});
    const Array offsets = input("offsets", offsets_, {kAny});
    const int64_t images = offsets.size(0) - 1, num_anchors = anchors.size(0);
    const Array gt_idx = output("gt_idx", gt_idx_, {images, num_anchors}),
                iou = output("iou", iou_, {images, num_anchors});
    with_float(anchors, [&](auto zero) {
        using T = decltype(zero);
        with_match_task<T>(anchors, gt_boxes, offsets, iou_threshold, background_threshold, force_match, gt_idx,
                           [&](MatchTask<T> task, const T*, double ns_per_image) {
                               task.iou = iou.as<T>();
                               launch(images, ns_per_image, [&](int64_t begin, int64_t end) {
                                   kernels->of(zero).match_anchors(task, begin, end);
                               });
                           });
    });
}

inline void assign_targets(py::handle anchors_, py::handle gt_boxes_, py::handle gt_labels_, py::handle offsets_,
                           double iou_threshold, double background_threshold, int force_match, double center_variance,
                           double size_variance, py::handle labels_, py::handle deltas_, py::handle gt_idx_) {
    const Array anchors = input("anchors", anchors_, {kAny, 4}), gt_boxes = input("gt_boxes", gt_boxes_, {kAny, 4});
    const Array gt_labels = input("gt_labels", gt_labels_, {gt_boxes.size(0)});
    const Array offsets = input("offsets", offsets_, {kAny});
    const int64_t images = offsets.size(0) - 1, num_anchors = anchors.size(0);
    const Array labels = output("labels", labels_, {images, num_anchors}),
                deltas = output("deltas", deltas_, {images, num_anchors, 4}),
                gt_idx = output("gt_idx", gt_idx_, {images, num_anchors});
    with_float(anchors, [&](auto zero) {
        using T = decltype(zero);
        with_match_task<T>(anchors, gt_boxes, offsets, iou_threshold, background_threshold, force_match, gt_idx,
                           [&](const MatchTask<T>& match, const T* anchor_boxes, double ns_per_image) {
                               const AssignTask<T> task{match,
                                                        anchor_boxes,
                                                        gt_labels.as<int64_t>(),
                                                        {center_variance, size_variance},
                                                        labels.as<int64_t>(),
                                                        deltas.as<T>()};
                               launch(images, ns_per_image, [&](int64_t begin, int64_t end) {
                                   kernels->of(zero).assign_targets(task, begin, end);
                               });
                           });
    });
}

}  // namespace fastssd
