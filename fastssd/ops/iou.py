"""Intersection over union of boxes, in pairs and all against all, and its generalizations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from fastssd.backends import active_backend, shortcuts
from fastssd.ops import _face as face
from fastssd.ops._face import Array


def box_iou(boxes1: Array, boxes2: Array, *, out: Array | None = None) -> Any:
    """Intersection over union of every box of the first set with every box of the second.

    Args:
        boxes1: [..., N, 4] xyxy.
        boxes2: [..., M, 4] xyxy, same unit. Leading dimensions broadcast.
        out: where to write, [..., N, M] of the result's dtype and C-contiguous; saves the time of fresh memory.

    Returns:
        [..., N, M] in [0, 1], float32 or float64. 0 for degenerate and non-finite boxes. Differentiable for torch.

    Raises:
        TypeError, ValueError: an argument is not an array of boxes, or `out` does not fit.
        MemoryError: the result cannot be allocated.

    Source:
        Same result as ``torchvision.ops.box_iou``, bit for bit on finite boxes of positive area.
    """
    if type(boxes1) is not ndarray and face.dispatched(boxes1, boxes2):
        return face.dispatch("call_pairwise", "box_iou", boxes1, boxes2, out)
    found = shortcuts.box_iou(boxes1, boxes2, out)
    return found if found is not None else _pairwise("box_iou", boxes1, boxes2, out)


def generalized_box_iou(boxes1: Array, boxes2: Array, *, out: Array | None = None) -> Any:
    """Generalized IoU: IoU minus the share of the enclosing box that neither box covers.

    Arguments, errors and shapes as in :func:`box_iou`; values in (-1, 1], and -1 for non-finite boxes.

    Source:
        arXiv:1902.09630, algorithm 1.
    """
    if type(boxes1) is not ndarray and face.dispatched(boxes1, boxes2):
        return face.dispatch("call_pairwise", "generalized_box_iou", boxes1, boxes2, out)
    found = shortcuts.generalized_box_iou(boxes1, boxes2, out)
    return found if found is not None else _pairwise("generalized_box_iou", boxes1, boxes2, out)


def distance_box_iou(boxes1: Array, boxes2: Array, *, out: Array | None = None) -> Any:
    """Distance IoU: IoU minus the squared distance of the centers over the squared diagonal of the enclosing box.

    Arguments, errors and shapes as in :func:`box_iou`; values in (-1, 1], and -1 for non-finite boxes.

    Source:
        arXiv:1911.08287, equation 7.
    """
    if type(boxes1) is not ndarray and face.dispatched(boxes1, boxes2):
        return face.dispatch("call_pairwise", "distance_box_iou", boxes1, boxes2, out)
    found = shortcuts.distance_box_iou(boxes1, boxes2, out)
    return found if found is not None else _pairwise("distance_box_iou", boxes1, boxes2, out)


def complete_box_iou(boxes1: Array, boxes2: Array, *, out: Array | None = None) -> Any:
    """Complete IoU: distance IoU minus a term for the difference of the aspect ratios.

    Arguments, errors and shapes as in :func:`box_iou`; values in (-2, 1], and -1 for non-finite boxes. In the
    gradient the weight of the aspect term is a constant, as in the paper.

    Source:
        arXiv:1911.08287, equations 8 to 11.
    """
    if type(boxes1) is not ndarray and face.dispatched(boxes1, boxes2):
        return face.dispatch("call_pairwise", "complete_box_iou", boxes1, boxes2, out)
    found = shortcuts.complete_box_iou(boxes1, boxes2, out)
    return found if found is not None else _pairwise("complete_box_iou", boxes1, boxes2, out)


def paired_box_iou(boxes1: Array, boxes2: Array) -> Any:
    """Intersection over union of each box of the first set with the box at the same place in the second.

    Args:
        boxes1: [..., N, 4] xyxy.
        boxes2: [..., N, 4] xyxy, same unit and shape.

    Returns:
        [..., N] in [0, 1], float32 or float64. 0 for degenerate and non-finite boxes. Differentiable for torch.

    Raises:
        TypeError, ValueError: an argument is not an array of boxes, or the shapes differ.
    """
    if type(boxes1) is not ndarray and face.dispatched(boxes1, boxes2):
        return face.dispatch("call", "paired_box_iou", (boxes1, boxes2))
    found = shortcuts.paired_box_iou(boxes1, boxes2)
    if found is not None:
        return found

    def kernel(boxes1: Array, boxes2: Array) -> Any:
        array1, array2 = face.to_numpy("boxes1", boxes1), face.to_numpy("boxes2", boxes2)
        face.check_shape("boxes1", array1, ("...", 4))
        face.check_shape("boxes2", array2, ("...", 4))
        if array1.shape != array2.shape:
            raise ValueError(f"boxes2: expected the shape of boxes1 {list(array1.shape)}, got {list(array2.shape)}")
        flat1, flat2 = face.promote(array1, array2)
        result = np.empty(array1.shape[:-1], flat1.dtype)
        active_backend().paired_box_iou(flat1.reshape(-1, 4), flat2.reshape(-1, 4), result.reshape(-1))
        return face.like(boxes1 if face.is_tensor(boxes1) else boxes2, result)

    return face.differentiable(kernel, "paired_box_iou", (boxes1, boxes2))


def _pairwise(name: str, boxes1: Array, boxes2: Array, out: Array | None) -> Any:
    def kernel(boxes1: Array, boxes2: Array) -> Any:
        array1, array2 = face.to_numpy("boxes1", boxes1), face.to_numpy("boxes2", boxes2)
        face.check_shape("boxes1", array1, ("...", "N", 4))
        face.check_shape("boxes2", array2, ("...", "M", 4))
        flat1, flat2 = face.promote(array1, array2)
        n, m = array1.shape[-2], array2.shape[-2]
        lead = array1.shape[:-2]
        if lead != array2.shape[:-2]:
            lead = _broadcast(array1.shape, array2.shape)
            flat1 = np.ascontiguousarray(np.broadcast_to(flat1, (*lead, n, 4)))
            flat2 = np.ascontiguousarray(np.broadcast_to(flat2, (*lead, m, 4)))
        result = np.empty((*lead, n, m), flat1.dtype) if out is None else _given(out, (*lead, n, m), flat1.dtype)
        batch = math.prod(lead)
        getattr(active_backend(), name)(
            flat1.reshape(batch, n, 4), flat2.reshape(batch, m, 4), result.reshape(batch, n, m)
        )
        if out is not None:
            return out
        return face.like(boxes1 if face.is_tensor(boxes1) else boxes2, result)

    if out is not None and face.wants_gradient(boxes1, boxes2):
        raise ValueError("out: cannot be given where a gradient is wanted")
    return face.differentiable(kernel, name, (boxes1, boxes2))


def _broadcast(shape1: tuple[int, ...], shape2: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(shape1[:-2], shape2[:-2])
    except ValueError:
        raise ValueError(
            f"boxes2: leading dimensions {list(shape2[:-2])} do not broadcast with those of boxes1, {list(shape1[:-2])}"
        ) from None


def _given(out: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if face.is_tensor(out) and out.device.type != "cpu":
        raise ValueError(f"out: expected memory of the CPU, got device {out.device}")
    array = face.to_numpy("out", out)
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous or not array.flags.writeable:
        raise ValueError(
            f"out: expected a writeable C-contiguous {dtype} array of shape {list(shape)}, "
            f"got {array.dtype} {list(array.shape)} with strides {array.strides}"
        )
    return array
