"""Box operators for detection: NumPy in, NumPy out; torch in, torch out. docs/contract.md says what they promise."""

import contextlib
import sys

from fastssd.ops._results import Detections, Matches, MultiboxLoss, SoftDetections, Targets
from fastssd.ops.anchors import grid_anchors
from fastssd.ops.boxes import box_area, box_convert, clip_boxes_to_image, remove_small_boxes
from fastssd.ops.coding import decode_boxes, encode_boxes
from fastssd.ops.iou import (
    box_iou,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
    paired_box_iou,
)
from fastssd.ops.matching import assign_targets, match_anchors
from fastssd.ops.mining import mine_hard_negatives
from fastssd.ops.multibox import multibox_cross_entropy
from fastssd.ops.nms import batched_nms, matrix_nms, nms, soft_nms
from fastssd.ops.postprocess import postprocess_detections

__all__ = [
    "Detections",
    "Matches",
    "MultiboxLoss",
    "SoftDetections",
    "Targets",
    "assign_targets",
    "batched_nms",
    "box_area",
    "box_convert",
    "box_iou",
    "clip_boxes_to_image",
    "complete_box_iou",
    "decode_boxes",
    "distance_box_iou",
    "encode_boxes",
    "generalized_box_iou",
    "grid_anchors",
    "match_anchors",
    "matrix_nms",
    "mine_hard_negatives",
    "multibox_cross_entropy",
    "nms",
    "paired_box_iou",
    "postprocess_detections",
    "remove_small_boxes",
    "soft_nms",
]

if hasattr(sys.modules.get("torch"), "Tensor"):  # else the first call that torch has to dispatch does it
    # If registering fails, everything else still works; a call that needs it raises the error.
    with contextlib.suppress(Exception):
        from fastssd.ops import _torch  # noqa: F401  registers torch.ops.fastssd.*
