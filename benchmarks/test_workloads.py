"""Every workload by every implementation that runs here: ``pytest benchmarks --benchmark-only``.

Groups are workloads; each benchmark asserts that its result is ours before it is timed, and takes turns over many
inputs. ``-k nms``
chooses workloads, ``--benchmark-group-by=group`` sets implementations side by side.
"""

from __future__ import annotations

import pytest

from fastssd.benchmark import workloads
from fastssd.benchmark.measure import Rotation
from fastssd.benchmark.peers import TooLarge, implementations

CASES = [(workload, way) for workload in workloads() for way in implementations(workload.operator)]


@pytest.mark.parametrize(
    ("workload", "implementation"), CASES, ids=[f"{workload.name}-{way.name}" for workload, way in CASES]
)
def test_workload(benchmark, workload, implementation):
    benchmark.group = workload.name
    try:
        call = Rotation(workload, implementation)
    except TooLarge as reason:
        pytest.skip(str(reason))
    with implementation.active():
        benchmark(call)
