"""Areas, formats, clipping: one pass over the rows.

Rows are read through the flat view of their array, in which the distance of a column to the next is a constant: so
the compiler makes vector code of these loops.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastssd.backends.codes import Float, Int
from fastssd.backends.numba._jit import jit


@jit
def area_of(x1: Any, y1: Any, x2: Any, y2: Any, zero: Any) -> Any:
    """Area of one box: 0 if degenerate, NaN if not finite."""
    width, height = x2 - x1, y2 - y1
    area = width * height if (width > zero) & (height > zero) else zero
    return area + ((x1 - x1) + (y1 - y1) + (x2 - x2) + (y2 - y2))


@jit
def columns(boxes: Float) -> tuple[Float, Float, Float, Float, Float]:
    """x1, y1, x2, y2 and area, each [N], of boxes [N, 4]: the form in which loops over boxes run at full width."""
    flat, zero = boxes.reshape(-1), boxes.dtype.type(0)
    out = np.empty((5, len(boxes)), boxes.dtype)
    x1, y1, x2, y2, area = out[0], out[1], out[2], out[3], out[4]
    for i in range(len(boxes)):
        x1[i], y1[i], x2[i], y2[i] = flat[4 * i], flat[4 * i + 1], flat[4 * i + 2], flat[4 * i + 3]
        area[i] = area_of(x1[i], y1[i], x2[i], y2[i], zero)
    return x1, y1, x2, y2, area


@jit
def box_area(boxes: Float, out: Float) -> None:
    flat, zero = boxes.reshape(-1), boxes.dtype.type(0)
    for i in range(len(out)):
        out[i] = area_of(flat[4 * i], flat[4 * i + 1], flat[4 * i + 2], flat[4 * i + 3], zero)


@jit
def box_convert(boxes: Float, in_fmt: int, out_fmt: int, out: Float) -> None:
    flat, result, half = boxes.reshape(-1), out.reshape(-1), boxes.dtype.type(0.5)
    for i in range(len(boxes)):
        a, b, c, d = flat[4 * i], flat[4 * i + 1], flat[4 * i + 2], flat[4 * i + 3]
        if in_fmt != out_fmt:
            if in_fmt == 1:  # xywh
                c, d = a + c, b + d
            elif in_fmt == 2:  # cxcywh
                a, b, c, d = a - c * half, b - d * half, a + c * half, b + d * half
            if out_fmt == 1:
                c, d = c - a, d - b
            elif out_fmt == 2:
                a, b, c, d = (a + c) * half, (b + d) * half, c - a, d - b
        result[4 * i], result[4 * i + 1], result[4 * i + 2], result[4 * i + 3] = a, b, c, d


@jit
def clip(x: Any, side: Any, zero: Any) -> Any:
    """`x` within [0, side]; NaN stays NaN."""
    x = zero if x < zero else x
    return side if x > side else x


@jit
def clip_boxes_to_image(boxes: Float, height: float, width: float, out: Float) -> None:
    flat, result, zero = boxes.reshape(-1), out.reshape(-1), boxes.dtype.type(0)
    right, bottom = boxes.dtype.type(width), boxes.dtype.type(height)
    for i in range(len(boxes)):
        result[4 * i], result[4 * i + 1] = clip(flat[4 * i], right, zero), clip(flat[4 * i + 1], bottom, zero)
        result[4 * i + 2], result[4 * i + 3] = clip(flat[4 * i + 2], right, zero), clip(flat[4 * i + 3], bottom, zero)


@jit
def remove_small_boxes(boxes: Float, min_size: float, keep: Int) -> int:
    flat, found = boxes.reshape(-1), 0
    for i in range(len(boxes)):
        width, height = np.float64(flat[4 * i + 2] - flat[4 * i]), np.float64(flat[4 * i + 3] - flat[4 * i + 1])
        keep[found] = i  # overwritten by the next one unless it counts
        found += (width >= min_size) & (height >= min_size)
    return found
