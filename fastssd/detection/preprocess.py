"""From a picture to the network's input; training, evaluation and prediction share it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssd._image import resize_image

__all__ = ["resize_image", "to_input"]


def to_input(images: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] to what a model takes: float32 [B, 3, S, S] in [0, 1], in channels_last layout as it comes."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255)
