"""Non-maximum suppression: of boxes that overlap, keep the best."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd import _checks as checks
from fastssd._checks import Array
from fastssd.backends import SOFT_NMS_METHODS, active_backend
from fastssd.ops._operator import operator
from fastssd.ops._results import SoftDetections


@operator("boxes: float[N, 4], scores: float[N] -> int64[K]", shortcut=True)
def nms(boxes: Array, scores: Array, iou_threshold: float, *, nonfinite: str = "drop") -> Any:
    """Keep the box with the highest score, delete what overlaps it too much, repeat.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N].
        iou_threshold: a box is deleted where its IoU with a kept one is greater than this; in [0, 1].
        nonfinite: ``"drop"``: a box that is not finite or has a NaN score is never returned and suppresses nothing;
            ``"raise"``: it is an error.

    Returns:
        int64 [K]: indices of the kept boxes by descending score, equal scores by index.

    Raises:
        TypeError, ValueError: wrong shapes, lengths or threshold.

    Source:
        Same indices as ``torchvision.ops.nms`` on finite boxes of positive area.
    """
    boxes, scores = _promoted(boxes, scores, nonfinite)
    keep = np.empty(len(boxes), np.int64)
    count = active_backend().nms(boxes, scores, iou_threshold, keep)
    return keep[:count].copy()


@operator("boxes: float[N, 4], scores: float[N], idxs: int[N] -> int64[K]", shortcut=True)
def batched_nms(boxes: Array, scores: Array, idxs: Array, iou_threshold: float, *, nonfinite: str = "drop") -> Any:
    """NMS within each group: boxes of different groups (classes, images) never suppress each other.

    Args:
        boxes, scores, iou_threshold, nonfinite: as in :func:`nms`.
        idxs: integers [N] of any kind, the group of each box.

    Returns:
        int64 [K]: indices of the kept boxes of all groups by descending score, equal scores by index.

    Raises:
        TypeError, ValueError: wrong shapes, lengths or threshold.

    Source:
        ``torchvision.ops.batched_nms``. Here groups are separate for all coordinates; torchvision shifts them apart and
        loses bits by it.
    """
    boxes, scores = _promoted(boxes, scores, nonfinite)
    keep = np.empty(len(boxes), np.int64)
    count = active_backend().batched_nms(boxes, scores, checks.identifiers("idxs", idxs), iou_threshold, keep)
    return keep[:count].copy()


@operator("boxes: float[N, 4], scores: float[N] -> keep: int64[K], scores: float[K]", result=SoftDetections)
def soft_nms(
    boxes: Array,
    scores: Array,
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    nonfinite: str = "drop",
) -> SoftDetections:
    """NMS that lowers the score of what overlaps instead of deleting it.

    Args:
        boxes, scores, nonfinite: as in :func:`nms`.
        method: ``"linear"``: scores are multiplied by ``1 - iou`` where ``iou > iou_threshold``; ``"gaussian"``: by
            ``exp(-iou**2 / sigma)``.
        iou_threshold: in [0, 1], for ``"linear"``.
        sigma: > 0, for ``"gaussian"``.
        score_threshold: a box is removed when its score is not greater than this.

    Returns:
        :class:`SoftDetections`: (keep, scores).

    Raises:
        TypeError, ValueError: wrong shapes, lengths, thresholds or method.

    Source:
        Soft-NMS, arXiv:1704.04503, figure 2.
    """
    boxes, scores = _promoted(boxes, scores, nonfinite)
    keep, kept_scores = np.empty(len(boxes), np.int64), np.empty(len(boxes), boxes.dtype)
    count = active_backend().soft_nms(
        boxes, scores, SOFT_NMS_METHODS[method], iou_threshold, sigma, score_threshold, keep, kept_scores
    )
    return SoftDetections(keep[:count].copy(), kept_scores[:count].copy())


@operator(
    "boxes: float[N, 4], scores: float[N], idxs: int[N] -> keep: int64[K], scores: float[K]", result=SoftDetections
)
def matrix_nms(
    boxes: Array,
    scores: Array,
    idxs: Array,
    *,
    method: str = "gaussian",
    sigma: float = 0.5,
    score_threshold: float = 0.05,
    nonfinite: str = "drop",
) -> SoftDetections:
    """NMS that lowers all scores at once: by the IoU with each better box, and less if that box is suppressed itself.

    Args:
        boxes, scores, nonfinite: as in :func:`nms`.
        idxs: as in :func:`batched_nms`; only boxes of the same group lower each other's scores.
        method: how a score decays with the IoU: ``"linear"`` as ``1 - iou``, ``"gaussian"`` as
            ``exp(-iou**2 / sigma)``.
        sigma: > 0, for ``"gaussian"``. It is 1 / sigma of the authors' code and of mmdetection, whose default is 2.
        score_threshold: in [0, 1]; boxes whose lowered score is not greater than this are left out.

    Returns:
        :class:`SoftDetections`: (keep, scores), by descending lowered score, equal ones by index.

    Raises:
        TypeError, ValueError: wrong shapes, lengths, threshold or method.

    Source:
        SOLOv2, arXiv:2003.10152, "Matrix NMS", which uses the IoU of masks.
    """
    boxes, scores = _promoted(boxes, scores, nonfinite)
    keep, kept_scores = np.empty(len(boxes), np.int64), np.empty(len(boxes), boxes.dtype)
    groups = checks.identifiers("idxs", idxs)
    count = active_backend().matrix_nms(
        boxes, scores, groups, SOFT_NMS_METHODS[method], sigma, score_threshold, keep, kept_scores
    )
    return SoftDetections(keep[:count].copy(), kept_scores[:count].copy())


def _promoted(boxes: NDArray[Any], scores: NDArray[Any], nonfinite: str) -> tuple[NDArray[Any], ...]:
    if nonfinite == "raise":
        checks.check_finite("boxes", boxes)
        checks.check_rows("scores", np.isnan(scores), scores, "is NaN")
    return checks.promote(boxes, scores)
