"""detectron2's matching, IoU, NMS and box transform on our kernels: names, signatures and results.

Import them in place of detectron2's, or call :func:`patch` once before the model is built. Boxes are detectron2's
``Boxes``, anything else that has a ``.tensor``, or plain tensors; detectron2 itself is never imported here.

The results are detectron2's, element for element. Exceptions:

- :func:`batched_nms` is NMS per class at any coordinates; detectron2 (torchvision) shifts classes apart, which
  costs bits of float32 and lets classes with negative coordinates meet.
- IoU with a box that is not finite is 0, where detectron2 may give NaN. A box that is not finite, or has a NaN score,
  is never returned by NMS.
- Where detectron2 asserts, ``ValueError`` or ``TypeError`` is raised here, with the reason; under :func:`patch`
  detectron2 itself is called.

Source:
    facebookresearch/detectron2: ``structures/boxes.py``, ``modeling/matcher.py``, ``modeling/box_regression.py``,
    ``layers/nms.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from fastssd import ops

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise ImportError("fastssd.compat.detectron2 needs torch; install it with: pip install 'fastssd[torch]'") from error

from fastssd.compat._routes import Host, Routes

__all__ = ["Box2BoxTransform", "Matcher", "batched_nms", "matched_boxlist_iou", "nms", "pairwise_iou", "patch"]

_SCALE_CLAMP = math.log(1000.0 / 16)
_ANY_OVERLAP = math.ulp(0.0)  # as a threshold: reached by every IoU but 0


class HasTensor(Protocol):
    """detectron2's ``Boxes``, or what looks like them."""

    @property
    def tensor(self) -> Tensor:
        """[N, 4] xyxy."""


Boxes = HasTensor | Tensor


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """IoU of every pair: ``Boxes`` or xyxy tensors of N and M boxes to [N, M]; 0 for boxes without area."""
    iou: Tensor = ops.box_iou(_tensor(boxes1), _tensor(boxes2))
    return iou


def matched_boxlist_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """IoU of each box with the one at its place in the other set: N and N boxes to [N]; 0 for boxes without area."""
    iou: Tensor = ops.paired_box_iou(_tensor(boxes1), _tensor(boxes2))
    return iou


