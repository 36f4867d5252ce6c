"""Anchors on a grid: the definition (SSD paper, section 2.2, "Choosing scales and aspect ratios")."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastssd.backends.codes import Float


def grid_anchors(
    height: int, width: int, shapes: NDArray[np.float64], scale: NDArray[np.float64], clip: bool, out: Float
) -> None:
    """shapes [K, 2] (width, height) as fractions of the image, scale [2] the image's (height, width),
    out [height * width * K, 4] xyxy, cell-major (row, column, shape). Computed in float64, rounded once.
    A cell's centre is ((column + 0.5) / width, (row + 0.5) / height)."""
    if not len(out):
        return
    cy = (np.arange(height) + 0.5) / height
    cx = (np.arange(width) + 0.5) / width
    centers = np.stack(np.meshgrid(cy, cx, indexing="ij"), axis=-1)[:, :, None, ::-1]  # [H, W, 1, (x, y)]
    corners = np.concatenate([centers - shapes / 2, centers + shapes / 2], axis=-1)  # [H, W, K, 4]
    if clip:
        corners = np.clip(corners, 0.0, 1.0)
    out[...] = (corners * scale[[1, 0, 1, 0]]).reshape(-1, 4)
