"""torchvision's SSD anchors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class DefaultBoxGenerator(nn.Module):
    """``torchvision.models.detection.anchor_utils.DefaultBoxGenerator``, bit for bit.

    Level by level and cell by cell (row, column), a cell has the squares of scale s and ``s' = sqrt(s * next scale)``,
    then for each aspect ratio r a box of ``(s * sqrt(r), s / sqrt(r))`` and the same turned by 90 degrees.

    Args:
        aspect_ratios: for each level the ratios besides 1.
        min_ratio, max_ratio: scales of the first and the last level, as fractions of the image, where `scales` is
            not given; those between are spaced evenly, and one level more has scale 1.
        scales: one for each level and one more.
        steps: distance of the cells of each level, pixels; default the image's size over the number of cells.
        clip: whether to clip widths and heights to the image's. Centers and corners are not clipped.
    """

    def __init__(
        self,
        aspect_ratios: list[list[int]],
        min_ratio: float = 0.15,
        max_ratio: float = 0.9,
        scales: list[float] | None = None,
        steps: list[int] | None = None,
        clip: bool = True,
    ) -> None:
        super().__init__()
        if steps is not None and len(aspect_ratios) != len(steps):
            raise ValueError(f"steps: expected one for each of the {len(aspect_ratios)} levels, got {len(steps)}")
        self.aspect_ratios = aspect_ratios
        self.steps = steps
        self.clip = clip
        levels = len(aspect_ratios)
        if scales is not None:
            self.scales = scales
        elif levels > 1:
            self.scales = [min_ratio + (max_ratio - min_ratio) * k / (levels - 1.0) for k in range(levels)] + [1.0]
        else:
            self.scales = [min_ratio, max_ratio]

    def num_anchors_per_location(self) -> list[int]:
        """Anchors of a cell, for each level."""
        return [2 + 2 * len(ratios) for ratios in self.aspect_ratios]

    def forward(self, image_list: Any, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """
        Args:
            image_list: torchvision's ``ImageList``: ``tensors`` [B, 3, H, W], and ``image_sizes``, one per image.
            feature_maps: [B, D, rows, columns] of each level.

        Returns:
            For each image [A, 4] xyxy in pixels of `tensors`, float32 (float64 for float64 feature maps), on the
            device of the feature maps.
        """
        anchors = default_boxes(self, image_list, feature_maps)
        return [anchors.clone() for _ in image_list.image_sizes]

    def extra_repr(self) -> str:
        return f"aspect_ratios={self.aspect_ratios}, clip={self.clip}, scales={self.scales}, steps={self.steps}"


def default_boxes(generator: Any, image_list: Any, feature_maps: Sequence[Tensor]) -> Tensor:
    """The anchors [A, 4] of every image, by a generator of ours or of torchvision's."""
    size, like = image_list.tensors.shape[-2:], feature_maps[0]
    levels = [_level(generator, k, maps.shape[-2:], size, like.dtype) for k, maps in enumerate(feature_maps)]
    return torch.from_numpy(np.concatenate(levels)).to(like.device)


def _level(generator: Any, k: int, grid: Sequence[int], size: Sequence[int], dtype: torch.dtype) -> NDArray[Any]:
    """[rows * columns * K, 4] of one level. Each step rounds as torchvision's, to float32 first."""
    (rows, columns), (height, width), steps = grid, size, generator.steps
    down, across = (rows, columns) if steps is None else (height / steps[k], width / steps[k])
    x, y = _centers(columns, across, dtype), _centers(rows, down, dtype)
    shapes = _shapes(generator.scales[k], generator.scales[k + 1], generator.aspect_ratios[k])
    half = (shapes.clip(0, 1) if generator.clip else shapes) * np.float32(0.5)  # [K, 2]
    corners = np.empty((rows, columns, len(half), 4), np.result_type(x, half))
    for axis, (center, extent) in enumerate(((x[None, :, None], width), (y[:, None, None], height))):
        corners[..., axis] = (center - half[:, axis]) * np.float32(extent)
        corners[..., 2 + axis] = (center + half[:, axis]) * np.float32(extent)
    return corners.reshape(-1, 4)


def _shapes(scale: float, next_scale: float, ratios: Sequence[float]) -> NDArray[np.float32]:
    """(width, height) of a cell's anchors as fractions of the image, [K, 2]."""
    between = math.sqrt(scale * next_scale)
    shapes = [(scale, scale), (between, between)]
    for ratio in ratios:
        long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
        shapes += [(long, short), (short, long)]
    return np.array(shapes, np.float32)


def _centers(cells: int, divisor: float, dtype: torch.dtype) -> NDArray[Any]:
    """The middles of a row of cells, as fractions, [cells]."""
    return (
        ((torch.arange(cells) + 0.5) / divisor)
        .to(dtype)
        .float()
        .numpy()
        .astype(np.float64 if dtype == torch.float64 else np.float32)
    )
