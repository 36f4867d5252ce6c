"""Checkpoints: the file on disk is always whole, and reading it never executes anything in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

import torch

from fastssd._fields import check_fields, from_plain, within
from fastssd._files import replacing, seal_zip, warn_unverified
from fastssd._preset import ClassNames
from fastssd.detection.models import SSD, Preset, build_model
from fastssd.detection.weights.reading import columns_of, read_tensors

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
        batches: batches of the next epoch that are done too; 0 unless the run was stopped.
        partial: sums over those batches for that epoch's entry in the history.
        metrics: of the last evaluation, as :func:`~fastssd.evaluation.coco_metrics` gives them; None before the first.
        best: the best of the evaluations so far by AP50, with its epoch; None before the first.
        history: one entry an epoch.
    """

    model: str
    class_names: ClassNames
    preset: Preset
    config: dict[str, Any]
    epoch: Annotated[int, within(0, 1_000_000)]
    batches: Annotated[int, within(0, 1_000_000_000)]
    partial: dict[str, float]
    metrics: dict[str, Any] | None
    best: dict[str, Any] | None
    history: list[dict[str, Any]]

    def __post_init__(self) -> None:
        check_fields(self)

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"format": FORMAT, "class_names": list(self.class_names), "preset": self.preset.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CheckpointInfo:
        """
        Raises:
            ValueError: an entry is missing, of another type or out of range, or the format is another.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            stated = values.get("format") if isinstance(values, Mapping) else None
            raise ValueError(f"format {stated!r}, this version of fastssd reads {FORMAT}")
        known = {field.name for field in fields(cls)}
        return from_plain(cls, {name: value for name, value in values.items() if name in known})


def save_checkpoint(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint whole or not at all, with the SHA-256 of all of it at its end.

    Raises:
        CheckpointError: a weight is not finite. Such a state is useless, and it would replace a useful file.
        OSError: it cannot be written; names the file and why.
    """
    for name, value in checkpoint["state_dict"].items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(f"{os.fspath(path)} is not written: the weight {name} is not finite")
    with replacing(path) as file:
        torch.save(dict(checkpoint), file)
        seal_zip(file)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. Tensors and plain values are read; a pickle with anything else is refused.

    The file's SHA-256 is compared first. A file without one is read after the CRC-32 of each part, with an
    :class:`~fastssd._files.UnverifiedFileWarning`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or not a checkpoint of this package.
    """
    try:
        checkpoint, sealed = read_tensors(path)
    except ValueError as error:
        raise CheckpointError(f"{error}") from error
    if sealed is None:
        raise CheckpointError(f"{os.fspath(path)} is not a checkpoint of fastssd: torch's old format")
    if not sealed:
        warn_unverified(path, "it has no SHA-256, because save_checkpoint did not write it; its CRC-32 are right")
    if not isinstance(checkpoint, dict) or KEY not in checkpoint or "state_dict" not in checkpoint:
        raise CheckpointError(f"{os.fspath(path)} is not a checkpoint of fastssd")
    return checkpoint


def read_info(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> CheckpointInfo:
    """What a checkpoint says besides its weights.

    Raises:
        CheckpointError: an entry is missing or of another format.
    """
    try:
        return CheckpointInfo.from_dict(checkpoint[KEY])
    except ValueError as error:
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
        state = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
        if columns_of(state) not in (0, len(info.class_names) + 1):  # before memory is allocated for so many
            raise ValueError(f"{len(info.class_names)} classes, but its head has {columns_of(state)} columns")
        model = build_model(info.model, preset=info.preset, class_names=info.class_names)
        model.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{os.fspath(path)} does not fit its own model {info.model!r}: {error}") from error
    return model.to(device).to(memory_format=torch.channels_last).eval(), info  # type: ignore[call-overload]
