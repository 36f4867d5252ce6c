"""fastssd: SSD object detection, complete, on box operators that run at the limit of the CPU.

``fastssd.ops`` holds the operators (NumPy in, NumPy out; torch in, torch out); ``fastssd.TinySSD`` and what belongs to
training load torch on first use. Importing this package loads NumPy and nothing heavier.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastssd import ops
from fastssd._config import set_num_threads, show_config
from fastssd.backends import use_backend

if TYPE_CHECKING:
    from fastssd.deploy import Detector
    from fastssd.detection import (
        SSD,
        Criterion,
        Preset,
        TargetCollate,
        TinySSD,
        build_model,
        detect,
        ssd300_vgg16,
        ssd512_vgg16,
        ssdlite320_mobilenet_v3_large,
    )
    from fastssd.training import load_checkpoint

    __version__: str

# Loaded on first use, because they import torch (a Detector: for a checkpoint alone).
_LAZY = {
    "Detector": "fastssd.deploy",
    "TinySSD": "fastssd.detection",
    "SSD": "fastssd.detection",
    "Preset": "fastssd.detection",
    "Criterion": "fastssd.detection",
    "TargetCollate": "fastssd.detection",
    "build_model": "fastssd.detection",
    "detect": "fastssd.detection",
    "ssd300_vgg16": "fastssd.detection",
    "ssd512_vgg16": "fastssd.detection",
    "ssdlite320_mobilenet_v3_large": "fastssd.detection",
    "load_checkpoint": "fastssd.training",
}

__all__ = [
    "SSD",
    "Criterion",
    "Detector",
    "Preset",
    "TargetCollate",
    "TinySSD",
    "__version__",
    "build_model",
    "detect",
    "load_checkpoint",
    "ops",
    "set_num_threads",
    "show_config",
    "ssd300_vgg16",
    "ssd512_vgg16",
    "ssdlite320_mobilenet_v3_large",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from fastssd._config import version

        return version()
    if name not in _LAZY:
        raise AttributeError(f"module 'fastssd' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
