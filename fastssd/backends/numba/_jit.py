"""How every kernel of this backend is compiled: no GIL, IEEE arithmetic as written, machine code cached on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])

# Numba takes cached code for fresh as long as the file of the kernel is unchanged, but kernels call helpers and contain
# constants of other files. So the stamp of each is that of all backends.
_SOURCES = sorted(Path(__file__).parents[1].rglob("*.py"))
_STAMP = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).digest()


def jit(function: Function) -> Function:
    """`function` compiled at its first call for each dtype. Float operations are neither reordered nor fused."""
    kernel: Any = numba.njit(nogil=True, error_model="numpy")(function)
    try:
        kernel.enable_caching()
        kernel._cache._cache_file._source_stamp = _STAMP
    except (RuntimeError, AttributeError):  # no directory to write to, or a Numba that keeps its cache elsewhere
        kernel = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(Function, kernel)
