"""The two paths of data through an SSD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastssd.explain import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = (  # name, colour, stations: the name of each and what happens there
    (
        "Forward, shared by both",
        style.INK,
        (
            ("image", "3 x 256 x 256"),
            ("backbone", "convolutions"),
            ("5 feature maps", "32, 16, 8, 4, 1 cells a side"),
            ("head", "4 anchors a cell"),
            ("logits, deltas", "for each of 5444 anchors"),
        ),
    ),
    (
        "Training",
        style.VERMILLION,
        (
            ("ground truth", "boxes and labels"),
            ("match", "which anchor learns which box"),
            ("mine", "logits show the hard negatives"),
            ("losses", "of logits and of deltas"),
            ("backward", "better weights"),
        ),
    ),
    (
        "Inference",
        style.BLUE,
        (
            ("logits, deltas", "for each of 5444 anchors"),
            ("scores", "softmax, threshold"),
            ("decode", "anchor and deltas: a box"),
            ("NMS", "the best of boxes that overlap"),
            ("draw", "box, class, score"),
        ),
    ),
)
MATCHING_NMS = ("match", "NMS")  # the two steps that the other figures of this package explain


def paths_figure() -> Figure:
    """From the image to logits and deltas, and from there to the loss (training) or to the boxes (inference).

    Raises:
        ImportError: matplotlib is missing (``pip install 'fastssd[viz]'``).
    """
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    width, height, step_x, step_y = 2.1, 0.66, 2.5, 1.26  # inches
    size = 4 * step_x + width + 0.24, 2 * step_y + height + 0.54
    figure = style.new_figure(*size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)
    axes.axis("off")
    for row, (name, color, stations) in enumerate(ROWS):
        y = 0.42 + row * step_y
        axes.text(0.12, y - 0.1, name, color=color, fontsize=style.TITLE_SIZE, fontweight="bold")
        for column, (title, what) in enumerate(stations):
            x = 0.12 + column * step_x
            filled = title in MATCHING_NMS
            axes.add_patch(
                FancyBboxPatch(
                    (x, y),
                    width,
                    height,
                    boxstyle="round,pad=0,rounding_size=0.06",
                    facecolor=color if filled else style.PAPER,
                    edgecolor=color,
                    linewidth=1.6,
                )
            )
            ink = style.text_color(color) if filled else style.INK
            text: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
            axes.text(x + width / 2, y + 0.24, title, fontsize=style.TITLE_SIZE, fontweight="bold", **text)
            axes.text(x + width / 2, y + 0.47, what, fontsize=style.TAG_SIZE, **text)
            if column:
                ends = (x - step_x + width + 0.05, y + height / 2), (x - 0.05, y + height / 2)
                axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=11, color=color, linewidth=1.6))
    return figure
