"""Ctrl-C and other signals: how a kernel notices them, and how they reach the caller.

Python looks for signals between its own instructions. Short kernels need nothing. Long ones ask now and then; if a
signal handler raises, the kernel ends early, and its caller gets what the handler raised.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from numba import types
from numba.extending import overload

from fastssd.backends.numba._jit import jit

P = ParamSpec("P")
R = TypeVar("R")

WORK = 1 << 25  # operations between two questions: some 10 ms

_void: Any = types.void
_take_gil: Any = types.ExternalFunction("PyGILState_Ensure", types.int32())
_check_signals: Any = types.ExternalFunction("PyErr_CheckSignals", types.int32())
_error: Any = types.ExternalFunction("PyErr_Occurred", types.intp())
_release_gil: Any = types.ExternalFunction("PyGILState_Release", _void(types.int32))


@jit
def _ask() -> bool:
    state = _take_gil()
    raised = _check_signals() != 0 or _error() != 0  # once true it stays so, until the kernel has returned
    _release_gil(state)
    return raised


def interrupted() -> bool:
    """Whether a signal handler has raised, after which a kernel must return at once, whatever it gives back."""
    return False  # interpreted, a kernel is interrupted as any Python is


@overload(interrupted)
def _interrupted() -> Callable[[], bool]:
    return lambda: _ask()


def interruptible(operator: Callable[P, R]) -> Callable[P, R]:
    """`operator`, which raises what a signal handler raised inside of a kernel.

    A handler may run in a kernel that asks, and also where Numba calls Python to make an array or a tuple of a result.
    Both return a result while an exception is set: Python turns that into a SystemError.
    """

    @wraps(operator)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return operator(*args, **kwargs)
        except SystemError as error:
            cause: BaseException | None = error
            while isinstance(cause, SystemError):
                cause = cause.__cause__
            if cause is None:
                raise
            raise cause from None

    return call
