"""Anchors (default boxes) on the cells of feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastssd import _checks as checks
from fastssd.backends import active_backend
from fastssd.ops._dispatched import dispatched
from fastssd.ops._operator import operator

if TYPE_CHECKING:
    import torch


def grid_anchors(
    grid_sizes: int | Sequence[int | tuple[int, int]] | NDArray[Any],
    scales: Sequence[Sequence[float]],
    aspect_ratios: Sequence[float] | Sequence[Sequence[float]] = (1.0, 2.0, 0.5),
    *,
    image_size: tuple[float, float] = (1.0, 1.0),
    clip: bool = False,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """The anchors of all feature maps, in the order in which a network's outputs come.

    A cell of level ``l`` has ``len(scales[l]) + len(aspect_ratios) - 1`` anchors: every scale at the first ratio,
    then the first scale at every other ratio. An anchor of scale s and ratio r has width ``s * sqrt(r)`` and height
    ``s / sqrt(r)``, as fractions of the image's width and height, around the middle of its cell.

    Args:
        grid_sizes: cells of each level, (rows, columns) or one number for both: a list, or an array [L, 2] or [L]. A
            number alone is one level.
        scales: for each level the scales of its anchors, as fractions of the image.
        aspect_ratios: width / height; one list for all levels or a list for each.
        image_size: (height, width) of the image: the unit of the result. (1, 1) gives fractions.
        clip: whether to cut the anchors off at the border of the image.
        dtype: float32 or float64.

    Returns:
        [A, 4] xyxy NumPy array, level by level, and in a level row by row, column by column, anchor by anchor.

    Raises:
        TypeError, ValueError: lengths that differ, or a size, scale or ratio that is not positive and finite.

    Source:
        SSD, arXiv:1512.02325, section 2.2; the order is that of Dive into Deep Learning, section 14.4.

    Example:
        >>> grid_anchors([32, 16, 8, 4, 1], [(.2, .272), (.37, .447), (.54, .619), (.71, .79), (.88, .961)]).shape
        (5444, 4)
    """
    levels = _levels(grid_sizes, scales, aspect_ratios)
    if not dispatched():
        return _grid_anchors(*levels, image_size, clip, dtype)
    import torch

    if dtype not in (float, np.float32, np.float64, "float32", "float64"):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
    kind = torch.float64 if dtype in (float, np.float64, "float64") else torch.float32
    grids, scales, ratios = levels
    flat = torch.ops.fastssd.grid_anchors(
        [side for grid in grids for side in grid],
        [float(scale) for level in scales for scale in level],
        [len(level) for level in scales],
        [float(ratio) for level in ratios for ratio in level],
        [len(level) for level in ratios],
        [*image_size],
        clip,
        kind,
    )
    found: NDArray[Any] = flat.numpy()
    return found


def _grid_anchors(
    grids: list[Any], scales: list[Any], ratios: list[Any], image_size: Any, clip: Any, dtype: DTypeLike
) -> NDArray[Any]:
    kind = np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {kind}")
    size = np.array(checks.check_size("image_size", image_size), np.float64)
    levels = []
    for level, ((rows, columns), *given) in enumerate(zip(grids, scales, ratios, strict=True)):
        rows, columns = checks.count(f"grid_sizes[{level}]", rows), checks.count(f"grid_sizes[{level}]", columns)
        shapes = _shapes(level, *given)
        out = checks.empty((rows * columns * len(shapes), 4), kind)
        active_backend().grid_anchors(rows, columns, shapes, size, bool(clip), out)
        levels.append(out)
    return np.concatenate(levels) if levels else np.empty((0, 4), kind)


def _is_row(value: Any) -> bool:
    return not isinstance(value, (int, float)) and (isinstance(value, Sequence) or getattr(value, "ndim", 0) == 1)


def _rows(name: str, values: Any) -> list[Any]:
    try:
        return list(values)
    except TypeError:
        raise TypeError(f"{name}: expected a list, got {values!r}") from None


def _levels(grid_sizes: Any, scales: Any, aspect_ratios: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """For each level (rows, columns), its scales and its ratios; lists, as long as each other."""
    grids = _rows("grid_sizes", grid_sizes) if hasattr(grid_sizes, "__iter__") else [grid_sizes]
    for level, grid in enumerate(grids):
        grids[level] = tuple(grid) if _is_row(grid) else (grid, grid)
        if len(grids[level]) != 2:
            raise ValueError(f"grid_sizes[{level}]: expected (rows, columns) or one number, got {grid!r}")
    scales, ratios = _rows("scales", scales), _rows("aspect_ratios", aspect_ratios)
    if len(scales) != len(grids):
        raise ValueError(f"scales: expected one list for each of the {len(grids)} levels, got {len(scales)}")
    if not ratios or not _is_row(ratios[0]):
        ratios = [ratios] * len(grids)
    if len(ratios) != len(grids):
        raise ValueError(f"aspect_ratios: expected one list for each of the {len(grids)} levels, got {len(ratios)}")
    scales = [_rows(f"scales[{level}]", each) for level, each in enumerate(scales)]
    return grids, scales, [_rows(f"aspect_ratios[{level}]", each) for level, each in enumerate(ratios)]


def _shapes(level: int, scales: list[Any], ratios: list[Any]) -> NDArray[np.float64]:
    """(width, height) of a cell's anchors, [K, 2]."""
    tiny, huge = 1e-30, 1e30
    scales = [checks.number(f"scales[{level}]", scale, tiny, huge) for scale in scales]
    ratios = [checks.number(f"aspect_ratios[{level}]", ratio, tiny, huge) for ratio in ratios]
    if not scales or not ratios:
        raise ValueError(f"scales[{level}], aspect_ratios[{level}]: expected at least one of each")
    pairs = [(scale, ratios[0]) for scale in scales] + [(scales[0], ratio) for ratio in ratios[1:]]
    return np.array([(scale * math.sqrt(ratio), scale / math.sqrt(ratio)) for scale, ratio in pairs])


@operator("-> float[A, 4]", vmap=None, name="grid_anchors")
def _flat_grid_anchors(
    grid_sizes: list[int],
    scales: list[float],
    scales_per_level: list[int],
    aspect_ratios: list[float],
    ratios_per_level: list[int],
    image_size: tuple[float, float] | None = None,
    clip: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Any:
    """``torch.ops.fastssd.grid_anchors``: lists of lists laid flat, because no schema has them."""
    grids = [*zip(grid_sizes[::2], grid_sizes[1::2], strict=True)]
    levels = _split(scales, scales_per_level), _split(aspect_ratios, ratios_per_level)
    kind = np.float64 if "float64" in str(dtype) else np.float32
    return _grid_anchors(grids, *levels, (1.0, 1.0) if image_size is None else image_size, clip, kind)


def _split(flat: Sequence[float], lengths: Sequence[int]) -> list[list[float]]:
    ends = np.cumsum(lengths, dtype=int).tolist()
    return [list(flat[end - length : end]) for length, end in zip(lengths, ends, strict=True)]
