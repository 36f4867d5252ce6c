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
        const MultiboxTask<T> task{logits.as<T>(), labels.as<int64_t>(), num_anchors,         num_classes,
                                   neg_pos_ratio,  min_negatives,        losses.as<double>(), selected.as<bool>()};
        launch(images, static_cast<double>(num_anchors * (num_classes + 20)) * 0.4,
               [&](int64_t begin, int64_t end) { kernels->of(zero).multibox_cross_entropy(task, begin, end); });
    });
}

inline void multibox_cross_entropy_gradient(py::handle logits_, py::handle labels_, py::handle selected_, double scale,
                                            py::handle out_) {
    const Array logits = input("logits", logits_, {kAny, kAny, kAny});
    const int64_t images = logits.size(0), num_anchors = logits.size(1), num_classes = logits.size(2);
    if (num_classes < 1) throw py::value_error("logits: expected a column for the background");
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

}  // namespace fastssd
