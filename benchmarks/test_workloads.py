"""Every workload by every implementation that runs here: ``pytest --benchmark-only``.

Groups are workloads; each benchmark asserts that its result is ours before it is timed, and takes turns over many
inputs. ``-k nms`` chooses workloads, ``--benchmark-group-by=group`` sets implementations side by side. A peer that is
not installed is skipped; ``make bench`` installs them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fastssd.benchmark import workloads
from fastssd.benchmark.measure import Rotation
from fastssd.benchmark.peers import PEERS, TooLarge, implementations


def cases() -> Iterator[Any]:
    for workload in workloads():
        here = implementations(workload.operator)
        for way in here:
            yield pytest.param(workload, way, id=f"{workload.name}-{way.name}")
        for name, (packages, _) in PEERS[workload.operator][1].items():
            if name not in {way.name for way in here}:
                missing = pytest.mark.skip(reason=f"{name} needs {', '.join(packages)}, which is not all installed")
                yield pytest.param(workload, None, id=f"{workload.name}-{name}", marks=missing)


@pytest.mark.parametrize(("workload", "implementation"), list(cases()))
def test_workload(benchmark, workload, implementation):
    benchmark.group = workload.name
    try:
        call = Rotation(workload, implementation)
    except TooLarge as reason:
        pytest.skip(str(reason))
    with implementation.active():
        benchmark(call)
