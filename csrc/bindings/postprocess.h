#pragma once

#include "bindings/array.h"
#include "bindings/launch.h"

namespace fastssd {

inline void postprocess_detections(py::handle logits_, py::handle deltas_, py::handle anchors_, double score_threshold,
                                   double iou_threshold, int64_t topk, double clip_height, double clip_width,
                                   int activation, double center_variance, double size_variance, py::handle boxes_,
                                   py::handle scores_, py::handle labels_, py::handle anchor_idx_, py::handle counts_) {
    check_not_negative("topk", topk);
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
        const PostprocessDetectionsTask<T> task{logits.as<T>(),
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
        launch(kernels->of(zero).postprocess_detections, task, batch, static_cast<double>(num_anchors * num_classes));
    });
}

inline void register_postprocess(py::module_& m) {
    m.def("postprocess_detections", postprocess_detections, "logits"_a, "deltas"_a, "anchors"_a, "score_threshold"_a,
          "iou_threshold"_a, "topk"_a, "clip_height"_a, "clip_width"_a, "activation"_a, "center_variance"_a,
          "size_variance"_a, "boxes"_a, "scores"_a, "labels"_a, "anchor_idx"_a, "counts"_a);
}

}  // namespace fastssd
