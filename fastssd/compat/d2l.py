"""The box functions of Dive into Deep Learning (d2l.ai, chapter 14.4) on our kernels: names, signatures and results.

Import them in place of the chapter's cells, or call :func:`patch` once, and ``d2l.multibox_target`` and the others of
the package ``d2l`` are these. They take and return torch tensors, on the device they came from.

The results are those of package d2l 1.0.3, element for element, and differentiable where those are. The exceptions
are cases in which the chapter's code is wrong or leaves the answer open:

- A label's anchor is found at any size. The chapter divides indices in float32, which is wrong where anchors times
  ground-truth boxes exceed 2**24, as 2 042 040 anchors (one section earlier) and 9 boxes do.
- No ground-truth box: every anchor is background. The chapter raises.
- More ground-truth boxes than anchors: each anchor has one, the other boxes have none. The chapter's loop
  goes on with a matrix without candidates, and gives anchor 0 to ground-truth box 0.
- Boxes without area have IoU 0. In the chapter two of them give 0/0 = NaN, which wins every argmax.
- Equal scores: the lower index first. In the chapter it depends on the processor's sort.
- In :func:`nms` a box that is not finite, or has a NaN score, is never returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from fastssd import ops

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise ImportError("fastssd.compat.d2l needs torch; install it with: pip install 'fastssd[torch]'") from error

from fastssd.compat._routes import Host, Routes

__all__ = [
    "assign_anchor_to_bbox",
    "box_iou",
    "multibox_detection",
    "multibox_prior",
    "multibox_target",
    "nms",
    "offset_boxes",
    "offset_inverse",
    "patch",
]


def multibox_prior(data: Tensor, sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors around the middle of every pixel of a feature map: all sizes at the first ratio, then the first size at
    the other ratios.

    Args:
        data: [..., H, W]; only its size and device count.
        sizes: scales, as fractions of the image's height.
        ratios: width / height, in pixels.

    Returns:
        float32 [1, H * W * (S + R - 1), 4] xyxy, fractions of the image; row by row, pixel by pixel.
    """
    height, width = data.shape[-2:]
    scale, ratio = torch.tensor(sizes, device=data.device), torch.tensor(ratios, device=data.device)
    root = ratio.sqrt()
    wide = torch.cat([scale * root[0], sizes[0] * root[1:]]) * height / width  # [K], K = S + R - 1
    high = torch.cat([scale / root[0], sizes[0] / root[1:]])  # [K]
    reach = torch.stack([-wide, -high, wide, high], 1) / 2  # [K, 4], from the middle to the corners
    y = (torch.arange(height, device=data.device) + 0.5) * (1.0 / height)
    x = (torch.arange(width, device=data.device) + 0.5) * (1.0 / width)
    middle = torch.empty(height, width, 1, 4, device=data.device)
    middle[..., 0::2] = x[:, None, None]
    middle[..., 1::2] = y[:, None, None, None]
    return (middle + reach).reshape(1, -1, 4)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of every pair: xyxy [N, 4] and [M, 4] to [N, M]."""
    iou: Tensor = ops.box_iou(boxes1, boxes2)
    return iou


def assign_anchor_to_bbox(
    ground_truth: Tensor, anchors: Tensor, device: torch.device | str, iou_threshold: float = 0.5
) -> Tensor:
    """Which ground-truth box each anchor is responsible for.

    The pair with the largest IoU is matched and removed, until every ground-truth box has an anchor. Every other anchor
    takes the ground-truth box that it overlaps most, where their IoU is at least the threshold.

    Args:
        ground_truth: [G, 4] xyxy.
        anchors: [A, 4] xyxy.
        device: of the result.
        iou_threshold: in [0, 1].

    Returns:
        int64 [A]: index of the ground-truth box, -1 for background.

    Raises:
        ValueError: a box or an anchor that is not finite, a threshold outside [0, 1].
    """
    matched: Tensor = _match(anchors, ground_truth, iou_threshold)
    return matched.to(device)


def offset_boxes(anchors: Tensor, assigned_bb: Tensor, eps: float = 1e-6) -> Tensor:
    """What to predict at each anchor for its box: ``10 (c - c_a) / w_a`` and ``5 log(eps + w / w_a)``.

    Args:
        anchors, assigned_bb: [N, 4] xyxy each.
        eps: keeps the logarithm finite for a box without extent.

    Returns:
        [N, 4] offsets (x, y, w, h).
    """
    anchor_middle, anchor_size = _middle_and_size(anchors)
    middle, size = _middle_and_size(assigned_bb)
    return torch.cat([10 * (middle - anchor_middle) / anchor_size, 5 * torch.log(eps + size / anchor_size)], -1)


def multibox_target(anchors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets and classes to learn at every anchor, for a batch, matched in one call.

    Args:
        anchors: [1, A, 4] xyxy.
        labels: [B, G, 5], rows (class, x1, y1, x2, y2), classes from 0. As in the chapter every row is matched, also
            one of class -1 that pads the batch: it takes an anchor, as background, and its offsets count. Batches with
            different numbers of boxes are better served by :class:`fastssd.TargetCollate`.

    Returns:
        (offsets, mask, classes): float [B, A * 4], 0 where an anchor has no box; float32 [B, A * 4] of 0 and 1; int64
        [B, A], the class + 1, 0 for background.

    Raises:
        ValueError: a box or an anchor that is not finite, or a wrong shape.
    """
    anchors = anchors.squeeze(0)
    if labels.ndim != 3 or labels.shape[-1] != 5:
        raise ValueError(f"labels: expected shape [B, G, 5], got {list(labels.shape)}")
    matched = _match(anchors, labels[..., 1:], 0.5)  # [B, A]
    positive = matched >= 0
    image, anchor = positive.nonzero(as_tuple=True)
    row = labels[image, matched[image, anchor]]  # [P, 5]
    dtype = torch.promote_types(anchors.dtype, torch.float32)
    offsets = torch.zeros(*matched.shape, 4, dtype=dtype, device=anchors.device)
    offsets[image, anchor] = offset_boxes(anchors[anchor], row[:, 1:].float())
    mask = positive.float().repeat_interleave(4, 1)
    classes = torch.zeros_like(matched)
    classes[image, anchor] = row[:, 0].long() + 1
    return offsets.flatten(1), mask, classes


