"""NMS in every backend on input that is rare: NaN scores, one box far larger than all others, arrays that change."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import fastssd
from fastssd import ops
from fastssd.backends import available_backends

FAST = [name for name in available_backends() if name != "reference"]
SIZES = [32, 33, 255, 256, 600, 4097]  # around every branch
UNUSUAL = {
    "huge": [-1e9, -1e9, 1e9, 1e9],
    "huge on one axis": [-1e9, 3, 1e9, 4],
    "far": [1e9, 1e9, 1e9 + 1000, 1e9 + 1000],
    "farther": [1e25, 1e25, 2e25, 2e25],
    "tiny": [5, 5, 5 + 1e-6, 5 + 1e-6],
    "of a tiny area": [0, 0, 1e-15, 1e-15],
    "of an area that is hardly a number": [0, 0, 1e-22, 1e-22],
    "of no area": [10, 10, 10, 20],
    "not finite": [np.nan, 0, np.inf, 1],
}


def boxes_of(kind, rng, n):
    side = {"crowded": 3, "sparse": 100}[kind] * np.sqrt(n)
    corner = rng.uniform(0, side, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(10, 100, (n, 2))], axis=1)


def assert_as_reference(backend, boxes, scores, threshold, groups=None):
    arrays = (boxes, scores) if groups is None else (boxes, scores, groups)
    function = ops.nms if groups is None else ops.batched_nms
    with fastssd.use_backend("reference"), np.errstate(all="ignore"):
        ref = function(*arrays, threshold)
    with fastssd.use_backend(backend):
        np.testing.assert_array_equal(function(*arrays, threshold), ref)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["crowded", "sparse"])
@pytest.mark.parametrize("backend", FAST)
def test_scores_of_both_signs_with_nan_zeros_and_infinities(backend, kind, dtype):
    assert_as_reference(backend, boxes_of(kind, np.random.default_rng(0), 600), np.full(600, np.nan), 0.5)
    for n in SIZES:
        rng = np.random.default_rng(n)
        boxes, groups = boxes_of(kind, rng, n).astype(dtype), rng.integers(0, 2, n)
        for low, high in ((-10, 10), (-1, 0)):
            scores = rng.uniform(low, high, n).astype(dtype)
            scores[::17] = np.nan
            assert_as_reference(backend, boxes, scores, 0.5)
            scores[3::17], scores[5::17], scores[7::17], scores[9::17] = -np.nan, -0.0, np.inf, -np.inf
            assert_as_reference(backend, boxes, scores, 0.5, groups)
            kept = ops.nms(boxes, scores, 0.5)
            assert not np.isnan(scores[kept]).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("unusual", UNUSUAL)
@pytest.mark.parametrize("backend", FAST)
def test_unusual_boxes_among_many(backend, unusual, dtype):
    n, rng = 2000, np.random.default_rng(0)
    for kind in ("crowded", "sparse"):
        for count in (1, 20):
            boxes, scores = boxes_of(kind, rng, n), rng.random(n).astype(dtype)
            boxes[rng.choice(n, count, replace=False)] = np.array(UNUSUAL[unusual]) * rng.uniform(0.9, 1, (count, 1))
            for threshold in (0.0, 0.05, 0.5):
                assert_as_reference(backend, boxes.astype(dtype), scores, threshold)
                assert_as_reference(backend, boxes.astype(dtype), scores, threshold, rng.integers(0, 2, n))


@pytest.mark.parametrize("backend", FAST)
def test_long_thin_boxes_that_cross(backend):
    n, rng = 3000, np.random.default_rng(0)
    center = rng.uniform(0, 300, (n, 2))
    side = np.where(rng.random((n, 1)) < 0.5, [[900, 0.1]], [[0.1, 900]])
    boxes = np.concatenate([center - side / 2, center + side / 2], axis=1).astype(np.float32)
    for threshold in (0.05, 0.5):
        assert_as_reference(backend, boxes, rng.random(n, np.float32), threshold)


@pytest.mark.parametrize("backend", FAST)
def test_sizes_that_differ_by_more_than_any_threshold(backend):
    """A box 1e46 times as long, which comes last, is still suppressed where the threshold is lower than that."""
    rng = np.random.default_rng(0)
    boxes = np.arange(600)[:, None] * 1e3 + np.array([0.0, 0, 1e-6, 1e-6]) + rng.random((600, 1))
    boxes[-1] = [-1e40, -1e40, 1e40, 1e40]
    scores = np.linspace(1, 0, 600)
    for threshold in (0.0, 1e-100, 1e-40):
        assert_as_reference(backend, boxes, scores, threshold)
    with fastssd.use_backend(backend):
        np.testing.assert_array_equal(ops.nms(boxes, scores, 1e-100), np.arange(599))


@pytest.mark.parametrize("backend", FAST)
def test_softmax_over_millions_of_classes(backend):
    logits = np.zeros((1, 1, 9_000_001), np.float32)
    logits[0, 0, 5_000_000] = 20
    anchor = np.array([[0, 0, 1, 1]], np.float32)
    with fastssd.use_backend(backend):
        found = ops.postprocess_detections(logits, np.zeros((1, 1, 4), np.float32), anchor, max_detections=5)
    assert (found.counts[0], found.labels[0, 0], found.anchor_idx[0, 0]) == (1, 5_000_000, 0)
    np.testing.assert_allclose(found.scores[0, 0], 1 / (1 + 9e6 * np.exp(-20.0)), rtol=1e-3)


@pytest.mark.parametrize("backend", FAST)
def test_arrays_that_another_thread_writes_to(backend):
    """Any answer will do; nothing outside of the arrays is touched, and the next call is right."""
    rng = np.random.default_rng(0)
    n, done = 2000, threading.Event()
    boxes, scores, groups = boxes_of("crowded", rng, n), rng.normal(size=n), rng.integers(0, 9, n)
    clean = boxes.copy(), scores.copy(), groups.copy()

    def write():
        while not done.is_set():
            boxes[:] = np.nan
            scores[:] = np.nan
            groups[:] = -groups
            boxes[:], scores[:] = clean[0], clean[1]

    writer = threading.Thread(target=write)
    with fastssd.use_backend(backend):
        writer.start()
        try:
            for _ in range(30):
                for keep in (
                    ops.nms(boxes, scores, 0.5),
                    ops.batched_nms(boxes, scores, groups, 0.5),
                    ops.soft_nms(boxes[:300], scores[:300])[0],
                    ops.matrix_nms(boxes, scores, groups)[0],
                ):
                    assert ((keep >= 0) & (keep < n)).all()
                    assert len(np.unique(keep)) == len(keep)
        finally:
            done.set()
            writer.join()
    assert_as_reference(backend, clean[0], clean[1], 0.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backend", FAST)
def test_sides_of_every_scale_of_the_dtype(backend, dtype):
    n, top = 400, 30 if dtype is np.float32 else 290
    for seed in range(6):
        rng = np.random.default_rng(seed)
        center = rng.uniform(-1, 1, (n, 2)) * 10.0 ** rng.uniform(-3, 3)
        side = np.exp(rng.uniform(-top, top, (n, 1)))
        for sides in (np.concatenate([side, 1 / side], axis=1), np.repeat(side, 2, axis=1)):
            boxes = np.concatenate([center - sides / 2, center + sides / 2], axis=1).astype(dtype)
            for threshold in (0.0, 1e-30, 1e-5, 0.1, 0.5):
                assert_as_reference(backend, boxes, rng.normal(size=n).astype(dtype), threshold)
