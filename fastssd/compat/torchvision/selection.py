"""From all scores of a batch to its detections, with the same number of calls for a batch of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastssd import ops

_SLACK = 1e-3  # of a logit: more than the rounding error of a sigmoid, for scores that differ from 0 and 1 in float32


def logit_limit(score_threshold: float) -> float:
    """A logit under which no sigmoid is greater than `score_threshold`."""
    if not 1e-30 < score_threshold < 1 - 1e-5:
        return -math.inf
    return math.log(score_threshold / (1 - score_threshold)) - _SLACK


def above(values: Tensor, limit: float | Tensor) -> Tensor:
    """Where `values` [B, ...] are above the limit: int64 [K] indices into the flattened values, ascending."""
    if values.device.type != "cpu" or values.dtype == torch.bfloat16:
        return (values > limit).flatten().nonzero()[:, 0]
    bound = limit.detach().numpy() if isinstance(limit, Tensor) else limit
    return torch.from_numpy(np.flatnonzero(values.detach().numpy() > bound))


def clip_to_sizes(boxes: Tensor, image: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Boxes [K, 4] of the images [K], each clipped to its image's (height, width)."""
    limits = boxes.new_tensor([(width, height, width, height) for height, width in sizes])
    return torch.minimum(boxes.clamp(min=0), limits[image])


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, image: Tensor, batch: int, iou_threshold: float, most: int
) -> list[Tensor]:
    """NMS within each label of each image, in one call.

    Args:
        boxes, scores, labels, image: [K, 4], and [K] each.
        batch: number of images.
        most: boxes kept of an image, at most.

    Returns:
        For each image the indices of the kept boxes, int64, by descending score, equal scores by index.
    """
    groups = labels + image * (int(labels.max()) + 1 if len(labels) else 1)
    kept: Tensor = ops.batched_nms(boxes.detach(), scores.detach(), groups, iou_threshold)
    order = image[kept].sort(stable=True).indices
    counts = torch.bincount(image[kept], minlength=batch).tolist()
    return [places[:most] for places in kept[order].split(counts)]
