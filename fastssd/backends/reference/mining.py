"""Hard negative mining: the definition (SSD paper, section 2.2, "Hard negative mining")."""

from __future__ import annotations

import math

import numpy as np

from fastssd.backends.codes import Bool, Float


def mine_hard_negatives(loss: Float, positive: Bool, neg_pos_ratio: float, min_negatives: int, out: Bool) -> None:
    """loss [B, A], positive [B, A], out [B, A]."""
    out[...] = False
    for image in range(len(loss) if loss.size else 0):
        positives = int(np.count_nonzero(positive[image]))
        asked = min(neg_pos_ratio * positives, loss.shape[1]) if positives else 0  # infinity times 0 is NaN
        wanted = max(math.ceil(asked), min_negatives)
        negatives = np.flatnonzero(~positive[image] & (loss[image] != -np.inf))
        keys = np.where(np.isnan(loss[image, negatives]), np.inf, loss[image, negatives])
        # NaN ranks above infinity; lexsort is stable, so equal losses stay in order of their index.
        order = np.lexsort((-keys, ~np.isnan(loss[image, negatives])))
        out[image, negatives[order[:wanted]]] = True
