"""Intersection over union and its relatives: the definition (docs/contract.md, IoU)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastssd.backends.codes import Float
from fastssd.backends.reference.boxes import area

EPS = 1e-7  # keeps the distance and complete IoU finite where two boxes are one point


def _corners(boxes: Float) -> tuple[Float, Float, Float, Float]:
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    return x1, y1, x2, y2


def iou_and_union(boxes1: Float, boxes2: Float) -> tuple[Float, Float]:
    """IoU and union of boxes [..., 4] that broadcast against each other."""
    ax1, ay1, ax2, ay2 = _corners(boxes1)
    bx1, by1, bx2, by2 = _corners(boxes2)
    with np.errstate(all="ignore"):
        width = np.maximum(np.minimum(ax2, bx2) - np.maximum(ax1, bx1), 0)
        height = np.maximum(np.minimum(ay2, by2) - np.maximum(ay1, by1), 0)
        inter = width * height
        union = area(boxes1) + area(boxes2) - inter
        iou = np.where(union > 0, inter / union, 0).astype(boxes1.dtype)
    return iou, union


def _iou(boxes1: Float, boxes2: Float) -> Float:
    return iou_and_union(boxes1, boxes2)[0]


def _generalized(boxes1: Float, boxes2: Float) -> Float:
    iou, union = iou_and_union(boxes1, boxes2)
    ax1, ay1, ax2, ay2 = _corners(boxes1)
    bx1, by1, bx2, by2 = _corners(boxes2)
    hull = np.maximum(np.maximum(ax2, bx2) - np.minimum(ax1, bx1), 0) * np.maximum(
        np.maximum(ay2, by2) - np.minimum(ay1, by1), 0
    )
    penalty = np.where((hull > 0) & np.isfinite(hull), (hull - union) / hull, 0).astype(boxes1.dtype)
    return iou - penalty


def _distance(boxes1: Float, boxes2: Float) -> Float:
    iou, _ = iou_and_union(boxes1, boxes2)
    ax1, ay1, ax2, ay2 = _corners(boxes1)
    bx1, by1, bx2, by2 = _corners(boxes2)
    hull_width = np.maximum(np.maximum(ax2, bx2) - np.minimum(ax1, bx1), 0)
    hull_height = np.maximum(np.maximum(ay2, by2) - np.minimum(ay1, by1), 0)
    diagonal = hull_width * hull_width + hull_height * hull_height + EPS
    dx = (ax1 + ax2) / 2 - (bx1 + bx2) / 2
    dy = (ay1 + ay2) / 2 - (by1 + by2) / 2
    penalty = (dx * dx + dy * dy) / diagonal
    return iou - np.where(np.isfinite(penalty), penalty, 0).astype(boxes1.dtype)


def _complete(boxes1: Float, boxes2: Float) -> Float:
    iou, _ = iou_and_union(boxes1, boxes2)
    ax1, ay1, ax2, ay2 = _corners(boxes1)
    bx1, by1, bx2, by2 = _corners(boxes2)
    # A side of zero has no aspect ratio; arctan2 gives the limit instead of dividing by it.
    angle1 = np.arctan2(np.maximum(ax2 - ax1, 0), np.maximum(ay2 - ay1, 0))
    angle2 = np.arctan2(np.maximum(bx2 - bx1, 0), np.maximum(by2 - by1, 0))
    turn = angle1 - angle2
    v = (4 / math.pi**2) * (turn * turn)
    alpha = v / (1 - iou + v + EPS)
    return _distance(boxes1, boxes2) - alpha * v


def _far_if_not_finite(measure: Callable[[Float, Float], Float], boxes1: Float, boxes2: Float, out: Float) -> None:
    """`measure`, and -1 (a box infinitely far away) where either box is not finite."""
    with np.errstate(all="ignore"):
        value = measure(boxes1, boxes2)
    finite = np.isfinite(boxes1).all(-1) & np.isfinite(boxes2).all(-1)
    out[...] = np.where(finite, value, -1)


def box_iou(boxes1: Float, boxes2: Float, out: Float) -> None:
    """boxes1 [B, N, 4], boxes2 [B, M, 4], out [B, N, M]."""
    out[...] = _iou(boxes1[:, :, None], boxes2[:, None])


def generalized_box_iou(boxes1: Float, boxes2: Float, out: Float) -> None:
    """As ``box_iou``; GIoU, arXiv:1902.09630."""
    _far_if_not_finite(_generalized, boxes1[:, :, None], boxes2[:, None], out)


def distance_box_iou(boxes1: Float, boxes2: Float, out: Float) -> None:
    """As ``box_iou``; DIoU, arXiv:1911.08287."""
    _far_if_not_finite(_distance, boxes1[:, :, None], boxes2[:, None], out)


def complete_box_iou(boxes1: Float, boxes2: Float, out: Float) -> None:
    """As ``box_iou``; CIoU, arXiv:1911.08287."""
    _far_if_not_finite(_complete, boxes1[:, :, None], boxes2[:, None], out)


def paired_box_iou(boxes1: Float, boxes2: Float, out: Float) -> None:
    """boxes1 [N, 4], boxes2 [N, 4], out [N]."""
    out[...] = _iou(boxes1, boxes2)
