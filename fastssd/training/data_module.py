"""The LightningDataModule: the loaders of one process, and where in the data a resumed run begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import lightning.pytorch as L
from torch.utils.data import DataLoader

from fastssd.detection.collate import TargetBatch
from fastssd.detection.models import Preset
from fastssd.training.config import TrainConfig
from fastssd.training.datasets import Cached, EpochSampler, EvalBatch, Resized, eval_loader, train_loader


class DetectorData(L.LightningDataModule):
    """The loaders of this process's share, and the place at which the first epoch begins.

    Args:
        train, evaluation: the images.
        presets: for each size of the training input, the anchors that targets are made for.
        config: of the run.
    """

    def __init__(self, train: Cached, evaluation: Resized, presets: Sequence[Preset], config: TrainConfig) -> None:
        super().__init__()
        self.train_samples = train
        self.eval_images = evaluation
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
            self.eval_images,
            batch_size=self.config.batch_size,
            num_workers=self.config.num_workers,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