def offset_inverse(anchors: Tensor, offset_preds: Tensor) -> Tensor:
    """The boxes of predicted offsets: the inverse of :func:`offset_boxes`, without its `eps`.

    Args:
        anchors: [A, 4] xyxy.
        offset_preds: [..., A, 4].

    Returns:
        [..., A, 4] xyxy.
    """
    anchor_middle, anchor_size = _middle_and_size(anchors)
    middle = offset_preds[..., :2] * anchor_size / 10 + anchor_middle
    half = 0.5 * (torch.exp(offset_preds[..., 2:] / 5) * anchor_size)
    return torch.cat([middle - half, middle + half], -1)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep the box with the highest score, drop what overlaps it by more than the threshold, repeat.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N].
        iou_threshold: in [0, 1].

    Returns:
        int64 [K]: indices of the kept boxes by descending score.
    """
    kept: Tensor = ops.nms(boxes, scores, _as_compared(iou_threshold, boxes))
    return kept


def multibox_detection(
    cls_probs: Tensor,
    offset_preds: Tensor,
    anchors: Tensor,
    nms_threshold: float = 0.5,
    pos_threshold: float = 0.009999999,
) -> Tensor:
    """Detect in a batch: the best class of each anchor, then NMS over all anchors of an image, of any class.

    Args:
        cls_probs: [B, C, A] probabilities, background first.
        offset_preds: [B, A * 4].
        anchors: [1, A, 4] xyxy.
        nms_threshold: in [0, 1].
        pos_threshold: boxes that score less are background.

    Returns:
        [B, A, 6], rows (class, score, x1, y1, x2, y2), classes from 0. First the boxes that NMS keeps, by descending
        score, then the others in the order of the anchors, with class -1. Boxes that score less than `pos_threshold`
        have class -1 too, and 1 - score.

    Raises:
        ValueError: a threshold outside [0, 1], or shapes that do not fit.
    """
    batch, num_anchors = cls_probs.shape[0], cls_probs.shape[2]
    score, label = cls_probs[:, 1:].max(1)  # [B, A]
    boxes = offset_inverse(anchors.squeeze(0), offset_preds.reshape(batch, -1, 4))  # [B, A, 4]
    image = torch.arange(batch, device=boxes.device).repeat_interleave(num_anchors)
    threshold = _as_compared(nms_threshold, boxes)
    kept = ops.batched_nms(boxes.flatten(0, 1), score.flatten(), image, threshold)  # of all images, by descending score
    kept = kept[image[kept].argsort(stable=True)]  # image by image
    dropped = torch.ones_like(image, dtype=torch.bool)
    dropped[kept] = False
    front = torch.arange(num_anchors, device=boxes.device) < image[kept].bincount(minlength=batch)[:, None]  # [B, A]
    order = torch.empty_like(image)
    order[front.flatten()] = kept
    order[~front.flatten()] = dropped.nonzero().flatten()
    score, label, boxes = (part.flatten(0, 1)[order].unflatten(0, (batch, -1)) for part in (score, label, boxes))
    low = score < pos_threshold
    label = label.masked_fill(low | ~front, -1)
    score = torch.where(low, 1 - score, score)
    return torch.cat([label.unsqueeze(-1), score.unsqueeze(-1), boxes], -1)


_HOST = Host(f"{__name__}:_HOST", ["d2l"], {"d2l.torch": [globals()[name] for name in __all__ if name != "patch"]})


def patch(*modules: ModuleType) -> Routes:
    """Route the box functions of the package d2l through this module, so that a notebook of the book runs unchanged.

    ``patch()`` alone is permanent; ``with patch(): ...`` ends with the block, and ``patch().restore()`` ends it too.
    What ours refuse goes to the chapter's own functions.

    Args:
        modules: further modules to route, for what they imported from d2l by name.

    Raises:
        ImportError: the package d2l, or what it imports, is missing.
    """
    return _HOST.patch(modules)


def _match(anchors: Tensor, ground_truth: Tensor, iou_threshold: float) -> Tensor:
    """int64 [A] for one image's [G, 4], [B, A] for [B, G, 4]."""
    found: Tensor = ops.match_anchors(
        anchors.detach(), ground_truth.detach(), iou_threshold=_as_compared(iou_threshold, anchors)
    ).gt_idx
    return found


def _as_compared(threshold: float, values: Tensor) -> float:
    """`threshold` as torch compares it with a tensor: rounded to the tensor's dtype. Our kernels compare in double."""
    return torch.tensor(threshold, dtype=values.dtype).item() if values.is_floating_point() else threshold


def _middle_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """[..., 4] xyxy as centre and size, [..., 2] each."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
