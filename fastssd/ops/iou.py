"""Intersection over union of boxes, in pairs and all against all, and its generalizations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd.backends import active_backend, shortcuts
from fastssd.ops import _face as face
from fastssd.ops._face import Array

_EPS = 1e-7


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
    found = shortcuts.box_iou(boxes1, boxes2, out)
    return found if found is not None else _pairwise("box_iou", _iou_formula, boxes1, boxes2, out)


def generalized_box_iou(boxes1: Array, boxes2: Array, *, out: Array | None = None) -> Any:
    """Generalized IoU: IoU minus the share of the enclosing box that neither box covers.

    Arguments, errors and shapes as in :func:`box_iou`; values in (-1, 1], and -1 for non-finite boxes.

    Source:
        arXiv:1902.09630, algorithm 1.
    """
    found = shortcuts.generalized_box_iou(boxes1, boxes2, out)
    return found if found is not None else _pairwise("generalized_box_iou", _generalized_formula, boxes1, boxes2, out)


def distance_box_iou(boxes1: Array, boxes2: Array, *, out: Array | None = None) -> Any:
    """Distance IoU: IoU minus the squared distance of the centers over the squared diagonal of the enclosing box.

    Arguments, errors and shapes as in :func:`box_iou`; values in (-1, 1], and -1 for non-finite boxes.

    Source:
        arXiv:1911.08287, equation 7.
    """
    found = shortcuts.distance_box_iou(boxes1, boxes2, out)
    return found if found is not None else _pairwise("distance_box_iou", _distance_formula, boxes1, boxes2, out)


def complete_box_iou(boxes1: Array, boxes2: Array, *, out: Array | None = None) -> Any:
    """Complete IoU: distance IoU minus a term for the difference of the aspect ratios.

    Arguments, errors and shapes as in :func:`box_iou`; values in (-2, 1], and -1 for non-finite boxes. In the
    gradient the weight of the aspect term is a constant, as in the paper.

    Source:
        arXiv:1911.08287, equations 8 to 11.
    """
    found = shortcuts.complete_box_iou(boxes1, boxes2, out)
    return found if found is not None else _pairwise("complete_box_iou", _complete_formula, boxes1, boxes2, out)


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

    return face.differentiable(kernel, lambda a, b: _iou_and_union_formula(a, b)[0], boxes1, boxes2)


def _pairwise(name: str, formula: Callable[..., Any], boxes1: Array, boxes2: Array, out: Array | None) -> Any:
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
    return face.differentiable(kernel, formula, boxes1, boxes2)


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


# The same measures on torch tensors, for their derivatives. Only tensor methods: torch is not imported here.


def _iou_and_union_formula(boxes1: Any, boxes2: Any) -> tuple[Any, Any]:
    sides = (boxes1[..., 2:].minimum(boxes2[..., 2:]) - boxes1[..., :2].maximum(boxes2[..., :2])).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    sides1, sides2 = (boxes1[..., 2:] - boxes1[..., :2]).clamp(min=0), (boxes2[..., 2:] - boxes2[..., :2]).clamp(min=0)
    union = sides1[..., 0] * sides1[..., 1] + sides2[..., 0] * sides2[..., 1] - inter
    valid = union > 0
    return inter.where(valid, 0 * inter) / union.where(valid, union.new_ones(())), union


def _every(boxes1: Any, boxes2: Any) -> tuple[Any, Any]:
    """Every pair; rows that are not finite are replaced by a constant, for their value does not depend on them."""
    both = []
    for boxes in (boxes1, boxes2):
        finite = boxes.isfinite().all(-1, keepdim=True)
        both.append(boxes.where(finite, boxes.new_zeros(())))
    return both[0][..., :, None, :], both[1][..., None, :, :]


def _iou_formula(boxes1: Any, boxes2: Any) -> Any:
    return _iou_and_union_formula(*_every(boxes1, boxes2))[0]


def _hull(boxes1: Any, boxes2: Any) -> Any:
    return (boxes1[..., 2:].maximum(boxes2[..., 2:]) - boxes1[..., :2].minimum(boxes2[..., :2])).clamp(min=0)


def _generalized_formula(boxes1: Any, boxes2: Any) -> Any:
    a, b = _every(boxes1, boxes2)
    iou, union = _iou_and_union_formula(a, b)
    sides = _hull(a, b)
    hull = sides[..., 0] * sides[..., 1]
    valid = hull > 0
    return iou - (hull - union).where(valid, 0 * hull) / hull.where(valid, hull.new_ones(()))


def _distance(a: Any, b: Any) -> Any:
    iou, _ = _iou_and_union_formula(a, b)
    diagonal = _hull(a, b).square().sum(-1) + _EPS
    offset = (a[..., :2] + a[..., 2:]) / 2 - (b[..., :2] + b[..., 2:]) / 2
    return iou - offset.square().sum(-1) / diagonal


def _distance_formula(boxes1: Any, boxes2: Any) -> Any:
    return _distance(*_every(boxes1, boxes2))


def _complete_formula(boxes1: Any, boxes2: Any) -> Any:
    a, b = _every(boxes1, boxes2)
    iou, _ = _iou_and_union_formula(a, b)
    sides_a, sides_b = (a[..., 2:] - a[..., :2]).clamp(min=0), (b[..., 2:] - b[..., :2]).clamp(min=0)
    turn = sides_a[..., 0].atan2(sides_a[..., 1]) - sides_b[..., 0].atan2(sides_b[..., 1])
    v = (4 / math.pi**2) * turn.square()
    alpha = (v / (1 - iou + v + _EPS)).detach()
    return _distance(a, b) - alpha * v
