"""All choices of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import torch

from fastssd._fields import check_fields, from_plain, one_of, within
from fastssd._preset import Fraction, Size
from fastssd.detection.criterion import Criterion
from fastssd.detection.models import MODELS, Preset
from fastssd.training.augment import Augment

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "step", "constant")
AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class TrainConfig:
    """All choices of a run. The run folder and every checkpoint have a copy.

    Attributes:
        model: a key of :data:`fastssd.detection.MODELS`.
        preset: anchors and input size; None: those of the weights, otherwise the model's own.
        weights: what training starts from: a published name or a file, as in
            :func:`fastssd.detection.weights.read_weights`; None: from scratch.
        freeze: modules that are not trained, by name with wildcards, as in :meth:`fastssd.detection.SSD.freeze`.
        epochs: passes over the training set.
        batch_size: images per step, in each process.
        optimizer: ``"adamw"`` or ``"sgd"`` (with Nesterov's momentum).
        lr: the highest learning rate.
        momentum: of SGD.
        weight_decay: on weights, not on biases and normalisation.
        schedule: after the warm-up, ``"cosine"`` down to zero, ``"step"``, a tenth from each of `milestones` on, or
            ``"constant"``.
        milestones: ascending parts of all steps, for ``"step"``.
        warmup: the part of all steps in which the learning rate increases from zero; 0.3 with cosine is the one-cycle
            schedule.
        gradient_clip: largest norm of the gradient; 0 for no limit.
        accumulate: batches whose gradients are added up for one step of the optimizer.
        ema: decay of a moving average of the weights; the average is evaluated and saved. 0: none. The decay starts
            lower, so that a short run forgets its first weights too.
        criterion: the losses.
        augment: random changes of training images.
        close_mosaic: how many last epochs have no mosaic, so that training ends on whole images.
        multi_scale: heights and widths of the input, pixels. Each batch has one of them, which depends on seed, epoch
            and place in the epoch, with the anchors of that size. Empty: the preset's size. Evaluation has that too.
        seed: decides initial weights, order and augmentation.
        eval_every: epochs between two evaluations.
        early_stop: evaluations without a better AP50 after which the run ends; 0 for never.
        score_threshold, nms_threshold: of the detections that are evaluated; None for the preset's.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        accelerator, devices, num_nodes, strategy: as Lightning's Trainer takes them.
        num_workers: processes that read images; None chooses.
        cache: keep resized images in memory; None: if they fit.

    Raises:
        ValueError: a field is of another type or out of range; names it, what came and what was expected.
    """

    model: str = "tinyssd"
    preset: Preset | None = None
    weights: str | None = None
    freeze: tuple[str, ...] = ()
    epochs: Annotated[int, within(1, 1_000_000)] = 60
    batch_size: Annotated[int, within(1, 65_536)] = 16
    optimizer: Annotated[str, one_of(*OPTIMIZERS)] = "adamw"
    lr: Annotated[float, within(0, 1e38, above=True)] = 2e-3
    momentum: Annotated[float, within(0, 1)] = 0.9
    weight_decay: Annotated[float, within(0, 1000)] = 0.01
    schedule: Annotated[str, one_of(*SCHEDULES)] = "cosine"
    milestones: tuple[Fraction, ...] = (0.67, 0.89)
    warmup: Fraction = 0.1
    gradient_clip: Annotated[float, within(0, math.inf)] = 10.0
    accumulate: Annotated[int, within(1, 65_536)] = 1
    ema: Fraction = 0.0
    criterion: Criterion = field(default_factory=Criterion)
    augment: Augment = field(default_factory=Augment)
    close_mosaic: Annotated[int, within(0, 1_000_000)] = 0
    multi_scale: tuple[Size, ...] = ()
    seed: Annotated[int, within(0, 2**63 - 1)] = 0
    eval_every: Annotated[int, within(1, 1_000_000)] = 1
    early_stop: Annotated[int, within(0, 1_000_000)] = 0
    score_threshold: Fraction | None = None
    nms_threshold: Fraction | None = None
    precision: Annotated[str, one_of(*AUTOCAST)] = "32-true"
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: Annotated[int, within(1, 65_536)] = 1
    strategy: str = "auto"
    num_workers: Annotated[int, within(0, 4096)] | None = None
    cache: bool | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.model not in MODELS:  # not a rule of the field: users may add models
            raise ValueError(f"model: expected one of {', '.join(MODELS)}; got {self.model!r}")
        if self.eval_every > self.epochs:
            raise ValueError(f"eval_every: expected at most epochs {self.epochs}, got {self.eval_every}")
        if self.warmup == 1 or self.ema == 1:
            raise ValueError(f"warmup, ema: expected numbers under 1, got {self.warmup} and {self.ema}")
        if len(set(self.multi_scale)) < len(self.multi_scale):
            raise ValueError(f"multi_scale: expected different sizes in pixels, got {self.multi_scale}")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < part < 1 for part in self.milestones):
            raise ValueError(f"milestones: expected ascending parts of all steps in (0, 1), got {self.milestones}")

    def lr_factor(self, step: int, total: int) -> float:
        """The learning rate of a step, divided by the highest."""
        warm = self.warmup * total
        if step < warm:
            return (step + 1) / (math.floor(warm) + 1)
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "step":
            return 0.1 ** sum(step >= part * total for part in self.milestones)
        return (1 + math.cos(math.pi * min((step - warm) / max(total - warm, 1), 1))) / 2

    def to_dict(self) -> dict[str, Any]:
        """Plain values; :meth:`from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """
        Raises:
            ValueError: a value is out of range or of another type, or a name is unknown.
        """
        try:
            return from_plain(cls, values)
        except ValueError as error:
            raise ValueError(f"not a training configuration: {error}") from None
