"""torch.ops.fastssd.*: every operator is registered as torch demands, and behaves under its transforms."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import fastssd
from fastssd import ops

torch = pytest.importorskip("torch")

from fastssd.ops import _library

GENERATOR = torch.Generator().manual_seed(0)


def random(*shape):
    return torch.rand(shape, generator=GENERATOR)


def boxes(*shape):
    corner = random(*shape, 2)
    return torch.cat((corner, corner + 0.05 + random(*shape, 2)), -1)


def graded(tensor):
    return tensor.clone().requires_grad_()


NAN = torch.full((1, 4), torch.nan)
LABELS = torch.tensor([[1, 0, -1, 2, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]])
PAIRS = [
    (boxes(5), boxes(3)),
    (graded(boxes(2, 4)), graded(boxes(3, 1, 2))),
    (boxes(0), graded(boxes(2).double())),
    (boxes(4).bfloat16(), (boxes(2) * 9).to(torch.uint8)),
]
TRUTH = (boxes(7), boxes(2, 3), torch.tensor([3, 0]))
GRID = ([3, 4, 1, 1], [0.2, 0.3, 0.9], [2, 1], [1.0, 2.0, 1.0], [2, 1])
SAMPLES = {
    "box_area": [(boxes(2, 3),), (graded(boxes(3)),), (boxes(0),), (boxes(2).half(),)],
    "box_convert": [(boxes(3), "xyxy", "cxcywh"), (graded(boxes(2, 3)), "xywh", "xyxy"), (boxes(2), "xywh", "xywh")],
    "clip_boxes_to_image": [(boxes(3), [0.5, 0.7]), (graded(boxes(2, 3)), [0.5, 0.7])],
    "remove_small_boxes": [(boxes(6), 0.5), (boxes(6), 9.0), (boxes(0), 0.5)],
    "grid_anchors": [GRID, (*GRID, [300.0, 400.0], True, torch.float64)],
    "box_iou": PAIRS,
    "generalized_box_iou": PAIRS,
    "distance_box_iou": PAIRS,
    "complete_box_iou": PAIRS,
    "paired_box_iou": [(boxes(5), boxes(5)), (graded(boxes(2, 5)), boxes(2, 5).double()), (boxes(0), boxes(0))],
    "match_anchors": [TRUTH, (boxes(7), boxes(3)), (boxes(7), boxes(0).double(), None, 0.6, 0.3, "low_quality")],
    "assign_targets": [
        (TRUTH[0], TRUTH[1], torch.ones(2, 3, dtype=torch.int64), TRUTH[2]),
        (boxes(7), boxes(3), torch.tensor([1, 2, 1], dtype=torch.int32), None, 0.5, 0.4, "best", [1.0, 1.0]),
    ],
    "mine_hard_negatives": [(random(2, 7), LABELS > 0), (random(7), LABELS[0] > 0, 1.5, 2)],
    "multibox_cross_entropy": [(graded(random(2, 7, 3)), LABELS), (random(7, 3).half(), LABELS[0], 1.5, 2)],
    "multibox_cross_entropy_gradient": [(torch.tensor(0.3), random(2, 7, 3), LABELS, LABELS > 0)],
    "encode_boxes": [(graded(boxes(2, 5)), boxes(5)), (boxes(5), graded(boxes(5)), [1.0, 1.0])],
    "decode_boxes": [(graded(random(2, 5, 4)), boxes(5)), (random(5, 4), graded(boxes(5)), [1.0, 1.0])],
    "nms": [(boxes(9), random(9), 0.3), (boxes(1), random(1), 0.3), (boxes(0), random(0), 0.3, "raise")],
    "batched_nms": [(boxes(9), random(9), torch.arange(9) % 3, 0.1), (boxes(0), random(0), torch.arange(0), 0.1)],
    "soft_nms": [(boxes(9), random(9)), (boxes(3), random(3).double(), "gaussian", 0.3, 0.5, 2.0)],
    "postprocess_detections": [
        (random(2, 7, 3) * 3, random(2, 7, 4), boxes(7)),
        (random(7, 3), random(7, 4).double(), boxes(7), 0.5, 0.4, None, 3, [0.5, 0.7], "sigmoid", [1.0, 1.0]),
    ],
}
CASES = [
    pytest.param(name, values, id=f"{name}-{i}") for name, all_of in SAMPLES.items() for i, values in enumerate(all_of)
]


def test_every_public_operator_is_registered():
    public = {name for name in ops.__all__ if name.islower()}
    assert public <= set(_library.OPERATORS) == set(SAMPLES)


@pytest.mark.parametrize(("name", "values"), CASES)
def test_opcheck(name, values):
    torch.library.opcheck(getattr(torch.ops.fastssd, name), values)
