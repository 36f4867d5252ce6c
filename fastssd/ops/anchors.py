"""Anchors (default boxes) on the cells of feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastssd.backends import active_backend
from fastssd.ops import _face as face
from fastssd.ops.boxes import check_size


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
    ``s / sqrt(r)``, as fractions of the picture's width and height, around the middle of its cell.

    Args:
        grid_sizes: cells of each level, (rows, columns) or one number for both: a list, or an array [L, 2] or [L]. A
            number alone is one level.
        scales: for each level the scales of its anchors, as fractions of the picture.
        aspect_ratios: width / height; one list for all levels or a list for each.
        image_size: (height, width) of the picture: the unit of the result. (1, 1) gives fractions.
        clip: whether to cut the anchors off at the border of the picture.
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
    if face.dispatched():
        return face.dispatch("grid_anchors", *_levels(grid_sizes, scales, aspect_ratios), image_size, clip, dtype)
    kind = np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {kind}")
    size = np.array(check_size("image_size", image_size), np.float64)

    levels = []
    for level, ((rows, columns), *given) in enumerate(zip(*_levels(grid_sizes, scales, aspect_ratios), strict=True)):
        rows, columns = face.count(f"grid_sizes[{level}]", rows), face.count(f"grid_sizes[{level}]", columns)
        shapes = _shapes(level, *given)
        out = face.empty((rows * columns * len(shapes), 4), kind)
        active_backend().grid_anchors(rows, columns, shapes, size, bool(clip), out)
        levels.append(out)
    return np.concatenate(levels) if levels else np.empty((0, 4), kind)


def _is_row(value: Any) -> bool:
    return not isinstance(value, int | float) and (isinstance(value, Sequence) or getattr(value, "ndim", 0) == 1)


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
    scales = [face.number(f"scales[{level}]", scale, tiny, huge) for scale in scales]
    ratios = [face.number(f"aspect_ratios[{level}]", ratio, tiny, huge) for ratio in ratios]
    if not scales or not ratios:
        raise ValueError(f"scales[{level}], aspect_ratios[{level}]: expected at least one of each")
    pairs = [(scale, ratios[0]) for scale in scales] + [(scales[0], ratio) for ratio in ratios[1:]]
    return np.array([(scale * math.sqrt(ratio), scale / math.sqrt(ratio)) for scale, ratio in pairs])
