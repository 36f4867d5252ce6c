"""Anchor matching: which anchor is responsible for which ground truth, alone or together with the targets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from fastssd.backends import FORCE_MATCH, Int, active_backend, shortcuts
from fastssd.ops import _face as face
from fastssd.ops._face import Array
from fastssd.ops.coding import check_codable


class Matches(NamedTuple):
    """What :func:`match_anchors` returns."""

    gt_idx: Any
    """int64 [A] or [B, A]: >= 0 the ground truth that the anchor is positive for, -1 background, -2 ignored."""
    iou: Any
    """float [A] or [B, A]: IoU with that ground truth, else with the best one, 0 where there is none."""


class Targets(NamedTuple):
    """What :func:`assign_targets` returns."""

    labels: Any
    """int64 [A] or [B, A]: the label of the matched ground truth, 0 background, -1 ignored."""
    deltas: Any
    """float [A, 4] or [B, A, 4]: the matched ground truth encoded against the anchor, 0 where not positive."""
    gt_idx: Any
    """int64 [A] or [B, A]: as in :class:`Matches`."""


def match_anchors(
    anchors: Array,
    gt_boxes: Array,
    *,
    iou_threshold: float = 0.5,
    background_threshold: float | None = None,
    force_match: str = "bipartite",
    gt_counts: Array | None = None,
) -> Matches:
    """Decide for each anchor whether it is positive, and for which ground truth.

    Args:
        anchors: [A, 4] xyxy.
        gt_boxes: xyxy in the anchors' unit; for one picture [G, 4]; for a batch a list of B arrays [G_i, 4], or [B,
            G, 4] padded.
        iou_threshold: an anchor is positive where its best IoU reaches this.
        background_threshold: an anchor is background where its best IoU is under this, and ignored between the two;
            default the same.
        force_match: how a ground truth claims anchors beyond the threshold: ``"bipartite"`` (SSD paper: each owns one),
            ``"best"`` (torchvision), ``"low_quality"`` (detectron2) or ``"none"``. docs/contract.md, Matching.
        gt_counts: int [B], how many rows of a padded `gt_boxes` are real; default all.

    Returns:
        :class:`Matches`, [A] for one picture and [B, A] for a batch.

    Raises:
        TypeError, ValueError: wrong shapes, thresholds or option; an anchor or a ground truth that is not finite.

    Source:
        SSD, arXiv:1512.02325, section 2.2, "Matching strategy".
    """
    # What a shortcut takes needs no dispatching but where torch traces, which shows in the anchors: so the rest, which
    # may be long lists, is looked at later.
    traced = type(anchors) is not ndarray and face.dispatched(anchors)
    if not traced:
        found = shortcuts.match_anchors(anchors, gt_boxes, iou_threshold, background_threshold, force_match, gt_counts)
        if found is not None:
            return Matches(*found)
    if traced or face.dispatched(*_each(gt_boxes), gt_counts):
        found = face.dispatch(
            "call_matching",
            "match_anchors",
            {"anchors": anchors, "gt_boxes": gt_boxes, "gt_counts": gt_counts},
            iou_threshold=iou_threshold,
            background_threshold=background_threshold,
            force_match=force_match,
        )
        return Matches(*found)
    limits = thresholds(iou_threshold, background_threshold)
    force = face.choice("force_match", force_match, FORCE_MATCH)
    check_form(gt_boxes, None, gt_counts)
    truth = _GroundTruth(anchors, gt_boxes, gt_counts)
    gt_idx, iou = _empty((truth.batch, len(truth.anchors)), (np.int64, 1), (truth.anchors.dtype, 1))
    active_backend().match_anchors(truth.anchors, truth.boxes, truth.offsets, *limits, force, gt_idx, iou)
    tracked = (anchors, *truth.given)
    return Matches(truth.give(gt_idx), face.without_gradient("match_anchors", truth.give(iou), *tracked))


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
        :class:`Targets`, [A, ...] for one picture and [B, A, ...] for a batch.

    Raises:
        TypeError, ValueError: as :func:`match_anchors`; also a label under 1, and an anchor or ground truth without
            positive extent.

    Source:
        SSD, arXiv:1512.02325, section 2.2.
    """
    traced = type(anchors) is not ndarray and face.dispatched(anchors)  # as in match_anchors
    if not traced:
        rest = iou_threshold, background_threshold, force_match, gt_counts, variances
        found = shortcuts.assign_targets(anchors, gt_boxes, gt_labels, *rest)
        if found is not None:
            return Targets(*found)
    if traced or face.dispatched(*_each(gt_boxes), *_each(gt_labels), gt_counts):
        found = face.dispatch(
            "call_matching",
            "assign_targets",
            {"anchors": anchors, "gt_boxes": gt_boxes, "gt_labels": gt_labels, "gt_counts": gt_counts},
            iou_threshold=iou_threshold,
            background_threshold=background_threshold,
            force_match=force_match,
            variances=variances,
        )
        return Targets(*found)
    limits = thresholds(iou_threshold, background_threshold)
    force = face.choice("force_match", force_match, FORCE_MATCH)
    center, size = face.check_variances(variances)
    check_form(gt_boxes, gt_labels, gt_counts)
    truth = _GroundTruth(anchors, gt_boxes, gt_counts, gt_labels)
    flat_labels = truth.labels(gt_labels)
    check_codable("anchors", truth.anchors)
    truth.check_extent()
    shape = (truth.batch, len(truth.anchors))
    gt_idx, labels, deltas = _empty(shape, (np.int64, 1), (np.int64, 1), (truth.anchors.dtype, 4))
    deltas = deltas.reshape(*shape, 4)
    active_backend().assign_targets(
        truth.anchors, truth.boxes, flat_labels, truth.offsets, *limits, force, center, size, labels, deltas, gt_idx
    )
    tracked = (anchors, *truth.given)
    return Targets(
        truth.give(labels), face.without_gradient("assign_targets", truth.give(deltas), *tracked), truth.give(gt_idx)
    )


