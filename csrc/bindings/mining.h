#pragma once

#include "bindings/array.h"
#include "bindings/launch.h"

namespace fastssd {

inline void mine_hard_negatives(py::handle loss_, py::handle positive_, double neg_pos_ratio, int64_t min_negatives,
                                py::handle out_) {
    check_not_negative("neg_pos_ratio", neg_pos_ratio);
    const Array loss = input("loss", loss_, {kAny, kAny});
    const int64_t images = loss.size(0), num_anchors = loss.size(1);
    const bool* const positive = input("positive", positive_, {images, num_anchors}).as<bool>();
    bool* const out = output("out", out_, {images, num_anchors}).as<bool>();
    if (num_anchors == 0) return;  // such images need no memory: there may be any number of them
    with_float(loss, [&](auto zero) {
        using T = decltype(zero);
        const T* const losses = loss.as<T>();
        launch(images, static_cast<double>(num_anchors), [&](int64_t begin, int64_t end) {
            kernels->of(zero).mine_hard_negatives(losses, positive, num_anchors, neg_pos_ratio, min_negatives, begin,
                                                  end, out);
        });
    });
}

}  // namespace fastssd
