"""Hard negative mining."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastssd import _checks as checks
from fastssd._checks import Array
from fastssd.backends import active_backend
from fastssd.ops._operator import operator


@operator("loss: float[B?, A], positive: bool[B?, A] -> bool[B?, A]", formula=True, vmap="mining")
def mine_hard_negatives(loss: Array, positive: Array, *, neg_pos_ratio: float = 3.0, min_negatives: int = 0) -> Any:
    """Choose the negatives that the classification loss should count: the highest losses, a few for each positive.

    Args:
        loss: [A] or [B, A] classification loss of every anchor as it would be if the anchor were background. ``-inf``
            marks an anchor that is never chosen, NaN ranks first.
        positive: bool [A] or [B, A].
        neg_pos_ratio: negatives a positive, >= 0.
        min_negatives: at least so many in each image, so that one without objects still teaches.

    Returns:
        bool, the shape of `loss`: the negatives that were chosen, in each image
        ``max(ceil(neg_pos_ratio * positives), min_negatives)`` of them, never more than there are. Equal losses: the
        lower index.

    Raises:
        TypeError, ValueError: shapes that differ, `positive` not boolean, a ratio that is negative or NaN.

    Source:
        SSD, arXiv:1512.02325, section 2.2, "Hard negative mining".
    """
    (losses,) = checks.promote(loss)
    out = np.empty(losses.shape, np.bool_)
    rows = losses.shape if losses.ndim == 2 else (1, len(losses))
    mask = np.ascontiguousarray(positive).reshape(rows)
    active_backend().mine_hard_negatives(losses.reshape(rows), mask, neg_pos_ratio, min_negatives, out.reshape(rows))
    return out
