"""Anchors that fit a data set: scales and ratios that cover its ground truth best.

It is cheap, because among anchors of one shape the one whose cell is nearest overlaps a box most: intersection shrinks
with each step away, in x and in y. So a shape costs one IoU a ground truth, not one for each of its cells.
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

STEPS = (1.6, 1.25, 1.1, 1.04, 1.015)  # factors by which a scale or ratio is tried larger and smaller, coarse to fine
LARGEST_RATIO = 6.0
LEAST_CELLS, MOST_CELLS = 1.5, 4.0  # of a scale: between smaller anchors there are gaps, and a map sees little further
CLUSTER_ROUNDS = 50


def fit_anchors(
    preset: Preset, gt_boxes: Sequence[NDArray[np.float32]], gt_labels: Sequence[NDArray[np.int64]]
) -> Preset:
    """`preset` with scales and ratios that cover this data set; the network keeps its shape.

    The sizes are clustered under the distance 1 - IoU and handed to the levels by size; then each scale and ratio is
    moved while the mean best IoU grows. Every class weighs the same, so that a rare one is covered too. The same data
    give the same anchors.

    A scale is 1.5 to 4 cells of its level. Larger anchors on a fine level would raise the IoU further, but there are
    many of them, and their cells see too little of the object that they stand for.

    Args:
        preset: grids, and anchors a cell, which stay as they are.
        gt_boxes: for each picture [G_i, 4] xyxy, fractions of the picture.
        gt_labels: for each picture [G_i].

    Raises:
        TypeError, ValueError: no ground truth, or boxes that are no boxes.

    Source:
        Clustering: YOLO9000, arXiv:1612.08242, section 2, "Dimension Clusters".
    """
    boxes, labels = flat_ground_truth(gt_boxes, gt_labels)
    if not len(boxes):
        raise ValueError("gt_boxes: expected at least one ground truth to fit anchors to")
    weights = 1 / np.bincount(labels)[labels]
    weights /= weights.sum()
    sides = boxes[:, 2:] - boxes[:, :2]
    starts = preset, _clustered(preset, sides, weights), _spread(preset, sides)  # ascent ends at a hill: several tries
    fits = [_refined(_bounded(start), boxes, weights) for start in starts]
    return max(fits, key=lambda fit: fit[0])[1]


def _level_overlap(preset: Preset, level: int, boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """[G], the best IoU of each box with any anchor of the level."""
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
    """[L, G]: see :func:`_level_overlap`."""
    return np.stack([_level_overlap(preset, level, boxes) for level in range(len(preset.grid_sizes))])


def _quality(overlaps: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    return float(overlaps.max(0) @ weights)


def _clustered(preset: Preset, sides: NDArray[np.float32], weights: NDArray[np.float64]) -> Preset:
    """Clusters of (width, height), the smallest for the first level."""
    counts = preset.anchors_per_cell
    order = np.argsort(sides.prod(1), kind="stable")
    middles = (np.arange(sum(counts)) + 0.5) / sum(counts)  # quantiles of the size
    picked = np.searchsorted(np.cumsum(weights[order]), middles).clip(max=len(order) - 1)
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
    """Scales in equal steps from a small box to a large one, with the ratios that the preset has."""
    size = np.sort(np.sqrt(sides.prod(1)))
    low, high = np.quantile(size, (0.02, 0.98))
    counts = [len(scales) for scales in preset.scales]
    steps = np.geomspace(low, high, sum(counts))
    return replace(preset, scales=tuple(tuple(own.tolist()) for own in np.split(steps, np.cumsum(counts)[:-1])))


def _centered(sides: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.concatenate([-sides / 2, sides / 2], 1)


def _refined(preset: Preset, boxes: NDArray[np.float32], weights: NDArray[np.float64]) -> tuple[float, Preset]:
    """Coordinate ascent: each scale and ratio in turn a step larger or smaller, while the mean best IoU grows."""
    overlaps = _overlaps(preset, boxes)
    quality = _quality(overlaps, weights)
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for level in range(len(preset.grid_sizes)):
                others = np.delete(overlaps, level, 0).max(0, initial=0.0)
                for name, place, low, high in _numbers(preset, level):
                    for factor in (step, 1 / step):
                        moved = getattr(preset, name)[level][place] * factor
                        if not low <= moved <= high:
                            continue
                        tried = _with(preset, name, level, place, moved)
                        own = _level_overlap(tried, level, boxes)
                        found = float(np.maximum(own, others) @ weights)
                        if found > quality + 1e-6:
                            preset, quality, overlaps[level], improved = tried, found, own, True
    return quality, preset


def _with(preset: Preset, name: str, level: int, place: int, value: float) -> Preset:
    """`preset` with one number of its field `name` changed."""
    levels = list(getattr(preset, name))
    levels[level] = (*levels[level][:place], value, *levels[level][place + 1 :])
    changed: dict[str, Any] = {name: tuple(levels)}
    return replace(preset, **changed)


def _scale_range(preset: Preset, level: int) -> tuple[float, float]:
    cells = min(preset.grid_sizes[level])
    return min(0.5, LEAST_CELLS / cells), min(1.5, MOST_CELLS / cells)


def _bounded(preset: Preset) -> Preset:
    ranges = [_scale_range(preset, level) for level in range(len(preset.scales))]
    scales = [
        tuple(min(max(scale, low), high) for scale in own)
        for own, (low, high) in zip(preset.scales, ranges, strict=True)
    ]
    return replace(preset, scales=tuple(scales))


def _numbers(preset: Preset, level: int) -> list[tuple[str, int, float, float]]:
    """What may be moved in a level: (field, place, least, most). The first ratio stays, or nothing holds the scale."""
    scales = [("scales", place, *_scale_range(preset, level)) for place in range(len(preset.scales[level]))]
    ratios = range(1, len(preset.aspect_ratios[level]))
    return scales + [("aspect_ratios", place, 1 / LARGEST_RATIO, LARGEST_RATIO) for place in ratios]
