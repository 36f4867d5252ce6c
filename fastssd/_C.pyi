"""The compiled kernels of fastssd. Private: use `fastssd.ops`. Arguments as in `fastssd.backends.Backend`."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssd.backends import Bool, Float, Int

def isa() -> str:
    """The instruction set in use: "baseline", "avx2" or "avx512"; ``FASTSSD_ISA`` forces one."""

def available_isas() -> tuple[str, ...]:
    """Those that this processor and operating system can run, best first."""

def compiled_isas() -> tuple[str, ...]:
    """Those that this build holds, best first."""

def set_thread_count(callable: Callable[[], int], /) -> None:
    """Set the callable that says how many threads to use. Asked only before work worth a second one."""

def box_area(boxes: Float, out: Float, /) -> None: ...
def box_convert(boxes: Float, in_fmt: int, out_fmt: int, out: Float, /) -> None: ...
def clip_boxes_to_image(boxes: Float, height: float, width: float, out: Float, /) -> None: ...
def remove_small_boxes(boxes: Float, min_size: float, keep: Int, /) -> int: ...
def grid_anchors(
    height: int, width: int, shapes: NDArray[np.float64], scale: NDArray[np.float64], clip: bool, out: Float, /
) -> None: ...
def box_iou(boxes1: Float, boxes2: Float, out: Float, /) -> None: ...
def generalized_box_iou(boxes1: Float, boxes2: Float, out: Float, /) -> None: ...
def distance_box_iou(boxes1: Float, boxes2: Float, out: Float, /) -> None: ...
def complete_box_iou(boxes1: Float, boxes2: Float, out: Float, /) -> None: ...
def paired_box_iou(boxes1: Float, boxes2: Float, out: Float, /) -> None: ...
def match_anchors(
    anchors: Float,
    gt_boxes: Float,
    offsets: Int,
    iou_threshold: float,
    background_threshold: float,
    force_match: int,
    gt_idx: Int,
    iou: Float,
    /,
) -> None: ...
def assign_targets(
    anchors: Float,
    gt_boxes: Float,
    gt_labels: Int,
    offsets: Int,
    iou_threshold: float,
    background_threshold: float,
    force_match: int,
    center_variance: float,
    size_variance: float,
    labels: Int,
    deltas: Float,
    gt_idx: Int,
    /,
) -> None: ...
def mine_hard_negatives(
    loss: Float, positive: Bool, neg_pos_ratio: float, min_negatives: int, out: Bool, /
) -> None: ...
def multibox_cross_entropy(
    logits: Float,
    labels: Int,
    neg_pos_ratio: float,
    min_negatives: int,
    losses: NDArray[np.float64],
    selected: Bool,
    /,
) -> None: ...
def multibox_cross_entropy_gradient(
    logits: Float, labels: Int, selected: Bool, scale: float, out: Float, /
) -> None: ...
def encode_boxes(boxes: Float, anchors: Float, center_variance: float, size_variance: float, out: Float, /) -> None: ...
def decode_boxes(
    deltas: Float, anchors: Float, center_variance: float, size_variance: float, out: Float, /
) -> None: ...
def nms(boxes: Float, scores: Float, iou_threshold: float, keep: Int, /) -> int: ...
def batched_nms(boxes: Float, scores: Float, idxs: Int, iou_threshold: float, keep: Int, /) -> int: ...
def soft_nms(
    boxes: Float,
    scores: Float,
    method: int,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    keep: Int,
    kept_scores: Float,
    /,
) -> int: ...
def postprocess_detections(
    logits: Float,
    deltas: Float,
    anchors: Float,
    score_threshold: float,
    iou_threshold: float,
    topk: int,
    clip_height: float,
    clip_width: float,
    activation: int,
    center_variance: float,
    size_variance: float,
    boxes: Float,
    scores: Float,
    labels: Int,
    anchor_idx: Int,
    counts: Int,
    /,
) -> None: ...
def direct_box_iou(boxes1: Any, boxes2: Any, out: Any, /) -> Any: ...
def direct_generalized_box_iou(boxes1: Any, boxes2: Any, out: Any, /) -> Any: ...
def direct_distance_box_iou(boxes1: Any, boxes2: Any, out: Any, /) -> Any: ...
def direct_complete_box_iou(boxes1: Any, boxes2: Any, out: Any, /) -> Any: ...
def direct_paired_box_iou(boxes1: Any, boxes2: Any, /) -> Any: ...
def direct_nms(boxes: Any, scores: Any, iou_threshold: Any, nonfinite: Any, /) -> Any: ...
def direct_batched_nms(boxes: Any, scores: Any, idxs: Any, iou_threshold: Any, nonfinite: Any, /) -> Any: ...
def direct_match_anchors(
    anchors: Any, gt_boxes: Any, iou_threshold: Any, background_threshold: Any, force_match: Any, gt_counts: Any, /
) -> Any: ...
def direct_assign_targets(
    anchors: Any,
    gt_boxes: Any,
    gt_labels: Any,
    iou_threshold: Any,
    background_threshold: Any,
    force_match: Any,
    gt_counts: Any,
    variances: Any,
    /,
) -> Any: ...
def direct_encode_boxes(boxes: Any, anchors: Any, variances: Any, /) -> Any: ...
def direct_decode_boxes(deltas: Any, anchors: Any, variances: Any, /) -> Any: ...
