"""The Numba backend: kernels in Python, compiled at first use, for where no compiled wheel exists."""

from fastssd.backends import OPERATORS
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
from fastssd.backends.numba.nms import batched_nms, matrix_nms, nms, soft_nms
from fastssd.backends.numba.postprocess import postprocess_detections

for _name in OPERATORS:
    globals()[_name] = interruptible(globals()[_name])
