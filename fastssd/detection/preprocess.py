"""From an image to the network's input; training, evaluation and prediction share it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssd._image import resize_image

__all__ = ["resize_image", "to_input"]


def to_input(images: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] to a model's input: float32 [B, 3, S, S] in [0, 1], in the channels_last memory format."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255)
