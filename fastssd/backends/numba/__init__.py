"""The Numba backend: kernels in Python, compiled at first use, for where no compiled wheel exists."""

from fastssd.backends.numba._interrupt import interruptible
from fastssd.backends.numba.anchors import grid_anchors
from fastssd.backends.numba.boxes import box_area, box_convert, clip_boxes_to_image, remove_small_boxes
from fastssd.backends.numba.coding import decode_boxes, encode_boxes
from fastssd.backends.numba.iou import (
    box_iou,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
    paired_box_iou,
)
from fastssd.backends.numba.matching import assign_targets, match_anchors
from fastssd.backends.numba.mining import mine_hard_negatives
from fastssd.backends.numba.multibox import multibox_cross_entropy, multibox_cross_entropy_gradient
from fastssd.backends.numba.nms import batched_nms, nms, soft_nms
from fastssd.backends.numba.postprocess import postprocess_detections

__all__ = [
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
    "mine_hard_negatives",
    "multibox_cross_entropy",
    "multibox_cross_entropy_gradient",
    "nms",
    "paired_box_iou",
    "postprocess_detections",
    "remove_small_boxes",
    "soft_nms",
]

for _name in __all__:
    globals()[_name] = interruptible(globals()[_name])
