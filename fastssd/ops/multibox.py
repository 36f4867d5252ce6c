"""The classification loss of SSD: cross entropy over positives and mined negatives, in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd import _checks as checks
from fastssd._checks import Array
from fastssd.backends import active_backend
from fastssd.ops._operator import operator
from fastssd.ops._results import MultiboxLoss


@operator(
    "logits: float[B?, A, C+], labels: int[B?, A] -> loss: float[], selected: bool[B?, A]",
    result=MultiboxLoss,
    formula=True,
    gradient="kernel",
    vmap="multibox_cross_entropy",
)
def multibox_cross_entropy(
    logits: Array, labels: Array, *, neg_pos_ratio: float = 3.0, min_negatives: int = 0
) -> MultiboxLoss:
    """Cross entropy, summed over the positives and over the negatives that look least like background.

    The same as :func:`~fastssd.ops.mine_hard_negatives` on ``-log p(background)`` and a sum of cross entropies, but
    most anchors are never given an exact loss, and the gradient is written only where it is not zero.

    Args:
        logits: [B, A, C] or [A, C]; column 0 is background.
        labels: integers [B, A] or [A]: 0 background, 1 to C - 1 the classes, -1 an anchor that takes part in nothing.
        neg_pos_ratio: mined negatives for each positive of the image, >= 0.
        min_negatives: at least so many in each image, so that one without objects still teaches.

    Returns:
        :class:`MultiboxLoss`: (loss, selected).

    Raises:
        TypeError, ValueError: wrong shapes, a ratio that is negative or NaN, a label outside [-1, C - 1].

    Source:
        SSD, arXiv:1512.02325, section 2.2, equation 1 (the sum of the confidence loss) and "Hard negative mining".
    """
    classes = _classes(labels, logits.shape[-1])
    (scores,) = checks.promote(logits)
    rows = _batch(scores.shape)
    losses, selected = np.empty(rows[0], np.float64), np.empty(classes.shape, np.bool_)
    active_backend().multibox_cross_entropy(
        scores.reshape(rows),
        classes.reshape(rows[:2]),
        neg_pos_ratio,
        min_negatives,
        losses,
        selected.reshape(rows[:2]),
    )
    return MultiboxLoss(np.array(losses.sum(), scores.dtype), selected)


@operator(
    "scale: number[], logits: float[B?, A, C+], labels: int[B?, A], selected: bool[B?, A] -> float[B?, A, C]",
    formula=True,
    vmap="multibox_cross_entropy_gradient",
)
def multibox_cross_entropy_gradient(scale: Array, logits: Array, labels: Array, selected: Array) -> Any:
    """`scale` times the gradient of the loss by `logits`, [..., A, C].

    Labels are checked again: other code may have written to their memory since the loss was computed.
    """
    classes = _classes(labels, logits.shape[-1])
    (scores,) = checks.promote(logits)
    rows = _batch(scores.shape)
    out = np.empty(scores.shape, scores.dtype)
    active_backend().multibox_cross_entropy_gradient(
        scores.reshape(rows),
        classes.reshape(rows[:2]),
        np.ascontiguousarray(selected).reshape(rows[:2]),
        checks.number("scale", scale),
        out.reshape(rows),
    )
    return out


def _batch(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) == 3 else (1, *shape)


def _classes(labels: NDArray[Any], columns: int) -> NDArray[np.int64]:
    """Labels in [-1, columns)."""
    classes = checks.integers("labels", labels)
    if classes.size and not -1 <= classes.min() <= classes.max() < columns:
        checks.check_rows("labels", (classes < -1) | (classes >= columns), classes, f"is not in [-1, {columns - 1}]")
    return classes
