"""Intersection over union of boxes, in pairs and all against all, and its generalizations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd import _checks as checks
from fastssd._checks import Array
from fastssd.backends import Float, active_backend
from fastssd.ops._operator import operator

_PAIRWISE = "boxes1: float[*, N, 4], boxes2: float[*, M, 4] -> float[*, N, M]"


@operator(_PAIRWISE, shortcut=True, formula=True, gradient="formula", vmap="pairwise")
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
    return _pairwise(active_backend().box_iou, boxes1, boxes2, out)


@operator(_PAIRWISE, shortcut=True, formula=True, gradient="formula", vmap="pairwise")
def generalized_box_iou(boxes1: Array, boxes2: Array, *, out: Array | None = None) -> Any:
    """Generalized IoU: IoU minus the share of the enclosing box that neither box covers.

    Arguments, errors and shapes as in :func:`box_iou`; values in (-1, 1], and -1 for non-finite boxes.

    Source:
        arXiv:1902.09630, algorithm 1.
    """
    return _pairwise(active_backend().generalized_box_iou, boxes1, boxes2, out)


@operator(_PAIRWISE, shortcut=True, formula=True, gradient="formula", vmap="pairwise")
def distance_box_iou(boxes1: Array, boxes2: Array, *, out: Array | None = None) -> Any:
    """Distance IoU: IoU minus the squared distance of the centers over the squared diagonal of the enclosing box.

    Arguments, errors and shapes as in :func:`box_iou`; values in (-1, 1], and -1 for non-finite boxes.

    Source:
        arXiv:1911.08287, equation 7.
    """
    return _pairwise(active_backend().distance_box_iou, boxes1, boxes2, out)


@operator(_PAIRWISE, shortcut=True, formula=True, gradient="formula", vmap="pairwise")
def complete_box_iou(boxes1: Array, boxes2: Array, *, out: Array | None = None) -> Any:
    """Complete IoU: distance IoU minus a term for the difference of the aspect ratios.

    Arguments, errors and shapes as in :func:`box_iou`; values in (-2, 1], and -1 for non-finite boxes. In the
    gradient the weight of the aspect term is a constant, as in the paper.

    Source:
        arXiv:1911.08287, equations 8 to 11.
    """
    return _pairwise(active_backend().complete_box_iou, boxes1, boxes2, out)


@operator(
    "boxes1: float[..., 4], boxes2: float[..., 4] -> float[...]",
    shortcut=True,
    formula=True,
    gradient="formula",
    vmap="leading",
)
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
    flat1, flat2 = checks.promote(boxes1, boxes2)
    result = np.empty(flat1.shape[:-1], flat1.dtype)
    active_backend().paired_box_iou(flat1.reshape(-1, 4), flat2.reshape(-1, 4), result.reshape(-1))
    return result


def _pairwise(
    kernel: Callable[[Float, Float, Float], None], boxes1: Array, boxes2: Array, out: NDArray[Any] | None
) -> NDArray[Any]:
    boxes1, boxes2 = checks.promote(boxes1, boxes2)
    n, m, lead = boxes1.shape[-2], boxes2.shape[-2], boxes1.shape[:-2]
    if lead != boxes2.shape[:-2]:
        lead = np.broadcast_shapes(lead, boxes2.shape[:-2])
        boxes1 = np.ascontiguousarray(np.broadcast_to(boxes1, (*lead, n, 4)))
        boxes2 = np.ascontiguousarray(np.broadcast_to(boxes2, (*lead, m, 4)))
    batch = math.prod(lead)
    result = np.empty((*lead, n, m), boxes1.dtype) if out is None else out
    kernel(boxes1.reshape(batch, n, 4), boxes2.reshape(batch, m, 4), result.reshape(batch, n, m))
    return result
