#pragma once

#include "bindings/array.h"
#include "bindings/launch.h"

namespace fastssd {

inline void mine_hard_negatives(py::handle loss_, py::handle positive_, double neg_pos_ratio, int64_t min_negatives,
                                py::handle out_) {
    check_not_negative("neg_pos_ratio", neg_pos_ratio);
    const Array loss = input("loss", loss_, {kAny, kAny});
    const int64_t images = loss.size(0), num_anchors = loss.size(1);
    const Array positive = input("positive", positive_, {images, num_anchors}),
                out = output("out", out_, {images, num_anchors});
    if (num_anchors == 0) return;  // images without anchors need no memory, so there may be any number of them
    with_float(loss, [&](auto zero) {
        using T = decltype(zero);
        const MineHardNegativesTask<T> task{loss.as<T>(),  positive.as<bool>(), num_anchors,
                                            neg_pos_ratio, min_negatives,       out.as<bool>()};
        launch(kernels->of(zero).mine_hard_negatives, task, images, static_cast<double>(num_anchors));
    });
}

inline void register_mining(py::module_& m) {
    m.def("mine_hard_negatives", mine_hard_negatives, "loss"_a, "positive"_a, "neg_pos_ratio"_a, "min_negatives"_a,
          "out"_a);
}

}  // namespace fastssd
