"""Matching, step by step: which anchor is responsible for which ground-truth box, and why."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastssd.explain import style
from fastssd.explain.anchors import anchors_a_cell
from fastssd.ops import box_iou

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Outcome(StrEnum):
    """What matching made of an anchor."""

    FORCED = "forced"
    """Its ground-truth box took it for its own: positive at any IoU."""
    THRESHOLD = "threshold"
    """Its best IoU reaches the threshold: positive."""
    IGNORED = "ignored"
    """Its best IoU lies between the two thresholds: neither positive nor background."""
    BACKGROUND = "background"


COLORS = {
    Outcome.FORCED: style.VERMILLION,
    Outcome.THRESHOLD: style.BLUE,
    Outcome.IGNORED: style.PURPLE,
    Outcome.BACKGROUND: style.FAINT,
}


class ForceStep(NamedTuple):
    """One step of the forcing: the largest IoU among the anchors and ground-truth boxes that are left."""

    anchor: int
    gt: int
    iou: float


class MatchingTrace(NamedTuple):
    """How :func:`fastssd.ops.match_anchors` arrives at its result."""

    iou: NDArray[Any]
    """[A, G]"""
    forced: tuple[ForceStep, ...]
    """In the order in which they were forced."""
    gt_idx: NDArray[np.int64]
    """[A]: index of the ground-truth box, -1 background, -2 ignored; what ``match_anchors`` returns."""
    outcome: NDArray[np.str_]
    """[A] of :class:`Outcome`'s values."""


def trace_matching(
    anchors: ArrayLike,
    gt_boxes: ArrayLike,
    *,
    iou_threshold: float = 0.5,
    background_threshold: float | None = None,
) -> MatchingTrace:
    """Match as :func:`fastssd.ops.match_anchors` does with its default forcing, and write down each decision.

    Args:
        anchors: [A, 4] xyxy, finite.
        gt_boxes: [G, 4] xyxy, finite.
        iou_threshold, background_threshold: as in ``match_anchors``.
    """
    low = iou_threshold if background_threshold is None else background_threshold
    iou = np.asarray(box_iou(np.asarray(anchors), np.asarray(gt_boxes)))
    num_anchors, num_gt = iou.shape
    gt_idx = np.full(num_anchors, -1)
    outcome = np.full(num_anchors, Outcome.BACKGROUND)

    # 1. The threshold: every anchor takes the ground-truth box that it overlaps most.
    for anchor in range(num_anchors if num_gt else 0):
        best = int(iou[anchor].argmax())
        if float(iou[anchor, best]) >= iou_threshold:
            gt_idx[anchor], outcome[anchor] = best, Outcome.THRESHOLD
        elif float(iou[anchor, best]) >= low:
            gt_idx[anchor], outcome[anchor] = -2, Outcome.IGNORED

    # 2. The forcing: every ground-truth box takes an anchor of its own, the pair with the largest IoU first.
    forced = []
    left = iou.astype(np.float64)
    for _ in range(min(num_anchors, num_gt)):
        anchor, gt = divmod(int(left.argmax()), num_gt)
        forced.append(ForceStep(anchor, gt, float(iou[anchor, gt])))
        gt_idx[anchor], outcome[anchor] = gt, Outcome.FORCED
        left[anchor, :] = left[:, gt] = -1
    return MatchingTrace(iou, tuple(forced), gt_idx, outcome)


