"""NMS of 100,000 boxes, with one or twenty outliers among them, and of shapes that are hard to prune.

``pytest benchmarks/test_odd_inputs.py --benchmark-only``. Groups are kinds of boxes, so that the time with an outlier
is beside the time without. C++ and Numba, which visit boxes in different ways, are compared before they are timed.
"""

from __future__ import annotations

import numpy as np
import pytest

import fastssd
from fastssd import ops
from fastssd.backends import available_backends
from fastssd.benchmark.workloads import crowded, sparse

N = 100_000
OUTLIERS = {
    "none": [],
    "huge": [-1e9, -1e9, 1e9, 1e9],
    "far": [1e9, 1e9, 1e9 + 1000, 1e9 + 1000],
    "of a tiny area": [0, 0, 1e-15, 1e-15],
    "of no area": [10, 10, 10, 20],
}


def crosses(rng, n):
    center = rng.uniform(0, 10 * np.sqrt(n), (n, 2))
    side = np.where(rng.random((n, 1)) < 0.5, [[900, 0.1]], [[0.1, 900]])
    return np.concatenate([center - side / 2, center + side / 2], axis=1).astype(np.float32), rng.random(n, np.float32)


def time_nms(benchmark, backend, boxes, scores):
    found = []
    for name in sorted({backend, "cpp", "numba"} & set(available_backends())):
        with fastssd.use_backend(name):
            found.append(ops.nms(boxes, scores, 0.5))
    assert all(np.array_equal(found[0], other) for other in found)
    with fastssd.use_backend(backend):
        benchmark(ops.nms, boxes, scores, 0.5)


@pytest.mark.parametrize("backend", [name for name in available_backends() if name != "reference"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("outlier", OUTLIERS)
@pytest.mark.parametrize("kind", [crowded, sparse])
def test_outliers(benchmark, kind, outlier, count, dtype, backend):
    rng = np.random.default_rng(0)
    boxes, scores = kind(rng, N)
    if OUTLIERS[outlier]:
        boxes[rng.choice(N, count, replace=False)] = OUTLIERS[outlier]
    elif count > 1:
        pytest.skip("without outliers their number does not matter")
    benchmark.group = f"{kind.__name__}, {dtype}, {backend}"
    time_nms(benchmark, backend, boxes.astype(dtype), scores.astype(dtype))


@pytest.mark.parametrize("backend", [name for name in available_backends() if name != "reference"])
def test_crosses(benchmark, backend):
    benchmark.group = f"crosses, {backend}"
    time_nms(benchmark, backend, *crosses(np.random.default_rng(0), N))
