"""Parts that several accelerated models of torchvision use."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import _utils
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator as HostBoxGenerator
from torchvision.models.detection.image_list import ImageList

from fastssd.compat._routes import traced
from fastssd.compat.torchvision.anchors import default_boxes
from fastssd.compat.torchvision.coder import BoxCoder
from fastssd.compat.torchvision.matcher import Matcher, SSDMatcher, match_boxes


def eager_only(fast: type) -> type:
    """The accelerated class, whose methods are torchvision's where they are traced, exported or compiled."""
    for name, method in list(vars(fast).items()):
        if inspect.isfunction(method) and hasattr(fast.__bases__[0], name):
            setattr(fast, name, _or_theirs(method, getattr(fast.__bases__[0], name)))
    return fast


def _or_theirs(ours: Any, theirs: Any) -> Any:
    @functools.wraps(ours)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (theirs if traced() else ours)(self, *args, **kwargs)

    return method


@eager_only
class FastAnchorGenerator(AnchorGenerator):  # type: ignore[misc]
    """Anchors that are made once for all images of a batch."""

    def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
        sizes = image_list.image_sizes
        return super().forward(ImageList(image_list.tensors, sizes[:1]), feature_maps) * len(sizes)


@eager_only
class FastDefaultBoxGenerator(HostBoxGenerator):  # type: ignore[misc]
    def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
        return [default_boxes(self, image_list, feature_maps)] * len(image_list.image_sizes)


def matching_rule(matcher: Any) -> str | None:
    """The ``force_match`` of :func:`fastssd.ops.match_anchors` with this matcher's rule; None if it is unknown."""
    if type(matcher) in (_utils.SSDMatcher, SSDMatcher):
        return "best"
    if type(matcher) in (_utils.Matcher, Matcher):
        return "low_quality" if matcher.allow_low_quality_matches else "none"
    return None


def has_boxcoder(model: Any) -> bool:
    return type(model.box_coder) in (_utils.BoxCoder, BoxCoder)


def fractions(*values: float) -> bool:
    return all(0 <= value <= 1 for value in values)


def overrides(model: Any, fast: type, names: Sequence[str]) -> bool:
    """Whether a subclass overrides a method that the accelerated class does not call."""
    return any(getattr(type(model), name) is not getattr(fast, name) for name in names)


def shared(anchors: Sequence[Tensor]) -> Tensor | None:
    """The anchors [A, 4] of every image of the batch; None if they differ or there is no image."""
    return anchors[0] if anchors and all(_same(anchors[0], one) for one in anchors[1:]) else None


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return (a.data_ptr(), a.stride()) == (b.data_ptr(), b.stride()) or torch.equal(a, b)


def match(matcher: Any, anchors: Sequence[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    """int64 [B, A] by a matcher that :func:`matching_rule` knows."""
    rule = matching_rule(matcher)
    assert rule is not None
    limits = (matcher.high_threshold, matcher.low_threshold, rule)
    gt_boxes = [target["boxes"] for target in targets]
    same = shared(anchors)
    if same is not None:
        return match_boxes(same, gt_boxes, *limits)
    return torch.cat([match_boxes(one, [boxes], *limits) for one, boxes in zip(anchors, gt_boxes, strict=True)])


def well_formed(targets: Any) -> bool:
    """Whether the models accept the types and shapes of these targets."""
    return targets is not None and all(
        isinstance(target["boxes"], Tensor) and target["boxes"].ndim == 2 and target["boxes"].shape[-1] == 4
        for target in targets
    )


def check_extent(targets: list[dict[str, Tensor]]) -> None:
    """Raise AssertionError, as the models do, if a ground-truth box has no positive width or height."""
    boxes = torch.cat([target["boxes"] for target in targets])
    bad = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    if bad.any():
        row = int(bad.byte().argmax())
        ends = np.cumsum([len(target["boxes"]) for target in targets])
        raise AssertionError(
            "All bounding boxes should have positive height and width. "
            f"Found invalid box {boxes[row].tolist()} for target at index {int(np.searchsorted(ends, row, 'right'))}."
        )


class Positives:
    """The P matched anchors of a batch, image by image, and their ground-truth boxes.

    Attributes:
        matched: int64 [B, A].
        image, anchor: int64 [P].
        boxes, labels: [P, 4] and [P] of the matched ground-truth box.
        anchors: [P, 4].
    """

    def __init__(
        self,
        targets: list[dict[str, Tensor]],
        anchors: Sequence[Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> None:
        self.matched = matched_idxs if isinstance(matched_idxs, Tensor) else torch.stack(list(matched_idxs))
        self.image, self.anchor = nonzero(self.matched >= 0)
        offsets = torch.tensor([0, *(len(target["boxes"]) for target in targets[:-1])], device=self.matched.device)
        truth = self.matched[self.image, self.anchor] + offsets.cumsum(0)[self.image]
        self.boxes = torch.cat([target["boxes"] for target in targets])[truth]
        self.labels = torch.cat([target["labels"] for target in targets])[truth]
        same = shared(anchors)
        self.anchors = torch.stack(list(anchors))[self.image, self.anchor] if same is None else same[self.anchor]


def nonzero(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both indices of the true entries of a mask [B, A]; NumPy finds them faster than torch."""
    if mask.device.type != "cpu":
        first, second = mask.nonzero(as_tuple=True)
        return first, second
    place = torch.from_numpy(np.flatnonzero(mask.numpy()))
    return place // mask.shape[1], place % mask.shape[1]


def kernel_deltas(coder: Any, deltas: Tensor) -> tuple[tuple[float, float], Tensor]:
    """(variances, deltas) for our kernel, so that it decodes as the coder decodes these deltas [B, A, 4]."""
    wx, wy, ww, wh = coder.weights
    if wx != wy or ww != wh:
        deltas, (wx, ww) = deltas / deltas.new_tensor(coder.weights), (1.0, 1.0)
    limit = coder.bbox_xform_clip * ww
    sizes = deltas[..., 2:]
    if sizes.numel() and sizes.amax() > limit:
        deltas = torch.cat([deltas[..., :2], sizes.clamp(max=limit)], -1)
    return (1 / wx, 1 / ww), deltas


def as_compared(threshold: float, values: Tensor) -> float:
    """`threshold` as torch compares it with a tensor: rounded to the tensor's dtype. Our kernels compare in double."""
    kind = torch.float64 if values.dtype == torch.float64 else torch.float32
    return torch.tensor(threshold, dtype=kind).item()
