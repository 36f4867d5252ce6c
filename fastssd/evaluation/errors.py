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
    """What :func:`find_errors` returns for one picture."""

    kind: NDArray[np.int64]
    """[N] of the detections, an index into :data:`KINDS`."""
    gt_idx: NDArray[np.int64]
    """[N], the ground truth that the kind speaks of; -1 for background."""
    missed: NDArray[np.bool_]
    """[G], ground truths that no detection is correct for; difficult ones are never missed."""

    @property
    def total(self) -> int:
        """Errors of both sorts."""
        return int(np.isin(self.kind, (DUPLICATE, BADLY_PLACED, WRONG_CLASS, BACKGROUND)).sum() + self.missed.sum())


def find_errors(
    detections: ImageDetections, truth: GroundTruth, *, iou_threshold: float = 0.5, touching: float = 0.1
) -> PictureErrors:
    """Judge each detection of a picture, best scores first.

    A detection is correct where it reaches `iou_threshold` with a ground truth of its class that is not taken yet; else
    a duplicate, if that one is taken; badly placed, if it only reaches `touching` with one of its class; of the wrong
    class, if it reaches `iou_threshold` with one of another; else background. What finds a difficult ground truth is
    ignored.

    Args:
        detections: by falling score.
        truth: what there is.
        iou_threshold, touching: in [0, 1].

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
        hard = np.where(same[i] & truth.difficult, overlap[i], -1)
        other = np.where(~same[i], overlap[i], -1)
        for judged, values, least in (
            (CORRECT, free, iou_threshold),
            (IGNORED, hard, iou_threshold),
            (DUPLICATE, own, iou_threshold),
            (WRONG_CLASS, other, iou_threshold),
            (BADLY_PLACED, own, touching),
        ):
            best = int(values.argmax())
            if values[best] >= least:
                kind[i], gt_idx[i] = judged, best
                taken[best] |= judged == CORRECT
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
    """What each object was taken for.

    Detections and ground truths of a picture are paired whatever their classes, the largest IoU first.

    Args:
        detections, truths: of each picture.
        num_classes: K.
        score_threshold: detections under it do not count.
        iou_threshold: pairs under it are none.

    Returns:
        [K + 1, K + 1]: row the true class, column the detected one; the last row is background that was taken for an
        object, the last column objects that were missed. Difficult ground truth is left out, with what finds it.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for found, truth in zip(detections, truths, strict=True):
        shown = found.scores >= score_threshold
        labels = found.labels[shown]
        overlap = box_iou(found.boxes[shown], truth.boxes)
        free_row, free_column = np.ones(len(labels), bool), np.ones(len(truth.labels), bool)
        for place in np.argsort(-overlap, axis=None, kind="stable"):
            i, j = divmod(int(place), overlap.shape[1])
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
