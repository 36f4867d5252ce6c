// fastssd._C: the only file, with operand.h, that knows Python. A function an operator: look at the arrays, say what
// the work costs, start the kernel. The names, arguments and shapes are those of the Backend protocol in
// fastssd/backends/__init__.py. direct_NAME is a whole operator in one call, or None where the face must look first.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "operand.h"
#include "parallel.h"
#include "plan_cache.h"

namespace py = pybind11;

namespace fastssd {
namespace {

const KernelTable* kernels = nullptr;  // chosen at import

// --- arrays ---------------------------------------------------------------------------------------------------------
// The Python faces have validated the arguments. What is checked here is only what would otherwise crash.

constexpr int64_t kAny = -1;

template <typename T>
bool is_type(int number) {
    using Api = py::detail::npy_api;
    if constexpr (std::is_same_v<T, float>) return number == Api::NPY_FLOAT_;
    if constexpr (std::is_same_v<T, double>) return number == Api::NPY_DOUBLE_;
    if constexpr (std::is_same_v<T, bool>) return number == Api::NPY_BOOL_;
    if constexpr (std::is_same_v<T, int64_t>) {
        return number == Api::NPY_LONGLONG_ || (sizeof(long) == 8 && number == Api::NPY_LONG_);
    }
}

class Array {
  public:
    Array(const char* name, py::handle object, std::initializer_list<int64_t> shape, int flags) : name_(name) {
        static const py::detail::npy_api& api = py::detail::npy_api::get();
        if (!api.PyArray_Check_(object.ptr())) throw py::type_error(std::string(name) + ": expected a NumPy array");
        array_ = py::detail::array_proxy(object.ptr());
        if ((array_->flags & flags) != flags || py::detail::array_descriptor_proxy(array_->descr)->byteorder == '>') {
            throw py::value_error(std::string(name) + ": expected a C-contiguous array in native byte order" +
                                  (flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_ ? ", writeable" : ""));
        }
        bool fits = array_->nd == static_cast<int>(shape.size());
        for (int axis = 0; fits && axis < array_->nd; ++axis) {
            const int64_t wanted = shape.begin()[axis];
            fits = wanted == kAny || wanted == size(axis);
        }
        if (!fits) throw py::value_error(std::string(name) + ": its shape does not fit the other arguments");
    }

    int64_t size(int axis) const { return array_->dimensions[axis]; }

    template <typename T>
    bool is() const {
        return is_type<T>(py::detail::array_descriptor_proxy(array_->descr)->type_num);
    }

    template <typename T>
    T* as() const {
        if (!is<T>()) throw py::type_error(std::string(name_) + ": its dtype does not fit the other arguments");
        return reinterpret_cast<T*>(array_->data);
    }

