"""The way from a network's outputs to detections as the tests know it (tests/operators/__init__.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastssd import ops
from tests.operators._inputs import (
    BOXES,
    DELTAS,
    DTYPES,
    LOGITS,
    Case,
    Examples,
    around,
    bad,
    case,
    crowd,
    random_boxes,
    strided,
)

_RNG = np.random.default_rng(0)
HEAPS = crowd(_RNG, 40, 4)
SCORED = {"logits": _RNG.normal(size=(2, 40, 4)) * 2, "deltas": _RNG.normal(size=(2, 40, 4)) * 0.3, "anchors": HEAPS}

EXAMPLES = {
    "postprocess_detections": Examples(
        samples=[
            {
                **SCORED,
                "score_threshold": 0.4,
                "iou_threshold": 0.6,
                "topk": 12,
                "max_detections": 15,
                "clip": (700.0, 500.0),
                "activation": "sigmoid",
                "variances": (0.3, 0.7),
            },
            {**SCORED, "topk": None, "max_detections": 200, "score_threshold": 0.2, "iou_threshold": 0.7},
            {"logits": LOGITS[0], "deltas": DELTAS[0].astype(np.float32), "anchors": BOXES, "max_detections": 9},
        ],
        bad=[
            bad("deltas", ValueError, deltas=SCORED["deltas"][:1]),
            bad("logits", ValueError, logits=SCORED["logits"][..., :0]),
            bad("logits|deltas|anchors", ValueError, anchors=HEAPS[:9]),
            bad("score_threshold", ValueError, score_threshold=1.5),
            bad("iou_threshold", ValueError, iou_threshold=np.nan),
            bad("topk", ValueError, topk=-1),
            bad("topk", TypeError, topk=2.0),
            bad("max_detections", TypeError, max_detections=np.array([2])),
            bad("clip", ValueError, clip=(5, -5)),
            bad("activation", ValueError, activation="tanh"),
            bad("variances", ValueError, variances=(0.1, 0)),
        ],
        rare=[{"clip": np.array([200, 300]), "topk": None}],
        mapped=("logits", "deltas"),
        rounded=True,
    ),
}


def cases(rng: np.random.Generator) -> Iterator[Case]:
    anchors = random_boxes(rng, 400)

    def detect(tag: str, logits: Any, deltas: Any, anchors: Any, **options: Any) -> Case:
        return case("postprocess_detections", tag, logits, deltas, anchors, **options)

    for dtype in DTYPES[:3]:
        a = anchors.astype(dtype)
        deltas = (rng.normal(size=(3, 400, 4)) * 0.5).astype(dtype)
        random = rng.normal(size=(3, 400, 6)).astype(dtype)
        trained = random.copy()
        trained[..., 0] += 6
        trained[:, ::40, 1:] += rng.random((3, 10, 5)) * 9
        for tag, logits in (("random logits", random), ("trained logits", trained)):
            if dtype == "float16" and tag == "random logits":
                continue  # scores that tie only after rounding to float16 are a matter of ULPs
            yield detect(f"{tag} {dtype}", logits, deltas, a)
            yield detect(f"{tag} few places {dtype}", logits, deltas, a, topk=15, max_detections=7)
            yield detect(f"{tag} clip {dtype}", logits, deltas, a, clip=(60.0, 80.0), score_threshold=0.2)
            yield detect(f"{tag} sigmoid {dtype}", logits, deltas, a, activation="sigmoid", score_threshold=0.3)
            yield detect(f"{tag} no cut {dtype}", logits, deltas, a, topk=None, score_threshold=0.0, iou_threshold=1.0)
    probabilities = np.round(rng.random((2, 400, 4)) * 8) / 8
    still = np.zeros((2, 400, 4))
    options: dict[str, Any] = {"activation": "none", "score_threshold": 0.5}
    yield detect("tied scores", probabilities, still, anchors, topk=30, **options)
    for threshold in around(0.5, "float64"):
        options["score_threshold"] = threshold
        yield detect(f"score at {threshold!r}", probabilities, still, anchors, **options)
    broken_logits, broken_deltas = random.astype("float32"), deltas.astype("float32")
    broken_logits[:, ::11, 2], broken_logits[:, 1::50, 0] = np.nan, np.inf
    broken_deltas[:, ::13, 3], broken_deltas[:, 1::13, 0], broken_deltas[:, 2::13, 2] = np.inf, np.nan, 1e4
    yield detect("nonfinite", broken_logits, broken_deltas, anchors.astype("float32"), topk=20)
    yield detect("no anchors", random[:, :0], deltas[:, :0], anchors[:0])
    yield detect("no images", random[:0], deltas[:0], anchors)
    yield detect("only background", random[..., :1], deltas, anchors)
    yield detect("no places", random, deltas, anchors, max_detections=0)
    yield detect("one image", trained[0], deltas[0], a)
    yield detect("non-contiguous", trained.transpose(1, 0, 2).copy().transpose(1, 0, 2), strided(deltas), a)


def test_postprocessing_is_the_sum_of_its_parts():
    found = ops.postprocess_detections(LOGITS, DELTAS, BOXES, score_threshold=0.1, iou_threshold=0.4, topk=None)
    boxes = ops.decode_boxes(DELTAS, BOXES)
    scores = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    for image in range(2):
        anchor, label = np.nonzero(scores[image, :, 1:] > 0.1)
        keep = ops.batched_nms(boxes[image, anchor], scores[image, anchor, label + 1], label, 0.4)
        count = found.counts[image]
        assert count == len(keep) > 0
        np.testing.assert_array_equal(found.anchor_idx[image, :count], anchor[keep])
        np.testing.assert_array_equal(found.labels[image, :count], label[keep] + 1)
        np.testing.assert_allclose(found.boxes[image, :count], boxes[image, anchor[keep]])
        assert (found.labels[image, count:] == -1).all()
        assert not found.boxes[image, count:].any()
