"""Which anchor is responsible for which ground-truth box: the definition.

Source: SSD paper, section 2.2, "Matching strategy".
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fastssd.backends.codes import FORCE_MATCH, Float, Int
from fastssd.backends.reference.coding import encode
from fastssd.backends.reference.iou import iou_and_union

BACKGROUND, IGNORED = -1, -2


def match_one(
    anchors: Float, gt_boxes: Float, iou_threshold: float, background_threshold: float, force_match: int
) -> tuple[Int, Float]:
    """The matches of one image: gt_idx [A] and iou [A]."""
    num_anchors, num_gt = len(anchors), len(gt_boxes)
    if num_gt == 0:
        return np.full(num_anchors, BACKGROUND), np.zeros(num_anchors, anchors.dtype)
    quality = iou_and_union(anchors[:, None], gt_boxes[None])[0]  # [A, G]

    # 1. The threshold: every anchor asks for its best ground-truth box.
    best_gt = quality.argmax(axis=1)
    iou = quality.max(axis=1)
    gt_idx = np.where(
        iou.astype(np.float64) >= iou_threshold,
        best_gt,
        np.where(iou.astype(np.float64) < background_threshold, BACKGROUND, IGNORED),
    )

    # 2. The forcing: every ground-truth box asks for its best anchor.
    if num_anchors == 0:
        pass
    elif force_match == FORCE_MATCH["bipartite"]:
        free = quality.copy()
        for _ in range(min(num_anchors, num_gt)):
            # The first of the largest: the lowest anchor, then the lowest ground-truth box.
            anchor, gt = divmod(int(free.argmax()), num_gt)
            gt_idx[anchor], iou[anchor] = gt, quality[anchor, gt]
            free[anchor, :] = -1
            free[:, gt] = -1
    elif force_match == FORCE_MATCH["best"]:
        for gt, anchor in enumerate(quality.argmax(axis=0).tolist()):
            gt_idx[anchor], iou[anchor] = gt, quality[anchor, gt]
    elif force_match == FORCE_MATCH["low_quality"]:
        claimed = (quality == quality.max(axis=0)).any(axis=1)
        gt_idx[claimed] = best_gt[claimed]
    return gt_idx, iou


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
    """anchors [A, 4]; ragged ground truth: image b owns gt_boxes[offsets[b]:offsets[b + 1]], gt_boxes [S, 4],
    offsets [B + 1]; gt_idx [B, A] (index within the image, -1 background, -2 ignored), iou [B, A]."""
    for image, (start, stop) in enumerate(pairwise(offsets)):
        gt_idx[image], iou[image] = match_one(
            anchors, gt_boxes[start:stop], iou_threshold, background_threshold, force_match
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
    """``match_anchors`` and ``encode_boxes`` in one pass. gt_labels [S] (>= 1); labels [B, A] (0 background,
    -1 ignored), deltas [B, A, 4] (0 where not positive), gt_idx [B, A]."""
    for image, (start, stop) in enumerate(pairwise(offsets)):
        match, _ = match_one(anchors, gt_boxes[start:stop], iou_threshold, background_threshold, force_match)
        positive = match >= 0
        gt_idx[image] = match
        labels[image] = np.where(match == IGNORED, -1, 0)
        labels[image, positive] = gt_labels[start:stop][match[positive]]
        deltas[image] = 0
        deltas[image, positive] = encode(
            gt_boxes[start:stop][match[positive]], anchors[positive], center_variance, size_variance
        )
