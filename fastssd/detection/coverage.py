"""How well anchors cover a data set.

An object that no anchor resembles is learnt badly: the anchor that it is forced on covers little of it, and no other
anchor reaches the threshold. So the measure is one number per ground-truth box: its best IoU with any anchor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd.data import DetectionDataset
from fastssd.detection.models import Preset
from fastssd.ops import box_iou, match_anchors

SIZES = (0, 16, 32, 64, 128, 256, math.inf)  # limits of the table's rows by size, pixels of the network's input


@dataclass(frozen=True)
class AnchorCoverage:
    """What :func:`anchor_coverage` returns, for G ground-truth boxes in B images.

    Attributes:
        best_iou: float32 [G], the largest IoU with any anchor.
        labels: int64 [G].
        sizes: float32 [G], the square root of the area, in pixels of the network's input.
        positives: int64 [B], positive anchors of each image by the SSD paper's matching.
    """

    best_iou: NDArray[np.float32]
    labels: NDArray[np.int64]
    sizes: NDArray[np.float32]
    positives: NDArray[np.int64]

    def mean(self, chosen: NDArray[np.bool_] | None = None) -> float:
        """The mean best IoU of all or of the `chosen` (bool [G]) boxes; NaN if there is none."""
        values = self.best_iou if chosen is None else self.best_iou[chosen]
        return float(values.mean(dtype=np.float64)) if len(values) else math.nan

    def missed(self, chosen: NDArray[np.bool_] | None = None, iou_threshold: float = 0.5) -> float:
        """The share of boxes, of all or of the `chosen` (bool [G]), whose best IoU is under `iou_threshold`; NaN if
        there is none."""
        values = self.best_iou if chosen is None else self.best_iou[chosen]
        return float((values < iou_threshold).mean()) if len(values) else math.nan


def anchor_coverage(
    preset: Preset,
    gt_boxes: Sequence[NDArray[np.float32]],
    gt_labels: Sequence[NDArray[np.int64]],
    *,
    iou_threshold: float = 0.5,
) -> AnchorCoverage:
    """How well the anchors of `preset` cover the ground truth of a data set.

    Args:
        preset: has the anchors.
        gt_boxes: for each image [G_i, 4] xyxy, fractions of the image.
        gt_labels: for each image [G_i].
        iou_threshold: from this IoU on an anchor is positive.

    Raises:
        TypeError, ValueError: arrays of another shape, or lengths that differ.
    """
    anchors = preset.anchors()
    boxes, labels = flat_ground_truth(gt_boxes, gt_labels)
    best = np.zeros(len(boxes), np.float32)
    for start in range(0, len(boxes), 256):  # in pieces: the IoU matrix of all boxes would be gigabytes
        best[start : start + 256] = box_iou(boxes[start : start + 256], anchors).max(1)
    positives = [int((match_anchors(anchors, own, iou_threshold=iou_threshold).gt_idx >= 0).sum()) for own in gt_boxes]
    sides = boxes[:, 2:] - boxes[:, :2]
    return AnchorCoverage(best, labels, np.sqrt(sides.prod(1)) * preset.image_size, np.array(positives, np.int64))


def ground_truth_of(dataset: DetectionDataset) -> tuple[list[NDArray[np.float32]], list[NDArray[np.int64]]]:
    """For each image its boxes [G_i, 4] xyxy, fractions of the image, and labels [G_i]; without difficult ones."""
    boxes: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    for index in range(len(dataset)):
        sample = dataset[index]
        keep = ~sample.difficult
        height, width = sample.image.shape[:2]
        scale: NDArray[np.float32] = np.array([width, height, width, height], np.float32)
        boxes.append(sample.boxes[keep] / scale)
        labels.append(sample.labels[keep])
    return boxes, labels


def coverage_table(coverage: AnchorCoverage, class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Coverage of all ground-truth boxes, of each class and of each range of sizes.

    Returns:
        ``{row: {"objects", "mean_best_iou", "share_under_0.5"}}``; without rows for classes and sizes that never occur.
    """
    chosen = {"all": np.ones(len(coverage.labels), bool)}
    chosen |= {name: coverage.labels == label for label, name in enumerate(class_names, 1)}
    for low, high in itertools.pairwise(SIZES):
        name = f"{low} to {high} px" if high < math.inf else f"over {low} px"
        chosen[name] = (coverage.sizes >= low) & (coverage.sizes < high)
    return {
        name: {
            "objects": int(mask.sum()),
            "mean_best_iou": coverage.mean(mask),
            "share_under_0.5": coverage.missed(mask, 0.5),
        }
        for name, mask in chosen.items()
        if mask.any()
    }


def flat_ground_truth(
    gt_boxes: Sequence[NDArray[np.float32]], gt_labels: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The boxes [S, 4] and labels [S] of all images, concatenated."""
    if [len(boxes) for boxes in gt_boxes] != [len(labels) for labels in gt_labels]:
        raise ValueError("gt_labels: expected a label for each of gt_boxes")
    boxes = np.concatenate(
        [np.asarray(own, np.float32).reshape(-1, 4) for own in gt_boxes] or [np.empty((0, 4), np.float32)]
    )
    labels = np.concatenate([np.asarray(own, np.int64) for own in gt_labels] or [np.empty(0, np.int64)])
    return boxes, labels
