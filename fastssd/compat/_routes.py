"""Put our functions where the modules of a host hold its own, and take them out again: ``patch()`` of every host.

What a patch changes is the process, so it is kept in one place, with the rules for all hosts: nesting, threads, fork,
exceptions, pickling, tracing. ``accelerate`` of torchvision is something else: it changes one model, whoever else uses
torchvision.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
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
# A fork waits until a patch is whole, so a child never has half of one, nor a lock that nobody will release.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

_originals: dict[int, tuple[Any, Any]] = {}  # id of a routed object: it, and the host's object that it stands for

# Whether torch compiles or exports, by its name since torch 2.3, else by the older one.
_is_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", None) or torch._utils.is_compiling


def traced() -> bool:
    """Whether torch records what is called now (compile, export, jit.trace): it can see the host's code only."""
    return _is_compiling() or torch._C._get_tracing_state() is not None


def original(module: str, name: str) -> Any:
    """The host's own object of this name in its module, routed or not.

    Raises:
        ImportError: the host is missing.
        AttributeError: it has no such object.
    """
    value = getattr(importlib.import_module(module), name)
    routed, own = _originals.get(id(value), (None, None))
    return own if routed is value else value


class Host:
    """Which objects of a host we have a version of, and the routed objects that replace them while a patch lasts.

    A routed function calls ours for plain tensors. What ours refuses with any error goes to the host's own function,
    which answers or raises its own error; so do calls that are traced, compiled or scripted, and tensors that are not
    plain. ``KeyboardInterrupt`` and ``MemoryError`` are raised as they are. A routed class derives from ours and from
    the host's; its methods do the same.

    Args:
        home: module and name of this object, ``"module:NAME"``, where pickle finds the routed objects.
        packages: top-level packages whose modules are routed.
        ours: module of the host to our objects that have the same name there.
        cpu_only: tensors on other devices go to the host.
    """

    def __init__(
        self, home: str, packages: Iterable[str], ours: Mapping[str, Sequence[Any]], *, cpu_only: bool = False
    ) -> None:
        self._home = home
        self._packages = frozenset(packages)
        self._ours = {each.__name__: (module, each) for module, objects in ours.items() for each in objects}
        self._cpu_only = cpu_only
        self._routed: dict[int, tuple[Any, Any]] = {}  # id of the host's object: it, and the routed one
        self._patches: list[Routes] = []

    def __getattr__(self, name: str) -> Any:
        """The routed object of this name."""
        if name.startswith("_") or name not in self._ours:
            raise AttributeError(name)
        module, ours = self._ours[name]
        own = original(module, name)
        with _lock:
            if id(own) not in self._routed:
                make = _routed_class if isinstance(own, type) else _routed_function
                routed = make(ours, own, self._cpu_only)
                routed.__module__, _, home = self._home.partition(":")
                routed.__qualname__ = f"{home}.{name}"
                _originals[id(routed)] = routed, own
                self._routed[id(own)] = own, routed
            return self._routed[id(own)][1]

    def patch(self, modules: Sequence[ModuleType] = ()) -> Routes:
        """Route the host's loaded modules, and `modules`."""
        return Routes(self, modules)

    def _route(self, patch: Routes) -> None:
        for name in self._ours:  # this may import the host, for which no lock must be held
            getattr(self, name, None)  # an older host may not have them all
        with _lock:
            self._patches.append(patch)
            try:
                self._exchange(self._routed, [*self._loaded(), *patch.modules])
            except BaseException:
                self._restore(patch)
                raise

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
    """A patch of a host: in its modules, every name of one of the host's objects becomes the name of the routed one.

    Modules of the host that are imported later take the names from those, so they are routed too. Patches nest, and may
    end in any order and in any thread: the host has its objects back when none is left. A patch that fails to begin
    changes nothing. A forked child has the patches of its parent, and ends its own copy of them.
    """

    def __init__(self, host: Host, modules: Sequence[ModuleType] = ()) -> None:
        self.modules = tuple(modules)
        self._host = host
        host._route(self)

    def restore(self) -> None:
        """End this patch; a second time does nothing."""
        self._host._restore(self)

    def __enter__(self) -> Routes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def _routed_function(ours: Callable[..., Any], theirs: Callable[..., Any], cpu_only: bool) -> Any:
    @functools.wraps(theirs)
    def function(*args: Any, **kwargs: Any) -> Any:
        if _is_plain(args, cpu_only) and (not kwargs or _is_plain(kwargs.values(), cpu_only)):
            try:
                return ours(*args, **kwargs)
            except MemoryError:
                raise
            except Exception:  # any: the host answers, or raises its own error
                pass
        return theirs(*args, **kwargs)

    function.__prepare_scriptable__ = lambda: theirs  # type: ignore[attr-defined]  # what torch.jit.script reads
    return function


def _routed_class(ours: type, theirs: type, cpu_only: bool) -> Any:
    body: dict[str, Any] = {"__doc__": theirs.__doc__}
    for name, method in vars(ours).items():
        if inspect.isfunction(method) and hasattr(theirs, name) and (name[0] != "_" or name[:2] == "__"):
            body[name] = _routed_function(method, getattr(theirs, name), cpu_only)
    return type(theirs.__name__, (ours, theirs), body)


def _is_plain(values: Iterable[Any], cpu_only: bool) -> bool:
    """Whether a kernel can read all the tensors among `values`, and nothing else must see the call."""
    if traced() or forward_ad._current_level >= 0:  # kernels do not compute tangents
        return False
    for value in values:
        kind = type(value)
        if kind is Tensor or kind is Parameter:
            if value.layout is not torch.strided or value.is_quantized or (cpu_only and not value.is_cpu):
                return False
        elif hasattr(kind, "__torch_function__"):
            return False
    return True
