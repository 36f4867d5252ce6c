"""mmdetection's assigner and overlaps and mmcv's NMS on our kernels: names, signatures and results.

Import them in place of the host's; or call :func:`register` once, and configs with ``type="MaxIoUAssigner"`` (or
``"FastMaxIoUAssigner"``) build ours; or call :func:`patch`, and the functions of mmdet and mmcv are ours
as well. In a config file the line ``custom_imports = dict(imports=["fastssd.compat.mmdet.registered"])`` registers.
Neither mmdet nor mmcv is imported here; torch is enough.

The results are the hosts', element for element. Exceptions:

- :func:`batched_nms` is NMS per class at any coordinates (see there).
- NMS compares as mmcv does on the CPU; its CUDA kernel multiplies instead of dividing. A box that is not finite, or has
  a NaN score, is never returned by :func:`nms`; :func:`soft_nms` refuses it.
- Equal scores: the lower index first, in NMS and Soft-NMS. In mmcv the order depends on its sort and its swaps.
- Soft-NMS: ``"gaussian"`` agrees within rounding of ``exp``; two boxes without area have IoU 0, where mmcv's 0/0 = NaN
  goes into their scores.
- Where the hosts assert, ``ValueError`` or ``TypeError`` is raised here, with the reason; under :func:`patch` the
  hosts themselves are called.
"""

from __future__ import annotations

import importlib
from types import ModuleType

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastssd.compat.mmdet needs torch; install it with: pip install 'fastssd[torch]'") from error

from fastssd.compat._routes import Host, Routes
from fastssd.compat.mmdet.assigner import AssignResult, MaxIoUAssigner
from fastssd.compat.mmdet.nms import batched_nms, nms, nms_match, soft_nms
from fastssd.compat.mmdet.overlaps import BboxOverlaps2D, bbox_overlaps

__all__ = [
    "AssignResult",
    "BboxOverlaps2D",
    "MaxIoUAssigner",
    "batched_nms",
    "bbox_overlaps",
    "nms",
    "nms_match",
    "patch",
    "register",
    "soft_nms",
]


def register() -> None:
    """Put :class:`MaxIoUAssigner` and :class:`BboxOverlaps2D` into mmdet's registry, in place of its own.

    The assigner is there as ``"MaxIoUAssigner"`` and as ``"FastMaxIoUAssigner"``.

    Raises:
        ImportError: mmdetection, or what it imports, is missing.
    """
    importlib.import_module("mmdet.models.task_modules")  # which registers its own ones, and only once
    registry = importlib.import_module("mmdet.registry").TASK_UTILS
    registry.register_module(name=["MaxIoUAssigner", "FastMaxIoUAssigner"], module=MaxIoUAssigner, force=True)
    registry.register_module(name="BboxOverlaps2D", module=BboxOverlaps2D, force=True)


_HOST = Host(
    f"{__name__}:_HOST",
    ["mmcv", "mmdet"],
    {
        "mmcv.ops.nms": (nms, soft_nms, batched_nms, nms_match),
        "mmdet.structures.bbox.bbox_overlaps": (bbox_overlaps,),
    },
)


def patch(*modules: ModuleType) -> Routes:
    """Route the functions of mmdet and mmcv through this module, wherever their modules hold them.

    ``patch()`` alone is permanent; ``with patch(): ...`` ends with the block, and ``patch().restore()`` ends it too.
    Calls that ours refuses, and those that are traced, compiled or scripted, go to the hosts' own functions, which
    answer or raise their own errors. The registry is not changed; :func:`register` does that.

    Args:
        modules: further modules to route, for what they imported from mmdet or mmcv by name.

    Raises:
        ImportError: mmdetection, or what it imports, is missing.
    """
    importlib.import_module("mmdet.models")
    return _HOST.patch(modules)
