"""Boxes as deltas from anchors and back, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastssd.backends.codes import Float
from fastssd.backends.numba._jit import jit
from fastssd.backends.numba._math import exp

PORTION = 128  # rows of deltas that are decoded at once
ROWS = 1 << 20  # so many take some 20 ms; in between Python sees Ctrl-C, which a kernel does not


@jit
def encode(box: Any, anchor: Any, half: Any, center_variance: Any, size_variance: Any) -> Any:
    """The deltas of one box; every number is in the boxes' dtype, `half` is 1 / 2."""
    x1, y1, x2, y2 = box
    ax1, ay1, ax2, ay2 = anchor
    w, h, aw, ah = x2 - x1, y2 - y1, ax2 - ax1, ay2 - ay1
    dx = ((x1 + x2) * half - (ax1 + ax2) * half) / aw / center_variance
    dy = ((y1 + y2) * half - (ay1 + ay2) * half) / ah / center_variance
    return dx, dy, np.log(w / aw) / size_variance, np.log(h / ah) / size_variance


@jit
def decode(center: Any, growth: Any, anchor: Any, half: Any, center_variance: Any) -> Any:
    """The box of one row of deltas (dx, dy, dw, dh): `center` is (dx, dy), `growth` the exp of (dw, dh) * variance."""
    ax1, ay1, ax2, ay2 = anchor
    aw, ah = ax2 - ax1, ay2 - ay1
    cx = center[0] * center_variance * aw + (ax1 + ax2) * half
    cy = center[1] * center_variance * ah + (ay1 + ay2) * half
    half_w, half_h = growth[0] * aw * half, growth[1] * ah * half
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


@jit
def row(flat: Float, i: int) -> Any:
    """Row i of [N, 4], from its flat view."""
    return flat[4 * i], flat[4 * i + 1], flat[4 * i + 2], flat[4 * i + 3]


@jit
def _encode_boxes(boxes: Float, anchors: Float, center_variance: float, size_variance: float, out: Float) -> None:
    kind, a = boxes.dtype.type, anchors.reshape(-1)
    half, cv, sv = kind(0.5), kind(center_variance), kind(size_variance)
    for b in range(len(boxes) if len(anchors) else 0):
        flat, to = boxes[b].reshape(-1), out[b].reshape(-1)
        for i in range(len(anchors)):
            to[4 * i], to[4 * i + 1], to[4 * i + 2], to[4 * i + 3] = encode(row(flat, i), row(a, i), half, cv, sv)


@jit
def _decode_boxes(deltas: Float, anchors: Float, center_variance: float, size_variance: float, out: Float) -> None:
    kind, priors = deltas.dtype.type, anchors.reshape(-1)
    half, cv, sv = kind(0.5), kind(center_variance), kind(size_variance)
    growth_w, growth_h = np.empty(PORTION, deltas.dtype), np.empty(PORTION, deltas.dtype)
    for b in range(len(deltas) if len(anchors) else 0):
        flat, result = deltas[b].reshape(-1), out[b].reshape(-1)
        for start in range(0, len(anchors), PORTION):
            n = min(PORTION, len(anchors) - start)
            delta, anchor, to = (
                flat[4 * start : 4 * (start + n)],
                priors[4 * start : 4 * (start + n)],
                result[4 * start : 4 * (start + n)],
            )
            for i in range(n):  # a loop of its own, because exp is long, and vectorises only by itself
                growth_w[i], growth_h[i] = exp(delta[4 * i + 2] * sv), exp(delta[4 * i + 3] * sv)
            for i in range(n):
                to[4 * i], to[4 * i + 1], to[4 * i + 2], to[4 * i + 3] = decode(
                    (delta[4 * i], delta[4 * i + 1]), (growth_w[i], growth_h[i]), row(anchor, i), half, cv
                )


def _in_pieces(
    kernel: Any, rows: Float, anchors: Float, center_variance: float, size_variance: float, out: Float
) -> None:
    if out.size <= 4 * ROWS:
        return kernel(rows, anchors, center_variance, size_variance, out)
    for b in range(len(rows)):
        for first in range(0, len(anchors), ROWS):
            part = slice(first, first + ROWS)
            kernel(rows[b : b + 1, part], anchors[part], center_variance, size_variance, out[b : b + 1, part])
    return None


def encode_boxes(boxes: Float, anchors: Float, center_variance: float, size_variance: float, out: Float) -> None:
    _in_pieces(_encode_boxes, boxes, anchors, center_variance, size_variance, out)


def decode_boxes(deltas: Float, anchors: Float, center_variance: float, size_variance: float, out: Float) -> None:
    _in_pieces(_decode_boxes, deltas, anchors, center_variance, size_variance, out)
