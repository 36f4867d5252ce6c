"""How well anchors cover a data set.

An object that no anchor resembles is learnt badly: the anchor it forces has little of it, and no other anchor reaches
the threshold. So the measure is one number for each ground truth, the best IoU that any anchor has with it.
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

SIZES = (0, 16, 32, 64, 128, 256, math.inf)  # pixels of the network's input, the rows of the table by size


@dataclass(frozen=True)
class AnchorCoverage:
    """What :func:`anchor_coverage` returns; one entry a ground truth but for `positives`.

    Attributes:
        best_iou: float [G], the largest IoU of any anchor.
        labels: int64 [G].
        sizes: float [G], the square root of the area, in pixels of the network's input.
        positives: int64 [B], positive anchors of each picture by the SSD paper's matching.
    """

    best_iou: NDArray[np.float32]
    labels: NDArray[np.int64]
    sizes: NDArray[np.float32]
    positives: NDArray[np.int64]

    def mean(self, chosen: NDArray[np.bool_] | None = None) -> float:
        """The mean best IoU, of all or of the chosen ground truths; NaN where there is none."""
        values = self.best_iou if chosen is None else self.best_iou[chosen]
        return float(values.mean(dtype=np.float64)) if len(values) else math.nan

    def missed(self, chosen: NDArray[np.bool_] | None = None, iou_threshold: float = 0.5) -> float:
        """The share that no anchor reaches `iou_threshold` with, of all or of the chosen; NaN where there is none."""
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
        preset: whose anchors.
        gt_boxes: for each picture [G_i, 4] xyxy, fractions of the picture.
        gt_labels: for each picture [G_i].
        iou_threshold: from which an anchor is positive.

    Raises:
        TypeError, ValueError: boxes that are no boxes, or lengths that differ.
    """
    anchors = preset.anchors()
    boxes, labels = flat_ground_truth(gt_boxes, gt_labels)
    best = np.zeros(len(boxes), np.float32)
    for start in range(0, len(boxes), 256):  # some at a time: all against all would be gigabytes
        best[start : start + 256] = box_iou(boxes[start : start + 256], anchors).max(1)
    positives = [int((match_anchors(anchors, own, iou_threshold=iou_threshold).gt_idx >= 0).sum()) for own in gt_boxes]
    sides = boxes[:, 2:] - boxes[:, :2]
    return AnchorCoverage(best, labels, np.sqrt(sides.prod(1)) * preset.image_size, np.array(positives, np.int64))


def ground_truth_of(dataset: DetectionDataset) -> tuple[list[NDArray[np.float32]], list[NDArray[np.int64]]]:
    """Boxes, as fractions of their picture, and labels of each picture; difficult ones are left out."""
    boxes: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    for index in range(len(dataset)):
        sample = dataset[index]
        learnt = ~sample.difficult
        height, width = sample.image.shape[:2]
        scale: NDArray[np.float32] = np.array([width, height, width, height], np.float32)
        boxes.append(sample.boxes[learnt] / scale)
        labels.append(sample.labels[learnt])
    return boxes, labels


def coverage_table(coverage: AnchorCoverage, class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Coverage of all ground truths, of each class and of each range of sizes.

    Returns:
        ``{row: {"objects", "mean_best_iou", "share_under_0.5"}}``; what there is none of has no row.
    """
    chosen = {"all": np.ones(len(coverage.labels), bool)}
    chosen |= {name: coverage.labels == label for label, name in enumerate(class_names, 1)}
    for low, high in itertools.pairwise(SIZES):
        name = f"{low} to {high} px" if high < math.inf else f"over {low} px"
        chosen[name] = (coverage.sizes >= low) & (coverage.sizes < high)
    return {
        name: {
            "objects": int(own.sum()),
            "mean_best_iou": coverage.mean(own),
            "share_under_0.5": coverage.missed(own, 0.5),
        }
        for name, own in chosen.items()
        if own.any()
    }


def flat_ground_truth(
    gt_boxes: Sequence[NDArray[np.float32]], gt_labels: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The boxes [S, 4] and labels [S] of all pictures, end to end."""
    if [len(boxes) for boxes in gt_boxes] != [len(labels) for labels in gt_labels]:
        raise ValueError("gt_labels: expected a label for each of gt_boxes")
    boxes = np.concatenate(
        [np.asarray(own, np.float32).reshape(-1, 4) for own in gt_boxes] or [np.empty((0, 4), np.float32)]
    )
    labels = np.concatenate([np.asarray(own, np.int64) for own in gt_labels] or [np.empty(0, np.int64)])
    return boxes, labels
