"""Intersection over union of boxes, in pairs and all against all, and its generalizations."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
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
        out: where to write, [..., N, M], of the result's kind, dtype and device, C-contiguous; saves the time of fresh
            memory. It may share memory with the boxes. A tensor is marked as written to, so that a backward pass that
            needs what it held raises; one that requires a gradient is an error.

    Returns:
        [..., N, M] in [0, 1], float32 or float64. 0 for degenerate and non-finite boxes. Differentiable for torch.

    Raises:
        TypeError, ValueError: an argument is not an array of boxes, or `out` does not fit.
        MemoryError: the result cannot be allocated.

    Source:
        Same result as ``torchvision.ops.box_iou``, bit for bit on finite boxes of positive area.
    """
    if not (type(boxes1) is type(boxes2) is ndarray) and face.dispatched(boxes1, boxes2):
        return face.dispatch("call_pairwise", "box_iou", boxes1, boxes2, out)
    if out is None or type(out) is ndarray:
        found = shortcuts.box_iou(boxes1, boxes2, out)
        if found is not None:
            return found
    return _pairwise("box_iou", boxes1, boxes2, out)


def generalized_box_iou(boxes1: Array, boxes2: Array, *, out: Array | None = None) -> Any:
    """Generalized IoU: IoU minus the share of the enclosing box that neither box covers.

    Arguments, errors and shapes as in :func:`box_iou`; values in (-1, 1], and -1 for non-finite boxes.

    Source:
        arXiv:1902.09630, algorithm 1.
    """
    if not (type(boxes1) is type(boxes2) is ndarray) and face.dispatched(boxes1, boxes2):
        return face.dispatch("call_pairwise", "generalized_box_iou", boxes1, boxes2, out)
    if out is None or type(out) is ndarray:
        found = shortcuts.generalized_box_iou(boxes1, boxes2, out)
        if found is not None:
            return found
    return _pairwise("generalized_box_iou", boxes1, boxes2, out)


def distance_box_iou(boxes1: Array, boxes2: Array, *, out: Array | None = None) -> Any:
    """Distance IoU: IoU minus the squared distance of the centers over the squared diagonal of the enclosing box.

    Arguments, errors and shapes as in :func:`box_iou`; values in (-1, 1], and -1 for non-finite boxes.

    Source:
        arXiv:1911.08287, equation 7.
    """
    if not (type(boxes1) is type(boxes2) is ndarray) and face.dispatched(boxes1, boxes2):
        return face.dispatch("call_pairwise", "distance_box_iou", boxes1, boxes2, out)
    if out is None or type(out) is ndarray:
        found = shortcuts.distance_box_iou(boxes1, boxes2, out)
        if found is not None:
            return found
    return _pairwise("distance_box_iou", boxes1, boxes2, out)


def complete_box_iou(boxes1: Array, boxes2: Array, *, out: Array | None = None) -> Any:
    """Complete IoU: distance IoU minus a term for the difference of the aspect ratios.

    Arguments, errors and shapes as in :func:`box_iou`; values in (-2, 1], and -1 for non-finite boxes. In the
    gradient the weight of the aspect term is a constant, as in the paper.

    Source:
        arXiv:1911.08287, equations 8 to 11.
    """
    if not (type(boxes1) is type(boxes2) is ndarray) and face.dispatched(boxes1, boxes2):
        return face.dispatch("call_pairwise", "complete_box_iou", boxes1, boxes2, out)
    if out is None or type(out) is ndarray:
        found = shortcuts.complete_box_iou(boxes1, boxes2, out)
        if found is not None:
            return found
    return _pairwise("complete_box_iou", boxes1, boxes2, out)


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
    if not (type(boxes1) is type(boxes2) is ndarray) and face.dispatched(boxes1, boxes2):
        return face.dispatch("call", "paired_box_iou", {"boxes1": boxes1, "boxes2": boxes2})
    found = shortcuts.paired_box_iou(boxes1, boxes2)
    if found is not None:
        return found

    def kernel(boxes1: Array, boxes2: Array) -> Any:
        array1, array2 = face.to_boxes("boxes1", boxes1), face.to_boxes("boxes2", boxes2)
        face.check_shape("boxes1", array1, ("...", 4))
        face.check_shape("boxes2", array2, ("...", 4))
        if array1.shape != array2.shape:
            raise ValueError(f"boxes2: expected the shape of boxes1 {list(array1.shape)}, got {list(array2.shape)}")
        flat1, flat2 = face.promote(array1, array2)
        result = np.empty(array1.shape[:-1], flat1.dtype)
        active_backend().paired_box_iou(flat1.reshape(-1, 4), flat2.reshape(-1, 4), result.reshape(-1))
        return face.like(result, boxes1, boxes2)

    return face.differentiable(kernel, "paired_box_iou", {"boxes1": boxes1, "boxes2": boxes2})