def matching_steps_figure(
    anchors: ArrayLike,
    gt_boxes: ArrayLike,
    *,
    iou_threshold: float = 0.5,
    background_threshold: float | None = None,
) -> Figure:
    """The boxes of a small example and its table of IoU, once for each step of matching. For up to about ten anchors.

    Args:
        anchors: [A, 4] xyxy, any unit.
        gt_boxes: [G, 4] xyxy, the same unit.
        iou_threshold, background_threshold: as in :func:`trace_matching`.

    Raises:
        ImportError: matplotlib is missing (``pip install 'fastssd[viz]'``).
    """
    anchors, gt_boxes = np.asarray(anchors, np.float64), np.asarray(gt_boxes, np.float64)
    trace = trace_matching(anchors, gt_boxes, iou_threshold=iou_threshold, background_threshold=background_threshold)
    figure, axes = style.panels(len(trace.forced) + 3, panel=(3.9, 3.3), note_lines=2)
    _draw_scene(axes[0], anchors, gt_boxes, None)
    style.bare(
        axes[0], "Before", "Solid: ground-truth boxes G. Dashed: anchors a.\nThe tables hold the IoU of each pair."
    )

    low = iou_threshold if background_threshold is None else background_threshold
    colored, positive, served = {}, [], set()
    for anchor, gt in enumerate(trace.iou.argmax(axis=1) if len(gt_boxes) else ()):
        value = float(trace.iou[anchor, gt])
        if value >= iou_threshold:
            colored[anchor, int(gt)] = COLORS[Outcome.THRESHOLD]
            positive.append(f"a{anchor + 1}")
            served.add(int(gt))
        elif value >= low:
            colored[anchor, int(gt)] = COLORS[Outcome.IGNORED]
    rows, columns = np.zeros(len(anchors), bool), np.zeros(len(gt_boxes), bool)
    _draw_table(axes[1], trace.iou, rows, columns, colored)
    without = [f"G{gt + 1}" for gt in range(len(gt_boxes)) if gt not in served]
    style.bare(
        axes[1],
        "Threshold",
        f"Best IoU of an anchor {iou_threshold:g} or more: {', '.join(positive) or 'none'}.\n"
        f"Ground truth without an anchor: {', '.join(without) or 'none'}.",
    )

    for number, step in enumerate(trace.forced):
        panel = axes[2 + number]
        _draw_table(panel, trace.iou, rows, columns, {(step.anchor, step.gt): COLORS[Outcome.FORCED]})
        rows[step.anchor] = columns[step.gt] = True
        why = (
            f"The largest IoU{' left' if number else ''} is {step.iou:.2f}: G{step.gt + 1} takes a{step.anchor + 1}.\n"
        )
        if step.iou < iou_threshold:
            why += f"It is below {iou_threshold:g}, and counts nevertheless."
        else:
            why += "Both leave the table."
        style.bare(panel, f"Forcing, step {number + 1}", why)

    _draw_scene(axes[-1], anchors, gt_boxes, trace)
    _legend(axes[-1], trace, f"After: {int((trace.gt_idx >= 0).sum())} positive anchors")
    return figure


def matching_figure(
    image: NDArray[np.uint8],
    anchors: ArrayLike,
    gt_boxes: ArrayLike,
    *,
    grids: Sequence[tuple[int, int]],
    iou_threshold: float = 0.5,
    background_threshold: float | None = None,
) -> Figure:
    """What matching makes of each anchor of an image: the boxes on the image, and the cells map by map.

    Args:
        image: uint8 [H, W, 3].
        anchors: [A, 4] xyxy, pixels of `image`; cell-major, map by map.
        gt_boxes: [G, 4] xyxy, pixels of `image`.
        grids: (rows, columns) of each feature map; every cell of a map has equally many anchors.
        iou_threshold, background_threshold: as in :func:`trace_matching`.

    Raises:
        ImportError: matplotlib is missing (``pip install 'fastssd[viz]'``).
        ValueError: the anchors cannot be spread evenly over the cells of `grids`.
    """
    anchors, gt_boxes = np.asarray(anchors, np.float64), np.asarray(gt_boxes, np.float64)
    per_cell = anchors_a_cell(len(anchors), grids)
    trace = trace_matching(anchors, gt_boxes, iou_threshold=iou_threshold, background_threshold=background_threshold)
    height, width = image.shape[:2]
    figure, axes = style.panels(1 + len(grids), panel=(3.9, 3.9 * height / width), note_lines=2)
    style.draw_image(axes[0], image)
    for anchor in np.flatnonzero(trace.outcome == Outcome.THRESHOLD):
        style.draw_box(axes[0], anchors[anchor], COLORS[Outcome.THRESHOLD], width=0.6)
    for step in trace.forced:
        style.draw_box(axes[0], anchors[step.anchor], COLORS[Outcome.FORCED], width=1.8, edge=style.PAPER, order=6)
    for box in gt_boxes:
        style.draw_box(axes[0], box, style.INK, width=2, edge=style.PAPER, order=5)
    _legend(axes[0], trace, f"{int((trace.gt_idx >= 0).sum())} of {len(anchors)} anchors are positive")

    start = 0
    for panel, (rows, columns) in zip(axes[1:], grids, strict=True):
        stop = start + rows * columns * per_cell
        outcomes = trace.outcome[start:stop].reshape(rows * columns, per_cell)
        style.draw_image(panel, image, faded=True)
        for box in gt_boxes:
            style.draw_box(panel, box, style.INK, width=1.2, order=3)
        _draw_cells(panel, outcomes, rows, columns, (height, width))
        here = [int((outcomes == o).sum()) for o in (Outcome.FORCED, Outcome.THRESHOLD)]
        style.bare(
            panel,
            f"Map {rows} x {columns}: {outcomes.size} anchors",
            f"{per_cell} anchors a cell, a dot for each that is not background.\n"
            f"Here {here[0]} forced and {here[1]} by threshold.",
        )
        start = stop
    return figure


def _color(trace: MatchingTrace, anchor: int) -> str:
    return COLORS[Outcome(str(trace.outcome[anchor]))]


