"""Properties that hold for any boxes, searched by hypothesis in the backend that users get."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssd import ops

SETTINGS = settings(max_examples=100, deadline=None)
# Coordinates on a coarse grid meet ties, shared edges and equal boxes; free floats meet everything else.
coordinate = st.one_of(st.integers(0, 16).map(float), st.floats(0, 1000, width=32))


@st.composite
def box_arrays(draw, min_size=0, max_size=12):
    n = draw(st.integers(min_size, max_size))
    corners = draw(hnp.arrays(np.float32, (n, 2), elements=coordinate))
    sides = draw(hnp.arrays(np.float32, (n, 2), elements=st.floats(0.125, 100, width=32)))
    return np.concatenate([corners, corners + sides], axis=1)


@st.composite
def scored_boxes(draw):
    boxes = draw(box_arrays())
    scores = draw(hnp.arrays(np.float32, len(boxes), elements=st.integers(0, 8).map(lambda i: i / 8)))
    return boxes, scores, draw(st.sampled_from([0.0, 0.3, 0.45, 0.5, 0.7, 1.0]))


@SETTINGS
@given(box_arrays(), box_arrays())
def test_iou_is_symmetric_in_range_and_one_with_itself(a, b):
    for function, low in ((ops.box_iou, 0), (ops.generalized_box_iou, -1), (ops.distance_box_iou, -1)):
        values = function(a, b)
        assert ((values >= low - 1e-6) & (values <= 1 + 1e-6)).all()
        np.testing.assert_array_equal(values, function(b, a).T)
    np.testing.assert_array_equal(np.diag(ops.box_iou(a, a)), np.ones(len(a), np.float32))
    np.testing.assert_array_equal(ops.paired_box_iou(a, a), np.ones(len(a), np.float32))


@SETTINGS
@given(box_arrays(), st.data())
def test_encode_and_decode_are_inverse(boxes, data):
    anchors = data.draw(box_arrays(len(boxes), len(boxes)))
    back = ops.decode_boxes(ops.encode_boxes(boxes, anchors), anchors)
    scale = 1 + np.abs(np.concatenate([boxes, anchors])).max(initial=0)
    np.testing.assert_allclose(back, boxes, rtol=0, atol=1e-5 * scale)


@SETTINGS
@given(scored_boxes())
def test_nms_keeps_a_set_that_is_sorted_apart_and_final(case):
    boxes, scores, threshold = case
    keep = ops.nms(boxes, scores, threshold)
    order = list(zip(-scores[keep], keep, strict=True))
    assert order == sorted(order)
    overlaps = ops.box_iou(boxes[keep], boxes[keep]).astype(np.float64)
    assert (overlaps[~np.eye(len(keep), dtype=bool)] <= threshold).all()
    np.testing.assert_array_equal(ops.nms(boxes[keep], scores[keep], threshold), np.arange(len(keep)))
    gone = np.setdiff1d(np.arange(len(boxes)), keep)
    suppressed = ops.box_iou(boxes[gone], boxes[keep]).astype(np.float64) > threshold
    assert (suppressed & (scores[keep] >= scores[gone][:, None])).any(axis=1).all()


@SETTINGS
@given(scored_boxes(), st.randoms(use_true_random=False))
def test_nms_does_not_depend_on_the_order_of_the_boxes(case, random):
    boxes, scores, threshold = case
    scores = scores + np.arange(len(scores), dtype=np.float32) / 1024  # no ties: they go by index
    order = np.array(random.sample(range(len(boxes)), len(boxes)), np.int64)
    np.testing.assert_array_equal(
        order[ops.nms(boxes[order], scores[order], threshold)], ops.nms(boxes, scores, threshold)
    )


@SETTINGS
@given(box_arrays(1, 12), box_arrays(0, 12))
def test_matching_every_ground_truth_owns_an_anchor(anchors, gt):
    gt_idx, iou = ops.match_anchors(anchors, gt)
    assert len(np.unique(gt_idx[gt_idx >= 0])) >= min(len(anchors), len(gt))
    quality = ops.box_iou(anchors, gt)
    positive = gt_idx >= 0
    np.testing.assert_array_equal(iou[positive], quality[np.flatnonzero(positive), gt_idx[positive]])
    if len(gt):
        assert positive[(quality >= 0.5).any(axis=1)].all()
        assert np.count_nonzero(positive & (quality.max(axis=1) < 0.5)) <= len(gt)


@SETTINGS
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(0, 3), st.integers(0, 40)), elements=st.floats(0, 4, width=16)),
    st.data(),
)
def test_mining_takes_the_right_number_of_the_highest(loss, data):
    positive = data.draw(hnp.arrays(np.bool_, loss.shape))
    ratio, least = data.draw(st.floats(0, 5)), data.draw(st.integers(0, 5))
    mask = ops.mine_hard_negatives(loss, positive, neg_pos_ratio=ratio, min_negatives=least)
    assert not (mask & positive).any()
    for row, chosen, pos in zip(loss, mask, positive, strict=True):
        assert chosen.sum() == min(max(math.ceil(ratio * pos.sum()), least), (~pos).sum())
        left = ~pos & ~chosen
        if chosen.any() and left.any():
            assert row[chosen].min() >= row[left].max()
