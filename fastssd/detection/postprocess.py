"""From a network's outputs to boxes in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastssd.detection.end_to_end import EndToEndSSD
from fastssd.detection.models import SSD
from fastssd.detection.preprocess import resize_image, to_input
from fastssd.ops import Detections


class ImageDetections(NamedTuple):
    """What was found in one image, by descending score."""

    boxes: NDArray[np.float32]
    """[N, 4] xyxy, pixels of the image, clipped to it."""
    scores: NDArray[np.float32]
    """[N] in (0, 1]."""
    labels: NDArray[np.int64]
    """[N], 1-based index into the class names."""

    def names(self, class_names: Sequence[str]) -> list[str]:
        """The class name of each box."""
        return [class_names[label - 1] for label in self.labels]


@torch.no_grad()
def detect_batch(
    model: SSD,
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    *,
    score_threshold: float | None = None,
    iou_threshold: float | None = None,
    topk: int | None = None,
    max_detections: int | None = None,
) -> list[ImageDetections]:
    """Detect in a batch that already has the network's input size.

    Args:
        model: in eval mode.
        images: float [B, 3, S, S] in [0, 1], on the model's device.
        sizes: (height, width) of the original images, pixels.
        score_threshold, iou_threshold, topk, max_detections: as in :func:`fastssd.ops.postprocess_detections`; None:
            those of the model's preset.

    Returns:
        For each image its :class:`ImageDetections`.
    """
    detector = EndToEndSSD(
        model,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        topk=topk,
        max_detections=max_detections,
    )
    found = Detections(*(tensor.cpu().numpy() for tensor in detector(images)))
    detections = []
    for row, (count, (height, width)) in enumerate(zip(found.counts, sizes, strict=True)):
        boxes = found.boxes[row, :count] * np.array([width, height, width, height], np.float32)
        detections.append(ImageDetections(boxes, found.scores[row, :count], found.labels[row, :count]))
    return detections


def detect(
    model: SSD,
    images: Sequence[NDArray[np.uint8]],
    *,
    score_threshold: float = 0.3,
    iou_threshold: float | None = None,
    topk: int | None = None,
    max_detections: int | None = None,
    batch_size: int = 8,
) -> list[ImageDetections]:
    """Detect in images of any size.

    Args:
        model: in any mode; its mode is restored.
        images: uint8 [H, W, 3] each, RGB.
        score_threshold, iou_threshold, topk, max_detections: as in :func:`fastssd.ops.postprocess_detections`; None:
            those of the model's preset. The default score threshold is for looking at the boxes; to measure AP it must
            be lower.
        batch_size: number of images that go through the network at once.

    Returns:
        For each image its :class:`ImageDetections`.

    Raises:
        ValueError: an array is not such an image, or a threshold is out of range.
    """
    size, device = model.preset.image_size, model.anchors.device
    training = model.training
    model.eval()
    try:
        detections = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            pixels = torch.from_numpy(np.stack([resize_image(image, size) for image in batch]))  # [B, S, S, 3]
            detections += detect_batch(
                model,
                to_input(pixels.to(device)),
                [image.shape[:2] for image in batch],
                score_threshold=score_threshold,
                iou_threshold=iou_threshold,
                topk=topk,
                max_detections=max_detections,
            )
        return detections
    finally:
        model.train(training)
