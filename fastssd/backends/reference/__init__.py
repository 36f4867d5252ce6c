"""The reference backend: plain NumPy that reads like the papers. It is the definition; the others must equal it."""

from fastssd.backends.reference.anchors import grid_anchors
from fastssd.backends.reference.boxes import box_area, box_convert, clip_boxes_to_image, remove_small_boxes
from fastssd.backends.reference.coding import decode_boxes, encode_boxes
from fastssd.backends.reference.iou import (
    box_iou,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
    paired_box_iou,
)
from fastssd.backends.reference.matching import assign_targets, match_anchors
from fastssd.backends.reference.mining import mine_hard_negatives
from fastssd.backends.reference.multibox import multibox_cross_entropy, multibox_cross_entropy_gradient
from fastssd.backends.reference.nms import batched_nms, nms, soft_nms
from fastssd.backends.reference.postprocess import postprocess_detections

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
