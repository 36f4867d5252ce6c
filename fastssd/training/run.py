"""A training run: from a data set to a folder with checkpoints, metrics and pictures."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_only

from fastssd._config import version
from fastssd._stopping import stop_signals
from fastssd.data import DetectionDataset
from fastssd.detection.models import MODELS, Preset, build_model
from fastssd.detection.weights import Pretrained, load_weights, read_weights
from fastssd.training import report
from fastssd.training.checkpoint import CheckpointInfo, load_checkpoint, read_checkpoint, read_info
from fastssd.training.config import TrainConfig
from fastssd.training.data_module import DetectorData
from fastssd.training.datasets import Cached, Resized
from fastssd.training.module import DetectorModule
from fastssd.training.stopping import StopAfterStep, Stopped
from fastssd.training.together import EndTogether
from fastssd.training.trainer import CheckpointKeeper, keep_freed_memory, make_trainer, quiet_lightning

# What may differ when a run is resumed. Everything else has decided the steps before.
_FREE_TO_CHANGE = {"epochs", "early_stop", "eval_every", "num_workers", "cache", "accelerator"}


@dataclass(frozen=True)
class RunResult:
    """What :func:`train` returns.

    Attributes:
        run_dir: the run folder.
        history: one entry per epoch, from the first, as in metrics.csv.
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
    """The first of ``root/model-001``, ``root/model-002``, ... that does not exist yet; it is not created."""
    number = 1
    while (path := Path(root) / f"{model}-{number:03d}").exists():
        number += 1
    return path


