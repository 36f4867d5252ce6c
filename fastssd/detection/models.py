"""Models: a backbone, a head, and the preset that says which anchors they speak of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastssd.detection.parts import Head, Stages, down_sample_block
from fastssd.ops import grid_anchors

FOCAL_PRIOR = 0.01  # RetinaNet, arXiv:1708.02002, section 4.1


@dataclass(frozen=True)
class Preset:
    """All that a detector's outputs depend on besides its weights. A checkpoint carries it.

    Attributes:
        name: for people.
        image_size: height and width of the network's input, pixels.
        grid_sizes: (rows, columns) of each feature map.
        scales: for each feature map the scales of its anchors, as fractions of the picture.
        aspect_ratios: for each feature map the width / height of its anchors, as in :func:`fastssd.ops.grid_anchors`.
        variances: of the box coder.
        mean, std: of the RGB channels, in [0, 1].
        activation: ``"softmax"`` over background and classes, or ``"sigmoid"`` of each class (for the focal loss).
    """

    name: str
    image_size: int
    grid_sizes: tuple[tuple[int, int], ...]
    scales: tuple[tuple[float, ...], ...]
    aspect_ratios: tuple[tuple[float, ...], ...]
    variances: tuple[float, float] = (0.1, 0.2)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    activation: str = "softmax"

    @property
    def anchors_per_cell(self) -> tuple[int, ...]:
        return tuple(len(s) + len(r) - 1 for s, r in zip(self.scales, self.aspect_ratios, strict=True))

    def anchors(self) -> NDArray[np.float32]:
        """[A, 4] xyxy, as fractions of the picture."""
        return grid_anchors(self.grid_sizes, self.scales, self.aspect_ratios)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; :meth:`from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preset:
        """
        Raises:
            ValueError: a field is missing, or is not one of a preset's.
        """
        try:
            return cls(**{key: _tuples(value) for key, value in values.items()})
        except TypeError as error:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"not a preset: {error}; a preset has {known}") from None


TINYSSD = Preset(
    name="tinyssd",
    image_size=256,
    grid_sizes=((32, 32), (16, 16), (8, 8), (4, 4), (1, 1)),
    scales=((0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)),
    aspect_ratios=((1.0, 2.0, 0.5),) * 5,
)


class SSD(nn.Module):
    """A single shot detector: every anchor of every feature map gets class logits and box deltas.

    Args:
        backbone: maps float [B, 3, S, S] to the list of feature maps that `preset` names.
        channels: channels of each feature map.
        preset: input size, anchors, normalisation.
        num_classes: foreground classes; the network adds the background as column 0.

    Source:
        SSD, arXiv:1512.02325.
    """

    mean: Tensor
    std: Tensor
    anchors: Tensor  # [A, 4] xyxy, fractions of the picture

    def __init__(self, backbone: nn.Module, channels: Sequence[int], preset: Preset, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
        self.preset = preset
        self.num_classes = num_classes
        self.backbone = backbone
        self.head = Head(channels, preset.anchors_per_cell, num_classes + 1)
        self.head.reset_parameters(FOCAL_PRIOR if preset.activation == "sigmoid" else None)
        self.register_buffer("mean", torch.tensor(preset.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preset.std).view(3, 1, 1), persistent=False)
        self.register_buffer("anchors", torch.from_numpy(preset.anchors()), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            images: float [B, 3, S, S], RGB in [0, 1], S the preset's image size. channels_last is the fast layout.

        Returns:
            logits [B, A, C], column 0 the background, and deltas [B, A, 4]; A in the order of :attr:`anchors`.

        Raises:
            ValueError: the backbone's feature maps are not those of the preset.
        """
        maps = self.backbone((images - self.mean) / self.std)  # [B, D_l, H_l, W_l] for each level l
        grids = tuple((x.shape[2], x.shape[3]) for x in maps)
        if grids != self.preset.grid_sizes:
            size = self.preset.image_size
            raise ValueError(
                f"images: a picture of {images.shape[2]} x {images.shape[3]} gives feature maps {grids}; "
                f"preset {self.preset.name!r} expects {size} x {size} and {self.preset.grid_sizes}"
            )
        logits, deltas = self.head(maps)
        return logits, deltas


class TinySSD(SSD):
    """The small network of Dive into Deep Learning, section 14.7: 5 feature maps, 5444 anchors, trained from scratch.

    Args:
        num_classes: foreground classes.
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
                nn.AdaptiveMaxPool2d(1),  # [B, 128, 1, 1]
            ]
        )
        super().__init__(backbone, (64, 128, 128, 128, 128), preset, num_classes)


MODELS: dict[str, tuple[Callable[[int, Preset], SSD], Preset]] = {"tinyssd": (TinySSD, TINYSSD)}
"""The models that a name can ask for, each with its own preset."""


def build_model(name: str, num_classes: int, preset: Preset | None = None) -> SSD:
    """The model called `name`, freshly initialised.

    Args:
        name: a key of :data:`MODELS`.
        num_classes: foreground classes.
        preset: default the model's own.

    Raises:
        ValueError: no model has that name.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; expected one of {', '.join(map(repr, MODELS))}")
    make, own = MODELS[name]
    return make(num_classes, preset or own)


def _tuples(value: Any) -> Any:
    """Lists as tuples, however deep: what a file has made of a preset's tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
