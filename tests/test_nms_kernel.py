"""The C++ NMS against the definition, on inputs that are made to break a sweep, a grid or a bound."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from fastssd.backends import reference

cpp = pytest.importorskip("fastssd.backends.cpp", reason="this build has no compiled kernels")

N = 500  # enough for the grid


def _corner_and_size(rng, corner, size):
    corner = rng.random((N, 2)) * corner
    return np.concatenate([corner, corner + size], 1)


def _heaps(rng):
    centers = rng.random((12, 2))[rng.integers(0, 12, N)] * 400 + rng.normal(0, 5, (N, 2))
    half = np.exp(rng.normal(3, 0.3, (N, 2))) / 2
    return np.concatenate([centers - half, centers + half], 1)


def _with_some(rng, boxes, values):
    boxes[rng.integers(0, N, 9)] = values
    return boxes


KINDS = {
    "sparse": lambda rng: _corner_and_size(rng, 1500, rng.uniform(10, 50, (N, 2))),
    "heaps": _heaps,
    "a crowd": lambda rng: _corner_and_size(rng, 100, rng.uniform(10, 20, (N, 2))),
    "a throng that hardly suppresses": lambda rng: _corner_and_size(rng, 100, np.exp(rng.normal(3, 1, (N, 2)))),
    "all equal": lambda rng: np.tile([1.0, 2.0, 3.0, 5.0], (N, 1)),
    "all disjoint": lambda rng: np.arange(N)[:, None] * 3.0 + [0, 0, 2, 2],
    "integers": lambda rng: np.round(_corner_and_size(rng, 60, rng.integers(1, 9, (N, 2)))),
    "sizes of every scale": lambda rng: _corner_and_size(rng, 1000, np.exp(rng.normal(2, 5, (N, 2)))),
    "sizes at the ratio of the threshold": lambda rng: np.round(
        _corner_and_size(rng, 300, rng.choice([40, 20, 28, 18, 12], (N, 2))) / 4
    ),
    "nested": lambda rng: np.exp(rng.uniform(-4, 5, N))[:, None] * [-1, -1, 1, 1],
    "thin": lambda rng: _corner_and_size(rng, 200, np.exp(rng.normal(0, 3, N))[:, None] ** [1, -1]),
    "a giant among them": lambda rng: _with_some(rng, _heaps(rng), [-1e7, -1e7, 1e7, 1e7]),
    "an outlier": lambda rng: _with_some(rng, _heaps(rng), [1e25, 1e25, 2e25, 2e25]),
    "far from the origin": lambda rng: _heaps(rng) + 1e7,
    "degenerate": lambda rng: _with_some(rng, _heaps(rng), [300, 300, 100, 200]),
    "tiny": lambda rng: _heaps(rng) * 1e-22,
    "some tiny": lambda rng: _with_some(rng, _heaps(rng), [0, 0, 1e-20, 1e-20]),
    "huge": lambda rng: (_heaps(rng) - 200) * 1e36,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_keeps_what_the_definition_keeps(kind, dtype):
    rng = np.random.default_rng(0)
    boxes = KINDS[kind](rng).astype(dtype)
    groups = rng.integers(0, 2, N) * rng.integers(0, 2, N)
    all_scores = [rng.random(N), np.round(rng.random(N) * 9), np.zeros(N)]
    for i, threshold in enumerate([0.0, 1e-8, 0.05, 0.3, 0.45, 0.5, np.nextafter(np.float32(0.5), 0), 0.7, 0.99, 1.0]):
        scores = all_scores[i % 3].astype(dtype)
        comp, ref = np.empty(N, np.int64), np.empty(N, np.int64)
        with np.errstate(all="ignore"):
            kept = reference.nms(boxes, scores, float(threshold), ref)
        assert cpp.nms(boxes, scores, float(threshold), comp) == kept
        np.testing.assert_array_equal(comp[:kept], ref[:kept])
        with np.errstate(all="ignore"):
            kept = reference.batched_nms(boxes, scores, groups, float(threshold), ref)
        assert cpp.batched_nms(boxes, scores, groups, float(threshold), comp) == kept
        np.testing.assert_array_equal(comp[:kept], ref[:kept])


def test_a_million_boxes_of_which_each_overlaps_one():
    side = 700
    corner = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 10.0
    boxes = np.concatenate([corner, corner + 4], 1)
    boxes = np.concatenate([boxes, boxes + np.array([1, 0, 1, 0])]).astype(np.float32)  # IoU 12 / 20
    n, half = len(boxes), len(corner)
    scores = np.random.default_rng(0).permutation(n).astype(np.float32)
    keep = np.empty(n, np.int64)
    assert cpp.nms(boxes, scores, 0.61, keep) == n
    kept = cpp.nms(boxes, scores, 0.59, keep)
    winners = np.where(scores[:half] > scores[half:], np.arange(half), np.arange(half, n))
    np.testing.assert_array_equal(keep[:kept], winners[np.argsort(-scores[winners])])


def test_a_long_case_stops_in_its_middle_when_interrupted():
    def stop(*_):
        raise TimeoutError

    def is_left_unfinished(n):
        """Whether a call that a signal meets leaves results unwritten; on a fast machine it may be done before."""
        size = np.exp(np.random.default_rng(0).uniform(-3, 3, n).astype(np.float32))
        boxes = np.stack([-size, -1e-3 / size, size, 1e-3 / size], 1)  # crosses: all meet, few overlap
        scores, keep = np.arange(n, dtype=np.float32), np.full(n, -1)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            cpp.nms(boxes, scores, 0.9999, keep)
            signal.pause()
        except TimeoutError:
            pass
        return (keep == -1).mean() > 0.01

    before = signal.signal(signal.SIGALRM, stop)
    try:
        assert any(is_left_unfinished(n) for n in (400_000, 1_600_000, 6_400_000))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
