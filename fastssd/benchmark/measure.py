"""Timing that works on a noisy machine: results are compared first, and inputs and implementations take turns."""

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

SLOW = 0.5  # seconds; a slower call gets only three turns


class Measurement(NamedTuple):
    """The time of one implementation for one workload.

    Attributes:
        workload, implementation: their names.
        ours: whether the implementation is part of fastssd.
        seconds: median time of a call.
        ratio: time of the fastest peer divided by this time: 2 is twice as fast as that peer. None if there is no peer.
    """

    workload: str
    implementation: str
    ours: bool
    seconds: float
    ratio: float | None


class Rotation:
    """A call of an implementation that uses the next of several inputs each time.

    Raises:
        AssertionError: the result for one of the inputs differs from that of our first backend (C++ if it is there).
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
    """Whether two of our backends agree: exactly, except for the ULPs of exp and log in floats."""
    refs, comps = (value if isinstance(value, tuple) else (value,) for value in (ref, comp))
    return all(
        np.allclose(r, c, rtol=1e-5, atol=1e-6) if np.asarray(r).dtype.kind == "f" else np.array_equal(r, c)
        for r, c in zip(refs, comps, strict=True)
    )


def measure(workload: Workload, seconds: float = 0.3, rounds: int = 7, **choice: Any) -> list[Measurement]:
    """Time every implementation of a workload. They take turns, so that a slow moment of the machine affects them all.

    Args:
        workload: what to time.
        seconds: approximate total time of each implementation.
        rounds: number of turns.
        **choice: options of :func:`~fastssd.benchmark.peers.implementations`.

    Raises:
        AssertionError: two implementations disagree.
    """
    entries = []
    for implementation in implementations(workload.operator, **choice):
        with suppress(TooLarge):
            entries.append((implementation, Rotation(workload, implementation)))
    times: dict[str, list[float]] = {entry.name: [] for entry, _ in entries}
    loops = {}
    for entry, call in entries:
        with entry.active():
            once = _time(call, 1)
            loops[entry.name] = max(1, int(seconds / rounds / max(once, 1e-9)))
    for turn in range(rounds):
        for entry, call in entries:
            if turn < 3 or times[entry.name][0] < SLOW:
                with entry.active():
                    times[entry.name].append(_time(call, loops[entry.name]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    peers = [medians[entry.name] for entry, _ in entries if not entry.ours]
    best = min(peers) if peers else None
    return [
        Measurement(
            workload.name, entry.name, entry.ours, medians[entry.name], best / medians[entry.name] if best else None
        )
        for entry, _ in entries
    ]


def _time(call: Callable[[], Any], loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        call()
    return (time.perf_counter() - start) / loops


def environment() -> dict[str, Any]:
    """Everything that the times depend on: processor, instruction set, threads, versions."""
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
