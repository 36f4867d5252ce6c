"""torchvision's one-stage detectors without mining on our kernels: RetinaNet and FCOS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.retinanet import (
    RetinaNet,
    RetinaNetClassificationHead,
    RetinaNetRegressionHead,
)
from torchvision.ops import generalized_box_iou_loss

from fastssd.compat.torchvision import _host as host
from fastssd.compat.torchvision.focal import focal_loss
from fastssd.compat.torchvision.points import match_points
from fastssd.compat.torchvision.selection import above, clip_to_sizes, logit_limit, suppress

Targets = list[dict[str, Tensor]]


@host.eager_only
class FastRetinaNet(RetinaNet):  # type: ignore[misc]
    """RetinaNet with matching and postprocessing of a whole batch."""

    def compute_loss(self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor]) -> Any:
        if host.matching_rule(self.proposal_matcher) is None or not targets:
            return super().compute_loss(targets, head_outputs, anchors)
        matched = host.match(self.proposal_matcher, anchors, targets)
        return self.head.compute_loss(targets, head_outputs, anchors, list(matched))

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        if not host.fractions(self.score_thresh, self.nms_thresh):
            return super().postprocess_detections(head_outputs, anchors, image_shapes)
        limit = logit_limit(self.score_thresh)

        def find(level: int, logits: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor, Tensor], Tensor]]:
            return above(logits, limit), lambda image, anchor, label: logits[image, anchor, label].sigmoid()

        return _detect(self, find, self.box_coder.decode_single, head_outputs, anchors, image_shapes)


@host.eager_only
class FastRetinaNetClassificationHead(RetinaNetClassificationHead):  # type: ignore[misc]
    def compute_loss(self, targets: Targets, head_outputs: dict[str, Tensor], matched_idxs: Sequence[Tensor]) -> Tensor:
        matched = torch.stack(list(matched_idxs))
        image, anchor = host.nonzero(matched >= 0)
        labels = torch.cat([t["labels"][m[m >= 0]] for t, m in zip(targets, matched, strict=True)])
        counts = torch.bincount(image, minlength=len(matched)).tolist()
        weights = [1 / (max(1, count) * len(targets)) for count in counts]
        ignored = host.nonzero(matched == self.BETWEEN_THRESHOLDS)
        return focal_loss(head_outputs["cls_logits"], (image, anchor, labels), ignored, weights)


@host.eager_only
class FastRetinaNetRegressionHead(RetinaNetRegressionHead):  # type: ignore[misc]
    def compute_loss(
        self,
        targets: Targets,
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> Any:
        if self._loss_type != "l1":
            return super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        found = host.Positives(targets, anchors, matched_idxs)
        wanted = self.box_coder.encode_single(found.boxes, found.anchors)
        loss = F.l1_loss(head_outputs["bbox_regression"][found.image, found.anchor], wanted, reduction="none").sum(1)
        weights = 1 / torch.bincount(found.image, minlength=len(targets)).clamp(min=1)
        return (loss * weights[found.image]).sum() / max(1, len(targets))


@host.eager_only
class FastFCOS(FCOS):  # type: ignore[misc]
    """FCOS with matching and postprocessing of a whole batch."""

    def compute_loss(
        self,
        targets: Targets,
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        num_anchors_per_level: list[int],
    ) -> Any:
        same = host.shared(anchors)
        if same is None:
            return super().compute_loss(targets, head_outputs, anchors, num_anchors_per_level)
        gt_boxes = [target["boxes"] for target in targets]
        matched = match_points(same, gt_boxes, num_anchors_per_level, self.center_sampling_radius)
        return self.head.compute_loss(targets, head_outputs, anchors, list(matched))

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        if not host.fractions(self.score_thresh, self.nms_thresh):
            return super().postprocess_detections(head_outputs, anchors, image_shapes)

        def find(level: int, logits: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor, Tensor], Tensor]]:
            centerness = head_outputs["bbox_ctrness"][level]  # [B, A, 1]
            # sqrt(p * q) > t is p > t**2 / q: a limit for the logits of each row.
            share = (self.score_thresh**2 / centerness.detach().float().sigmoid()).clamp(max=1)
            limit = torch.where(share > 1e-30, share.logit() - 1e-3, -torch.inf)

            def scores(image: Tensor, anchor: Tensor, label: Tensor) -> Tensor:
                return (logits[image, anchor, label].sigmoid() * centerness[image, anchor, 0].sigmoid()).sqrt()

            return above(logits, limit), scores

        return _detect(self, find, self.box_coder.decode, head_outputs, anchors, image_shapes)


@host.eager_only
class FastFCOSHead(FCOSHead):  # type: ignore[misc]
    def compute_loss(
        self,
        targets: Targets,
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> Any:
        if type(self.box_coder) is not BoxLinearCoder:
            return super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        logits = head_outputs["cls_logits"]
        found = host.Positives(targets, anchors, matched_idxs)
        at = (found.image, found.anchor)
        count = max(1, len(found.image))
        nothing = found.image[:0]
        loss = focal_loss(logits, (*at, found.labels), (nothing, nothing), [1.0] * len(logits))
        boxes = self.box_coder.decode(head_outputs["bbox_regression"][at], found.anchors)
        box_loss = generalized_box_iou_loss(boxes, found.boxes, reduction="sum")
        sides = self.box_coder.encode(found.anchors, found.boxes)  # [P, 4]: left, top, right, bottom
        ratios = [pair.min(1).values / pair.max(1).values for pair in (sides[:, 0::2], sides[:, 1::2])]
        centerness = F.binary_cross_entropy_with_logits(
            head_outputs["bbox_ctrness"][..., 0][at], (ratios[0] * ratios[1]).sqrt(), reduction="sum"
        )
        return {
            "classification": loss / count,
            "bbox_regression": box_loss / count,
            "bbox_ctrness": centerness / count,
        }


def _detect(
    model: Any,
    find: Callable[[int, Tensor], tuple[Tensor, Callable[[Tensor, Tensor, Tensor], Tensor]]],
    decode: Callable[[Tensor, Tensor], Tensor],
    head_outputs: dict[str, list[Tensor]],
    anchors: list[list[Tensor]],
    image_shapes: list[tuple[int, int]],
) -> list[dict[str, Tensor]]:
    """The best scores of each level of an image, decoded; then NMS over all levels.

    `find` takes a level and its logits [B, A, C]; it returns where scores may pass the threshold, and a function that
    computes them.
    """
    batch = len(image_shapes)
    levels = []
    for level, logits in enumerate(head_outputs["cls_logits"]):
        columns = logits.shape[2]
        places, score = find(level, logits)
        row, label = places // columns, places % columns
        image, anchor = row // logits.shape[1], row % logits.shape[1]
        scores = score(image, anchor, label)
        keep = _best(scores, image, batch, model.score_thresh, model.topk_candidates)
        image, anchor, label, scores = image[keep], anchor[keep], label[keep], scores[keep]
        deltas = head_outputs["bbox_regression"][level][image, anchor]
        priors = host.shared([of_image[level] for of_image in anchors])
        priors = torch.stack([a[level] for a in anchors])[image, anchor] if priors is None else priors[anchor]
        levels.append((image, label, scores, clip_to_sizes(decode(deltas, priors), image, image_shapes)))
    image, label, scores, boxes = (torch.cat(parts) for parts in zip(*levels, strict=True))
    kept = suppress(boxes, scores, label, image, batch, model.nms_thresh, model.detections_per_img)
    return [{"boxes": boxes[k], "scores": scores[k], "labels": label[k]} for k in kept]


def _best(scores: Tensor, image: Tensor, batch: int, threshold: float, topk: int) -> Tensor:
    """The places of the `topk` highest scores of each image above the threshold; `image` [K] ascends."""
    passed = (scores.detach() > threshold).nonzero()[:, 0]
    counts = torch.bincount(image[passed], minlength=batch).tolist()
    if max(counts, default=0) <= topk:
        return passed
    parts = [part[scores[part].topk(min(topk, len(part))).indices] for part in passed.split(counts)]
    return torch.cat(parts)
