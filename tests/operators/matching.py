"""Matching anchors with ground truth as the tests know it (tests/operators/__init__.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastssd import ops
from tests.operators._inputs import (
    BOXES,
    DTYPES,
    FLAT_BOXES,
    NO_ROWS,
    OTHERS,
    Boxes,
    Case,
    Examples,
    around,
    bad,
    case,
    random_boxes,
    strided,
    with_rows,
)

_RNG = np.random.default_rng(0)
ANCHORS = _RNG.integers(0, 40, (40, 1)) + random_boxes(_RNG, 40, span=20, size=30)
GT = ANCHORS[:6].reshape(2, 3, 4) + _RNG.normal(0, 2, (2, 3, 4))
GT_LABELS = np.array([[3, 1, 2], [5, 7, 9]])
PADDED = {"anchors": ANCHORS, "gt_boxes": GT}
LISTS = {"anchors": ANCHORS, "gt_boxes": [GT[0], GT[1, :0], GT[1, :1]]}
ONE_IMAGE = {"anchors": ANCHORS.astype(np.float32), "gt_boxes": GT[0].astype(np.float32)}
MATCHING = {
    "iou_threshold": 0.6,
    "background_threshold": 0.3,
    "force_match": "best",
    "gt_counts": np.array([3, 1]),
}
# The first sample is padded and counted; these are changed to other forms of ground truth.
BOX = OTHERS[:1].astype(np.float32)
UNCOUNTED: dict[str, Any] = {"anchors": BOX, "gt_counts": None}
NO_INTEGERS, LARGE_INTEGERS = np.zeros((0, 4), np.int64), np.array([[0, 0, 2**24 + 1, 10], [3, 3, 9, 9]])

EXAMPLES = {
    "match_anchors": Examples(
        samples=[{**PADDED, **MATCHING}, {**PADDED, "force_match": "none"}, LISTS, ONE_IMAGE],
        bad=[
            bad("iou_threshold", ValueError, iou_threshold=1.5),
            bad("background_threshold", ValueError, background_threshold=0.7),
            bad("force_match", ValueError, force_match="all"),
            bad("force_match", ValueError, force_match=None),
            bad("gt_counts", ValueError, gt_counts=np.array([4, 1])),
            bad("gt_counts", ValueError, gt_counts=np.array([1])),
            bad("gt_counts", TypeError, gt_counts=np.array([1.0, 1.0])),
            bad("gt_counts", ValueError, gt_counts=np.array([2**64 - 1, 0], np.uint64)),
            bad("gt_counts", ValueError, gt_boxes=[GT[0]]),
            bad("gt_boxes", ValueError, gt_boxes=np.where(GT > 20, np.nan, GT)),
            bad("anchors", ValueError, anchors=ANCHORS[:, :3]),
        ],
        rare=[
            {**UNCOUNTED, "gt_boxes": [NO_INTEGERS, BOX]},
            {**UNCOUNTED, "gt_boxes": [LARGE_INTEGERS, BOX]},
            {**UNCOUNTED, "gt_boxes": [BOX.astype(np.int16), BOX.astype(np.uint16)]},
            {**UNCOUNTED, "gt_boxes": [np.ones((4, 5)), BOX]},
            {**UNCOUNTED, "gt_boxes": [NO_ROWS, BOX]},
            {**UNCOUNTED, "gt_boxes": NO_ROWS},
            {**UNCOUNTED, "gt_boxes": BOX, "anchors": NO_ROWS},
            {**UNCOUNTED, "gt_boxes": []},
            {**UNCOUNTED, "gt_boxes": BOX, "gt_counts": np.array([1])},
            {**UNCOUNTED, "gt_boxes": np.where(BOX > 0, np.nan, BOX)},
        ],
        mapped=("gt_boxes", "gt_counts"),
    ),
    "assign_targets": Examples(
        samples=[
            {**PADDED, "gt_labels": GT_LABELS, **MATCHING, "variances": (0.3, 0.7)},
            {**PADDED, "gt_labels": GT_LABELS, "force_match": "none"},
            {**LISTS, "gt_labels": [GT_LABELS[0], GT_LABELS[1, :0], GT_LABELS[1, :1]]},
            {**ONE_IMAGE, "gt_labels": GT_LABELS[0].astype(np.int32)},
        ],
        bad=[
            bad(r"gt_boxes\[0\]\[0\]", ValueError, gt_boxes=GT[..., [0, 1, 0, 3]]),
            bad(r"anchors\[3\]", ValueError, anchors=FLAT_BOXES),
            bad("gt_labels", ValueError, gt_labels=GT_LABELS[:, :2]),
            bad("gt_boxes|label", ValueError, gt_labels=GT_LABELS * 0),
            bad("variances", ValueError, variances=(0.1, 0)),
            bad("variances", TypeError, variances=(0.1, "0.2")),
        ],
        rare=[
            {**UNCOUNTED, "gt_boxes": [BOX, BOX], "gt_labels": [np.array([7], np.uint8), np.array([300])]},
            {**UNCOUNTED, "gt_boxes": [BOX], "gt_labels": [np.array([[7]])]},
            {**UNCOUNTED, "gt_boxes": BOX, "gt_labels": np.array([[7]])},
            {**UNCOUNTED, "gt_boxes": [NO_ROWS, BOX], "gt_labels": [NO_ROWS, np.array([1])]},
            {**UNCOUNTED, "gt_boxes": [BOX], "gt_labels": [np.array([1.0])]},
            {**UNCOUNTED, "gt_boxes": [BOX], "gt_labels": [np.array([2**64 - 1], np.uint64)]},
            {**UNCOUNTED, "gt_boxes": BOX[None], "gt_labels": [np.array([7])], "gt_counts": np.array([1])},
            {**UNCOUNTED, "gt_boxes": [BOX], "gt_labels": [np.array([7]), np.array([7])]},
            {**UNCOUNTED, "gt_boxes": [OTHERS], "gt_labels": np.ones(5, int)},
        ],
        mapped=("gt_boxes", "gt_labels", "gt_counts"),
        rounded=True,
    ),
}


def cases(rng: np.random.Generator) -> Iterator[Case]:
    def both(tag: str, anchors: Boxes, gt: Any, degenerate: bool = False, **options: Any) -> Iterator[Case]:
        yield case("match_anchors", tag, anchors, gt, **options)
        if degenerate:
            return  # assign_targets refuses what it cannot encode
        labels = [np.arange(len(boxes)) % 3 + 1 for boxes in gt]
        labels = labels if isinstance(gt, list) else np.array(labels).reshape(gt.shape[:2])
        yield case("assign_targets", tag, anchors, gt, labels, **options)

    grid = ops.grid_anchors([16, 8, 4, 1], [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.88, 0.961)])
    for force in ("bipartite", "best", "low_quality", "none"):
        for dtype in DTYPES[:2]:
            anchors = grid.astype(dtype)
            gt = [random_boxes(rng, n, span=0.7, size=0.01) * [1, 1, 1.3, 1.3] for n in (4, 0, 1, 23)]
            gt = [np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4).astype(dtype) for boxes in gt]
            gt = [boxes + np.array([0, 0, 0.05, 0.05], dtype) for boxes in gt]
            yield from both(f"typical {force} {dtype}", anchors, gt, force_match=force)
            yield from both(f"ignored {force} {dtype}", anchors, gt, force_match=force, background_threshold=0.3)
            ties = [np.round(random_boxes(rng, n, span=6, size=6)) for n in (9, 40)]
            tied = np.round(random_boxes(rng, 60, span=6, size=6)).astype(dtype)
            yield from both(f"ties {force} {dtype}", tied, [boxes.astype(dtype) for boxes in ties], force_match=force)
            few = random_boxes(rng, 3).astype(dtype)
            yield from both(f"more ground-truth boxes than anchors {force} {dtype}", few, ties, force_match=force)
            yield from both(f"no anchors {force} {dtype}", few[:0], [few], force_match=force)
            far = [few + np.array(1e4, dtype)]
            yield from both(f"nothing overlaps {force} {dtype}", tied, far, force_match=force)
            flat = with_rows(random_boxes(rng, 5), [[3, 3, 3, 8], [9, 9, 1, 1]]).astype(dtype)
            yield from both(f"degenerate {force} {dtype}", tied, [flat], degenerate=True, force_match=force)
        # Two squares, one half of the other: IoU exactly 1/2; and thirds, which no float holds.
        halves = np.array([[0, 0, 2, 2], [0, 0, 1, 2], [5, 5, 8, 8]], np.float32)
        for threshold in (*around(0.5), *around(1 / 3), *around(1 / 3, "float64"), 0.0, 1.0):
            third = [np.array([[0, 0, 1, 2], [5, 5, 6, 8]], np.float32)]
            yield from both(
                f"threshold {threshold!r} {force}", halves, third, force_match=force, iou_threshold=threshold
            )
    padded = np.stack([random_boxes(rng, 6, span=0.5, size=0.3) / [1, 1, 4, 4] + [0, 0, 1, 1] for _ in range(3)])
    yield from both("padded", grid, padded.astype(np.float32), gt_counts=np.array([6, 0, 2]))
    yield from both("batch of none", grid, [])
    yield from both("non-contiguous", strided(grid), [strided(boxes) for boxes in padded])
    yield from both("crowd", random_boxes(rng, 3000), [random_boxes(rng, 64) for _ in range(3)])


def test_matching_by_hand():
    # Anchor 0 is the best of both ground-truth boxes; the larger IoU wins it, the other takes its second best.
    anchors = np.array([[0, 0, 10, 10], [0, 0, 10, 4], [50, 50, 60, 60], [0, 0, 10, 8]], np.float32)
    gt = np.array([[0, 0, 10, 9], [0, 0, 10, 10]], np.float32)
    bipartite = ops.match_anchors(anchors, gt)
    assert bipartite.gt_idx.tolist() == [1, -1, -1, 0]
    np.testing.assert_allclose(bipartite.iou, [1, 40 / 90, 0, 80 / 90], rtol=1e-6)
    # torchvision's: the last ground-truth box wins the shared anchor, the other keeps what the threshold gave.
    assert ops.match_anchors(anchors, gt, force_match="best", iou_threshold=0.95).gt_idx.tolist() == [1, -1, -1, -1]
    # detectron2's: the best anchor of a ground-truth box is positive, for its own best ground-truth box.
    assert ops.match_anchors(anchors, gt, force_match="low_quality", iou_threshold=1).gt_idx.tolist() == [1, -1, -1, -1]
    ignored = ops.match_anchors(anchors, gt, force_match="none", iou_threshold=0.95, background_threshold=0.42)
    assert ignored.gt_idx.tolist() == [1, -2, -1, -2]


def test_matching_images_of_a_batch_do_not_touch_each_other():
    rng = np.random.default_rng(0)
    gt_boxes = [random_boxes(rng, n) for n in (3, 0, 7)]
    batch = ops.match_anchors(BOXES, gt_boxes)
    for image, gt in enumerate(gt_boxes):
        alone = ops.match_anchors(BOXES, gt)
        np.testing.assert_array_equal(batch.gt_idx[image], alone.gt_idx)
        np.testing.assert_array_equal(batch.iou[image], alone.iou)


def test_targets_are_matches_and_encoded_boxes():
    sample = EXAMPLES["assign_targets"].samples[0]
    labels, deltas, gt_idx = ops.assign_targets(**sample)
    matches = ops.match_anchors(**EXAMPLES["match_anchors"].samples[0])
    np.testing.assert_array_equal(gt_idx, matches.gt_idx)
    for image in range(2):
        positive = gt_idx[image] >= 0
        truth = gt_idx[image, positive]
        np.testing.assert_array_equal(labels[image, positive], GT_LABELS[image, truth])
        np.testing.assert_array_equal(labels[image, ~positive], np.minimum(gt_idx[image, ~positive] + 1, 0))
        encoded = ops.encode_boxes(GT[image, truth], ANCHORS[positive], variances=(0.3, 0.7))
        np.testing.assert_allclose(deltas[image, positive], encoded)
        assert not deltas[image, ~positive].any()
