"""Stop a run at a signal: after the current step, with a checkpoint that resumes exactly there."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from fastssd._stopping import StopSignal


class Stopped(Exception):
    """Raised to leave Lightning's loops after a signal."""


class StopAfterStep(L.Callback):
    """Ends the run with a checkpoint once a signal has come, in all processes after the same step."""

    def __init__(self, folder: Path, stop: StopSignal) -> None:
        self.folder = folder
        self.stop = stop

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop.install()  # here, because Lightning has put its own handlers in place just before

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # After the last batch of an epoch its end is near, which is the better place to resume from. Between two steps
        # of the optimizer there are accumulated gradients, which a checkpoint does not have.
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self._asked(trainer) and stepped and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")
            raise Stopped

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._asked(trainer):
            raise Stopped

    def _asked(self, trainer: L.Trainer) -> bool:
        asked = self.stop.signal is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
            self.stop.signal = self.stop.signal or (signal.SIGTERM if asked else None)
        return asked
