""":func:`fastssd.ops.postprocess_detections` in standard ONNX operators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser

from fastssd.deploy.metadata import NetworkInfo

OPSET = 18

# B images, A anchors, N = C - 1 classes, K detections per image. Only the topk candidates of each class enter NMS. The
# scores that NMS keeps are scattered back to [B, N, A], because TopK over it gives our order: descending score, then
# class, then anchor. NonMaxSuppression expects y1, x1, y2, x2, but an IoU is the same with the axes swapped.
_GRAPH = """
postprocess (float[batch, {A}, {C}] logits, float[batch, {A}, 4] deltas)
    => (float[batch, {K}, 4] boxes, float[batch, {K}] scores, int64[batch, {K}] labels, int64[batch] counts)
{{
    probabilities = {activation} (logits)
    foreground = Slice (probabilities, one, columns, last)
    by_class = Transpose <perm = [0, 2, 1]> (foreground)

    shift, stretch = Split <axis = -1, num_outputs = 2> (deltas)
    scaled_shift = Mul (shift, center_variance)
    moved = Mul (scaled_shift, anchor_sizes)
    center = Add (moved, anchor_centers)
    scaled_stretch = Mul (stretch, size_variance)
    growth = Exp (scaled_stretch)
    size = Mul (growth, anchor_sizes)
    half = Div (size, two)
    upper = Sub (center, half)
    lower = Add (center, half)
    decoded = Concat <axis = -1> (upper, lower)
    undefined = IsNaN (decoded)
    undefined_number = Cast <to = 1> (undefined)
    worst = ReduceMax <keepdims = 0> (undefined_number, last)
    usable = Less (worst, half_one)
    clipped = Clip (decoded, zero, unit)
    usable_column = Unsqueeze (usable, last)
    all_boxes = Where (usable_column, clipped, zero)

    high = Greater (by_class, score_threshold)
    usable_row = Unsqueeze (usable, one)
    candidate = And (high, usable_row)
    all_scores = Where (candidate, by_class, zero)
    grid_shape = Shape (all_scores)
    empty = ConstantOfShape (grid_shape)
    top_scores, top_anchors = TopK <axis = 2> (all_scores, topk)
    candidates = ScatterElements <axis = 2> (empty, top_anchors, top_scores)

    selected = NonMaxSuppression (all_boxes, candidates, most_of_a_class, iou_threshold, score_threshold)
    selected_scores = GatherND (candidates, selected)
    kept = ScatterND (empty, selected, selected_scores)
    kept_row = Reshape (kept, row_shape)
    scores, place = TopK <axis = 1> (kept_row, most)
    found = Greater (scores, zero)
    counted = Cast <to = 7> (found)
    counts = ReduceSum <keepdims = 0> (counted, last)
    class = Div (place, anchors)
    label = Add (class, one)
    labels = Where (found, label, last)
    anchor = Mod (place, anchors)
    anchor_index = Unsqueeze (anchor, last)
    best_boxes = GatherND <batch_dims = 1> (all_boxes, anchor_index)
    found_column = Unsqueeze (found, last)
    boxes = Where (found_column, best_boxes, zero)
}}
"""
_ACTIVATIONS = {"softmax": "Softmax <axis = -1>", "sigmoid": "Sigmoid", "none": "Identity"}


def postprocess_graph(info: NetworkInfo) -> onnx.GraphProto:
    """The graph from logits and deltas to detections padded to K.

    K is ``max_detections``, or the number of pairs of anchor and class if that is smaller.
    """
    limits, classes, anchors = info.limits, len(info.class_names), len(info.anchors)
    most = min(limits.max_detections, classes * anchors)  # K
    topk = min(limits.topk, anchors)
    text = _GRAPH.format(A=anchors, C=classes + 1, K=most, activation=_ACTIVATIONS[info.preset["activation"]])
    graph = onnx.parser.parse_graph(text)
    center_variance, size_variance = info.preset["variances"]
    constants: dict[str, Any] = {
        "score_threshold": np.array([at_most(limits.score_threshold)]),
        "iou_threshold": np.array([at_most(limits.iou_threshold)]),
        "zero": np.float32(0),
        "half_one": np.float32(0.5),
        "unit": np.float32(1),
        "two": np.float32(2),
        "center_variance": np.float32(center_variance),
        "size_variance": np.float32(size_variance),
        "anchor_centers": (info.anchors[:, :2] + info.anchors[:, 2:]) / 2,
        "anchor_sizes": info.anchors[:, 2:] - info.anchors[:, :2],
        "one": np.array([1]),
        "last": np.array([-1]),
        "columns": np.array([classes + 1]),
        "anchors": np.array(anchors),
        "row_shape": np.array([0, classes * anchors]),
        "topk": np.array([topk]),
        "most": np.array([most]),
        "most_of_a_class": np.array([min(topk, most)]),  # more than K of one class cannot be among the best K
    }
    for name, value in constants.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return graph


def at_most(threshold: float) -> np.float32:
    """The largest float32 that is at most `threshold`: a float32 is greater than either of them or of none."""
    nearest = np.float32(threshold)
    return nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-np.inf))


def append_graph(model: onnx.ModelProto, graph: onnx.GraphProto) -> None:
    """Append `graph` to `model`. The inputs of `graph` have the names of the model's outputs."""
    public = {value.name for value in (*graph.input, *graph.output)}

    def inner(names: Iterable[str]) -> list[str]:
        return [name if name in public else f"postprocess/{name}" for name in names]

    for node in graph.node:
        node.input[:], node.output[:] = inner(node.input), inner(node.output)
        node.name = node.output[0]
    for initializer in graph.initializer:
        (initializer.name,) = inner([initializer.name])
    model.graph.node.extend(graph.node)
    model.graph.initializer.extend(graph.initializer)
    del model.graph.output[:]
    model.graph.output.extend(graph.output)
