"""What operators with several outputs return."""

from __future__ import annotations

from typing import Any, NamedTuple


class Matches(NamedTuple):
    """What :func:`~fastssd.ops.match_anchors` returns."""

    gt_idx: Any
    """int64 [A] or [B, A]: >= 0 the ground-truth box that the anchor is positive for, -1 background, -2 ignored."""
    iou: Any
    """float [A] or [B, A]: IoU with that ground-truth box, else with the best one, 0 where there is none."""


class Targets(NamedTuple):
    """What :func:`~fastssd.ops.assign_targets` returns."""

    labels: Any
    """int64 [A] or [B, A]: the label of the matched ground-truth box, 0 background, -1 ignored."""
    deltas: Any
    """float [A, 4] or [B, A, 4]: the matched ground-truth box encoded against the anchor, 0 where not positive."""
    gt_idx: Any
    """int64 [A] or [B, A]: as in :class:`Matches`."""


class MultiboxLoss(NamedTuple):
    """What :func:`~fastssd.ops.multibox_cross_entropy` returns."""

    loss: Any
    """[], the sum over the selected anchors, float32 or float64. Differentiable for torch, once."""
    selected: Any
    """bool [B, A] or [A]: the positives and the mined negatives."""


class SoftDetections(NamedTuple):
    """What :func:`~fastssd.ops.soft_nms` and :func:`~fastssd.ops.matrix_nms` return."""

    keep: Any
    """int64 [K]: indices of the boxes, in the order of `scores`."""
    scores: Any
    """float [K]: their lowered scores, descending."""


class Detections(NamedTuple):
    """What :func:`~fastssd.ops.postprocess_detections` returns; places at and after `counts` are padding."""

    boxes: Any
    """float [B, K, 4] xyxy in the anchors' unit; padding 0."""
    scores: Any
    """float [B, K], descending; padding 0."""
    labels: Any
    """int64 [B, K], >= 1; padding -1."""
    anchor_idx: Any
    """int64 [B, K]: the anchor that made the detection; padding -1."""
    counts: Any
    """int64 [B]: how many detections each image has."""
