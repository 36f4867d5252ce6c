"""How every kernel of this backend is compiled: no GIL, IEEE arithmetic as written, machine code cached on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])

# Numba takes cached code for fresh as long as the file of the kernel is unchanged, but kernels call helpers in other
# files. So the stamp of each is that of all.
_STAMP = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).digest()


def jit(function: Function) -> Function:
    """`function` compiled at its first call for each dtype. Float operations are neither reordered nor fused."""
    kernel = numba.njit(nogil=True, error_model="numpy")(function)
    try:
        kernel.enable_caching()
        kernel._cache._cache_file._source_stamp = _STAMP
    except (RuntimeError, AttributeError):  # no directory to write to, or a Numba that keeps its cache elsewhere
        kernel = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(Function, kernel)
