"""What the compiled kernels of postprocessing and mining do beyond the case table: shortcuts that must not show."""

from __future__ import annotations

import numpy as np
import pytest

import fastssd
from fastssd import ops

pytest.importorskip("fastssd._C", reason="this build has no compiled kernels")


def both(call):
    with fastssd.use_backend("cpp"):
        comp = call()
    with fastssd.use_backend("reference"):
        return comp, call()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_is_within_its_ulps_over_all_its_range(dtype):
    low, high = (-103.0, 88.7) if dtype is np.float32 else (-744.0, 709.7)
    x = np.concatenate([np.linspace(low, high, 20001), np.linspace(-1, 1, 20001), [0.0, 1e-30, -1e-30]]).astype(dtype)
    deltas = np.zeros((len(x), 4), dtype)
    deltas[:, 2] = x
    anchors = np.tile(np.array([-0.5, -0.5, 0.5, 0.5], dtype), (len(x), 1))
    with fastssd.use_backend("cpp"):
        boxes = ops.decode_boxes(deltas, anchors, variances=(1.0, 1.0))
        deltas[:6, 2] = [np.nan, np.inf, -np.inf, 1e9, -1e9, -0.0]
        special = ops.decode_boxes(deltas[:6], anchors[:6], variances=(1.0, 1.0))
    exact = np.exp(x.astype(np.longdouble)) / 2
    assert (np.abs(boxes[:, 2] - exact) <= 2 * np.spacing(exact.astype(dtype))).all()
    np.testing.assert_array_equal(special[:, 2], [np.nan, np.inf, 0, np.inf, 0, 0.5])


@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("topk", [3, 400, None])
def test_of_very_many_candidates_none_that_matters_is_left_out(iou_threshold, topk):
    """More candidates than are kept at once, ties everywhere, and NMS so strong that the best are not enough."""
    rng = np.random.default_rng(0)
    scores = np.round(rng.random((2, 2000, 9)) * 512) / 512
    corner = np.round(rng.random((2000, 2)) * 40)
    anchors = np.concatenate([corner, corner + np.round(rng.random((2000, 2)) * 30) + 8], axis=1)
    comp, ref = both(
        lambda: ops.postprocess_detections(
            scores, np.zeros((2, 2000, 4)), anchors, activation="none", topk=topk, iou_threshold=iou_threshold
        )
    )
    for c, r in zip(comp, ref, strict=True):
        np.testing.assert_array_equal(c, r)


@pytest.mark.parametrize("offset", [0.0, 3e4, -3e4])
def test_rows_are_skipped_only_where_they_cannot_matter(offset):
    """Softmax of rows with one or two large logits, or none, at any height."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(1, 1500, 40)) * rng.choice([0.1, 1, 4, 20], (1, 1500, 1)) + offset
    logits[0, ::50, 3] = np.inf
    logits[0, 1::50, 5] = -np.inf
    anchors = np.tile([0.0, 0.0, 1.0, 1.0], (1500, 1)) + np.arange(1500)[:, None]
    comp, ref = both(lambda: ops.postprocess_detections(logits, np.zeros((1, 1500, 4)), anchors, score_threshold=1e-4))
    np.testing.assert_array_equal(comp.anchor_idx, ref.anchor_idx)
    np.testing.assert_array_equal(comp.labels, ref.labels)
    np.testing.assert_allclose(comp.scores, ref.scores, rtol=1e-14)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 513, 9001])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mining_of_ties_and_special_losses_at_every_size_of_group(n, dtype):
    rng = np.random.default_rng(n)
    for levels in (1, 3, 1000):
        loss = (np.round(rng.normal(size=(3, n)) * levels) / levels).astype(dtype)
        for special in (np.nan, np.inf, -np.inf, -0.0):
            loss[rng.random(loss.shape) < 0.02] = special
        positive = rng.random(loss.shape) < 0.01
        for least in (0, 1, 10, n // 100, n // 3, n):
            comp, ref = both(lambda: ops.mine_hard_negatives(loss, positive, min_negatives=least))  # noqa: B023
            np.testing.assert_array_equal(comp, ref)
