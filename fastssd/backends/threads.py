"""How many threads the compiled kernels use: a choice, else the environment, else torch's number, else the CPUs."""

from __future__ import annotations

import os
import sys

MOST = 1024  # kMostThreads of csrc/parallel.h

_chosen: int | None = None


def choose(threads: int | None) -> None:
    """Fix the number, or go back to the default with None."""
    global _chosen
    if threads is not None:
        if isinstance(threads, bool) or not hasattr(threads, "__index__"):
            raise TypeError(f"threads: expected an integer or None, got {threads!r}")
        threads = int(threads.__index__())
        if not 1 <= threads <= MOST:
            got = threads if abs(threads) < 1 << 64 else "one of more than 64 bits"
            raise ValueError(f"threads: expected an integer from 1 to {MOST}, got {got}")
    _chosen = threads


def current() -> int:
    """The number in force now."""
    if _chosen is not None:
        return _chosen
    wanted = os.environ.get("FASTSSD_NUM_THREADS")
    if wanted:
        digits = wanted.lstrip("0") if wanted.isdecimal() else ""
        if not 1 <= len(digits) <= len(str(MOST)) or int(digits) > MOST:
            shown = wanted if len(wanted) < 40 else f"{wanted[:40]}..."
            raise ValueError(f"FASTSSD_NUM_THREADS: expected an integer from 1 to {MOST}, got {shown!r}")
        return int(digits)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return min(int(torch.get_num_threads()), MOST)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, MOST)
