"""What a detector's outputs depend on besides its weights: input, anchors, normalisation, postprocessing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from fastssd._fields import Rule, check_fields, from_plain, length, one_of, within
from fastssd.ops import grid_anchors

CLIPS = ("none", "size", "all")
ACTIVATIONS = ("softmax", "sigmoid")
RATIOS_4 = (1.0, 2.0, 0.5)  # with two scales 4 anchors per cell
RATIOS_6 = (1.0, 2.0, 0.5, 3.0, 1 / 3)

# Limits for presets that are read from a file: beyond them a mistake would cost much memory and time.
MAX_SIZE = 4096  # pixels, height and width of the input
MAX_ANCHORS = 2_000_000
MAX_CLASSES = 30_000

Size = Annotated[int, within(1, MAX_SIZE)]
Scale = Annotated[float, within(0, 10, above=True)]
Ratio = Annotated[float, within(0.001, 1000)]
Level = length(1, 64)
ClassNames = Annotated[tuple[Annotated[str, length(1, 1000)], ...], length(1, MAX_CLASSES)]
Fraction = Annotated[float, within(0, 1)]
Deviation = Annotated[float, within(0.001, 10)]
FileName = Rule(
    lambda text: 0 < len(text) <= 100 and text.isprintable() and not set(text) & set("/\\"),
    "that is printable, without slashes, of at most 100 characters",  # commands name files after a preset
)


@dataclass(frozen=True)
class Preset:
    """All that a detector's outputs depend on besides its weights. Every checkpoint has one.

    Attributes:
        name: to be read by people.
        image_size: height and width of the network's input, pixels.
        grid_sizes: (rows, columns) of each feature map.
        scales: for each feature map the scales of its anchors, as fractions of the image.
        aspect_ratios: for each feature map the width / height of its anchors, as in :func:`fastssd.ops.grid_anchors`.
        variances: of the box coder.
        mean, std: of the RGB channels, in [0, 1].
        activation: ``"softmax"`` over background and classes, or ``"sigmoid"`` of each class (for the focal loss).
        steps: for each feature map the pixels from cell to cell; None: the image in equal parts. The two differ where
            a grid does not divide the image (38 cells in steps of 8 pixels end beyond 300).
        clip: what of an anchor is limited to [0, 1]: ``"none"``, its ``"size"`` (torchvision), or ``"all"``, that is
            center and size (ssd.pytorch). Corners may still lie outside the image.
        score_threshold, nms_threshold, topk, max_detections: of postprocessing, where a caller names no others; the
            score threshold is the one for measuring AP.

    Raises:
        ValueError: a field is of another type or out of range; names it, what came and what was expected. Lists are
            accepted as tuples.
    """

    name: Annotated[str, FileName]
    image_size: Size
    grid_sizes: Annotated[tuple[tuple[Size, Size], ...], Level]
    scales: tuple[Annotated[tuple[Scale, ...], Level], ...]
    aspect_ratios: tuple[Annotated[tuple[Ratio, ...], Level], ...]
    variances: tuple[Scale, Scale] = (0.1, 0.2)
    mean: tuple[Fraction, Fraction, Fraction] = (0.485, 0.456, 0.406)
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    activation: Annotated[str, one_of(*ACTIVATIONS)] = "softmax"
    steps: tuple[Annotated[float, within(0, MAX_SIZE, above=True)], ...] | None = None
    clip: Annotated[str, one_of(*CLIPS)] = "none"
    score_threshold: Fraction = 0.01
    nms_threshold: Fraction = 0.45
    topk: Annotated[int, within(1, 1_000_000_000)] = 400
    max_detections: Annotated[int, within(1, 100_000)] = 200

    def __post_init__(self) -> None:
        check_fields(self)
        levels = len(self.grid_sizes)
        for name in ("scales", "aspect_ratios", "steps"):
            entries = getattr(self, name)
            if entries is not None and len(entries) != levels:
                raise ValueError(f"{name}: expected an entry for each of the {levels} feature maps, got {len(entries)}")
        cells = [rows * columns for rows, columns in self.grid_sizes]
        count = sum(c * k for c, k in zip(cells, self.anchors_per_cell, strict=True))
        if count > MAX_ANCHORS or max(map(max, self.grid_sizes)) > self.image_size:
            raise ValueError(
                f"grid_sizes: expected at most {MAX_ANCHORS} anchors, and no more rows and columns than the "
                f"{self.image_size} pixels of the input; got {count} anchors over {self.grid_sizes}"
            )

    @property
    def anchors_per_cell(self) -> tuple[int, ...]:
        return tuple(len(s) + len(r) - 1 for s, r in zip(self.scales, self.aspect_ratios, strict=True))

    def anchors(self) -> NDArray[np.float32]:
        """[A, 4] xyxy, as fractions of the image."""
        if self.steps is None and self.clip == "none":
            return grid_anchors(self.grid_sizes, self.scales, self.aspect_ratios)
        levels = []
        for level, (rows, columns) in enumerate(self.grid_sizes):
            cell = grid_anchors([1], [self.scales[level]], [self.aspect_ratios[level]], dtype=np.float64)
            size = cell[:, 2:] - cell[:, :2]  # [K, 2]
            step = (1 / columns, 1 / rows) if self.steps is None else (self.steps[level] / self.image_size,) * 2
            x, y = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5)
            center = np.stack([x, y], -1)[:, :, None] * step  # [rows, columns, 1, 2]
            if self.clip != "none":
                size = size.clip(0, 1)
            if self.clip == "all":
                center = center.clip(0, 1)
            levels.append(np.concatenate([center - size / 2, center + size / 2], -1).reshape(-1, 4))
        return np.concatenate(levels).astype(np.float32)

    def at_size(self, image_size: int, grid_sizes: Sequence[tuple[int, int]]) -> Preset:
        """The same anchors, as fractions of the image, over the feature maps that another size of input gives.

        A step keeps its pixels if the feature map still has as many cells as such steps cover the image, rounded up;
        otherwise it becomes the image size over the number of cells.
        """
        steps = self.steps
        if steps is not None:
            steps = tuple(
                step if grid == (math.ceil(image_size / step),) * 2 else image_size / grid[0]
                for step, grid in zip(steps, grid_sizes, strict=True)
            )
        return replace(self, image_size=image_size, grid_sizes=tuple(grid_sizes), steps=steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; :meth:`from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preset:
        """
        Raises:
            ValueError: a field is missing, unknown or out of range.
        """
        try:
            return from_plain(cls, values)
        except ValueError as error:
            raise ValueError(f"not a preset: {error}") from None

    @classmethod
    def spaced(
        cls,
        name: str,
        image_size: int,
        grid_sizes: Sequence[tuple[int, int]],
        smallest: float = 0.1,
        largest: float = 0.9,
        **others: Any,
    ) -> Preset:
        """A preset whose scales increase evenly from the first feature map to the last, with six anchors per cell.

        Args:
            name, image_size, grid_sizes: as the attributes.
            smallest, largest: scale of the first and of the last feature map.
            others: further attributes.

        Source:
            SSD, arXiv:1512.02325, equation 4.
        """
        levels = len(grid_sizes)
        scales = np.linspace(smallest, largest, levels).tolist() if levels > 1 else [smallest]
        fields = {"scales": paired_scales((*scales, 1.0)), "aspect_ratios": (RATIOS_6,) * levels} | others
        return cls(name=name, image_size=image_size, grid_sizes=tuple(grid_sizes), **fields)


def check_size(image_size: int) -> None:
    """Raise ValueError if no preset may have this size of input; called before a network is run at it."""
    if not 1 <= image_size <= MAX_SIZE:
        raise ValueError(f"image_size: expected from 1 to {MAX_SIZE} pixels, got {image_size}")


def paired_scales(scales: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Each scale with the geometric mean of itself and the next (SSD, section 2.2); the last one has no pair."""
    return tuple((low, math.sqrt(low * high)) for low, high in itertools.pairwise(scales))
