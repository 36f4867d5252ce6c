"""Replace the slow parts of torchvision's detectors by ours, and undo it."""

from __future__ import annotations

import functools
import importlib
from typing import Any, TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model) -> Model:
    """Let a detector of torchvision use our matching, loss, mining and postprocessing, in place.

    Known are SSD (SSD300, SSDlite), RetinaNet, FCOS and Faster, Mask and Keypoint R-CNN, on their own, as a subclass,
    or anywhere inside `model`. Weights, hooks, mode, device and outputs stay the same; docs/integration.md lists the
    exceptions. Only the class of the module and of some of its parts changes, to a subclass of its former class:
    `isinstance`, `state_dict`, `copy.deepcopy`, `pickle` and `torch.save` work as before, and methods that your own
    subclass overrides stay yours. A second call changes nothing. Call :func:`restore` before `torch.jit.script`.

    Args:
        model: changed in place.

    Returns:
        The same object.

    Raises:
        TypeError: there is no such detector in `model`.
        ImportError: torchvision is missing.
    """
    found = False
    for module in model.modules():
        fast = fast_class(type(module))
        if fast is not None:
            module.__class__ = fast
            found = True
    if not found:
        known = "SSD, RetinaNet, FCOS or Faster, Mask or Keypoint R-CNN"
        raise TypeError(f"model: expected a torchvision {known}, got {_name(type(model))}")
    return model


def restore(model: Model) -> Model:
    """Undo :func:`accelerate` completely, in place; a model that was not accelerated stays as it is."""
    for module in model.modules():
        slow = _slow_class(type(module))
        if slow is not None:
            module.__class__ = slow
    return model


def fast_class(cls: Any) -> type | None:
    """The accelerated subclass of a torchvision module's class; None if there is none."""
    if _slow_class(cls) is not None:
        return cls
    for base, fast in _classes().items():
        if issubclass(cls, base):
            return _subclass(cls, fast)
    return None


@functools.cache
def _classes() -> dict[type, type]:
    """torchvision's classes, and the accelerated subclass of each."""
    try:
        importlib.import_module("torchvision.models.detection")
    except ImportError as error:
        raise ImportError("accelerate needs torchvision; install it with: pip install torchvision") from error
    accelerated = importlib.import_module("fastssd.compat.torchvision._accelerated")
    return {fast.__bases__[0]: fast for fast in accelerated.CLASSES}


@functools.cache
def _subclass(cls: type, fast: type) -> type:
    # cls stands before `fast`: what it overrides stays, and its super() calls reach `fast`.
    bases = (fast,) if cls is fast.__bases__[0] else (cls, fast)
    return type(f"Fast{cls.__name__}", bases, {"_fastssd_slow": cls, "__reduce_ex__": _reduce})


def _slow_class(cls: type) -> type | None:
    return vars(cls).get("_fastssd_slow")


def _reduce(self: Any, protocol: Any) -> Any:
    """Pickle by the former class: the accelerated one is made at run time, so pickle cannot find it by name."""
    slow = _slow_class(type(self))
    return _rebuild, (slow,), self.__getstate__()


def _rebuild(slow: type) -> Any:
    cls: Any = fast_class(slow)
    return cls.__new__(cls)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
