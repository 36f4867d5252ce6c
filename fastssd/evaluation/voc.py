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
    """Precision and recall of one class as the score threshold falls."""

    recall: NDArray[np.float64]
    """[N], rising."""
    precision: NDArray[np.float64]
    """[N]."""
    scores: NDArray[np.float32]
    """[N], falling."""


def precision_recall(
    detections: Sequence[ImageDetections], truths: Sequence[GroundTruth], label: int, *, iou_threshold: float = 0.5
) -> Curve | None:
    """Precision and recall of a class over a data set.

    A detection looks at the ground truth of its class that it overlaps most: right if the IoU reaches the threshold and
    no better detection had it; neither right nor wrong if that one is difficult.

    Args:
        detections, truths: of each picture, the detections by falling score.
        label: of the class, 1-based.
        iou_threshold: in [0, 1].

    Returns:
        A :class:`Curve` with an entry for each of the class's detections that counts; None where there is nothing to
        find.

    Raises:
        ValueError: lengths that differ.

    Source:
        The development kit of Pascal VOC 2012, VOCevaldet.m, without its one pixel that is added to widths and heights.
    """
    wanted = sum(int(((truth.labels == label) & ~truth.difficult).sum()) for truth in truths)
    if not wanted:
        return None
    scores, right, counted = [], [], []
    for found, truth in zip(detections, truths, strict=True):
        own = found.labels == label
        real = truth.labels == label
        overlap = box_iou(found.boxes[own], truth.boxes[real])
        best = np.zeros(len(overlap), np.int64)
        hits = hard = np.zeros(len(overlap), bool)
        if real.any():
            best = overlap.argmax(1)
            hits = overlap.max(1) >= iou_threshold
            hard = hits & truth.difficult[real][best]
        first = np.zeros(len(best), bool)
        first[np.unique(np.where(hits, best, -1), return_index=True)[1]] = True  # detections come by falling score
        scores.append(found.scores[own])
        right.append(hits & first & ~hard)
        counted.append(~hard)
    all_scores, all_right, all_counted = map(np.concatenate, (scores, right, counted))
    order = np.argsort(-all_scores, kind="stable")
    order = order[all_counted[order]]
    true = np.cumsum(all_right[order])
    return Curve(true / wanted, true / np.arange(1, len(order) + 1), all_scores[order])


def voc_metrics(
    detections: Sequence[ImageDetections], truths: Sequence[GroundTruth], class_names: Sequence[str]
) -> dict[str, Any]:
    """VOC average precision at IoU 0.5: of VOC 2007 (11 recalls) and of VOC 2010 and later (the area).

    Args:
        detections, truths: of each picture.
        class_names: of class 1, 2, ...

    Returns:
        ``{"AP07", "AP12", "per_class": {name: {"AP07", "AP12"}}}``, means over the classes; None where there is nothing
        to find.

    Source:
        The Pascal Visual Object Classes Challenge: A Retrospective, IJCV 2015, section 2.2 and appendix.
    """
    per_class: dict[str, dict[str, float | None]] = {}
    for label, name in enumerate(class_names, 1):
        curve = precision_recall(detections, truths, label)
        per_class[name] = {kind: None if curve is None else area(curve) for kind, area in _AREAS.items()}
    means = {kind: _mean([row[kind] for row in per_class.values()]) for kind in _AREAS}
    return means | {"per_class": per_class}


def _eleven(curve: Curve) -> float:
    reached = [curve.precision[curve.recall >= least - 1e-12] for least in np.linspace(0, 1, 11)]
    return float(np.mean([values.max(initial=0.0) for values in reached]))


def _area(curve: Curve) -> float:
    envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
    steps = np.diff(curve.recall, prepend=0.0)
    return float((steps * envelope).sum())


_AREAS = {"AP07": _eleven, "AP12": _area}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
