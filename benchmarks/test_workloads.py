"""Every workload with every implementation that runs here: ``pytest --benchmark-only``.

Groups are workloads. Each benchmark compares its result with ours before it is timed, and uses many inputs in turn.
``-k nms`` chooses workloads, ``--benchmark-group-by=group`` shows implementations side by side. Peers that are not
installed are skipped; ``make bench`` installs them all.
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
        available = implementations(workload.operator)
        for implementation in available:
            yield pytest.param(workload, implementation, id=f"{workload.name}-{implementation.name}")
        for name, (packages, _) in PEERS[workload.operator][1].items():
            if name not in {implementation.name for implementation in available}:
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
