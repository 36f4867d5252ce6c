"""From the network's outputs to the few boxes left: the definition (docs/contract.md, Postprocessing)."""

from __future__ import annotations

import numpy as np

from fastssd.backends.codes import ACTIVATIONS, Float, Int
from fastssd.backends.reference.boxes import clip_boxes_to_image
from fastssd.backends.reference.coding import decode
from fastssd.backends.reference.nms import keep_best


def activate(logits: Float, activation: int) -> Float:
    """Scores [..., C] of logits [..., C]."""
    with np.errstate(all="ignore"):
        if activation == ACTIVATIONS["softmax"]:
            exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
            return exp / exp.sum(axis=-1, keepdims=True)
        if activation == ACTIVATIONS["sigmoid"]:
            return 1 / (1 + np.exp(-logits))
    return logits


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
    """logits [B, A, C], deltas [B, A, 4], anchors [A, 4]; clip sizes are infinity where nothing is clipped;
    out boxes [B, K, 4], scores [B, K], labels [B, K], anchor_idx [B, K], counts [B]. Places at and after
    counts[b] hold box 0, score 0, label -1, anchor_idx -1."""
    boxes[...], scores[...], labels[...], anchor_idx[...], counts[...] = 0, 0, -1, -1, 0
    for image in range(len(logits)):
        all_scores = activate(logits[image], activation)  # [A, C]
        all_boxes = decode(deltas[image], anchors, center_variance, size_variance)  # [A, 4]
        if np.isfinite(clip_height):
            clip_boxes_to_image(all_boxes, clip_height, clip_width, all_boxes)
        finite = np.isfinite(all_boxes).all(-1)

        found = []  # (score, label, anchor) of what NMS keeps
        for label in range(1, logits.shape[2]):
            class_scores = all_scores[:, label]
            candidates = np.flatnonzero(finite & (class_scores.astype(np.float64) > score_threshold))
            candidates = candidates[np.argsort(-class_scores[candidates], kind="stable")][:topk]
            kept = candidates[keep_best(all_boxes[candidates], class_scores[candidates], iou_threshold)]
            found += [(class_scores[anchor], label, anchor) for anchor in kept]

        found.sort(key=lambda detection: (-detection[0], detection[1], detection[2]))
        for place, (score, label, anchor) in enumerate(found[: boxes.shape[1]]):
            boxes[image, place] = all_boxes[anchor]
            scores[image, place], labels[image, place], anchor_idx[image, place] = score, label, anchor
            counts[image] = place + 1