def _legend(axes: Axes, trace: MatchingTrace, title: str) -> None:
    """The title and, below it, how many anchors have each outcome, in its colour."""
    style.bare(axes, title, "\n")
    counts = {o: int((trace.outcome == o).sum()) for o in Outcome}
    shown = [(o, n) for o, n in counts.items() if n or o in (Outcome.FORCED, Outcome.THRESHOLD)]
    for place, (outcome, count) in enumerate(shown):
        x = (place % 2) * 130
        axes.annotate(
            f"■ {count} {'by ' if outcome is Outcome.THRESHOLD else ''}{outcome}",
            (0, 1),
            xytext=(x, 6 + 13 * (1 - place // 2)),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=style.TEXT_SIZE,
            fontweight="bold",
            color=COLORS[outcome] if outcome is not Outcome.BACKGROUND else style.SOFT_INK,
        )


def _draw_scene(
    axes: Axes, anchors: NDArray[np.float64], gt_boxes: NDArray[np.float64], trace: MatchingTrace | None
) -> None:
    """Anchors (dashed; in the colour of their outcome) and ground-truth boxes of a small example."""
    corners = np.concatenate([anchors, gt_boxes])
    low, high = corners[:, :2].min(0), corners[:, 2:].max(0)
    margin = 0.03 * float((high - low).max())
    axes.set_xlim(low[0] - margin, high[0] + margin)
    axes.set_ylim(high[1] + margin, low[1] - margin)
    axes.set_aspect("equal", anchor="NW")
    for index, box in enumerate(anchors):
        color = style.SOFT_INK if trace is None else _color(trace, index)
        positive = trace is not None and trace.gt_idx[index] >= 0
        style.draw_box(axes, box, color, width=2.4 if positive else 1.4, dashed=True, order=4)
        text = f"a{index + 1}"
        if trace is not None and positive:
            text += f" → G{trace.gt_idx[index] + 1}"
        style.draw_label(axes, box[2], box[3], text, color, align="right")
    for index, box in enumerate(gt_boxes):
        style.draw_box(axes, box, style.INK, width=2.6, fill=0.05)
        style.draw_label(axes, box[0], box[1], f"G{index + 1}", style.INK)


def _draw_table(
    axes: Axes,
    iou: NDArray[Any],
    rows_gone: NDArray[np.bool_],
    columns_gone: NDArray[np.bool_],
    colored: dict[tuple[int, int], str],
) -> None:
    """The IoU of each pair; rows and columns that have left are faint, `colored` cells filled."""
    from matplotlib.patches import Rectangle

    num_anchors, num_gt = iou.shape
    axes.set_xlim(-0.75, num_gt)
    axes.set_ylim(num_anchors, -0.8)
    text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": style.TITLE_SIZE}
    for gt in range(num_gt):
        color = style.FAINT if columns_gone[gt] else style.INK
        axes.text(gt + 0.5, -0.4, f"G{gt + 1}", color=color, fontweight="bold", **text)
    for anchor in range(num_anchors):
        color = style.FAINT if rows_gone[anchor] else style.INK
        axes.text(-0.4, anchor + 0.5, f"a{anchor + 1}", color=color, fontweight="bold", **text)
        for gt in range(num_gt):
            fill = colored.get((anchor, gt), style.PAPER)
            gone = bool(rows_gone[anchor] or columns_gone[gt])
            axes.add_patch(
                Rectangle((gt, anchor), 1, 1, facecolor=style.GONE if gone else fill, edgecolor=style.RULE, linewidth=1)
            )
            color = style.FAINT if gone else style.text_color(fill)
            weight = "bold" if (anchor, gt) in colored else "normal"
            axes.text(gt + 0.5, anchor + 0.5, f"{iou[anchor, gt]:.2f}", color=color, fontweight=weight, **text)


def _draw_cells(axes: Axes, outcomes: NDArray[np.str_], rows: int, columns: int, size: tuple[int, int]) -> None:
    """The grid of a feature map, with a dot in a cell for each of its anchors that is not background."""
    height, width = size
    style.draw_grid(axes, rows, columns, size)
    side = int(np.ceil(np.sqrt(outcomes.shape[1])))
    points: dict[Outcome, list[tuple[float, float]]] = {o: [] for o in Outcome if o is not Outcome.BACKGROUND}
    for cell, anchor in np.argwhere(outcomes != Outcome.BACKGROUND):
        row, column = divmod(int(cell), columns)
        inner_row, inner_column = divmod(int(anchor), side)
        x = (column + (inner_column + 0.5) / side) * width / columns
        y = (row + (inner_row + 0.5) / side) * height / rows
        points[Outcome(str(outcomes[cell, anchor]))].append((x, y))
    cell_points = 3.9 * 72 / columns
    for outcome, places in points.items():
        if places:
            x, y = np.array(places).T
            area = min(0.6 * cell_points / side, 16) ** 2
            axes.scatter(x, y, s=max(area, 9), c=COLORS[outcome], edgecolors=style.PAPER, linewidths=0.5, zorder=6)
