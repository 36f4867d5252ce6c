"""Anchor matching: which anchor is responsible for which ground-truth box, alone or together with the targets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd import _checks as checks
from fastssd._checks import Array
from fastssd.backends import FORCE_MATCH, Int, active_backend
from fastssd.ops._operator import operator
from fastssd.ops._results import Matches, Targets


@operator(
    "anchors: float[A, 4], gt_boxes: float[B?, G, 4], gt_counts: int[B] -> gt_idx: int64[B?, A], iou: float[B?, A]",
    result=Matches,
    shortcut=True,
    lists=True,
    vmap="matching",
)
def match_anchors(
    anchors: Array,
    gt_boxes: Array,
    *,
    iou_threshold: float = 0.5,
    background_threshold: float | None = None,
    force_match: str = "bipartite",
    gt_counts: Array | None = None,
) -> Matches:
    """Decide for each anchor whether it is positive, and for which ground-truth box.

    Args:
        anchors: [A, 4] xyxy.
        gt_boxes: xyxy in the anchors' unit; for one image [G, 4]; for a batch a list of B arrays [G_i, 4], or [B, G,
            4] padded.
        iou_threshold: an anchor is positive where its best IoU reaches this.
        background_threshold: an anchor is background where its best IoU is under this, and ignored between the two;
            default the same.
        force_match: how a ground-truth box claims anchors beyond the threshold: ``"bipartite"`` (SSD paper: each owns
            one), ``"best"`` (torchvision), ``"low_quality"`` (detectron2) or ``"none"``. docs/contract.md, Matching.
        gt_counts: int [B], how many rows of a padded `gt_boxes` are real; default all.

    Returns:
        :class:`Matches`, [A] for one image and [B, A] for a batch.

    Raises:
        TypeError, ValueError: wrong shapes, thresholds or option; an anchor or a ground-truth box that is not finite.

    Source:
        SSD, arXiv:1512.02325, section 2.2, "Matching strategy".
    """
    checks.check_form(gt_boxes, None, gt_counts)
    truth = _GroundTruth(anchors, gt_boxes, gt_counts)
    gt_idx, iou = _empty((truth.batch, len(truth.anchors)), (np.int64, 1), (truth.anchors.dtype, 1))
    limits = iou_threshold, iou_threshold if background_threshold is None else background_threshold
    active_backend().match_anchors(
        truth.anchors, truth.boxes, truth.offsets, *limits, FORCE_MATCH[force_match], gt_idx, iou
    )
    return Matches(truth.result(gt_idx), truth.result(iou))


@operator(
    "anchors: float[A, 4], gt_boxes: float[B?, G, 4], gt_labels: int[B?, G], gt_counts: int[B] -> "
    "labels: int64[B?, A], deltas: float[B?, A, 4], gt_idx: int64[B?, A]",
    result=Targets,
    shortcut=True,
    lists=True,
    formula=True,
    vmap="matching",
)
def assign_targets(
    anchors: Array,
    gt_boxes: Array,
    gt_labels: Array,
    *,
    iou_threshold: float = 0.5,
    background_threshold: float | None = None,
    force_match: str = "bipartite",
    gt_counts: Array | None = None,
    variances: tuple[float, float] = (0.1, 0.2),
) -> Targets:
    """Match a whole batch and encode what was matched, in one pass: all that a loss needs of the ground truth.

    Args:
        anchors, gt_boxes, iou_threshold, background_threshold, force_match, gt_counts: as in :func:`match_anchors`.
        gt_labels: integers >= 1 (0 is background), in the form of `gt_boxes`: [G], a list of [G_i], or [B, G].
        variances: as in :func:`~fastssd.ops.encode_boxes`.

    Returns:
        :class:`Targets`, [A, ...] for one image and [B, A, ...] for a batch.

    Raises:
        TypeError, ValueError: as :func:`match_anchors`; also a label under 1, and an anchor or ground-truth box
            without positive extent.

    Source:
        SSD, arXiv:1512.02325, section 2.2.
    """
    checks.check_form(gt_boxes, gt_labels, gt_counts)
    truth = _GroundTruth(anchors, gt_boxes, gt_counts)
    flat_labels = truth.labels(gt_labels)
    checks.check_codable("anchors", truth.anchors)
    truth.check_extent()
    shape = (truth.batch, len(truth.anchors))
    gt_idx, labels, deltas = _empty(shape, (np.int64, 1), (np.int64, 1), (truth.anchors.dtype, 4))
    deltas = deltas.reshape(*shape, 4)
    limits = iou_threshold, iou_threshold if background_threshold is None else background_threshold
    active_backend().assign_targets(
        truth.anchors,
        truth.boxes,
        flat_labels,
        truth.offsets,
        *limits,
        FORCE_MATCH[force_match],
        *variances,
        labels,
        deltas,
        gt_idx,
    )
    return Targets(truth.result(labels), truth.result(deltas), truth.result(gt_idx))


_MOST_SHARED_BYTES = 1 << 24  # as in csrc/bindings/direct/operand.h


def _empty(shape: tuple[int, int], *kinds: tuple[Any, int]) -> list[NDArray[Any]]:
    """Uninitialised outputs of these dtypes and columns, [B, A * columns], side by side in one block of memory.

    Allocators give back several blocks of a few MB in each call, and keep one. The page faults of three fresh outputs
    for 32 images of SSD300 take 3.8 ms, the kernel 0.6 ms. Large outputs are fresh in every call anyway: they lie
    apart, so that keeping one does not keep the memory of all.
    """
    rows, length = shape
    sizes = [rows * length * columns * np.dtype(dtype).itemsize for dtype, columns in kinds]
    if sum(sizes) > _MOST_SHARED_BYTES:
        return [np.empty((rows, length * columns), dtype) for dtype, columns in kinds]
    block = np.empty(sum(sizes), np.uint8)
    return [
        block[end - size : end].view(dtype).reshape(rows, length * columns)
        for (dtype, columns), size, end in zip(kinds, sizes, accumulate(sizes), strict=True)
    ]


def _join(arrays: Sequence[Array], columns: tuple[int, ...]) -> Array | None:
    """Arrays [G_i, *columns] end to end in one step, where they are all of one kind, dtype and device; else None.

    A batch is a list of small arrays, and turning each into a NumPy array costs more than matching does.
    """
    try:
        kinds = {(type(array), array.dtype, getattr(array, "device", None)) for array in arrays}
        if len(kinds) != 1 or not all(array.shape[1:] == columns and array.ndim for array in arrays):
            return None
    except AttributeError:  # not an array
        return None
    if checks.is_tensor(arrays[0]):
        return sys.modules["torch"].cat(arrays)
    return np.concatenate(arrays) if type(arrays[0]) is np.ndarray else None


class _GroundTruth:
    """Anchors and the ground truth of a batch, checked, promoted and laid flat with offsets."""

    def __init__(self, anchors: Array, gt_boxes: Array, gt_counts: Array | None) -> None:
        priors = checks.to_boxes("anchors", anchors)
        checks.check_shape("anchors", priors, ("A", 4))
        self.single = False
        self.listed = isinstance(gt_boxes, (list, tuple))
        if self.listed:
            joined = _join(gt_boxes, (4,))
            if joined is not None:
                images, self.sizes = [checks.to_numpy("gt_boxes", joined)], [boxes.shape[0] for boxes in gt_boxes]
            else:
                images = [checks.to_boxes(f"gt_boxes[{i}]", boxes) for i, boxes in enumerate(gt_boxes)]
                for i, boxes in enumerate(images):
                    checks.check_shape(f"gt_boxes[{i}]", boxes, ("G", 4))
                dtype = checks.float_dtype(priors, *images)  # which may differ from what NumPy joins them in
                images = [boxes.astype(dtype, copy=False) for boxes in images]
                self.sizes = [len(boxes) for boxes in images]
        else:
            array = checks.to_boxes("gt_boxes", gt_boxes)
            self.single = array.ndim == 2
            if self.single:
                checks.check_shape("gt_boxes", array, ("G", 4))
                if gt_counts is not None:
                    raise ValueError("gt_counts: only for padded gt_boxes of shape [B, G, 4]")
                images, self.sizes = [array], [len(array)]
            else:
                checks.check_shape("gt_boxes", array, ("B", "G", 4))
                self.sizes = self._counts(gt_counts, array.shape)
                images = [boxes[:size] for boxes, size in zip(array, self.sizes, strict=True)]
        self.batch = len(self.sizes)
        self.offsets: Int = np.array([0, *accumulate(self.sizes)], np.int64)
        flat = images[0] if len(images) == 1 else np.concatenate(images or [np.empty((0, 4), priors.dtype)])
        self.anchors, self.boxes = checks.promote(priors, flat)
        checks.check_finite("anchors", self.anchors)
        finite = np.isfinite(self.boxes)
        if not finite.all():
            self._check(~finite.all(-1), "is not finite")

    @staticmethod
    def _counts(gt_counts: Array | None, shape: tuple[int, ...]) -> list[int]:
        if gt_counts is None:
            return [shape[1]] * shape[0]
        counts = checks.integers("gt_counts", checks.to_numpy("gt_counts", gt_counts))
        checks.check_shape("gt_counts", counts, (shape[0],))
        if ((counts < 0) | (counts > shape[1])).any():
            raise ValueError(f"gt_counts: expected numbers in [0, {shape[1]}], got {counts.tolist()}")
        return [int(size) for size in counts]

    def labels(self, gt_labels: Array) -> Int:
        """The labels laid flat as the boxes are."""
        joined = _join(gt_labels, ()) if self.listed else None
        if joined is not None and [labels.shape[0] for labels in gt_labels] == self.sizes:
            return self._labelled(checks.integers("gt_labels", checks.to_numpy("gt_labels", joined)))
        if self.listed:
            arrays = [checks.to_numpy(f"gt_labels[{i}]", labels) for i, labels in enumerate(gt_labels)]
        else:
            array = checks.to_numpy("gt_labels", gt_labels)
            checks.check_shape("gt_labels", array, ("G",) if self.single else (self.batch, "G"))
            arrays = [array] if self.single else [row[:size] for row, size in zip(array, self.sizes, strict=True)]
        for i, (array, size) in enumerate(zip(arrays, self.sizes, strict=True)):
            name = "gt_labels" if self.single else f"gt_labels[{i}]"
            if array.shape != (size,):
                raise ValueError(f"{name}: expected shape [{size}], one label for each box, got {list(array.shape)}")
        return self._labelled(
            np.concatenate([checks.integers("gt_labels", array) for array in arrays] or [np.empty(0, np.int64)])
        )

    def _labelled(self, labels: Int) -> Int:
        self._check(labels < 1, "has a label under 1 (0 is background)")
        return labels

    def check_extent(self) -> None:
        """Raise unless every ground-truth box has positive extent."""
        boxes = self.boxes
        self._check(~((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])), "has no positive extent")

    def _check(self, bad: NDArray[np.bool_], what: str) -> None:
        if bad.any():
            row = int(bad.argmax())
            image = int(np.searchsorted(self.offsets, row, side="right")) - 1
            place = f"{row - self.offsets[image]}" if self.single else f"{image}][{row - self.offsets[image]}"
            raise ValueError(f"gt_boxes[{place}] {what}: {self.boxes[row].tolist()}")

    def result(self, array: NDArray[Any]) -> NDArray[Any]:
        """An output without the batch dimension, where there was none."""
        return array[0] if self.single else array
