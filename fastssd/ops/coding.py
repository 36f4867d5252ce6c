"""Boxes as deltas from anchors, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy import ndarray

from fastssd.backends import active_backend, shortcuts
from fastssd.ops import _face as face
from fastssd.ops._face import Array


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
    if not (type(boxes) is type(anchors) is ndarray) and face.dispatched(boxes, anchors):
        return face.dispatch("call", "encode_boxes", {"boxes": boxes, "anchors": anchors}, variances=variances)
    if (found := shortcuts.encode_boxes(boxes, anchors, variances)) is not None:
        return found
    center, size = face.check_variances(variances)

    def kernel(boxes: Array, anchors: Array) -> Any:
        array, priors = face.to_boxes("boxes", boxes), face.to_boxes("anchors", anchors)
        _check_pair("boxes", array, priors)
        flat, priors = face.promote(array, priors)
        check_codable("boxes", flat)
        check_codable("anchors", priors)
        out = np.empty(array.shape, flat.dtype)
        rows = (math.prod(array.shape[:-2]), *array.shape[-2:])
        active_backend().encode_boxes(flat.reshape(rows), priors, center, size, out.reshape(rows))
        return face.like(out, boxes, anchors)

    return face.differentiable(kernel, "encode_boxes", {"boxes": boxes, "anchors": anchors}, center, size)


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
    if not (type(deltas) is type(anchors) is ndarray) and face.dispatched(deltas, anchors):
        return face.dispatch("call", "decode_boxes", {"deltas": deltas, "anchors": anchors}, variances=variances)
    if (found := shortcuts.decode_boxes(deltas, anchors, variances)) is not None:
        return found
    center, size = face.check_variances(variances)

    def kernel(deltas: Array, anchors: Array) -> Any:
        array, priors = face.to_boxes("deltas", deltas), face.to_boxes("anchors", anchors)
        _check_pair("deltas", array, priors)
        flat, priors = face.promote(array, priors)
        out = np.empty(array.shape, flat.dtype)
        rows = (math.prod(array.shape[:-2]), *array.shape[-2:])
        active_backend().decode_boxes(flat.reshape(rows), priors, center, size, out.reshape(rows))
        return face.like(out, deltas, anchors)

    return face.differentiable(kernel, "decode_boxes", {"deltas": deltas, "anchors": anchors}, center, size)


def check_codable(name: str, boxes: Any) -> None:
    """Raise unless every box is finite and has positive extent, so that its size has a logarithm."""
    face.check_finite(name, boxes)
    face.check_extent(name, boxes)


def _check_pair(name: str, array: Any, anchors: Any) -> None:
    face.check_shape("anchors", anchors, ("A", 4))
    face.check_shape(name, array, ("...", len(anchors), 4))
