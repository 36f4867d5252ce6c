"""mmcv's NMS operators on our kernels: nms, soft_nms, batched_nms, nms_match."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastssd import ops
from fastssd.compat.mmdet._greedy import greedy, suppression_with_offset
from fastssd.compat.mmdet._soft_nms import soft_input, soften
from fastssd.compat.mmdet.overlaps import check_offset

Boxes = Tensor | NDArray[Any]  # the results are of the same kind


def nms(
    boxes: Boxes,
    scores: Boxes,
    iou_threshold: float | None = None,
    offset: int = 0,
    score_threshold: float = 0,
    max_num: int = -1,
    *,
    iou_thr: float | None = None,
) -> tuple[Any, Any]:
    """Keep the best box, delete what overlaps it too much, repeat.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N].
        iou_threshold: a box is deleted where its IoU with a kept one is greater, in the boxes' dtype.
        offset: 0, or 1 where a box ends after its last pixel.
        score_threshold: if positive, only boxes with a greater score take part.
        max_num: if positive, how many are returned at most.
        iou_thr: mmcv's old name of `iou_threshold`.

    Returns:
        (dets, keep): [K, 5] the kept boxes with their scores, and int64 [K] their indices, by descending score.

    Raises:
        TypeError, ValueError: wrong shapes, lengths, threshold or offset.

    Source:
        ``mmcv.ops.nms``, on the CPU.
    """
    flat, values, is_numpy = _tensors(boxes, scores)
    check_offset(offset)
    threshold = _one_of(iou_threshold, iou_thr)
    places = None
    picked, ranked = flat.detach(), values.detach()
    if score_threshold > 0:
        places = (ranked > score_threshold).nonzero()[:, 0]
        picked, ranked = picked[places], ranked[places]
    keep = _hard(picked, ranked, threshold, offset)
    if max_num > 0:
        keep = keep[:max_num]
    if places is not None:
        keep = places[keep]
    return _results(torch.cat([flat[keep], values[keep][:, None]], 1), keep, is_numpy)


def soft_nms(
    boxes: Boxes,
    scores: Boxes,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
    offset: int = 0,
    *,
    iou_thr: float | None = None,
) -> tuple[Any, Any]:
    """NMS that lowers the score of what overlaps instead of deleting it.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N].
        iou_threshold: for ``"linear"`` and ``"naive"``, reached by what is lowered.
        sigma: for ``"gaussian"``.
        min_score: a box is dropped once its score is under this; the very first one is returned at any score.
        method: ``"linear"``: scores are multiplied by ``1 - iou``; ``"gaussian"``: by ``exp(-iou**2 / sigma)``;
            ``"naive"``: by 0.
        offset: 0, or 1 where a box ends after its last pixel.
        iou_thr: mmcv's old name of `iou_threshold`.

    Returns:
        (dets, keep): [K, 5] boxes with their lowered scores and int64 [K] their indices, in the order in which they
        were taken.

    Raises:
        TypeError, ValueError: wrong shapes, lengths, method or offset.

    Source:
        ``mmcv.ops.soft_nms``; Soft-NMS, arXiv:1704.04503.
    """
    flat, values, is_numpy = _tensors(boxes, scores)
    array, numbers = soft_input(flat, values)
    threshold = iou_threshold if iou_thr is None else iou_thr
    taken, lowered = soften(array, numbers, threshold, sigma, min_score, method, offset)
    keep = torch.from_numpy(taken).to(flat.device)
    dets = torch.cat([flat.detach()[keep], torch.from_numpy(lowered).to(flat)[:, None]], 1)
    return _results(dets, keep, is_numpy)


def batched_nms(
    boxes: Boxes, scores: Boxes, idxs: Boxes, nms_cfg: Mapping[str, Any] | None, class_agnostic: bool = False
) -> tuple[Any, Any]:
    """NMS within each class, of a kind that a config names.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N].
        idxs: integers [N], the class of each box.
        nms_cfg: ``type`` (``"nms"``, the default, ``"soft_nms"`` or a function like them), their arguments,
            ``max_num``, ``class_agnostic`` and ``split_thr``; None sorts by score and deletes nothing.
        class_agnostic: boxes of different classes delete each other too.

    Returns:
        (dets, keep): [K, 5] boxes with their scores and int64 [K] their indices, by descending score.

    Raises:
        TypeError, ValueError: wrong shapes, lengths or options; a ``type`` that is neither of the two nor a function.

    Source:
        ``mmcv.ops.batched_nms``. Per class at any coordinates, where mmcv shifts classes apart and loses bits of
        float32 by it; class-agnostic at any number of boxes, where mmcv goes class by class from ``split_thr`` on.
    """
    flat, values, is_numpy = _tensors(boxes, scores)
    if nms_cfg is None:
        ranked, keep = values.sort(descending=True, stable=True)
        return _results(torch.cat([flat[keep], ranked[:, None]], 1), keep, is_numpy)
    options = dict(nms_cfg)
    agnostic = options.pop("class_agnostic", class_agnostic)
    kind = options.pop("type", "nms")
    is_split = len(flat) >= options.pop("split_thr", 10000)
    groups = torch.as_tensor(idxs, device=flat.device)
    if groups.shape != values.shape:
        raise ValueError(f"idxs: expected shape {list(values.shape)}, one for each box, got {list(groups.shape)}")
    if agnostic:
        groups = torch.zeros_like(groups)
    if kind in ("nms", nms) and not options.get("offset", 0):
        options["iou_threshold"] = _one_of(options.pop("iou_threshold", None), options.pop("iou_thr", None))
        return _results(*_batched_hard(flat, values, groups, **options), is_numpy)

    function = {"nms": nms, "soft_nms": soft_nms}.get(kind) if isinstance(kind, str) else kind
    if not callable(function):
        raise ValueError(f"nms_cfg['type']: expected 'nms', 'soft_nms' or a function, got {kind!r}")
    most = options.pop("max_num", -1)
    if function is soft_nms:
        run = _soft_of(flat, values, options)
    else:

        def run(members: Tensor) -> tuple[Tensor, Tensor]:
            dets, keep = function(flat[members], values[members], **options)
            return members[keep], dets[:, -1]

    keep, lowered = _class_by_class(run, values, groups)
    if function is soft_nms and not is_split and len(keep) > 0:
        # Each class returns its first box at any score; all classes together return one.
        good = lowered >= options.get("min_score", 1e-3)
        good[0] = True
        keep, lowered = keep[good], lowered[good]
    if most > 0:
        keep, lowered = keep[:most], lowered[:most]
    return _results(torch.cat([flat[keep], lowered[:, None]], 1), keep, is_numpy)


def nms_match(dets: Boxes, iou_threshold: float) -> list[Any]:
    """NMS that returns for each kept box the ones that it deleted.

    Args:
        dets: [N, 5] xyxy and score.
        iou_threshold: a box is deleted where its IoU with a kept one is at least this.

    Returns:
        For each kept box, by descending score, int64 indices: its own, then those that it deleted, by descending score.

    Raises:
        ValueError: wrong shape.

    Source:
        ``mmcv.ops.nms_match``.
    """
    table = torch.as_tensor(dets).detach()
    if len(table) == 0:
        return []
    if table.dim() != 2 or table.shape[1] != 5:
        raise ValueError(f"dets: expected shape [N, 5], got {list(table.shape)}")
    boxes, order = _by_score(table[:, :4], table[:, 4])
    threshold = boxes.dtype.type(iou_threshold)
    owner = np.arange(len(boxes))  # by rank: the rank of the box that deleted it, or its own
    kept = greedy(boxes, lambda rows, columns: ops.box_iou(rows, columns) >= threshold, owner)
    grouped = order[owner.argsort(kind="stable")]
    sizes = np.bincount(owner)[kept]
    if isinstance(dets, np.ndarray):
        return np.split(grouped, np.cumsum(sizes)[:-1])
    return list(torch.from_numpy(grouped).to(table.device).split(sizes.tolist()))


def _hard(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    if offset == 0:
        keep: Tensor = ops.nms(boxes, scores, _for_kernel(iou_threshold, boxes))
        return keep
    ranked, order = _by_score(boxes, scores)
    kept = greedy(ranked, suppression_with_offset(ranked, iou_threshold, offset))
    return torch.from_numpy(order[kept]).to(boxes.device)


def _batched_hard(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    offset: int = 0,
    score_threshold: float = 0,
    max_num: int = -1,
) -> tuple[Tensor, Tensor]:
    picked, ranked, places = boxes.detach(), scores.detach(), None
    if score_threshold > 0:
        places = (ranked > score_threshold).nonzero()[:, 0]
        picked, ranked, groups = picked[places], ranked[places], groups[places]
    keep: Tensor = ops.batched_nms(picked, ranked, groups, _for_kernel(iou_threshold, boxes))
    if max_num > 0:
        keep = keep[:max_num]
    if places is not None:
        keep = places[keep]
    return torch.cat([boxes[keep], scores[keep][:, None]], 1), keep


def _class_by_class(
    run: Callable[[Tensor], tuple[Tensor, Tensor]], scores: Tensor, groups: Tensor
) -> tuple[Tensor, Tensor]:
    """The boxes that `run` keeps of each class, given their indices, and their scores; by descending score."""
    keeps, lowered = [groups.new_empty(0, dtype=torch.int64)], [scores.new_empty(0)]
    for members in groups.argsort(stable=True).split(groups.unique(return_counts=True)[1].tolist()):
        kept, left = run(members)
        keeps.append(kept)
        lowered.append(left)
    ranked, order = torch.cat(lowered).sort(descending=True, stable=True)
    return torch.cat(keeps)[order], ranked


def _soft_of(boxes: Tensor, scores: Tensor, options: dict[str, Any]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """:func:`soft_nms` for one class after the other: what it checks is checked once."""
    array, numbers = soft_input(boxes, scores)
    named = {"iou_threshold" if name == "iou_thr" else name: value for name, value in options.items()}

    def run(members: Tensor) -> tuple[Tensor, Tensor]:
        places = members.cpu().numpy()
        taken, lowered = soften(array[places], numbers[places], **named)
        return torch.from_numpy(places[taken]).to(boxes.device), torch.from_numpy(lowered).to(scores)

    return run


def _by_score(boxes: Tensor, scores: Tensor) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The boxes by descending score, in a dtype of the kernels, and the place of each."""
    order = scores.detach().argsort(descending=True, stable=True).cpu()
    array = boxes.detach().cpu()[order]
    return (array if array.dtype == torch.float64 else array.float()).contiguous().numpy(), order.numpy()


