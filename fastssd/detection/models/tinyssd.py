"""TinySSD: the small network that is trained from scratch."""

from __future__ import annotations

from torch import Tensor, nn

from fastssd.detection.models.preset import RATIOS_4, Preset
from fastssd.detection.models.ssd import SSD
from fastssd.detection.parts import Stages, down_sample_block

TINYSSD = Preset(
    name="tinyssd",
    image_size=256,
    grid_sizes=((32, 32), (16, 16), (8, 8), (4, 4), (1, 1)),
    scales=((0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)),
    aspect_ratios=(RATIOS_4,) * 5,
)


class GlobalMaxPool(nn.Module):
    """``AdaptiveMaxPool2d(1)``, as an operation that every ONNX exporter since torch 2.9 has."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(x, x.shape[-2:])


class TinySSD(SSD):
    """The small network of Dive into Deep Learning, section 14.7: 5 feature maps, 5444 anchors, trained from scratch.

    Args:
        num_classes: number of foreground classes.
        preset: other anchors, normalisation or activation for the same network.
    """

    def __init__(self, num_classes: int, preset: Preset = TINYSSD) -> None:
        base = nn.Sequential(down_sample_block(3, 16), down_sample_block(16, 32), down_sample_block(32, 64))
        backbone = Stages(
            [
                base,  # [B, 64, 32, 32]
                down_sample_block(64, 128),  # [B, 128, 16, 16]
                down_sample_block(128, 128),  # [B, 128, 8, 8]
                down_sample_block(128, 128),  # [B, 128, 4, 4]
                GlobalMaxPool(),  # [B, 128, 1, 1]
            ]
        )
        super().__init__(backbone, num_classes=num_classes, preset=preset, channels=(64, 128, 128, 128, 128))
