"""The C++ backend: the compiled kernels under the names of the `Backend` protocol."""

from fastssd import _C
from fastssd._C import (
    assign_targets,
    batched_nms,
    box_area,
    box_convert,
    box_iou,
    clip_boxes_to_image,
    complete_box_iou,
    decode_boxes,
    distance_box_iou,
    encode_boxes,
    generalized_box_iou,
    grid_anchors,
    match_anchors,
    mine_hard_negatives,
    multibox_cross_entropy,
    multibox_cross_entropy_gradient,
    nms,
    paired_box_iou,
    postprocess_detections,
    remove_small_boxes,
    soft_nms,
)
from fastssd.backends import threads

_C.set_thread_count(threads.current)

_DIRECT = "direct_"
SHORTCUTS = {name.removeprefix(_DIRECT): entry for name, entry in vars(_C).items() if name.startswith(_DIRECT)}

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
