"""Exchanging the slow parts of torchvision's detectors for ours, and back."""

from __future__ import annotations

import functools
import importlib
from typing import Any, TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)

_FAST = {
    "_host": ("FastAnchorGenerator", "FastDefaultBoxGenerator"),
    "_ssd": ("FastSSD",),
    "_dense": (
        "FastRetinaNet",
        "FastRetinaNetClassificationHead",
        "FastRetinaNetRegressionHead",
        "FastFCOS",
        "FastFCOSHead",
    ),
    "_rcnn": ("FastRegionProposalNetwork", "FastRoIHeads"),
}


def accelerate(model: Model) -> Model:
    """Let a detector of torchvision use our matching, loss, mining and postprocessing, in place.

    Known are SSD (SSD300, SSDlite), RetinaNet, FCOS and Faster, Mask and Keypoint R-CNN, on their own, as a subclass,
    or anywhere inside `model`. Weights, hooks, mode and device are untouched, and so are the outputs; what is computed
    otherwise is said in docs/integration.md. Only the class of the module and of some of its parts changes, to a
    subclass of what it was: `isinstance`, `state_dict`, `copy.deepcopy`, `pickle` and `torch.save` work as before, and
    methods that a subclass of yours has overridden stay yours. To accelerate twice changes nothing. `torch.jit.script`
    wants :func:`restore` first.

    Args:
        model: it comes back itself.

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
    """Undo :func:`accelerate`, wholly and in place; a model that was not accelerated stays as it is."""
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
    """torchvision's classes, and what they become."""
    try:
        importlib.import_module("torchvision.models.detection")
    except ImportError as error:
        raise ImportError("accelerate needs torchvision; install it with: pip install torchvision") from error
    classes = {}
    for module, names in _FAST.items():
        found = importlib.import_module(f"fastssd.compat.torchvision.{module}")
        for fast in (getattr(found, name) for name in names):
            classes[fast.__bases__[0]] = fast
    return classes


@functools.cache
def _subclass(cls: type, fast: type) -> type:
    # Before `fast`, so that what cls overrides stays; where it calls super(), it comes to `fast`.
    bases = (fast,) if cls is fast.__bases__[0] else (cls, fast)
    return type(f"Fast{cls.__name__}", bases, {"_fastssd_slow": cls, "__reduce_ex__": _reduce})


def _slow_class(cls: type) -> type | None:
    return vars(cls).get("_fastssd_slow")


def _reduce(self: Any, protocol: Any) -> Any:
    """Pickled by the class that it was, for this one is found under no name."""
    slow = _slow_class(type(self))
    return _rebuild, (slow,), self.__getstate__()


def _rebuild(slow: type) -> Any:
    cls: Any = fast_class(slow)
    return cls.__new__(cls)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
