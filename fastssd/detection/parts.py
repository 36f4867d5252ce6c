"""The parts that a detector is built from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def down_sample_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions with batch normalisation and ReLU, then max pooling: half the height and width.

    The last ReLU comes after the pooling. Both are monotonic, so values and gradients are the same as with the ReLU
    first, for a quarter of the work and memory.
    """
    return nn.Sequential(
        _conv3x3(in_channels, out_channels),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        _conv3x3(out_channels, out_channels),
        nn.BatchNorm2d(out_channels),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
    )


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:
    """A convolution that keeps the size (or divides it by `stride`), batch normalisation, and the activation.

    The batch normalisation has the constants of SSDlite's training: epsilon 0.001, momentum 0.03.
    """
    padding = (kernel - 1) // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(out_channels, eps=0.001, momentum=0.03)]
    if activation is not None:
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)


class L2Norm(nn.Module):
    """Scales the channels of each cell to a vector of length 1, times a learned factor per channel (ParseNet,
    arXiv:1506.04579)."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        # In float32 under autocast too: the squares of 512 channels are summed.
        return nn.functional.normalize(x.float()) * self.scale.view(-1, 1, 1)


class Stages(nn.ModuleList):
    """A backbone of modules in sequence; it returns the output of each."""

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self:
            x = stage(x)
            maps.append(x)
        return maps


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """The prediction layer of SSD."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def separable3x3(in_channels: int, out_channels: int) -> nn.Sequential:
    """The prediction layer of SSDlite (MobileNetV2, arXiv:1801.04381, section 6.2): 3x3 per channel, then 1x1."""
    filtered = conv_norm(in_channels, in_channels, 3, groups=in_channels, activation=nn.ReLU6)
    return nn.Sequential(filtered, nn.Conv2d(in_channels, out_channels, 1))


class Head(nn.Module):
    """Predicts class logits and box deltas of every anchor: one layer for each on every feature map.

    Channel ``k * C + c`` of a class layer is column c of anchor k of the cell, so the outputs, cell by cell, are in the
    order of :func:`fastssd.ops.grid_anchors`.

    Args:
        channels: number of channels of each feature map.
        anchors_per_cell: number of anchors per cell of each feature map.
        num_columns: C, the number of classes and background.
        predictor: makes a layer from its numbers of input and output channels: :func:`conv3x3`, or
            :func:`separable3x3` as in SSDlite.
    """

    def __init__(
        self,
        channels: Sequence[int],
        anchors_per_cell: Sequence[int],
        num_columns: int,
        predictor: Callable[[int, int], nn.Module] = conv3x3,
    ) -> None:
        super().__init__()
        self.num_columns = num_columns
        levels = list(zip(channels, anchors_per_cell, strict=True))
        self.classes = nn.ModuleList([predictor(width, k * num_columns) for width, k in levels])
        self.boxes = nn.ModuleList([predictor(width, k * 4) for width, k in levels])

    def reset_parameters(self, prior: float | None = None) -> None:
        """Initialise with small weights: training starts from the anchors themselves and equal class probabilities.

        Args:
            prior: probability of every foreground class at the start (RetinaNet, arXiv:1708.02002, section 4.1); None:
                all biases are zero.
        """
        for name, module in self.named_modules():
            if not isinstance(module, nn.Conv2d):
                continue
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
                if prior is not None and name.startswith("classes"):
                    nn.init.constant_(module.bias, math.log(prior / (1 - prior)))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [B, A, C] and deltas [B, A, 4] from feature maps [B, D_l, H_l, W_l]."""
        logits = [_by_anchor(layer(x), self.num_columns) for layer, x in zip(self.classes, maps, strict=True)]
        deltas = [_by_anchor(layer(x), 4) for layer, x in zip(self.boxes, maps, strict=True)]
        return torch.cat(logits, 1), torch.cat(deltas, 1)


def _by_anchor(x: Tensor, columns: int) -> Tensor:
    """[B, k * columns, H, W] as [B, H * W * k, columns]; no copy where `x` is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns)


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A convolution before a batch normalisation, so without a bias; He initialisation."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
