"""Routing ``torchvision.ops`` itself to our kernels."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections import Counter
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor

from fastssd.compat.torchvision import ops as ours


def _routed(name: str) -> Any:
    """Our function for the plain tensors of the CPU, torchvision's for all else."""
    fast = getattr(ours, name)

    @functools.wraps(fast)
    def function(*args: Any, **kwargs: Any) -> Any:
        return (fast if _is_plain(args, kwargs) else original(name))(*args, **kwargs)

    function.__module__, function.__qualname__ = __name__, name  # where pickle finds it
    return function


def _is_plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            kind = type(value) in (Tensor, torch.nn.Parameter)
            if not kind or value.device.type != "cpu" or value.is_quantized or value.layout != torch.strided:
                return False
        elif isinstance(value, float | int) and not 0 <= value <= 1:
            return False
    return True


nms = _routed("nms")
batched_nms = _routed("batched_nms")
box_iou = _routed("box_iou")
generalized_box_iou = _routed("generalized_box_iou")
distance_box_iou = _routed("distance_box_iou")
complete_box_iou = _routed("complete_box_iou")

_ROUTES = {f.__name__: f for f in (nms, batched_nms, box_iou, generalized_box_iou, distance_box_iou, complete_box_iou)}
_originals: dict[str, Any] = {}  # torchvision's functions, while routed
_places: Counter[tuple[ModuleType, str, str]] = Counter()  # module, its name for it, torchvision's: how many patches
_lock = threading.RLock()


def original(name: str) -> Any:
    """torchvision's own function, routed or not."""
    if name in _originals:
        return _originals[name]
    try:
        return getattr(importlib.import_module("torchvision.ops.boxes"), name)
    except ImportError as error:
        raise ImportError(f"{name} needs torchvision here; install it with: pip install torchvision") from error


class patch:
    """Let torchvision's own box functions be ours, for the whole process.

    Routed are ``torchvision.ops.nms``, ``batched_nms``, ``box_iou``, ``generalized_box_iou``, ``distance_box_iou`` and
    ``complete_box_iou``, wherever a loaded module of torchvision holds them, so that its models use them too. Tensors
    of other devices than the CPU, tensors of other types, rotated boxes, thresholds outside [0, 1], and code that is
    traced or compiled go to torchvision as before; ``torch.jit.script`` cannot read them while a patch lasts.

    ``with patch(): ...`` ends with the block, also by an exception; ``patch()`` alone lasts until its :meth:`restore`.
    Patches nest, and may end in any order: torchvision has its functions back when none is left. They hold for all
    threads; a thread that runs through their begin or end is served by the one or the other function.

    Args:
        modules: further modules to route, for what they imported by name, as ``from torchvision.ops import nms`` does.

    Raises:
        ImportError: torchvision is missing.
    """

    def __init__(self, *modules: ModuleType) -> None:
        with _lock:
            functions = {id(original(name)): name for name in _ROUTES}
            functions |= {id(route): name for name, route in _ROUTES.items()}  # where another patch came before
            _originals.update({name: original(name) for name in _ROUTES})
            hosts = [m for name, m in list(sys.modules.items()) if name.split(".")[0] == "torchvision" and m]
            self._mine = [
                (module, attribute, functions[id(value)])
                for module in dict.fromkeys([*hosts, *modules])
                for attribute, value in list(vars(module).items())
                if id(value) in functions
            ]
            for module, attribute, name in self._mine:
                setattr(module, attribute, _ROUTES[name])
            _places.update(self._mine)

    def restore(self) -> None:
        """Take back this patch; a second time does nothing."""
        with _lock:
            mine, self._mine = self._mine, []
            _places.subtract(mine)
            for place in mine:
                if _places[place] == 0:
                    del _places[place]
                    module, attribute, name = place
                    setattr(module, attribute, _originals[name])
            if not _places:
                _originals.clear()

    def __enter__(self) -> patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
