"""Put our functions where a host's modules hold the host's own, and take them out again."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

_lock = threading.RLock()
# Whether torch compiles or exports, by its name since torch 2.3, else by that of before.
is_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", None) or torch._utils.is_compiling


class Host:
    """Which names of a host have one of ours, and what stands in their place while a patch lasts: the routed object.

    A routed function calls ours for plain tensors. What ours refuses, for whatever reason, goes to the host's own
    function, which answers or raises its own error; so does what is traced, compiled or scripted, and what is no plain
    tensor. ``KeyboardInterrupt`` and ``MemoryError`` are raised as they are. A routed class derives from ours and from
    the host's; its methods do the same.

    Args:
        home: module and name of this object, ``"module:NAME"``, where pickle finds the routed objects.
        packages: top-level packages whose modules are routed.
        ours: module of the host to our objects that have one of the same name there.
        cpu_only: tensors on other devices go to the host.
    """

    def __init__(
        self, home: str, packages: Iterable[str], ours: Mapping[str, Sequence[Any]], *, cpu_only: bool = False
    ) -> None:
        self._home = home
        self._packages = frozenset(packages)
        self._ours = {each.__name__: (module, each) for module, objects in ours.items() for each in objects}
        self._cpu_only = cpu_only
        self._routed: dict[int, tuple[Any, Any]] = {}  # id of the host's object: it, and what stands for it
        self._patches: list[Routes] = []

    def __getattr__(self, name: str) -> Any:
        """The routed object of this name."""
        if name.startswith("_") or name not in self._ours:
            raise AttributeError(name)
        original = self.original(name)
        with _lock:
            if id(original) not in self._routed:
                make = _routed_class if isinstance(original, type) else _routed_function
                routed = make(self._ours[name][1], original, self._cpu_only)
                routed.__module__, _, home = self._home.partition(":")
                routed.__qualname__ = f"{home}.{name}"
                self._routed[id(original)] = original, routed
            return self._routed[id(original)][1]

    def original(self, name: str) -> Any:
        """The host's own object, routed or not.

        Raises:
            ImportError: the host is missing.
        """
        value = getattr(importlib.import_module(self._ours[name][0]), name)
        return next((original for original, routed in list(self._routed.values()) if routed is value), value)

    def patch(self, modules: Sequence[ModuleType] = ()) -> Routes:
        """Route the host's loaded modules, and `modules`."""
        return Routes(self, modules)

    def _route(self, patch: Routes) -> None:
        with _lock:
            for name in self._ours:
                getattr(self, name, None)  # an older host may not have them all
            self._patches.append(patch)
            self._exchange(self._routed, [*self._loaded(), *patch.modules])

    def _restore(self, patch: Routes) -> None:
        with _lock:
            if patch not in self._patches:
                return
            self._patches.remove(patch)
            free = {*patch.modules} - {module for other in self._patches for module in other.modules}
            free = free - {*self._loaded()} if self._patches else free | {*self._loaded()}
            self._exchange({id(routed): (routed, original) for original, routed in self._routed.values()}, free)

    def _loaded(self) -> list[ModuleType]:
        modules = list(sys.modules.items())
        return [m for name, m in modules if name.partition(".")[0] in self._packages and isinstance(m, ModuleType)]

    @staticmethod
    def _exchange(table: Mapping[int, tuple[Any, Any]], modules: Iterable[ModuleType]) -> None:
        for module in modules:
            for name, value in list(vars(module).items()):
                if id(value) in table:
                    setattr(module, name, table[id(value)][1])


class Routes:
    """A patch of a host: every name in its modules that is bound to the host's object is bound to the routed one.

    Modules of the host that are imported later take the names from those, so they are routed too. Patches nest, and may
    end in any order and in any thread: the host has its names back when none is left.
    """

    def __init__(self, host: Host, modules: Sequence[ModuleType] = ()) -> None:
        self.modules = tuple(modules)
        self._host = host
        host._route(self)

    def restore(self) -> None:
        """Take back this patch; a second time does nothing."""
        self._host._restore(self)

    def __enter__(self) -> Routes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def _routed_function(ours: Callable[..., Any], original: Callable[..., Any], cpu_only: bool) -> Any:
    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        if _is_plain(args, cpu_only) and (not kwargs or _is_plain(kwargs.values(), cpu_only)):
            try:
                return ours(*args, **kwargs)
            except MemoryError:
                raise
            except Exception:  # for whatever reason: the host says what it thinks of the input
                pass
        return original(*args, **kwargs)

    function.__prepare_scriptable__ = lambda: original  # type: ignore[attr-defined]  # what torch.jit.script reads
    return function


def _routed_class(ours: type, original: type, cpu_only: bool) -> Any:
    body: dict[str, Any] = {"__doc__": original.__doc__}
    for name, method in vars(ours).items():
        if inspect.isfunction(method) and hasattr(original, name) and (name[0] != "_" or name[:2] == "__"):
            body[name] = _routed_function(method, getattr(original, name), cpu_only)
    return type(original.__name__, (ours, original), body)


def _is_plain(values: Iterable[Any], cpu_only: bool) -> bool:
    """Whether whatever tensors there are among `values` are such as a kernel reads, and are there to be read."""
    if (
        is_compiling()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0  # tangents, which kernels know nothing of
    ):
        return False
    for value in values:
        kind = type(value)
        if kind is Tensor or kind is Parameter:
            if value.layout is not torch.strided or value.is_quantized or (cpu_only and not value.is_cpu):
                return False
        elif hasattr(kind, "__torch_function__"):
            return False
    return True
