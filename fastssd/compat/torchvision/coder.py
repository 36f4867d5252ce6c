"""torchvision's box coder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastssd import ops


class BoxCoder:
    """``torchvision.models.detection._utils.BoxCoder``: boxes as offsets from others, and back.

    Args:
        weights: by which (dx, dy, dw, dh) are multiplied; SSD's variances (0.1, 0.2) are weights (10, 10, 5, 5).
        bbox_xform_clip: decoding takes dw and dh as at most this, before the exponential; smaller ones are left alone.

    Results are within 4 ULP of torchvision's, and differentiable.
    """

    def __init__(
        self, weights: tuple[float, float, float, float], bbox_xform_clip: float = math.log(1000.0 / 16)
    ) -> None:
        self.weights = weights
        self.bbox_xform_clip = bbox_xform_clip

    def encode(self, reference_boxes: Sequence[Tensor], proposals: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of each image the offsets [N_i, 4] that lead from `proposals` [N_i, 4] to `reference_boxes` [N_i, 4]."""
        sizes = [len(boxes) for boxes in reference_boxes]
        return self.encode_single(torch.cat(list(reference_boxes)), torch.cat(list(proposals))).split(sizes)

    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        """[N, 4] offsets. A box without extent gives infinity or NaN, as in torchvision."""
        weights = reference_boxes.new_tensor(self.weights)
        try:
            deltas: Tensor = ops.encode_boxes(reference_boxes, proposals, variances=(1.0, 1.0))
        except ValueError:  # the kernel refuses boxes without extent
            deltas = _encode(reference_boxes, proposals)
        return deltas.to(torch.promote_types(reference_boxes.dtype, proposals.dtype)) * weights

    def decode(self, rel_codes: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """[N, 4 * C] offsets from the boxes [N_i, 4] of all images, end to end, to boxes [N, C, 4]."""
        if not isinstance(boxes, list | tuple) or not isinstance(rel_codes, Tensor):
            raise AssertionError(f"expected a tensor and a list of tensors, got {type(rel_codes)} and {type(boxes)}")
        joined = torch.cat(list(boxes))
        if len(joined):
            rel_codes = rel_codes.reshape(len(joined), -1)
        decoded = self.decode_single(rel_codes, joined)
        return decoded.reshape(len(joined), -1, 4) if len(joined) else decoded

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """[N, 4 * C] offsets from `boxes` [N, 4] to boxes [N, 4 * C], in the dtype of the offsets."""
        deltas = rel_codes.reshape(-1, 4) / rel_codes.new_tensor(self.weights)
        deltas = torch.cat([deltas[:, :2], deltas[:, 2:].clamp(max=self.bbox_xform_clip)], 1)
        anchors = boxes.to(rel_codes.dtype)
        if len(deltas) != len(anchors):
            anchors = anchors.repeat_interleave(len(deltas) // max(len(anchors), 1), 0)
        decoded: Tensor = ops.decode_boxes(deltas, anchors, variances=(1.0, 1.0))
        return decoded.to(rel_codes.dtype).reshape(rel_codes.shape)


def _encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    size, anchor_size = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    middle, anchor_middle = boxes[:, :2] + 0.5 * size, anchors[:, :2] + 0.5 * anchor_size
    return torch.cat([(middle - anchor_middle) / anchor_size, (size / anchor_size).log()], 1)
