"""Where a dispatched operator runs: on the CPU by its kernel, on another device by its formula, or on the CPU for it.

What pays on a device runs there (:mod:`fastssd.ops._formulas`). The rest, sequential by nature, goes to the CPU and
back: nms takes boxes and scores down and brings indices up; matching keeps the anchors in the CPU's memory, takes the
few ground truths down and brings indices up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fastssd import ops
from fastssd.ops import _face as face
from fastssd.ops import _formulas as formulas
from fastssd.ops.boxes import check_size
from fastssd.ops.coding import check_codable
from fastssd.ops.multibox import gradient

_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_EXACT_IN_FLOAT32 = {
    getattr(torch, name)
    for name in ("bool", "uint8", "int8", "uint16", "int16", "float16", "bfloat16", "float32")
    if hasattr(torch, name)
}


def float_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype in which these tensors are computed together (docs/contract.md, Arrays)."""
    for tensor in tensors:
        if tensor.dtype.is_complex:
            raise TypeError(f"expected real numbers, got dtype {tensor.dtype}")
    return torch.float32 if all(tensor.dtype in _EXACT_IN_FLOAT32 for tensor in tensors) else torch.float64


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    dtype = float_dtype(*tensors)
    return tuple(tensor.to(dtype) for tensor in tensors)


# --- on the CPU ------------------------------------------------------------------------------------------------------


def by_kernel(name: str) -> Callable[..., Any]:
    """The operator called `name` on NumPy views of its tensors; what it returns goes to where the first tensor is."""

    def kernel(*arguments: Any) -> Any:
        names = [argument.name for argument in getattr(torch.ops.fastssd, name).default._schema.arguments]
        given = dict(zip(names, arguments, strict=False))  # without the trailing arguments that have their defaults
        device = next(value.device for value in arguments if isinstance(value, Tensor))
        for argument, value in given.items():
            if isinstance(value, Tensor):
                given[argument] = face.to_numpy(argument, on_cpu(value) if argument == "anchors" else value)
        found = getattr(ops, name)(**given)
        if isinstance(found, tuple):
            return tuple(_on_device(array, device) for array in found)
        return _on_device(found, device)

    return kernel


_copies: WeakIdKeyDictionary = WeakIdKeyDictionary()


def on_cpu(tensor: Tensor) -> Tensor:
    """`tensor` in the CPU's memory, kept as long as it lives unchanged: anchors are the same in every step."""
    if tensor.is_cpu:
        return tensor
    if tensor.is_inference():  # has no version that would tell of a change
        return tensor.cpu()
    state = (tensor._version, tensor.data_ptr(), tensor.shape, tensor.dtype)
    known = _copies.get(tensor)
    if known is None or known[0] != state:
        known = _copies[tensor] = (state, tensor.detach().cpu())
    return known[1]


