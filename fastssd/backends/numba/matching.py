"""Which anchor is responsible for which ground-truth box.

Anchors come in order of place, so a block of neighbours lies in a small hull. A ground-truth box has to look only into
the blocks whose hull it overlaps: everywhere else the IoU is 0. Within a block all anchors are measured at once. IoUs
are not negative, so their bits have the same order; the maximum is taken of these integers, because that vectorises.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd.backends.codes import FORCE_MATCH, Bool, Float, Int
from fastssd.backends.numba._interrupt import WORK, interrupted
from fastssd.backends.numba._jit import jit
from fastssd.backends.numba._math import bits_of, round_up
from fastssd.backends.numba.boxes import area_of, columns
from fastssd.backends.numba.coding import encode, row
from fastssd.backends.numba.iou import overlap, ratio

Bits = NDArray[Any]  # signed integers as wide as the floats

BIPARTITE, BEST, LOW_QUALITY = FORCE_MATCH["bipartite"], FORCE_MATCH["best"], FORCE_MATCH["low_quality"]
BLOCK = 32


@jit
def _in_blocks(anchors: Float) -> tuple[Float, Float]:
    """The anchors block by block, x1, y1, x2, y2, area of each [blocks * 5 * BLOCK], filled up with empty ones; and the
    hulls of the blocks, rows x1, y1, x2, y2 [4, blocks]."""
    count = (len(anchors) + BLOCK - 1) // BLOCK
    flat, zero = anchors.reshape(-1), anchors.dtype.type(0)
    blocks, hulls = np.zeros(count * 5 * BLOCK, anchors.dtype), np.empty((4, count), anchors.dtype)
    for i in range(len(anchors)):
        x1, y1, x2, y2 = row(flat, i)
        block, k = i // BLOCK, i % BLOCK
        at = 5 * BLOCK * block + k
        blocks[at], blocks[at + BLOCK], blocks[at + 2 * BLOCK], blocks[at + 3 * BLOCK] = x1, y1, x2, y2
        blocks[at + 4 * BLOCK] = area_of(x1, y1, x2, y2, zero)
        hulls[0, block] = x1 if k == 0 else min(hulls[0, block], x1)
        hulls[1, block] = y1 if k == 0 else min(hulls[1, block], y1)
        hulls[2, block] = x2 if k == 0 else max(hulls[2, block], x2)
        hulls[3, block] = y2 if k == 0 else max(hulls[3, block], y2)
    return blocks, hulls


@jit
def _touches(hulls: Float, block: int, gt: Any) -> bool:
    x1, y1, x2, y2, _ = gt
    return (hulls[0, block] < x2) & (hulls[1, block] < y2) & (hulls[2, block] > x1) & (hulls[3, block] > y1)


@jit
def _iou_in(members: Float, k: int, gt: Any, zero: Any) -> Any:
    """IoU of anchor k of a block with a ground-truth box (x1, y1, x2, y2, area)."""
    x1, y1, x2, y2, area = gt
    inter = overlap(
        members[k], members[BLOCK + k], members[2 * BLOCK + k], members[3 * BLOCK + k], x1, y1, x2, y2, zero
    )
    return ratio(inter, members[4 * BLOCK + k] + area - inter, zero)


@jit
def _ask(blocks: Float, hulls: Float, gt: Any, index: Any, best: Bits, best_gt: Bits, iou: Float) -> Any:
    """Offer a ground-truth box to all anchors. Returns its largest IoU and the anchor, the lowest of equals."""
    zero = iou.dtype.type(0)
    top, value, anchor = bits_of(zero), zero, np.int64(0)
    for block in range(hulls.shape[1]):
        if not _touches(hulls, block, gt):
            continue
        # Slices, because only indices that begin at 0 vectorise.
        start = block * BLOCK
        members, highest = blocks[5 * start : 5 * (start + BLOCK)], bits_of(zero)
        so_far, whose = best[start : start + BLOCK], best_gt[start : start + BLOCK]
        for k in range(BLOCK):
            iou[k] = _iou_in(members, k, gt, zero)
            mine, old, owner = bits_of(iou[k]), so_far[k], whose[k]
            so_far[k], whose[k] = max(mine, old), index if mine > old else owner
            highest = max(highest, mine)
        if highest > top:
            k = 0
            while bits_of(iou[k]) != highest:
                k += 1
            top, value, anchor = highest, iou[k], start + k
    return value, anchor


@jit
def _best_free(blocks: Float, hulls: Float, gt: Any, taken: Bool, zero: Any) -> Any:
    """The largest IoU of a ground-truth box with a free anchor, and the lowest such anchor; (0, 0) if it is 0."""
    value, anchor = zero, np.int64(0)
    for block in range(hulls.shape[1]):
        if _touches(hulls, block, gt):
            start = block * BLOCK
            members = blocks[5 * start : 5 * (start + BLOCK)]
            for k in range(BLOCK):
                iou = _iou_in(members, k, gt, zero)
                if iou > value and not taken[start + k]:
                    value, anchor = iou, start + k
    return value, anchor


@jit
def _force_bipartite(
    blocks: Float, hulls: Float, gts: Any, tops: Float, top_anchors: Int, taken: Bool, gt_idx: Int, iou: Float
) -> None:
    """Give every ground-truth box an anchor of its own, the largest IoU first; ties: lower anchor, then lower box.

    As anchors are taken, the best free IoU of a box can only become less. So it is searched for again only when it is
    the turn of the box and its anchor is gone. Overwrites `tops` and `top_anchors`; `taken` is false everywhere before
    and after.
    """
    x1, y1, x2, y2, area = gts
    zero, served = tops.dtype.type(0), tops.dtype.type(-1)
    free, work = 0, np.int64(0)
    for _ in range(min(len(tops), len(iou))):
        while True:
            work += len(tops) + hulls.shape[1]
            if work > WORK:
                work = np.int64(0)
                if interrupted():
                    return
            g = 0
            for other in range(1, len(tops)):
                if tops[other] > tops[g] or (tops[other] == tops[g] and top_anchors[other] < top_anchors[g]):
                    g = other
            if tops[g] == zero or not taken[top_anchors[g]]:
                break
            tops[g], top_anchors[g] = _best_free(blocks, hulls, (x1[g], y1[g], x2[g], y2[g], area[g]), taken, zero)
        if tops[g] == zero:  # only pairs with IoU 0 are left: the first box gets the first free anchor
            g = 0
            while tops[g] != zero:
                g += 1
            while taken[free]:
                free += 1
            top_anchors[g] = free
        anchor = top_anchors[g]
        gt_idx[anchor], iou[anchor] = g, tops[g]
        taken[anchor] = True
        tops[g] = served
    for g in range(len(tops)):
        if tops[g] == served:
            taken[top_anchors[g]] = False


@jit
def _force_low_quality(blocks: Float, hulls: Float, gts: Any, tops: Float, best_gt: Bits, gt_idx: Int) -> None:
    """Make every anchor positive that has the best IoU of some ground-truth box."""
    x1, y1, x2, y2, area = gts
    zero, work = tops.dtype.type(0), np.int64(0)
    for g in range(len(tops)):
        work += len(gt_idx)
        if work > WORK:
            work = np.int64(0)
            if interrupted():
                return
        gt = x1[g], y1[g], x2[g], y2[g], area[g]
        for block in range(hulls.shape[1]):
            if tops[g] == zero or _touches(hulls, block, gt):
                start = block * BLOCK
                members = blocks[5 * start : 5 * (start + BLOCK)]
                for k in range(min(BLOCK, len(gt_idx) - start)):
                    if _iou_in(members, k, gt, zero) == tops[g]:
                        gt_idx[start + k] = best_gt[start + k]


@jit
def _match_one(
    blocks: Float,
    hulls: Float,
    gt_boxes: Float,
    low: Any,
    high: Any,
    force_match: int,
    best: Float,
    best_bits: Bits,
    best_gt: Bits,
    taken: Bool,
    gt_idx: Int,
    iou: Float,
) -> None:
    """The matches of one image. The four arrays before the outputs are scratch, as long as the anchors in blocks."""
    if len(gt_boxes) == 0:
        gt_idx[:] = -1
        iou[:] = iou.dtype.type(0)
        return
    best_bits[:] = 0
    best_gt[:] = 0
    gts = columns(gt_boxes)
    x1, y1, x2, y2, area = gts
    tops, top_anchors = np.empty(len(gt_boxes), iou.dtype), np.empty(len(gt_boxes), np.int64)
    scratch, work = np.empty(BLOCK, iou.dtype), np.int64(0)
    for g in range(len(gt_boxes)):
        work += len(iou)
        if work > WORK:
            work = np.int64(0)
            if interrupted():
                return
        gt, index = (x1[g], y1[g], x2[g], y2[g], area[g]), best_gt.dtype.type(g)
        tops[g], top_anchors[g] = _ask(blocks, hulls, gt, index, best_bits, best_gt, scratch)
    for i in range(len(iou)):
        iou[i] = best[i]
        gt_idx[i] = best_gt[i] if best[i] >= high else (-1 if best[i] < low else -2)
    if len(iou) == 0:
        return
    if force_match == BIPARTITE:
        _force_bipartite(blocks, hulls, gts, tops, top_anchors, taken, gt_idx, iou)
    elif force_match == BEST:
        for g in range(len(gt_boxes)):
            gt_idx[top_anchors[g]], iou[top_anchors[g]] = g, tops[g]
    elif force_match == LOW_QUALITY:
        _force_low_quality(blocks, hulls, gts, tops, best_gt, gt_idx)


@jit
def _match(
    blocks: Float,
    hulls: Float,
    gt_boxes: Float,
    offsets: Int,
    low: Any,
    high: Any,
    force_match: int,
    best: Float,
    best_bits: Bits,
    best_gt: Bits,
    image: int,
    gt_idx: Int,
    iou: Float,
) -> int:
    """The images from `image` on, until some work is done. Returns the first that is not done."""
    taken = np.zeros(len(best), np.bool_)
    work = np.int64(WORK)
    while image < len(gt_idx) and work > 0:
        gts = gt_boxes[offsets[image] : offsets[image + 1]]
        _match_one(
            blocks, hulls, gts, low, high, force_match, best, best_bits, best_gt, taken, gt_idx[image], iou[image]
        )
        work -= len(best) * (len(gts) + 1)
        image += 1
    return image


def match_anchors(
    anchors: Float,
    gt_boxes: Float,
    offsets: Int,
    iou_threshold: float,
    background_threshold: float,
    force_match: int,
    gt_idx: Int,
    iou: Float,
) -> None:
    low, high = round_up(background_threshold, anchors.dtype), round_up(iou_threshold, anchors.dtype)
    blocks, hulls = _in_blocks(anchors)
    best = np.empty(hulls.shape[1] * BLOCK, anchors.dtype)
    bits = best.view(f"i{best.itemsize}")
    best_gt, image = np.empty_like(bits), 0
    while image < len(gt_idx):
        image = _match(
            blocks, hulls, gt_boxes, offsets, low, high, force_match, best, bits, best_gt, image, gt_idx, iou
        )


@jit
def _encode_matched(
    anchors: Float,
    gt_boxes: Float,
    gt_labels: Int,
    offsets: Int,
    center_variance: Any,
    size_variance: Any,
    gt_idx: Int,
    labels: Int,
    deltas: Float,
) -> None:
    half, zero = anchors.dtype.type(0.5), anchors.dtype.type(0)
    a, boxes = anchors.reshape(-1), gt_boxes.reshape(-1)
    for image in range(len(gt_idx)):
        match, label, to = gt_idx[image], labels[image], deltas[image].reshape(-1)
        to[:] = zero
        for i in range(len(anchors)):
            label[i] = -1 if match[i] == -2 else 0
            if match[i] >= 0:
                gt = offsets[image] + match[i]
                label[i] = gt_labels[gt]
                to[4 * i], to[4 * i + 1], to[4 * i + 2], to[4 * i + 3] = encode(
                    row(boxes, gt), row(a, i), half, center_variance, size_variance
                )


def assign_targets(
    anchors: Float,
    gt_boxes: Float,
    gt_labels: Int,
    offsets: Int,
    iou_threshold: float,
    background_threshold: float,
    force_match: int,
    center_variance: float,
    size_variance: float,
    labels: Int,
    deltas: Float,
    gt_idx: Int,
) -> None:
    iou = np.empty(gt_idx.shape, anchors.dtype)
    match_anchors(anchors, gt_boxes, offsets, iou_threshold, background_threshold, force_match, gt_idx, iou)
    variances = anchors.dtype.type(center_variance), anchors.dtype.type(size_variance)
    _encode_matched(anchors, gt_boxes, gt_labels, offsets, *variances, gt_idx, labels, deltas)
