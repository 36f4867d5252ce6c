"""Lightning's trainer for our runs: whole checkpoints, our progress bar and logs, no hints."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, RichProgressBar, TQDMProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from fastssd.training import report
from fastssd.training.checkpoint import read_checkpoint, save_checkpoint
from fastssd.training.config import TrainConfig
from fastssd.training.module import DetectorModule


class _AtomicCheckpointIO(CheckpointIO):
    """How Lightning writes and reads checkpoints: whole files only, and no pickle is executed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class CheckpointKeeper(Checkpoint):
    """After each epoch saves the best checkpoint, if this one is, then the last. A kill in between costs this epoch.

    Not Lightning's ModelCheckpoint: that one forgets the best score when a run folder is moved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DetectorModule)
        history = pl_module.history
        if history.improved:
            trainer.save_checkpoint(self.folder / "checkpoints" / "best.ckpt")
        trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")
        if trainer.is_global_zero:
            report.write_metrics(self.folder, history.epochs, history.best, pl_module.clock.report())


class _ProgressBar(RichProgressBar):
    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Loss and AP50, without the number of the logs' folder."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


def make_trainer(
    config: TrainConfig, folder: Path, callbacks: list[Any], progress: bool, report_line: Callable[[str], None]
) -> L.Trainer:
    if config.early_stop:
        callbacks = [*callbacks, EarlyStopping("AP50", mode="max", patience=config.early_stop)]
    if progress:
        callbacks = [*callbacks, _ProgressBar() if importlib.util.find_spec("rich") else TQDMProgressBar()]
    if config.ema:  # first, so that a checkpoint written after a step has the average after it
        callbacks = [WeightAveraging(multi_avg_fn=moving_average(config.ema)), *callbacks]
    csv = CSVLogger(folder, name="logs")
    loggers: list[Logger] = [csv]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(folder, name="logs", version=csv.version))
    else:
        report_line("no TensorBoard logs: tensorboard is missing; install it with: pip install 'fastssd[train]'")
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        precision=config.precision,  # type: ignore[arg-type]
        max_epochs=config.epochs,
        check_val_every_n_epoch=config.eval_every,
        gradient_clip_val=config.gradient_clip or None,
        accumulate_grad_batches=config.accumulate,
        callbacks=callbacks,
        logger=loggers,
        plugins=[_AtomicCheckpointIO()],
        default_root_dir=folder,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
    )
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            f"strategy {config.strategy!r} with devices {config.devices!r}: forks or spawns processes whose results "
            "do not come back to this one, as in a notebook; use ddp in a script, fastssd train --devices, or torchrun"
        )
    return trainer


def moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average for Lightning's WeightAveraging, on lists of tensors, in place.

    After n steps the decay is at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage.
    """

    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
        steps = int(count)
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + steps) / (10 + steps)))
        else:  # counters
            torch._foreach_copy_(averaged, current)

    return update


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's hints about workers (not needed: images are in memory), tips and hardware."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def keep_freed_memory() -> None:
    """Let the C library keep large freed blocks for the next step.

    By default glibc returns the memory of each activation to the system and requests it again at every step, page by
    page and zeroed. With other C libraries this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_max = -1, -4  # malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)
