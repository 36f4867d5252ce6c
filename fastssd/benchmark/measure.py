"""Timing that can be trusted on a noisy machine: the result is asserted, inputs rotate, implementations take turns."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np

import fastssd
from fastssd.benchmark.peers import Implementation, TooLarge, agree, implementations
from fastssd.benchmark.workloads import Workload

SLOW = 0.5  # seconds: three turns are enough for a call that takes longer


class Measurement(NamedTuple):
    """What one implementation took for one workload.

    Attributes:
        workload, implementation: names.
        ours: whether it is fastssd's.
        seconds: median of a call.
        ratio: how many times longer it takes than the fastest peer took beside it, inverted: 2 is twice as fast as
            that peer.
            None where no peer imports.
    """

    workload: str
    implementation: str
    ours: bool
    seconds: float
    ratio: float | None


class Rotation:
    """A call that takes the next of several inputs each time.

    Raises:
        AssertionError: the implementation gives another answer than fastssd's C++ (or best) backend on one of the
            inputs.
    """

    def __init__(self, workload: Workload, implementation: Implementation, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        inputs = [workload.make(rng) for _ in range(workload.rotation)]
        expected = implementations(workload.operator, threads=(1,))[0]
        self.calls = [implementation.bind(*arrays) for arrays in inputs]
        for arrays, call in zip(inputs[:3], self.calls, strict=False):
            with expected.active():
                ref = expected.bind(*arrays)()
            with implementation.active():
                comp = call()
            if implementation.ours:
                same = agree_ours(ref, comp)
            else:
                same = agree(workload.operator, ref, comp, implementation.name)
            assert same, f"{implementation.name} gives another result than {expected.name} for {workload.name}"
        self._next: Iterator[Callable[[], Any]] = cycle(self.calls)

    def __call__(self) -> Any:
        return next(self._next)()


def agree_ours(ref: Any, comp: Any) -> bool:
    """Two of our backends: the contract's equality, with room for the ULPs of exp and log."""
    refs, comps = (value if isinstance(value, tuple) else (value,) for value in (ref, comp))
    return all(
        np.allclose(r, c, rtol=1e-5, atol=1e-6) if np.asarray(r).dtype.kind == "f" else np.array_equal(r, c)
        for r, c in zip(refs, comps, strict=True)
    )


def measure(workload: Workload, seconds: float = 0.3, rounds: int = 7, **choice: Any) -> list[Measurement]:
    """Time every implementation of a workload. They take turns, so that a slow moment of the machine meets all of them.

    Args:
        workload: what to do.
        seconds: for each implementation altogether, about.
        rounds: turns.
        **choice: of :func:`~fastssd.benchmark.peers.implementations`.

    Raises:
        AssertionError: two implementations disagree.
    """
    entries = []
    for way in implementations(workload.operator, **choice):
        with suppress(TooLarge):
            entries.append((way, Rotation(workload, way)))
    times: dict[str, list[float]] = {way.name: [] for way, _ in entries}
    loops = {}
    for way, call in entries:
        with way.active():
            once = _time(call, 1)
            loops[way.name] = max(1, int(seconds / rounds / max(once, 1e-9)))
    for turn in range(rounds):
        for way, call in entries:
            if turn < 3 or times[way.name][0] < SLOW:
                with way.active():
                    times[way.name].append(_time(call, loops[way.name]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    peers = [medians[way.name] for way, _ in entries if not way.ours]
    best = min(peers) if peers else None
    return [
        Measurement(workload.name, way.name, way.ours, medians[way.name], best / medians[way.name] if best else None)
        for way, _ in entries
    ]


def _time(call: Callable[[], Any], loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        call()
    return (time.perf_counter() - start) / loops


def environment() -> dict[str, Any]:
    """What the numbers depend on: processor, instruction set, threads, versions."""
    config = fastssd.show_config()
    peers = ("torchvision", "powerboxes", "opencv-python-headless", "onnxruntime", "supervision", "pycocotools")
    return config | {"cpu": _cpu(), "cpus": os.cpu_count(), "peers": {name: _version(name) for name in peers}}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
