"""COCO average precision, by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd.detection.postprocess import ImageDetections
from fastssd.evaluation.truth import GroundTruth

MAX_DETECTIONS = 100  # per image, as in COCO
AREAS = {"all": [0, 1e10], "small": [0, 32**2], "medium": [32**2, 96**2], "large": [96**2, 1e10]}  # pixels


def coco_metrics(
    detections: Sequence[ImageDetections],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    *,
    by_size: bool = False,
) -> dict[str, Any]:
    """Average precision as COCO defines it: over IoU 0.50:0.05:0.95, the best 100 detections of each image.

    Args:
        detections: what was found in each image.
        truths: the ground truth of each image, in the same order.
        class_names: name of class 1, 2, ...
        by_size: also average precision of small (under 32 x 32 pixels of the image), medium and large (over 96 x 96)
            objects, and average recall.

    Returns:
        ``{"AP", "AP50", "AP75", "per_class": {name: {"AP", "AP50", "AP75"}}}``; with `by_size` both levels also have
        ``"AP_small"``, ``"AP_medium"``, ``"AP_large"`` and ``"AR"``. A value is None if there are no such objects.

    Raises:
        ValueError: lengths that differ.
    """
    if len(detections) != len(truths):
        raise ValueError(f"detections: expected one entry for each of the {len(truths)} truths, got {len(detections)}")
    precision, recall = _evaluate(detections, truths, len(class_names), list(AREAS) if by_size else ["all"])
    metrics: dict[str, Any] = _summary(precision, recall)
    metrics["per_class"] = {name: _summary(precision[:, :, [k]], recall[:, [k]]) for k, name in enumerate(class_names)}
    return metrics


def _evaluate(
    detections: Sequence[ImageDetections], truths: Sequence[GroundTruth], num_classes: int, areas: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision [T, R, K, S] and recall [T, K, S] for T IoU thresholds, R recalls, K classes and S sizes; -1 where
    there are no such objects."""
    from faster_coco_eval import COCO, COCOeval_faster

    annotations = [
        {"image_id": image, "category_id": int(label), "bbox": box, "area": box[2] * box[3], "iscrowd": int(difficult)}
        for image, truth in enumerate(truths)
        for box, label, difficult in zip(_xywh(truth.boxes), truth.labels, truth.difficult, strict=True)
    ]
    found = [
        {"image_id": image, "category_id": int(label), "bbox": box, "score": float(score)}
        for image, own in enumerate(detections)
        for box, label, score in zip(_xywh(own.boxes), own.labels, own.scores, strict=True)
    ]
    coco = COCO(
        {
            "images": [{"id": image} for image in range(len(truths))],
            "categories": [{"id": k + 1, "name": str(k + 1)} for k in range(num_classes)],
            "annotations": [dict(annotation, id=i + 1) for i, annotation in enumerate(annotations)],
        }
    )
    shape = (10, 101, num_classes, len(areas))
    if not annotations:
        return np.full(shape, -1.0), np.full((10, *shape[2:]), -1.0)
    if not found:  # loadRes refuses an empty list
        found = [{"image_id": 0, "category_id": num_classes + 1, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.0}]
    evaluation = COCOeval_faster(coco, coco.loadRes(found), "bbox", print_function=_quiet)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [AREAS[name] for name in areas], list(areas)
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., 0], np.asarray(evaluation.eval["recall"])[..., 0]


def _summary(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> dict[str, float | None]:
    """The metrics of precision [T, R, k, S] and recall [T, k, S], the sizes in the order of :data:`AREAS`."""
    all_sizes = precision[..., 0]
    summary = {"AP": _mean(all_sizes), "AP50": _mean(all_sizes[0]), "AP75": _mean(all_sizes[5])}
    if precision.shape[-1] > 1:
        summary |= {f"AP_{name}": _mean(precision[..., i]) for i, name in enumerate(AREAS) if i}
        summary["AR"] = _mean(recall[..., 0])
    return summary


def _mean(precision: NDArray[np.float64]) -> float | None:
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else None


def _xywh(boxes: NDArray[np.float32]) -> list[list[float]]:
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


def _quiet(*_: object) -> None:
    """Ignores the progress messages of faster-coco-eval."""
