"""Greedy NMS by any measure, block by block: for options that the kernels do not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastssd import ops
from fastssd.compat.mmdet.overlaps import bbox_overlaps

Suppresses = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.bool_]]

_BLOCK = 256


def greedy(boxes: NDArray[Any], suppresses: Suppresses, owner: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Indices of the kept boxes, of boxes [N, 4] in descending order of their scores: int64 [K], ascending.

    Args:
        suppresses: boxes [R, 4] and [C, 4] to bool [R, C]: whether the first deletes the second where it is better.
        owner: int64 [N], the numbers 0 to N - 1; a deleted box gets the number of the one that deleted it.
    """
    alive = np.ones(len(boxes), bool)
    for start in range(0, len(boxes), _BLOCK):
        stop = start + _BLOCK
        block = start + np.flatnonzero(alive[start:stop])
        within = np.triu(suppresses(boxes[block], boxes[block]), 1)
        stays = np.ones(len(block), bool)
        for i in np.flatnonzero(within.any(1)):
            if stays[i]:
                gone = within[i] & stays
                if owner is not None:
                    owner[block[gone]] = block[i]
                stays &= ~gone
        alive[block] = stays
        chosen, rest = block[stays], stop + np.flatnonzero(alive[stop:])
        if len(chosen) == 0 or len(rest) == 0:
            continue
        beyond = suppresses(boxes[chosen], boxes[rest])
        gone = beyond.any(0)
        if owner is not None:
            owner[rest[gone]] = chosen[beyond[:, gone].argmax(0)]  # the first of them
        alive[rest[gone]] = False
    return np.flatnonzero(alive)


def suppression_with_offset(boxes: NDArray[Any], iou_threshold: float, offset: int) -> Suppresses:
    """IoU > threshold of boxes whose sides are ``x2 - x1 + offset``, to the bit as that arithmetic rounds.

    The kernel is called with boxes that end `offset` later. It rounds differently, so pairs near the threshold are
    computed again. Where sides are at least 1 and u is the spacing of numbers at the largest coordinate, the error
    of an IoU is less than 10 u.
    """
    threshold = boxes.dtype.type(iou_threshold)
    end = np.array([0, 0, offset, offset], boxes.dtype)
    with np.errstate(invalid="ignore"):
        forward = bool((boxes[:, 2:] >= boxes[:, :2]).all()) and bool(np.isfinite(boxes).all())
    near = 16 * np.spacing(np.abs(boxes).max(initial=0) + 1) if forward else np.inf

    def suppresses(rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[np.bool_]:
        iou = ops.box_iou(rows + end, columns + end)
        result: NDArray[np.bool_] = iou > threshold
        row, column = np.nonzero(np.abs(iou - threshold) <= near)
        exact = bbox_overlaps(
            torch.from_numpy(rows[row]), torch.from_numpy(columns[column]), is_aligned=True, eps=0.0, offset=offset
        )
        result[row, column] = exact.numpy() > threshold
        return result

    return suppresses
