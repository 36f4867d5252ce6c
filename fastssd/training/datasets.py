"""Batches for training and evaluation out of a detection data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fastssd.data import DetectionDataset, Sample
from fastssd.detection.collate import TargetBatch, TargetCollate
from fastssd.detection.preprocess import resize_image
from fastssd.evaluation import GroundTruth
from fastssd.training.augment import Augment, LabelledImage

CACHE_LIMIT = 2 << 30  # bytes of images that are kept in memory by default


class EvalImage(NamedTuple):
    """A sample at the network's size."""

    image: NDArray[np.uint8]  # [S, S, 3]
    truth: GroundTruth  # in pixels of the original
    size: tuple[int, int]  # (height, width) of the original
    image_id: str


class EvalBatch(NamedTuple):
    images: Tensor  # uint8 [B, S, S, 3]
    indices: list[int]  # places in the data set
    sizes: list[tuple[int, int]]  # (height, width) of the originals
    truths: list[GroundTruth]


class Cached:
    """The samples of a data set, kept in memory once they were read.

    Args:
        dataset: what to read from.
        cache: whether to keep them; None: if all together stay under :data:`CACHE_LIMIT`, judged by the first.
    """

    def __init__(self, dataset: DetectionDataset, cache: bool | None = None) -> None:
        self.dataset = dataset
        self.cached = len(dataset) * dataset[0].image.nbytes <= CACHE_LIMIT if cache is None else cache
        self._kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self._kept.get(index)
        if sample is None:
            sample = self.dataset[index]
            if self.cached:
                self._kept[index] = sample
        return sample


class Resized:
    """The images of a data set at the network's size, kept in memory once they were read.

    Args:
        dataset: what to read from.
        size: height and width of the network's input.
        cache: whether to keep them; None: if all together stay under :data:`CACHE_LIMIT`.
    """

    def __init__(self, dataset: DetectionDataset, size: int, cache: bool | None = None) -> None:
        self.dataset = dataset
        self.size = size
        self.cached = len(dataset) * size * size * 3 <= CACHE_LIMIT if cache is None else cache
        self._kept: dict[int, EvalImage] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> EvalImage:
        resized = self._kept.get(index)
        if resized is None:
            sample = self.dataset[index]
            resized = EvalImage(
                resize_image(sample.image, self.size),
                GroundTruth(sample.boxes, sample.labels, sample.difficult),
                sample.image.shape[:2],
                sample.image_id,
            )
            if self.cached:
                self._kept[index] = resized
        return resized


class Item(NamedTuple):
    """An index of a :class:`TrainSet`."""

    epoch: int
    sample: int  # its place in the data set
    size: int  # height and width, pixels


class TrainSet(Dataset[Sample]):
    """Augmented images at the wanted size, with boxes as fractions. Difficult boxes are left out.

    An item depends on its index and the seed only, not on the order of the calls or on the worker process.

    Args:
        samples: the training set.
        augment: the random changes.
        seed: of the changes.
        mosaic_epochs: epochs, from the first, that have the augmentation's mosaic; None: all.
    """

    def __init__(self, samples: Cached, augment: Augment, seed: int, mosaic_epochs: int | None = None) -> None:
        self.samples = samples
        self.augment = augment
        self.seed = seed
        self.mosaic_epochs = mosaic_epochs

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: Item) -> Sample:
        epoch, index, size = item
        rng = np.random.default_rng((self.seed, epoch, index))
        samples = [self.samples[index]]
        open_for_mosaic = self.mosaic_epochs is None or epoch < self.mosaic_epochs
        if rng.random() < self.augment.mosaic and open_for_mosaic:
            samples += [self.samples[int(other)] for other in rng.integers(len(self), size=3)]
        image, boxes, labels = self.augment([_learnt(sample) for sample in samples], size, rng)
        return Sample(image, boxes, labels, samples[0].image_id, np.zeros(len(boxes), bool))


def _learnt(sample: Sample) -> LabelledImage:
    """An image with its boxes that are not difficult, as fractions of it."""
    scale = np.array([sample.image.shape[1], sample.image.shape[0]] * 2, np.float32)
    learnt = ~sample.difficult
    return sample.image, sample.boxes[learnt] / scale, sample.labels[learnt]


class EvalSet(Dataset[tuple[int, EvalImage]]):
    """The images without changes, each with its index."""

    def __init__(self, images: Resized) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, EvalImage]:
        return index, self.images[index]


