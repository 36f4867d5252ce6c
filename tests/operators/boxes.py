"""Areas, formats, clipping and small boxes as the tests know them (tests/operators/__init__.py)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastssd import ops
from tests.operators._inputs import (
    BOXES,
    DTYPES,
    NO_ROWS,
    Case,
    Examples,
    as_dtype,
    bad,
    case,
    hostile_box_sets,
    strided,
)

HALF = BOXES.astype(np.float16)
EXAMPLES = {
    "box_area": Examples(
        samples=[{"boxes": BOXES}, {"boxes": BOXES.reshape(3, 4, 4)}, {"boxes": BOXES[:0]}, {"boxes": HALF}],
        bad=[bad("boxes", ValueError, boxes=BOXES[:, :3]), bad("boxes", TypeError, boxes=BOXES + 1j)],
        rare=[{"boxes": NO_ROWS}],
        gradients=("boxes",),
        mapped=("boxes",),
    ),
    "box_convert": Examples(
        samples=[
            {"boxes": BOXES, "in_fmt": "xyxy", "out_fmt": "cxcywh"},
            {"boxes": BOXES.reshape(3, 4, 4), "in_fmt": "xywh", "out_fmt": "xyxy"},
            {"boxes": BOXES, "in_fmt": "cxcywh", "out_fmt": "cxcywh"},
            {"boxes": BOXES, "in_fmt": "cxcywh", "out_fmt": "xywh"},
        ],
        bad=[bad("in_fmt", ValueError, in_fmt="yxyx"), bad("out_fmt", ValueError, out_fmt=5)],
        rare=[{"boxes": BOXES > 9, "out_fmt": "xywh"}],
        gradients=("boxes",),
        mapped=("boxes",),
    ),
    "clip_boxes_to_image": Examples(
        samples=[{"boxes": BOXES, "size": (50, 60.5)}, {"boxes": BOXES.reshape(3, 4, 4), "size": (70.0, 40.0)}],
        bad=[
            bad("size", ValueError, size=(5, -5)),
            bad("size", ValueError, size=(5, 5, 5)),
            bad("size", TypeError, size=(5, True)),
        ],
        rare=[{"boxes": -0.0 * BOXES, "size": (0, 9)}, {"size": "55"}, {"size": np.array([5, 9])}],
        gradients=("boxes",),
        mapped=("boxes",),
    ),
    "remove_small_boxes": Examples(
        samples=[
            {"boxes": BOXES, "min_size": 12.5},
            {"boxes": BOXES, "min_size": 99},
            {"boxes": BOXES[:0], "min_size": 3},
        ],
        bad=[bad("boxes", ValueError, boxes=BOXES[None]), bad("min_size", ValueError, min_size=np.nan)],
        rare=[{"boxes": NO_ROWS, "min_size": 1}, {"min_size": "1"}, {"min_size": 10**400}],
    ),
}


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for name, boxes in hostile_box_sets(rng):
        for dtype in DTYPES if name == "typical" else DTYPES[:2]:
            b, tag = as_dtype(boxes, dtype), f"{name} {dtype}"
            yield case("box_area", tag, b)
            yield case("clip_boxes_to_image", tag, b, (50, 70.5))
            yield case("remove_small_boxes", tag, b, 12)
            for source in ("xyxy", "xywh", "cxcywh"):
                for target in ("xyxy", "xywh", "cxcywh"):
                    yield case("box_convert", f"{tag} {source} to {target}", b, source, target)
    sides = np.float32(3) + np.arange(-3, 4, dtype=np.float32) * np.spacing(np.float32(3))
    threshold = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    yield case("remove_small_boxes", "threshold", threshold, 3.0)
    yield case("box_area", "non-contiguous", strided(threshold))
    yield case("clip_boxes_to_image", "leading dimensions", threshold[None, None], (1, 2))


def test_boxes_by_hand():
    boxes = np.array([[1.0, 2, 4, 8], [5, 5, 3, 9], [0, 0, 2, 2]])
    assert ops.box_area(boxes).tolist() == [18, 0, 4]  # the second has no extent
    assert ops.box_convert(boxes[:1], "xyxy", "cxcywh").tolist() == [[2.5, 5, 3, 6]]
    assert ops.box_convert([[2.5, 5, 3, 6]], "cxcywh", "xywh").tolist() == [[1, 2, 3, 6]]
    assert ops.clip_boxes_to_image(boxes[:1], (5, 3)).tolist() == [[1, 2, 3, 5]]  # (height, width)
    assert ops.remove_small_boxes(boxes, 3).tolist() == [0]