  private:
    const char* name_;
    const py::detail::PyArray_Proxy* array_;
};

constexpr int kReadable = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;

Array input(const char* name, py::handle object, std::initializer_list<int64_t> shape) {
    return Array(name, object, shape, kReadable);
}
Array output(const char* name, py::handle object, std::initializer_list<int64_t> shape) {
    return Array(name, object, shape, kReadable | py::detail::npy_api::NPY_ARRAY_WRITEABLE_);
}

// fn(T()) with the dtype of `array`, which must be a float dtype.
template <typename Fn>
auto with_float(const Array& array, const Fn& fn) {
    if (array.is<float>()) return fn(float());
    array.as<double>();
    return fn(double());
}
template <typename Fn>
auto with_float(const Operand& operand, const Fn& fn) {
    return operand.type() == Operand::Type::float32 ? fn(float()) : fn(double());
}

int64_t check_count(const char* name, int64_t count) {
    if (count > UINT32_MAX) throw py::value_error(std::string(name) + ": at most 4294967295 are supported");
    return count;
}

void check_offsets(const int64_t* offsets, int64_t images, int64_t total) {
    bool rising = images >= 0 && offsets[0] == 0 && offsets[images] == total;
    for (int64_t b = 0; b < images; ++b) rising = rising && offsets[b] <= offsets[b + 1];
    if (!rising) throw py::value_error("offsets: expected to rise from 0 to the number of ground truths");
}

// --- running --------------------------------------------------------------------------------------------------------

// Below this much work, giving the GIL away and taking it back costs more than it gives the other threads.
constexpr double kKeepGilNs = 10e3;

PyObject* thread_count = nullptr;  // a callable: how many threads to use now

// This thread's state while it works without the GIL. Not PyGILState_Ensure, which must not be called when Python ends.
thread_local PyThreadState* detached = nullptr;

bool interrupted() {
    PyThreadState* const state = detached;
    if (state == nullptr) return false;
    detached = nullptr;
    PyEval_RestoreThread(state);
    const bool stop = PyErr_CheckSignals() != 0;
    detached = PyEval_SaveThread();
    return stop;
}

int num_threads() { return thread_count == nullptr ? 1 : py::cast<int>(py::handle(thread_count)()); }

// Runs fn(begin, end) over [0, n), without the GIL and on several threads where the work is worth it. Raises what a
// signal handler raised meanwhile.
template <typename Fn>
void launch(int64_t n, double ns_per_item, const Fn& fn) {
    const double cost = static_cast<double>(n) * ns_per_item;
    if (cost < kKeepGilNs) {
        if (n > 0) fn(int64_t(0), n);
        return;
    }
    const int threads = n > 1 && cost >= kParallelNs ? num_threads() : 1;
    // No destructors: Python may end this thread where it takes the GIL, which must not happen in one.
    detached = PyEval_SaveThread();
    const Outcome outcome = parallel_for(n, ns_per_item, threads, fn);
    PyThreadState* const state = detached;
    detached = nullptr;
    PyEval_RestoreThread(state);
    if (outcome == Outcome::out_of_memory) throw std::bad_alloc();
    if (outcome == Outcome::interrupted) {
        if (PyErr_Occurred()) throw py::error_already_set();
        throw std::runtime_error("a signal handler forked inside a kernel; its work is lost in the child");
    }
}

// Work that cannot be split.
template <typename Fn>
void launch(double ns, const Fn& fn) {
    launch(1, ns, [&](int64_t, int64_t) { fn(); });
}

// --- boxes ----------------------------------------------------------------------------------------------------------

void box_area(py::handle boxes_, py::handle out_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    const Array out = output("out", out_, {n});
    with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const T* const from = boxes.as<T>();
        T* const to = out.as<T>();
        launch(n, 2, [&](int64_t begin, int64_t end) { kernels->of(zero).box_area(from, begin, end, to); });
    });
}

void box_convert(py::handle boxes_, int in_fmt, int out_fmt, py::handle out_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    const Array out = output("out", out_, {n, 4});
    with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const T* const from = boxes.as<T>();
        T* const to = out.as<T>();
        launch(n, 3, [&](int64_t begin, int64_t end) {
            kernels->of(zero).box_convert(from, BoxFormat{in_fmt}, BoxFormat{out_fmt}, begin, end, to);
        });
    });
}

void clip_boxes_to_image(py::handle boxes_, double height, double width, py::handle out_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    const Array out = output("out", out_, {n, 4});
    with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const T* const from = boxes.as<T>();
        T* const to = out.as<T>();
        launch(n, 2, [&](int64_t begin, int64_t end) {
            kernels->of(zero).clip_boxes_to_image(from, static_cast<T>(height), static_cast<T>(width), begin, end, to);
        });
    });
}

int64_t remove_small_boxes(py::handle boxes_, double min_size, py::handle keep_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    int64_t* const keep = output("keep", keep_, {n}).as<int64_t>();
    int64_t kept = 0;
    with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const T* const from = boxes.as<T>();
        launch(static_cast<double>(n), [&] { kept = kernels->of(zero).remove_small_boxes(from, n, min_size, keep); });
    });
    return kept;
}

// --- anchors --------------------------------------------------------------------------------------------------------

void grid_anchors(int64_t height, int64_t width, py::handle shapes_, py::handle scale_, bool clip, py::handle out_) {
    const Array shapes = input("shapes", shapes_, {kAny, 2});
    const int64_t num_shapes = shapes.size(0);
    if (height < 0 || width < 0) throw py::value_error("height, width: expected no negative number");
    const double* const scale = input("scale", scale_, {2}).as<double>();
    const double* const sizes = shapes.as<double>();
    const Array out = output("out", out_, {height * width * num_shapes, 4});
    with_float(out, [&](auto zero) {
        using T = decltype(zero);
        T* const to = out.as<T>();
        launch(height, static_cast<double>(width * num_shapes) * 4, [&](int64_t begin, int64_t end) {
            kernels->of(zero).grid_anchors(height, width, sizes, num_shapes, scale, clip, begin, end, to);
        });
    });
}

