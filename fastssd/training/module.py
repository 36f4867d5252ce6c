"""The LightningModule: a step of training, a step of evaluation, and what a checkpoint needs to carry."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import lightning.pytorch as L
import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import DataLoader

from fastssd.detection.collate import TargetBatch
from fastssd.detection.criterion import Losses
from fastssd.detection.models import SSD, Preset
from fastssd.detection.postprocess import ImageDetections, detect_batch
from fastssd.detection.preprocess import to_input
from fastssd.evaluation import MAX_DETECTIONS, GroundTruth, coco_metrics
from fastssd.ops import Targets
from fastssd.training.checkpoint import KEY, CheckpointInfo
from fastssd.training.config import TrainConfig
from fastssd.training.datasets import Cached, EpochSampler, EvalBatch, Resized, eval_loader, train_loader


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite. The weights are still those of the step before."""


class StepClock:
    """Where the time of a training step goes. On an accelerator: until the work is queued, not until it is done."""

    PARTS = ("data", "forward", "loss", "backward", "optimiser")

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(self.PARTS, 0.0)
        self.steps = 0
        self.restart()

    def restart(self) -> None:
        """What passed since the last lap belongs to no part."""
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """What passed since the last lap belongs to `part`."""
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now

    def report(self) -> dict[str, Any]:
        """Seconds a step of each part, and its share of the whole."""
        whole = sum(self.seconds.values()) or 1.0
        return {
            "steps": self.steps,
            "seconds_per_step": {part: value / max(self.steps, 1) for part, value in self.seconds.items()},
            "share": {part: value / whole for part, value in self.seconds.items()},
        }


