"""How many threads the compiled kernels use: a choice, else the environment, else torch's number, else the CPUs."""

from __future__ import annotations

import os
import sys

_chosen: int | None = None


def choose(threads: int | None) -> None:
    """Fix the number, or go back to the default with None."""
    global _chosen
    if threads is not None:
        if isinstance(threads, bool) or not hasattr(threads, "__index__"):
            raise TypeError(f"threads: expected an integer or None, got {threads!r}")
        threads = int(threads.__index__())
        if threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
    _chosen = threads


def current() -> int:
    """The number in force now."""
    if _chosen is not None:
        return _chosen
    wanted = os.environ.get("FASTSSD_NUM_THREADS")
    if wanted:
        if not wanted.isdecimal() or int(wanted) < 1:
            raise ValueError(f"FASTSSD_NUM_THREADS: expected an integer of at least 1, got {wanted!r}")
        return int(wanted)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
