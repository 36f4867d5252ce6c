"""Soft-NMS with mmcv's order among equal scores, which is that of an array from which boxes are swapped away."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def soft_nms_in_place_order(
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
