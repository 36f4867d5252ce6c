"""Areas, formats, clipping and the removal of small boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray

from fastssd.backends import BOX_FORMATS, active_backend
from fastssd.ops import _face as face
from fastssd.ops._face import Array


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

    if type(boxes) is not ndarray and face.dispatched(boxes):
        return face.dispatch("call", "box_area", {"boxes": boxes})

    def kernel(boxes: Array) -> Any:
        array = face.to_boxes("boxes", boxes)
        face.check_shape("boxes", array, ("...", 4))
        (flat,) = face.promote(array)
        out = np.empty(array.shape[:-1], flat.dtype)
        active_backend().box_area(flat.reshape(-1, 4), out.reshape(-1))
        return face.like(out, boxes)

    return face.differentiable(kernel, "box_area", {"boxes": boxes})


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
    if type(boxes) is not ndarray and face.dispatched(boxes):
        return face.dispatch("call", "box_convert", {"boxes": boxes}, in_fmt=in_fmt, out_fmt=out_fmt)
    source, target = face.choice("in_fmt", in_fmt, BOX_FORMATS), face.choice("out_fmt", out_fmt, BOX_FORMATS)

    def kernel(boxes: Array) -> Any:
        array = face.to_boxes("boxes", boxes)
        face.check_shape("boxes", array, ("...", 4))
        (flat,) = face.promote(array)
        out = np.empty(array.shape, flat.dtype)
        active_backend().box_convert(flat.reshape(-1, 4), source, target, out.reshape(-1, 4))
        return face.like(out, boxes)

    return face.differentiable(kernel, "box_convert", {"boxes": boxes}, in_fmt, out_fmt)


def clip_boxes_to_image(boxes: Array, size: tuple[float, float]) -> Any:
    """Boxes moved inside the picture.

    Args:
        boxes: [..., 4] xyxy.
        size: (height, width) of the picture, in the boxes' unit.

    Returns:
        [..., 4], x within [0, width] and y within [0, height]; NaN stays NaN. Differentiable for torch.

    Raises:
        TypeError, ValueError: `boxes` is not an array of boxes, or `size` is not two non-negative numbers.
    """
    if type(boxes) is not ndarray and face.dispatched(boxes):
        return face.dispatch("call", "clip_boxes_to_image", {"boxes": boxes}, size=size)
    height, width = check_size("size", size)

    def kernel(boxes: Array) -> Any:
        array = face.to_boxes("boxes", boxes)
        face.check_shape("boxes", array, ("...", 4))
        (flat,) = face.promote(array)
        out = np.empty(array.shape, flat.dtype)
        active_backend().clip_boxes_to_image(flat.reshape(-1, 4), height, width, out.reshape(-1, 4))
        return face.like(out, boxes)

    return face.differentiable(kernel, "clip_boxes_to_image", {"boxes": boxes}, height, width)


def check_size(name: str, size: Any) -> tuple[float, float]:
    """(height, width) as finite, non-negative floats."""
    try:
        height, width = size
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected (height, width), got {size!r}") from None
    largest = float(np.finfo(np.float32).max)
    return face.number(f"{name}[0]", height, 0, largest), face.number(f"{name}[1]", width, 0, largest)


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
    if type(boxes) is not ndarray and face.dispatched(boxes):
        return face.dispatch("call", "remove_small_boxes", {"boxes": boxes}, min_size=min_size)
    array = face.to_boxes("boxes", boxes)
    face.check_shape("boxes", array, ("N", 4))
    limit = face.number("min_size", min_size)
    (flat,) = face.promote(array)
    keep = np.empty(len(flat), np.int64)
    found = active_backend().remove_small_boxes(flat, limit, keep)
    return face.like(keep[:found].copy(), boxes)
