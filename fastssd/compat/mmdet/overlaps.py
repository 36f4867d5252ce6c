"""Overlaps of boxes under mmdetection's names: IoU, IoF, GIoU, every pair or aligned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastssd import ops

_MODES = ("iou", "iof", "giou")
EPS = 1e-6
_LARGE = 1e18  # no area of such coordinates is infinite


def bbox_overlaps(
    bboxes1: Tensor,
    bboxes2: Tensor,
    mode: str = "iou",
    is_aligned: bool = False,
    eps: float = EPS,
    *,
    offset: int = 0,
) -> Tensor:
    """Overlaps of every box of the first set with every box of the second, or of boxes at the same place.

    Args:
        bboxes1: [..., M, 4] xyxy.
        bboxes2: [..., N, 4] xyxy, the same leading dimensions; with `is_aligned` N = M.
        mode: ``"iou"``, ``"iof"`` (intersection over the area of the first box) or ``"giou"``.
        is_aligned: only boxes at the same place.
        eps: the least value of a union, an area or a hull.
        offset: 0, or 1 where a box ends after its last pixel: sides are ``x2 - x1 + 1``.

    Returns:
        [..., M, N], or [..., M] with `is_aligned`. Differentiable; half precision is computed in half precision.

    Raises:
        ValueError: unknown mode or offset, or shapes that do not fit.

    Source:
        ``mmdet.structures.bbox.bbox_overlaps``; `offset` as in ``mmcv.ops.bbox_overlaps``.
    """
    if mode not in _MODES:
        raise ValueError(f"mode: expected one of {', '.join(map(repr, _MODES))}, got {mode!r}")
    check_offset(offset)
    rows, columns = _count("bboxes1", bboxes1), _count("bboxes2", bboxes2)
    lead = bboxes1.shape[:-2]
    if bboxes2.shape[:-2] != lead:
        raise ValueError(f"bboxes2: expected the leading dimensions {list(lead)}, got {list(bboxes2.shape[:-2])}")
    if is_aligned and rows != columns:
        raise ValueError(f"bboxes2: expected {rows} boxes, as many as bboxes1, got {columns}")
    if rows * columns == 0:
        return bboxes1.new_zeros((*lead, rows) if is_aligned else (*lead, rows, columns))
    if offset == 0 and mode == "iou" and same_as_kernel(bboxes1, bboxes2, eps):
        found: Tensor = (ops.paired_box_iou if is_aligned else ops.box_iou)(bboxes1, bboxes2)
        return found
    if offset == 0 and mode == "giou" and not is_aligned and same_as_kernel(bboxes1, bboxes2, eps, hull=True):
        generalized: Tensor = ops.generalized_box_iou(bboxes1, bboxes2)
        return generalized
    return _formula(bboxes1, bboxes2, mode, is_aligned, eps, offset)


class BboxOverlaps2D:
    """The calculator of overlaps that assigners are configured with.

    Args:
        scale, dtype: with ``dtype="fp16"`` boxes are divided by `scale` and rounded to half precision first.
        offset: as in :func:`bbox_overlaps`.

    Source:
        ``mmdet.models.task_modules.BboxOverlaps2D``.
    """

    def __init__(self, scale: float = 1.0, dtype: str | None = None, *, offset: int = 0) -> None:
        self.scale = scale
        self.dtype = dtype
        self.offset = offset

    def __call__(self, bboxes1: Any, bboxes2: Any, mode: str = "iou", is_aligned: bool = False) -> Tensor:
        """:func:`bbox_overlaps`; boxes may have a score as fifth column, or be mmdet's ``HorizontalBoxes``."""
        boxes1, boxes2 = box_tensor(bboxes1), box_tensor(bboxes2)
        if self.dtype != "fp16":
            return bbox_overlaps(boxes1, boxes2, mode, is_aligned, offset=self.offset)
        half1, half2 = (boxes1 / self.scale).half(), (boxes2 / self.scale).half()
        overlaps = bbox_overlaps(half1, half2, mode, is_aligned, offset=self.offset)
        return overlaps if overlaps.is_cuda else overlaps.float()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(scale={self.scale}, dtype={self.dtype}, offset={self.offset})"


