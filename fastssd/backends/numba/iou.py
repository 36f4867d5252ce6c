"""Intersection over union and its relatives.

The second set is laid out in columns once, so that the loop over it, one row of the output, runs at the full width of
the registers. The areas carry what is not finite: a NaN makes the union NaN, and a union that is not a positive number
gives 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastssd.backends.codes import Float
from fastssd.backends.numba._jit import jit
from fastssd.backends.numba.boxes import area_of, columns
from fastssd.backends.reference.iou import EPS

# So many cells take some 10 ms; in between Python sees Ctrl-C, which a kernel does not.
CELLS = 1 << 24


@jit
def overlap(ax1: Any, ay1: Any, ax2: Any, ay2: Any, bx1: Any, by1: Any, bx2: Any, by2: Any, zero: Any) -> Any:
    """Area of the intersection of two boxes."""
    width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
    return (width if width > zero else zero) * (height if height > zero else zero)


@jit
def ratio(inter: Any, union: Any, zero: Any) -> Any:
    return inter / union if union > zero else zero


@jit
def _hull(a1: Any, a2: Any, b1: Any, b2: Any, zero: Any) -> Any:
    """Width or height of the box that encloses two boxes."""
    side = max(a2, b2) - min(a1, b1)
    return side if side > zero else zero


@jit
def _center_penalty(
    ax1: Any, ay1: Any, ax2: Any, ay2: Any, bx1: Any, by1: Any, bx2: Any, by2: Any, zero: Any, half: Any, eps: Any
) -> Any:
    """What distance IoU takes off: squared distance of the centers over squared diagonal of the hull."""
    width, height = _hull(ax1, ax2, bx1, bx2, zero), _hull(ay1, ay2, by1, by2, zero)
    dx, dy = (ax1 + ax2) * half - (bx1 + bx2) * half, (ay1 + ay2) * half - (by1 + by2) * half
    penalty = (dx * dx + dy * dy) / (width * width + height * height + eps)
    return penalty if penalty - penalty == zero else zero


@jit
def _box_iou(boxes1: Float, boxes2: Float, out: Float) -> None:
    zero = boxes1.dtype.type(0)
    for b in range(len(out)):
        ax1, ay1, ax2, ay2, a_area = columns(boxes1[b])
        bx1, by1, bx2, by2, b_area = columns(boxes2[b])
        for i in range(out.shape[1]):
            x1, y1, x2, y2, area, row = ax1[i], ay1[i], ax2[i], ay2[i], a_area[i], out[b, i]
            for j in range(len(row)):
                inter = overlap(x1, y1, x2, y2, bx1[j], by1[j], bx2[j], by2[j], zero)
                row[j] = ratio(inter, area + b_area[j] - inter, zero)


@jit
def _generalized_box_iou(boxes1: Float, boxes2: Float, out: Float) -> None:
    zero, far = boxes1.dtype.type(0), boxes1.dtype.type(-1)
    for b in range(len(out)):
        ax1, ay1, ax2, ay2, a_area = columns(boxes1[b])
        bx1, by1, bx2, by2, b_area = columns(boxes2[b])
        for i in range(out.shape[1]):
            x1, y1, x2, y2, area, row = ax1[i], ay1[i], ax2[i], ay2[i], a_area[i], out[b, i]
            for j in range(len(row)):
                inter = overlap(x1, y1, x2, y2, bx1[j], by1[j], bx2[j], by2[j], zero)
                union = area + b_area[j] - inter
                hull = _hull(x1, x2, bx1[j], bx2[j], zero) * _hull(y1, y2, by1[j], by2[j], zero)
                penalty = (hull - union) / hull if (hull > zero) & (hull - hull == zero) else zero
                finite = (area == area) & (b_area[j] == b_area[j])
                row[j] = ratio(inter, union, zero) - penalty if finite else far


@jit
def _distance_box_iou(boxes1: Float, boxes2: Float, out: Float) -> None:
    kind = boxes1.dtype.type
    zero, half, far, eps = kind(0), kind(0.5), kind(-1), kind(EPS)
    for b in range(len(out)):
        ax1, ay1, ax2, ay2, a_area = columns(boxes1[b])
        bx1, by1, bx2, by2, b_area = columns(boxes2[b])
        for i in range(out.shape[1]):
            x1, y1, x2, y2, area, row = ax1[i], ay1[i], ax2[i], ay2[i], a_area[i], out[b, i]
            for j in range(len(row)):
                inter = overlap(x1, y1, x2, y2, bx1[j], by1[j], bx2[j], by2[j], zero)
                iou = ratio(inter, area + b_area[j] - inter, zero)
                penalty = _center_penalty(x1, y1, x2, y2, bx1[j], by1[j], bx2[j], by2[j], zero, half, eps)
                finite = (area == area) & (b_area[j] == b_area[j])
                row[j] = iou - penalty if finite else far


@jit
def _angles(x1: Float, y1: Float, x2: Float, y2: Float) -> Float:
    """Angle whose tangent is width / height, of each box."""
    zero, out = x1.dtype.type(0), np.empty(len(x1), x1.dtype)
    for i in range(len(x1)):
        width, height = x2[i] - x1[i], y2[i] - y1[i]
        # Not max(), which may give -0, and that turns the angle around.
        out[i] = np.arctan2(width if width > zero else zero, height if height > zero else zero)
    return out


@jit
def _complete_box_iou(boxes1: Float, boxes2: Float, out: Float) -> None:
    kind = boxes1.dtype.type
    zero, half, one, far, eps, scale = kind(0), kind(0.5), kind(1), kind(-1), kind(EPS), kind(4 / math.pi**2)
    for b in range(len(out)):
        ax1, ay1, ax2, ay2, a_area = columns(boxes1[b])
        bx1, by1, bx2, by2, b_area = columns(boxes2[b])
        a_angle, b_angle = _angles(ax1, ay1, ax2, ay2), _angles(bx1, by1, bx2, by2)
        for i in range(out.shape[1]):
            x1, y1, x2, y2, area, angle, row = ax1[i], ay1[i], ax2[i], ay2[i], a_area[i], a_angle[i], out[b, i]
            for j in range(len(row)):
                inter = overlap(x1, y1, x2, y2, bx1[j], by1[j], bx2[j], by2[j], zero)
                iou = ratio(inter, area + b_area[j] - inter, zero)
                penalty = _center_penalty(x1, y1, x2, y2, bx1[j], by1[j], bx2[j], by2[j], zero, half, eps)
                turn = angle - b_angle[j]
                v = scale * (turn * turn)
                alpha = v / (one - iou + v + eps)
                finite = (area == area) & (b_area[j] == b_area[j])
                row[j] = iou - penalty - alpha * v if finite else far


@jit
def paired_box_iou(boxes1: Float, boxes2: Float, out: Float) -> None:
    a, b, zero = boxes1.reshape(-1), boxes2.reshape(-1), boxes1.dtype.type(0)
    for i in range(len(out)):
        ax1, ay1, ax2, ay2 = a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3]
        bx1, by1, bx2, by2 = b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]
        inter = overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, zero)
        union = area_of(ax1, ay1, ax2, ay2, zero) + area_of(bx1, by1, bx2, by2, zero) - inter
        out[i] = ratio(inter, union, zero)


def _in_pieces(kernel: Callable[[Float, Float, Float], None], boxes1: Float, boxes2: Float, out: Float) -> None:
    """`kernel` on pieces of the output, each a whole number of images or of rows of one image."""
    batch, n, m = out.shape
    if out.size == 0:
        return None
    if out.size <= CELLS:
        return kernel(boxes1, boxes2, out)
    images, rows = max(1, CELLS // (n * m)), max(16, CELLS // m)
    for b in range(0, batch, images):
        for i in range(0, n, rows):
            kernel(boxes1[b : b + images, i : i + rows], boxes2[b : b + images], out[b : b + images, i : i + rows])
    return None


def box_iou(boxes1: Float, boxes2: Float, out: Float) -> None:
    _in_pieces(_box_iou, boxes1, boxes2, out)


def generalized_box_iou(boxes1: Float, boxes2: Float, out: Float) -> None:
    _in_pieces(_generalized_box_iou, boxes1, boxes2, out)


def distance_box_iou(boxes1: Float, boxes2: Float, out: Float) -> None:
    _in_pieces(_distance_box_iou, boxes1, boxes2, out)


def complete_box_iou(boxes1: Float, boxes2: Float, out: Float) -> None:
    _in_pieces(_complete_box_iou, boxes1, boxes2, out)
