"""Evaluating a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastssd.data import DetectionDataset
from fastssd.detection.postprocess import ImageDetections
from fastssd.evaluation import GroundTruth, coco_metrics
from fastssd.training.checkpoint import load_checkpoint
from fastssd.training.config import AUTOCAST, TrainConfig
from fastssd.training.datasets import Resized, eval_loader
from fastssd.training.scoring import detect_eval_batch


class Evaluated(NamedTuple):
    """What :func:`detect_all` returns, one entry per image, in the order of the data set."""

    detections: list[ImageDetections]
    truths: list[GroundTruth]


@torch.no_grad()
def detect_all(
    checkpoint: str | os.PathLike[str],
    data: DetectionDataset,
    *,
    accelerator: str = "auto",
    num_workers: int | None = None,
) -> Evaluated:
    """What a checkpoint finds in a data set, with all the scores that average precision needs.

    Args:
        checkpoint: a checkpoint, or a run folder, whose best one is taken.
        data: with the checkpoint's class names.
        accelerator: ``"cpu"``, ``"gpu"`` or ``"auto"``.
        num_workers: processes that read images; None chooses.

    Raises:
        ValueError: other class names, or no images.
        CheckpointError: the checkpoint is damaged or foreign.
    """
    path = Path(checkpoint)
    path = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
    use_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    model, info = load_checkpoint(path, "cuda" if use_gpu else "cpu")
    if tuple(data.class_names) != info.class_names:
        raise ValueError(f"data has classes {tuple(data.class_names)}, {path} has {info.class_names}")
    if not len(data):
        raise ValueError("data: no images to evaluate on")
    config = TrainConfig.from_dict(info.config)
    loader = eval_loader(
        Resized(data, model.preset.image_size, cache=False), batch_size=config.batch_size, num_workers=num_workers
    )
    device, low = model.anchors.device, AUTOCAST[config.precision]
    found: dict[int, tuple[ImageDetections, GroundTruth]] = {}
    with torch.autocast(device.type, low, enabled=low is not None):
        for batch in loader:
            found |= detect_eval_batch(model, batch._replace(images=batch.images.to(device)), config)
    ordered = [found[index] for index in sorted(found)]
    return Evaluated([seen for seen, _ in ordered], [truth for _, truth in ordered])


def evaluate(
    checkpoint: str | os.PathLike[str],
    data: DetectionDataset,
    *,
    accelerator: str = "auto",
    num_workers: int | None = None,
) -> dict[str, Any]:
    """The COCO metrics of a checkpoint on a data set; on the run's own evaluation set, the numbers that it reported.

    Arguments and errors as in :func:`detect_all`.

    Returns:
        As :func:`~fastssd.evaluation.coco_metrics`.
    """
    found = detect_all(checkpoint, data, accelerator=accelerator, num_workers=num_workers)
    return coco_metrics(found.detections, found.truths, data.class_names)
