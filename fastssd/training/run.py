"""A training run: from a data set to a folder with checkpoints, metrics and pictures."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning_utilities.core.rank_zero import rank_zero_only

from fastssd._config import version
from fastssd.data import DetectionDataset
from fastssd.detection.criterion import Criterion
from fastssd.detection.models import MODELS, Preset, build_model
from fastssd.detection.postprocess import ImageDetections
from fastssd.training import report
from fastssd.training.augment import Augment
from fastssd.training.checkpoint import (
    CheckpointInfo,
    load_checkpoint,
    read_checkpoint,
    read_info,
    save_checkpoint,
)
from fastssd.training.datasets import Resized, eval_loader
from fastssd.training.metrics import GroundTruth
from fastssd.training.module import DetectorData, DetectorModule, detect_eval_batch, metrics_of

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "constant")
AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class TrainConfig:
    """All choices of a run. It is written to the run folder and into every checkpoint.

    Attributes:
        model: a key of :data:`fastssd.detection.MODELS`.
        preset: anchors and input size; None for the model's own.
        epochs: passes over the training set.
        batch_size: pictures a step, in each process.
        optimizer: ``"adamw"`` or ``"sgd"`` (with Nesterov's momentum).
        lr: the highest learning rate.
        momentum: of SGD.
        weight_decay: on weights, not on biases and normalisation.
        schedule: after the warm-up, ``"cosine"`` down to zero or ``"constant"``.
        warmup: the part of all steps in which the learning rate rises from zero; 0.3 and cosine are called one-cycle.
        gradient_clip: largest norm of the gradient; 0 for no limit.
        criterion: the losses.
        augment: the changes of training pictures.
        seed: decides initial weights, order and augmentation.
        eval_every: epochs between two evaluations.
        early_stop: evaluations without a better AP50 after which the run ends; 0 for never.
        score_threshold, nms_threshold: of the detections that are evaluated.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        accelerator, devices, num_nodes, strategy: as Lightning's Trainer takes them.
        num_workers: processes that read pictures; None chooses.
        cache: keep resized pictures in memory; None: if they fit.
    """

    model: str = "tinyssd"
    preset: Preset | None = None
    epochs: int = 60
    batch_size: int = 16
    optimizer: str = "adamw"
    lr: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.1
    gradient_clip: float = 10.0
    criterion: Criterion = field(default_factory=Criterion)
    augment: Augment = field(default_factory=Augment)
    seed: int = 0
    eval_every: int = 1
    early_stop: int = 0
    score_threshold: float = 0.01
    nms_threshold: float = 0.45
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    num_workers: int | None = None
    cache: bool | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("model", tuple(MODELS)),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", tuple(AUTOCAST)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("eval_every", 1), ("early_stop", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.eval_every > self.epochs:
            raise ValueError(f"eval_every: expected at most epochs {self.epochs}, got {self.eval_every}")
        if not (self.lr > 0 and 0 <= self.warmup < 1):
            raise ValueError(f"lr, warmup: expected lr > 0 and warmup in [0, 1), got {self.lr} and {self.warmup}")

    def lr_factor(self, step: int, total: int) -> float:
        """The learning rate of a step as a part of the highest."""
        warm = self.warmup * total
        if step < warm:
            return (step + 1) / (math.floor(warm) + 1)
        if self.schedule == "constant":
            return 1.0
        return (1 + math.cos(math.pi * min((step - warm) / max(total - warm, 1), 1))) / 2

    def to_dict(self) -> dict[str, Any]:
        """Plain values; :meth:`from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """
        Raises:
            ValueError: a value is out of range, or a name is not one of a configuration's.
        """
        given = dict(values)
        try:
            for name, kind in (("criterion", Criterion), ("augment", Augment)):
                if isinstance(given.get(name), Mapping):
                    given[name] = kind(**given[name])
            if isinstance(given.get("preset"), Mapping):
                given["preset"] = Preset.from_dict(given["preset"])
            return cls(**given)
        except TypeError as error:
            raise ValueError(f"not a training configuration: {error}") from None


# What may differ when a run is taken up again: the rest decides what the steps before were.
_FREE_TO_CHANGE = {"epochs", "early_stop", "eval_every", "num_workers", "cache", "accelerator"}


@dataclass(frozen=True)
class RunResult:
    """What :func:`train` returns.

    Attributes:
        run_dir: the run folder.
        history: one entry an epoch, from the first, as in metrics.csv.
        best: epoch and metrics of the best evaluation by AP50; None if the run was stopped before the first.
        best_checkpoint: its checkpoint.
        last_checkpoint: the one to resume from; None if the run was stopped before the first step.
        predictions: picture with detections drawn on some of the evaluation set; None for a run that was stopped.
        timing: where the time of a training step went: ``{"steps", "seconds_per_step", "share"}``.
        interrupted: name of the signal that stopped the run, or None.
    """

    run_dir: Path
    history: list[dict[str, Any]]
    best: dict[str, Any] | None
    best_checkpoint: Path | None
    last_checkpoint: Path | None
    predictions: Path | None
    timing: dict[str, Any]
    interrupted: str | None


def new_run_dir(model: str, root: str | os.PathLike[str] = "runs") -> Path:
    """The first of ``root/model-001``, ``root/model-002``, ... that does not exist yet; it is not made."""
    number = 1
    while (path := Path(root) / f"{model}-{number:03d}").exists():
        number += 1
    return path


def train(
    config: TrainConfig | None,
    train_data: DetectionDataset,
    eval_data: DetectionDataset,
    run_dir: str | os.PathLike[str] | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
    report_line: Callable[[str], None] = print,
) -> RunResult:
    """Train a model, evaluate it after each epoch, and leave all of it in a run folder.

    SIGTERM and Ctrl-C end the run after the step at hand with a checkpoint that resumes at that very step; a second one
    ends it at once. Whatever happens, the checkpoints in the folder are whole.

    Args:
        config: the run's choices; None: the defaults, or those of the run that is resumed.
        train_data, eval_data: with the same class names.
        run_dir: the folder, new or empty; default ``runs/MODEL-NNN``, or the one that is resumed.
        resume: a run folder, or a checkpoint in one. Of its configuration only epochs, early_stop, eval_every,
            num_workers, cache and accelerator may be changed.
        progress: show a progress bar.
        report_line: takes the lines that tell how the run goes, in the first process of a distributed run.

    Raises:
        ValueError: data sets or configuration that do not fit together, or a run folder that is in use.
        CheckpointError: the checkpoint to resume from is damaged or foreign.
        NonFiniteLossError: the loss became NaN or infinite; names epoch, batch and pictures.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:  # set by Lightning
        report_line = _say_nothing
    class_names = tuple(train_data.class_names)
    if class_names != tuple(eval_data.class_names):
        raise ValueError(f"eval_data has classes {eval_data.class_names}, train_data has {class_names}")
    if not len(train_data) or not len(eval_data):
        raise ValueError(f"no pictures: {len(train_data)} to train on, {len(eval_data)} to evaluate on")
    checkpoint, info = None, None
    if resume is not None:
        checkpoint = _last_checkpoint(Path(resume))
        info = read_info(read_checkpoint(checkpoint), checkpoint)
        config = _resumed_config(config, info, class_names)
        run_dir = run_dir or checkpoint.parent.parent
        _announce_resume(checkpoint, info, report_line)
    config = config or TrainConfig()
    folder = Path(run_dir or new_run_dir(config.model))
    if resume is None and (folder / "checkpoints").exists():
        raise ValueError(f"{folder} holds a run already; resume it, or choose another folder")

    preset = info.preset if info else _preset(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_model(config.model, len(class_names), preset)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures = Resized(train_data, preset.image_size, config.cache)
    eval_pictures = Resized(eval_data, preset.image_size, config.cache)
    data = DetectorData(pictures, eval_pictures, config)
    if info:
        data.start = (info.epoch, info.batches)
    module = DetectorModule(model, config, class_names, report_line)
    keeper = _CheckpointKeeper(folder)

    with _quiet_lightning(), _stop_signals() as stop:
        trainer = _trainer(config, folder, [keeper, _StopAfterStep(folder, stop)], progress, report_line)
        if trainer.is_global_zero:
            _remove_unfinished(folder)
            about = {"fastssd": version(), "class_names": class_names}
            report.write_json(folder / "config.json", about | config.to_dict() | {"preset": preset.to_dict()})
        if config.accelerator == "cpu" or not torch.cuda.is_available():
            _keep_freed_memory()
        with contextlib.suppress(_Stopped):
            trainer.fit(module, data, ckpt_path=checkpoint)

    interrupted = signal.Signals(stop.signal).name if stop.signal else None
    best, last = folder / "checkpoints" / "best.ckpt", folder / "checkpoints" / "last.ckpt"
    predictions = None
    if trainer.is_global_zero:
        report.write_metrics(folder, module.history, module.best, module.clock.report())
        report.draw_curves(folder / "curves.png", module.history, module.clock.report())
        if not interrupted and best.exists():
            predictions = folder / "predictions.png"
            report.draw_predictions(predictions, load_checkpoint(best)[0], eval_data)
    if interrupted:
        report_line(f"stopped by {interrupted}; resume from {last}")
    return RunResult(
        run_dir=folder,
        history=module.history,
        best=module.best,
        best_checkpoint=best if best.exists() else None,
        last_checkpoint=last if last.exists() else None,
        predictions=predictions,
        timing=module.clock.report(),
        interrupted=interrupted,
    )


@torch.no_grad()
def evaluate(
    checkpoint: str | os.PathLike[str],
    data: DetectionDataset,
    *,
    accelerator: str = "auto",
    num_workers: int | None = None,
) -> dict[str, Any]:
    """The COCO metrics of a checkpoint on a data set; on the run's own evaluation set, the numbers that it reported.

    Args:
        checkpoint: a checkpoint, or a run folder, whose best one is taken.
        data: with the checkpoint's class names.
        accelerator: ``"cpu"``, ``"gpu"`` or ``"auto"``.
        num_workers: processes that read pictures; None chooses.

    Returns:
        As :func:`~fastssd.training.coco_metrics`.

    Raises:
        ValueError: other class names, or no pictures.
        CheckpointError: the checkpoint is damaged or foreign.
    """
    path = Path(checkpoint)
    path = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
    use_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    model, info = load_checkpoint(path, "cuda" if use_gpu else "cpu")
    if tuple(data.class_names) != info.class_names:
        raise ValueError(f"data has classes {tuple(data.class_names)}, {path} has {info.class_names}")
    if not len(data):
        raise ValueError("data: no pictures to evaluate on")
    config = TrainConfig.from_dict(info.config)
    loader = eval_loader(
        Resized(data, model.preset.image_size, cache=False), batch_size=config.batch_size, num_workers=num_workers
    )
    device, low = model.anchors.device, AUTOCAST[config.precision]
    found: dict[int, tuple[ImageDetections, GroundTruth]] = {}
    with torch.autocast(device.type, low, enabled=low is not None):
        for batch in loader:
            found |= detect_eval_batch(model, batch._replace(images=batch.images.to(device)), config)
    return metrics_of(found, info.class_names)


def _say_nothing(line: str) -> None:
    """What the other processes of a distributed run say."""


# --- resuming ----------------------------------------------------------------------------------------------------


def _last_checkpoint(path: Path) -> Path:
    last = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not last.exists():
        raise FileNotFoundError(f"nothing to resume: {last} does not exist")
    return last


def _resumed_config(config: TrainConfig | None, info: CheckpointInfo, class_names: tuple[str, ...]) -> TrainConfig:
    if info.class_names != class_names:
        raise ValueError(f"the run to resume has classes {info.class_names}, the data set has {class_names}")
    before = TrainConfig.from_dict(info.config)
    if config is None:
        return before
    names = [f.name for f in fields(TrainConfig) if f.name not in _FREE_TO_CHANGE]
    changed = [name for name in names if getattr(config, name) != getattr(before, name)]
    if changed:
        told = ", ".join(f"{name} {getattr(before, name)!r} -> {getattr(config, name)!r}" for name in changed)
        raise ValueError(f"a run that is resumed keeps its configuration; changed: {told}")
    return config


def _announce_resume(path: Path, info: CheckpointInfo, report_line: Callable[[str], None]) -> None:
    place = f"epoch {info.epoch + 1}" + (f", batch {info.batches + 1}" if info.batches else "")
    report_line(f"resuming {path} at {place}")


def _preset(config: TrainConfig) -> Preset:
    preset = config.preset or MODELS[config.model][1]
    return replace(preset, activation="sigmoid" if config.criterion.class_loss == "focal" else "softmax")


def _remove_unfinished(folder: Path) -> None:
    """Temporary files of a process that was killed while it wrote."""
    for path in (*folder.glob(".*.tmp"), *folder.glob("checkpoints/.*.tmp")):
        path.unlink(missing_ok=True)


# --- Lightning -----------------------------------------------------------------------------------------------------


class _AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to the disk: whole files only, and nothing pickled is ever executed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class _CheckpointKeeper(Checkpoint):
    """After each epoch, the best checkpoint if this is it, then the last: a kill in between repeats the epoch, no more.

    Not Lightning's ModelCheckpoint: that one forgets what was best when a run folder was moved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DetectorModule)
        if pl_module.improved:
            trainer.save_checkpoint(self.folder / "checkpoints" / "best.ckpt")
        trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")
        if trainer.is_global_zero:
            report.write_metrics(self.folder, pl_module.history, pl_module.best, pl_module.clock.report())


class _Stopped(Exception):
    """Unwinds Lightning's loops after a signal."""


class _StopSignal:
    """Remembers the first SIGINT or SIGTERM; a second one interrupts at once."""

    signal: int | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signum
        os.write(2, b"\nstopping after this step; once more to stop at once\n")

    def install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self)


@contextlib.contextmanager
def _stop_signals() -> Iterator[_StopSignal]:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield _StopSignal()
    finally:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in before.items():
                signal.signal(signum, handler)


class _StopAfterStep(L.Callback):
    """Ends the run with a checkpoint once a signal has come, in all processes after the same step."""

    def __init__(self, folder: Path, stop: _StopSignal) -> None:
        self.folder = folder
        self.stop = stop

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop.install()  # here, because Lightning has put its own handlers in place just before

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # After an epoch's last batch the end of the epoch is near, which is the better place to resume from.
        if self._asked(trainer) and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")
            raise _Stopped

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._asked(trainer):
            raise _Stopped

    def _asked(self, trainer: L.Trainer) -> bool:
        asked = self.stop.signal is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
            self.stop.signal = self.stop.signal or (signal.SIGTERM if asked else None)
        return asked


class _ProgressBar(RichProgressBar):
    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Loss and AP50, without the number of the logs' folder."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


def _trainer(
    config: TrainConfig, folder: Path, callbacks: list[Any], progress: bool, report_line: Callable[[str], None]
) -> L.Trainer:
    if config.early_stop:
        callbacks = [*callbacks, EarlyStopping("AP50", mode="max", patience=config.early_stop)]
    if progress:
        callbacks = [*callbacks, _ProgressBar() if importlib.util.find_spec("rich") else TQDMProgressBar()]
    csv = CSVLogger(folder, name="logs")
    loggers: list[Logger] = [csv]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(folder, name="logs", version=csv.version))
    else:
        report_line("no TensorBoard logs: tensorboard is missing; install it with: pip install 'fastssd[train]'")
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        precision=config.precision,  # type: ignore[arg-type]
        max_epochs=config.epochs,
        check_val_every_n_epoch=config.eval_every,
        gradient_clip_val=config.gradient_clip or None,
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


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's hints: that there are no workers (pictures are in memory), tips, what the hardware is."""
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


def _keep_freed_memory() -> None:
    """Have the C library keep large blocks that were freed, for the next step.

    By default glibc gives each activation back to the system and gets it anew, page by page and zeroed, at every step.
    Elsewhere than on glibc nothing is done.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_max = -1, -4  # malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)