class DetectorData(L.LightningDataModule):
    """The loaders of this process's share, and the place at which the first epoch begins.

    Args:
        train, evaluation: the pictures.
        presets: for each size of the training input the anchors that targets are made for.
        config: of the run.
    """

    def __init__(self, train: Cached, evaluation: Resized, presets: Sequence[Preset], config: TrainConfig) -> None:
        super().__init__()
        self.train_samples = train
        self.eval_pictures = evaluation
        self.config = config
        self.collates = {
            preset.image_size: config.criterion.collate(preset.anchors(), preset.variances) for preset in presets
        }
        self.start = (0, 0)
        """Epoch, and batches of it that are done."""

    def train_dataloader(self) -> DataLoader[TargetBatch]:
        assert self.trainer is not None
        loader = train_loader(
            self.train_samples,
            self.config.augment,
            self.collates,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            mosaic_epochs=self.config.epochs - self.config.close_mosaic,
            num_workers=self.config.num_workers,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        epoch, batches = self.start
        cast(EpochSampler, loader.sampler).resume(epoch, batches * self.config.batch_size)
        return loader

    def val_dataloader(self) -> DataLoader[EvalBatch]:
        assert self.trainer is not None
        return eval_loader(
            self.eval_pictures,
            batch_size=self.config.batch_size,
            num_workers=self.config.num_workers,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )


class DetectorModule(L.LightningModule):
    """What Lightning needs to know of a detector's training.

    Args:
        model: the network.
        config: of the run.
        class_names: name of class 1, 2, ...
        report: takes one line of text an epoch.
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
        self.history: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] | None = None
        self.best: dict[str, Any] | None = None
        self.improved = False
        self.epochs_done = 0
        self.batches_done = 0
        self._partial: dict[str, float] = {}
        self._started_epoch = -1
        self._found: dict[int, tuple[ImageDetections, GroundTruth]] = {}

    # --- training ----------------------------------------------------------------------------------------------

    def training_step(self, batch: TargetBatch, batch_idx: int) -> Tensor:
        self.clock.lap("data")
        logits, deltas = self.model(to_input(batch.images))  # [B, A, C], [B, A, 4]
        self.clock.lap("forward")
        losses = self.config.criterion(logits, deltas, batch.targets, normalizer=self._normalizer(batch.targets))
        self._record(losses, batch, batch_idx)
        self.batches_done = batch_idx + 1
        return losses.total

    def _normalizer(self, targets: Targets) -> Tensor | None:
        """What makes the average of the processes' gradients that of all their batches as one."""
        if self.trainer.world_size == 1:
            return None
        positives = (targets.labels > 0).sum(dtype=torch.float32)
        return self._mean(positives).clamp(min=1 / self.trainer.world_size)

    def _mean(self, value: Tensor) -> Tensor:
        """Over all processes."""
        if self.trainer.world_size > 1:
            value = value / self.trainer.world_size
            torch.distributed.all_reduce(value)
        return value

    def _gathered(self, value: Any) -> list[Any]:
        """One of each process."""
        values = [value] * self.trainer.world_size
        if self.trainer.world_size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def _record(self, losses: Losses, batch: TargetBatch, batch_idx: int) -> None:
        """Log the losses, those of all processes' batches as one; stop if they are of no use."""
        own = torch.stack([losses.total, losses.classification, losses.box_regression]).detach()
        values = self._mean(own).tolist()
        if not all(map(math.isfinite, values)):  # in all processes at once
            pictures = itertools.chain(*self._gathered([] if own.isfinite().all() else batch.image_ids))
            raise NonFiniteLossError(
                f"the loss is {values[0]} (classification {values[1]}, box regression {values[2]}) in epoch "
                f"{self.current_epoch + 1}, batch {batch_idx + 1}, pictures {', '.join(pictures)}. "
                "The last checkpoint is from before it. A lower learning rate or gradient clipping may help."
            )
        named = dict(zip(("loss", "loss_class", "loss_box"), values, strict=True))
        size = len(batch.image_ids) * self.trainer.world_size
        for name, value in named.items():
            self._sums[name] += value * size
        self._sums["pictures"] += size
        self.log("loss", values[0], prog_bar=True)
        learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict({"loss_class": values[1], "loss_box": values[2], "lr": learning_rate})

    def configure_optimizers(self) -> Any:
        config = self.config
        # Weight decay is for weights; biases and the shift and scale of a normalisation are left alone.
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
        self.on_train_epoch_start()  # Lightning leaves it out where an epoch is taken up in its middle

    def on_train_epoch_start(self) -> None:
        if self._started_epoch == self.current_epoch:
            return
        self._started_epoch = self.current_epoch
        self._sums = dict.fromkeys(("pictures", "loss", "loss_class", "loss_box", "seconds"), 0.0) | self._partial
        self._partial = {}
        self._started = time.perf_counter()
        self._evaluated = 0.0
        self.clock.restart()

    def on_before_backward(self, loss: Tensor) -> None:
        self.clock.lap("loss")

    def on_after_backward(self) -> None:
        self.clock.lap("backward")

    def on_train_batch_end(self, outputs: Any, batch: TargetBatch, batch_idx: int) -> None:
        self.clock.lap("optimiser")
        self.clock.steps += 1

    def on_train_epoch_end(self) -> None:
        sums = self._so_far()
        seconds = sums.pop("seconds")
        pictures = sums.pop("pictures")
        self.epochs_done, self.batches_done = self.current_epoch + 1, 0
        metrics = self.metrics if self._evaluated and self.metrics else dict.fromkeys(("AP", "AP50", "AP75"))
        row = {
            "epoch": self.epochs_done,
            **{name: value / max(pictures, 1) for name, value in sums.items()},
            **{name: metrics[name] for name in ("AP", "AP50", "AP75")},
            "seconds": seconds,
            "eval_seconds": self._evaluated,
            "pictures_per_second": pictures / seconds,
        }
        self.history.append(row)
        self.improved = bool(self._evaluated) and (self.best is None or _score(metrics) > _score(self.best))
        if self.improved:
            self.best = {"epoch": self.epochs_done, **metrics}
        found = f"  AP50 {_score(metrics):.3f}  AP {metrics['AP'] or 0.0:.3f}" if self._evaluated else ""
        self.report(
            f"epoch {self.epochs_done}/{self.config.epochs}  loss {row['loss']:.3f}{found}  {seconds:.1f} s  "
            f"{row['pictures_per_second']:.1f} pictures/s" + ("  best" if self.improved else "")
        )

    def _so_far(self) -> dict[str, float]:
        """Pictures, summed losses and seconds of training of the epoch at hand."""
        seconds = self._sums["seconds"] + time.perf_counter() - self._started - self._evaluated
        return self._sums | {"seconds": seconds}

    # --- evaluation --------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        self._eval_started = time.perf_counter()
        self._found = {}
        if (
            self.trainer.world_size > 1
        ):  # every process counted its own batches' statistics; a checkpoint has the first's
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        self._found |= detect_eval_batch(self.model, batch, self.config)

    def on_validation_epoch_end(self) -> None:
        found = {index: pair for share in self._gathered(self._found) for index, pair in share.items()}
        self.metrics = metrics_of(found, self.class_names)
        for name in ("AP", "AP50", "AP75"):
            self.log(name, self.metrics[name] or 0.0, prog_bar=name == "AP50")
        self._found = {}
        self._evaluated = time.perf_counter() - self._eval_started

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
            epoch=self.epochs_done,
            batches=self.batches_done,
            partial=self._so_far() if self.batches_done else {},
            metrics=self.metrics,
            best=self.best,
            history=self.history,
        ).to_dict()

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        info = CheckpointInfo.from_dict(checkpoint[KEY])
        self.history, self.metrics, self.best = info.history, info.metrics, info.best
        self.epochs_done, self.batches_done, self._partial = info.epoch, info.batches, info.partial


def detect_eval_batch(
    model: SSD, batch: EvalBatch, config: TrainConfig
) -> dict[int, tuple[ImageDetections, GroundTruth]]:
    """What the model finds in each picture of the batch and what there is, by the picture's index."""
    detections = detect_batch(
        model,
        to_input(batch.images),
        batch.sizes,
        score_threshold=config.score_threshold,
        iou_threshold=config.nms_threshold,
        max_detections=MAX_DETECTIONS,
    )
    return dict(zip(batch.indices, zip(detections, batch.truths, strict=True), strict=True))


def metrics_of(
    found: Mapping[int, tuple[ImageDetections, GroundTruth]], class_names: tuple[str, ...]
) -> dict[str, Any]:
    """The metrics of a whole data set, whatever the order in which its pictures were looked at."""
    ordered = [found[index] for index in sorted(found)]
    return coco_metrics([seen for seen, _ in ordered], [truth for _, truth in ordered], class_names)


def _score(metrics: Mapping[str, Any]) -> float:
    """What makes a checkpoint the best: AP50, 0 where there is nothing to find."""
    return metrics["AP50"] or 0.0
