#pragma once

#include <algorithm>
#include <cstring>
#include <iterator>
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
    launch(static_cast<double>(num_anchors), [&] {
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
    const int64_t plan_bytes = kernels->of(T()).anchor_plan_size(num_anchors);
    const auto made = std::make_shared<AnchorPlan<T>>(mark, anchors, num_anchors, plan_bytes);
    launch(200.0 * static_cast<double>(num_anchors),
           [&] { kernels->of(T()).plan_anchors(made->anchors(), num_anchors, made->data()); });
    if (const auto known = known_plan(mark, made->anchors(), num_anchors)) return known;  // by another thread meanwhile
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
double match_ns(const MatchTask<T>& task, int64_t images) {  // of an image
    const double num_gt = static_cast<double>(task.offsets[images]) / static_cast<double>(images > 0 ? images : 1);
    return static_cast<double>(task.num_anchors) * (2 + num_gt / 5);
}

template <typename T>
void launch_match(const MatchTask<T>& task, int64_t images) {
    launch(images, match_ns(task, images),
           [&](int64_t begin, int64_t end) { kernels->of(T()).match_anchors(task, begin, end); });
}

template <typename T>
void launch_assign(const AssignTask<T>& task, int64_t images) {
    launch(images, match_ns(task.match, images),
           [&](int64_t begin, int64_t end) { kernels->of(T()).assign_targets(task, begin, end); });
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

// --- direct
// -----------------------------------------------------------------------------------------------------------

// What a batch gives for each picture, [G_i, columns] or [G_i]: one array, a list of arrays, or one array of equally
// many for each. `good` says whether all of it is what the kernel wants, and goes with the anchors.
template <typename T>
class Ragged {
  public:
    bool good = true, one = false;

    Ragged(py::handle given, int64_t columns, Operand::Type type, bool tensor) {
        const int axes = columns > 0 ? 2 : 1;
        const auto fits = [&](const Operand& array, int more) {
            return array.type() == type && array.tensor() == tensor && array.axes() == axes + more &&
                   (columns == 0 || array.size(-1) == columns);
        };
        if (PyList_CheckExact(given.ptr()) || PyTuple_CheckExact(given.ptr())) {
            // A tuple, because looking at a tensor lets other threads run, which may take arrays out of the list.
            const auto arrays = py::reinterpret_steal<py::tuple>(PySequence_Tuple(given.ptr()));
            good = arrays && !arrays.empty();
            for (std::size_t i = 0; good && i < arrays.size(); ++i) {
                const Operand array(PyTuple_GET_ITEM(arrays.ptr(), static_cast<Py_ssize_t>(i)));
                good = fits(array, 0);
                if (good) append(array.size(0), array.data<T>(), columns);
            }
            data_ = joined_.data();
            return;
        }
        const Operand array(given);
        one = fits(array, 0);
        good = one || (fits(array, 1) && array.size(0) <= kMostImages);
        if (!good) return;
        for (int64_t i = 0; i < (one ? 1 : array.size(0)); ++i) offsets_.push_back(offsets_.back() + array.size(!one));
        data_ = array.data<T>();
    }

    int64_t images() const { return static_cast<int64_t>(offsets_.size()) - 1; }
    int64_t total() const { return offsets_.back(); }
    const int64_t* offsets() const { return offsets_.data(); }
    const T* data() const { return data_; }

    template <typename Other>
    bool as_long_as(const Ragged<Other>& other) const {
        return one == other.one && images() == other.images() &&
               std::equal(offsets(), offsets() + images() + 1, other.offsets());
    }

  private:
    static constexpr int64_t kMostImages = 1 << 20;  // with no boxes in any, they need no memory: [2^40, 0, 4]

    void append(int64_t rows, const T* data, int64_t columns) {
        offsets_.push_back(offsets_.back() + rows);
        joined_.insert(joined_.end(), data, data + rows * std::max<int64_t>(columns, 1));
    }

    std::vector<int64_t> offsets_{0};
    std::vector<T> joined_;
    const T* data_ = nullptr;
};

// The thresholds and the way of forcing, if they are what they should be.
class MatchOptions {
  public:
    bool good = false;
    double positive = 0, background = 0;
    ForceMatch force{};

    MatchOptions(py::handle iou_threshold, py::handle background_threshold, py::handle force_match) {
        constexpr const char* kNames[] = {"none", "bipartite", "best", "low_quality"};  // by code
        if (!PyFloat_CheckExact(iou_threshold.ptr()) || !PyUnicode_Check(force_match.ptr())) return;
        positive = background = PyFloat_AS_DOUBLE(iou_threshold.ptr());
        if (!background_threshold.is_none()) {
            if (!PyFloat_CheckExact(background_threshold.ptr())) return;
            background = PyFloat_AS_DOUBLE(background_threshold.ptr());
        }
        const auto* const name = std::find_if(std::begin(kNames), std::end(kNames), [&](const char* each) {
            return PyUnicode_CompareWithASCIIString(force_match.ptr(), each) == 0;
        });
        force = ForceMatch{static_cast<int>(name - kNames)};
        good = name != std::end(kNames) && 0 <= background && background <= positive && positive <= 1;
    }
};

// Anchors [A, 4] and the ground truth of a batch, looked at: run(T(), boxes, plan) where they are good.
template <typename Run>
py::object with_truths(const Operand& anchors, py::handle gt_boxes, bool with_extent, const Run& run) {
    if (!anchors.is_float() || anchors.axes() != 2 || anchors.size(1) != 4 || anchors.size(0) > UINT32_MAX) {
        return py::none();
    }
    return with_float(anchors, [&](auto zero) -> py::object {
        using T = decltype(zero);
        const Ragged<T> boxes(gt_boxes, 4, anchors.type(), anchors.tensor());
        if (!boxes.good || look_at(boxes.data(), boxes.total()) < (with_extent ? Boxes::solid : Boxes::finite)) {
            return py::none();
        }
        const auto plan = plan_of(anchors.data<T>(), anchors.size(0));
        if (plan->looks() < (with_extent ? Boxes::solid : Boxes::finite)) return py::none();
        return run(zero, boxes, *plan);
    });
}

inline py::object direct_match_anchors(py::handle anchors_, py::handle gt_boxes, py::handle iou_threshold,
                                       py::handle background_threshold, py::handle force_match, py::handle gt_counts) {
    const MatchOptions options(iou_threshold, background_threshold, force_match);
    if (!options.good || !gt_counts.is_none()) return py::none();
    const Operand anchors(anchors_);
    return with_truths(anchors, gt_boxes, false, [&](auto zero, const auto& boxes, const auto& plan) -> py::object {
        using T = decltype(zero);
        const Py_intptr_t shape[] = {boxes.images(), anchors.size(0)};
        const int axes = boxes.one ? 1 : 2;
        SharedBlock block(shape[0] * shape[1] * static_cast<int64_t>(sizeof(int64_t) + sizeof(T)));
        py::object gt_idx = block.take<int64_t>(axes, shape + boxes.one), iou = block.take<T>(axes, shape + boxes.one);
        launch_match<T>({plan.data(), anchors.size(0), boxes.data(), boxes.offsets(), options.positive,
                         options.background, options.force, Operand::memory<int64_t>(gt_idx), Operand::memory<T>(iou)},
                        boxes.images());
        return py::make_tuple(anchors.like(std::move(gt_idx)), anchors.like(std::move(iou)));
    });
}

inline py::object direct_assign_targets(py::handle anchors_, py::handle gt_boxes, py::handle gt_labels,
                                        py::handle iou_threshold, py::handle background_threshold,
                                        py::handle force_match, py::handle gt_counts, py::handle variances_) {
    const MatchOptions options(iou_threshold, background_threshold, force_match);
    const DirectVariances variances(variances_);
    if (!options.good || !gt_counts.is_none() || !variances.good) return py::none();
    const Operand anchors(anchors_);
    return with_truths(anchors, gt_boxes, true, [&](auto zero, const auto& boxes, const auto& plan) -> py::object {
        using T = decltype(zero);
        const Ragged<int64_t> classes(gt_labels, 0, Operand::Type::int64, anchors.tensor());
        if (!classes.good || !boxes.as_long_as(classes) ||
            std::any_of(classes.data(), classes.data() + classes.total(), [](int64_t label) { return label < 1; })) {
            return py::none();
        }
        const Py_intptr_t shape[] = {boxes.images(), anchors.size(0), 4};
        const int axes = boxes.one ? 1 : 2;
        SharedBlock block(shape[0] * shape[1] * static_cast<int64_t>(2 * sizeof(int64_t) + 4 * sizeof(T)));
        py::object labels = block.take<int64_t>(axes, shape + boxes.one),
                   gt_idx = block.take<int64_t>(axes, shape + boxes.one),
                   deltas = block.take<T>(axes + 1, shape + boxes.one);
        launch_assign<T>({{plan.data(), anchors.size(0), boxes.data(), boxes.offsets(), options.positive,
                           options.background, options.force, Operand::memory<int64_t>(gt_idx), nullptr},
                          anchors.data<T>(),
                          classes.data(),
                          variances.value,
                          Operand::memory<int64_t>(labels),
                          Operand::memory<T>(deltas)},
                         boxes.images());
        return py::make_tuple(anchors.like(std::move(labels)), anchors.like(std::move(deltas)),
                              anchors.like(std::move(gt_idx)));
    });
}

}  // namespace fastssd
