"""The two stages of torchvision's Faster, Mask and Keypoint R-CNN on our kernels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers

from fastssd.compat.torchvision import _host as host
from fastssd.compat.torchvision.ops import original
from fastssd.compat.torchvision.selection import above, clip_to_sizes, suppress

Targets = list[dict[str, Tensor]]


@host.eager_only
class FastRegionProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """The proposal network: only candidates for NMS are decoded, only sampled anchors are encoded."""

    def forward(self, images: Any, features: dict[str, Tensor], targets: Targets | None = None) -> Any:
        own = ("filter_proposals", "assign_targets_to_anchors", "compute_loss")
        known = host.has_boxcoder(self) and host.matching_rule(self.proposal_matcher) is not None
        known = known and self.box_similarity in (torchvision.ops.box_iou, original("box_iou"))
        usual = known and host.fractions(self.nms_thresh) and not host.overrides(self, FastRegionProposalNetwork, own)
        if not usual or (self.training and targets is None):
            return super().forward(images, features, targets)
        maps = list(features.values())
        objectness, deltas = self.head(maps)
        anchors = self.anchor_generator(images, maps)
        per_level = [level[0].numel() for level in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)  # [B * A, 1], [B * A, 4]
        boxes = self._propose(objectness.detach(), deltas.detach(), anchors, images.image_sizes, per_level)
        if not self.training:
            return boxes, {}
        assert targets is not None
        return boxes, self._losses(objectness.flatten(), deltas, anchors, targets)

    def _propose(
        self,
        objectness: Tensor,
        deltas: Tensor,
        anchors: list[Tensor],
        image_sizes: list[tuple[int, int]],
        per_level: list[int],
    ) -> list[Tensor]:
        batch = len(anchors)
        objectness = objectness.reshape(batch, -1)  # [B, A]
        top = self._get_top_n_idx(objectness, per_level)  # [B, N]
        image = torch.arange(batch, device=top.device)[:, None].expand_as(top)
        same = host.shared(anchors)
        priors = torch.stack(anchors)[image, top] if same is None else same[top]
        levels = torch.bucketize(top, torch.tensor(per_level, device=top.device).cumsum(0), right=True).flatten()
        boxes = self.box_coder.decode_single(deltas.view(batch, -1, 4)[image, top].view(-1, 4), priors.view(-1, 4))
        image = image.flatten()
        boxes = clip_to_sizes(boxes, image, image_sizes)
        scores = objectness.gather(1, top).flatten().sigmoid()
        keep = ((boxes[:, 2:] - boxes[:, :2]) >= self.min_size).all(1) & (scores >= self.score_thresh)
        boxes, scores, levels, image = boxes[keep], scores[keep], levels[keep], image[keep]
        kept = suppress(boxes, scores, levels, image, batch, self.nms_thresh, self.post_nms_top_n())
        return [boxes[places] for places in kept]

    def _losses(self, objectness: Tensor, deltas: Tensor, anchors: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        matched = host.match(self.proposal_matcher, anchors, targets)  # [B, A]
        labels = (matched >= 0).to(torch.float32)
        labels[matched == self.proposal_matcher.BETWEEN_THRESHOLDS] = -1
        positive, negative = (torch.cat(masks).nonzero()[:, 0] for masks in self.fg_bg_sampler(list(labels)))
        sampled = torch.cat([positive, negative])
        image, anchor = positive // matched.shape[1], positive % matched.shape[1]
        offsets = torch.tensor([0, *(len(target["boxes"]) for target in targets[:-1])], device=matched.device)
        boxes = torch.cat([target["boxes"] for target in targets])
        boxes = boxes[matched[image, anchor] + offsets.cumsum(0)[image]]
        same = host.shared(anchors)
        priors = torch.stack(anchors)[image, anchor] if same is None else same[anchor]
        wanted = self.box_coder.encode_single(boxes, priors)
        box_loss = F.smooth_l1_loss(deltas[positive], wanted, beta=1 / 9, reduction="sum") / len(sampled)
        loss = F.binary_cross_entropy_with_logits(objectness[sampled], labels.flatten()[sampled])
        return {"loss_objectness": loss, "loss_rpn_box_reg": box_loss}


@host.eager_only
class FastRoIHeads(RoIHeads):  # type: ignore[misc]
    """The second stage: proposals matched without a matrix, and only scores above the threshold decoded."""

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> Any:
        if host.matching_rule(self.proposal_matcher) is None:
            return super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        matched_idxs, labels = [], []
        for anchors, boxes, classes in zip(proposals, gt_boxes, gt_labels, strict=True):
            matched = host.match(self.proposal_matcher, [anchors], [{"boxes": boxes}])[0]
            matched_idxs.append(matched.clamp(min=0))
            label = torch.zeros_like(matched)
            if len(boxes):
                label = torch.where(matched >= 0, classes[matched_idxs[-1]].to(torch.int64), label)
            label[matched == self.proposal_matcher.BETWEEN_THRESHOLDS] = -1
            labels.append(label)
        return matched_idxs, labels

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Any:
        if not host.has_boxcoder(self) or not host.fractions(self.score_thresh, self.nms_thresh):
            return super().postprocess_detections(class_logits, box_regression, proposals, image_shapes)
        columns = class_logits.shape[-1]
        scores = F.softmax(class_logits, -1)  # [N, C]
        places = above(scores, self.score_thresh)
        row, label = places // columns, places % columns
        row, label = row[label > 0], label[label > 0]
        sizes = [len(boxes) for boxes in proposals]
        owner = torch.repeat_interleave(torch.tensor(sizes, device=row.device))  # [N]
        scores, image = scores[row, label], owner[row]
        deltas = box_regression.view(len(class_logits), -1, 4)[row, label]
        boxes = clip_to_sizes(self.box_coder.decode_single(deltas, torch.cat(proposals)[row]), image, image_shapes)
        keep = ((boxes[:, 2:] - boxes[:, :2]) >= 1e-2).all(1)
        boxes, scores, label, image = boxes[keep], scores[keep], label[keep], image[keep]
        kept = suppress(boxes, scores, label, image, len(sizes), self.nms_thresh, self.detections_per_img)
        return [boxes[k] for k in kept], [scores[k] for k in kept], [label[k] for k in kept]
