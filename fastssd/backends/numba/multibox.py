"""Cross entropy over positives and mined negatives, row by row, and its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd.backends.codes import Bool, Float, Int
from fastssd.backends.numba._jit import jit
from fastssd.backends.numba._math import softmax_terms
from fastssd.backends.numba.mining import mine_hard_negatives

LOGITS = 1 << 22  # so many take some 20 ms; in between Python sees Ctrl-C, which a kernel does not


@jit
def _losses(logits: Float, labels: Int, values: Float, of_label: Float, of_background: Float) -> None:
    """logits [N, C], labels [N]; values is scratch; of_background is -inf where the label is -1."""
    last = logits.shape[1] - 1
    for a in range(len(labels)):
        row, column = logits[a], min(max(labels[a], 0), last)  # another thread may have written to the labels
        most, total = softmax_terms(row, values)
        log_total = np.log(total)
        of_label[a] = log_total - (row[column] - most)
        of_background[a] = -np.inf if labels[a] < 0 else log_total - (row[0] - most)


@jit
def _sum(of_label: Float, selected: Bool) -> Any:
    total = 0.0
    for a in range(len(of_label)):
        if selected[a]:
            total += np.float64(of_label[a])
    return total


@jit
def _gradient(logits: Float, labels: Int, selected: Bool, scale: Any, values: Float, out: Float) -> None:
    """logits [N, C], labels [N], selected [N], scale [1], out [N, C]; values is scratch."""
    for a in range(len(labels)):
        if not selected[a]:
            out[a] = 0
            continue
        _, total = softmax_terms(logits[a], values)
        for c in range(out.shape[1]):
            out[a, c] = values[c] / total
        out[a, min(max(labels[a], 0), out.shape[1] - 1)] -= out.dtype.type(1)
        for c in range(out.shape[1]):
            out[a, c] *= scale[0]


def multibox_cross_entropy(
    logits: Float, labels: Int, neg_pos_ratio: float, min_negatives: int, losses: NDArray[np.float64], selected: Bool
) -> None:
    rows, classes = logits.reshape(-1, logits.shape[2]), labels.reshape(-1)
    of_label, of_background = np.empty(labels.shape, logits.dtype), np.empty(labels.shape, logits.dtype)
    values, step = np.empty(logits.shape[2], logits.dtype), max(1, LOGITS // logits.shape[2])
    for first in range(0, len(classes), step):
        part = slice(first, first + step)
        _losses(rows[part], classes[part], values, of_label.reshape(-1)[part], of_background.reshape(-1)[part])
    positive = labels > 0
    mine_hard_negatives(of_background, positive, neg_pos_ratio, min_negatives, selected)
    selected |= positive
    for image in range(len(logits)):
        losses[image] = _sum(of_label[image], selected[image])


def multibox_cross_entropy_gradient(logits: Float, labels: Int, selected: Bool, scale: float, out: Float) -> None:
    rows, to = logits.reshape(-1, logits.shape[2]), out.reshape(-1, logits.shape[2])
    classes, chosen = labels.reshape(-1), selected.reshape(-1)
    values, step = np.empty(logits.shape[2], logits.dtype), max(1, LOGITS // logits.shape[2])
    factor = np.array([scale], logits.dtype)
    for first in range(0, len(classes), step):
        part = slice(first, first + step)
        _gradient(rows[part], classes[part], chosen[part], factor, values, to[part])
