"""How well anchors cover a data set: each ground-truth box by its size, beside the shapes of the anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastssd.detection.coverage import anchor_coverage
from fastssd.detection.models import Preset
from fastssd.explain import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def coverage_figure(
    presets: Mapping[str, Preset],
    gt_boxes: Sequence[NDArray[np.float32]],
    gt_labels: Sequence[NDArray[np.int64]],
    class_names: Sequence[str],
    *,
    iou_threshold: float = 0.5,
) -> Figure:
    """A row for each preset: width against height of ground-truth boxes and anchors, and the best IoU by class.

    Args:
        presets: by the name to show.
        gt_boxes: for each image [G_i, 4] xyxy, fractions of the image.
        gt_labels: for each image [G_i], 1-based.
        class_names: of class 1, 2, ...
        iou_threshold: an anchor with this IoU or more is positive.

    Raises:
        ImportError: matplotlib is missing (``pip install 'fastssd[viz]'``).
    """
    boxes = np.concatenate([np.asarray(own, np.float32).reshape(-1, 4) for own in gt_boxes])
    figure = style.new_figure(9.6, 4.3 * len(presets))
    axes = figure.subplots(len(presets), 2, squeeze=False, sharex="col", sharey="col")
    for (name, preset), (shapes, shares) in zip(presets.items(), axes, strict=True):
        coverage = anchor_coverage(preset, gt_boxes, gt_labels, iou_threshold=iou_threshold)
        sides = (boxes[:, 2:] - boxes[:, :2]) * preset.image_size
        for label, class_name in enumerate(class_names, 1):
            own = coverage.labels == label
            if not own.any():
                continue
            color = style.class_color(label)
            shapes.scatter(*sides[own].T, s=7, color=color, alpha=0.5, linewidths=0, label=class_name)
            values = np.sort(coverage.best_iou[own])
            shares.plot(
                np.concatenate([[0], values, [1]]),
                np.concatenate([[0], np.arange(1, len(values) + 1) / len(values), [1]]),
                color=color,
                drawstyle="steps-post",
                label=f"{class_name}: {coverage.missed(own, iou_threshold):.0%} below {iou_threshold:g}",
            )
        anchors = preset.anchors()
        of_anchors = np.unique(np.round((anchors[:, 2:] - anchors[:, :2]) * preset.image_size, 2), axis=0)
        shapes.scatter(*of_anchors.T, s=34, marker="x", color=style.INK, linewidths=1.3, label="anchors", zorder=3)
        shapes.set(xscale="log", yscale="log", xlabel="width, pixels of the input", ylabel="height")
        shapes.set_title(f"{name}: ground truth and anchor shapes", loc="left", fontsize=style.TITLE_SIZE)
        shares.axvline(iou_threshold, color=style.FAINT, linewidth=1)
        shares.set(xlabel="best IoU with any anchor", ylabel="share of ground truth up to it", xlim=(0, 1), ylim=(0, 1))
        shares.set_title(f"mean best IoU {coverage.mean():.3f}", loc="left", fontsize=style.TITLE_SIZE)
        for panel in (shapes, shares):
            panel.grid(color=style.RULE, linewidth=0.6)
            panel.set_axisbelow(True)
            panel.legend(fontsize=style.TAG_SIZE, frameon=False, loc="best")
    figure.tight_layout()
    return figure
