"""From the outputs of a network to the few boxes that are left: activation, threshold, decoding, NMS."""

from __future__ import annotations

import math

import numpy as np

from fastssd import _checks as checks
from fastssd._checks import Array
from fastssd.backends import ACTIVATIONS, active_backend
from fastssd.ops._operator import operator
from fastssd.ops._results import Detections


@operator(
    "anchors: float[A, 4], logits: float[B?, A, C+], deltas: float[B?, A, 4] -> "
    "boxes: float[B?, max_detections, 4], scores: float[B?, max_detections], labels: int64[B?, max_detections], "
    "anchor_idx: int64[B?, max_detections], counts: int64[B?]",
    result=Detections,
    formula=True,
    vmap="postprocess_detections",
)
def postprocess_detections(
    logits: Array,
    deltas: Array,
    anchors: Array,
    *,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    topk: int | None = 400,
    max_detections: int = 200,
    clip: tuple[float, float] | None = None,
    activation: str = "softmax",
    variances: tuple[float, float] = (0.1, 0.2),
) -> Detections:
    """Detections of a whole batch.

    Args:
        logits: [B, A, C] or [A, C]; column 0 is background and never detected.
        deltas: [B, A, 4] or [A, 4].
        anchors: [A, 4] xyxy.
        score_threshold: a class is a candidate at an anchor where its score is greater than this; in [0, 1].
        iou_threshold: NMS threshold within a class; in [0, 1].
        topk: at most so many candidates of each class go to NMS; None for all.
        max_detections: K, at most so many detections in each image.
        clip: (height, width) to which boxes are clipped before NMS, in the anchors' unit; None for not at all.
        activation: ``"softmax"`` over C, ``"sigmoid"``, or ``"none"`` where `logits` are probabilities already.
        variances: as in :func:`~fastssd.ops.decode_boxes`.

    Returns:
        :class:`Detections` padded to K; without the batch dimension where `logits` had none.

    Raises:
        TypeError, ValueError: wrong shapes, thresholds or options.

    Source:
        SSD, arXiv:1512.02325, section 3.1 (0.01, 0.45, 200); topk as in torchvision.
    """
    logits, deltas, anchors = checks.promote(logits, deltas, anchors)
    batched = logits.ndim == 3
    if not batched:
        logits, deltas = logits[None], deltas[None]
    batch, dtype = len(logits), logits.dtype
    out = Detections(
        boxes=checks.empty((batch, max_detections, 4), dtype),
        scores=checks.empty((batch, max_detections), dtype),
        labels=checks.empty((batch, max_detections), np.int64),
        anchor_idx=checks.empty((batch, max_detections), np.int64),
        counts=np.empty(batch, np.int64),
    )
    active_backend().postprocess_detections(
        logits,
        deltas,
        anchors,
        score_threshold,
        iou_threshold,
        len(anchors) if topk is None else topk,
        *((math.inf, math.inf) if clip is None else clip),
        ACTIVATIONS[activation],
        *variances,
        *out,
    )
    return out if batched else Detections(*(array.reshape(array.shape[1:]) for array in out))