def _each(value: Array) -> Sequence[Array]:
    return value if isinstance(value, list | tuple) else (value,)


def check_form(gt_boxes: Array, gt_labels: Array | None, gt_counts: Array | None) -> bool:
    """Whether ground truth comes in lists.

    Raises:
        ValueError: labels in another form than the boxes, or counts of what has its own lengths.
    """
    listed = isinstance(gt_boxes, list | tuple)
    if listed and gt_counts is not None:
        raise ValueError("gt_counts: only for padded gt_boxes; a list of arrays has its lengths already")
    if gt_labels is not None and (
        listed != isinstance(gt_labels, list | tuple) or (listed and len(gt_labels) != len(gt_boxes))
    ):
        raise ValueError("gt_labels: expected the same form and length as gt_boxes")
    return listed


def thresholds(iou_threshold: Any, background_threshold: Any) -> tuple[float, float]:
    """(positive from, background below), checked.

    Raises:
        TypeError, ValueError: not in [0, 1], or in the wrong order.
    """
    high = face.fraction("iou_threshold", iou_threshold)
    low = high if background_threshold is None else face.fraction("background_threshold", background_threshold)
    if low > high:
        raise ValueError(f"background_threshold: expected at most iou_threshold {high:g}, got {low:g}")
    return high, low


_MOST_SHARED_BYTES = 1 << 24  # as in csrc/bindings/operand.h