def _tensors(boxes: Boxes, scores: Boxes) -> tuple[Tensor, Tensor, bool]:
    flat, values = (x if isinstance(x, Tensor) else torch.as_tensor(x) for x in (boxes, scores))
    if flat.dim() != 2 or flat.shape[1] != 4:
        raise ValueError(f"boxes: expected shape [N, 4], got {list(flat.shape)}")
    if values.shape != flat.shape[:1]:
        raise ValueError(f"scores: expected shape [{len(flat)}], one for each box, got {list(values.shape)}")
    return flat, values, isinstance(boxes, np.ndarray)


def _results(dets: Tensor, keep: Tensor, is_numpy: bool) -> tuple[Any, Any]:
    return (dets.detach().cpu().numpy(), keep.cpu().numpy()) if is_numpy else (dets, keep)


def _one_of(iou_threshold: float | None, iou_thr: float | None) -> float:
    given = [value for value in (iou_threshold, iou_thr) if value is not None]
    if len(given) != 1:
        raise TypeError("iou_threshold: expected once, as iou_threshold or under its old name iou_thr")
    return given[0]


def _for_kernel(iou_threshold: float, boxes: Tensor) -> float:
    """The threshold in the precision in which mmcv compares; above 1 nothing is deleted, as at 1."""
    real = np.float64 if boxes.dtype == torch.float64 else np.float32
    return min(float(real(iou_threshold)), 1.0)
