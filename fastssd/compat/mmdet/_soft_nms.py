"""Soft-NMS on the kernel; with mmcv's order among equal scores where there are any."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastssd import ops
from fastssd.compat.mmdet.overlaps import check_offset

_METHODS = ("naive", "linear", "gaussian")


def soft_input(boxes: Tensor, scores: Tensor) -> tuple[NDArray[Any], NDArray[Any], bool]:
    """Both in the dtype in which they are computed, and whether the scores are all different."""
    wide = torch.float64 in (boxes.dtype, scores.dtype)
    array, numbers = (x.detach().cpu().to(torch.float64 if wide else torch.float32).numpy() for x in (boxes, scores))
    if not (np.isfinite(array).all() and np.isfinite(numbers).all()):
        raise ValueError("boxes, scores: expected finite numbers")
    return array, numbers, len(np.unique(numbers)) == len(numbers)


def soften(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    distinct: bool,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
    offset: int = 0,
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Soft-NMS: (taken, lowered), int64 [K] and [K]."""
    if method not in _METHODS:
        raise ValueError(f"method: expected one of {', '.join(map(repr, _METHODS))}, got {method!r}")
    check_offset(offset)
    real = scores.dtype.type
    threshold, least = float(real(iou_threshold)), real(min_score)
    if len(boxes) == 0 or scores.max() < least:
        taken = np.flatnonzero(scores == scores.max(initial=-np.inf))[:1]
        return taken, scores[taken]
    if offset or not distinct or (method == "naive" and not (threshold > 0 and least > 0)):
        # Among equal scores mmcv takes the one that its swaps have brought to the front.
        return _in_place_order(boxes, scores, threshold, real(sigma), least, method, offset)
    reached = _clamped(_below(threshold, real))
    if method == "naive":
        good = np.flatnonzero(scores >= least)
        taken = good[ops.nms(boxes[good], scores[good], reached)]
        return taken, scores[taken]
    found: tuple[NDArray[np.int64], NDArray[Any]] = ops.soft_nms(
        boxes, scores, method=method, iou_threshold=reached, sigma=sigma, score_threshold=_below(least, real)
    )
    return found


def _in_place_order(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    iou_threshold: float,
    sigma: Any,
    min_score: Any,
    method: str,
    offset: int,
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Soft-NMS as mmcv does it: the best of what is left is swapped to the front; what falls under `min_score` is
    overwritten by the last.

    Args:
        boxes: [N, 4]; scores: [N] of one dtype.

    Returns:
        (taken, lowered): int64 [K] and their scores [K].
    """
    real = scores.dtype.type
    x1, y1, x2, y2 = boxes.astype(real).T
    # One row a quantity, one column a box, so that a swap moves a column.
    table = np.stack([x1, y1, x2, y2, (x2 - x1 + real(offset)) * (y2 - y1 + real(offset)), scores])
    index = np.arange(len(scores))
    size, front = len(scores), 0
    while front < size:
        best = front + int(table[5, front:size].argmax())
        table[:, [front, best]] = table[:, [best, front]]
        index[[front, best]] = index[[best, front]]
        x1, y1, x2, y2, area, _ = table[:, front]
        front += 1
        rest = table[:, front:size]
        width = np.maximum(np.minimum(rest[2], x2) - np.maximum(rest[0], x1) + real(offset), 0)
        height = np.maximum(np.minimum(rest[3], y2) - np.maximum(rest[1], y1) + real(offset), 0)
        overlap = width * height
        union = area + rest[4] - overlap
        iou = np.divide(overlap, union, out=np.zeros_like(union), where=union > 0)
        if method == "gaussian":
            weight = np.exp(-(iou * iou) / sigma)
        else:
            weight = np.where(iou >= iou_threshold, 1 - iou if method == "linear" else 0, 1).astype(real)
        rest[5] *= weight
        good = ~(rest[5] < min_score)
        left = int(good.sum())
        # The last good ones fill the gaps, from the end on.
        gaps = np.flatnonzero(~good[:left])
        fillers = left + np.flatnonzero(good[left:])[::-1]
        rest[:, gaps] = rest[:, fillers]
        index[front + gaps] = index[front + fillers]
        size = front + left
    return index[:size], table[5, :size]


def _clamped(threshold: float) -> float:
    return min(max(threshold, 0.0), 1.0)


def _below(value: Any, real: type) -> float:
    """The next smaller number: what is greater than it is at least `value`."""
    return float(np.nextafter(real(value), real(-np.inf)))
