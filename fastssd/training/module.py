"""The LightningModule: a step of training over all processes, the optimiser, and Lightning's hooks."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed
from torch import Tensor

from fastssd.detection.collate import TargetBatch
from fastssd.detection.criterion import Losses
from fastssd.detection.models import SSD
from fastssd.detection.postprocess import ImageDetections
from fastssd.detection.preprocess import to_input
from fastssd.evaluation import GroundTruth
from fastssd.ops import Targets
from fastssd.training.checkpoint import KEY, CheckpointInfo
from fastssd.training.config import TrainConfig
from fastssd.training.datasets import EvalBatch
from fastssd.training.history import RunHistory, StepClock
from fastssd.training.scoring import detect_eval_batch, metrics_of


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite. The weights are still those of the step before."""


class DetectorModule(L.LightningModule):
    """A detector and its training, as Lightning runs it.

    Args:
        model: the network.
        config: of the run.
        class_names: name of class 1, 2, ...
        report: called with one line of text per epoch.
    """

    def __init__(
        self, model: SSD, config: TrainConfig, class_names: tuple[str, ...], report: Callable[[str], None]
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.class_names = class_names
        self.report = report
        self.clock = StepClock()
        self.history = RunHistory()
        self._found: dict[int, tuple[ImageDetections, GroundTruth]] = {}

    # --- training ----------------------------------------------------------------------------------------------

    def training_step(self, batch: TargetBatch, batch_idx: int) -> Tensor:
        self.clock.lap("data")
        logits, deltas = self.model(to_input(batch.images))  # [B, A, C], [B, A, 4]
        self.clock.lap("forward")
        losses = self.config.criterion(logits, deltas, batch.targets, normalizer=self._normalizer(batch.targets))
        self._record(losses, batch, batch_idx)
        self.history.batches_done = batch_idx + 1
        return losses.total

    def _normalizer(self, targets: Targets) -> Tensor | None:
        """By what each process divides its loss, so that the mean of their gradients is that of the joined batch."""
        if self.trainer.world_size == 1:
            return None
        positives = (targets.labels > 0).sum(dtype=torch.float32)
        return self._mean(positives).clamp(min=1 / self.trainer.world_size)

    def _mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.trainer.world_size > 1:
            value = value / self.trainer.world_size
            torch.distributed.all_reduce(value)
        return value

    def _gathered(self, value: Any) -> list[Any]:
        """The values of all processes."""
        values = [value] * self.trainer.world_size
        if self.trainer.world_size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def _record(self, losses: Losses, batch: TargetBatch, batch_idx: int) -> None:
        """Log the losses of the joined batch of all processes; stop if they are not finite."""
        own = torch.stack([losses.total, losses.classification, losses.box_regression]).detach()
        values = self._mean(own).tolist()
        if not all(map(math.isfinite, values)):  # in all processes at once
            images = itertools.chain(*self._gathered([] if own.isfinite().all() else batch.image_ids))
            raise NonFiniteLossError(
                f"the loss is {values[0]} (classification {values[1]}, box regression {values[2]}) in epoch "
                f"{self.current_epoch + 1}, batch {batch_idx + 1}, images {', '.join(images)}. "
                "The last checkpoint is from before it. A lower learning rate or gradient clipping may help."
            )
        self.history.add_batch(len(batch.image_ids) * self.trainer.world_size, *values)
        self.log("loss", values[0], prog_bar=True)
        learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict({"loss_class": values[1], "loss_box": values[2], "lr": learning_rate})

    def configure_optimizers(self) -> Any:
        config = self.config
        # Weight decay is for weights alone, not for biases and the shift and scale of a normalisation.
        weights = [p for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
        else:
            optimizer = torch.optim.AdamW(groups, config.lr)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.lr_factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        self.on_train_epoch_start()  # Lightning leaves it out where an epoch is resumed in its middle

    def on_train_epoch_start(self) -> None:
        self.history.begin_epoch(self.current_epoch)
        self.clock.restart()

    def on_before_backward(self, loss: Tensor) -> None:
        self.clock.lap("loss")

    def on_after_backward(self) -> None:
        self.clock.lap("backward")

    def on_train_batch_end(self, outputs: Any, batch: TargetBatch, batch_idx: int) -> None:
        self.clock.lap("optimiser")
        self.clock.steps += 1

    def on_train_epoch_end(self) -> None:
        self.report(self.history.end_epoch(self.config.epochs))

    # --- evaluation --------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        self._eval_started = time.perf_counter()
        self._found = {}
        # Each process has the batch statistics of its own batches; a checkpoint has those of the first.
        if self.trainer.world_size > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        self._found |= detect_eval_batch(self.model, batch, self.config)

    def on_validation_epoch_end(self) -> None:
        found = {index: pair for share in self._gathered(self._found) for index, pair in share.items()}
        metrics = metrics_of(found, self.class_names)
        for name in ("AP", "AP50", "AP75"):
            self.log(name, metrics[name] or 0.0, prog_bar=name == "AP50")
        self._found = {}
        self.history.add_evaluation(metrics, time.perf_counter() - self._eval_started)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, TargetBatch):
            return batch.to(device)
        return batch._replace(images=batch.images.to(device, non_blocking=True))

    # --- checkpoints -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = CheckpointInfo(
            model=self.config.model,
            class_names=self.class_names,
            preset=self.model.preset,
            config=self.config.to_dict(),
            **self.history.to_checkpoint(),
        ).to_dict()

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        self.history.resume(CheckpointInfo.from_dict(checkpoint[KEY]))
