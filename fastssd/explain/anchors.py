"""Anchors: the boxes that every cell of every feature map starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastssd.explain import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def anchors_figure(image: NDArray[np.uint8], anchors: ArrayLike, *, grids: Sequence[tuple[int, int]]) -> Figure:
    """The grid of each feature map over the image, with the anchors of the cell in its middle.

    Args:
        image: uint8 [H, W, 3].
        anchors: [A, 4] xyxy, pixels of `image`; cell-major, map by map.
        grids: (rows, columns) of each feature map; every cell of a map has equally many anchors.

    Raises:
        ImportError: matplotlib is missing (``pip install 'fastssd[viz]'``).
        ValueError: the anchors cannot be spread evenly over the cells of `grids`.
    """
    anchors = np.asarray(anchors, np.float64)
    per_cell = anchors_a_cell(len(anchors), grids)
    height, width = image.shape[:2]
    figure, axes = style.panels(len(grids), panel=(2.4, 2.4 * height / width), columns=5)
    start = 0
    for panel, (rows, columns) in zip(axes, grids, strict=True):
        style.draw_image(panel, image, faded=True)
        style.draw_grid(panel, rows, columns, (height, width))
        cell = (rows // 2) * columns + columns // 2
        own = anchors[start + cell * per_cell : start + (cell + 1) * per_cell]
        x, y = own[0, [0, 2]].mean(), own[0, [1, 3]].mean()
        for color, box in zip((style.BLUE, style.VERMILLION, style.GREEN, style.PURPLE) * per_cell, own, strict=False):
            style.draw_box(panel, box, color, width=1.8, edge=style.PAPER)
        panel.plot([x], [y], marker="o", color=style.INK, markersize=4, zorder=9)
        panel.set_xlim(0, width)
        panel.set_ylim(height, 0)
        count = rows * columns * per_cell
        style.bare(panel, f"{rows} x {columns}", f"{per_cell} a cell: {count} anchors")
        start += count
    return figure


def anchors_a_cell(num_anchors: int, grids: Sequence[tuple[int, int]]) -> int:
    """How many anchors a cell has, the same number in every cell of every map.

    Raises:
        ValueError: the anchors cannot be spread evenly.
    """
    cells = sum(rows * columns for rows, columns in grids)
    if cells == 0 or num_anchors % cells:
        raise ValueError(f"grids must divide the {num_anchors} anchors evenly, got {cells} cells")
    return num_anchors // cells