def is_main_process() -> bool:
    """Whether this is the only process of a run, or the first of all on all machines."""
    return getattr(rank_zero_only, "rank", 0) == 0  # set by Lightning


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
    """Train a model, evaluate it after each epoch, and write everything to a run folder.

    SIGTERM and Ctrl-C end the run after the current step, with a checkpoint that resumes exactly there; a second one
    ends it at once. The checkpoints in the folder are whole at any time.

    Args:
        config: the run's choices; None: the defaults, or those of the run that is resumed.
        train_data, eval_data: with the same class names.
        run_dir: the folder, new or empty; default ``runs/MODEL-NNN``, or the one that is resumed.
        resume: a run folder, or a checkpoint in one. Of its configuration only epochs, early_stop, eval_every,
            num_workers, cache and accelerator may be changed.
        progress: show a progress bar.
        report_line: called with lines about the progress, in the first process of a distributed run.

    Raises:
        ValueError: data sets or configuration that do not fit together, or a run folder that is in use.
        CheckpointError: the checkpoint to resume from is damaged or foreign.
        NonFiniteLossError: the loss became NaN or infinite; names epoch, batch and images.
        FileNotFoundError, WeightsError: there are no such weights, or not for this model.
    """
    if not is_main_process():
        report_line = _say_nothing
    class_names = tuple(train_data.class_names)
    if class_names != tuple(eval_data.class_names):
        raise ValueError(f"eval_data has classes {eval_data.class_names}, train_data has {class_names}")
    if not len(train_data) or not len(eval_data):
        raise ValueError(f"no images: {len(train_data)} to train on, {len(eval_data)} to evaluate on")
    checkpoint, info = None, None
    if resume is not None:
        checkpoint = _last_checkpoint(Path(resume))
        info = read_info(read_checkpoint(checkpoint), checkpoint)
        config = _resumed_config(config, info, class_names)
        run_dir = run_dir or checkpoint.parent.parent
        _announce_resume(checkpoint, info, report_line)
    config = config or TrainConfig()
    weights = config.criterion.class_weights
    if weights is not None and len(weights) != len(class_names):
        raise ValueError(f"class_weights: expected one for each of {', '.join(class_names)}; got {len(weights)}")
    folder = Path(run_dir or new_run_dir(config.model))
    if resume is None and (folder / "checkpoints").exists():
        raise ValueError(f"{folder} holds a run already; resume it, or choose another folder")

    pretrained = read_weights(config.weights, config.model) if config.weights and not info else None
    preset = info.preset if info else _preset(config, pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_model(config.model, preset=preset, class_names=class_names)
    if config.preset and not info and model.allow_size(preset.image_size).grid_sizes != preset.grid_sizes:
        raise ValueError(
            f"preset: its feature maps {preset.grid_sizes} are not those that {config.model} gives at "
            f"{preset.image_size} pixels"
        )
    if pretrained:
        report_line(str(load_weights(model, pretrained)))
    if config.freeze:
        model.freeze(*config.freeze)
        count = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
        report_line(f"frozen: {', '.join(config.freeze)}, {count} parameters")
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    samples = Cached(train_data, config.cache)
    eval_images = Resized(eval_data, preset.image_size, config.cache)
    presets = [model.allow_size(size) for size in config.multi_scale] or [preset]
    data = DetectorData(samples, eval_images, presets, config)
    if info:
        data.start = (info.epoch, info.batches)
    module = DetectorModule(model, config, class_names, report_line)
    keeper, together = CheckpointKeeper(folder), EndTogether()

    with quiet_lightning(), stop_signals("step", install=False) as stop:
        trainer = make_trainer(config, folder, [keeper, StopAfterStep(folder, stop), together], progress, report_line)
        if trainer.is_global_zero:
            _remove_unfinished(folder)
            about = {"fastssd": version(), "class_names": class_names}
            report.write_json(folder / "config.json", about | config.to_dict() | {"preset": preset.to_dict()})
        if config.accelerator == "cpu" or not torch.cuda.is_available():
            keep_freed_memory()
        with contextlib.suppress(Stopped), _folder_named(folder):
            trainer.fit(module, data, ckpt_path=checkpoint)
        together.leave()

    interrupted = signal.Signals(stop.signal).name if stop.signal else None
    best, last = folder / "checkpoints" / "best.ckpt", folder / "checkpoints" / "last.ckpt"
    predictions = None
    if trainer.is_global_zero:
        report.write_metrics(folder, module.history.epochs, module.history.best, module.clock.report())
        report.draw_curves(folder / "curves.png", module.history.epochs, module.clock.report())
        if not interrupted and best.exists():
            predictions = folder / "predictions.png"
            report.draw_predictions(predictions, load_checkpoint(best)[0], eval_data)
    if interrupted:
        report_line(f"stopped by {interrupted}; resume from {last}")
    return RunResult(
        run_dir=folder,
        history=module.history.epochs,
        best=module.history.best,
        best_checkpoint=best if best.exists() else None,
        last_checkpoint=last if last.exists() else None,
        predictions=predictions,
        timing=module.clock.report(),
        interrupted=interrupted,
    )


@contextlib.contextmanager
def _folder_named(folder: Path) -> Iterator[None]:
    """The error of a full disk names the run folder, where the logger's own names nothing."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(error.errno, f"{error.strerror}, while writing", str(folder)) from error


def _say_nothing(line: str) -> None:
    """For the other processes of a distributed run."""


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
    kept = {f.name: getattr(before, f.name) for f in fields(TrainConfig) if f.name in _FREE_TO_CHANGE}
    if changed := _differences(before, replace(config, **kept)):
        raise ValueError(f"a run that is resumed keeps its configuration; changed: {', '.join(changed)}")
    return config


def _differences(before: Any, now: Any) -> list[str]:
    """The fields in which two dataclasses of one type differ, with both values; nested ones by their path."""
    changed = []
    for name in (f.name for f in fields(before)):
        old, new = getattr(before, name), getattr(now, name)
        if is_dataclass(old) and is_dataclass(new):
            changed += [f"{name}.{inner}" for inner in _differences(old, new)]
        elif old != new:
            changed.append(f"{name} {old!r} -> {new!r}")
    return changed


def _announce_resume(path: Path, info: CheckpointInfo, report_line: Callable[[str], None]) -> None:
    place = f"epoch {info.epoch + 1}" + (f", batch {info.batches + 1}" if info.batches else "")
    report_line(f"resuming {path} at {place}")


def _preset(config: TrainConfig, pretrained: Pretrained | None) -> Preset:
    preset = config.preset or (pretrained.preset if pretrained else None) or MODELS[config.model].preset
    return replace(preset, activation="sigmoid" if config.criterion.class_loss == "focal" else "softmax")


def _remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of a process that was killed while it wrote."""
    for path in (*folder.glob(".*.tmp"), *folder.glob("checkpoints/.*.tmp")):
        path.unlink(missing_ok=True)