def _on_device(array: Any, device: torch.device) -> Tensor:
    """`array` as a tensor there; indices travel with half their bytes."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.int().to(device).long() if tensor.dtype is torch.int64 else tensor.to(device)


def grid_anchors(
    grid_sizes: Sequence[int],
    scales: Sequence[float],
    scales_per_level: Sequence[int],
    aspect_ratios: Sequence[float],
    ratios_per_level: Sequence[int],
    image_size: Sequence[float] | None = None,
    clip: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    found = ops.grid_anchors(
        list(zip(grid_sizes[::2], grid_sizes[1::2], strict=True)),
        _levels(scales, scales_per_level),
        _levels(aspect_ratios, ratios_per_level),
        image_size=(1.0, 1.0) if image_size is None else check_size("image_size", image_size),
        clip=clip,
        dtype=np.float64 if dtype is torch.float64 else np.float32,
    )
    return torch.from_numpy(found).to(device or "cpu")


def _levels(flat: Sequence[float], lengths: Sequence[int]) -> list[list[float]]:
    ends = np.cumsum(lengths, dtype=int).tolist()
    return [list(flat[end - length : end]) for length, end in zip(lengths, ends, strict=True)]


def multibox_cross_entropy_gradient(scale: Tensor, logits: Tensor, labels: Tensor, selected: Tensor) -> Tensor:
    return _on_device(gradient(face.number("scale", scale), logits, labels, selected), logits.device)


# --- on the device ---------------------------------------------------------------------------------------------------
# Options and shapes are checked before (fastssd/ops/_library.py); of defaults there is no need to.


def _promoted(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *tensors: formula(*promote(*tensors))


def _box_convert(boxes: Tensor, in_fmt: str, out_fmt: str) -> Tensor:
    (boxes,) = promote(boxes)
    return formulas.box_convert(boxes, in_fmt, out_fmt)


def _clip_boxes_to_image(boxes: Tensor, size: Sequence[float]) -> Tensor:
    (boxes,) = promote(boxes)
    return formulas.clip_boxes_to_image(boxes, *size)


def _remove_small_boxes(boxes: Tensor, min_size: float) -> Tensor:
    (boxes,) = promote(boxes)
    return formulas.remove_small_boxes(boxes, min_size)


def _encode_boxes(boxes: Tensor, anchors: Tensor, variances: Sequence[float] = (0.1, 0.2)) -> Tensor:
    boxes, anchors = promote(boxes, anchors)
    for name, rows in (("boxes", boxes), ("anchors", anchors)):
        if not bool(rows.isfinite().all() & (rows[..., 2:] > rows[..., :2]).all()):
            check_codable(name, face.to_numpy(name, rows))  # raises, with the place
    return formulas.encode_boxes(boxes, anchors, *variances)


def _decode_boxes(deltas: Tensor, anchors: Tensor, variances: Sequence[float] = (0.1, 0.2)) -> Tensor:
    deltas, anchors = promote(deltas, anchors)
    return formulas.decode_boxes(deltas, anchors, *variances)


def _assign_targets(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    gt_counts: Tensor | None = None,
    iou_threshold: float = 0.5,
    background_threshold: float | None = None,
    force_match: str = "bipartite",
    variances: Sequence[float] = (0.1, 0.2),
) -> tuple[Tensor, Tensor, Tensor]:
    found = ops.assign_targets(
        face.to_numpy("anchors", on_cpu(anchors)),
        face.to_numpy("gt_boxes", gt_boxes),
        face.to_numpy("gt_labels", gt_labels),
        iou_threshold=iou_threshold,
        background_threshold=background_threshold,
        force_match=force_match,
        gt_counts=None if gt_counts is None else face.to_numpy("gt_counts", gt_counts),
        variances=(variances[0], variances[1]),
    )
    gt_idx = _on_device(found.gt_idx, anchors.device)  # 4 bytes an anchor go up; labels and deltas would be 24 more
    anchors, gt_boxes = promote(anchors, gt_boxes.to(anchors.device))
    labels, deltas = formulas.gather_targets(
        anchors, gt_boxes, gt_labels.to(anchors.device, torch.int64), gt_idx, *variances
    )
    return labels, deltas, gt_idx


def _mine_hard_negatives(loss: Tensor, positive: Tensor, neg_pos_ratio: float = 3.0, min_negatives: int = 0) -> Tensor:
    (loss,) = promote(loss)
    return formulas.mine_hard_negatives(loss, positive, neg_pos_ratio, min_negatives)


def _multibox_cross_entropy(
    logits: Tensor, labels: Tensor, neg_pos_ratio: float = 3.0, min_negatives: int = 0
) -> tuple[Tensor, Tensor]:
    classes = _classes(labels, logits.shape[-1])
    (logits,) = promote(logits)
    return formulas.multibox_cross_entropy(logits, classes, neg_pos_ratio, min_negatives)


def _classes(labels: Tensor, columns: int) -> Tensor:
    """int64 labels, checked."""
    classes = labels.long()
    lowest = 0 if labels.dtype not in _SIGNED else -1  # what is too large for int64 is negative now
    wrong = (classes < lowest) | (classes >= columns)
    if bool(wrong.any()):
        given = face.to_numpy("labels", labels)
        face.check_rows("labels", face.to_numpy("labels", wrong), given, f"is not in [-1, {columns - 1}]")
    return classes


def _multibox_cross_entropy_gradient(scale: Tensor, logits: Tensor, labels: Tensor, selected: Tensor) -> Tensor:
    classes = _classes(labels, logits.shape[-1])
    (logits,) = promote(logits)
    return formulas.multibox_cross_entropy_gradient(scale, logits, classes, selected)


def _postprocess_detections(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    topk: int | None = 400,
    max_detections: int = 200,
    clip: Sequence[float] | None = None,
    activation: str = "softmax",
    variances: Sequence[float] = (0.1, 0.2),
) -> tuple[Tensor, ...]:
    logits, deltas, anchors = promote(logits, deltas, anchors)
    one = logits.ndim == 2
    found = formulas.postprocess_detections(
        logits[None] if one else logits,
        deltas[None] if one else deltas,
        anchors,
        score_threshold,
        iou_threshold,
        anchors.shape[0] if topk is None else topk,
        max_detections,
        None if clip is None else (clip[0], clip[1]),
        activation,
        (variances[0], variances[1]),
    )
    return tuple(each[0] for each in found) if one else found


ON_CPU: dict[str, Callable[..., Any]] = {
    "grid_anchors": grid_anchors,
    "multibox_cross_entropy_gradient": multibox_cross_entropy_gradient,
}
"""Operators whose face is not their kernel's; all others run by their face."""

ON_DEVICE: dict[str, Callable[..., Any]] = {
    "box_area": _promoted(formulas.box_area),
    "box_convert": _box_convert,
    "clip_boxes_to_image": _clip_boxes_to_image,
    "remove_small_boxes": _remove_small_boxes,
    "box_iou": _promoted(formulas.box_iou),
    "generalized_box_iou": _promoted(formulas.generalized_box_iou),
    "distance_box_iou": _promoted(formulas.distance_box_iou),
    "complete_box_iou": _promoted(formulas.complete_box_iou),
    "paired_box_iou": _promoted(formulas.paired_box_iou),
    "encode_boxes": _encode_boxes,
    "decode_boxes": _decode_boxes,
    "assign_targets": _assign_targets,
    "mine_hard_negatives": _mine_hard_negatives,
    "multibox_cross_entropy": _multibox_cross_entropy,
    "multibox_cross_entropy_gradient": _multibox_cross_entropy_gradient,
    "postprocess_detections": _postprocess_detections,
}
"""What runs on the device. The others move: match_anchors, nms, batched_nms, soft_nms."""
