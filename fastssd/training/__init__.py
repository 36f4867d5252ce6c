"""Training and evaluation, on Lightning (extra ``train``).

The names are loaded on first use, so that a checkpoint can be opened with torch alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastssd.training.augment import Augment
    from fastssd.training.checkpoint import CheckpointError, CheckpointInfo, load_checkpoint
    from fastssd.training.config import TrainConfig
    from fastssd.training.evaluate import Evaluated, detect_all, evaluate
    from fastssd.training.module import NonFiniteLossError
    from fastssd.training.run import RunResult, is_main_process, new_run_dir, train

_LAZY = {
    "Augment": "augment",
    "CheckpointError": "checkpoint",
    "CheckpointInfo": "checkpoint",
    "load_checkpoint": "checkpoint",
    "NonFiniteLossError": "module",
    "RunResult": "run",
    "TrainConfig": "config",
    "Evaluated": "evaluate",
    "detect_all": "evaluate",
    "evaluate": "evaluate",
    "is_main_process": "run",
    "new_run_dir": "run",
    "train": "run",
}

__all__ = [
    "Augment",
    "CheckpointError",
    "CheckpointInfo",
    "Evaluated",
    "NonFiniteLossError",
    "RunResult",
    "TrainConfig",
    "detect_all",
    "evaluate",
    "is_main_process",
    "load_checkpoint",
    "new_run_dir",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fastssd.training' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"fastssd.training.{_LAZY[name]}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"fastssd.training.{name} needs {error.name}; install it with: pip install 'fastssd[train]'"
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
