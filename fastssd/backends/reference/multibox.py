"""Cross entropy over positives and mined negatives: the definition (SSD paper, section 2.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastssd.backends.codes import Bool, Float, Int
from fastssd.backends.reference.mining import mine_hard_negatives


def multibox_cross_entropy(
    logits: Float,
    labels: Int,
    neg_pos_ratio: float,
    min_negatives: int,
    losses: NDArray[np.float64],
    selected: Bool,
) -> None:
    """logits [B, A, C], labels [B, A] in [-1, C); losses [B] the sum of each image, selected [B, A]."""
    with np.errstate(all="ignore"):
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log_sum = np.log(np.exp(shifted).sum(axis=-1))  # [B, A]
        of_background = log_sum - shifted[..., 0]  # -log p(background)
        of_label = (
            log_sum - np.take_along_axis(shifted, labels.clip(0, logits.shape[-1] - 1)[..., None], axis=-1)[..., 0]
        )
    positive = labels > 0
    mine_hard_negatives(np.where(labels < 0, -np.inf, of_background), positive, neg_pos_ratio, min_negatives, selected)
    selected |= positive
    losses[...] = 0
    for image, anchor in np.argwhere(selected):  # in this order, so that it rounds the same everywhere
        losses[image] += of_label[image, anchor]


def multibox_cross_entropy_gradient(logits: Float, labels: Int, selected: Bool, scale: float, out: Float) -> None:
    """The gradient of `scale` times the loss, out [B, A, C]; the other arguments as in the forward pass."""
    out[...] = 0
    rows, columns = logits[selected], labels[selected].clip(0, logits.shape[-1] - 1)  # [S, C], [S]
    with np.errstate(all="ignore"):
        exp = np.exp(rows - rows.max(axis=-1, keepdims=True))
        softmax = exp / exp.sum(axis=-1, keepdims=True)
    out[selected] = (softmax - np.eye(logits.shape[-1])[columns]).astype(out.dtype) * out.dtype.type(scale)
