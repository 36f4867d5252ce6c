"""Non-maximum suppression, step by step: which box deletes which, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastssd.explain import style
from fastssd.ops import box_iou

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCENE = 2.8  # inches, width of the boxes in a panel
LIST = 1.48  # width of a panel with the list, in widths of the scene
KEPT, DELETED, WAITING, GONE = style.BLUE, style.VERMILLION, style.INK, style.FAINT


class Victim(NamedTuple):
    """A box that one step deletes."""

    box: int
    iou: float


class NmsStep(NamedTuple):
    """One step: the best box left is kept, and the boxes that overlap it too much are deleted."""

    kept: int
    victims: tuple[Victim, ...]


def trace_nms(boxes: ArrayLike, scores: ArrayLike, iou_threshold: float) -> list[NmsStep]:
    """The steps of :func:`fastssd.ops.nms`; their `kept` are the indices that it returns.

    Args:
        boxes: [N, 4] xyxy, finite.
        scores: [N].
        iou_threshold: a box is deleted where its IoU with a kept one is greater than this.

    Returns:
        A step for each kept box, by descending score; its victims too are in descending order of score.
    """
    boxes, scores = np.asarray(boxes), np.asarray(scores)
    boxes = boxes.astype(np.result_type(boxes, scores, np.float32))  # the dtype in which the operator computes
    left = list(np.argsort(-scores, kind="stable"))  # descending score, equal scores by index
    steps = []
    while left:
        best, rest = left[0], left[1:]
        iou = box_iou(boxes[[best]], boxes[rest])[0]
        deleted = iou.astype(np.float64) > iou_threshold
        victims = (Victim(int(box), float(v)) for box, v, d in zip(rest, iou, deleted, strict=True) if d)
        steps.append(NmsStep(int(best), tuple(victims)))
        left = [box for box, d in zip(rest, deleted, strict=True) if not d]
    return steps


def most_crowded(labels: ArrayLike, boxes: ArrayLike, scores: ArrayLike, iou_threshold: float) -> int | None:
    """The class in which NMS deletes most boxes (of several the lowest label), the one to look at; None without boxes.

    Args:
        labels: [N].
        boxes, scores, iou_threshold: as in :func:`trace_nms`.
    """
    labels, boxes, scores = np.asarray(labels), np.asarray(boxes), np.asarray(scores)
    deleted = {}
    for label in np.unique(labels):
        own = labels == label
        deleted[int(label)] = int(own.sum()) - len(trace_nms(boxes[own], scores[own], iou_threshold))
    return max(deleted, key=deleted.__getitem__, default=None)


def nms_figure(
    boxes: ArrayLike,
    scores: ArrayLike,
    iou_threshold: float,
    *,
    image: NDArray[np.uint8] | None = None,
    names: Sequence[str] | None = None,
    max_steps: int = 4,
) -> Figure:
    """Panels that show all boxes, one step of NMS after the other, and what is left.

    Args:
        boxes: [N, 4] xyxy, pixels of `image` (any unit without an image), finite.
        scores: [N].
        iou_threshold: as in :func:`trace_nms`.
        image: uint8 [H, W, 3] under the boxes, or None: white.
        names: what to call the boxes; default their rank by score: 1, 2, ...
        max_steps: show so many steps, those that delete the most.

    Raises:
        ImportError: matplotlib is missing (``pip install 'fastssd[viz]'``).
    """
    boxes, scores = np.asarray(boxes, np.float64), np.asarray(scores, np.float64)
    steps = trace_nms(boxes, scores, iou_threshold)
    order = np.argsort(-scores, kind="stable")
    if names is None:
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        names = [str(r + 1) for r in rank]
    scene = _Scene(boxes, scores, names, order, image)

    shown = sorted(sorted(range(len(steps)), key=lambda i: -len(steps[i].victims))[:max_steps])
    width, height = scene.size
    figure, axes = style.panels(len(shown) + 2, panel=(SCENE * LIST, SCENE * height / width), note_lines=2)

    kept: set[int] = set()
    gone: set[int] = set()
    scene.draw(axes[0], kept, gone, None)
    style.bare(axes[0], f"Before: {_boxes(len(boxes))}", "The list on the right is sorted by descending score.\n")
    for number, step in enumerate(steps):
        if number in shown:
            panel = axes[1 + shown.index(number)]
            scene.draw(panel, kept, gone, step)
            title = f"Step {number + 1}: keep box {names[step.kept]}, the best that is left"
            style.bare(panel, title, _reason(step, boxes, gone, iou_threshold, names))
        kept.add(step.kept)
        gone |= {victim.box for victim in step.victims}
    scene.draw(axes[-1], kept, gone, None)
    note = f"{len(gone)} deleted. No two that are left have an IoU > {iou_threshold:g}.\n"
    style.bare(axes[-1], f"After: {_boxes(len(kept))}", note)
    return figure


def _reason(
    step: NmsStep, boxes: NDArray[np.float64], gone: set[int], iou_threshold: float, names: Sequence[str]
) -> str:
    """Two lines: what the step deletes, and which deleted box overlaps the kept one too much."""
    lines = [f"Nothing that is left has an IoU > {iou_threshold:g} with it.", ""]
    if step.victims:
        lines[0] = f"IoU with it > {iou_threshold:g}: delete {_listed([v.box for v in step.victims], names)}."
    overlap = {box: float(box_iou(boxes[[step.kept]], boxes[[box]])[0, 0]) for box in sorted(gone)}
    ghosts = [box for box, iou in overlap.items() if iou > iou_threshold]
    if ghosts:
        lines[1] = f"IoU with {_listed(ghosts, names)} is {overlap[ghosts[0]]:.2f}, but a deleted box deletes nothing."
        if len(ghosts) > 1:
            lines[1] = f"It overlaps {_listed(ghosts, names)} too, but deleted boxes delete nothing."
    return "\n".join(lines)


def _boxes(count: int) -> str:
    return "1 box" if count == 1 else f"{count} boxes"


def _listed(boxes: Sequence[int], names: Sequence[str]) -> str:
    shown = [names[box] for box in boxes]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


class _Scene:
    """The boxes and beside them the list of scores, in the state that NMS has reached."""

    def __init__(
        self,
        boxes: NDArray[np.float64],
        scores: NDArray[np.float64],
        names: Sequence[str],
        order: NDArray[np.int64],
        image: NDArray[np.uint8] | None,
    ) -> None:
        self.boxes, self.scores, self.names, self.order, self.image = boxes, scores, names, order, image
        if image is None:
            corner = boxes[:, 2:].max(0) if len(boxes) else np.ones(2)
            self.size = float(corner[0]) * 1.04, float(corner[1]) * 1.04
        else:
            self.size = float(image.shape[1]), float(image.shape[0])
        self.longest_list = max(5, int(SCENE * self.size[1] / self.size[0] / 0.19))  # lines that the panel has room for

    def draw(self, axes: Axes, kept: set[int], gone: set[int], step: NmsStep | None) -> None:
        width, height = self.size
        axes.set_xlim(0, width * LIST)
        axes.set_ylim(height, 0)
        axes.set_aspect("equal", anchor="NW")
        if self.image is not None:
            axes.imshow(self.image, extent=(0, width, height, 0))
            axes.set_xlim(0, width * LIST)
        victims = {} if step is None else {victim.box: victim.iou for victim in step.victims}
        crowded = len(self.boxes) > self.longest_list  # then only boxes that a step has decided about get their names
        edge = None if self.image is None else style.PAPER
        for box in reversed(self.order):  # the best on top
            if box in gone:
                continue
            corners = self.boxes[box]
            if step is not None and box == step.kept:
                style.draw_box(axes, corners, KEPT, width=3.2, fill=0.12, edge=edge, order=5)
            elif box in victims:
                style.draw_box(axes, corners, DELETED, width=1.8, dashed=True, edge=edge, order=4)
            elif box in kept:
                style.draw_box(axes, corners, KEPT, width=2.2, edge=edge)
            else:
                style.draw_box(axes, corners, WAITING, width=0.7 if crowded else 1.2, edge=edge)
        for box in self.order:
            decided = box in victims or box in kept or (step is not None and box == step.kept)
            if box not in gone and (decided or not crowded):
                color = DELETED if box in victims else KEPT if box in kept or (step and box == step.kept) else WAITING
                x, y = self.boxes[box][:2]
                style.draw_label(
                    axes, min(max(x, 0), width), min(max(y, 0), height), self.names[box], color, align="center"
                )
        self._draw_list(axes, kept, gone, step, victims)

    def _draw_list(
        self, axes: Axes, kept: set[int], gone: set[int], step: NmsStep | None, victims: dict[int, float]
    ) -> None:
        width, height = self.size
        shown = self.order[: self.longest_list]
        row = height / max(len(shown) + 0.5, 9)
        columns = [width * (1 + share) for share in (0.09, 0.12, 0.26)]  # name, score, state
        for place, box in enumerate(shown):
            y = (place + 0.5) * row
            now = step is not None and box == step.kept
            color = DELETED if box in victims else KEPT if box in kept or now else GONE if box in gone else WAITING
            state = f"IoU {victims[box]:.2f}" if box in victims else "keep" if now else "kept" if box in kept else ""
            weight = "bold" if now or box in victims else "normal"
            text: dict[str, Any] = {"fontsize": style.TEXT_SIZE, "color": color, "va": "center", "fontweight": weight}
            axes.text(columns[0], y, self.names[box], ha="right", **text)
            axes.text(columns[1], y, f"{self.scores[box]:.2f}", **text)
            axes.text(columns[2], y, state, **text)
            if box in gone:
                axes.plot([columns[0] - 0.03 * width, columns[2] - 0.02 * width], [y, y], color=GONE, linewidth=1)
        if len(self.order) > len(shown):
            more = f"… {len(self.order) - len(shown)} more"
            axes.text(
                columns[0], (len(shown) + 0.3) * row, more, fontsize=style.TEXT_SIZE, color=style.SOFT_INK, va="center"
            )
