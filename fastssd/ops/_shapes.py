"""The outputs of the operators as they are known before they run, and the checks that go before: shapes and dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastssd.ops import _face as face
from fastssd.ops._device import float_dtype

# --- shapes: what is checked before a formula runs or a graph is traced ----------------------------------------------


def check_nothing(*_: Any) -> None:
    pass


def check_integers(name: str, tensor: Tensor) -> None:
    """Raise unless `tensor` holds integers; what holds nothing may have any dtype."""
    if (tensor.dtype.is_floating_point or tensor.dtype in (torch.bool, torch.complex64, torch.complex128)) and any(
        side != 0 for side in tensor.shape
    ):
        raise TypeError(f"{name}: expected integers, got dtype {tensor.dtype}")


def check_mask(name: str, tensor: Tensor) -> None:
    if tensor.dtype is not torch.bool:
        raise TypeError(f"{name}: expected bool, got dtype {tensor.dtype}")


def check_boxes(boxes: Tensor, *_: Any) -> None:
    face.check_shape("boxes", boxes, ("...", 4))


def check_list(boxes: Tensor, *_: Any) -> None:
    face.check_shape("boxes", boxes, ("N", 4))


def check_pairwise(boxes1: Tensor, boxes2: Tensor) -> None:
    face.check_shape("boxes1", boxes1, ("...", "N", 4))
    face.check_shape("boxes2", boxes2, ("...", "M", 4))
    lead1, lead2 = boxes1.shape[:-2], boxes2.shape[:-2]
    try:
        torch.broadcast_shapes(lead1, lead2)
    except RuntimeError:
        raise ValueError(
            f"boxes2: leading dimensions {list(lead2)} do not broadcast with those of boxes1, {list(lead1)}"
        ) from None


def check_paired(boxes1: Tensor, boxes2: Tensor) -> None:
    face.check_shape("boxes1", boxes1, ("...", 4))
    face.check_shape("boxes2", boxes2, boxes1.shape)


def check_encode(boxes: Tensor, anchors: Tensor, *_: Any) -> None:
    face.check_shape("anchors", anchors, ("A", 4))
    face.check_shape("boxes", boxes, ("...", anchors.shape[0], 4))


def check_decode(deltas: Tensor, anchors: Tensor, *_: Any) -> None:
    face.check_shape("anchors", anchors, ("A", 4))
    face.check_shape("deltas", deltas, ("...", anchors.shape[0], 4))


def check_matching(anchors: Tensor, gt_boxes: Tensor, gt_counts: Tensor | None = None, *_: Any) -> None:
    face.check_shape("anchors", anchors, ("A", 4))
    face.check_shape("gt_boxes", gt_boxes, ("G", 4) if gt_boxes.ndim == 2 else ("B", "G", 4))
    if gt_counts is not None:
        if gt_boxes.ndim == 2:
            raise ValueError("gt_counts: only for padded gt_boxes of shape [B, G, 4]")
        check_integers("gt_counts", gt_counts)
        face.check_shape("gt_counts", gt_counts, (gt_boxes.shape[0],))


def check_assigning(
    anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor, gt_counts: Tensor | None = None, *_: Any
) -> None:
    check_matching(anchors, gt_boxes, gt_counts)
    face.check_shape("gt_labels", gt_labels, gt_boxes.shape[:-1])
    check_integers("gt_labels", gt_labels)


def check_mining(loss: Tensor, positive: Tensor, *_: Any) -> None:
    face.check_shape("loss", loss, ("A",) if loss.ndim == 1 else ("B", "A"))
    face.check_shape("positive", positive, loss.shape)
    check_mask("positive", positive)


def check_multibox(logits: Tensor, labels: Tensor, *_: Any) -> None:
    face.check_shape("logits", logits, ("A", "C") if logits.ndim == 2 else ("B", "A", "C"))
    face.check_shape("labels", labels, logits.shape[:-1])
    check_integers("labels", labels)
    if logits.shape[-1] < 1:
        raise ValueError("logits: expected at least one column, the background; got none")


def check_multibox_gradient(scale: Tensor, logits: Tensor, labels: Tensor, selected: Tensor) -> None:
    check_multibox(logits, labels)
    face.check_shape("selected", selected, labels.shape)
    check_mask("selected", selected)


def check_nms(boxes: Tensor, scores: Tensor, *_: Any) -> None:
    face.check_shape("boxes", boxes, ("N", 4))
    face.check_shape("scores", scores, ("N",))
    _check_length("scores", scores, boxes)


def _check_length(name: str, tensor: Tensor, boxes: Tensor) -> None:
    same = tensor.shape[0] == boxes.shape[0]
    if isinstance(same, bool):
        face.check_length(name, tensor, "boxes", boxes.shape[0])
    else:
        torch._check(same)  # lengths that are known when the graph runs


def check_batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, *_: Any) -> None:
    check_nms(boxes, scores)
    face.check_shape("idxs", idxs, ("N",))
    _check_length("idxs", idxs, boxes)
    check_integers("idxs", idxs)


def check_postprocess(logits: Tensor, deltas: Tensor, anchors: Tensor, *_: Any) -> None:
    face.check_shape("anchors", anchors, ("A", 4))
    count = anchors.shape[0]
    face.check_shape("logits", logits, (count, "C") if logits.ndim == 2 else ("B", count, "C"))
    face.check_shape("deltas", deltas, (*logits.shape[:-1], 4))
    if logits.shape[-1] < 1:
        raise ValueError("logits: expected at least one column, the background; got none")


# --- outputs: their shapes and dtypes, known before the operator runs -------------------------------------------------


def _floats(like: Tensor, shape: Sequence[Any], *promoted: Tensor) -> Tensor:
    return like.new_empty(shape, dtype=float_dtype(*(promoted or (like,))))


def _integers(like: Tensor, *shape: Any) -> Tensor:
    return like.new_empty(shape, dtype=torch.int64)


def fake_like(first: Tensor, *others: Any) -> Tensor:
    return _floats(first, first.shape, first, *(other for other in others if isinstance(other, Tensor)))


def fake_scalars(first: Tensor, *others: Tensor) -> Tensor:
    return _floats(first, first.shape[:-1], first, *others)


def fake_pairwise(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    lead = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    return _floats(boxes1, (*lead, boxes1.shape[-2], boxes2.shape[-2]), boxes1, boxes2)


def fake_grid_anchors(
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
    cells = [rows * columns for rows, columns in zip(grid_sizes[::2], grid_sizes[1::2], strict=True)]
    each = [len_s + len_r - 1 for len_s, len_r in zip(scales_per_level, ratios_per_level, strict=True)]
    return torch.empty(
        (sum(count * k for count, k in zip(cells, each, strict=True)), 4), dtype=dtype or torch.float32, device=device
    )


def fake_match_anchors(anchors: Tensor, gt_boxes: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shape = (*gt_boxes.shape[:-2], anchors.shape[0])
    return _integers(anchors, *shape), _floats(anchors, shape, anchors, gt_boxes)


def fake_assign_targets(anchors: Tensor, gt_boxes: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    gt_idx, iou = fake_match_anchors(anchors, gt_boxes)
    return torch.empty_like(gt_idx), iou.new_empty((*iou.shape, 4)), gt_idx


def fake_multibox(logits: Tensor, labels: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _floats(logits, ()), labels.new_empty(labels.shape, dtype=torch.bool)


def fake_mining(loss: Tensor, *_: Any) -> Tensor:
    return loss.new_empty(loss.shape, dtype=torch.bool)


def fake_multibox_gradient(scale: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return _floats(logits, logits.shape)


def fake_kept(boxes: Tensor, *_: Any) -> Tensor:
    return _integers(boxes, torch.library.get_ctx().new_dynamic_size())


def fake_soft_nms(boxes: Tensor, scores: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    keep = fake_kept(boxes)
    return keep, _floats(boxes, keep.shape, boxes, scores)


def fake_postprocess(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    topk: int | None = 400,
    max_detections: int = 200,
    *_: Any,
) -> tuple[Tensor, ...]:
    lead = logits.shape[:-2]
    places = (*lead, max_detections)
    boxes = _floats(logits, (*places, 4), logits, deltas, anchors)
    integers = (_integers(logits, *places), _integers(logits, *places), _integers(logits, *lead))
    return boxes, boxes.new_empty(places), *integers
