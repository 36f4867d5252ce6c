"""Boxes as deltas from anchors and back, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastssd.backends import Float
from fastssd.backends.numba._jit import jit
from fastssd.backends.numba._math import exp


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
def decode(delta: Any, anchor: Any, half: Any, center_variance: Any, size_variance: Any) -> Any:
    """The box of one row of deltas."""
    dx, dy, dw, dh = delta
    ax1, ay1, ax2, ay2 = anchor
    aw, ah = ax2 - ax1, ay2 - ay1
    cx, cy = dx * center_variance * aw + (ax1 + ax2) * half, dy * center_variance * ah + (ay1 + ay2) * half
    half_w, half_h = exp(dw * size_variance) * aw * half, exp(dh * size_variance) * ah * half
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


@jit
def row(flat: Float, i: int) -> Any:
    """Row i of [N, 4], from its flat view."""
    return flat[4 * i], flat[4 * i + 1], flat[4 * i + 2], flat[4 * i + 3]


@jit
def encode_boxes(boxes: Float, anchors: Float, center_variance: float, size_variance: float, out: Float) -> None:
    kind, a = boxes.dtype.type, anchors.reshape(-1)
    half, cv, sv = kind(0.5), kind(center_variance), kind(size_variance)
    for b in range(len(boxes)):
        flat, to = boxes[b].reshape(-1), out[b].reshape(-1)
        for i in range(len(anchors)):
            to[4 * i], to[4 * i + 1], to[4 * i + 2], to[4 * i + 3] = encode(row(flat, i), row(a, i), half, cv, sv)


@jit
def decode_boxes(deltas: Float, anchors: Float, center_variance: float, size_variance: float, out: Float) -> None:
    kind, a = deltas.dtype.type, anchors.reshape(-1)
    half, cv, sv = kind(0.5), kind(center_variance), kind(size_variance)
    for b in range(len(deltas)):
        flat, to = deltas[b].reshape(-1), out[b].reshape(-1)
        for i in range(len(anchors)):
            to[4 * i], to[4 * i + 1], to[4 * i + 2], to[4 * i + 3] = decode(row(flat, i), row(a, i), half, cv, sv)
