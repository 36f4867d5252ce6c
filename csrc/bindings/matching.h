#pragma once

#include <memory>
#include <vector>

#ifndef _WIN32
#include <pthread.h>
#endif

#include "bindings/array.h"
#include "bindings/launch.h"
#include "plan_cache.h"

namespace fastssd {

template <typename T>
inline PlanCache<T> plans;

template <typename T>
typename PlanCache<T>::Entry known_plan(uint64_t mark, const T* anchors, int64_t num_anchors) {
    typename PlanCache<T>::Entry plan;
    const auto alike = plans<T>.alike(mark);
    if (alike.empty()) return plan;
    run_parts(1, static_cast<double>(num_anchors), [&](int64_t, int64_t) {
        for (const auto& each : alike) {
            if (plan == nullptr && each->is_of(anchors, num_anchors)) plan = each;
        }
    });
    return plan;
}

template <typename T>
typename PlanCache<T>::Entry plan_of(const T* anchors, int64_t num_anchors) {
    const uint64_t mark = mark_of(anchors, num_anchors);
    if (const auto known = known_plan(mark, anchors, num_anchors)) return known;
    const auto plan_anchors = kernels->of(T()).plan_anchors;
    const int64_t plan_bytes = plan_anchors({nullptr, num_anchors, nullptr});
    const auto made = std::make_shared<AnchorPlan<T>>(mark, anchors, num_anchors, plan_bytes);
    launch(plan_anchors, {made->anchors(), num_anchors, made->data()}, 200.0 * static_cast<double>(num_anchors));
    if (const auto known = known_plan(mark, made->anchors(), num_anchors))
        return known;  // added by another thread meanwhile
    plans<T>.add(made);
    return made;
}

inline void keep_plans_usable_in_children() {
#ifndef _WIN32
    pthread_atfork(
        [] {
            plans<float>.lock();
            plans<double>.lock();
        },
        [] {
            plans<double>.unlock();
            plans<float>.unlock();
        },
        [] {
            plans<double>.unlock();
            plans<float>.unlock();
        });
#endif
}

template <typename T>
double match_ns(const MatchAnchorsTask<T>& task, int64_t images) {  // for an image
    const double num_gt = static_cast<double>(task.offsets[images]) / static_cast<double>(images > 0 ? images : 1);
    return static_cast<double>(task.num_anchors) * (2 + num_gt / 5);
}

template <typename T>
void launch_match(const MatchAnchorsTask<T>& task, int64_t images) {
    launch(kernels->of(T()).match_anchors, task, images, match_ns(task, images));
}

template <typename T>
void launch_assign(const AssignTargetsTask<T>& task, int64_t images) {
    launch(kernels->of(T()).assign_targets, task, images, match_ns(task.match, images));
}

inline void match_anchors(py::handle anchors_, py::handle gt_boxes_, py::handle offsets_, double iou_threshold,
                          double background_threshold, int force_match, py::handle gt_idx_, py::handle iou_) {
    const Array anchors = input("anchors", anchors_, {kAny, 4}), gt_boxes = input("gt_boxes", gt_boxes_, {kAny, 4});
    const std::vector<int64_t> offsets = checked_offsets(input("offsets", offsets_, {kAny}), gt_boxes.size(0));
    const int64_t images = static_cast<int64_t>(offsets.size()) - 1,
                  num_anchors = check_count("anchors", anchors.size(0));
    const Array gt_idx = output("gt_idx", gt_idx_, {images, num_anchors}),
                iou = output("iou", iou_, {images, num_anchors});
    with_float(anchors, [&](auto zero) {
        using T = decltype(zero);
        const T* const boxes = gt_boxes.as<T>();
        const auto plan = plan_of(anchors.as<T>(), num_anchors);
        launch_match<T>({plan->data(), num_anchors, boxes, offsets.data(), iou_threshold, background_threshold,
                         ForceMatch{force_match}, gt_idx.as<int64_t>(), iou.as<T>()},
                        images);
    });
}

inline void assign_targets(py::handle anchors_, py::handle gt_boxes_, py::handle gt_labels_, py::handle offsets_,
                           double iou_threshold, double background_threshold, int force_match, double center_variance,
                           double size_variance, py::handle labels_, py::handle deltas_, py::handle gt_idx_) {
    const Array anchors = input("anchors", anchors_, {kAny, 4}), gt_boxes = input("gt_boxes", gt_boxes_, {kAny, 4});
    const Array gt_labels = input("gt_labels", gt_labels_, {gt_boxes.size(0)});
    const std::vector<int64_t> offsets = checked_offsets(input("offsets", offsets_, {kAny}), gt_boxes.size(0));
    const int64_t images = static_cast<int64_t>(offsets.size()) - 1,
                  num_anchors = check_count("anchors", anchors.size(0));
    const Array labels = output("labels", labels_, {images, num_anchors}),
                deltas = output("deltas", deltas_, {images, num_anchors, 4}),
                gt_idx = output("gt_idx", gt_idx_, {images, num_anchors});
    with_float(anchors, [&](auto zero) {
        using T = decltype(zero);
        const T *const boxes = gt_boxes.as<T>(), *const anchor_boxes = anchors.as<T>();
        const auto plan = plan_of(anchor_boxes, num_anchors);
        launch_assign<T>({{plan->data(), num_anchors, boxes, offsets.data(), iou_threshold, background_threshold,
                           ForceMatch{force_match}, gt_idx.as<int64_t>(), nullptr},
                          anchor_boxes,
                          gt_labels.as<int64_t>(),
                          {center_variance, size_variance},
                          labels.as<int64_t>(),
                          deltas.as<T>()},
                         images);
    });
}

inline void register_matching(py::module_& m) {
    keep_plans_usable_in_children();
    m.def("match_anchors", match_anchors, "anchors"_a, "gt_boxes"_a, "offsets"_a, "iou_threshold"_a,
          "background_threshold"_a, "force_match"_a, "gt_idx"_a, "iou"_a);
    m.def("assign_targets", assign_targets, "anchors"_a, "gt_boxes"_a, "gt_labels"_a, "offsets"_a, "iou_threshold"_a,
          "background_threshold"_a, "force_match"_a, "center_variance"_a, "size_variance"_a, "labels"_a, "deltas"_a,
          "gt_idx"_a);
}

}  // namespace fastssd
