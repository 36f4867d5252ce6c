"""What is wrong with each detection, and which objects were missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastssd.detection.postprocess import ImageDetections
from fastssd.evaluation.truth import GroundTruth
from fastssd.ops import box_iou

CORRECT, DUPLICATE, BADLY_PLACED, WRONG_CLASS, BACKGROUND, IGNORED = range(6)
KINDS = ("correct", "duplicate", "badly placed", "wrong class", "background", "ignored")


class PictureErrors(NamedTuple):
    """What :func:`find_errors` returns for one image."""

    kind: NDArray[np.int64]
    """[N], for each detection an index into :data:`KINDS`."""
    gt_idx: NDArray[np.int64]
    """[N], the ground-truth box that the kind refers to; -1 for background."""
    missed: NDArray[np.bool_]
    """[G], ground-truth boxes without a correct detection; difficult ones are never missed."""

    @property
    def total(self) -> int:
        """Number of wrong detections and missed boxes."""
        return int(np.isin(self.kind, (DUPLICATE, BADLY_PLACED, WRONG_CLASS, BACKGROUND)).sum() + self.missed.sum())


def find_errors(
    detections: ImageDetections, truth: GroundTruth, *, iou_threshold: float = 0.5, touching: float = 0.1
) -> PictureErrors:
    """The kind of error of each detection of an image, in descending order of scores.

    The first kind that fits:

    - correct: the IoU with a ground-truth box of its class that has no detection yet is at least `iou_threshold`;
    - ignored: the same with a difficult box of its class;
    - duplicate: the same with a box of its class that has a detection already;
    - wrong class: the same with a box of another class;
    - badly placed: the IoU with a box of its class is at least `touching`;
    - background: everything else.

    Args:
        detections: by descending score.
        truth: the ground truth of the image.
        iou_threshold, touching: IoU in [0, 1].

    Returns:
        :class:`PictureErrors`.

    Source:
        The kinds are those of TIDE, arXiv:2008.08115, section 2.2, with "both" counted as background.
    """
    count = len(detections.boxes)
    kind, gt_idx = np.full(count, BACKGROUND), np.full(count, -1)
    overlap = box_iou(detections.boxes, truth.boxes)  # [N, G]
    same = detections.labels[:, None] == truth.labels
    taken = np.zeros(len(truth.boxes), bool)
    for i in range(count if len(truth.boxes) else 0):
        free = np.where(same[i] & ~taken & ~truth.difficult, overlap[i], -1)
        own = np.where(same[i] & ~truth.difficult, overlap[i], -1)
        difficult = np.where(same[i] & truth.difficult, overlap[i], -1)
        other = np.where(~same[i], overlap[i], -1)
        for candidate, values, least in (
            (CORRECT, free, iou_threshold),
            (IGNORED, difficult, iou_threshold),
            (DUPLICATE, own, iou_threshold),
            (WRONG_CLASS, other, iou_threshold),
            (BADLY_PLACED, own, touching),
        ):
            best = int(values.argmax())
            if values[best] >= least:
                kind[i], gt_idx[i] = candidate, best
                taken[best] |= candidate == CORRECT
                break
    return PictureErrors(kind, gt_idx, ~taken & ~truth.difficult)


def confusion_matrix(
    detections: Sequence[ImageDetections],
    truths: Sequence[GroundTruth],
    num_classes: int,
    *,
    score_threshold: float = 0.3,
    iou_threshold: float = 0.5,
) -> NDArray[np.int64]:
    """How often objects of each class were detected as each class.

    Detections and ground-truth boxes of an image are paired without regard to their classes, the largest IoU first.

    Args:
        detections, truths: of each image.
        num_classes: K.
        score_threshold: detections with a lower score do not count.
        iou_threshold: boxes with a lower IoU are not paired.

    Returns:
        int64 [K + 1, K + 1]: the row is the true class, the column the detected one. The last row counts detections
        without an object, the last column objects without a detection. Difficult boxes, and detections that are paired
        with them, do not count.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for found, truth in zip(detections, truths, strict=True):
        shown = found.scores >= score_threshold
        labels = found.labels[shown]
        overlap = box_iou(found.boxes[shown], truth.boxes)
        free_row, free_column = np.ones(len(labels), bool), np.ones(len(truth.labels), bool)
        for flat_index in np.argsort(-overlap, axis=None, kind="stable"):
            i, j = divmod(int(flat_index), overlap.shape[1])
            if overlap[i, j] < iou_threshold:
                break
            if free_row[i] and free_column[j]:
                free_row[i] = free_column[j] = False
                if not truth.difficult[j]:
                    matrix[truth.labels[j] - 1, labels[i] - 1] += 1
        missed = truth.labels[free_column & ~truth.difficult]
        matrix[-1, :-1] += np.bincount(labels[free_row] - 1, minlength=num_classes)
        matrix[:-1, -1] += np.bincount(missed - 1, minlength=num_classes)
    return matrix