class EpochSampler(Sampler[Item]):
    """A permutation for each epoch, divided between the processes of a distributed run.

    The batches of all processes in a step are together the batch of one process with batches of that total size.

    Args:
        length: of the data set.
        batch_size: items of a process that go into one batch, and have one size.
        sizes: heights and widths to draw from, pixels.
        seed: permutation and sizes depend on it and on the epoch alone.
        rank, world_size: this process among all. Each gets the same number, in a step all of the same size. Where the
            data set is smaller than a step, the first few serve twice to even it out.
    """

    def __init__(
        self, length: int, batch_size: int, sizes: Sequence[int], seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.sizes = tuple(sizes)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def resume(self, epoch: int, start: int) -> None:
        """Begin at item `start` of `epoch`: those before it were done by the run that is resumed."""
        self.epoch, self.start = epoch, start

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        if epoch != self.epoch:
            self.resume(epoch, 0)

    def __len__(self) -> int:
        """Of a whole epoch, also where this one begins later: Lightning subtracts the start itself."""
        whole_steps = self.length >= self.batch_size * self.world_size
        return self.length // self.world_size if whole_steps else -(-self.length // self.world_size)

    def __iter__(self) -> Iterator[Item]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.length)
        mine = np.resize(order, len(self) * self.world_size)[self.rank :: self.world_size].tolist()
        batches = rng.integers(len(self.sizes), size=-(-len(self) // self.batch_size)).tolist()
        sizes = (self.sizes[batches[place // self.batch_size]] for place in range(len(self)))
        items = [Item(self.epoch, index, size) for index, size in zip(mine, sizes, strict=True)]
        return iter(items[self.start :])


class CollateBySize:
    """Makes the targets of a batch with the anchors of its size.

    Args:
        collates: by height and width, pixels.
    """

    def __init__(self, collates: Mapping[int, TargetCollate]) -> None:
        self.collates = dict(collates)

    def __call__(self, samples: Sequence[Sample]) -> TargetBatch:
        return self.collates[len(samples[0].image)](samples)


def train_loader(
    samples: Cached,
    augment: Augment,
    collates: Mapping[int, TargetCollate],
    *,
    batch_size: int,
    seed: int,
    mosaic_epochs: int | None = None,
    num_workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[TargetBatch]:
    """Shuffled, augmented batches with their targets, images as uint8 [B, S, S, 3]. The last batch is left
    out if it is not full; in each epoch other images are in it.

    Args:
        samples: the training set.
        augment: the random changes.
        collates: make the targets, by height and width of the network's input, pixels. If there are several, each
            batch has one of these sizes.
        batch_size: images per step in this process.
        seed: decides order, sizes and augmentation.
        mosaic_epochs: as in :class:`TrainSet`.
        num_workers: processes that read; None: 0 if images are kept in memory, otherwise half of the cores, at most 4.
        rank, world_size: as in :class:`EpochSampler`.
    """
    sampler = EpochSampler(len(samples), batch_size, tuple(collates), seed, rank, world_size)
    workers = _workers(samples, num_workers)
    return DataLoader(
        TrainSet(samples, augment, seed, mosaic_epochs),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=CollateBySize(collates),
        drop_last=len(sampler) >= batch_size,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def eval_loader(
    images: Resized, *, batch_size: int, num_workers: int | None = None, rank: int = 0, world_size: int = 1
) -> DataLoader[EvalBatch]:
    """All images in order. In a distributed run the first few come twice, so that all processes get the same number."""
    share = -(-len(images) // world_size)
    mine = np.resize(np.arange(len(images)), share * world_size)[rank::world_size].tolist()
    workers = _workers(images, num_workers)
    return DataLoader(
        EvalSet(images),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=mine,
        num_workers=workers,
        collate_fn=_collate_eval,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _workers(images: Cached | Resized, num_workers: int | None) -> int:
    if num_workers is not None:
        return num_workers
    return 0 if images.cached else min(4, max(1, (os.cpu_count() or 1) // 2))


def _collate_eval(items: Sequence[tuple[int, EvalImage]]) -> EvalBatch:
    images = [image for _, image in items]
    return EvalBatch(
        torch.from_numpy(np.stack([image.image for image in images])),
        [index for index, _ in items],
        [image.size for image in images],
        [image.truth for image in images],
    )
