"""Anchors that fit a data set: scales and ratios that cover its ground truth best.

This is cheap. Among anchors of one shape, the one in the nearest cell overlaps a box most: the intersection shrinks
with each step away, in x and in y. So each shape costs one IoU per ground-truth box, not one for each cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd.detection.coverage import flat_ground_truth
from fastssd.detection.models import Preset
from fastssd.ops import box_iou, paired_box_iou

STEPS = (1.6, 1.25, 1.1, 1.04, 1.015)  # factors by which a scale or ratio is enlarged and reduced, coarse to fine
LARGEST_RATIO = 6.0
# Limits of a scale, in cells of its level: smaller anchors leave gaps, and a cell sees too little of a larger one.
LEAST_CELLS, MOST_CELLS = 1.5, 4.0
CLUSTER_ROUNDS = 50


def fit_anchors(
    preset: Preset, gt_boxes: Sequence[NDArray[np.float32]], gt_labels: Sequence[NDArray[np.int64]]
) -> Preset:
    """`preset` with scales and ratios that cover this data set; the network keeps its shape.

    First the box sizes are clustered with the distance 1 - IoU, and the clusters are given to the levels by size. Then
    each scale and ratio is changed as long as the mean best IoU grows. Every class has the same weight, so that a rare
    one is covered too. The same data give the same anchors.

    A scale is 1.5 to 4 cells of its level. Larger anchors on a fine level would raise the IoU further, but there are
    many of them, and their cells see too little of the object.

    Args:
        preset: where to start; its grids and its number of anchors per cell are kept.
        gt_boxes: for each image [G_i, 4] xyxy, fractions of the image.
        gt_labels: for each image [G_i].

    Raises:
        TypeError, ValueError: no ground-truth box, or arrays of another shape.

    Source:
        Clustering: YOLO9000, arXiv:1612.08242, section 2, "Dimension Clusters".
    """
    boxes, labels = flat_ground_truth(gt_boxes, gt_labels)
    if not len(boxes):
        raise ValueError("gt_boxes: expected at least one ground-truth box to fit anchors to, got none")
    weights = 1 / np.bincount(labels)[labels]
    weights /= weights.sum()
    sides = boxes[:, 2:] - boxes[:, :2]
    # The ascent ends at a local maximum, so it starts from several places.
    starts = preset, _clustered(preset, sides, weights), _spread(preset, sides)
    fits = [_refined(_bounded(start), boxes, weights) for start in starts]
    return max(fits, key=lambda fit: fit[0])[1]


def _level_overlap(preset: Preset, level: int, boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """The best IoU of each box with any anchor of the level: [G]."""
    rows, columns = preset.grid_sizes[level]
    cells = np.array([columns, rows])
    step = 1 / cells if preset.steps is None else np.full(2, preset.steps[level] / preset.image_size)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    nearest = (np.clip(np.floor(centers / step), 0, cells - 1) + 0.5) * step  # [G, 2]
    if preset.clip == "all":
        nearest = nearest.clip(0, 1)
    scales, ratios = preset.scales[level], preset.aspect_ratios[level]
    best = np.zeros(len(boxes))
    for scale, ratio in [(s, ratios[0]) for s in scales] + [(scales[0], r) for r in ratios[1:]]:
        half = np.array([scale * math.sqrt(ratio), scale / math.sqrt(ratio)]) / 2
        if preset.clip != "none":
            half = half.clip(max=0.5)
        best = np.maximum(best, paired_box_iou(np.concatenate([nearest - half, nearest + half], 1), boxes))
    return best


def _overlaps(preset: Preset, boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """:func:`_level_overlap` of each level: [L, G]."""
    return np.stack([_level_overlap(preset, level, boxes) for level in range(len(preset.grid_sizes))])


def _clustered(preset: Preset, sides: NDArray[np.float32], weights: NDArray[np.float64]) -> Preset:
    """`preset` with the sizes and ratios of clusters of (width, height), the smallest for the first level."""
    counts = preset.anchors_per_cell
    order = np.argsort(sides.prod(1), kind="stable")
    quantiles = (np.arange(sum(counts)) + 0.5) / sum(counts)  # of the box area
    picked = np.searchsorted(np.cumsum(weights[order]), quantiles).clip(max=len(order) - 1)
    centers = sides[order[picked]].astype(np.float64)
    for _ in range(CLUSTER_ROUNDS):
        nearest = box_iou(_centered(sides), _centered(centers)).argmax(1)
        total = np.bincount(nearest, weights, len(centers))
        sums = np.stack([np.bincount(nearest, weights * sides[:, axis], len(centers)) for axis in (0, 1)], 1)
        moved = np.where(total[:, None] > 0, sums / np.maximum(total, 1e-30)[:, None], centers)
        if np.allclose(moved, centers, rtol=1e-4):
            break
        centers = moved
    centers = centers[np.argsort(centers.prod(1), kind="stable")]
    scales, ratios = [], []
    for level, own in enumerate(np.split(centers, np.cumsum(counts)[:-1])):
        size, ratio = np.sqrt(own.prod(1)), own[:, 0] / own[:, 1]
        scales.append(tuple(np.geomspace(size.min(), size.max(), len(preset.scales[level])).tolist()))
        others = np.quantile(ratio, np.linspace(1, 0, len(preset.aspect_ratios[level]) - 1))
        ratios.append((1.0, *others.clip(1 / LARGEST_RATIO, LARGEST_RATIO).tolist()))
    return replace(preset, scales=tuple(scales), aspect_ratios=tuple(ratios))


def _spread(preset: Preset, sides: NDArray[np.float32]) -> Preset:
    """`preset` with scales in geometric steps from a small box to a large one; its aspect ratios are kept."""
    size = np.sort(np.sqrt(sides.prod(1)))
    low, high = np.quantile(size, (0.02, 0.98))
    counts = [len(scales) for scales in preset.scales]
    steps = np.geomspace(low, high, sum(counts))
    return replace(preset, scales=tuple(tuple(own.tolist()) for own in np.split(steps, np.cumsum(counts)[:-1])))


def _centered(sides: NDArray[np.floating]) -> NDArray[np.floating]:
    """Boxes of these sides around the origin: [N, 2] to [N, 4] xyxy."""
    return np.concatenate([-sides / 2, sides / 2], 1)


def _refined(preset: Preset, boxes: NDArray[np.float32], weights: NDArray[np.float64]) -> tuple[float, Preset]:
    """The mean best IoU and the preset that reaches it, by coordinate ascent.

    Each scale and ratio in turn is made a step larger or smaller, as long as the mean best IoU grows.
    """
    overlaps = _overlaps(preset, boxes)
    quality = float(overlaps.max(0) @ weights)
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for level in range(len(preset.grid_sizes)):
                others = np.delete(overlaps, level, 0).max(0, initial=0.0)
                for name, index, low, high in _free_values(preset, level):
                    for factor in (step, 1 / step):
                        value = getattr(preset, name)[level][index] * factor
                        if not low <= value <= high:
                            continue
                        tried = _with_value(preset, name, level, index, value)
                        tried_overlap = _level_overlap(tried, level, boxes)
                        tried_quality = float(np.maximum(tried_overlap, others) @ weights)
                        if tried_quality > quality + 1e-6:
                            preset, quality, overlaps[level], improved = tried, tried_quality, tried_overlap, True
    return quality, preset


def _with_value(preset: Preset, name: str, level: int, index: int, value: float) -> Preset:
    """`preset` with one number of its field `name` changed."""
    levels = list(getattr(preset, name))
    levels[level] = (*levels[level][:index], value, *levels[level][index + 1 :])
    changed: dict[str, Any] = {name: tuple(levels)}
    return replace(preset, **changed)


def _scale_range(preset: Preset, level: int) -> tuple[float, float]:
    """The smallest and the largest scale of the level, as fractions of the image."""
    cells = min(preset.grid_sizes[level])
    return min(0.5, LEAST_CELLS / cells), min(1.5, MOST_CELLS / cells)


def _bounded(preset: Preset) -> Preset:
    """`preset` with its scales moved into :func:`_scale_range`."""
    ranges = [_scale_range(preset, level) for level in range(len(preset.scales))]
    scales = [
        tuple(min(max(scale, low), high) for scale in own)
        for own, (low, high) in zip(preset.scales, ranges, strict=True)
    ]
    return replace(preset, scales=tuple(scales))


def _free_values(preset: Preset, level: int) -> list[tuple[str, int, float, float]]:
    """The numbers of a level that may change: (field, index, least, most).

    The first ratio is fixed, because every scale has an anchor of it.
    """
    scales = [("scales", index, *_scale_range(preset, level)) for index in range(len(preset.scales[level]))]
    ratios = range(1, len(preset.aspect_ratios[level]))
    return scales + [("aspect_ratios", index, 1 / LARGEST_RATIO, LARGEST_RATIO) for index in ratios]
