"""Areas, formats, clipping and the removal of small boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastssd import _checks as checks
from fastssd._checks import Array
from fastssd.backends import BOX_FORMATS, active_backend
from fastssd.ops._operator import operator


@operator("boxes: float[..., 4] -> float[...]", formula=True, gradient="formula", vmap="leading")
def box_area(boxes: Array) -> Any:
    """Area of each box.

    Args:
        boxes: [..., 4] xyxy.

    Returns:
        [...] in the boxes' unit squared, float32 or float64. A degenerate box has area 0, a non-finite one NaN.
        Differentiable for torch.

    Raises:
        TypeError, ValueError: `boxes` is not an array of boxes.
    """
    (flat,) = checks.promote(boxes)
    out = np.empty(boxes.shape[:-1], flat.dtype)
    active_backend().box_area(flat.reshape(-1, 4), out.reshape(-1))
    return out


@operator("boxes: float[..., 4] -> float[..., 4]", formula=True, gradient="formula", vmap="leading")
def box_convert(boxes: Array, in_fmt: str, out_fmt: str) -> Any:
    """Boxes in another format.

    Args:
        boxes: [..., 4].
        in_fmt: format that they have: ``"xyxy"``, ``"xywh"`` (corner and size) or ``"cxcywh"`` (center and size).
        out_fmt: format to return, one of the same.

    Returns:
        [..., 4], float32 or float64. Differentiable for torch.

    Raises:
        TypeError, ValueError: `boxes` is not an array of boxes, or a format is unknown.
    """
    (flat,) = checks.promote(boxes)
    out = np.empty(boxes.shape, flat.dtype)
    active_backend().box_convert(flat.reshape(-1, 4), BOX_FORMATS[in_fmt], BOX_FORMATS[out_fmt], out.reshape(-1, 4))
    return out


@operator("boxes: float[..., 4] -> float[..., 4]", formula=True, gradient="formula", vmap="leading")
def clip_boxes_to_image(boxes: Array, size: tuple[float, float]) -> Any:
    """Boxes moved inside the image.

    Args:
        boxes: [..., 4] xyxy.
        size: (height, width) of the image, in the boxes' unit.

    Returns:
        [..., 4], x within [0, width] and y within [0, height]; NaN stays NaN. Differentiable for torch.

    Raises:
        TypeError, ValueError: `boxes` is not an array of boxes, or `size` is not two non-negative numbers.
    """
    (flat,) = checks.promote(boxes)
    out = np.empty(boxes.shape, flat.dtype)
    height, width = size
    active_backend().clip_boxes_to_image(flat.reshape(-1, 4), height, width, out.reshape(-1, 4))
    return out


@operator("boxes: float[N, 4] -> int64[K]", formula=True)
def remove_small_boxes(boxes: Array, min_size: float) -> Any:
    """Indices of the boxes whose two sides are both at least `min_size`.

    Args:
        boxes: [N, 4] xyxy.
        min_size: smallest side that is kept, in the boxes' unit.

    Returns:
        int64 [K], ascending. A box with a NaN is not among them.

    Raises:
        TypeError, ValueError: `boxes` is not an array of boxes, or `min_size` is NaN.
    """
    (flat,) = checks.promote(boxes)
    keep = np.empty(len(flat), np.int64)
    found = active_backend().remove_small_boxes(flat, min_size, keep)
    return keep[:found].copy()
