"""Non-maximum suppression as the tests know it (tests/operators/__init__.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastssd import ops, use_backend
from fastssd.backends import available_backends
from tests.operators._inputs import (
    BOXES,
    DTYPES,
    NAN_BOXES,
    NO_ROWS,
    PAST_INT64,
    SCORES,
    Boxes,
    Case,
    Examples,
    around,
    as_dtype,
    bad,
    box_sets,
    case,
    crowd,
    extremes,
    nonfinite,
    random_boxes,
    random_scores,
    strided,
)

_RNG = np.random.default_rng(0)
HEAPS = crowd(_RNG, 12, 4)
WITH_NAN = np.where(np.arange(48).reshape(12, 4) == 41, np.nan, HEAPS)
SAMPLE = {"boxes": WITH_NAN, "scores": SCORES}
FINITE = {"boxes": HEAPS, "scores": SCORES}
EMPTY = {"boxes": HEAPS[:0], "scores": SCORES[:0]}
GROUPS = np.arange(12) % 2
BAD = [
    bad("boxes", ValueError, boxes=HEAPS[:, :3]),
    bad("boxes", ValueError, boxes=HEAPS[0]),
    bad("boxes", TypeError, boxes=HEAPS + 1j),
    bad("scores", ValueError, scores=SCORES[:5]),
    bad(r"boxes\[1\]", ValueError, boxes=NAN_BOXES, nonfinite="raise"),
    bad(
        r"scores\[4\]", ValueError, boxes=HEAPS, scores=np.where(SCORES[4] == SCORES, np.nan, SCORES), nonfinite="raise"
    ),
    bad("nonfinite", ValueError, nonfinite="maybe"),
    bad("iou_threshold", ValueError, iou_threshold=1.5),
    bad("iou_threshold", ValueError, iou_threshold=np.nan),
    bad("iou_threshold", TypeError, iou_threshold="0.5 or so"),
]

EXAMPLES = {
    "nms": Examples(
        samples=[
            {**SAMPLE, "iou_threshold": 0.4, "nonfinite": "drop"},
            {**FINITE, "iou_threshold": 0.8, "nonfinite": "raise"},
            {**EMPTY, "iou_threshold": 0.3},
        ],
        bad=[
            *BAD,
            bad("boxes", TypeError, boxes=[["a"] * 4], scores=[1.0]),
            bad("boxes", TypeError, boxes=[[1, 2, 3, 4], [1]], scores=[1.0]),
        ],
        rare=[
            {"boxes": NO_ROWS, "scores": NO_ROWS},
            *({"iou_threshold": value} for value in (1, np.array(0.5), np.array([0.5]), "0.5", np.array("0.5"))),
            *({"iou_threshold": value} for value in (False, np.bool_(True))),
        ],
    ),
    "batched_nms": Examples(
        samples=[
            {**SAMPLE, "idxs": GROUPS, "iou_threshold": 0.4, "nonfinite": "drop"},
            {**FINITE, "idxs": GROUPS.astype(np.uint8), "iou_threshold": 0.8, "nonfinite": "raise"},
            {**EMPTY, "idxs": GROUPS[:0], "iou_threshold": 0.3},
        ],
        bad=[*BAD, bad("idxs", TypeError, idxs=SCORES), bad("idxs", ValueError, idxs=np.arange(3))],
        rare=[
            {"boxes": BOXES[:1].repeat(12, 0), "idxs": PAST_INT64},
            {"boxes": NO_ROWS, "scores": NO_ROWS, "idxs": NO_ROWS},
        ],
    ),
    "soft_nms": Examples(
        samples=[
            {
                **SAMPLE,
                "method": "gaussian",
                "iou_threshold": 0.5,
                "sigma": 0.7,
                "score_threshold": 0.15,
                "nonfinite": "drop",
            },
            {
                **FINITE,
                "method": "linear",
                "iou_threshold": 0.8,
                "sigma": 0.2,
                "score_threshold": 0.1,
                "nonfinite": "raise",
            },
            {**EMPTY},
            FINITE,
        ],
        bad=[
            *BAD,
            bad("method", ValueError, method="hard"),
            bad("sigma", ValueError, sigma=0),
            bad("score_threshold", ValueError, score_threshold=np.nan),
        ],
        rare=[{"boxes": NO_ROWS, "scores": NO_ROWS}, {"score_threshold": -1}],
        rounded=True,
    ),
    "matrix_nms": Examples(
        samples=[
            {
                **SAMPLE,
                "idxs": GROUPS,
                "method": "gaussian",
                "sigma": 0.7,
                "score_threshold": 0.15,
                "nonfinite": "drop",
            },
            {
                **FINITE,
                "idxs": GROUPS.astype(np.uint8),
                "method": "linear",
                "sigma": 0.2,
                "score_threshold": 0.1,
                "nonfinite": "raise",
            },
            {**EMPTY, "idxs": GROUPS[:0]},
            {**FINITE, "idxs": GROUPS * 0},
        ],
        bad=[
            *(each for each in BAD if each.names != "iou_threshold"),
            bad("idxs", TypeError, idxs=SCORES),
            bad("method", ValueError, method="hard"),
            bad("sigma", ValueError, sigma=0),
            bad("score_threshold", ValueError, score_threshold=-1),
        ],
        rare=[
            {"boxes": BOXES[:1].repeat(12, 0), "idxs": PAST_INT64},
            {"boxes": NO_ROWS, "scores": NO_ROWS, "idxs": NO_ROWS},
            {"sigma": 1e-30},
            {"sigma": 1e300},
        ],
        rounded=True,
    ),
}


def cases(rng: np.random.Generator) -> Iterator[Case]:
    def each(tag: str, boxes: Boxes, scores: Any, thresholds: tuple[float, ...]) -> Iterator[Case]:
        groups = rng.integers(-2, 3, len(boxes))
        for threshold in thresholds:
            name = f"{tag} threshold {threshold!r}"
            yield case("nms", name, boxes, scores, threshold)
            yield case("batched_nms", name, boxes, scores, groups, threshold)
        for method in ("linear", "gaussian"):
            if len(boxes) < 1000:
                yield case("soft_nms", f"{tag} {method}", boxes, scores, method=method)
                for groups_tag, some in (("", groups), (" one group", groups * 0)):
                    yield case("matrix_nms", f"{tag} {method}{groups_tag}", boxes, scores, some, method=method)

    usual = (0.3, 0.45, 0.5, 0.7)
    for tag, boxes in [*box_sets(rng), ("nonfinite", nonfinite(rng)), ("extremes", extremes(rng))]:
        for dtype in DTYPES if tag == "typical" else DTYPES[:2]:
            b = as_dtype(boxes, dtype)
            float_type = dtype if dtype in ("float32", "float64") else "float32"
            yield from each(f"{tag} {dtype}", b, random_scores(rng, b).astype(float_type), (0.0, *usual, 1.0))
            yield from each(f"{tag} tied scores {dtype}", b, random_scores(rng, b, steps=3).astype(float_type), (0.5,))
    # Pairs whose IoU is the threshold itself: kept at it, suppressed one ULP under it.
    for dtype in DTYPES[:2]:
        pairs = np.concatenate([[[i * 9, 0, i * 9 + 8, 8], [i * 9, 0, i * 9 + 8, i + 1]] for i in range(8)]).astype(
            dtype
        )
        exact = tuple(t for i in range(1, 9) for t in around(i / 8, dtype))
        yield from each(f"at the threshold {dtype}", pairs, np.linspace(1, 0, 16).astype(dtype), exact)
        thirds = np.array([[0, 0, 3, 3], [0, 0, 1, 3], [10, 0, 13, 3], [10, 0, 12, 3]], dtype)
        exact = (*around(1 / 3, dtype), *around(2 / 3, dtype), 1 / 3, 2 / 3)
        yield from each(f"thirds {dtype}", thirds, np.array([4, 3, 2, 1], dtype), exact)
    few = random_boxes(rng, 50)
    special = random_scores(rng, few, steps=4)
    special[::9], special[1::9], special[2::9], special[3::9] = np.nan, np.inf, -np.inf, -0.0
    yield from each("special scores", few, special, (0.3,))
    yield from each("non-contiguous", strided(few), random_scores(rng, few)[::-1], (0.3,))
    crowded, signed = crowd(rng, 600, 10), rng.random(600) * 20 - 10
    signed[::17], signed[1::50], signed[2::50] = np.nan, -0.0, 0.0
    for dtype in DTYPES[:2]:
        yield from each(f"scores of both signs and NaN {dtype}", crowded.astype(dtype), signed.astype(dtype), (0.45,))
    # Large enough that the faster kernels change their plan.
    for dtype in DTYPES[:2]:
        for tag, boxes in (("large crowd", crowd(rng, 3000, 40)), ("large sparse", random_boxes(rng, 6000, span=5000))):
            b = boxes.astype(dtype)
            yield from each(f"{tag} {dtype}", b, random_scores(rng, b).astype(dtype), (0.45,))
            tied = random_scores(rng, b, steps=9).astype(dtype)
            yield from each(f"{tag} tied {dtype}", np.round(b / 8) * 8, tied, (0.3, 0.5))


def test_nms_by_hand():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30], [0, 0, 10, 6]], np.float32)
    scores = np.array([0.9, 0.8, 0.8, 0.95], np.float32)
    assert ops.nms(boxes, scores, 0.5).tolist() == [3, 2]
    assert ops.nms(boxes, scores, 0.6).tolist() == [3, 2]  # 6 / 10 in float32 is greater than 0.6 in double
    assert ops.nms(boxes, scores, 0.61).tolist() == [3, 0, 2]
    assert ops.batched_nms(boxes, scores, [0, 1, 0, 1], 0.5).tolist() == [3, 0, 2]


def test_nms_nonfinite_boxes_leave_the_others_unaffected():
    wrong = np.array([[np.nan, 0, 1, 1], [-np.inf, -np.inf, np.inf, np.inf]])
    mixed, scores = np.concatenate([BOXES, wrong]), np.concatenate([SCORES, [2.0, 3.0]])
    np.testing.assert_array_equal(ops.nms(mixed, scores, 0.3), ops.nms(BOXES, SCORES, 0.3))


def test_nms_groups_are_names_of_64_bits():
    groups = np.array([2**64 - 1, 2**63, 2**64 - 1], np.uint64)
    assert ops.batched_nms(BOXES[:1].repeat(3, 0), [3.0, 2.0, 1.0], groups, 0.3).tolist() == [0, 1]


def test_soft_nms_by_hand():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]], np.float64)
    keep, scores = ops.soft_nms(boxes, np.array([0.9, 0.8, 0.5]), method="linear", iou_threshold=0.3)
    assert keep.tolist() == [0, 2, 1]
    np.testing.assert_allclose(scores, [0.9, 0.5, 0.4])
    _, scores = ops.soft_nms(boxes, np.array([0.9, 0.8, 0.5]), method="gaussian", sigma=0.5)
    np.testing.assert_allclose(scores, [0.9, 0.5, 0.8 * np.exp(-0.5)])


def test_matrix_nms_by_hand():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4], [50, 50, 60, 60]], np.float64)
    scores = np.array([0.9, 0.8, 0.7, 0.6])  # IoU of the first three: 0.5, 0.4 and, of the last two, 0.8
    keep, lowered = ops.matrix_nms(boxes, scores, [7, 7, 7, 7], method="linear")
    assert keep.tolist() == [0, 3, 1, 2]
    np.testing.assert_allclose(lowered, [0.9, 0.6, 0.8 * 0.5, 0.7 * 0.2 / 0.5])
    keep, lowered = ops.matrix_nms(boxes, scores, [7, 7, 7, 7], method="gaussian", sigma=0.5)
    assert keep.tolist() == [0, 3, 1, 2]
    np.testing.assert_allclose(lowered, [0.9, 0.6, 0.8 * np.exp(-0.5), 0.7 * np.exp((0.25 - 0.64) / 0.5)])
    keep, lowered = ops.matrix_nms(boxes, scores, [7, 7, 8, 7], method="linear", score_threshold=0.4)
    assert (keep.tolist(), lowered.tolist()) == ([0, 2, 3], [0.9, 0.7, 0.6])  # 0.4 is not greater than 0.4


@pytest.mark.parametrize("backend", available_backends())
def test_matrix_nms_repeated_boxes_decay_nothing_more(backend):
    boxes = np.array([[0, 0, 10, 10]] * 3 + [[0, 0, 10, 5]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    with use_backend(backend):
        keep, lowered = ops.matrix_nms(boxes, scores, [0] * 4, method="linear", score_threshold=0)
        assert (keep.tolist(), lowered.tolist()) == ([0, 3], [scores[0], scores[3] / 2])
        keep, lowered = ops.matrix_nms(boxes, scores, [0] * 4, sigma=1e-30, score_threshold=0)
        assert (keep.tolist(), lowered.tolist()) == ([0], [scores[0]])


@pytest.mark.parametrize("backend", available_backends())
def test_matrix_nms_linear_is_bit_for_bit(backend):
    for each in cases(np.random.default_rng(2)):
        if each.operator == "matrix_nms" and each.options["method"] == "linear":
            with use_backend("reference"):
                ref = each.call()
            with use_backend(backend):
                for r, c in zip(ref, each.call(), strict=True):
                    np.testing.assert_array_equal(r, c, each.name)