def _pairwise(name: str, boxes1: Array, boxes2: Array, out: Array | None) -> Any:
    def kernel(boxes1: Array, boxes2: Array) -> Any:
        array1, array2 = face.to_boxes("boxes1", boxes1), face.to_boxes("boxes2", boxes2)
        face.check_shape("boxes1", array1, ("...", "N", 4))
        face.check_shape("boxes2", array2, ("...", "M", 4))
        flat1, flat2 = face.promote(array1, array2)
        n, m = array1.shape[-2], array2.shape[-2]
        lead = array1.shape[:-2]
        if lead != array2.shape[:-2]:
            lead = _broadcast(array1.shape, array2.shape)
            flat1 = np.ascontiguousarray(np.broadcast_to(flat1, (*lead, n, 4)))
            flat2 = np.ascontiguousarray(np.broadcast_to(flat2, (*lead, m, 4)))
        shape, batch = (*lead, n, m), math.prod(lead)
        result = np.empty(shape, flat1.dtype) if out is None else _memory(out, shape, flat1.dtype, boxes1, boxes2)
        apart = out is None or not (np.may_share_memory(result, flat1) or np.may_share_memory(result, flat2))
        written = result if apart else np.empty_like(result)
        _mark_written(out)
        getattr(active_backend(), name)(
            flat1.reshape(batch, n, 4), flat2.reshape(batch, m, 4), written.reshape(batch, n, m)
        )
        if out is None:
            return face.like(result, boxes1, boxes2)
        if not apart:
            result[...] = written
        return out

    if out is not None:
        if type(out) is not ndarray:  # for which the shortcut has been tried
            try:
                if getattr(shortcuts, name)(boxes1, boxes2, out) is not None:
                    _mark_written(out)
                    return out
            except BaseException:  # Ctrl-C: part of it may be written
                _mark_written(out)
                raise
        if face.wants_gradient(boxes1, boxes2):
            raise ValueError("out: cannot be given where a gradient is wanted")
    return face.differentiable(kernel, name, {"boxes1": boxes1, "boxes2": boxes2})


def _broadcast(shape1: tuple[int, ...], shape2: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(shape1[:-2], shape2[:-2])
    except ValueError:
        raise ValueError(
            f"boxes2: leading dimensions {list(shape2[:-2])} do not broadcast with those of boxes1, {list(shape1[:-2])}"
        ) from None


def _memory(out: Array, shape: tuple[int, ...], dtype: np.dtype[Any], boxes1: Array, boxes2: Array) -> NDArray[Any]:
    """The memory of `out`, checked."""
    check_out(out, shape, dtype.name, any(map(face.is_tensor, (boxes1, boxes2))))
    if face.is_tensor(out) and (not out.is_cpu or out.is_neg()):
        raise ValueError(f"out: expected a tensor with memory on the CPU, as the boxes are, got one on {out.device}")
    array: NDArray[Any] = out.detach().numpy() if face.is_tensor(out) else np.asarray(out)
    if not (array.flags.carray and array.dtype.isnative):
        raise ValueError(f"out: expected writeable, C-contiguous and aligned memory, got strides {array.strides}")
    return array


def check_out(out: Array, shape: Sequence[Any], dtype: str, tensor: bool) -> None:
    """Raise unless a result of this shape and dtype, a tensor or not, can be written to `out`."""
    if face.is_tensor(out) != tensor or not (tensor or isinstance(out, ndarray)):
        raise TypeError(f"out: expected a {'tensor' if tensor else 'NumPy array'} like the result, got {type(out)}")
    if tuple(out.shape) != tuple(shape) or str(out.dtype).removeprefix("torch.") != dtype:
        raise ValueError(f"out: expected {dtype} {list(shape)}, got {out.dtype} {list(out.shape)}")
    if not tensor:
        return
    if out.requires_grad:
        raise ValueError("out: expected a tensor that requires no gradient")
    strided = out.layout is sys.modules["torch"].strided
    if not strided or not out.is_contiguous():
        raise ValueError("out: expected a C-contiguous tensor with memory of its own")


def _mark_written(out: Array) -> None:
    """Tell autograd, which may have saved `out` and does not see what kernels write."""
    if type(out) is ndarray or not face.is_tensor(out):
        return
    graph = sys.modules["torch"].autograd.graph
    if hasattr(graph, "increment_version"):
        graph.increment_version(out)
    else:  # an older torch
        out.detach().view(-1)[:0].zero_()  # views share the version; nothing is written
