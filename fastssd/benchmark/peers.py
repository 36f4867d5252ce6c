"""The implementations of each operator: our backends, and every peer that is installed.

An implementation is a function that takes the inputs of a workload and returns what is timed: a call without arguments.
It converts the inputs first (to tensors, float64 scores, ...), so that this is not timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

import fastssd
from fastssd import ops
from fastssd.backends import available_backends

Bind = Callable[..., Callable[[], Any]]


class TooLarge(Exception):
    """A peer would need too much memory or time for these inputs."""


class Implementation(NamedTuple):
    """One implementation of an operator.

    Attributes:
        name: in tables, such as ``"fastssd cpp, 2 threads"`` or ``"torchvision"``.
        bind: takes the inputs and returns the call that is timed.
        ours: whether it is part of fastssd.
        backend, threads: of fastssd.
    """

    name: str
    bind: Bind
    ours: bool = False
    backend: str = ""
    threads: int = 1

    @contextmanager
    def active(self) -> Iterator[None]:
        """Set backend and number of threads of fastssd for this implementation."""
        if not self.ours:
            yield
            return
        with fastssd.use_backend(self.backend):
            fastssd.set_num_threads(self.threads)
            try:
                yield
            finally:
                fastssd.set_num_threads(None)


# --- ours -----------------------------------------------------------------------------------------------------------


def _our_box_iou(boxes1: Any, boxes2: Any) -> Callable[[], Any]:
    if len(boxes1) * len(boxes2) < 10_000:
        return lambda: ops.box_iou(boxes1, boxes2)
    out = np.zeros((len(boxes1), len(boxes2)), boxes1.dtype)
    return lambda: ops.box_iou(boxes1, boxes2, out=out)


def _our_nms(boxes: Any, scores: Any, threshold: float) -> Callable[[], Any]:
    return lambda: ops.nms(boxes, scores, threshold)


def _our_match(anchors: Any, gt_boxes: Any) -> Callable[[], Any]:
    return lambda: ops.match_anchors(anchors, gt_boxes, force_match="best").gt_idx


def _our_targets(anchors: Any, gt_boxes: Any, gt_labels: Any) -> Callable[[], Any]:
    def call() -> Any:
        targets = ops.assign_targets(anchors, gt_boxes, gt_labels, force_match="best")
        return targets.labels, targets.deltas

    return call


def _our_mining(loss: Any, positive: Any) -> Callable[[], Any]:
    return lambda: ops.mine_hard_negatives(loss, positive)


def _our_criterion(logits: Any, deltas: Any, anchors: Any, gt_boxes: Any, gt_labels: Any) -> Callable[[], Any]:
    """Forward and backward. The targets are computed before, by assign_targets; torchvision encodes boxes in the
    loss."""
    import torch

    from fastssd.detection import Criterion
    from fastssd.ops import Targets

    criterion = Criterion(min_negatives=0)  # as in torchvision
    targets = ops.assign_targets(anchors, gt_boxes, gt_labels, force_match="best")
    tensors = Targets(*map(torch.from_numpy, targets))
    scores, offsets = (torch.from_numpy(array).requires_grad_() for array in (logits, deltas))

    def call() -> Any:
        total = criterion(scores, offsets, tensors).total
        return total.detach(), *torch.autograd.grad(total, (scores, offsets))

    return call


def _our_postprocess(logits: Any, deltas: Any, anchors: Any) -> Callable[[], Any]:
    return lambda: ops.postprocess_detections(logits, deltas, anchors, clip=(1.0, 1.0))


# --- torchvision and torch ------------------------------------------------------------------------------------------


def _torchvision_box_iou(boxes1: Any, boxes2: Any) -> Callable[[], Any]:
    import torch
    import torchvision

    a, b = torch.from_numpy(boxes1), torch.from_numpy(boxes2)
    return lambda: torchvision.ops.box_iou(a, b)


def _torchvision_nms(boxes: Any, scores: Any, threshold: float) -> Callable[[], Any]:
    import torch
    import torchvision

    b, s = torch.from_numpy(boxes), torch.from_numpy(scores)
    return lambda: torchvision.ops.nms(b, s, threshold)


def _torchvision_match(anchors: Any, gt_boxes: Any) -> Callable[[], Any]:
    import torch
    import torchvision
    from torchvision.models.detection._utils import SSDMatcher

    priors, truths = torch.from_numpy(anchors), [torch.from_numpy(boxes) for boxes in gt_boxes]
    matcher = SSDMatcher(0.5)
    return lambda: torch.stack([matcher(torchvision.ops.box_iou(boxes, priors)) for boxes in truths])


def _torchvision_targets(anchors: Any, gt_boxes: Any, gt_labels: Any) -> Callable[[], Any]:
    import torch
    from torchvision.models.detection._utils import BoxCoder

    priors, truths = torch.from_numpy(anchors), [torch.from_numpy(boxes) for boxes in gt_boxes]
    labels = [torch.from_numpy(label) for label in gt_labels]
    match, coder = _torchvision_match(anchors, gt_boxes), BoxCoder((10.0, 10.0, 5.0, 5.0))

    def call() -> Any:
        classes = torch.zeros((len(truths), len(priors)), dtype=torch.int64)
        deltas = torch.zeros((len(truths), len(priors), 4))
        for image, gt_idx in enumerate(match()):
            positive = torch.where(gt_idx >= 0)[0]
            matched = gt_idx[positive]
            classes[image, positive] = labels[image][matched]
            deltas[image, positive] = coder.encode_single(truths[image][matched], priors[positive])
        return classes, deltas

    return call


def _torchvision_mining(loss: Any, positive: Any) -> Callable[[], Any]:
    import torch

    losses, mask = torch.from_numpy(loss), torch.from_numpy(positive)

    def call() -> Any:  # as in torchvision's SSD.compute_loss
        wanted = 3 * mask.sum(1, keepdim=True)
        negative = losses.clone()
        negative[mask] = -float("inf")
        _, order = negative.sort(1, descending=True)
        return order.sort(1)[1] < wanted

    return call


def _topk_mining(loss: Any, positive: Any) -> Callable[[], Any]:
    import torch

    losses, mask = torch.from_numpy(loss), torch.from_numpy(positive)

    def call() -> Any:
        wanted = 3 * mask.sum(1, keepdim=True)
        negative = losses.masked_fill(mask, -torch.inf)
        most = int(wanted.max())
        chosen = negative.topk(most, dim=1).indices
        return torch.zeros_like(mask).scatter_(1, chosen, torch.arange(most) < wanted)

    return call


def _torchvision_criterion(logits: Any, deltas: Any, anchors: Any, gt_boxes: Any, gt_labels: Any) -> Callable[[], Any]:
    import torch
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.ssd import SSD

    class Bare:
        """The attributes that SSD.compute_loss reads."""

        box_coder, neg_to_pos_ratio = BoxCoder((10.0, 10.0, 5.0, 5.0)), 3

    truths = [
        {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)}
        for boxes, labels in zip(gt_boxes, gt_labels, strict=True)
    ]
    priors = [torch.from_numpy(anchors)] * len(truths)
    matched = list(torch.from_numpy(ops.match_anchors(anchors, gt_boxes, force_match="best").gt_idx))
    outputs = tuple(torch.from_numpy(array).requires_grad_() for array in (logits, deltas))
    named = dict(zip(("cls_logits", "bbox_regression"), outputs, strict=True))

    def call() -> Any:
        losses = SSD.compute_loss(Bare(), truths, named, priors, matched)
        total = losses["classification"] + losses["bbox_regression"]
        return total.detach(), *torch.autograd.grad(total, outputs)

    return call


def _torchvision_postprocess(logits: Any, deltas: Any, anchors: Any) -> Callable[[], Any]:
    import torch
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.ssd import SSD

    class Bare:
        """The attributes that SSD.postprocess_detections reads."""

        box_coder, score_thresh, nms_thresh = BoxCoder((10.0, 10.0, 5.0, 5.0)), 0.01, 0.45
        topk_candidates, detections_per_img = 400, 200

    outputs = {"cls_logits": torch.from_numpy(logits), "bbox_regression": torch.from_numpy(deltas)}
    priors, sizes = [torch.from_numpy(anchors)] * len(logits), [(1, 1)] * len(logits)
    return lambda: SSD.postprocess_detections(Bare(), outputs, priors, sizes)


# --- others ---------------------------------------------------------------------------------------------------------


def _powerboxes_iou(boxes1: Any, boxes2: Any) -> Callable[[], Any]:
    import powerboxes

    return lambda: powerboxes.parallel_iou_distance(boxes1, boxes2)


def _powerboxes_iou_serial(boxes1: Any, boxes2: Any) -> Callable[[], Any]:
    import powerboxes

    return lambda: powerboxes.iou_distance(boxes1, boxes2)


def _powerboxes_nms(boxes: Any, scores: Any, threshold: float) -> Callable[[], Any]:
    import powerboxes

    wide = scores.astype(np.float64)
    return lambda: powerboxes.nms(boxes, wide, threshold, -1.0)


def _powerboxes_rtree(boxes: Any, scores: Any, threshold: float) -> Callable[[], Any]:
    import powerboxes

    wide = scores.astype(np.float64)
    return lambda: powerboxes.rtree_nms(boxes, wide, threshold, -1.0)


def _opencv_nms(boxes: Any, scores: Any, threshold: float) -> Callable[[], Any]:
    import cv2

    corner_and_size = boxes.astype(np.float64)
    corner_and_size[:, 2:] -= corner_and_size[:, :2]
    return lambda: cv2.dnn.NMSBoxes(corner_and_size, scores, 0.0, threshold)


def _supervision_iou(boxes1: Any, boxes2: Any) -> Callable[[], Any]:
    import supervision

    return lambda: supervision.box_iou_batch(boxes1, boxes2)


def _supervision_nms(boxes: Any, scores: Any, threshold: float) -> Callable[[], Any]:
    import supervision

    if len(boxes) > 2000:
        raise TooLarge("supervision holds all pairs in memory at once")
    predictions = np.column_stack([boxes, scores])
    return lambda: np.flatnonzero(supervision.box_non_max_suppression(predictions, threshold))


def _pycocotools_iou(boxes1: Any, boxes2: Any) -> Callable[[], Any]:
    from pycocotools import mask

    first, second = (ops.box_convert(boxes, "xyxy", "xywh").astype(np.float64) for boxes in (boxes1, boxes2))
    crowd = [0] * len(second)
    return lambda: mask.iou(first, second, crowd)


def _onnxruntime_nms(boxes: Any, scores: Any, threshold: float) -> Callable[[], Any]:
    import onnxruntime
    from onnx import TensorProto, helper

    names = ("boxes", "scores", "most", "iou", "score")
    node = helper.make_node("NonMaxSuppression", names, ["keep"])
    shapes: list[list[Any]] = [[1, None, 4], [1, 1, None], [1], [1], [1]]
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT, TensorProto.FLOAT)
    inputs = [helper.make_tensor_value_info(n, k, s) for n, k, s in zip(names, kinds, shapes, strict=True)]
    output = helper.make_tensor_value_info("keep", TensorProto.INT64, [None, 3])
    graph = helper.make_graph([node], "nms", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    limits = (np.array([len(boxes)]), np.array([threshold], np.float32), np.array([-1], np.float32))
    feed = dict(zip(names, (boxes[None], scores[None, None], *limits), strict=True))
    return lambda: session.run(None, feed)[0][:, 2]


# By operator: our bind, and by name of each peer the packages that it needs and its bind.
PEERS: dict[str, tuple[Bind, dict[str, tuple[tuple[str, ...], Bind]]]] = {
    "box_iou": (
        _our_box_iou,
        {
            "torchvision": (("torchvision",), _torchvision_box_iou),
            "powerboxes": (("powerboxes",), _powerboxes_iou_serial),
            "powerboxes parallel": (("powerboxes",), _powerboxes_iou),
            "supervision": (("supervision",), _supervision_iou),
            "pycocotools": (("pycocotools",), _pycocotools_iou),
        },
    ),
    "nms": (
        _our_nms,
        {
            "torchvision": (("torchvision",), _torchvision_nms),
            "powerboxes": (("powerboxes",), _powerboxes_nms),
            "powerboxes rtree": (("powerboxes",), _powerboxes_rtree),
            "opencv": (("cv2",), _opencv_nms),
            "onnxruntime": (("onnxruntime", "onnx"), _onnxruntime_nms),
            "supervision": (("supervision",), _supervision_nms),
        },
    ),
    "match_anchors": (_our_match, {"torchvision": (("torchvision",), _torchvision_match)}),
    "assign_targets": (_our_targets, {"torchvision": (("torchvision",), _torchvision_targets)}),
    "mine_hard_negatives": (
        _our_mining,
        {
            "torchvision": (("torch",), _torchvision_mining),
            "torch topk": (("torch",), _topk_mining),
        },
    ),
    "criterion": (_our_criterion, {"torchvision": (("torchvision",), _torchvision_criterion)}),
    "postprocess_detections": (_our_postprocess, {"torchvision": (("torchvision",), _torchvision_postprocess)}),
}


def implementations(operator: str, threads: tuple[int, ...] = (1, 2), reference: bool = False) -> list[Implementation]:
    """All implementations that can run here, ours first.

    Args:
        operator: a key of :data:`PEERS`.
        threads: numbers of threads for the C++ backend.
        reference: whether to include the reference backend.
    """
    bind, peers = PEERS[operator]
    ours = []
    for backend in available_backends():
        if backend == "cpp":
            ours += [Implementation(f"fastssd cpp, {n} thread{'s' * (n > 1)}", bind, True, backend, n) for n in threads]
        elif backend == "numba" or reference:
            ours.append(Implementation(f"fastssd {backend}", bind, True, backend))
    return ours + [
        Implementation(name, peer)
        for name, (packages, peer) in peers.items()
        if all(importlib.util.find_spec(package) for package in packages)
    ]


def agree(operator: str, ref: Any, comp: Any, name: str) -> bool:
    """Whether the result `comp` of the peer `name` is equal to ours, `ref`, up to its format and rounding."""
    if operator == "box_iou":
        values = np.asarray(comp)
        if name.startswith("powerboxes"):
            values = 1 - values  # powerboxes returns a distance
        return bool(np.allclose(values, ref, rtol=0, atol=1e-5))
    if operator == "nms":
        kept = np.asarray(comp).astype(np.int64).ravel()
        return bool(np.array_equal(np.sort(kept), np.sort(np.asarray(ref))))
    if operator == "assign_targets":
        return all(np.allclose(np.asarray(c), r, rtol=1e-4, atol=1e-5) for r, c in zip(ref, comp, strict=True))
    if operator == "criterion":
        return all(np.allclose(c, r, rtol=1e-4, atol=1e-7) for r, c in zip(ref, comp, strict=True))
    if operator == "postprocess_detections":
        return all(_same_detections(ref, image, found) for image, found in enumerate(comp))
    return bool(np.array_equal(np.asarray(comp), ref))


def _same_detections(ref: Any, image: int, found: Any) -> bool:
    """Whether torchvision's dict for an image has the same detections. Scores differ by ULPs, so ties may be in another
    order."""
    count = int(ref.counts[image])
    if count != len(found["scores"]):
        return False
    close = np.allclose(found["scores"], ref.scores[image, :count], rtol=1e-4)
    return bool(close and np.mean(np.asarray(found["labels"]) == ref.labels[image, :count]) > 0.95)