def nms(boxes: Boxes, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the kept boxes by descending score, int64 [K]; as ``torchvision.ops.nms``."""
    keep: Tensor = ops.nms(_tensor(boxes).detach(), scores.detach(), _at_most_one(iou_threshold))
    return keep


def batched_nms(boxes: Boxes, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """NMS within each class, in float32.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N].
        idxs: integers [N], the class of each box.
        iou_threshold: a box is deleted where its IoU with a kept one of its class is greater.

    Returns:
        int64 [K]: indices of the kept boxes of all classes by descending score.
    """
    flat = _tensor(boxes).detach().float()
    keep: Tensor = ops.batched_nms(flat, scores.detach(), idxs, _at_most_one(iou_threshold))
    return keep


class Matcher:
    """Gives every box (anchor, proposal) its best ground-truth box, and a label by their overlap.

    Args:
        thresholds: ascending numbers > 0 that divide the qualities into ``len(thresholds) + 1`` levels; a quality equal
            to a threshold belongs to the level above it.
        labels: of each level, from the lowest: -1 ignored, 0 negative, 1 positive.
        allow_low_quality_matches: the boxes that overlap a ground-truth box most are labelled 1 as well (and keep
            their own best ground-truth box).

    Raises:
        ValueError: thresholds or labels are not as described.

    Source:
        ``detectron2.modeling.matcher.Matcher``; Faster R-CNN, arXiv:1506.01497, section 3.1.2.
    """

    def __init__(
        self, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality_matches: bool = False
    ) -> None:
        bounds = [-math.inf, *thresholds, math.inf]
        if len(thresholds) == 0 or not thresholds[0] > 0 or any(not a <= b for a, b in pairwise(bounds)):
            raise ValueError(f"thresholds: expected ascending numbers > 0, got {list(thresholds)}")
        if len(labels) != len(bounds) - 1 or any(label not in (-1, 0, 1) for label in labels):
            raise ValueError(
                f"labels: expected {len(bounds) - 1} of -1, 0 and 1, one more than thresholds, got {list(labels)}"
            )
        self.thresholds = bounds
        self.labels = list(labels)
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Match by a matrix of qualities, such as :func:`pairwise_iou` gives.

        Args:
            match_quality_matrix: [M, N], M ground-truth boxes and N boxes; >= 0.

        Returns:
            (matches, match_labels): int64 [N], the best ground truth of each box, the lowest index on ties, and int8
            [N]. Without ground-truth boxes matches are 0 and labels are ``labels[0]``.

        Raises:
            ValueError: not a matrix, or a quality that is negative or NaN.
        """
        quality = match_quality_matrix.detach()
        if quality.dim() != 2:
            raise ValueError(f"match_quality_matrix: expected shape [M, N], got {list(quality.shape)}")
        if quality.numel() == 0:
            return self._without_truth(quality.shape[1], quality.device)
        if not bool(quality.min() >= 0):
            raise ValueError("match_quality_matrix: expected qualities >= 0, got a negative number or NaN")
        on_cpu = quality.device.type == "cpu" and quality.dtype in (torch.float32, torch.float64)
        best, matches = _best_of_columns(quality.numpy()) if on_cpu else quality.max(dim=0)
        claimed = None
        if self.allow_low_quality_matches:
            rows: Any = quality.numpy() if on_cpu else quality
            claimed = torch.as_tensor((rows == (rows.max(1) if on_cpu else rows.amax(1))[:, None]).any(0))
        return matches, self._labels(best, claimed)

    def match(self, gt_boxes: Boxes, boxes: Boxes) -> tuple[Tensor, Tensor]:
        """``self(pairwise_iou(gt_boxes, boxes))`` without ever making the matrix: the fast way.

        Args:
            gt_boxes: M ground-truth boxes.
            boxes: N boxes, in the same unit.

        Returns:
            (matches, match_labels) as :meth:`__call__`.

        Raises:
            TypeError, ValueError: not boxes, or a box that is not finite.
        """
        truths, anchors = _tensor(gt_boxes).detach(), _tensor(boxes).detach()
        if truths.shape[0] == 0 or anchors.shape[0] == 0:
            return self._without_truth(anchors.shape[0], anchors.device)
        matches, best = ops.match_anchors(anchors, truths, iou_threshold=_ANY_OVERLAP, force_match="none")
        claimed = None
        if self.allow_low_quality_matches:
            # The anchors that reach threshold 1 are claimed anyway, because no overlap is larger.
            claimed = ops.match_anchors(anchors, truths, iou_threshold=1.0, force_match="low_quality").gt_idx >= 0
        return matches.clamp_(min=0), self._labels(best, claimed)

    def _without_truth(self, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        matches = torch.zeros(number, dtype=torch.int64, device=device)
        return matches, torch.full((number,), self.labels[0], dtype=torch.int8, device=device)

    def _labels(self, best: Tensor, claimed: Tensor | None) -> Tensor:
        labels = torch.full(best.shape, self.labels[0], dtype=torch.int8, device=best.device)
        for label, low in zip(self.labels[1:], self.thresholds[1:-1], strict=True):
            labels.masked_fill_(best >= low, label)  # torch compares in the dtype of `best`, as detectron2 does
        return labels if claimed is None else labels.masked_fill_(claimed, 1)


class Box2BoxTransform:
    """Boxes as deltas (dx, dy, dw, dh) from other boxes, and back.

    Args:
        weights: the four deltas are multiplied by them.
        scale_clamp: dw and dh are at most this when they are applied; default ``log(1000 / 16)``.

    Source:
        ``detectron2.modeling.box_regression.Box2BoxTransform``, in its order of arithmetic; R-CNN, arXiv:1311.2524,
        appendix C. Differentiable.
    """

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = _SCALE_CLAMP) -> None:
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """The deltas that turn each of `src_boxes` [N, 4] into its target [N, 4]: [N, 4].

        Raises:
            ValueError: a source box has no positive width.
        """
        positions, scales = [], []
        for axis in (0, 1):
            size, center = _size_and_center(src_boxes, axis)
            target_size, target_center = _size_and_center(target_boxes, axis)
            if axis == 0 and not bool((size > 0).all()):
                raise ValueError("src_boxes: expected boxes of positive width")
            positions.append(self.weights[axis] * (target_center - center) / size)
            scales.append(self.weights[2 + axis] * torch.log(target_size / size))
        return torch.stack(positions + scales, dim=1)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """The boxes that `deltas` [N, K * 4] make of `boxes` [N, 4]: [N, K * 4] float32."""
        deltas = deltas.float()
        low, high = [], []
        for axis in (0, 1):
            size, center = _size_and_center(boxes.float()[:, None], axis)  # [N, 1]
            moved = deltas[:, axis::4] / self.weights[axis] * size + center  # [N, K]
            scale = torch.clamp(deltas[:, 2 + axis :: 4] / self.weights[2 + axis], max=self.scale_clamp)
            half = 0.5 * (torch.exp(scale) * size)
            low.append(moved - half)
            high.append(moved + half)
        return torch.stack(low + high, dim=2).reshape(deltas.shape)


_HOST = Host(
    f"{__name__}:_HOST",
    ["detectron2"],
    {
        "detectron2.structures.boxes": (pairwise_iou, matched_boxlist_iou),
        "detectron2.layers.nms": (batched_nms,),
        "detectron2.modeling.matcher": (Matcher,),
    },
)


def patch(*modules: ModuleType) -> Routes:
    """Route detectron2 through this module: IoU and NMS at once, the matcher in models that are built after.

    ``patch()`` alone is permanent; ``with patch(): ...`` ends with the block, and ``patch().restore()`` ends it too.
    Calls that ours refuses, and those that are traced, compiled or scripted, go to detectron2's own objects, which
    answer or raise their own errors. The matcher is a subclass of detectron2's and of :class:`Matcher`.

    Args:
        modules: further modules to route, for what they imported from detectron2 by name.

    Raises:
        ImportError: detectron2, or what it imports, is missing.
    """
    return _HOST.patch(modules)


def _tensor(boxes: Boxes) -> Tensor:
    return boxes if isinstance(boxes, Tensor) else boxes.tensor


def _at_most_one(iou_threshold: float) -> float:
    return min(iou_threshold, 1.0)  # no IoU is greater than 1, so larger thresholds mean the same: delete nothing


def _size_and_center(boxes: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2 + axis] - boxes[..., axis]
    return size, boxes[..., axis] + 0.5 * size


def _best_of_columns(quality: Any) -> tuple[Tensor, Tensor]:
    """Maximum and first argmax of each column, 2.5 times as fast as NumPy's or torch's."""
    best = quality.max(0)
    marks = np.zeros(len(best), np.int16 if len(quality) < 2**15 else np.int64)
    for left, row in zip(range(len(quality), 0, -1), quality, strict=True):
        np.maximum(marks, (row == best).astype(marks.dtype) * marks.dtype.type(left), out=marks)
    return torch.from_numpy(best), torch.from_numpy(len(quality) - marks.astype(np.int64))
