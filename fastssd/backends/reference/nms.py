"""Non-maximum suppression, hard, soft and by matrix: the definition (docs/contract.md, NMS)."""

from __future__ import annotations

import numpy as np

from fastssd.backends.codes import SOFT_NMS_METHODS, Float, Int
from fastssd.backends.reference.iou import iou_and_union


def usable(boxes: Float, scores: Float) -> Int:
    """Indices of the boxes that take part: finite, with a score that is not NaN."""
    return np.flatnonzero(np.isfinite(boxes).all(-1) & ~np.isnan(scores))


def keep_best(boxes: Float, scores: Float, iou_threshold: float) -> Int:
    """Greedy NMS: take the best box, delete what overlaps it too much, repeat."""
    candidates = usable(boxes, scores)
    candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
    kept = []
    while len(candidates):
        best, rest = candidates[0], candidates[1:]
        kept.append(best)
        overlap = iou_and_union(boxes[best], boxes[rest])[0]
        candidates = rest[overlap.astype(np.float64) <= iou_threshold]
    return np.array(kept, np.int64)


def nms(boxes: Float, scores: Float, iou_threshold: float, keep: Int) -> int:
    """boxes [N, 4], scores [N], keep [N]: kept indices by descending score. Returns how many."""
    kept = keep_best(boxes, scores, iou_threshold)
    keep[: len(kept)] = kept
    return len(kept)


def batched_nms(boxes: Float, scores: Float, idxs: Int, iou_threshold: float, keep: Int) -> int:
    """As ``nms``; boxes suppress each other only where idxs [N] are equal."""
    kept = []
    for group in np.unique(idxs):
        members = np.flatnonzero(idxs == group)
        kept.append(members[keep_best(boxes[members], scores[members], iou_threshold)])
    indices = np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)
    indices = indices[np.argsort(-scores[indices], kind="stable")]
    keep[: len(indices)] = indices
    return len(indices)


def soft_nms(
    boxes: Float,
    scores: Float,
    method: int,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    keep: Int,
    kept_scores: Float,
) -> int:
    """boxes [N, 4], scores [N]; keep [N] in order of selection, kept_scores [N] decayed. Returns how many."""
    left = usable(boxes, scores)
    current = scores[left]
    count = 0
    while True:
        alive = current.astype(np.float64) > score_threshold
        left, current = left[alive], current[alive]
        if len(left) == 0:
            return count
        best = current.argmax()  # the first of the highest: the lowest index
        keep[count], kept_scores[count] = left[best], current[best]
        count += 1
        iou = iou_and_union(boxes[left[best]], boxes[left])[0]
        with np.errstate(all="ignore"):
            if method == SOFT_NMS_METHODS["linear"]:
                decay = np.where(iou.astype(np.float64) > iou_threshold, 1 - iou, 1).astype(scores.dtype)
            else:
                decay = np.exp(-(iou * iou) / scores.dtype.type(sigma))
            current = current * decay
        left, current = np.delete(left, best), np.delete(current, best)


def matrix_decay(boxes: Float, method: int, sigma: float) -> Float:
    """boxes [N, 4], best first: each score's factor, the least f(IoU with i) / f(highest IoU of i) of all i before."""
    one = boxes.dtype.type(1)
    decay, highest = np.ones(len(boxes), boxes.dtype), np.zeros(len(boxes), boxes.dtype)
    for i in range(len(boxes)):
        iou = iou_and_union(boxes[i], boxes[i + 1 :])[0]
        with np.errstate(all="ignore"):
            if method == SOFT_NMS_METHODS["gaussian"]:
                quotient = np.exp((highest[i] * highest[i] - iou * iou) / boxes.dtype.type(sigma))
            elif highest[i] < 1:
                quotient = (one - iou) / (one - highest[i])
            else:  # i repeats an earlier box, which decays the rest
                quotient = np.full_like(iou, np.inf)
        decay[i + 1 :] = np.minimum(decay[i + 1 :], quotient)
        highest[i + 1 :] = np.maximum(highest[i + 1 :], iou)
    return decay


def matrix_nms(
    boxes: Float,
    scores: Float,
    idxs: Int,
    method: int,
    sigma: float,
    score_threshold: float,
    keep: Int,
    kept_scores: Float,
) -> int:
    """boxes [N, 4], scores [N], idxs [N]; keep [N] and kept_scores [N] by descending new score. Returns how many."""
    candidates = usable(boxes, scores)
    candidates = candidates[scores[candidates].astype(np.float64) > score_threshold]
    candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
    lowered = scores.copy()
    for group in np.unique(idxs[candidates]):
        members = candidates[idxs[candidates] == group]
        with np.errstate(invalid="ignore"):  # infinity times 0
            lowered[members] *= matrix_decay(boxes[members], method, sigma)
    kept = np.sort(candidates[lowered[candidates].astype(np.float64) > score_threshold])
    kept = kept[np.argsort(-lowered[kept], kind="stable")]
    keep[: len(kept)], kept_scores[: len(kept)] = kept, lowered[kept]
    return len(kept)