def _empty(shape: tuple[int, int], *kinds: tuple[Any, int]) -> list[NDArray[Any]]:
    """Uninitialised outputs of these dtypes and columns, [B, A * columns], side by side in one block of memory.

    Allocators give back several blocks of a few MB in each call, and keep one. The page faults of three fresh outputs
    for 32 images of SSD300 take 3.8 ms, the kernel 0.6 ms. Large outputs are fresh in every call anyway: they lie
    apart, so that who keeps one does not keep the memory of all.
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
    if face.is_tensor(arrays[0]):
        return sys.modules["torch"].cat(arrays)
    return np.concatenate(arrays) if type(arrays[0]) is np.ndarray else None


class _GroundTruth:
    """Anchors and the ground truth of a batch, checked, promoted and laid flat with offsets."""

    def __init__(
        self, anchors: Array, gt_boxes: Array, gt_counts: Array | None, gt_labels: Array | None = None
    ) -> None:
        priors = face.to_boxes("anchors", anchors)
        face.check_shape("anchors", priors, ("A", 4))
        self.one = False
        self.listed = isinstance(gt_boxes, list | tuple)
        self.given: tuple[Array, ...] = tuple(gt_boxes) if self.listed else (gt_boxes,)
        self.examples = (anchors, *self.given, *_each(gt_labels), gt_counts)
        if self.listed:
            joined = _join(self.given, (4,))
            if joined is not None:
                images, self.sizes = [face.to_numpy("gt_boxes", joined)], [boxes.shape[0] for boxes in gt_boxes]
            else:
                images = [face.to_boxes(f"gt_boxes[{i}]", boxes) for i, boxes in enumerate(gt_boxes)]
                for i, boxes in enumerate(images):
                    face.check_shape(f"gt_boxes[{i}]", boxes, ("G", 4))
                dtype = face.float_dtype(priors, *images)  # which may differ from what NumPy joins them in
                images = [boxes.astype(dtype, copy=False) for boxes in images]
                self.sizes = [len(boxes) for boxes in images]
        else:
            array = face.to_boxes("gt_boxes", gt_boxes)
            self.one = array.ndim == 2
            if self.one:
                face.check_shape("gt_boxes", array, ("G", 4))
                if gt_counts is not None:
                    raise ValueError("gt_counts: only for padded gt_boxes of shape [B, G, 4]")
                images, self.sizes = [array], [len(array)]
            else:
                face.check_shape("gt_boxes", array, ("B", "G", 4))
                self.sizes = self._counts(gt_counts, array.shape)
                images = [boxes[:size] for boxes, size in zip(array, self.sizes, strict=True)]
        self.batch = len(self.sizes)
        self.offsets: Int = np.array([0, *accumulate(self.sizes)], np.int64)
        flat = images[0] if len(images) == 1 else np.concatenate(images or [np.empty((0, 4), priors.dtype)])
        self.anchors, self.boxes = face.promote(priors, flat)
        face.check_finite("anchors", self.anchors)
        finite = np.isfinite(self.boxes)
        if not finite.all():
            self._check(~finite.all(-1), "is not finite")

    @staticmethod
    def _counts(gt_counts: Array | None, shape: tuple[int, ...]) -> list[int]:
        if gt_counts is None:
            return [shape[1]] * shape[0]
        counts = face.integers("gt_counts", face.to_numpy("gt_counts", gt_counts))
        face.check_shape("gt_counts", counts, (shape[0],))
        if ((counts < 0) | (counts > shape[1])).any():
            raise ValueError(f"gt_counts: expected numbers in [0, {shape[1]}], got {counts.tolist()}")
        return [int(size) for size in counts]

    def labels(self, gt_labels: Array) -> Int:
        """The labels laid flat as the boxes are."""
        joined = _join(gt_labels, ()) if self.listed else None
        if joined is not None and [labels.shape[0] for labels in gt_labels] == self.sizes:
            return self._labelled(face.integers("gt_labels", face.to_numpy("gt_labels", joined)))
        if self.listed:
            arrays = [face.to_numpy(f"gt_labels[{i}]", labels) for i, labels in enumerate(gt_labels)]
        else:
            array = face.to_numpy("gt_labels", gt_labels)
            face.check_shape("gt_labels", array, ("G",) if self.one else (self.batch, "G"))
            arrays = [array] if self.one else [row[:size] for row, size in zip(array, self.sizes, strict=True)]
        for i, (array, size) in enumerate(zip(arrays, self.sizes, strict=True)):
            name = "gt_labels" if self.one else f"gt_labels[{i}]"
            if array.shape != (size,):
                raise ValueError(f"{name}: expected shape [{size}], one label for each box, got {list(array.shape)}")
        return self._labelled(
            np.concatenate([face.integers("gt_labels", array) for array in arrays] or [np.empty(0, np.int64)])
        )

    def _labelled(self, labels: Int) -> Int:
        self._check(labels < 1, "has a label under 1 (0 is background)")
        return labels

    def check_extent(self) -> None:
        """Raise unless every ground truth has positive extent."""
        boxes = self.boxes
        self._check(~((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])), "has no positive extent")

    def _check(self, bad: NDArray[np.bool_], what: str) -> None:
        if bad.any():
            row = int(bad.argmax())
            image = int(np.searchsorted(self.offsets, row, side="right")) - 1
            place = f"{row - self.offsets[image]}" if self.one else f"{image}][{row - self.offsets[image]}"
            raise ValueError(f"gt_boxes[{place}] {what}: {self.boxes[row].tolist()}")

    def give(self, array: NDArray[Any]) -> Any:
        """A result as the caller's kind of array, without the batch dimension where there was none."""
        return face.like(array[0] if self.one else array, *self.examples)
