"""Hard negative mining: which negatives the loss counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from fastssd.explain import style
from fastssd.ops import mine_hard_negatives

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POSITIVE, MINED, LEFT_OUT = style.BLUE, style.VERMILLION, style.RULE


def mining_figure(loss: ArrayLike, positive: ArrayLike, *, neg_pos_ratio: float = 3.0) -> Figure:
    """The loss of every anchor of one image, and the negatives sorted by it with those that are mined.

    Args:
        loss: [A] classification loss, >= 0.
        positive: bool [A].
        neg_pos_ratio: negatives mined for each positive.

    Raises:
        ImportError: matplotlib is missing (``pip install 'fastssd[viz]'``).
    """
    loss, positive = np.asarray(loss, np.float64), np.asarray(positive, bool)
    mined = mine_hard_negatives(loss, positive, neg_pos_ratio=neg_pos_ratio)
    positives, negatives, count = int(positive.sum()), int((~positive).sum()), int(mined.sum())
    figure, axes = style.panels(2, panel=(6.1, 2.3), note_lines=1, columns=2)
    style.bare(
        axes[0],
        f"{len(loss)} anchors: {positives} positive, {negatives} background",
        "Each bar is the classification loss of an anchor.",
    )
    _bars(axes[0], loss, np.where(positive, POSITIVE, LEFT_OUT))

    order = np.concatenate(
        [np.flatnonzero(positive), np.flatnonzero(~positive)[np.argsort(-loss[~positive], kind="stable")]]
    )
    colors = np.where(positive, POSITIVE, np.where(mined, MINED, LEFT_OUT))
    style.bare(
        axes[1],
        "Sorted: the negatives with the highest loss are hard",
        f"{neg_pos_ratio:g} for each positive: {count} are mined, {negatives - count} teach nothing in this step.",
    )
    _bars(axes[1], loss[order], colors[order])
    for start, stop, color, text in (
        (0, positives, POSITIVE, "positive"),
        (positives, positives + count, MINED, "mined"),
        (positives + count, len(loss), style.SOFT_INK, "left out"),
    ):
        if stop > start:
            axes[1].plot([start - 0.4, stop - 0.6], [-0.04 * loss.max()] * 2, color=color, linewidth=2)
            middle = (start + stop - 1) / 2
            axes[1].text(
                middle,
                -0.07 * loss.max(),
                text,
                color=color,
                fontsize=style.TEXT_SIZE,
                ha="center",
                va="top",
                fontweight="bold",
            )
    return figure


def _bars(axes: Axes, loss: ArrayLike, colors: ArrayLike) -> None:
    heights = np.asarray(loss)
    axes.bar(np.arange(len(heights)), heights, width=0.8, color=list(np.asarray(colors)))
    axes.set_xlim(-0.6, len(heights) - 0.4)
    axes.set_ylim(-0.2 * heights.max(), heights.max() * 1.02)
