"""From the outputs of a network to the few boxes that are left: activation, threshold, decoding, NMS."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from fastssd.backends import ACTIVATIONS, active_backend
from fastssd.ops import _face as face
from fastssd.ops._face import Array
from fastssd.ops.boxes import check_size


class Detections(NamedTuple):
    """What :func:`postprocess_detections` returns; places at and after `counts` are padding."""

    boxes: Any
    """float [B, K, 4] xyxy in the anchors' unit; padding 0."""
    scores: Any
    """float [B, K], falling; padding 0."""
    labels: Any
    """int64 [B, K], >= 1; padding -1."""
    anchor_idx: Any
    """int64 [B, K]: the anchor that made the detection; padding -1."""
    counts: Any
    """int64 [B]: how many detections each picture has."""


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
        max_detections: K, at most so many detections a picture.
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
    if not (type(logits) is type(deltas) is type(anchors) is ndarray) and face.dispatched(logits, deltas, anchors):
        found = face.dispatch(
            "call",
            "postprocess_detections",
            {"logits": logits, "deltas": deltas, "anchors": anchors},
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            topk=topk,
            max_detections=max_detections,
            clip=clip,
            activation=activation,
            variances=variances,
        )
        return Detections(*found)
    scores_in, deltas_in = face.to_numpy("logits", logits), face.to_boxes("deltas", deltas)
    priors = face.to_boxes("anchors", anchors)
    face.check_shape("anchors", priors, ("A", 4))
    one = scores_in.ndim == 2
    face.check_shape("logits", scores_in, (len(priors), "C") if one else ("B", len(priors), "C"))
    face.check_shape("deltas", deltas_in, (*scores_in.shape[:-1], 4))
    if scores_in.shape[-1] < 1:
        raise ValueError("logits: expected at least one column, the background; got none")
    score_limit = face.fraction("score_threshold", score_threshold)
    iou_limit = face.fraction("iou_threshold", iou_threshold)
    candidates = len(priors) if topk is None else face.count("topk", topk)
    places = face.count("max_detections", max_detections)
    clip_height, clip_width = (math.inf, math.inf) if clip is None else check_size("clip", clip)
    code = face.choice("activation", activation, ACTIVATIONS)
    center, size = face.check_variances(variances)
    scores_in, deltas_in, priors = face.promote(scores_in, deltas_in, priors)
    if one:
        scores_in, deltas_in = scores_in[None], deltas_in[None]

    batch, dtype = len(scores_in), scores_in.dtype
    out = Detections(
        boxes=face.empty((batch, places, 4), dtype),
        scores=face.empty((batch, places), dtype),
        labels=face.empty((batch, places), np.int64),
        anchor_idx=face.empty((batch, places), np.int64),
        counts=np.empty(batch, np.int64),
    )
    active_backend().postprocess_detections(
        scores_in,
        deltas_in,
        priors,
        score_limit,
        iou_limit,
        candidates,
        clip_height,
        clip_width,
        code,
        center,
        size,
        *out,
    )
    given = (logits, deltas, anchors)
    found = Detections(*(face.like(array.reshape(array.shape[1:]) if one else array, *given) for array in out))
    return found._replace(
        boxes=face.without_gradient("postprocess_detections", found.boxes, *given),
        scores=face.without_gradient("postprocess_detections", found.scores, *given),
    )
