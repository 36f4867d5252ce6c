"""The operators as formulas of torch operations: what runs on other devices than the CPU, and the derivatives on all.

Every function computes what the kernel of its name computes, in the same order of operations, on tensors that are
checked and promoted already. None has a Python loop over images or classes. Imported only when torch is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_EPS = 1e-7  # keeps the distance and complete IoU finite where two boxes are one point


# --- boxes -----------------------------------------------------------------------------------------------------------


def _finite(boxes: Tensor) -> Tensor:
    return boxes.isfinite().all(-1)


def _positive(sides: Tensor) -> Tensor:
    return sides.clamp(min=0) + 0.0  # -0 becomes 0, as in the kernels


def _sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return _positive(boxes[..., 2] - boxes[..., 0]), _positive(boxes[..., 3] - boxes[..., 1])


def _area(boxes: Tensor) -> Tensor:
    width, height = _sides(boxes)
    return width * height


def box_area(boxes: Tensor) -> Tensor:
    return _area(boxes).where(_finite(boxes), boxes.new_full((), math.nan))


def box_convert(boxes: Tensor, in_fmt: str, out_fmt: str) -> Tensor:
    a, b, c, d = boxes.unbind(-1)
    if in_fmt == out_fmt:
        return boxes.clone()
    if in_fmt == "xywh":
        c, d = a + c, b + d
    elif in_fmt == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    if out_fmt == "xywh":
        c, d = c - a, d - b
    elif out_fmt == "cxcywh":
        a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    return torch.stack((a, b, c, d), -1)


def clip_boxes_to_image(boxes: Tensor, size: Sequence[float]) -> Tensor:
    height, width = size  # which may be symbolic, so each becomes a tensor by itself
    limits = torch.stack([boxes.new_full((), side) for side in (width, height, width, height)])
    above = boxes.where(~(boxes < 0), boxes.new_zeros(()))  # -0 and NaN stay
    return limits.where(above > limits, above)


def remove_small_boxes(boxes: Tensor, min_size: float) -> Tensor:
    # In double: torch rounds a number to the dtype of the tensor that it is compared with.
    return ((boxes[:, 2:] - boxes[:, :2]).double() >= min_size).all(-1).nonzero()[:, 0]


# --- iou -------------------------------------------------------------------------------------------------------------


def _iou_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    sides = _positive(boxes1[..., 2:].minimum(boxes2[..., 2:]) - boxes1[..., :2].maximum(boxes2[..., :2]))
    inter = sides[..., 0] * sides[..., 1]
    union = _area(boxes1) + _area(boxes2) - inter
    valid = union > 0
    return inter.where(valid, inter.new_zeros(())) / union.where(valid, union.new_ones(())), union


def _hull(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    sides = _positive(boxes1[..., 2:].maximum(boxes2[..., 2:]) - boxes1[..., :2].minimum(boxes2[..., :2]))
    return sides[..., 0], sides[..., 1]


def _iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    return _iou_and_union(boxes1, boxes2)[0]


def _generalized(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    iou, union = _iou_and_union(boxes1, boxes2)
    width, height = _hull(boxes1, boxes2)
    hull = width * height
    valid = (hull > 0) & hull.isfinite()
    return iou - (hull - union).where(valid, hull.new_zeros(())) / hull.where(valid, hull.new_ones(()))


def _distance(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    width, height = _hull(boxes1, boxes2)
    diagonal = width * width + height * height + _EPS
    offset = (boxes1[..., :2] + boxes1[..., 2:]) / 2 - (boxes2[..., :2] + boxes2[..., 2:]) / 2
    dx, dy = offset.unbind(-1)
    penalty = (dx * dx + dy * dy) / diagonal
    return _iou(boxes1, boxes2) - penalty.where(penalty.isfinite(), penalty.new_zeros(()))


def _complete(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    # A side of zero has no aspect ratio; atan2 gives the limit instead of dividing by it.
    turn = torch.atan2(*_sides(boxes1)) - torch.atan2(*_sides(boxes2))
    v = (4 / math.pi**2) * (turn * turn)
    alpha = (v / (1 - _iou(boxes1, boxes2) + v + _EPS)).detach()  # a constant in the gradient, as in the paper
    return _distance(boxes1, boxes2) - alpha * v


def _pairwise(measure: Callable[[Tensor, Tensor], Tensor], not_finite: float) -> Callable[[Tensor, Tensor], Tensor]:
    """`measure` of every pair; boxes that are not finite become a constant first: no value depends on them."""

    def formula(boxes1: Tensor, boxes2: Tensor) -> Tensor:
        finite1, finite2 = _finite(boxes1), _finite(boxes2)
        zero = boxes1.new_zeros(())
        a, b = boxes1.where(finite1[..., None], zero), boxes2.where(finite2[..., None], zero)
        value = measure(a[..., :, None, :], b[..., None, :, :])
        return value.where(finite1[..., :, None] & finite2[..., None, :], value.new_full((), not_finite))

    return formula


box_iou = _pairwise(_iou, 0.0)
generalized_box_iou = _pairwise(_generalized, -1.0)
distance_box_iou = _pairwise(_distance, -1.0)
complete_box_iou = _pairwise(_complete, -1.0)


def paired_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    finite, zero = (_finite(boxes1) & _finite(boxes2))[..., None], boxes1.new_zeros(())
    return _iou(boxes1.where(finite, zero), boxes2.where(finite, zero))


# --- coding ----------------------------------------------------------------------------------------------------------


def encode_boxes(boxes: Tensor, anchors: Tensor, variances: Sequence[float]) -> Tensor:
    center, size = variances
    cxcy, wh = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    acxcy, awh = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]
    return torch.cat(((cxcy - acxcy) / awh / center, (wh / awh).log() / size), -1)


def decode_boxes(deltas: Tensor, anchors: Tensor, variances: Sequence[float]) -> Tensor:
    center, size = variances
    acxcy, awh = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]
    cxcy, half = deltas[..., :2] * center * awh + acxcy, (deltas[..., 2:] * size).exp() * awh / 2
    return torch.cat((cxcy - half, cxcy + half), -1)


# --- targets ---------------------------------------------------------------------------------------------------------


def gather_targets(
    anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor, gt_idx: Tensor, variances: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """labels [..., A] and deltas [..., A, 4]; gt_boxes [..., G, 4], gt_labels [..., G], gt_idx [..., A]."""
    positive, row = gt_idx >= 0, gt_idx.clamp(min=0)
    labels = torch.nn.functional.pad(gt_labels, (0, 1)).gather(-1, row)  # one row more, so that there is one
    matched = torch.nn.functional.pad(gt_boxes, (0, 0, 0, 1)).gather(-2, row[..., None].expand(*row.shape, 4))
    deltas = encode_boxes(matched, anchors, variances)
    return labels.where(positive, gt_idx + 1), deltas.where(positive[..., None], deltas.new_zeros(()))


# --- mining and loss -------------------------------------------------------------------------------------------------


def mine_hard_negatives(loss: Tensor, positive: Tensor, neg_pos_ratio: float, min_negatives: int) -> Tensor:
    positive = positive.view(torch.uint8) != 0  # a bool that is a view of other bytes may hold any
    positives = positive.sum(-1, keepdim=True).double()
    asked = (neg_pos_ratio * positives).where(positives > 0, positives)  # infinity times 0 is NaN
    wanted = asked.ceil().clamp(min=min_negatives)
    negative = ~positive & (loss != -math.inf)
    # One zero and one NaN, of the sign that sorts first: sorts by the bits of a number tell them apart.
    keys = (loss + 0.0).masked_fill(loss.isnan(), math.nan).masked_fill(~negative, -math.inf)
    order = keys.sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(loss.shape[-1], device=loss.device).expand_as(order)
    return negative & (torch.empty_like(order).scatter(-1, order, places) < wanted)


def multibox_losses(logits: Tensor, labels: Tensor, neg_pos_ratio: float, min_negatives: int) -> tuple[Tensor, Tensor]:
    """The loss of each image, double [...], and the selected anchors [..., A]."""
    loss = -logits.log_softmax(-1)  # [..., A, C]
    background = loss[..., 0].detach().masked_fill(labels < 0, -math.inf)
    positive = labels > 0
    selected = positive | mine_hard_negatives(background, positive, neg_pos_ratio, min_negatives)
    of_label = loss.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return of_label.where(selected, of_label.new_zeros(())).double().sum(-1), selected


def multibox_cross_entropy(
    logits: Tensor, labels: Tensor, neg_pos_ratio: float, min_negatives: int
) -> tuple[Tensor, Tensor]:
    losses, selected = multibox_losses(logits, labels, neg_pos_ratio, min_negatives)
    return losses.sum().to(logits.dtype), selected


def multibox_cross_entropy_gradient(scale: Tensor, logits: Tensor, labels: Tensor, selected: Tensor) -> Tensor:
    row = labels.clamp(0, logits.shape[-1] - 1)[..., None]
    selected = selected.view(torch.uint8) != 0  # as in mine_hard_negatives
    gradient = logits.softmax(-1).scatter_add(-1, row, -torch.ones_like(row, dtype=logits.dtype))
    return (gradient * scale.to(logits.dtype)).where(selected[..., None], logits.new_zeros(()))


# --- postprocess -----------------------------------------------------------------------------------------------------

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "none": lambda logits: logits,
}


def postprocess_detections(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    score_threshold: float,
    iou_threshold: float,
    topk: int | None,
    max_detections: int,
    clip: Sequence[float] | None,
    activation: str,
    variances: Sequence[float],
) -> tuple[Tensor, ...]:
    """Only the candidates of NMS leave the device."""
    if logits.ndim == 2:
        options = (score_threshold, iou_threshold, topk, max_detections, clip, activation, variances)
        return tuple(each[0] for each in postprocess_detections(logits[None], deltas[None], anchors, *options))
    topk = anchors.shape[0] if topk is None else topk
    batch, classes = logits.shape[0], logits.shape[2] - 1
    scores = _ACTIVATIONS[activation](logits)[..., 1:]  # [B, A, C - 1]
    boxes = decode_boxes(deltas, anchors, variances)  # [B, A, 4]
    if clip is not None:
        boxes = clip_boxes_to_image(boxes, clip)
    passed = (scores.double() > score_threshold) & _finite(boxes)[..., None]
    image, label, anchor = passed.transpose(1, 2).nonzero(as_tuple=True)  # [S], by image, class, anchor
    score = scores[image, anchor, label]

    group = image * classes + label
    order = _by_group(group, score, batch * classes, topk)
    image, label, anchor, score, group = (column[order] for column in (image, label, anchor, score, group))
    box = boxes[image, anchor]
    keep = torch.ops.fastssd.batched_nms(box, score, group, iou_threshold)
    # NMS orders equal scores by index, which here is class, rank within it: the order that is asked for.
    keep = keep[_by_group(image[keep], score[keep], batch, max_detections)]

    kept = image[keep]
    counts = kept.new_zeros(batch).index_put((kept,), kept.new_ones(()), accumulate=True)
    place = torch.arange(len(kept), device=kept.device) - (counts.cumsum(0) - counts)[kept]

    def padded(values: Tensor, padding: int) -> Tensor:
        return values.new_full((batch, max_detections, *values.shape[1:]), padding).index_put((kept, place), values)

    return (
        padded(box[keep], 0),
        padded(score[keep], 0),
        padded(label[keep] + 1, -1),
        padded(anchor[keep], -1),
        counts,
    )


def _by_group(group: Tensor, score: Tensor, groups: int, most: int) -> Tensor:
    """Indices ordered by group, then descending score, then index; at most `most` of each group."""
    order = score.sort(descending=True, stable=True).indices
    order = order[group[order].sort(stable=True).indices]
    counts = group.new_zeros(groups).index_put((group,), group.new_ones(()), accumulate=True)
    rank = torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[group[order]]
    return order[rank < most]