def check_offset(offset: int) -> None:
    """Raise unless it is 0 or 1."""
    if offset not in (0, 1):
        raise ValueError(f"offset: expected 0 or 1, got {offset!r}")


def box_tensor(boxes: Any) -> Tensor:
    """The tensor [..., 4] of boxes that may be wrapped and may carry a score."""
    tensor: Tensor = boxes if isinstance(boxes, Tensor) else boxes.tensor
    return tensor[..., :4]


def same_as_kernel(boxes1: Tensor, boxes2: Tensor, eps: float, hull: bool = False) -> bool:
    """Whether the kernels give exactly mmdet's numbers, so that :func:`_formula` is not needed.

    They do if they compute in the boxes' dtype, no gradient is needed and `eps` has no effect. A union is never
    smaller than either box, rounding included, so it is enough to look at the smaller set; where a box has no area the
    intersection is 0, and so are both results. With `hull`, which counts sides that run backwards, there must be none.
    """
    if boxes1.dtype != boxes2.dtype or boxes1.dtype not in (torch.float32, torch.float64) or not eps > 0:
        return False
    if torch.is_grad_enabled() and (boxes1.requires_grad or boxes2.requires_grad):
        return False
    for boxes in (boxes1, boxes2):
        low, high = boxes.aminmax()
        if not (float(low) > -_LARGE and float(high) < _LARGE):  # mmdet treats NaN and inf differently
            return False
    fewer = boxes1 if boxes1.shape[-2] < boxes2.shape[-2] else boxes2
    area = (fewer[..., 2] - fewer[..., 0]) * (fewer[..., 3] - fewer[..., 1])
    if hull:
        forward = all(bool((boxes[..., 2:] >= boxes[..., :2]).all()) for boxes in (boxes1, boxes2))
        return forward and bool((area >= eps).all())
    return bool(((area >= eps) | (area <= 0)).all())


def _count(name: str, boxes: Tensor) -> int:
    """How many boxes; an empty tensor of any shape is no box."""
    if boxes.numel() == 0 and (boxes.dim() < 2 or boxes.shape[-1] != 4):
        return 0
    if boxes.dim() < 2 or boxes.shape[-1] != 4:
        raise ValueError(f"{name}: expected shape [..., N, 4], got {list(boxes.shape)}")
    return boxes.shape[-2]


def _formula(boxes1: Tensor, boxes2: Tensor, mode: str, is_aligned: bool, eps: float, offset: int) -> Tensor:
    """mmdet's arithmetic in mmdet's order, in torch."""
    first = boxes1.unbind(-1) if is_aligned else boxes1[..., :, None, :].unbind(-1)
    second = boxes2.unbind(-1) if is_aligned else boxes2[..., None, :, :].unbind(-1)

    def area(box: tuple[Tensor, ...]) -> Tensor:
        return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)

    def shared(axis: int) -> Tensor:
        return (torch.min(first[2 + axis], second[2 + axis]) - torch.max(first[axis], second[axis]) + offset).clamp(
            min=0
        )

    def spanned(axis: int) -> Tensor:
        return (torch.max(first[2 + axis], second[2 + axis]) - torch.min(first[axis], second[axis]) + offset).clamp(
            min=0
        )

    overlap = shared(0) * shared(1)
    least = overlap.new_tensor([eps])
    union = area(first) if mode == "iof" else area(first) + area(second) - overlap
    union = torch.max(union, least)
    share = overlap / union
    if mode != "giou":
        return share
    hull = torch.max(spanned(0) * spanned(1), least)
    return share - (hull - union) / hull
