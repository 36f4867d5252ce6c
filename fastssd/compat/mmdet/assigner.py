"""mmdetection's MaxIoUAssigner on our kernels: no matrix of overlaps is made, only blocks of one."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastssd import ops
from fastssd.compat.mmdet.overlaps import EPS, BboxOverlaps2D, box_tensor, same_as_kernel

_ANY_OVERLAP = math.ulp(0.0)  # as a threshold: reached by every IoU but 0
_CELLS = 1 << 18  # overlaps in one block


class AssignResult:
    """Which ground-truth box each prior is responsible for, with the attributes that mmdet's samplers and heads use.

    Args:
        num_gts: how many ground-truth boxes there were.
        gt_inds: int64 [N]: -1 ignored, 0 negative, k + 1 positive for ground truth k.
        max_overlaps: [N], the largest overlap of each prior with any ground-truth box.
        labels: int64 [N], the label of the ground-truth box, -1 where the prior is not positive.

    Source:
        ``mmdet.models.task_modules.AssignResult``.
    """

    def __init__(self, num_gts: int, gt_inds: Tensor, max_overlaps: Tensor, labels: Tensor) -> None:
        self.num_gts = num_gts
        self.gt_inds = gt_inds
        self.max_overlaps = max_overlaps
        self.labels = labels
        self._extra_properties: dict[str, Any] = {}

    @property
    def num_preds(self) -> int:
        """How many priors."""
        return len(self.gt_inds)

    @property
    def info(self) -> dict[str, Any]:
        """Everything in one dictionary."""
        names = ("num_gts", "num_preds", "gt_inds", "max_overlaps", "labels")
        return {name: getattr(self, name) for name in names} | self._extra_properties

    def set_extra_property(self, key: str, value: Any) -> None:
        """Keep a property of your own under a new name."""
        if key in self.info:
            raise ValueError(f"key: {key!r} is taken")
        self._extra_properties[key] = value

    def get_extra_property(self, key: str) -> Any:
        """A property that was set, or None."""
        return self._extra_properties.get(key)

    def add_gt_(self, gt_labels: Tensor) -> None:
        """Insert the ground-truth boxes at the beginning, each assigned to itself."""
        count = len(gt_labels)
        own = torch.arange(1, count + 1, dtype=torch.int64, device=gt_labels.device)
        self.gt_inds = torch.cat([own, self.gt_inds])
        self.max_overlaps = torch.cat([self.max_overlaps.new_ones(count), self.max_overlaps])
        self.labels = torch.cat([gt_labels, self.labels])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_gts={self.num_gts}, num_preds={self.num_preds})"


class MaxIoUAssigner:
    """Gives each prior (anchor, proposal) the ground-truth box that it overlaps most.

    1. Every prior is ignored (-1).
    2. Where its largest overlap lies in the range of `neg_iou_thr` it is negative (0).
    3. Where that overlap reaches `pos_iou_thr` it is positive (k + 1) for its best ground-truth box.
    4. With `match_low_quality` each ground-truth box in turn takes the priors that overlap it most; the last one keeps
       them.

    Args:
        pos_iou_thr: see 3.
        neg_iou_thr: negative under this, or within ``(low, high)``, low included. An int or a list mean the same here;
            in mmdet they leave every prior of step 2 ignored.
        min_pos_iou: in 4, a ground-truth box whose best overlap is under this takes nothing.
        gt_max_assign_all: in 4, all priors that share the largest overlap; else the first of them.
        ignore_iof_thr: priors whose IoF with an ignored region is above this are ignored; no regions where it is <= 0.
        ignore_wrt_candidates: that IoF is over the prior's area, else over the region's.
        match_low_quality: whether step 4 is done.
        gpu_assign_thr: accepted and ignored; the kernels run on the CPU for any number of ground-truth boxes.
        iou_calculator: ``dict(type="BboxOverlaps2D", ...)``, a calculator of your own (callable), or the config of one
            in mmdet's registry. The kernels serve the first without ``dtype`` and `offset`.
        perm_repeat_gt_cfg: ``dict(iou_thr=0.97, perm_range=0.01)``: move repeated ground-truth boxes at random.
        offset: 0, or 1 where a box ends after its last pixel; for the default calculator.

    Source:
        ``mmdet.models.task_modules.MaxIoUAssigner`` of mmdetection 3.
    """

    def __init__(
        self,
        pos_iou_thr: float,
        neg_iou_thr: float | tuple[float, float],
        min_pos_iou: float = 0.0,
        gt_max_assign_all: bool = True,
        ignore_iof_thr: float = -1,
        ignore_wrt_candidates: bool = True,
        match_low_quality: bool = True,
        gpu_assign_thr: float = -1,
        iou_calculator: Any = None,
        perm_repeat_gt_cfg: Mapping[str, float] | None = None,
        *,
        offset: int = 0,
    ) -> None:
        self.pos_iou_thr = pos_iou_thr
        self.neg_iou_thr = neg_iou_thr
        self._negative = _range_of(neg_iou_thr)
        self.min_pos_iou = min_pos_iou
        self.gt_max_assign_all = gt_max_assign_all
        self.ignore_iof_thr = ignore_iof_thr
        self.ignore_wrt_candidates = ignore_wrt_candidates
        self.match_low_quality = match_low_quality
        self.gpu_assign_thr = gpu_assign_thr
        self.iou_calculator = _calculator(iou_calculator, offset)
        self.perm_repeat_gt_cfg = perm_repeat_gt_cfg

    def assign(
        self, pred_instances: Any, gt_instances: Any, gt_instances_ignore: Any = None, **kwargs: Any
    ) -> AssignResult:
        """Assign the ground-truth boxes of one image to its priors.

        Args:
            pred_instances: has ``priors`` [N, 4] xyxy: mmengine's ``InstanceData``, or anything with that attribute.
            gt_instances: has ``bboxes`` [K, 4] and ``labels`` [K].
            gt_instances_ignore: has ``bboxes`` [R, 4], the ignored regions; or None.
            **kwargs: ignored, as in mmdet.

        Returns:
            :class:`AssignResult` on the priors' device.
        """
        priors, truths = pred_instances.priors.detach(), gt_instances.bboxes
        labels = gt_instances.labels
        if self.perm_repeat_gt_cfg is not None and priors.numel() > 0:
            truths = _shake_repeated(box_tensor(truths), self.iou_calculator, self.perm_repeat_gt_cfg)
        ignored = self._ignored(priors, None if gt_instances_ignore is None else gt_instances_ignore.bboxes)
        boxes, truth_boxes = box_tensor(priors), box_tensor(truths).detach()
        if type(self.iou_calculator) is not BboxOverlaps2D or len(truth_boxes) == 0 or len(boxes) == 0:
            overlaps = self.iou_calculator(truths, priors)  # of the user's calculator, or empty
            if ignored is not None:
                overlaps[:, ignored] = -1
            return self.assign_wrt_overlaps(overlaps, labels)
        is_left = ignored is None or not bool(ignored.all())
        if is_left and self._has_kernel and same_as_kernel(truth_boxes, boxes, EPS):
            return self._assign(truth_boxes, boxes, labels, ignored)
        return self._assign_by_blocks(truth_boxes, boxes, labels, ignored)

    def assign_wrt_overlaps(self, overlaps: Tensor, gt_labels: Tensor) -> AssignResult:
        """Assign by a matrix of overlaps.

        Args:
            overlaps: [K, N], K ground-truth boxes and N priors.
            gt_labels: int64 [K].

        Returns:
            :class:`AssignResult`.
        """
        number, width = overlaps.shape
        if number == 0 or width == 0:
            return _nothing(number, width, overlaps)
        best, best_gt = overlaps.max(dim=0)
        taken = None
        if self.match_low_quality:
            most, first = overlaps.max(dim=1)
            slices = _slices(number, width, 8 * _CELLS)
            taken = self._taken(most, first, ((part, overlaps[:, part]) for part in slices), width)
        return self._result(number, best, best_gt, taken, gt_labels)

    @property
    def _has_kernel(self) -> bool:
        calculator = self.iou_calculator
        return type(calculator) is BboxOverlaps2D and calculator.dtype != "fp16" and calculator.offset == 0

    def _assign(self, truths: Tensor, priors: Tensor, labels: Tensor, ignored: Tensor | None) -> AssignResult:
        best_gt, best = ops.match_anchors(priors, truths, iou_threshold=_ANY_OVERLAP, force_match="none")
        taken = None
        if ignored is not None and bool(ignored.any()):
            best.masked_fill_(ignored, -1)
            best_gt.masked_fill_(ignored, 0)
            if self.match_low_quality:
                rest = ~ignored
                taken = torch.zeros_like(best_gt)
                taken[rest] = self._taken_by_kernel(truths, priors[rest])
        elif self.match_low_quality:
            taken = self._taken_by_kernel(truths, priors)
        return self._result(len(truths), best, best_gt.clamp_(min=0), taken, labels)

    def _assign_by_blocks(self, truths: Tensor, priors: Tensor, labels: Tensor, ignored: Tensor | None) -> AssignResult:
        """For options and boxes for which the kernels differ from mmdet."""
        slices = list(_slices(len(truths), len(priors)))

        def blocks() -> Iterator[tuple[slice, Tensor]]:
            for part in slices:
                overlaps = self.iou_calculator(truths, priors[part])
                if ignored is not None:
                    overlaps[:, ignored[part]] = -1
                yield part, overlaps

        columns, rows, kept = [], [], []
        for part, overlaps in blocks():
            columns.append(overlaps.max(dim=0))
            most, first = overlaps.max(dim=1)
            rows.append((most, first + part.start))
            kept = [(part, overlaps)]
        best, best_gt = (torch.cat(parts) for parts in zip(*columns, strict=True))
        taken = None
        if self.match_low_quality:
            of_blocks, places = (torch.stack(parts) for parts in zip(*rows, strict=True))  # [blocks, K] each
            most, block = of_blocks.max(dim=0)
            first = places.gather(0, block[None])[0]
            taken = self._taken(most, first, kept if len(slices) == 1 else blocks(), len(priors))
        return self._result(len(truths), best, best_gt, taken, labels)

    def _taken_by_kernel(self, truths: Tensor, priors: Tensor) -> Tensor:
        """:meth:`_taken` of overlaps that are never made."""
        # Only priors that are the best of some ground-truth box; at threshold 1 the kernel finds just those.
        places = _bests(priors, truths)
        if len(truths) * len(places) <= _CELLS:
            overlaps = ops.box_iou(truths, priors[places])
            most, first = overlaps.max(dim=1)
            taken = torch.zeros(len(priors), dtype=torch.int64, device=priors.device)
            return taken.index_copy_(0, places, self._taken(most, first, [(slice(None), overlaps)], len(places)))
        # There are many where a ground-truth box overlaps no prior: then it overlaps all of them equally.
        first, most = ops.match_anchors(truths, priors, iou_threshold=_ANY_OVERLAP, force_match="none")
        if not self.gt_max_assign_all:
            return self._taken(most, first.clamp_(min=0), [], len(priors))
        takes = most >= self.min_pos_iou
        alone = (takes & (most == 0)).nonzero()[:, 0]
        taken = torch.full((len(priors),), int(alone[-1]) + 1 if len(alone) else 0, device=priors.device)
        others = (takes & (most > 0)).nonzero()[:, 0]
        if len(others) > 0:
            truths, most = truths[others], most[others]
            for block in _bests(priors, truths).split(max(_CELLS // len(truths), 1)):
                gt, column = (ops.box_iou(truths, priors[block]) == most[:, None]).nonzero(as_tuple=True)
                taken.scatter_reduce_(0, block[column], others[gt] + 1, "amax")
        return taken

    def _taken(self, most: Tensor, first: Tensor, blocks: Iterable[tuple[slice, Tensor]], width: int) -> Tensor:
        """Step 4: int64 [width], k + 1 where ground truth k takes the prior, 0 where none does.

        Args:
            most, first: [K], the largest overlap of each ground-truth box and the first prior that has it.
            blocks: columns of the overlaps, and these columns [K, C].
            width: how many priors.
        """
        takes = most >= self.min_pos_iou
        taken = torch.zeros(width, dtype=torch.int64, device=most.device)
        # The last ground-truth box keeps a prior: the largest k + 1.
        if not self.gt_max_assign_all:
            gt = takes.nonzero()[:, 0]
            return taken.scatter_reduce_(0, first[gt], gt + 1, "amax")
        for part, overlaps in blocks:
            gt, column = ((overlaps == most[:, None]) & takes[:, None]).nonzero(as_tuple=True)
            taken[part].scatter_reduce_(0, column, gt + 1, "amax")
        return taken

    def _result(self, number: int, best: Tensor, best_gt: Tensor, taken: Tensor | None, labels: Tensor) -> AssignResult:
        assigned = torch.full_like(best_gt, -1)
        low, high = self._negative
        assigned.masked_fill_((best >= low) & (best < high), 0)
        assigned = torch.where(best >= self.pos_iou_thr, best_gt + 1, assigned)
        if taken is not None:
            assigned = torch.where(taken > 0, taken, assigned)
        positive = assigned > 0
        own = torch.full_like(assigned, -1)
        own[positive] = labels[assigned[positive] - 1].to(own.dtype)
        return AssignResult(number, assigned, best, own)

    def _ignored(self, priors: Any, regions: Any) -> Tensor | None:
        """bool [N], or None where nothing can be ignored."""
        if self.ignore_iof_thr <= 0 or regions is None or regions.numel() == 0 or priors.numel() == 0:
            return None
        calculator = self.iou_calculator
        if type(calculator) is not BboxOverlaps2D:
            over = (
                calculator(priors, regions, mode="iof").amax(1)
                if self.ignore_wrt_candidates
                else calculator(regions, priors, mode="iof").amax(0)
            )
            return over > self.ignore_iof_thr
        # Region by region, because the matrix would be large.
        boxes = box_tensor(priors)
        most = boxes.new_full((len(boxes),), -1.0)
        for region in box_tensor(regions).detach().split(1):
            first, second = (boxes, region) if self.ignore_wrt_candidates else (region, boxes)
            most = torch.maximum(most, calculator(first, second, mode="iof").reshape(-1))
        return most > self.ignore_iof_thr


def _slices(number: int, width: int, cells: int = _CELLS) -> Iterator[slice]:
    step = max(cells // number, 1)
    return (slice(start, min(start + step, width)) for start in range(0, width, step))


def _bests(priors: Tensor, truths: Tensor) -> Tensor:
    """int64 [C], ascending: the priors that some ground-truth box overlaps most."""
    found: Tensor = ops.match_anchors(priors, truths, iou_threshold=1.0, force_match="low_quality").gt_idx
    return (found >= 0).nonzero()[:, 0]


def _nothing(number: int, width: int, like: Tensor) -> AssignResult:
    """Without ground-truth boxes all is negative."""
    gt_inds = torch.full((width,), 0 if number == 0 else -1, dtype=torch.int64, device=like.device)
    return AssignResult(number, gt_inds, like.new_zeros((width,)), torch.full_like(gt_inds, -1))


def _range_of(neg_iou_thr: Any) -> tuple[float, float]:
    if isinstance(neg_iou_thr, int | float):
        return 0.0, float(neg_iou_thr)
    if isinstance(neg_iou_thr, tuple | list) and len(neg_iou_thr) == 2:
        return float(neg_iou_thr[0]), float(neg_iou_thr[1])
    raise TypeError(f"neg_iou_thr: expected a number or (low, high), got {neg_iou_thr!r}")


def _calculator(config: Any, offset: int) -> Any:
    if config is None:
        return BboxOverlaps2D(offset=offset)
    if not isinstance(config, Mapping):
        if not callable(config):
            raise TypeError(f"iou_calculator: expected a dict or a callable, got {config!r}")
        return config
    options = dict(config)
    kind = options.pop("type", None)
    if isinstance(kind, str) and kind.rpartition(".")[2] == "BboxOverlaps2D":
        return BboxOverlaps2D(**({"offset": offset} | options))
    try:
        registry = importlib.import_module("mmdet.registry")
    except ImportError as error:
        raise ValueError(f"iou_calculator: {kind!r} is built by mmdetection, which does not import here") from error
    return registry.TASK_UTILS.build(dict(config))


def _shake_repeated(boxes: Tensor, calculator: Any, config: Mapping[str, float]) -> Tensor:
    """A copy of `boxes` in which boxes that occur more than once are moved a little apart, at random."""
    boxes = boxes.clone()
    threshold, spread = config.get("iou_thr", 0.97), config.get("perm_range", 0.01)
    for box in boxes.unique(dim=0):
        same = (boxes == box).sum(-1) == 4
        if int(same.sum()) == 1:
            continue
        original = boxes[same]
        span, least = spread, threshold
        for attempt in range(6):
            factor = original.new_empty(original.shape).uniform_(1 - span, 1 + span)
            shaken = original * factor
            has_extent = bool((shaken[:, 2:] > shaken[:, :2]).all())
            if has_extent and bool((calculator(original.unique(dim=0), shaken) >= least).all()):
                break
            # From the second attempt on mmdet uses its default threshold, and less movement.
            span, least = max(span - attempt * 0.001, 1e-3), 0.97
        boxes[same] = shaken
    return boxes
