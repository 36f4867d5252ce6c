"""The classification loss of SSD: cross entropy over positives and mined negatives, in one call."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from fastssd.backends import active_backend
from fastssd.ops import _face as face
from fastssd.ops._face import Array


class MultiboxLoss(NamedTuple):
    """What :func:`multibox_cross_entropy` returns."""

    loss: Any
    """[], the sum over the selected anchors, float32 or float64. Differentiable for torch, once."""
    selected: Any
    """bool [B, A] or [A]: the positives and the mined negatives."""


def multibox_cross_entropy(
    logits: Array, labels: Array, *, neg_pos_ratio: float = 3.0, min_negatives: int = 0
) -> MultiboxLoss:
    """Cross entropy, summed over the positives and over the negatives that look least like background.

    The same as :func:`~fastssd.ops.mine_hard_negatives` on ``-log p(background)`` and a sum of cross entropies, but
    most anchors are never given an exact loss, and the gradient is written only where it is not zero.

    Args:
        logits: [B, A, C] or [A, C]; column 0 is background.
        labels: integers [B, A] or [A]: 0 background, 1 to C - 1 the classes, -1 an anchor that takes part in nothing.
        neg_pos_ratio: mined negatives for each positive of the picture, >= 0.
        min_negatives: at least so many in each picture, so that one without objects still teaches.

    Returns:
        :class:`MultiboxLoss`: (loss, selected).

    Raises:
        TypeError, ValueError: wrong shapes, a ratio that is negative or NaN, a label outside [-1, C - 1].

    Source:
        SSD, arXiv:1512.02325, section 2.2, equation 1 (the sum of the confidence loss) and "Hard negative mining".
    """
    if not (type(logits) is type(labels) is ndarray) and face.dispatched(logits, labels):
        arrays, options = {"logits": logits, "labels": labels}, {"neg_pos_ratio": neg_pos_ratio}
        return MultiboxLoss(
            *face.dispatch("call", "multibox_cross_entropy", arrays, **options, min_negatives=min_negatives)
        )
    if face.wants_gradient(logits):
        labels = face.to_tensor("labels", labels)  # once, so that the backward pass sees the labels of this one
    scores, classes = face.to_numpy("logits", logits), face.to_numpy("labels", labels)
    one = scores.ndim == 2
    face.check_shape("logits", scores, ("A", "C") if one else ("B", "A", "C"))
    classes = _classes(classes, scores.shape)
    ratio = face.number("neg_pos_ratio", neg_pos_ratio, 0.0)
    least = face.count("min_negatives", min_negatives)
    (scores,) = face.promote(scores)
    if one:
        scores, classes = scores[None], classes[None]

    losses, selected = np.empty(len(scores), np.float64), np.empty(classes.shape, np.bool_)
    active_backend().multibox_cross_entropy(scores, classes, ratio, least, losses, selected)
    total = np.array(losses.sum(), scores.dtype)
    found = MultiboxLoss(face.like(total, logits, labels), face.like(selected[0] if one else selected, logits, labels))
    return found._replace(loss=face.with_gradient(found.loss, _write_gradient, logits, labels, found.selected))


def _classes(labels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Labels of logits of this shape, checked."""
    face.check_shape("labels", labels, shape[:-1])
    columns = shape[-1]
    if columns < 1:
        raise ValueError("logits: expected at least one column, the background; got none")
    classes = face.integers("labels", labels)
    if classes.size and not -1 <= classes.min() <= classes.max() < columns:
        face.check_rows("labels", (classes < -1) | (classes >= columns), classes, f"is not in [-1, {columns - 1}]")
    return classes


def gradient(scale: float, logits: Array, labels: Array, selected: Array, out: NDArray[Any] | None = None) -> Any:
    """`scale` times the gradient of the loss, [..., A, C] in the promoted dtype of `logits`.

    Labels are checked again: who shares their memory may have written to it since the loss was computed.
    """
    scores, mask = face.to_numpy("logits", logits), face.to_numpy("selected", selected)
    face.check_shape("logits", scores, ("A", "C") if scores.ndim == 2 else ("B", "A", "C"))
    classes = _classes(face.to_numpy("labels", labels), scores.shape)
    face.check_shape("selected", mask, classes.shape)
    if mask.dtype != np.bool_:
        raise TypeError(f"selected: expected bool, got dtype {mask.dtype}")
    rows = scores.shape if scores.ndim == 3 else (1, *scores.shape)
    (scores,) = face.promote(scores)
    out = np.empty(scores.shape, scores.dtype) if out is None else out
    active_backend().multibox_cross_entropy_gradient(
        scores.reshape(rows),
        classes.reshape(rows[:-1]),
        np.ascontiguousarray(mask).reshape(rows[:-1]),
        scale,
        out.reshape(rows),
    )
    return out


def _write_gradient(scale: float, out: Array, logits: Array, labels: Array, selected: Array) -> None:
    gradient(scale, logits, labels, selected, face.to_numpy("out", out))
