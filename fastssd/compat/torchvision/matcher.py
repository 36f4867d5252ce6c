"""torchvision's matchers, from a matrix of IoUs as there, or from boxes in one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssd import ops


class Matcher:
    """``torchvision.models.detection._utils.Matcher``: each prediction gets the ground-truth box that it overlaps most.

    Args:
        high_threshold: a prediction whose best quality reaches this is matched.
        low_threshold: below this it is :attr:`BELOW_LOW_THRESHOLD`; between the two :attr:`BETWEEN_THRESHOLDS`.
        allow_low_quality_matches: whether each ground-truth box also gets all predictions of its own best quality; they
            are matched to the ground-truth box that is best for *them*.

    Thresholds are compared in the dtype of the qualities, as torch does. Raises AssertionError where `low_threshold` is
    above `high_threshold`.
    """

    BELOW_LOW_THRESHOLD = -1
    BETWEEN_THRESHOLDS = -2

    def __init__(self, high_threshold: float, low_threshold: float, allow_low_quality_matches: bool = False) -> None:
        if not low_threshold <= high_threshold:
            raise AssertionError(f"low_threshold should be <= high_threshold, got {low_threshold} and {high_threshold}")
        self.high_threshold = high_threshold
        self.low_threshold = low_threshold
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> Tensor:
        """
        Args:
            match_quality_matrix: [M, N], M ground-truth boxes and N predictions.

        Returns:
            int64 [N]: the index of the ground-truth box, or one of the two negative values.

        Raises:
            ValueError: no ground-truth box or no prediction. (For such an image a model takes -1 everywhere.)
        """
        if match_quality_matrix.numel() == 0:
            what = "ground-truth" if match_quality_matrix.shape[0] == 0 else "proposal"
            raise ValueError(f"No {what} boxes available for one of the images during training")
        best, best_idx = _best_row(match_quality_matrix)
        matches = best_idx.clone()
        matches[best < self.high_threshold] = self.BETWEEN_THRESHOLDS
        matches[best < self.low_threshold] = self.BELOW_LOW_THRESHOLD
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(matches, best_idx, match_quality_matrix)
        return matches

    def set_low_quality_matches_(self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor) -> None:
        """Give back `all_matches` to every prediction that is the best, or equally good, for some ground-truth box."""
        is_best = (match_quality_matrix == match_quality_matrix.amax(1, keepdim=True)).any(0)
        matches[is_best] = all_matches[is_best]

    def match_boxes(self, anchors: Tensor, gt_boxes: Sequence[Tensor]) -> Tensor:
        """The matches of a whole batch from its boxes, without any matrix.

        Args:
            anchors: [A, 4] xyxy.
            gt_boxes: for each image [G_i, 4] xyxy; one without boxes has no match.

        Returns:
            int64 [B, A]; each row is that of :meth:`__call__` for ``box_iou(gt_boxes[i], anchors)``.
        """
        return match_boxes(
            anchors,
            gt_boxes,
            self.high_threshold,
            self.low_threshold,
            "low_quality" if self.allow_low_quality_matches else "none",
        )


class SSDMatcher(Matcher):
    """torchvision's ``SSDMatcher``: by threshold; then each ground-truth box claims its best anchor.

    A claim overrides the threshold: it holds at any IoU, even 0. Of equally good anchors the first is claimed; one
    that several ground-truth boxes claim belongs to the last of them.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__(threshold, threshold, allow_low_quality_matches=False)

    def __call__(self, match_quality_matrix: Tensor) -> Tensor:
        matches = super().__call__(match_quality_matrix)
        claimed = match_quality_matrix.max(1).indices
        order = torch.arange(len(claimed), device=matches.device)
        # The last claim wins, in whatever order a device writes.
        last = torch.full_like(matches, -1).scatter_reduce_(0, claimed, order, "amax")
        return torch.where(last >= 0, last, matches)

    def match_boxes(self, anchors: Tensor, gt_boxes: Sequence[Tensor]) -> Tensor:
        return match_boxes(anchors, gt_boxes, self.high_threshold, self.low_threshold, "best")


def match_boxes(anchors: Tensor, gt_boxes: Sequence[Tensor], high: float, low: float, force_match: str) -> Tensor:
    """The matches of a batch, int64 [B, A], by the rules of :func:`fastssd.ops.match_anchors`."""
    kind = torch.promote_types(anchors.dtype, gt_boxes[0].dtype) if gt_boxes else anchors.dtype
    kind = torch.float64 if kind == torch.float64 else torch.float32
    high, low = (torch.tensor(threshold, dtype=kind).item() for threshold in (high, low))  # as torch compares them
    matched: Tensor = ops.match_anchors(
        anchors.detach(),
        [boxes.detach().reshape(-1, 4) for boxes in gt_boxes],
        iou_threshold=high,
        background_threshold=low,
        force_match=force_match,
    ).gt_idx
    return matched


def _best_row(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """``matrix.max(0)``: the largest of each column, and the first row that has it. Faster along short columns."""
    rows = matrix.shape[0]
    if matrix.device.type != "cpu" or rows > 127:
        return matrix.max(0)
    best = matrix.amax(0)
    # Where a row reaches the best: the higher the earlier it is.
    rank = ((matrix == best) * torch.arange(rows, 0, -1, dtype=torch.int8)[:, None]).amax(0)
    if not rank.all():  # a NaN equals nothing
        return matrix.max(0)
    return best, rows - rank.long()
