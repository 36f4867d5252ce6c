"""The parts that a detector is built from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def down_sample_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions with batch normalisation and ReLU, then max pooling: half the height and width.

    The last ReLU stands behind the pooling. Both are monotonic, so values and gradients are the same as in front of it,
    for a quarter of the work and of the memory.
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


class Stages(nn.ModuleList):
    """Modules in a row that return the output of every one: a backbone."""

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self:
            x = stage(x)
            maps.append(x)
        return maps


class Head(nn.Module):
    """Predicts class logits and box deltas of every anchor, each by one 3x3 convolution on each feature map.

    Channel ``k * C + c`` of a class convolution is column c of the cell's anchor k, so that the outputs, cell by cell,
    stand in the order of :func:`fastssd.ops.grid_anchors`.

    Args:
        channels: channels of each feature map.
        anchors_per_cell: anchors on each cell of each feature map.
        num_columns: C, classes and background.
    """

    def __init__(self, channels: Sequence[int], anchors_per_cell: Sequence[int], num_columns: int) -> None:
        super().__init__()
        self.num_columns = num_columns
        levels = list(zip(channels, anchors_per_cell, strict=True))
        self.classes = nn.ModuleList([nn.Conv2d(width, k * num_columns, 3, padding=1) for width, k in levels])
        self.boxes = nn.ModuleList([nn.Conv2d(width, k * 4, 3, padding=1) for width, k in levels])

    def reset_parameters(self, prior: float | None = None) -> None:
        """Small weights, so that training starts from the anchors themselves and from equal classes.

        Args:
            prior: the probability that every foreground class starts with (RetinaNet, arXiv:1708.02002, section 4.1);
                None for biases of zero.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.01)
            elif prior is not None and name.startswith("classes"):
                nn.init.constant_(parameter, math.log(prior / (1 - prior)))
            else:
                nn.init.zeros_(parameter)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        logits = [_by_anchor(conv(x), self.num_columns) for conv, x in zip(self.classes, maps, strict=True)]
        deltas = [_by_anchor(conv(x), 4) for conv, x in zip(self.boxes, maps, strict=True)]
        return torch.cat(logits, 1), torch.cat(deltas, 1)  # [B, A, C], [B, A, 4]


def _by_anchor(x: Tensor, columns: int) -> Tensor:
    """[B, k * columns, H, W] as [B, H * W * k, columns]; no copy where `x` is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns)


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A convolution in front of a batch normalisation, whose shift makes a bias redundant; He initialisation."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
