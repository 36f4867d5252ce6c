"""SSDlite320 on MobileNetV3-Large: the network for phones and small CPUs."""

from __future__ import annotations

from torch import Tensor, nn

from fastssd.detection.models.preset import RATIOS_6, Preset, paired_scales
from fastssd.detection.models.ssd import SSD
from fastssd.detection.parts import Stages, conv_norm, separable3x3

SSDLITE320 = Preset(
    name="ssdlite320_mobilenet_v3_large",
    image_size=320,
    grid_sizes=((20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)),
    scales=paired_scales((0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)),
    aspect_ratios=(RATIOS_6,) * 6,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    clip="size",
    score_threshold=0.001,
    nms_threshold=0.55,
    topk=300,
    max_detections=300,
)

# Kernel, expanded width, output width, squeeze and excitation, activation, stride: arXiv:1905.02244, table 1.
_RELU, _HARD_SWISH = nn.ReLU, nn.Hardswish
_UP_TO_C4 = (
    (3, 16, 16, False, _RELU, 1),
    (3, 64, 24, False, _RELU, 2),
    (3, 72, 24, False, _RELU, 1),
    (5, 72, 40, True, _RELU, 2),
    (5, 120, 40, True, _RELU, 1),
    (5, 120, 40, True, _RELU, 1),
    (3, 240, 80, False, _HARD_SWISH, 2),
    (3, 200, 80, False, _HARD_SWISH, 1),
    (3, 184, 80, False, _HARD_SWISH, 1),
    (3, 184, 80, False, _HARD_SWISH, 1),
    (3, 480, 112, True, _HARD_SWISH, 1),
    (3, 672, 112, True, _HARD_SWISH, 1),
)


class SqueezeExcitation(nn.Module):
    """Weights each channel by a function of the means of all channels (arXiv:1709.01507)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = nn.functional.relu(self.fc1(nn.functional.adaptive_avg_pool2d(x, 1)))  # [B, S, 1, 1]
        return x * nn.functional.hardsigmoid(self.fc2(weights))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze and excitation, 1x1 projection (MobileNetV3, arXiv:1905.02244,
    section 5)."""

    def __init__(
        self, width: int, kernel: int, expanded: int, out: int, excite: bool, activation: type[nn.Module], stride: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != width:
            layers.append(conv_norm(width, expanded, 1, activation=activation))
        layers.append(conv_norm(expanded, expanded, kernel, stride=stride, groups=expanded, activation=activation))
        if excite:
            layers.append(SqueezeExcitation(expanded, _multiple_of_8(expanded / 4)))
        layers.append(conv_norm(expanded, out, 1))
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


def mobilenet_v3_large(tail: int) -> Stages:
    """MobileNetV3-Large and four more blocks, each of which halves the map: six feature maps.

    The first map is the expansion of the block that goes to stride 32 (section 6.3 of the paper: "C4").

    Args:
        tail: channels of the last blocks: 160 as for classification, or 80.
    """
    stem: list[nn.Module] = [conv_norm(3, 16, 3, stride=2, activation=_HARD_SWISH)]
    width = 16
    for kernel, expanded, out, excite, activation, stride in _UP_TO_C4:
        stem.append(InvertedResidual(width, kernel, expanded, out, excite, activation, stride))
        width = out
    to_c5 = InvertedResidual(width, 5, 672, tail, True, _HARD_SWISH, 2).block
    last = [InvertedResidual(tail, 5, 6 * tail, tail, True, _HARD_SWISH, 1) for _ in range(2)]
    return Stages(
        [
            nn.Sequential(*stem, to_c5[0]),  # [B, 672, 20, 20]
            nn.Sequential(to_c5[1:], *last, conv_norm(tail, 6 * tail, 1, activation=_HARD_SWISH)),  # [B, 6T, 10, 10]
            _halve(6 * tail, 512),  # [B, 512, 5, 5]
            _halve(512, 256),  # [B, 256, 3, 3]
            _halve(256, 256),  # [B, 256, 2, 2]
            _halve(256, 128),  # [B, 128, 1, 1]
        ]
    )


def _halve(width: int, out: int) -> nn.Sequential:
    relu6 = nn.ReLU6
    return nn.Sequential(
        conv_norm(width, out // 2, 1, activation=relu6),
        conv_norm(out // 2, out // 2, 3, stride=2, groups=out // 2, activation=relu6),
        conv_norm(out // 2, out, 1, activation=relu6),
    )


def make_ssdlite320(num_classes: int, preset: Preset = SSDLITE320, *, tail: int = 80) -> SSD:
    """
    Args:
        num_classes, preset: as in :class:`SSD`.
        tail: channels of the backbone's last blocks: 80 (table 6 of MobileNetV3, and the published COCO weights) or 160
            (the ImageNet weights).
    """
    channels = (672, 6 * tail, 512, 256, 256, 128)
    backbone = mobilenet_v3_large(tail)
    return SSD(backbone, num_classes=num_classes, preset=preset, channels=channels, predictor=separable3x3)


def _multiple_of_8(width: float) -> int:
    """The multiple of 8 nearest to `width`, at most a tenth below it."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8
