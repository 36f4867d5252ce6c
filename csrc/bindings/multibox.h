#pragma once

#include "bindings/array.h"
#include "bindings/launch.h"

namespace fastssd {

inline void multibox_cross_entropy(py::handle logits_, py::handle labels_, double neg_pos_ratio, int64_t min_negatives,
                                   py::handle losses_, py::handle selected_) {
    check_not_negative("neg_pos_ratio", neg_pos_ratio);
    const Array logits = input("logits", logits_, {kAny, kAny, kAny});
    const int64_t images = logits.size(0), num_classes = logits.size(2);
    const int64_t num_anchors = check_count("logits", logits.size(1));
    if (num_classes < 1) throw py::value_error("logits: expected a column for the background");
    const Array labels = input("labels", labels_, {images, num_anchors}), losses = output("losses", losses_, {images}),
                selected = output("selected", selected_, {images, num_anchors});
    with_float(logits, [&](auto zero) {
        using T = decltype(zero);
        const MultiboxCrossEntropyTask<T> task{logits.as<T>(),      labels.as<int64_t>(), num_anchors,
                                               num_classes,         neg_pos_ratio,        min_negatives,
                                               losses.as<double>(), selected.as<bool>()};
        launch(kernels->of(zero).multibox_cross_entropy, task, images,
               static_cast<double>(num_anchors * (num_classes + 20)) * 0.4);
    });
}

inline void multibox_cross_entropy_gradient(py::handle logits_, py::handle labels_, py::handle selected_, double scale,
                                            py::handle out_) {
    const Array logits = input("logits", logits_, {kAny, kAny, kAny});
    const int64_t images = logits.size(0), num_anchors = logits.size(1), num_classes = logits.size(2);
    if (num_classes < 1) throw py::value_error("logits: expected a column for the background");
    const Array labels = input("labels", labels_, {images, num_anchors}),
                selected = input("selected", selected_, {images, num_anchors}),
                out = output("out", out_, {images, num_anchors, num_classes});
    with_float(logits, [&](auto zero) {
        using T = decltype(zero);
        const MultiboxCrossEntropyGradientTask<T> task{
            logits.as<T>(), labels.as<int64_t>(), selected.as<bool>(), num_classes, scale, out.as<T>()};
        launch(kernels->of(zero).multibox_cross_entropy_gradient, task, images * num_anchors,
               static_cast<double>(num_classes) * 0.3);
    });
}

inline void register_multibox(py::module_& m) {
    m.def("multibox_cross_entropy", multibox_cross_entropy, "logits"_a, "labels"_a, "neg_pos_ratio"_a,
          "min_negatives"_a, "losses"_a, "selected"_a);
    m.def("multibox_cross_entropy_gradient", multibox_cross_entropy_gradient, "logits"_a, "labels"_a, "selected"_a,
          "scale"_a, "out"_a);
}

}  // namespace fastssd
