"""The compiled kernels of fastssd. Private: use `fastssd.ops`.

Each operator has the reference's signature; ``direct_NAME`` takes the arguments of the public function in a row and
returns its result, or None where it must be called the long way. tests/test_dispatch.py compares with what C++ says.
"""

from collections.abc import Callable

from fastssd.backends.reference import *

shared_constants: dict[str, list[str] | int]
"""Codes and limits that Python has too."""

def isa() -> str:
    """The instruction set in use: "baseline", "avx2" or "avx512"; ``FASTSSD_ISA`` forces one."""

def available_isas() -> tuple[str, ...]:
    """Those that this processor and operating system can run, best first."""

def compiled_isas() -> tuple[str, ...]:
    """Those that this build holds, best first."""

def set_thread_count(callable: Callable[[], int], /) -> None:
    """Set the callable that says how many threads to use. Asked only before work worth a second one."""
