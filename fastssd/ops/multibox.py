"""The classification loss of SSD: cross entropy over positives and mined negatives, in one call."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

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
    if type(logits) is not ndarray and face.dispatched(logits, labels):
        found = face.dispatch("call", "multibox_cross_entropy", (logits, labels), neg_pos_ratio, min_negatives)
        return MultiboxLoss(*found)
    scores, classes = face.to_numpy("logits", logits), face.to_numpy("labels", labels)
    one = scores.ndim == 2
    face.check_shape("logits", scores, ("A", "C") if one else ("B", "A", "C"))
    face.check_shape("labels", classes, scores.shape[:-1])
    columns = scores.shape[-1]
    if columns < 1:
        raise ValueError("logits: expected at least one column, the background; got none")
    classes = face.integers("labels", classes)
    if classes.size and not -1 <= classes.min() <= classes.max() < columns:
        face.check_rows("labels", (classes < -1) | (classes >= columns), classes, f"is not in [-1, {columns - 1}]")
    ratio = face.number("neg_pos_ratio", neg_pos_ratio, 0.0)
    least = face.count("min_negatives", min_negatives)
    (scores,) = face.promote(scores)
    if one:
        scores, classes = scores[None], classes[None]

    losses, selected = np.empty(len(scores), np.float64), np.empty(classes.shape, np.bool_)
    active_backend().multibox_cross_entropy(scores, classes, ratio, least, losses, selected)
    total = np.array(losses.sum(), scores.dtype)
    found = MultiboxLoss(face.like(logits, total), face.like(logits, selected[0] if one else selected))
    return found._replace(loss=face.with_gradient(found.loss, _write_gradient, logits, labels, found.selected))


def _write_gradient(scale: float, out: Array, logits: Array, labels: Array, selected: Array) -> None:
    """`scale` times the gradient of the loss to `out`, [..., A, C] in the promoted dtype of `logits`."""
    rows = logits.shape if logits.ndim == 3 else (1, *logits.shape)
    (scores,) = face.promote(face.to_numpy("logits", logits))
    classes = face.integers("labels", face.to_numpy("labels", labels))
    active_backend().multibox_cross_entropy_gradient(
        scores.reshape(rows),
        classes.reshape(rows[:-1]),
        face.to_numpy("selected", selected).reshape(rows[:-1]),
        scale,
        face.to_numpy("out", out).reshape(rows),
    )
