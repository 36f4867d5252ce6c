"""Hard negative mining."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray

from fastssd.backends import active_backend
from fastssd.ops import _face as face
from fastssd.ops._face import Array


def mine_hard_negatives(loss: Array, positive: Array, *, neg_pos_ratio: float = 3.0, min_negatives: int = 0) -> Any:
    """Choose the negatives that the classification loss should count: the highest losses, a few for each positive.

    Args:
        loss: [A] or [B, A] classification loss of every anchor as it would be if the anchor were background. ``-inf``
            marks an anchor that is never chosen, NaN ranks first.
        positive: bool [A] or [B, A].
        neg_pos_ratio: negatives a positive, >= 0.
        min_negatives: at least so many in each picture, so that one without objects still teaches.

    Returns:
        bool, the shape of `loss`: the negatives that were chosen, in each picture
        ``max(ceil(neg_pos_ratio * positives), min_negatives)`` of them, never more than there are. Equal losses: the
        lower index.

    Raises:
        TypeError, ValueError: shapes that differ, `positive` not boolean, a ratio that is negative or NaN.

    Source:
        SSD, arXiv:1512.02325, section 2.2, "Hard negative mining".
    """
    if not (type(loss) is type(positive) is ndarray) and face.dispatched(loss, positive):
        arrays, options = {"loss": loss, "positive": positive}, {"neg_pos_ratio": neg_pos_ratio}
        return face.dispatch("call", "mine_hard_negatives", arrays, **options, min_negatives=min_negatives)
    losses, mask = face.to_numpy("loss", loss), face.to_numpy("positive", positive)
    face.check_shape("loss", losses, ("A",) if losses.ndim == 1 else ("B", "A"))
    face.check_shape("positive", mask, losses.shape if losses.ndim else ("A",))
    if mask.dtype != np.bool_:
        raise TypeError(f"positive: expected bool, got dtype {mask.dtype}")
    ratio = face.number("neg_pos_ratio", neg_pos_ratio, 0.0)
    least = face.count("min_negatives", min_negatives)
    (losses,) = face.promote(losses)
    out = np.empty(losses.shape, np.bool_)
    rows = losses.shape if losses.ndim == 2 else (1, len(losses))
    mask = np.ascontiguousarray(mask).reshape(rows)
    active_backend().mine_hard_negatives(losses.reshape(rows), mask, ratio, least, out.reshape(rows))
    return face.like(out, loss, positive)
