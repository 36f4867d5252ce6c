#pragma once

#include <algorithm>
#include <iterator>
#include <vector>

#include "bindings/direct/coding.h"
#include "bindings/direct/operand.h"
#include "bindings/matching.h"

namespace fastssd {

// Memory for several outputs side by side. Of several blocks of a few MB, an allocator returns all but one to the
// system in each call: the page faults of three new outputs for 32 images of SSD300 take 3.8 ms, the kernel 0.6 ms.
// Above kMostBytes (60 such images) each output has its own memory: blocks of that size are new in every call anyway,
// and one small output that a caller keeps would keep the whole block. fastssd/ops has the same bound for the long way;
// tests/test_dispatch.py compares them.
class SharedBlock {
  public:
    static constexpr int64_t kMostBytes = int64_t(1) << 24;

    explicit SharedBlock(int64_t bytes) {
        if (bytes > kMostBytes) return;
        const Py_intptr_t size = bytes;
        block_ = Operand::fresh<uint8_t>(1, &size);
        next_ = Operand::memory<char>(block_);
    }

    // An uninitialised array. Wider types must be taken first, so that each array is aligned.
    template <typename T>
    py::object take(int axes, const Py_intptr_t* shape) {
        if (!block_) return Operand::fresh<T>(axes, shape);
        PyObject* const dtype = numpy->PyArray_DescrFromType_(py::detail::npy_format_descriptor<T>::value);
        constexpr int kFlags =
            NumpyApi::NPY_ARRAY_C_CONTIGUOUS_ | NumpyApi::NPY_ARRAY_ALIGNED_ | NumpyApi::NPY_ARRAY_WRITEABLE_;
        const auto array = py::reinterpret_steal<py::object>(
            numpy->PyArray_NewFromDescr_(numpy->PyArray_Type_, dtype, axes, shape, nullptr, next_, kFlags, nullptr));
        if (!array || numpy->PyArray_SetBaseObject_(array.ptr(), block_.inc_ref().ptr()) < 0)
            throw py::error_already_set();
        int64_t bytes = sizeof(T);
        for (int axis = 0; axis < axes; ++axis) bytes *= shape[axis];
        next_ += bytes;
        return array;
    }

  private:
    py::object block_;
    char* next_ = nullptr;
};

// Ground-truth boxes [G_i, 4] or labels [G_i] (columns = 0) of every image: the array of a single image, a list of
// arrays, or one array for a batch with equally many in each. Usable where all of it is what the kernel needs, and of
// the same kind as the anchors.
template <typename T>
class Ragged {
  public:
    bool usable = true, single = false;

    Ragged(py::handle values, int64_t columns, Operand::Type type, bool tensor) {
        const int axes = columns > 0 ? 2 : 1;
        const auto fits = [&](const Operand& array, int batch_axes) {
            return array.type() == type && array.tensor() == tensor && array.axes() == axes + batch_axes &&
                   (columns == 0 || array.size(-1) == columns);
        };
        if (PyList_CheckExact(values.ptr()) || PyTuple_CheckExact(values.ptr())) {
            // A tuple, because other threads may run while a tensor is examined, and take arrays out of the list.
            const auto arrays = py::reinterpret_steal<py::tuple>(PySequence_Tuple(values.ptr()));
            usable = arrays && !arrays.empty();
            for (std::size_t i = 0; usable && i < arrays.size(); ++i) {
                const Operand array(PyTuple_GET_ITEM(arrays.ptr(), static_cast<Py_ssize_t>(i)));
                usable = fits(array, 0);
                if (usable) append(array.size(0), array.data<T>(), columns);
            }
            data_ = joined_.data();
            return;
        }
        const Operand array(values);
        single = fits(array, 0);
        usable = single || (fits(array, 1) && array.size(0) <= kMostImages);
        if (!usable) return;
        const int64_t count = single ? 1 : array.size(0), length = array.size(single ? 0 : 1);
        for (int64_t i = 0; i < count; ++i) offsets_.push_back(offsets_.back() + length);
        data_ = array.data<T>();
    }

    int64_t images() const { return static_cast<int64_t>(offsets_.size()) - 1; }
    int64_t total() const { return offsets_.back(); }
    const int64_t* offsets() const { return offsets_.data(); }
    const T* data() const { return data_; }

    template <typename Other>
    bool as_long_as(const Ragged<Other>& other) const {
        return single == other.single && images() == other.images() &&
               std::equal(offsets(), offsets() + images() + 1, other.offsets());
    }

  private:
    static constexpr int64_t kMostImages = 1 << 20;  // images without boxes need no memory: [2^40, 0, 4]

    void append(int64_t rows, const T* data, int64_t columns) {
        offsets_.push_back(offsets_.back() + rows);
        joined_.insert(joined_.end(), data, data + rows * std::max<int64_t>(columns, 1));
    }

    std::vector<int64_t> offsets_{0};
    std::vector<T> joined_;
    const T* data_ = nullptr;
};

// The thresholds and force_match, if they are valid.
class MatchOptions {
  public:
    bool usable = false;
    double positive = 0, background = 0;
    ForceMatch force{};

