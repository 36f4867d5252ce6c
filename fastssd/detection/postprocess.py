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
    """What was found in one picture, by falling score."""

    boxes: NDArray[np.float32]
    """[N, 4] xyxy, pixels of the picture, inside it."""
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
    """Detect in a batch that has the network's size already.

    Args:
        model: in eval mode.
        images: float [B, 3, S, S] in [0, 1], on the model's device.
        sizes: (height, width) of the original pictures, pixels.
        score_threshold, iou_threshold, topk, max_detections: as in :func:`fastssd.ops.postprocess_detections`; None:
            as the model's preset has them.
    """
    detector = EndToEndSSD(
        model,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        topk=topk,
        max_detections=max_detections,
    )
    found = Detections(*(each.cpu().numpy() for each in detector(images)))
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
    """Detect in pictures of any size.

    Args:
        model: any mode; it comes back in the mode it had.
        images: uint8 [H, W, 3] each, RGB.
        score_threshold, iou_threshold, topk, max_detections: as in :func:`fastssd.ops.postprocess_detections`, None as
            the model's preset has them; the score threshold is one for looking at pictures, higher than the one for
            measuring AP.
        batch_size: pictures that go through the network at once.

    Returns:
        For each picture its :class:`ImageDetections`.

    Raises:
        ValueError: an array is not such a picture, or a threshold is out of range.
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
