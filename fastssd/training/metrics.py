"""COCO average precision, by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastssd.detection.postprocess import ImageDetections

MAX_DETECTIONS = 100  # a picture, as COCO counts


class GroundTruth(NamedTuple):
    """What there is to find in one picture."""

    boxes: NDArray[np.float32]
    """[G, 4] xyxy, pixels."""
    labels: NDArray[np.int64]
    """[G], 1-based."""
    difficult: NDArray[np.bool_]
    """[G]; found or not, such a box counts neither for nor against (COCO's ``iscrowd``)."""


def coco_metrics(
    detections: Sequence[ImageDetections], truths: Sequence[GroundTruth], class_names: Sequence[str]
) -> dict[str, Any]:
    """Average precision as COCO defines it: over IoU 0.50:0.05:0.95, the best 100 detections of each picture.

    Args:
        detections: what was found in each picture.
        truths: what there is, in the same order.
        class_names: name of class 1, 2, ...

    Returns:
        ``{"AP", "AP50", "AP75", "per_class": {name: {"AP", "AP50", "AP75"}}}``; None where there is nothing to find.

    Raises:
        ValueError: lengths that differ.
    """
    if len(detections) != len(truths):
        raise ValueError(f"detections: expected one entry for each of the {len(truths)} truths, got {len(detections)}")
    precision = _precision(detections, truths, len(class_names))
    metrics: dict[str, Any] = _summary(precision)
    metrics["per_class"] = {name: _summary(precision[:, :, k]) for k, name in enumerate(class_names)}
    return metrics


def _precision(
    detections: Sequence[ImageDetections], truths: Sequence[GroundTruth], num_classes: int
) -> NDArray[np.float64]:
    """[T, R, K] precision at each IoU threshold, recall and class; -1 where a class has nothing to find."""
    from faster_coco_eval import COCO, COCOeval_faster

    annotations = [
        {"image_id": image, "category_id": int(label), "bbox": box, "area": box[2] * box[3], "iscrowd": int(difficult)}
        for image, truth in enumerate(truths)
        for box, label, difficult in zip(_xywh(truth.boxes), truth.labels, truth.difficult, strict=True)
    ]
    found = [
        {"image_id": image, "category_id": int(label), "bbox": box, "score": float(score)}
        for image, seen in enumerate(detections)
        for box, label, score in zip(_xywh(seen.boxes), seen.labels, seen.scores, strict=True)
    ]
    coco = COCO(
        {
            "images": [{"id": image} for image in range(len(truths))],
            "categories": [{"id": k + 1, "name": str(k + 1)} for k in range(num_classes)],
            "annotations": [dict(annotation, id=i + 1) for i, annotation in enumerate(annotations)],
        }
    )
    if not annotations:
        return np.full((10, 101, num_classes), -1.0)
    if not found:  # loadRes takes no empty list
        wanted = {a["category_id"] for a in annotations if not a["iscrowd"]}
        row = [0.0 if k + 1 in wanted else -1.0 for k in range(num_classes)]
        return np.broadcast_to(row, (10, 101, num_classes))
    evaluation = COCOeval_faster(coco, coco.loadRes(found), "bbox", print_function=_quiet)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[:, :, :, 0, 0]


def _summary(precision: NDArray[np.float64]) -> dict[str, float | None]:
    return {"AP": _mean(precision), "AP50": _mean(precision[0]), "AP75": _mean(precision[5])}


def _mean(precision: NDArray[np.float64]) -> float | None:
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else None


def _xywh(boxes: NDArray[np.float32]) -> list[list[float]]:
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


def _quiet(*_: object) -> None:
    """faster-coco-eval reports its progress to this."""