// --- iou ------------------------------------------------------------------------------------------------------------

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
    const int64_t batch = std::accumulate(shape, shape + axes - 2, int64_t(1), std::multiplies<>());
    return with_float(boxes1, [&](auto zero) -> py::object {
        using T = decltype(zero);
        const T *const from1 = boxes1.data<T>(), *const from2 = boxes2.data<T>();
        if (out_.is_none()) {
            py::object out = Operand::fresh<T>(axes, shape);
            launch_pairwise<Measure>(from1, from2, batch, n, m, Operand::memory<T>(out));
            return boxes1.like(std::move(out));
        }
        const Operand out(out_, true);
        if (out.type() != boxes1.type() || out.axes() != axes || !std::equal(shape, shape + axes, out.shape())) {
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

void paired_box_iou(py::handle boxes1_, py::handle boxes2_, py::handle out_) {
    const Array boxes1 = input("boxes1", boxes1_, {kAny, 4});
    const int64_t n = boxes1.size(0);
    const Array boxes2 = input("boxes2", boxes2_, {n, 4}), out = output("out", out_, {n});
    with_float(boxes1, [&](auto zero) {
        using T = decltype(zero);
        launch_paired(boxes1.as<T>(), boxes2.as<T>(), n, out.as<T>());
    });
}

py::object direct_paired_box_iou(py::handle boxes1_, py::handle boxes2_) {
    const Operand boxes1(boxes1_), boxes2(boxes2_);
    const int axes = boxes1.axes();
    if (!boxes1.is_float() || boxes2.type() != boxes1.type() || axes < 1 || !boxes2.goes_with(boxes1, 0) ||
        boxes1.size(-1) != 4) {
        return py::none();
    }
    return with_float(boxes1, [&](auto zero) {
        using T = decltype(zero);
        py::object out = Operand::fresh<T>(axes - 1, boxes1.shape());
        const int64_t n = std::accumulate(boxes1.shape(), boxes1.shape() + axes - 1, int64_t(1), std::multiplies<>());
        launch_paired(boxes1.data<T>(), boxes2.data<T>(), n, Operand::memory<T>(out));
        return boxes1.like(std::move(out));
    });
}

// --- matching -------------------------------------------------------------------------------------------------------

template <typename T>
PlanCache<T> plans;  // guarded by the GIL

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

void match_anchors(py::handle anchors_, py::handle gt_boxes_, py::handle offsets_, double iou_threshold,
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

void assign_targets(py::handle anchors_, py::handle gt_boxes_, py::handle gt_labels_, py::handle offsets_,
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

// --- mining ---------------------------------------------------------------------------------------------------------

void mine_hard_negatives(py::handle loss_, py::handle positive_, double neg_pos_ratio, int64_t min_negatives,
                         py::handle out_) {
    const Array loss = input("loss", loss_, {kAny, kAny});
    const int64_t images = loss.size(0), num_anchors = loss.size(1);
    const bool* const positive = input("positive", positive_, {images, num_anchors}).as<bool>();
    bool* const out = output("out", out_, {images, num_anchors}).as<bool>();
    with_float(loss, [&](auto zero) {
        using T = decltype(zero);
        const T* const losses = loss.as<T>();
        launch(images, static_cast<double>(num_anchors), [&](int64_t begin, int64_t end) {
            kernels->of(zero).mine_hard_negatives(losses, positive, num_anchors, neg_pos_ratio, min_negatives, begin,
                                                  end, out);
        });
    });
}

// --- multibox -------------------------------------------------------------------------------------------------------

void multibox_cross_entropy(py::handle logits_, py::handle labels_, double neg_pos_ratio, int64_t min_negatives,
                            py::handle losses_, py::handle selected_) {
    const Array logits = input("logits", logits_, {kAny, kAny, kAny});
    const int64_t images = logits.size(0), num_classes = logits.size(2);
    const int64_t num_anchors = check_count("logits", logits.size(1));
    if (num_classes < 1) throw py::value_error("logits: expected a column for the background");
    const Array labels = input("labels", labels_, {images, num_anchors}), losses = output("losses", losses_, {images}),
                selected = output("selected", selected_, {images, num_anchors});
    with_float(logits, [&](auto zero) {
        using T = decltype(zero);
        const MultiboxTask<T> task{logits.as<T>(), labels.as<int64_t>(), num_anchors,         num_classes,
                                   neg_pos_ratio,  min_negatives,        losses.as<double>(), selected.as<bool>()};
        launch(images, static_cast<double>(num_anchors * (num_classes + 20)) * 0.4,
               [&](int64_t begin, int64_t end) { kernels->of(zero).multibox_cross_entropy(task, begin, end); });
    });
}

void multibox_cross_entropy_gradient(py::handle logits_, py::handle labels_, py::handle selected_, double scale,
                                     py::handle out_) {
    const Array logits = input("logits", logits_, {kAny, kAny, kAny});
    const int64_t images = logits.size(0), num_anchors = logits.size(1), num_classes = logits.size(2);
    const int64_t* const labels = input("labels", labels_, {images, num_anchors}).as<int64_t>();
    const bool* const selected = input("selected", selected_, {images, num_anchors}).as<bool>();
    const Array out = output("out", out_, {images, num_anchors, num_classes});
    with_float(logits, [&](auto zero) {
        using T = decltype(zero);
        const T* const from = logits.as<T>();
        T* const to = out.as<T>();
        launch(images * num_anchors, static_cast<double>(num_classes) * 0.3, [&](int64_t begin, int64_t end) {
            kernels->of(zero).multibox_cross_entropy_gradient(from, labels, selected, static_cast<T>(scale),
                                                              num_classes, begin, end, to);
        });
    });
}

// --- coding ---------------------------------------------------------------------------------------------------------

template <typename Choose>
void code(const char* name, py::handle boxes_, py::handle anchors_, Variances variances, py::handle out_,
          const Choose& choose) {
    const Array boxes = input(name, boxes_, {kAny, kAny, 4});
    const int64_t batch = boxes.size(0), num_anchors = boxes.size(1);
    const Array anchors = input("anchors", anchors_, {num_anchors, 4}),
                out = output("out", out_, {batch, num_anchors, 4});
    with_float(boxes, [&](auto zero) {
        using T = decltype(zero);
        const T *const from = boxes.as<T>(), *const anchor_boxes = anchors.as<T>();
        T* const to = out.as<T>();
        launch(batch * num_anchors, 25, [&](int64_t begin, int64_t end) {
            choose(kernels->of(zero))(from, anchor_boxes, num_anchors, variances, begin, end, to);
        });
    });
}

void encode_boxes(py::handle boxes, py::handle anchors, double center_variance, double size_variance, py::handle out) {
    code("boxes", boxes, anchors, {center_variance, size_variance}, out, [](const auto& k) { return k.encode_boxes; });
}
void decode_boxes(py::handle deltas, py::handle anchors, double center_variance, double size_variance, py::handle out) {
    code("deltas", deltas, anchors, {center_variance, size_variance}, out,
         [](const auto& k) { return k.decode_boxes; });
}

// --- nms ------------------------------------------------------------------------------------------------------------

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
                           const Run& run) {
    const Operand boxes(boxes_), scores(scores_);
    if (!boxes.is_float() || scores.type() != boxes.type() || scores.tensor() != boxes.tensor() || boxes.axes() != 2 ||
        boxes.size(1) != 4 || scores.axes() != 1 || scores.size(0) != boxes.size(0) || boxes.size(0) > UINT32_MAX ||
        !PyFloat_CheckExact(iou_threshold.ptr())) {
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

py::object direct_nms(py::handle boxes, py::handle scores, py::handle iou_threshold) {
    return direct_suppress(boxes, scores, nullptr, iou_threshold,
                           [](const auto& k, auto... arguments) { return k.nms(arguments...); });
}

py::object direct_batched_nms(py::handle boxes, py::handle scores, py::handle idxs_, py::handle iou_threshold) {
    const Operand idxs(idxs_);
    return direct_suppress(boxes, scores, &idxs, iou_threshold,
                           [&](const auto& k, auto from, auto values, int64_t n, double threshold, int64_t* keep) {
                               return k.batched_nms(from, values, idxs.data<int64_t>(), n, threshold, keep);
                           });
}

int64_t nms(py::handle boxes_, py::handle scores_, double iou_threshold, py::handle keep_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    const Array scores = input("scores", scores_, {n});
    int64_t* const keep = output("keep", keep_, {n}).as<int64_t>();
    return suppress(boxes, scores, [&](const auto& k, const auto* from, const auto* values) {
        return k.nms(from, values, n, iou_threshold, keep);
    });
}

int64_t batched_nms(py::handle boxes_, py::handle scores_, py::handle idxs_, double iou_threshold, py::handle keep_) {
    const Array boxes = input("boxes", boxes_, {kAny, 4});
    const int64_t n = boxes.size(0);
    const Array scores = input("scores", scores_, {n});
    const int64_t* const idxs = input("idxs", idxs_, {n}).as<int64_t>();
    int64_t* const keep = output("keep", keep_, {n}).as<int64_t>();
    return suppress(boxes, scores, [&](const auto& k, const auto* from, const auto* values) {
        return k.batched_nms(from, values, idxs, n, iou_threshold, keep);
    });
}

int64_t soft_nms(py::handle boxes_, py::handle scores_, int method, double iou_threshold, double sigma,
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

// --- postprocess ----------------------------------------------------------------------------------------------------

void postprocess_detections(py::handle logits_, py::handle deltas_, py::handle anchors_, double score_threshold,
                            double iou_threshold, int64_t topk, double clip_height, double clip_width, int activation,
                            double center_variance, double size_variance, py::handle boxes_, py::handle scores_,
                            py::handle labels_, py::handle anchor_idx_, py::handle counts_) {
    const Array logits = input("logits", logits_, {kAny, kAny, kAny});
    const int64_t batch = logits.size(0), num_anchors = logits.size(1), num_classes = logits.size(2);
    if (num_classes < 1) throw py::value_error("logits: expected a column for the background");
    check_count("logits", num_anchors * num_classes);
    const Array deltas = input("deltas", deltas_, {batch, num_anchors, 4});
    const Array anchors = input("anchors", anchors_, {num_anchors, 4});
    const Array boxes = output("boxes", boxes_, {batch, kAny, 4});
    const int64_t room = boxes.size(1);
    const Array scores = output("scores", scores_, {batch, room}), labels = output("labels", labels_, {batch, room}),
                anchor_idx = output("anchor_idx", anchor_idx_, {batch, room}),
                counts = output("counts", counts_, {batch});
    with_float(logits, [&](auto zero) {
        using T = decltype(zero);
        const PostprocessTask<T> task{logits.as<T>(),
                                      deltas.as<T>(),
                                      anchors.as<T>(),
                                      num_anchors,
                                      num_classes,
                                      room,
                                      score_threshold,
                                      iou_threshold,
                                      topk,
                                      clip_height,
                                      clip_width,
                                      Activation{activation},
                                      {center_variance, size_variance},
                                      boxes.as<T>(),
                                      scores.as<T>(),
                                      labels.as<int64_t>(),
                                      anchor_idx.as<int64_t>(),
                                      counts.as<int64_t>()};
        launch(batch, static_cast<double>(num_anchors * num_classes),
               [&](int64_t begin, int64_t end) { kernels->of(zero).postprocess_detections(task, begin, end); });
    });
}

// --- what runs here -------------------------------------------------------------------------------------------------

py::tuple names(KernelTables tables) {
    py::list list;
    for (; *tables; ++tables) list.append((*tables)->isa);
    return py::tuple(list);
}

void set_thread_count(py::object callable) { thread_count = callable.release().ptr(); }

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
    try {
        kernels = &choose_table(std::getenv("FASTSSD_ISA"));
    } catch (const std::runtime_error& error) {
        throw py::import_error(error.what());
    }
    set_interrupt_check(interrupted);

    m.doc() = "The compiled kernels of fastssd. Private: use fastssd.ops.";
    m.def("isa", [] { return kernels->isa; }, "The instruction set in use.");
    m.def("available_isas", [] { return names(available_tables()); }, "Those that can run here, best first.");
    m.def("compiled_isas", [] { return names(compiled_tables()); }, "Those that this build holds, best first.");
    m.def("set_thread_count", set_thread_count, "Set the callable that says how many threads to use.");

    m.def("box_area", box_area);
    m.def("box_convert", box_convert);
    m.def("clip_boxes_to_image", clip_boxes_to_image);
    m.def("remove_small_boxes", remove_small_boxes);
    m.def("grid_anchors", grid_anchors);
    m.def("box_iou", pairwise<BoxIou>);
    m.def("generalized_box_iou", pairwise<GeneralizedBoxIou>);
    m.def("distance_box_iou", pairwise<DistanceBoxIou>);
    m.def("complete_box_iou", pairwise<CompleteBoxIou>);
    m.def("paired_box_iou", paired_box_iou);
    m.def("match_anchors", match_anchors);
    m.def("assign_targets", assign_targets);
    m.def("mine_hard_negatives", mine_hard_negatives);
    m.def("multibox_cross_entropy", multibox_cross_entropy);
    m.def("multibox_cross_entropy_gradient", multibox_cross_entropy_gradient);
    m.def("encode_boxes", encode_boxes);
    m.def("decode_boxes", decode_boxes);
    m.def("nms", nms);
    m.def("batched_nms", batched_nms);
    m.def("soft_nms", soft_nms);
    m.def("postprocess_detections", postprocess_detections);

    m.def("direct_box_iou", direct_pairwise<BoxIou>);
    m.def("direct_generalized_box_iou", direct_pairwise<GeneralizedBoxIou>);
    m.def("direct_distance_box_iou", direct_pairwise<DistanceBoxIou>);
    m.def("direct_complete_box_iou", direct_pairwise<CompleteBoxIou>);
    m.def("direct_paired_box_iou", direct_paired_box_iou);
    m.def("direct_nms", direct_nms);
    m.def("direct_batched_nms", direct_batched_nms);
}

}  // namespace fastssd
