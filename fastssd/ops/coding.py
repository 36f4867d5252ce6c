"""Boxes as deltas from anchors, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd import _checks as checks
from fastssd._checks import Array
from fastssd.backends import active_backend
from fastssd.ops._operator import operator


@operator(
    "anchors: float[A, 4], boxes: float[..., A, 4] -> float[..., A, 4]",
    shortcut=True,
    formula=True,
    gradient="formula",
    vmap="coding",
)
def encode_boxes(boxes: Array, anchors: Array, *, variances: tuple[float, float] = (0.1, 0.2)) -> Any:
    """What a network must answer at each anchor to give these boxes.

    Args:
        boxes: [..., A, 4] xyxy.
        anchors: [A, 4] xyxy, same unit.
        variances: (center, size): the deltas are divided by them, so that they have a spread of about 1.

    Returns:
        [..., A, 4] deltas (dx, dy, dw, dh), float32 or float64. Differentiable for torch.

    Raises:
        TypeError, ValueError: wrong shapes or variances; a box or anchor that is not finite or has no positive extent.

    Source:
        SSD, arXiv:1512.02325, equation 2.
    """
    boxes, anchors = checks.promote(boxes, anchors)
    checks.check_codable("boxes", boxes)
    checks.check_codable("anchors", anchors)
    out, (center, size) = np.empty(boxes.shape, boxes.dtype), variances
    active_backend().encode_boxes(_rows(boxes), anchors, center, size, _rows(out))
    return out


@operator(
    "anchors: float[A, 4], deltas: float[..., A, 4] -> float[..., A, 4]",
    shortcut=True,
    formula=True,
    gradient="formula",
    vmap="coding",
)
def decode_boxes(deltas: Array, anchors: Array, *, variances: tuple[float, float] = (0.1, 0.2)) -> Any:
    """The boxes that a network means by its deltas: the inverse of :func:`encode_boxes`.

    Args:
        deltas: [..., A, 4] (dx, dy, dw, dh).
        anchors: [A, 4] xyxy.
        variances: (center, size) as they were encoded.

    Returns:
        [..., A, 4] xyxy in the anchors' unit, float32 or float64; not finite where a delta overflows. Differentiable
        for torch.

    Raises:
        TypeError, ValueError: wrong shapes or variances.

    Source:
        SSD, arXiv:1512.02325, equation 2.
    """
    deltas, anchors = checks.promote(deltas, anchors)
    out, (center, size) = np.empty(deltas.shape, deltas.dtype), variances
    active_backend().decode_boxes(_rows(deltas), anchors, center, size, _rows(out))
    return out


def _rows(array: NDArray[Any]) -> NDArray[Any]:
    """[..., A, 4] as [B, A, 4]."""
    return array.reshape(math.prod(array.shape[:-2]), *array.shape[-2:])
