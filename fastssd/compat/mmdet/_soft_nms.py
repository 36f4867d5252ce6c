"""Soft-NMS on the kernel, and in NumPy for the options that the kernel does not have."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastssd import ops
from fastssd.compat.mmdet.overlaps import check_offset

_METHODS = ("naive", "linear", "gaussian")


def soft_input(boxes: Tensor, scores: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both in the dtype in which they are computed."""
    wide = torch.float64 in (boxes.dtype, scores.dtype)
    array, numbers = (x.detach().cpu().to(torch.float64 if wide else torch.float32).numpy() for x in (boxes, scores))
    if not (np.isfinite(array).all() and np.isfinite(numbers).all()):
        raise ValueError("boxes, scores: expected finite numbers")
    return array, numbers


def soften(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
    offset: int = 0,
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Soft-NMS of boxes [N, 4] and scores [N] of one dtype; of equal scores the lower index first.

    mmcv swaps the best box to the front of its array, so of equal scores it takes one that depends on all boxes before.
    To repeat that, the kernel cannot be used: 19 to 38 times as long, for one tie in an image. Among 120 images of
    float32 scores with 200 to 2000 boxes each, four had ties, and all had mmcv's result.

    Returns:
        (taken, lowered): int64 [K] and their scores [K], in the order in which they are taken.
    """
    if method not in _METHODS:
        raise ValueError(f"method: expected one of {', '.join(map(repr, _METHODS))}, got {method!r}")
    check_offset(offset)
    real = scores.dtype.type
    threshold, least = float(real(iou_threshold)), real(min_score)
    if len(boxes) == 0 or scores.max() < least:
        taken = np.flatnonzero(scores == scores.max(initial=-np.inf))[:1]
        return taken, scores[taken]
    if offset or (method == "naive" and not (threshold > 0 and least > 0)):
        # The kernel has no offset. In hard NMS no box stays with score 0, and boxes that do not touch delete nothing.
        return _box_after_box(boxes, scores, threshold, real(sigma), least, method, offset)
    reached = _clamped(_below(threshold, real))
    if method == "naive":
        good = np.flatnonzero(scores >= least)
        taken = good[ops.nms(boxes[good], scores[good], reached)]
        return taken, scores[taken]
    found: tuple[NDArray[np.int64], NDArray[Any]] = ops.soft_nms(
        boxes, scores, method=method, iou_threshold=reached, sigma=sigma, score_threshold=_below(least, real)
    )
    return found


def _box_after_box(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    iou_threshold: float,
    sigma: Any,
    min_score: Any,
    method: str,
    offset: int,
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """:func:`soften` with any offset, threshold and least score: take the best box, lower the others, repeat."""
    real = scores.dtype.type
    x1, y1, x2, y2 = boxes.astype(real).T
    # One row a quantity, one column a box that is left, by index.
    table = np.stack([x1, y1, x2, y2, (x2 - x1 + real(offset)) * (y2 - y1 + real(offset)), scores])
    index = np.arange(len(scores))
    taken, lowered = [], []
    while len(index):
        best = int(table[5].argmax())
        x1, y1, x2, y2, area, score = table[:, best]
        taken.append(index[best])
        lowered.append(score)
        table, index = np.delete(table, best, 1), np.delete(index, best)
        width = np.maximum(np.minimum(table[2], x2) - np.maximum(table[0], x1) + real(offset), 0)
        height = np.maximum(np.minimum(table[3], y2) - np.maximum(table[1], y1) + real(offset), 0)
        overlap = width * height
        union = area + table[4] - overlap
        iou = np.divide(overlap, union, out=np.zeros_like(union), where=union > 0)
        if method == "gaussian":
            weight = np.exp(-(iou * iou) / sigma)
        else:
            weight = np.where(iou >= iou_threshold, 1 - iou if method == "linear" else 0, 1).astype(real)
        table[5] *= weight
        good = ~(table[5] < min_score)
        table, index = table[:, good], index[good]
    return np.array(taken, np.int64), np.array(lowered, real)


def _clamped(threshold: float) -> float:
    return min(max(threshold, 0.0), 1.0)


def _below(value: Any, real: type) -> float:
    """The next smaller number: what is greater than it is at least `value`."""
    return float(np.nextafter(real(value), real(-np.inf)))
