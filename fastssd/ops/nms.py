"""Non-maximum suppression: of boxes that overlap, keep the best."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from fastssd.backends import SOFT_NMS_METHODS, active_backend, shortcuts
from fastssd.ops import _face as face
from fastssd.ops._face import Array

NONFINITE = {"drop": 0, "raise": 1}


def nms(boxes: Array, scores: Array, iou_threshold: float, *, nonfinite: str = "drop") -> Any:
    """Keep the box with the highest score, delete what overlaps it too much, repeat.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N].
        iou_threshold: a box is deleted where its IoU with a kept one is greater than this; in [0, 1].
        nonfinite: ``"drop"``: a box that is not finite or has a NaN score is never returned and suppresses nothing;
            ``"raise"``: it is an error.

    Returns:
        int64 [K]: indices of the kept boxes by falling score, equal scores by index.

    Raises:
        TypeError, ValueError: wrong shapes, lengths or threshold.

    Source:
        Same indices as ``torchvision.ops.nms`` on finite boxes of positive area.
    """
    if not (type(boxes) is type(scores) is ndarray) and face.dispatched(boxes, scores):
        arrays = {"boxes": boxes, "scores": scores}
        return face.dispatch("call", "nms", arrays, iou_threshold=iou_threshold, nonfinite=nonfinite)
    if (found := shortcuts.nms(boxes, scores, iou_threshold, nonfinite)) is not None:
        return found
    flat, values = _boxes_and_scores(boxes, scores, nonfinite)
    threshold = face.fraction("iou_threshold", iou_threshold)
    keep = np.empty(len(flat), np.int64)
    count = active_backend().nms(flat, values, threshold, keep)
    return face.like(keep[:count].copy(), boxes, scores)


def batched_nms(boxes: Array, scores: Array, idxs: Array, iou_threshold: float, *, nonfinite: str = "drop") -> Any:
    """NMS within each group: boxes of different groups (classes, pictures) never suppress each other.

    Args:
        boxes, scores, iou_threshold, nonfinite: as in :func:`nms`.
        idxs: integers [N] of any kind, the group of each box.

    Returns:
        int64 [K]: indices of the kept boxes of all groups by falling score, equal scores by index.

    Raises:
        TypeError, ValueError: wrong shapes, lengths or threshold.

    Source:
        ``torchvision.ops.batched_nms``; per group whatever the coordinates, where torchvision shifts groups apart and
        loses bits by it.
    """
    if not (type(boxes) is type(scores) is type(idxs) is ndarray) and face.dispatched(boxes, scores, idxs):
        arrays = {"boxes": boxes, "scores": scores, "idxs": idxs}
        return face.dispatch("call", "batched_nms", arrays, iou_threshold=iou_threshold, nonfinite=nonfinite)
    if (found := shortcuts.batched_nms(boxes, scores, idxs, iou_threshold, nonfinite)) is not None:
        return found
    flat, values = _boxes_and_scores(boxes, scores, nonfinite)
    groups = face.to_numpy("idxs", idxs)
    face.check_shape("idxs", groups, ("N",))
    face.check_length("idxs", groups, "boxes", len(flat))
    threshold = face.fraction("iou_threshold", iou_threshold)
    keep = np.empty(len(flat), np.int64)
    count = active_backend().batched_nms(flat, values, face.identifiers("idxs", groups), threshold, keep)
    return face.like(keep[:count].copy(), boxes, scores, idxs)


def soft_nms(
    boxes: Array,
    scores: Array,
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    nonfinite: str = "drop",
) -> Any:
    """NMS that lowers the score of what overlaps instead of deleting it.

    Args:
        boxes, scores, nonfinite: as in :func:`nms`.
        method: ``"linear"``: scores are multiplied by ``1 - iou`` where ``iou > iou_threshold``; ``"gaussian"``: by
            ``exp(-iou**2 / sigma)``.
        iou_threshold: in [0, 1], for ``"linear"``.
        sigma: > 0, for ``"gaussian"``.
        score_threshold: a box leaves once its score is not greater than this.

    Returns:
        (keep, scores): int64 [K] indices in the order in which they were taken, and their lowered scores [K].

    Raises:
        TypeError, ValueError: wrong shapes, lengths, thresholds or method.

    Source:
        Soft-NMS, arXiv:1704.04503, figure 2.
    """
    if not (type(boxes) is type(scores) is ndarray) and face.dispatched(boxes, scores):
        return face.dispatch(
            "call",
            "soft_nms",
            {"boxes": boxes, "scores": scores},
            method=method,
            iou_threshold=iou_threshold,
            sigma=sigma,
            score_threshold=score_threshold,
            nonfinite=nonfinite,
        )
    flat, values = _boxes_and_scores(boxes, scores, nonfinite)
    code = face.choice("method", method, SOFT_NMS_METHODS)
    threshold = face.fraction("iou_threshold", iou_threshold)
    width = face.number("sigma", sigma, float(np.finfo(np.float32).tiny))
    lowest = face.number("score_threshold", score_threshold)
    keep, kept_scores = np.empty(len(flat), np.int64), np.empty(len(flat), flat.dtype)
    found = active_backend().soft_nms(flat, values, code, threshold, width, lowest, keep, kept_scores)
    decayed = face.like(kept_scores[:found].copy(), boxes, scores)
    return face.like(keep[:found].copy(), boxes, scores), face.without_gradient("soft_nms", decayed, boxes, scores)


def _boxes_and_scores(boxes: Array, scores: Array, nonfinite: str) -> tuple[NDArray[Any], NDArray[Any]]:
    array, values = face.to_boxes("boxes", boxes), face.to_numpy("scores", scores)
    face.check_shape("boxes", array, ("N", 4))
    face.check_shape("scores", values, ("N",))
    face.check_length("scores", values, "boxes", len(array))
    if face.choice("nonfinite", nonfinite, NONFINITE):
        face.check_finite("boxes", array)
        face.check_rows("scores", np.isnan(values), values, "is NaN")
    array, values = face.promote(array, values)
    return array, values
