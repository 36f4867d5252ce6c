"""FCOS's assignment of ground truth to points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# torchvision prefers small boxes by this number minus their area, in float32: areas within 8 square pixels are equal.
_LARGE = 1e8
_LEAST = 1e-5


def match_points(
    anchors: Tensor, gt_boxes: Sequence[Tensor], num_anchors_per_level: Sequence[int], radius: float
) -> Tensor:
    """The ground truth of each point, for a whole batch.

    A point, the center of a square anchor, is for a ground-truth box whose box it lies in, whose center is less than
    `radius` anchor sizes away along either axis, and whose farthest side is between 4 and 8 anchor sizes away (any
    distance up to 8 on the first level, any from 4 on the last). Of several the smallest, the first of equal ones.

    Args:
        anchors: [A, 4] xyxy, level by level.
        gt_boxes: for each image [G_i, 4] xyxy.

    Returns:
        int64 [B, A], -1 where there is none.

    Source:
        arXiv:1904.01355, section 3; center sampling as in torchvision.
    """
    boxes = torch.cat([boxes.detach() for boxes in gt_boxes])  # [G, 4] of all images
    counts = torch.tensor([len(boxes) for boxes in gt_boxes], device=boxes.device)
    image = torch.repeat_interleave(torch.arange(len(gt_boxes), device=boxes.device), counts)  # [G]
    centers, gt_centers = (anchors[:, :2] + anchors[:, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
    size = anchors[:, 2] - anchors[:, 0]
    reach = radius * size
    near = (gt_centers[:, :1] - centers[:, 0]).abs_() < reach  # [G, A]
    near &= (gt_centers[:, 1:] - centers[:, 1]).abs_() < reach
    truth, point = near.nonzero(as_tuple=True)  # few: the other conditions are checked for these pairs only

    place, box = centers[point], boxes[truth]
    sides = torch.cat([place - box[:, :2], box[:, 2:] - place], 1)
    nearest, farthest = sides.aminmax(dim=1)
    lower, upper = size * 4, size * 8
    lower[: num_anchors_per_level[0]] = 0
    upper[-num_anchors_per_level[-1] :] = torch.inf
    preference = (_LARGE - (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))[truth]
    fits = (nearest > 0) & (farthest > lower[point]) & (farthest < upper[point]) & (preference >= _LEAST)
    truth, point, preference = truth[fits], point[fits], preference[fits]

    to = image[truth] * len(anchors) + point  # places in [B * A]
    best = preference.new_zeros(len(gt_boxes) * len(anchors)).scatter_reduce_(0, to, preference, "amax")
    wins = preference == best[to]
    none = len(boxes)
    first = torch.full(best.shape, none, device=boxes.device).scatter_reduce_(0, to[wins], truth[wins], "amin")
    first = first.view(len(gt_boxes), len(anchors))
    return torch.where(first < none, first - (counts.cumsum(0) - counts)[:, None], -1)
