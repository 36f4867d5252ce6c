"""torchvision's SSD on our kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.ssd import SSD

from fastssd import ops
from fastssd.compat.torchvision import _host as host
from fastssd.compat.torchvision.selection import clip_to_sizes, suppress

Targets = list[dict[str, Tensor]]


@host.eager_only
class FastSSD(SSD):  # type: ignore[misc]
    """SSD with matching, loss, mining and postprocessing of a whole batch in one call each."""

    def forward(self, images: list[Tensor], targets: Targets | None = None) -> Any:
        if not self.training or not host.well_formed(targets) or host.matching_rule(self.proposal_matcher) is None:
            return super().forward(images, targets)  # which raises torchvision's errors
        batch, targets = self.transform(images, targets)
        assert targets is not None
        host.check_extent(targets)
        features = self.backbone(batch.tensors)
        features = [features] if isinstance(features, Tensor) else list(features.values())
        head_outputs = self.head(features)
        anchors = self.anchor_generator(batch, features)
        matched = host.match(self.proposal_matcher, anchors, targets)
        return self.eager_outputs(self.compute_loss(targets, head_outputs, anchors, list(matched)), [])

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        logits, deltas = head_outputs["cls_logits"], head_outputs["bbox_regression"]
        found = host.Positives(targets, anchors, matched_idxs)
        labels = torch.zeros(found.matched.shape, dtype=found.labels.dtype, device=found.labels.device)
        labels[found.image, found.anchor] = found.labels
        wanted = self.box_coder.encode_single(found.boxes, found.anchors)
        box_loss = F.smooth_l1_loss(deltas[found.image, found.anchor], wanted, reduction="sum")
        count = max(1, len(found.image))
        return {"bbox_regression": box_loss / count, "classification": self._mined(logits, labels, found) / count}

    def _mined(self, logits: Tensor, labels: Tensor, found: host.Positives) -> Tensor:
        """Cross entropy, summed over positives and mined negatives: []."""
        ratio = self.neg_to_pos_ratio
        if logits.device.type == "cpu":
            positives = np.bincount(found.image[found.labels > 0].numpy(), minlength=len(labels))
            mined = np.ceil(ratio * positives)
            # torchvision computes their number in float32. If there are fewer negatives, it counts positives twice.
            same = mined == np.ceil(np.float32(ratio) * positives.astype(np.float32))
            known = (found.labels >= 0) & (found.labels < logits.shape[-1])
            if (same & (mined <= labels.shape[1] - positives)).all() and known.all():
                loss: Tensor = ops.multibox_cross_entropy(logits, labels, neg_pos_ratio=ratio).loss
                return loss
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)  # [B, A]
        positive = labels > 0
        negative_loss = loss.detach().masked_fill(positive, -torch.inf)
        rank = negative_loss.argsort(dim=1, descending=True, stable=True).argsort(1)
        return loss[positive].sum() + loss[rank < ratio * positive.sum(1, keepdim=True)].sum()

    def postprocess_detections(
        self, head_outputs: dict[str, Tensor], image_anchors: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        logits, deltas = head_outputs["cls_logits"], head_outputs["bbox_regression"]
        anchors = host.shared(image_anchors)
        usual = host.has_boxcoder(self) and host.fractions(self.score_thresh, self.nms_thresh)
        if anchors is None or not usual or not len(logits):
            return super().postprocess_detections(head_outputs, image_anchors, image_shapes)
        if logits.device.type == "cpu" and len(set(image_shapes)) == 1:
            image, anchor, label = self._detect(logits.detach(), deltas.detach(), anchors, image_shapes[0])
        else:
            image, anchor, label = self._candidates(logits.detach())
        # Scores and boxes of the detections are computed by torchvision's formulas: the same bits, the same gradients.
        scores = F.softmax(logits[image, anchor], -1).gather(1, label[:, None])[:, 0]
        boxes = self.box_coder.decode_single(deltas[image, anchor], anchors[anchor])
        boxes = clip_to_sizes(boxes, image, image_shapes)
        kept = suppress(boxes, scores, label, image, len(logits), self.nms_thresh, self.detections_per_img)
        return [{"boxes": boxes[k], "scores": scores[k], "labels": label[k]} for k in kept]

    def _detect(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Image, anchor and label of each detection: one call of our kernel."""
        variances, deltas = host.kernel_deltas(self.box_coder, deltas)
        found = ops.postprocess_detections(
            logits,
            deltas,
            anchors,
            score_threshold=host.as_compared(self.score_thresh, logits),
            iou_threshold=self.nms_thresh,
            topk=self.topk_candidates,
            max_detections=self.detections_per_img,
            clip=size,
            variances=variances,
        )
        image, place = (found.labels >= 0).nonzero(as_tuple=True)
        return image, found.anchor_idx[image, place], found.labels[image, place]

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image, anchor and label of the candidates for NMS, by torch's operations: for other devices."""
        scores = F.softmax(logits, -1)[..., 1:].transpose(1, 2)  # [B, C - 1, A]
        best, anchor = scores.topk(min(self.topk_candidates, scores.shape[-1]), -1)
        image, label, place = (best > self.score_thresh).nonzero(as_tuple=True)
        return image, anchor[image, label, place], label + 1
