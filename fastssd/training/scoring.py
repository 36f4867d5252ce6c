"""Detections of a batch of the evaluation set, and the metrics of all of them: during training and for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastssd.detection.models import SSD
from fastssd.detection.postprocess import ImageDetections, detect_batch
from fastssd.detection.preprocess import to_input
from fastssd.evaluation import MAX_DETECTIONS, GroundTruth, coco_metrics
from fastssd.training.config import TrainConfig
from fastssd.training.datasets import EvalBatch


def detect_eval_batch(
    model: SSD, batch: EvalBatch, config: TrainConfig
) -> dict[int, tuple[ImageDetections, GroundTruth]]:
    """Detections and ground truth of each image of a batch, by the image's index."""
    detections = detect_batch(
        model,
        to_input(batch.images),
        batch.sizes,
        score_threshold=config.score_threshold,
        iou_threshold=config.nms_threshold,
        max_detections=MAX_DETECTIONS,
    )
    return dict(zip(batch.indices, zip(detections, batch.truths, strict=True), strict=True))


def metrics_of(
    found: Mapping[int, tuple[ImageDetections, GroundTruth]], class_names: tuple[str, ...]
) -> dict[str, Any]:
    """The metrics of a whole data set, of results in any order."""
    ordered = [found[index] for index in sorted(found)]
    return coco_metrics([seen for seen, _ in ordered], [truth for _, truth in ordered], class_names)
