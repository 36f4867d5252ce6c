"""Boxes as deltas from anchors and back: the definition (SSD paper, equation 2)."""

from __future__ import annotations

import numpy as np

from fastssd.backends.codes import Float


def centers_and_sizes(boxes: Float) -> tuple[Float, Float, Float, Float]:
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def encode(boxes: Float, anchors: Float, center_variance: float, size_variance: float) -> Float:
    cx, cy, w, h = centers_and_sizes(boxes)
    acx, acy, aw, ah = centers_and_sizes(anchors)
    with np.errstate(all="ignore"):
        deltas = (
            (cx - acx) / aw / center_variance,
            (cy - acy) / ah / center_variance,
            np.log(w / aw) / size_variance,
            np.log(h / ah) / size_variance,
        )
    return np.stack(deltas, axis=-1)


def decode(deltas: Float, anchors: Float, center_variance: float, size_variance: float) -> Float:
    dx, dy, dw, dh = np.moveaxis(deltas, -1, 0)
    acx, acy, aw, ah = centers_and_sizes(anchors)
    with np.errstate(all="ignore"):
        cx = dx * center_variance * aw + acx
        cy = dy * center_variance * ah + acy
        half_w = np.exp(dw * size_variance) * aw / 2
        half_h = np.exp(dh * size_variance) * ah / 2
        return np.stack((cx - half_w, cy - half_h, cx + half_w, cy + half_h), axis=-1)


def encode_boxes(boxes: Float, anchors: Float, center_variance: float, size_variance: float, out: Float) -> None:
    """boxes [B, A, 4], anchors [A, 4], out [B, A, 4]."""
    out[...] = encode(boxes, anchors, center_variance, size_variance)


def decode_boxes(deltas: Float, anchors: Float, center_variance: float, size_variance: float, out: Float) -> None:
    """deltas [B, A, 4], anchors [A, 4], out [B, A, 4]."""
    out[...] = decode(deltas, anchors, center_variance, size_variance)
