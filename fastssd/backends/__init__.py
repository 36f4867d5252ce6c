"""The registry of backends: which implementation of the operators runs.

A backend is a module that has one function for every operator, under the operator's public name and with the
signature that it has in the reference (:class:`~fastssd.backends.reference.Backend`). Three exist, in order of
preference:

``cpp``
    C++ kernels, compiled once per instruction set (:mod:`fastssd.backends.cpp`).
``numba``
    Numba kernels, compiled at first use (:mod:`fastssd.backends.numba`).
``reference``
    Plain NumPy, the definition that the two others are tested against (:mod:`fastssd.backends.reference`).

The best one that is available is used, unless ``FASTSSD_BACKEND`` or :func:`use_backend` names one.
To add a backend: one module with these functions, one line in ``_MODULES``, and its name where mypy compares.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from fastssd.backends.codes import ACTIVATIONS, BOX_FORMATS, FORCE_MATCH, SOFT_NMS_METHODS, Bool, Float, Int
from fastssd.backends.reference import Backend

if TYPE_CHECKING:
    from fastssd.backends import cpp, numba, reference

    # mypy compares the names, the order and the types of all parameters.
    _CPP: Backend = cpp
    _NUMBA: Backend = numba
    _REFERENCE: Backend = reference

__all__ = [
    "ACTIVATIONS",
    "BOX_FORMATS",
    "FORCE_MATCH",
    "OPERATORS",
    "SOFT_NMS_METHODS",
    "Backend",
    "Bool",
    "Float",
    "Int",
    "active_backend",
    "available_backends",
    "backend_name",
    "load_backend",
    "shortcuts",
    "use_backend",
]

OPERATORS = tuple(name for name in vars(Backend) if not name.startswith("_"))

_MODULES = {
    "cpp": "fastssd.backends.cpp",
    "numba": "fastssd.backends.numba",
    "reference": "fastssd.backends.reference",
}
_NEEDS = {"cpp": "fastssd._C", "numba": "numba", "reference": "numpy"}
_INSTALL = {
    "cpp": "this build of fastssd has no compiled kernels: reinstall it where a C++17 compiler is present",
    "numba": "install it with: pip install 'fastssd[numba]'",
    "reference": "",
}
_active: Backend | None = None
_lock = threading.RLock()  # of what is active and its shortcuts
if hasattr(os, "register_at_fork"):  # a child must not begin with a lock that a thread holds that it does not have
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class _Shortcuts:
    """Whole operators of the active backend, for arguments that need no check or conversion in Python.

    A backend may have a dict ``SHORTCUTS`` of functions by operator. One takes the operator's arguments and returns
    its result, or None for the face to do it, which also explains what is wrong. Operators without one always get None.
    """

    def __getattr__(self, name: str) -> Any:
        return _decline


def _decline(*arguments: Any) -> None:
    return None


shortcuts = _Shortcuts()


def _activate(backend: Backend | None) -> None:
    global _active
    with _lock:
        vars(shortcuts).clear()
        _active = backend
        vars(shortcuts).update(getattr(backend, "SHORTCUTS", {}))


def available_backends() -> tuple[str, ...]:
    """Names of the backends that can run here, best first. Imports none of them."""
    return tuple(name for name in _MODULES if importlib.util.find_spec(_NEEDS[name]) is not None)


def load_backend(name: str) -> Backend:
    """The backend called `name`, imported now.

    Raises:
        ValueError: if no backend has that name.
        RuntimeError: if it exists but cannot run here; the message says what brings it.
    """
    if name not in _MODULES:
        raise ValueError(f"unknown backend {name!r}; expected one of {', '.join(map(repr, _MODULES))}")
    if name not in available_backends():
        raise RuntimeError(f"backend {name!r} is not available: {_INSTALL[name]}")
    return cast(Backend, importlib.import_module(_MODULES[name]))


def active_backend() -> Backend:
    """The backend in use; the first call chooses it (``FASTSSD_BACKEND``, else the best available)."""
    if _active is None:
        # Imported before the lock is taken: an import waits for other threads' imports.
        first = load_backend(os.environ.get("FASTSSD_BACKEND") or available_backends()[0])
        with _lock:
            if _active is None:  # another thread may have come first, with a choice of the user's
                _activate(first)
    return cast(Backend, _active)


def backend_name(backend: Backend) -> str:
    """The name under which a backend is registered."""
    module = getattr(backend, "__name__", "")
    return next(name for name, path in _MODULES.items() if path == module)


class use_backend:
    """Use one backend from here on, or only inside a ``with`` block.

    Args:
        name: ``"cpp"``, ``"numba"`` or ``"reference"``. The choice is the process's, not the thread's.

    Raises:
        ValueError: unknown name.
        RuntimeError: the backend cannot run here.

    Example:
        >>> import fastssd
        >>> with fastssd.use_backend("reference"):
        ...     keep = fastssd.ops.nms(boxes, scores, 0.5)  # doctest: +SKIP
    """

    def __init__(self, name: str) -> None:
        self._before = _active
        _activate(load_backend(name))

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _activate(self._before)
