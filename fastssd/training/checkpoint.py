"""Checkpoints: written so that the file on disk is always whole, read so that nothing in it is ever executed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from fastssd.detection.models import SSD, Preset, build_model

KEY = "fastssd"  # of what this package adds to a Lightning checkpoint
FORMAT = 1


class CheckpointError(ValueError):
    """A file that is not a usable checkpoint of this package."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says besides its weights.

    Attributes:
        model: name of the model, a key of :data:`fastssd.detection.MODELS`.
        class_names: name of class 1, 2, ...
        preset: anchors, input size, normalisation.
        config: the training configuration, plain values.
        epoch: epochs that are done.
        batches: batches of the next epoch that are done too; 0 but for a run that was stopped.
        partial: what those batches add to that epoch's entry in the history.
        metrics: of the last evaluation, as :func:`~fastssd.evaluation.coco_metrics` gives them; None before the first.
        best: the best of the evaluations so far by AP50, with its epoch; None before the first.
        history: one entry an epoch.
    """

    model: str
    class_names: tuple[str, ...]
    preset: Preset
    config: dict[str, Any]
    epoch: int
    batches: int
    partial: dict[str, float]
    metrics: dict[str, Any] | None
    best: dict[str, Any] | None
    history: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"format": FORMAT, "class_names": list(self.class_names), "preset": self.preset.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CheckpointInfo:
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, this version of fastssd reads {FORMAT}")
        given = {name: values[name] for name in cls.__dataclass_fields__}
        given |= {"class_names": tuple(values["class_names"]), "preset": Preset.from_dict(values["preset"])}
        return cls(**given)


def write_file(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that `path` holds what it held before or all of the new content, whatever happens meanwhile.

    A temporary file in the same folder is written, synced and renamed; then the folder is synced, so that the new name
    survives a power cut too.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_checkpoint(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        CheckpointError: a weight is not finite. Such a state is of no use to anyone, and the file that is there is.
    """
    for name, value in checkpoint["state_dict"].items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(f"{os.fspath(path)} is not written: the weight {name} is not finite")
    write_file(path, lambda file: torch.save(dict(checkpoint), file))


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. Tensors and plain values are read; a pickle with anything else is refused.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or not a checkpoint of this package.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of many kinds, for a file that may hold anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{os.fspath(path)} is damaged or not a checkpoint: {reason}") from error
    if not isinstance(checkpoint, dict) or KEY not in checkpoint or "state_dict" not in checkpoint:
        raise CheckpointError(f"{os.fspath(path)} is not a checkpoint of fastssd")
    return checkpoint


def read_info(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> CheckpointInfo:
    """What a checkpoint says of itself.

    Raises:
        CheckpointError: an entry is missing or of another format.
    """
    try:
        return CheckpointInfo.from_dict(checkpoint[KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{os.fspath(path)} is not a checkpoint that this version reads: {error}") from error


def load_checkpoint(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> tuple[SSD, CheckpointInfo]:
    """The model of a checkpoint, ready to detect: on `device`, in eval mode, channels_last.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, foreign, or its weights do not fit the model that it names.
    """
    checkpoint = read_checkpoint(path)
    info = read_info(checkpoint, path)
    try:
        model = build_model(info.model, preset=info.preset, class_names=info.class_names)
        model.load_state_dict({name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()})
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{os.fspath(path)} does not fit its own model {info.model!r}: {error}") from error
    return model.to(device).to(memory_format=torch.channels_last).eval(), info  # type: ignore[call-overload]
