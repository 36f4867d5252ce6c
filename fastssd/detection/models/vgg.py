"""SSD300 and SSD512 on VGG16, the networks of the SSD paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from fastssd.detection.models.preset import RATIOS_4, RATIOS_6, Preset, paired_scales
from fastssd.detection.models.ssd import SSD
from fastssd.detection.parts import L2Norm, Stages

# Output channels of 3x3 convolutions. "M" is max pooling that halves the map, "C" the same with ceil_mode.
CONV1_TO_CONV5 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "C", 512, 512, 512, "M", 512, 512, 512)
CONV4_3 = 22  # index of its ReLU in `vgg`

# For each pair of layers after fc7: channels of the 1x1 convolution; channels, kernel, stride and padding of the
# second.
EXTRAS_300 = ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 1, 0), (128, 256, 3, 1, 0))
EXTRAS_512 = ((256, 512, 3, 2, 1), *((128, 256, 3, 2, 1),) * 3, (128, 256, 4, 1, 1))

SSD300 = Preset(
    name="ssd300_vgg16",
    image_size=300,
    grid_sizes=((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)),
    scales=paired_scales((0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)),
    aspect_ratios=(RATIOS_4, RATIOS_6, RATIOS_6, RATIOS_6, RATIOS_4, RATIOS_4),
    mean=(0.48235, 0.45882, 0.40784),
    std=(1 / 255, 1 / 255, 1 / 255),  # VGG16 was trained in Caffe: pixels from 0 to 255, mean subtracted
    steps=(8, 16, 32, 64, 100, 300),
    clip="size",
)
"""The anchors of torchvision, for COCO."""

SSD300_VOC = replace(
    SSD300, name="ssd300_vgg16_voc", scales=paired_scales((0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05)), clip="all"
)
"""The anchors of ssd.pytorch and lufficc/SSD, for Pascal VOC."""

SSD512 = replace(
    SSD300,
    name="ssd512_vgg16",
    image_size=512,
    grid_sizes=((64, 64), (32, 32), (16, 16), (8, 8), (4, 4), (2, 2), (1, 1)),
    scales=paired_scales((0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06)),
    aspect_ratios=(RATIOS_4, RATIOS_6, RATIOS_6, RATIOS_6, RATIOS_6, RATIOS_4, RATIOS_4),
    steps=(8, 16, 32, 64, 128, 256, 512),
)
"""The anchors of lufficc/SSD, for COCO."""

SSD512_VOC = replace(
    SSD512, name="ssd512_vgg16_voc", scales=paired_scales((0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 537.65 / 512))
)
"""The anchors of lufficc/SSD, for Pascal VOC."""


class VGG16(nn.Module):
    """VGG16 up to conv5_3, its first two fully connected layers as convolutions, then pairs of convolutions.

    Layer N of `vgg` is ``vgg.N`` in ssd.pytorch, and up to conv5_3 ``features.N`` in torchvision.

    Args:
        extras: the pairs, as in :data:`EXTRAS_300`.

    Source:
        SSD, arXiv:1512.02325, section 3; L2 normalisation of conv4_3: arXiv:1506.04579.
    """

    def __init__(self, extras: Sequence[tuple[int, int, int, int, int]]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for item in CONV1_TO_CONV5:
            if isinstance(item, str):
                layers.append(nn.MaxPool2d(2, ceil_mode=item == "C"))
            else:
                layers += _conv_relu(width, item, 3, padding=1)
                width = item
        layers.append(nn.MaxPool2d(3, stride=1, padding=1))
        layers += _conv_relu(512, 1024, 3, padding=6, dilation=6)  # fc6: every third weight of its 7x7 kernel
        layers += _conv_relu(1024, 1024, 1)  # fc7
        self.vgg = nn.Sequential(*layers)
        self.norm = L2Norm(512, scale=20.0)
        pairs: list[nn.Module] = []
        width = 1024
        self.channels = [512, 1024]
        for squeezed, out, kernel, stride, padding in extras:
            second = _conv_relu(squeezed, out, kernel, stride=stride, padding=padding)
            pairs.append(nn.Sequential(*_conv_relu(width, squeezed, 1), *second))
            width = out
            self.channels.append(out)
        self.extras = Stages(pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for number, layer in enumerate(self.vgg):
            x = layer(x)
            if number == CONV4_3:
                maps.append(self.norm(x))
        return [*maps, x, *self.extras(x)]


def make_ssd300(num_classes: int, preset: Preset = SSD300) -> SSD:
    return _ssd_vgg16(num_classes, preset, EXTRAS_300)


def make_ssd512(num_classes: int, preset: Preset = SSD512) -> SSD:
    return _ssd_vgg16(num_classes, preset, EXTRAS_512)


def _ssd_vgg16(num_classes: int, preset: Preset, extras: Sequence[tuple[int, int, int, int, int]]) -> SSD:
    backbone = VGG16(extras)
    return SSD(backbone, num_classes=num_classes, preset=preset, channels=backbone.channels)


def _conv_relu(in_channels: int, out_channels: int, kernel: int, **options: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, **options)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return [conv, nn.ReLU(inplace=True)]
