"""From a picture to the network's input; training, evaluation and prediction share it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def resize_image(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The whole picture in a square, its aspect ratio given up as in SSD: uint8 [H, W, 3] to uint8 [size, size, 3].

    Bilinear with a support that grows with the reduction, so that small objects are averaged, not skipped.

    Raises:
        ValueError: not a uint8 picture with three channels and at least one pixel.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image: expected uint8 of shape [H, W, 3], got {image.dtype} {list(image.shape)}")
    if image.shape[:2] == (size, size):
        return image
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("resizing needs Pillow; install it with: pip install 'fastssd[viz]'") from error
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(resized)


def to_input(images: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] to what a model takes: float32 [B, 3, S, S] in [0, 1], in channels_last layout as it comes."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255)
