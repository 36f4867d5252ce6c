"""Colours and type shared by all figures that fastssd draws.

The colours are the seven of Okabe and Ito (https://jfly.uni-koeln.de/color/), which people with any of the common
colour deficiencies tell apart.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastssd._files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
TITLE_SIZE, TEXT_SIZE, TAG_SIZE = 11, 9, 8  # points

ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#f0e442",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
)
INK, SOFT_INK, FAINT, RULE, GONE, PAPER = "#16191d", "#5c646e", "#9aa3ad", "#d5dae0", "#f3f5f7", "#ffffff"

_CLASS_COLORS = (ORANGE, BLUE, PURPLE, GREEN, VERMILLION, SKY, YELLOW)


def class_color(label: int) -> str:
    """The colour of a class as ``#rrggbb``; after seven classes they come again, lighter, then darker."""
    round_, place = divmod(label - 1, len(_CLASS_COLORS))
    color = _CLASS_COLORS[place]
    return (color, _mix(color, "#ffffff", 0.45), _mix(color, "#000000", 0.4))[round_ % 3]


def text_color(background: str) -> str:
    """Black or white, whichever is easier to read on `background` (WCAG 2 contrast ratio)."""
    return "#000000" if _luminance(background) > 0.179 else "#ffffff"


def contrast(color: str) -> str:
    """Near-black for light colours, white for dark ones: what a line of `color` is edged with."""
    return INK if _luminance(color) > 0.25 else "#ffffff"


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _mix(color: str, other: str, share: float) -> str:
    mixed = (round(a + (b - a) * share) for a, b in zip(_channels(color), _channels(other), strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _luminance(color: str) -> float:
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in _channels(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def new_figure(width: float, height: float) -> Figure:
    """An empty matplotlib figure of this size in inches, outside of pyplot's state.

    Raises:
        ImportError: matplotlib is missing (``pip install 'fastssd[viz]'``).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib; install it with: pip install 'fastssd[viz]'") from error
    return Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)


def save_figure(figure: Figure, path: str | os.PathLike[str] | IO[bytes]) -> None:
    """Write a figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=PAPER, metadata={"Software": None})
    if isinstance(path, (str, os.PathLike)):
        write_file(path, lambda file: file.write(buffer.getvalue()))
    else:
        path.write(buffer.getvalue())


def panels(
    count: int, *, panel: tuple[float, float], note_lines: int = 1, columns: int = 3
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of (width, height) inches, row by row, each with room above for title and notes."""
    columns = min(columns, count)
    rows = -(-count // columns)
    gap, margin, head = 0.22, 0.12, 0.36 + 0.18 * note_lines
    width = columns * panel[0] + (columns - 1) * gap + 2 * margin
    height = rows * (panel[1] + head) + (rows - 1) * gap + 2 * margin
    figure = new_figure(width, height)
    axes = []
    for place in range(count):
        row, column = divmod(place, columns)
        left = margin + column * (panel[0] + gap)
        top = margin + row * (panel[1] + head + gap) + head
        axes.append(figure.add_axes((left / width, 1 - (top + panel[1]) / height, panel[0] / width, panel[1] / height)))
    return figure, axes


def bare(axes: Axes, title: str = "", note: str = "") -> None:
    """Axes without ticks or frame, with a title and a softer line under it at the upper left."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_frame_on(False)
    lines = note.count("\n") + 1 if note else 0
    axes.set_title(title, loc="left", fontsize=TITLE_SIZE, fontweight="bold", color=INK, pad=8 + 12 * lines)
    if note:
        axes.annotate(
            note,
            (0, 1),
            xytext=(0, 6),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=TEXT_SIZE,
            color=SOFT_INK,
            va="bottom",
            linespacing=1.3,
        )


def draw_box(
    axes: Axes,
    box: Sequence[float],
    color: str,
    *,
    width: float = 2.0,
    dashed: bool = False,
    fill: float = 0.0,
    edge: str | None = None,
    order: float = 2,
) -> None:
    """One xyxy box on matplotlib axes; `fill` is the opacity of its inside, `edge` the colour of a line around it."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    x1, y1, x2, y2 = (float(v) for v in box)
    patch = Rectangle(
        (x1, y1),
        x2 - x1,
        y2 - y1,
        edgecolor=color,
        facecolor=to_rgba(color, fill) if fill else "none",
        linewidth=width,
        linestyle=(0, (3.5, 1.8)) if dashed else "solid",
        joinstyle="miter",
        zorder=order,
    )
    if edge is not None:
        patch.set_path_effects([Stroke(linewidth=width + 1.6, foreground=edge), Normal()])
    axes.add_patch(patch)


def draw_label(axes: Axes, x: float, y: float, text: str, color: str, *, align: str = "left") -> None:
    """A small filled tag whose lower corner on the side `align` is at (x, y), in the axes' units."""
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 0),
        textcoords="offset points",
        fontsize=TAG_SIZE,
        fontweight="bold",
        color=text_color(color),
        ha=align,
        va="center",
        zorder=10,
        bbox={"boxstyle": "square,pad=0.25", "facecolor": color, "edgecolor": PAPER, "linewidth": 0.8},
    )


def draw_image(axes: Axes, image: NDArray[np.uint8], *, faded: bool = False) -> None:
    """An image, uint8 [H, W, 3], in pixel coordinates; `faded` where the lines on it matter more."""
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), alpha=0.35 if faded else 1)
    axes.set_aspect("equal", anchor="NW")


def draw_grid(axes: Axes, rows: int, columns: int, size: tuple[int, int]) -> None:
    """The borders of a feature map's cells on an image of (height, width) `size`."""
    height, width = size
    for x in np.linspace(0, width, columns + 1):
        axes.plot([x, x], [0, height], color=SOFT_INK, linewidth=0.25)
    for y in np.linspace(0, height, rows + 1):
        axes.plot([0, width], [y, y], color=SOFT_INK, linewidth=0.25)