    MatchOptions(py::handle iou_threshold, py::handle background_threshold, py::handle force_match) {
#define FASTSSD_TEXT(name) #name,
        constexpr const char* kNames[] = {FASTSSD_FORCE_MATCH(FASTSSD_TEXT)};
#undef FASTSSD_TEXT
        if (!PyFloat_CheckExact(iou_threshold.ptr()) || !PyUnicode_Check(force_match.ptr())) return;
        positive = background = PyFloat_AS_DOUBLE(iou_threshold.ptr());
        if (!background_threshold.is_none()) {
            if (!PyFloat_CheckExact(background_threshold.ptr())) return;
            background = PyFloat_AS_DOUBLE(background_threshold.ptr());
        }
        const auto* const name = std::find_if(std::begin(kNames), std::end(kNames), [&](const char* text) {
            return PyUnicode_CompareWithASCIIString(force_match.ptr(), text) == 0;
        });
        force = ForceMatch{static_cast<int>(name - kNames)};
        usable = name != std::end(kNames) && 0 <= background && background <= positive && positive <= 1;
    }
};

// run(T(), boxes, plan) where the anchors [A, 4] and the ground-truth boxes are all at least of this quality.
template <typename Run>
py::object with_ground_truth(const Operand& anchors, py::handle gt_boxes, BoxQuality least, const Run& run) {
    if (!anchors.is_float() || anchors.axes() != 2 || anchors.size(1) != 4 || anchors.size(0) > UINT32_MAX) {
        return py::none();
    }
    return with_float(anchors, [&](auto zero) -> py::object {
        using T = decltype(zero);
        const Ragged<T> boxes(gt_boxes, 4, anchors.type(), anchors.tensor());
        if (!boxes.usable || quality_of(boxes.data(), boxes.total()) < least) return py::none();
        const auto plan = plan_of(anchors.data<T>(), anchors.size(0));
        if (plan->quality() < least) return py::none();
        return run(zero, boxes, *plan);
    });
}

inline py::object direct_match_anchors(py::handle anchors_, py::handle gt_boxes, py::handle iou_threshold,
                                       py::handle background_threshold, py::handle force_match, py::handle gt_counts) {
    const MatchOptions options(iou_threshold, background_threshold, force_match);
    if (!options.usable || !gt_counts.is_none()) return py::none();
    const Operand anchors(anchors_);
    return with_ground_truth(
        anchors, gt_boxes, BoxQuality::finite, [&](auto zero, const auto& boxes, const auto& plan) -> py::object {
            using T = decltype(zero);
            const Py_intptr_t shape[] = {boxes.images(), anchors.size(0)};
            const int axes = boxes.single ? 1 : 2;
            SharedBlock block(shape[0] * shape[1] * static_cast<int64_t>(sizeof(int64_t) + sizeof(T)));
            py::object gt_idx = block.take<int64_t>(axes, shape + boxes.single),
                       iou = block.take<T>(axes, shape + boxes.single);
            launch_match<T>(
                {plan.data(), anchors.size(0), boxes.data(), boxes.offsets(), options.positive, options.background,
                 options.force, Operand::memory<int64_t>(gt_idx), Operand::memory<T>(iou)},
                boxes.images());
            return py::make_tuple(anchors.like(std::move(gt_idx)), anchors.like(std::move(iou)));
        });
}

inline py::object direct_assign_targets(py::handle anchors_, py::handle gt_boxes, py::handle gt_labels,
                                        py::handle iou_threshold, py::handle background_threshold,
                                        py::handle force_match, py::handle gt_counts, py::handle variances_) {
    const MatchOptions options(iou_threshold, background_threshold, force_match);
    const DirectVariances variances(variances_);
    if (!options.usable || !gt_counts.is_none() || !variances.usable) return py::none();
    const Operand anchors(anchors_);
    return with_ground_truth(
        anchors, gt_boxes, BoxQuality::positive, [&](auto zero, const auto& boxes, const auto& plan) -> py::object {
            using T = decltype(zero);
            const Ragged<int64_t> true_labels(gt_labels, 0, Operand::Type::int64, anchors.tensor());
            if (!true_labels.usable || !boxes.as_long_as(true_labels) ||
                std::any_of(true_labels.data(), true_labels.data() + true_labels.total(),
                            [](int64_t label) { return label < 1; })) {
                return py::none();
            }
            const Py_intptr_t shape[] = {boxes.images(), anchors.size(0), 4};
            const int axes = boxes.single ? 1 : 2;
            SharedBlock block(shape[0] * shape[1] * static_cast<int64_t>(2 * sizeof(int64_t) + 4 * sizeof(T)));
            py::object labels = block.take<int64_t>(axes, shape + boxes.single),
                       gt_idx = block.take<int64_t>(axes, shape + boxes.single),
                       deltas = block.take<T>(axes + 1, shape + boxes.single);
            launch_assign<T>({{plan.data(), anchors.size(0), boxes.data(), boxes.offsets(), options.positive,
                               options.background, options.force, Operand::memory<int64_t>(gt_idx), nullptr},
                              anchors.data<T>(),
                              true_labels.data(),
                              variances.value,
                              Operand::memory<int64_t>(labels),
                              Operand::memory<T>(deltas)},
                             boxes.images());
            return py::make_tuple(anchors.like(std::move(labels)), anchors.like(std::move(deltas)),
                                  anchors.like(std::move(gt_idx)));
        });
}

inline void register_direct_matching(py::module_& m) {
    m.def("direct_match_anchors", direct_match_anchors, "anchors"_a, "gt_boxes"_a, "iou_threshold"_a,
          "background_threshold"_a, "force_match"_a, "gt_counts"_a);
    m.def("direct_assign_targets", direct_assign_targets, "anchors"_a, "gt_boxes"_a, "gt_labels"_a, "iou_threshold"_a,
          "background_threshold"_a, "force_match"_a, "gt_counts"_a, "variances"_a);
}

}  // namespace fastssd
