"""From the network's outputs to the few boxes left.

Most anchors show background: a row of logits is skipped unless its best foreground class can reach the threshold.
What passes goes through NMS in the order of the final result, descending score, then class, then anchor: so a box is
decoded when its turn comes, and the work ends with the last place of the output. The order is made in portions, the
best first, because of a hundred thousand candidates a few hundred are looked at.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd.backends.codes import ACTIVATIONS, Float, Int
from fastssd.backends.numba._interrupt import WORK, interrupted
from fastssd.backends.numba._jit import jit
from fastssd.backends.numba._math import descending_keys, exp, ordered, round_down, softmax_terms, value_of
from fastssd.backends.numba._sort import sort_by
from fastssd.backends.numba.boxes import area_of, clip
from fastssd.backends.numba.coding import decode, row
from fastssd.backends.numba.iou import overlap, ratio
from fastssd.backends.numba.mining import kth_largest

Places = NDArray[np.int32]

SOFTMAX, SIGMOID = ACTIVATIONS["softmax"], ACTIVATIONS["sigmoid"]
PORTION, SAMPLE = 2048, 1024
LOGITS = 1 << 22  # so many take some 10 ms; then it is time to look for Ctrl-C


@jit
def _candidates(
    logits: Float,
    first: int,
    stop: int,
    activation: int,
    limit: Any,
    least: Any,
    scores: Float,
    labels: Places,
    anchors: Places,
    found: int,
) -> int:
    """All pairs of an anchor in [first, stop) and a class with a score over `limit`, by anchor, then class, after those
    that were found before. Returns how many there are now.

    `least`: what the largest foreground logit must reach for that (less the background logit if softmax).
    """
    classes, kind = logits.shape[1], logits.dtype.type
    if classes == 1:
        return found
    one, zero = kind(1), kind(0)
    row_scores = np.empty(classes, logits.dtype)
    for anchor in range(first, stop):
        row_logits = logits[anchor]
        highest = ordered(row_logits[1])
        for j in range(1, classes):
            highest = max(highest, ordered(row_logits[j]))
        largest = value_of(highest)
        if largest - (row_logits[0] if activation == SOFTMAX else zero) < least:
            continue
        if activation == SOFTMAX:
            _, total = softmax_terms(row_logits, row_scores)
            for j in range(1, classes):
                row_scores[j] = row_scores[j] / total
        elif activation == SIGMOID:
            for j in range(classes):
                row_scores[j] = one / (one + exp(-row_logits[j]))
        else:
            for j in range(classes):
                row_scores[j] = row_logits[j]
        for j in range(1, classes):
            scores[found], labels[found], anchors[found] = row_scores[j], j, anchor
            found += row_scores[j] > limit  # else the next one is written over it
    return found


@jit
def _cut(scores: Float, wanted: int) -> Any:
    """A score that roughly `wanted` of the scores reach, judged by a sample."""
    sample, step = np.full(SAMPLE, ordered(scores[0])), len(scores) // SAMPLE
    for i in range(SAMPLE):
        sample[i] = ordered(scores[i * step])
    return value_of(kth_largest(sample, SAMPLE * wanted // len(scores) + 1))


@jit
def _in_order(scores: Float, labels: Places) -> Places:
    """Places by descending score, then label, then place."""
    keys, order = np.empty(len(labels), np.uint32), np.empty(len(labels), np.int32)
    for i in range(len(labels)):
        keys[i], order[i] = labels[i], i
    order = sort_by(keys, order)
    by_label = np.empty_like(scores)
    for i in range(len(scores)):
        by_label[i] = scores[order[i]]
    return sort_by(descending_keys(by_label), order)


@jit
def _detect(
    logits: Float,
    deltas: Float,
    anchors: Float,
    limits: Any,
    topk: int,
    sides: Any,
    activation: int,
    variances: Any,
    scratch: Any,
    boxes: Float,
    scores: Float,
    labels: Int,
    anchor_idx: Int,
) -> int:
    """The detections of one image; returns how many."""
    limit, least, iou_threshold = limits
    right, bottom, clips = sides
    center_variance, size_variance = variances
    (left_scores, left_labels, left_anchors), (portion_scores, portion_labels, portion_anchors) = scratch
    kind = logits.dtype.type
    zero, half = kind(0), kind(0.5)
    flat_deltas, flat_anchors = deltas.reshape(-1), anchors.reshape(-1)
    classes, places, count = logits.shape[1], len(scores), 0
    seen, newest, before = np.zeros(classes, np.int64), np.full(classes, -1), np.empty(places, np.int64)
    areas, work = np.empty(places, logits.dtype), np.int64(0)
    left, rows = np.int64(0), max(1, LOGITS // max(1, classes))
    for first in range(0, len(logits), rows):
        left = _candidates(
            logits, first, min(first + rows, len(logits)), activation, limit, least,
            left_scores, left_labels, left_anchors, left,
        )  # fmt: skip
        if first > 0 and interrupted():
            return 0
    portion = PORTION
    while left > 0 and count < places:
        cut = _cut(left_scores[:left], portion) if left > 2 * portion else kind(-np.inf)
        portion *= 4
        taken = rest = 0
        for i in range(left):
            score, label, anchor = left_scores[i], left_labels[i], left_anchors[i]
            portion_scores[taken], portion_labels[taken], portion_anchors[taken] = score, label, anchor
            left_scores[rest], left_labels[rest], left_anchors[rest] = score, label, anchor
            taken, rest = taken + (score >= cut), rest + (score < cut)
        left = rest
        for i in _in_order(portion_scores[:taken], portion_labels[:taken]):
            label, anchor = np.int64(portion_labels[i]), np.int64(portion_anchors[i])
            if seen[label] >= topk:
                continue
            dx, dy, dw, dh = row(flat_deltas, anchor)
            growth = exp(dw * size_variance), exp(dh * size_variance)
            x1, y1, x2, y2 = decode((dx, dy), growth, row(flat_anchors, anchor), half, center_variance)
            if clips:
                x1, y1, x2, y2 = (
                    clip(x1, right, zero),
                    clip(y1, bottom, zero),
                    clip(x2, right, zero),
                    clip(y2, bottom, zero),
                )
            area = area_of(x1, y1, x2, y2, zero)
            if area != area:  # not finite
                continue
            seen[label] += 1
            work += seen[label]
            if work > WORK // 8:
                work = np.int64(0)
                if interrupted():
                    return count
            other = newest[label]
            while other >= 0:
                inter = overlap(
                    boxes[other, 0], boxes[other, 1], boxes[other, 2], boxes[other, 3], x1, y1, x2, y2, zero
                )
                if inter > zero and np.float64(ratio(inter, areas[other] + area - inter, zero)) > iou_threshold:
                    break
                other = before[other]
            if other >= 0:
                continue
            boxes[count, 0], boxes[count, 1], boxes[count, 2], boxes[count, 3] = x1, y1, x2, y2
            scores[count], labels[count], anchor_idx[count] = portion_scores[i], label, anchor
            areas[count], before[count], newest[label] = area, newest[label], count
            count += 1
            if count == places:
                break
    return count


@jit
def _postprocess(
    logits: Float,
    deltas: Float,
    anchors: Float,
    limits: Any,
    topk: int,
    sides: Any,
    activation: int,
    variances: Any,
    first: int,
    stop: int,
    boxes: Float,
    scores: Float,
    labels: Int,
    anchor_idx: Int,
    counts: Int,
) -> None:
    most = logits.shape[1] * (logits.shape[2] - 1)
    scratch = (
        (np.empty(most, logits.dtype), np.empty(most, np.int32), np.empty(most, np.int32)),
        (np.empty(most, logits.dtype), np.empty(most, np.int32), np.empty(most, np.int32)),
    )
    zero = logits.dtype.type(0)
    for b in range(first, stop):
        count = _detect(
            logits[b], deltas[b], anchors, limits, topk, sides, activation, variances, scratch,
            boxes[b], scores[b], labels[b], anchor_idx[b],
        )  # fmt: skip
        boxes[b, count:] = zero
        scores[b, count:] = zero
        labels[b, count:] = -1
        anchor_idx[b, count:] = -1
        counts[b] = count


def postprocess_detections(
    logits: Float,
    deltas: Float,
    anchors: Float,
    score_threshold: float,
    iou_threshold: float,
    topk: int,
    clip_height: float,
    clip_width: float,
    activation: int,
    center_variance: float,
    size_variance: float,
    boxes: Float,
    scores: Float,
    labels: Int,
    anchor_idx: Int,
    counts: Int,
) -> None:
    kind, images = logits.dtype.type, len(logits)
    limit = round_down(score_threshold, logits.dtype)
    # The best score of a row is at most sigmoid(l) with l its largest foreground logit, less the background logit if
    # softmax; so l must reach the inverse of the sigmoid, with room for rounding.
    share = score_threshold * (1 - 1e-5)
    least = (
        limit
        if activation == ACTIVATIONS["none"]
        else kind(math.log(share / (1 - share)) - 1e-3 if share else -math.inf)
    )
    step = max(1, LOGITS // max(1, logits[0].size)) if images else 1
    for first in range(0, images, step):
        _postprocess(
            logits,
            deltas,
            anchors,
            (limit, least, iou_threshold),
            topk,
            (kind(clip_width), kind(clip_height), math.isfinite(clip_height)),
            activation,
            (kind(center_variance), kind(size_variance)),
            first,
            min(first + step, images),
            boxes,
            scores,
            labels,
            anchor_idx,
            counts,
        )
