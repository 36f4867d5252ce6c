"""The reference backend: plain NumPy that reads like the papers. It is the definition; the others must equal it."""

# mypy: disable-error-code="misc"
# It wants a written type for each member of a protocol; theirs is the function's.

from typing import Protocol

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
from fastssd.backends.reference.nms import batched_nms, matrix_nms, nms, soft_nms
from fastssd.backends.reference.postprocess import postprocess_detections


class Backend(Protocol):
    """What a backend implements: the functions of the reference, with their parameters by name, order and type.

    Kernels trust their inputs: :mod:`fastssd.ops` has validated and promoted them. Every array is C-contiguous;
    ``Float`` arrays of one call share one dtype, float32 or float64; lengths may be zero. Outputs are the last
    arguments, allocated by the caller and overwritten whole; inputs are never written to.
    """

    box_area = staticmethod(box_area)
    box_convert = staticmethod(box_convert)
    clip_boxes_to_image = staticmethod(clip_boxes_to_image)
    remove_small_boxes = staticmethod(remove_small_boxes)
    grid_anchors = staticmethod(grid_anchors)
    box_iou = staticmethod(box_iou)
    generalized_box_iou = staticmethod(generalized_box_iou)
    distance_box_iou = staticmethod(distance_box_iou)
    complete_box_iou = staticmethod(complete_box_iou)
    paired_box_iou = staticmethod(paired_box_iou)
    match_anchors = staticmethod(match_anchors)
    assign_targets = staticmethod(assign_targets)
    mine_hard_negatives = staticmethod(mine_hard_negatives)
    multibox_cross_entropy = staticmethod(multibox_cross_entropy)
    multibox_cross_entropy_gradient = staticmethod(multibox_cross_entropy_gradient)
    encode_boxes = staticmethod(encode_boxes)
    decode_boxes = staticmethod(decode_boxes)
    nms = staticmethod(nms)
    batched_nms = staticmethod(batched_nms)
    soft_nms = staticmethod(soft_nms)
    matrix_nms = staticmethod(matrix_nms)
    postprocess_detections = staticmethod(postprocess_detections)
