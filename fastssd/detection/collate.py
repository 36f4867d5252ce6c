"""Matching in the DataLoader: images and ground truth become a batch that already has its targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from fastssd import _checks as checks
from fastssd.ops import Targets, assign_targets


class TargetBatch(NamedTuple):
    """What a :class:`TargetCollate` makes of B samples.

    When a worker sends a batch, it is pickled with the targets of matched and ignored anchors only. The targets of all
    anchors would be megabytes in three pieces of shared memory, which take as long to send as to compute again.
    """

    images: Tensor
    """[B, ...], the images of the samples, stacked and otherwise unchanged."""
    targets: Targets
    """labels int64 [B, A], deltas [B, A, 4] and gt_idx int64 [B, A]: what a :class:`Criterion` takes."""
    image_ids: list[Any]
    """The ``image_id`` of each sample; its index in the batch if it has none."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> TargetBatch:
        """The batch with its tensors on `device`."""
        targets = Targets(*(part.to(device, non_blocking=non_blocking) for part in self.targets))
        return TargetBatch(self.images.to(device, non_blocking=non_blocking), targets, self.image_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        labels, deltas, gt_idx = self.targets
        index = (gt_idx.flatten() != -1).nonzero().flatten()  # [P]
        packed = index, labels.flatten()[index], deltas.flatten(0, 1)[index], gt_idx.flatten()[index]
        return _unpack, (self.images, self.image_ids, tuple(labels.shape), *(part.cpu().numpy() for part in packed))


class TargetCollate:
    """A ``collate_fn`` that matches: the workers of the DataLoader compute labels and deltas of every anchor, so that
    the training step only mines and sums, on any device.

    It can be pickled, so workers may be forked or spawned. The kernels' index of the anchors is built once in each
    process. A sample is one of

    - ``(image, {"boxes": ..., "labels": ...})``, as for torchvision's detectors,
    - ``(image, boxes, labels)``,
    - ``{"image": ..., "boxes": ..., "labels": ...}``,
    - an object with these attributes, such as :class:`fastssd.data.Sample`; its ``difficult`` boxes are left out.

    An image is a tensor [C, H, W] or a NumPy array [H, W, C]; all images of a batch have the same shape. Boxes are
    [G, 4] xyxy, labels integers [G] from 1; G may be 0.

    Args:
        anchors: [A, 4] xyxy, array or tensor. float64 anchors give float64 deltas, all others float32.
        iou_threshold, background_threshold, force_match, variances: as in :func:`fastssd.ops.assign_targets`.
        boxes_in_pixels: True: the boxes are in pixels of their image, the anchors fractions of it. False: both are in
            the same unit.
        num_classes: number of foreground classes. If it is given, a larger label is an error here, where the image that
            has it is known.

    Raises:
        TypeError, ValueError: anchors or options that :func:`fastssd.ops.assign_targets` refuses. When called: a sample
            that is none of these, images of different shapes, and a box or label that cannot be learnt. The message
            names the image and the box.

    Example:
        >>> loader = DataLoader(dataset, batch_size=32, num_workers=4, collate_fn=TargetCollate(anchors))
        >>> for images, targets, _ in loader: loss = criterion(*model(images), targets).total
    """

    def __init__(
        self,
        anchors: Any,
        *,
        iou_threshold: float = 0.5,
        background_threshold: float | None = None,
        force_match: str = "bipartite",
        variances: tuple[float, float] = (0.1, 0.2),
        boxes_in_pixels: bool = False,
        num_classes: int | None = None,
    ) -> None:
        self.anchors: NDArray[Any] = np.array(*checks.promote(checks.to_numpy("anchors", anchors)))
        self.options: dict[str, Any] = {
            "iou_threshold": iou_threshold,
            "background_threshold": background_threshold,
            "force_match": force_match,
            "variances": variances,
        }
        self.boxes_in_pixels = boxes_in_pixels
        self.num_classes = None if num_classes is None else checks.count("num_classes", num_classes, 1)
        # Bad arguments raise here and not in a worker; and forked workers inherit the index of the anchors.
        assign_targets(self.anchors, np.empty((0, 4), np.float32), np.empty(0, np.int64), **self.options)

    def __call__(self, samples: Sequence[Any]) -> TargetBatch:
        images: list[Any] = []
        all_boxes, all_labels, ids = [], [], []
        for index, sample in enumerate(samples):
            image, boxes, labels, image_id = _parts(index, sample)
            where = f"image {index} of the batch" + ("" if image_id is None else f" ({image_id})")
            _check_image(where, image, images[0] if images else image)
            boxes, labels = _boxes_and_labels(where, boxes, labels, self.anchors.dtype)
            difficult = getattr(sample, "difficult", None)
            if difficult is not None:
                keep = ~checks.to_numpy(f"{where}: difficult", difficult).astype(bool)
                boxes, labels = boxes[keep], labels[keep]
            self._check_learnable(where, boxes, labels)
            if self.boxes_in_pixels:
                height, width = image.shape[-2:] if isinstance(image, Tensor) else image.shape[:2]
                boxes = boxes / np.array([width, height, width, height], boxes.dtype)
            images.append(image)
            all_boxes.append(boxes)
            all_labels.append(labels)
            ids.append(index if image_id is None else image_id)
        if not images:
            raise ValueError("samples: expected at least one, got none")
        targets = assign_targets(self.anchors, all_boxes, all_labels, **self.options)
        return TargetBatch(_stack(images), Targets(*map(torch.from_numpy, targets)), ids)

    def _check_learnable(self, where: str, boxes: NDArray[Any], labels: NDArray[np.int64]) -> None:
        top = np.iinfo(np.int64).max if self.num_classes is None else self.num_classes
        with np.errstate(invalid="ignore"):  # NaN and infinity are among what this looks for
            wrong = {
                "is not finite": ~np.isfinite(boxes).all(1),
                "has no positive extent": ~(boxes[:, 2:] > boxes[:, :2]).all(1),
                f"has a label outside [1, {'...' if self.num_classes is None else top}]": (labels < 1) | (labels > top),
            }
        for what, rows in wrong.items():
            if rows.any():
                row = int(rows.argmax())
                label = f", label {labels[row]}" if "label" in what else ""
                raise ValueError(f"{where}: box {row} {what}: {boxes[row].tolist()}{label}")


def _unpack(images: Tensor, image_ids: list[Any], shape: tuple[int, int], *packed: NDArray[Any]) -> TargetBatch:
    """The pickled batch again: `packed` is the index [P] of anchors in the flattened batch, and their labels, deltas
    and gt_idx. All other anchors are background."""
    index, labels, deltas, gt_idx = map(torch.from_numpy, packed)
    count = shape[0] * shape[1]
    targets = Targets(
        labels.new_zeros(count).index_copy_(0, index, labels).view(shape),
        deltas.new_zeros(count, 4).index_copy_(0, index, deltas).view(*shape, 4),
        gt_idx.new_full((count,), -1).index_copy_(0, index, gt_idx).view(shape),
    )
    return TargetBatch(images, targets, image_ids)


def _parts(index: int, sample: Any) -> tuple[Any, Any, Any, Any]:
    """Image, boxes, labels and image_id (or None) of the sample at `index` of the batch."""
    if hasattr(sample, "image") and hasattr(sample, "boxes") and hasattr(sample, "labels"):
        return sample.image, sample.boxes, sample.labels, getattr(sample, "image_id", None)
    if isinstance(sample, Mapping):
        sample = (sample.get("image"), sample)
    if isinstance(sample, tuple | list) and len(sample) == 2 and isinstance(sample[1], Mapping):
        image, target = sample
        missing = [name for name in ("boxes", "labels") if name not in target]
        if image is not None and not missing:
            image_id = target.get("image_id")
            return image, target["boxes"], target["labels"], image_id.item() if _scalar(image_id) else image_id
        raise ValueError(f"image {index} of the batch has no {' and no '.join(missing or ['image'])}")
    if isinstance(sample, tuple | list) and len(sample) == 3:
        return *sample, None
    raise TypeError(
        f"image {index} of the batch: expected (image, {{'boxes', 'labels'}}), (image, boxes, labels), a mapping or "
        f"an object with image, boxes and labels, got {type(sample).__name__}"
    )


def _stack(images: list[Any]) -> Tensor:
    if isinstance(images[0], np.ndarray):  # by NumPy: torch refuses flipped arrays and warns of read-only ones
        return torch.from_numpy(np.stack(images))
    stacked: Tensor = default_collate(images)  # in a worker this writes directly into shared memory
    return stacked


def _scalar(value: Any) -> bool:
    """Whether `value` is a tensor of one number, as torchvision's data sets give the image_id."""
    return isinstance(value, Tensor) and value.numel() == 1


def _check_image(where: str, image: Any, first: Any) -> None:
    if not isinstance(image, Tensor | np.ndarray):
        raise TypeError(f"{where}: expected a tensor or an array as image, got {type(image).__name__}")
    if type(image) is not type(first) or image.shape != first.shape or image.dtype != first.dtype:
        got, expected = (f"{type(x).__name__} {x.dtype} {list(x.shape)}" for x in (image, first))
        raise ValueError(f"{where}: got {got}, but the first image of the batch is {expected}; resize in the data set")


def _boxes_and_labels(
    where: str, boxes: Any, labels: Any, dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    layout = getattr(getattr(boxes, "format", None), "name", "XYXY")  # of torchvision's BoundingBoxes
    if layout != "XYXY":
        raise ValueError(f"{where}: boxes: expected the format XYXY, got {layout}")
    array = checks.to_numpy(f"{where}: boxes", boxes)
    if array.size == 0 and array.ndim == 1:  # torch.tensor([]): an image without boxes
        array = array.reshape(0, 4)
    checks.check_shape(f"{where}: boxes", array, ("G", 4))
    classes = checks.integers(f"{where}: labels", checks.to_numpy(f"{where}: labels", labels))
    checks.check_shape(f"{where}: labels", classes, ("G",))
    checks.check_length(f"{where}: labels", classes, "boxes", len(array))
    return array.astype(dtype, copy=False), classes
