"""What training minimises: match -> mine -> losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from fastssd._fields import check_fields, one_of, within
from fastssd.backends import FORCE_MATCH
from fastssd.detection.collate import TargetCollate
from fastssd.ops import Targets, assign_targets, multibox_cross_entropy

CLASS_LOSSES = ("cross_entropy", "focal")
BOX_LOSSES = ("smooth_l1", "l1")


class Losses(NamedTuple):
    """What a :class:`Criterion` returns: sums over anchors, divided by the batch's number of positives (at least 1) or
    by the normalizer."""

    total: Tensor
    """The weighted sum of the next two: [], with gradient."""
    classification: Tensor
    box_regression: Tensor
    num_positives: Tensor
    """int64 []."""
    hard_negatives: Tensor | None
    """bool [B, A], the negatives that the classification loss counted; None with the focal loss, which counts all."""


@dataclass(frozen=True)
class Criterion:
    """The SSD training objective (arXiv:1512.02325, section 2.2).

    There are two calls: :meth:`match_targets` turns ground truth into targets, unless a DataLoader with :meth:`collate`
    has already done so; calling the criterion turns outputs and targets into losses. Ignored anchors (between the two
    thresholds) enter no loss.

    Attributes:
        iou_threshold, background_threshold, force_match: as in :func:`fastssd.ops.assign_targets`.
        neg_pos_ratio: mined negatives per positive.
        min_negatives: the least number of mined negatives per image. With the default, an image without objects
            contributes as many negatives as one with a single positive.
        class_loss: ``"cross_entropy"`` over positives and mined negatives, or ``"focal"`` over all anchors, without
            mining. The focal loss takes the sigmoid of the logits (activation ``"sigmoid"`` of the preset).
        focal_alpha, focal_gamma: of the focal loss (arXiv:1708.02002).
        class_weights: for each foreground class the factor of its positive anchors' class loss; None: 1 for all.
            Background has the factor 1. Mining, the box loss and the divisor (the number of positives) do not change.
            So the cross entropy is that of ``torch.nn.functional.cross_entropy`` with ``weight=(1, *class_weights)``
            and ``reduction="sum"``; in the focal loss each anchor's row is multiplied by the weight of its class.
        box_loss: ``"smooth_l1"`` or ``"l1"``.
        smooth_l1_beta: the difference of deltas at which smooth L1 changes from quadratic to linear.
        box_weight: weight of the box loss in the total.
    """

    iou_threshold: Annotated[float, within(0, 1)] = 0.5
    background_threshold: Annotated[float, within(0, 1)] | None = None
    force_match: Annotated[str, one_of(*FORCE_MATCH)] = "bipartite"
    neg_pos_ratio: Annotated[float, within(0, math.inf)] = 3.0
    min_negatives: Annotated[int, within(0, 2**31 - 1)] = 3
    class_loss: Annotated[str, one_of(*CLASS_LOSSES)] = "cross_entropy"
    focal_alpha: Annotated[float, within(0, 1)] = 0.25
    focal_gamma: Annotated[float, within(0, 100)] = 2.0
    class_weights: tuple[Annotated[float, within(0, 1e6)], ...] | None = None
    box_loss: Annotated[str, one_of(*BOX_LOSSES)] = "smooth_l1"
    smooth_l1_beta: Annotated[float, within(0, 1e6)] = 1.0
    box_weight: Annotated[float, within(0, 1e6)] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.background_threshold is not None and self.background_threshold > self.iou_threshold:
            raise ValueError(
                f"background_threshold: expected at most iou_threshold {self.iou_threshold}, "
                f"got {self.background_threshold}"
            )

    def __call__(
        self, logits: Tensor, deltas: Tensor, targets: Targets, *, normalizer: Tensor | float | None = None
    ) -> Losses:
        """
        Args:
            logits, deltas: [B, A, C] and [B, A, 4] of the network, any float dtype.
            targets: of :meth:`match_targets` or a batch of :meth:`collate`, on the same device.
            normalizer: the divisor of the sums, instead of the batch's number of positives. In a distributed run the
                mean number of positives over the processes makes the averaged gradient equal that of one joined batch.

        Raises:
            ValueError: ``class_weights`` are not one for each of the C - 1 foreground classes.
        """
        logits, deltas = logits.float(), deltas.float()
        positive = targets.labels > 0  # [B, A]
        positive_idx = positive.flatten().nonzero().squeeze(1)  # [P], in the flattened batch
        num_positives = targets.labels.new_full((), len(positive_idx))
        hard_negatives = None
        if self.class_loss == "focal":
            classification = self.focal_loss(logits, targets.labels)
        else:
            classification, selected = self.cross_entropy(logits, targets.labels)
            hard_negatives = selected ^ positive
        box_regression = self.box_regression_loss(deltas, targets.deltas, positive_idx)
        scale = 1.0 / (max(len(positive_idx), 1) if normalizer is None else normalizer)
        classification, box_regression = classification * scale, box_regression * scale
        total = classification + self.box_weight * box_regression
        return Losses(total, classification, box_regression, num_positives, hard_negatives)

    def match_targets(
        self,
        anchors: Tensor,
        gt_boxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        variances: tuple[float, float] = (0.1, 0.2),
    ) -> Targets:
        """The ground-truth box that each anchor is responsible for, and the deltas to it; one call per batch.

        Args:
            anchors: [A, 4] xyxy.
            gt_boxes: for each image [G_i, 4] xyxy in the anchors' unit.
            gt_labels: for each image int64 [G_i], >= 1.
            variances: of the preset.

        Returns:
            labels int64 [B, A] (0 background, -1 ignored), deltas [B, A, 4], gt_idx int64 [B, A].
        """
        return assign_targets(
            anchors,
            gt_boxes,
            gt_labels,
            iou_threshold=self.iou_threshold,
            background_threshold=self.background_threshold,
            force_match=self.force_match,
            variances=variances,
        )

    def collate(self, anchors: Any, variances: tuple[float, float] = (0.1, 0.2), **options: Any) -> TargetCollate:
        """:meth:`match_targets` for the workers of a DataLoader: its ``collate_fn``.

        Args:
            anchors: [A, 4] xyxy.
            variances: of the preset.
            options: the others of :class:`~fastssd.detection.TargetCollate`.
        """
        return TargetCollate(
            anchors,
            iou_threshold=self.iou_threshold,
            background_threshold=self.background_threshold,
            force_match=self.force_match,
            variances=variances,
            **options,
        )

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy, summed over positives and mined negatives: []; and the mask of these anchors: bool [B, A]."""
        weighted = self.class_weights is not None
        loss, selected = multibox_cross_entropy(
            logits.detach() if weighted else logits,
            labels,
            neg_pos_ratio=self.neg_pos_ratio,
            min_negatives=self.min_negatives,
        )
        if weighted:  # the kernel only mines here; the weighted loss of the few selected rows is torch's
            index = selected.flatten().nonzero().squeeze(1)  # [S]
            rows, classes = (values.flatten(0, 1).index_select(0, index) for values in (logits, labels))
            loss = F.cross_entropy(rows, classes, self._column_weights(logits), reduction="sum")
        return loss, selected

    def _column_weights(self, logits: Tensor) -> Tensor:
        """The class weights with that of the background: [C]."""
        weights = self.class_weights or ()
        if len(weights) != logits.shape[-1] - 1:
            raise ValueError(
                f"class_weights: expected one for each of the {logits.shape[-1] - 1} foreground classes, "
                f"got {len(weights)}"
            )
        return logits.new_tensor((1.0, *weights))

    def focal_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sigmoid focal loss, summed over the foreground classes of all anchors that are not ignored: []."""
        weights = None if self.class_weights is None else self._column_weights(logits)
        counted = labels >= 0  # [B, A]
        logits, labels = logits[counted][:, 1:], labels[counted]  # [S, C - 1], [S]
        target = F.one_hot(labels, logits.shape[1] + 1)[:, 1:].to(logits.dtype)  # [S, C - 1]
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        error = (logits.sigmoid() - target).abs()  # 1 - p_t in the paper
        alpha = self.focal_alpha * target + (1 - self.focal_alpha) * (1 - target)
        loss = alpha * error.pow(self.focal_gamma) * loss
        if weights is not None:
            loss = loss * weights[labels, None]
        return loss.sum()

    def box_regression_loss(self, deltas: Tensor, target_deltas: Tensor, where: Tensor) -> Tensor:
        """Smooth L1 or L1, summed over the deltas of the anchors with the indices `where` [P] in the flattened batch:
        []."""
        deltas, target_deltas = (values.flatten(0, 1).index_select(0, where) for values in (deltas, target_deltas))
        target_deltas = target_deltas.to(deltas.dtype)  # [P, 4]
        if self.box_loss == "l1":
            return F.l1_loss(deltas, target_deltas, reduction="sum")
        return F.smooth_l1_loss(deltas, target_deltas, beta=self.smooth_l1_beta, reduction="sum")
