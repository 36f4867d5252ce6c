"""Average precision as Pascal VOC defines it, at one IoU threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastssd.detection.postprocess import ImageDetections
from fastssd.evaluation.truth import GroundTruth
from fastssd.ops import box_iou


class Curve(NamedTuple):
    """Precision and recall of one class, by descending score threshold."""

    recall: NDArray[np.float64]
    """[N], ascending."""
    precision: NDArray[np.float64]
    """[N]."""
    scores: NDArray[np.float32]
    """[N], descending."""


def precision_recall(
    detections: Sequence[ImageDetections], truths: Sequence[GroundTruth], label: int, *, iou_threshold: float = 0.5
) -> Curve | None:
    """Precision and recall of a class over a data set.

    A detection is compared with the ground-truth box of its class that it overlaps most. It is right if their IoU
    reaches the threshold and no detection with a higher score was right for the same box. If the box is difficult, the
    detection does not count.

    Args:
        detections, truths: of each image, the detections by descending score.
        label: of the class, 1-based.
        iou_threshold: in [0, 1].

    Returns:
        A :class:`Curve` with an entry for each detection of the class that counts; None if there are no objects of it.

    Raises:
        ValueError: lengths that differ.

    Source:
        The development kit of Pascal VOC 2012, VOCevaldet.m, which however adds one pixel to widths and heights.
    """
    objects = sum(int(((truth.labels == label) & ~truth.difficult).sum()) for truth in truths)
    if not objects:
        return None
    scores, right, counted = [], [], []
    for found, truth in zip(detections, truths, strict=True):
        own = found.labels == label
        real = truth.labels == label
        overlap = box_iou(found.boxes[own], truth.boxes[real])
        best = np.zeros(len(overlap), np.int64)
        hits = difficult = np.zeros(len(overlap), bool)
        if real.any():
            best = overlap.argmax(1)
            hits = overlap.max(1) >= iou_threshold
            difficult = hits & truth.difficult[real][best]
        first = np.zeros(len(best), bool)  # whether it is the first, so the highest score, for its box
        first[np.unique(np.where(hits, best, -1), return_index=True)[1]] = True
        scores.append(found.scores[own])
        right.append(hits & first & ~difficult)
        counted.append(~difficult)
    all_scores, all_right, all_counted = map(np.concatenate, (scores, right, counted))
    order = np.argsort(-all_scores, kind="stable")
    order = order[all_counted[order]]
    true = np.cumsum(all_right[order])
    return Curve(true / objects, true / np.arange(1, len(order) + 1), all_scores[order])


def voc_metrics(
    detections: Sequence[ImageDetections], truths: Sequence[GroundTruth], class_names: Sequence[str]
) -> dict[str, Any]:
    """VOC average precision at IoU 0.5: as in VOC 2007 (11 recalls), and as in VOC 2010 and later (area).

    Args:
        detections, truths: of each image, the detections by descending score.
        class_names: name of class 1, 2, ...

    Returns:
        ``{"AP07", "AP12", "per_class": {name: {"AP07", "AP12"}}}``, the first two means over the classes. A value is
        None if there are no such objects.

    Source:
        The Pascal Visual Object Classes Challenge: A Retrospective, IJCV 2015, section 2.2 and appendix.
    """
    per_class: dict[str, dict[str, float | None]] = {}
    for label, name in enumerate(class_names, 1):
        curve = precision_recall(detections, truths, label)
        per_class[name] = {kind: None if curve is None else mean(curve) for kind, mean in _SUMMARIES.items()}
    means = {kind: _mean([row[kind] for row in per_class.values()]) for kind in _SUMMARIES}
    return means | {"per_class": per_class}


def _eleven_points(curve: Curve) -> float:
    """The mean precision at 11 recalls (VOC 2007)."""
    reached = [curve.precision[curve.recall >= least - 1e-12] for least in np.linspace(0, 1, 11)]
    return float(np.mean([values.max(initial=0.0) for values in reached]))


def _area(curve: Curve) -> float:
    """The area under the curve, after precision is made monotonic (VOC 2010 and later)."""
    envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
    steps = np.diff(curve.recall, prepend=0.0)
    return float((steps * envelope).sum())


_SUMMARIES = {"AP07": _eleven_points, "AP12": _area}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
