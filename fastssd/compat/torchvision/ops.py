"""``torchvision.ops``' box functions: its names, signatures, dtypes and results, on our kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastssd import ops
from fastssd.compat import _routes
from fastssd.ops import nms, remove_small_boxes

__all__ = [
    "batched_nms",
    "box_area",
    "box_convert",
    "box_iou",
    "clip_boxes_to_image",
    "complete_box_iou",
    "distance_box_iou",
    "generalized_box_iou",
    "nms",
    "remove_small_boxes",
]

HOME = "torchvision.ops.boxes"  # where torchvision defines them
_UPRIGHT = ("xyxy", "xywh", "cxcywh")
_ROTATED = ("xywhr", "cxcywhr", "xyxyxyxy")
_EPS = 1e-7


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """NMS within each group of equal `idxs`: int64 [K], the kept boxes by descending score.

    The groups are kept apart whatever the coordinates. torchvision does the same above 1000 boxes; below, it moves the
    groups apart and compares the moved boxes, which loses bits of large coordinates and mixes groups with negative
    ones, so that it may keep other boxes.
    """
    if boxes.numel() == 0:  # of any shape, as there
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    if idxs.is_floating_point() or idxs.dtype == torch.bool:
        idxs = torch.unique(idxs, return_inverse=True)[1]
    kept: Tensor = ops.batched_nms(boxes, scores, idxs, iou_threshold)
    return kept


def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> Tensor:
    """IoU of every box with every other: [..., N, 4] and [..., M, 4] give [..., N, M].

    `fmt` is ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``; the rotated formats go to torchvision itself. Here and in its
    relatives integers give torch's default dtype, and beside floating-point boxes the dtype of those, as there.
    """
    if fmt in _ROTATED:
        return original("box_iou")(boxes1, boxes2, fmt)
    if fmt not in _UPRIGHT:
        raise ValueError(f"fmt: expected one of {_UPRIGHT + _ROTATED}, got {fmt!r}")
    if fmt != "xyxy":
        boxes1, boxes2 = (ops.box_convert(boxes, fmt, "xyxy") for boxes in (boxes1, boxes2))
    return _in_their_dtype(ops.box_iou(boxes1, boxes2), boxes1, boxes2)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalized IoU (arXiv:1902.09630) of every pair: [..., N, M]."""
    return _in_their_dtype(ops.generalized_box_iou(boxes1, boxes2), boxes1, boxes2)


def distance_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = _EPS) -> Tensor:
    """Distance IoU (arXiv:1911.08287, equation 7) of every pair: [..., N, M]."""
    if eps == _EPS:
        return _in_their_dtype(ops.distance_box_iou(boxes1, boxes2), boxes1, boxes2)
    a, b = boxes1[..., :, None, :], boxes2[..., None, :, :]
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    offset = (a[..., :2] + a[..., 2:]) / 2 - (b[..., :2] + b[..., 2:]) / 2
    return box_iou(boxes1, boxes2) - offset.square().sum(-1) / (hull.square().sum(-1) + eps)


def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = _EPS) -> Tensor:
    """Complete IoU (arXiv:1911.08287, equations 8 to 11) of every pair: [..., N, M]."""
    if eps == _EPS:
        return _in_their_dtype(ops.complete_box_iou(boxes1, boxes2), boxes1, boxes2)
    a, b = ((boxes[..., 2:] - boxes[..., :2]).unbind(-1) for boxes in (boxes1, boxes2))
    turn = torch.atan(a[0] / a[1])[..., :, None] - torch.atan(b[0] / b[1])[..., None, :]
    v = 4 / math.pi**2 * turn.square()
    alpha = (v / (1 - box_iou(boxes1, boxes2) + v + eps)).detach()
    return distance_box_iou(boxes1, boxes2, eps) - alpha * v


def box_area(boxes: Tensor, fmt: str = "xyxy") -> Tensor:
    """Area of each box, [..., 4] to [...]; 0 where a box has none (torchvision: the signed product)."""
    if fmt not in _UPRIGHT:
        raise ValueError(f"fmt: expected one of {_UPRIGHT}, got {fmt!r}")
    wide = torch.promote_types(boxes.dtype, torch.float32 if boxes.is_floating_point() else torch.int32)
    if fmt != "xyxy":
        sides = boxes[..., 2:].to(wide)
        return sides[..., 0] * sides[..., 1]
    area: Tensor = ops.box_area(boxes)
    return area.to(wide)


def box_convert(boxes: Tensor, in_fmt: str, out_fmt: str) -> Tensor:
    """Boxes in another format, in their dtype; the rotated formats go to torchvision itself."""
    if in_fmt in _ROTATED and out_fmt in _ROTATED:
        return original("box_convert")(boxes, in_fmt, out_fmt)
    if in_fmt == out_fmt and in_fmt in _UPRIGHT:
        return boxes.clone()
    converted: Tensor = ops.box_convert(boxes, in_fmt, out_fmt)
    if not boxes.is_floating_point() and "cxcywh" in (in_fmt, out_fmt):  # halves of integers
        return converted.to(torch.get_default_dtype())
    return converted.to(boxes.dtype)


def clip_boxes_to_image(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes moved inside an image of this (height, width), in their dtype."""
    clipped: Tensor = ops.clip_boxes_to_image(boxes, size)
    return clipped.to(boxes.dtype)


def _in_their_dtype(result: Any, boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """`result` in torchvision's dtype, for which integers never count; ours computes large integers in float64."""
    floats = [boxes.dtype for boxes in (boxes1, boxes2) if boxes.is_floating_point()]
    if len(floats) == 2:
        return result
    return result.to(torch.promote_types(floats[0], torch.float32) if floats else torch.get_default_dtype())


def original(name: str) -> Any:
    """torchvision's own function, also while it is routed to ours."""
    try:
        return _routes.original(HOME, name)
    except ImportError as error:
        raise ImportError(f"{name} needs torchvision here; install it with: pip install torchvision") from error
