"""Encoding and decoding of boxes as the tests know it (tests/operators/__init__.py)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastssd import ops
from tests.operators._inputs import (
    BOXES,
    DELTAS,
    DTYPES,
    FLAT_BOXES,
    NO_ROWS,
    Case,
    Examples,
    bad,
    case,
    random_boxes,
    strided,
)

EXAMPLES = {
    "encode_boxes": Examples(
        samples=[
            {"boxes": BOXES[::-1], "anchors": BOXES, "variances": (0.3, 0.7)},
            {"boxes": np.stack([BOXES + 1, BOXES[::-1]]), "anchors": BOXES},
            {"boxes": BOXES[:0], "anchors": BOXES[:0]},
            {"boxes": BOXES.astype(np.float16), "anchors": BOXES.astype(np.float32)},
        ],
        bad=[
            bad(r"boxes\[3\]", ValueError, boxes=FLAT_BOXES),
            bad(r"anchors\[3\]", ValueError, anchors=FLAT_BOXES),
            bad("boxes", ValueError, boxes=BOXES[:3]),
            bad("variances", ValueError, variances=(0.1, 0)),
        ],
        rare=[{"boxes": NO_ROWS, "anchors": NO_ROWS}],
        gradients=("boxes", "anchors"),
        mapped=("boxes", "anchors"),
        rounded=True,
    ),
    "decode_boxes": Examples(
        samples=[
            {"deltas": DELTAS, "anchors": BOXES, "variances": (0.3, 0.7)},
            {"deltas": DELTAS[0], "anchors": BOXES},
            {"deltas": DELTAS[:, :0], "anchors": BOXES[:0]},
            {"deltas": DELTAS.astype(np.float16), "anchors": BOXES.astype(np.float32)},
        ],
        bad=[bad("deltas", ValueError, anchors=BOXES[:3]), bad("variances", ValueError, variances=0.1)],
        rare=[{"deltas": NO_ROWS, "anchors": NO_ROWS}],
        gradients=("deltas", "anchors"),
        mapped=("deltas", "anchors"),
        rounded=True,
    ),
}


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for dtype in DTYPES[:3]:
        boxes, anchors = random_boxes(rng, 90).astype(dtype), random_boxes(rng, 90).astype(dtype)
        deltas = rng.normal(size=(2, 90, 4)).astype(dtype)
        for variances in ((0.1, 0.2), (1.0, 1.0)):
            tag = f"typical {dtype} {variances}"
            yield case("encode_boxes", tag, boxes, anchors, variances=variances)
            yield case("decode_boxes", tag, deltas, anchors, variances=variances)
        yield case("encode_boxes", f"empty {dtype}", boxes[:0], boxes[:0])
        yield case("decode_boxes", f"empty {dtype}", deltas[:, :0], boxes[:0])
        yield case("encode_boxes", f"non-contiguous {dtype}", strided(boxes), anchors)
    wild = np.array([[np.nan, 0, 0, 0], [0, 0, 1e6, -1e6], [np.inf, 0, 0, 0], [1, 1, np.inf, -np.inf]])
    yield case("decode_boxes", "nonfinite", wild, random_boxes(np.random.default_rng(0), 4))


def test_coding_by_hand():
    anchors, boxes = np.array([[0.0, 0, 10, 20]]), np.array([[6.0, 5, 8, 45]])
    # The center moves by (0.2, 0.75) of the anchor's sides; the sides become a fifth and twice as long.
    expected = np.array([[0.2 / 0.1, 0.75 / 0.1, np.log(0.2) / 0.2, np.log(2) / 0.2]])
    np.testing.assert_allclose(ops.encode_boxes(boxes, anchors), expected)
    np.testing.assert_allclose(ops.decode_boxes(expected, anchors), boxes)
