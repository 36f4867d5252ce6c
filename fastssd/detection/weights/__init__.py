"""Pretrained weights: published ones by name, files of other projects by path, without the libraries of these."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastssd._files import warn_unverified
from fastssd.detection.models.ssd import SSD
from fastssd.detection.weights.download import fetch
from fastssd.detection.weights.formats import Pretrained, WeightsError, convert
from fastssd.detection.weights.labels import COCO_80, COCO_91, VOC_20
from fastssd.detection.weights.reading import read_tensors

__all__ = ["COCO_80", "COCO_91", "PUBLISHED", "VOC_20", "LoadReport", "Pretrained", "WeightsError", "load_weights"]
__all__ += ["read_weights"]

_VGG = {"IMAGENET1K_FEATURES": "vgg16_features-amdegroot-88682ab5.pth"}
_MOBILENET = {
    "IMAGENET1K_V1": "mobilenet_v3_large-8738ca79.pth",
    "IMAGENET1K_V2": "mobilenet_v3_large-5c1a4163.pth",
}
ADDRESS = "https://download.pytorch.org/models/"

PUBLISHED: dict[str, dict[str, str]] = {
    "tinyssd": {},
    "ssd300_vgg16": {"COCO_V1": "ssd300_vgg16_coco-b556d3b4.pth"} | _VGG,
    "ssd512_vgg16": _VGG,
    "ssdlite320_mobilenet_v3_large": {"COCO_V1": "ssdlite320_mobilenet_v3_large_coco-a79551df.pth"},
    "ssdlite320_mobilenet_v3_large_full": _MOBILENET,
}
"""For each model the weights that torchvision publishes, by torchvision's names. The files are at :data:`ADDRESS`; a
file name ends with the beginning of the SHA-256. COCO_V1 is a whole detector, IMAGENET1K_... a backbone."""


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_weights` did; ``str()`` gives a summary of one line."""

    source: str
    loaded: tuple[str, ...]
    """Tensors that were loaded, completely or for some classes."""
    initialised: tuple[str, ...]
    """Tensors that keep their initial values, completely or for some classes."""
    new_classes: tuple[str, ...]
    """Classes that are not in the weights; their numbers if the model has no class names."""

    def __str__(self) -> str:
        whole = len({*self.loaded, *self.initialised})
        kept = len({*self.loaded} - {*self.initialised})
        text = f"weights of {self.source}: {kept} of {whole} tensors loaded completely"
        if self.new_classes:
            heads = sorted({".".join(name.split(".")[:3]) for name in self.initialised if "head.classes." in name})
            text += f"; re-initialised for the new classes {', '.join(self.new_classes)}: {', '.join(heads)}"
        others = [name for name in self.initialised if not (self.new_classes and "head.classes." in name)]
        parts = sorted({".".join(name.split(".")[:2]) for name in others})
        return text + (f"; not in the weights: {', '.join(parts)}" if parts else "")


def read_weights(weights: str | os.PathLike[str], model: str) -> Pretrained:
    """Weights under the names of this package, with the classes and anchors that the file states or implies.

    Args:
        weights: a name in :data:`PUBLISHED`, downloaded once into torch's folder for such files
            (``$TORCH_HOME/hub/checkpoints``, by default in ``~/.cache/torch``); or the path of a checkpoint of this
            package, or of a state dict of torchvision, ssd.pytorch or lufficc/SSD. No code in it is executed, and its
            checksums are compared: the SHA-256 of a checkpoint, else the CRC-32 that torch.save writes. Files in the
            format of torch before 1.6 have none; they are read with an ``UnverifiedFileWarning``.
        model: a key of :data:`fastssd.detection.MODELS`; `weights` is looked up among the published ones of this model.

    Raises:
        FileNotFoundError: there is no such file, and no such name.
        WeightsError: a download that failed, or a file that is damaged, of an unknown layout or of another model.
    """
    named = PUBLISHED.get(model, {})
    if weights in named:
        path = fetch(ADDRESS + named[str(weights)])
    elif os.path.exists(weights):
        path = Path(weights)
    else:
        names = ", ".join(named) or "none"
        reason = f"no such file; the published weights of {model} are: {names}"
        raise FileNotFoundError(errno.ENOENT, reason, os.fspath(weights))
    try:
        content, sealed = read_tensors(path)
    except ValueError as error:
        raise WeightsError(f"{error}") from error
    if sealed is None and weights not in named:  # published files are checked by the SHA-256 in their name
        warn_unverified(path, "torch's old format has no checksums; load it and torch.save it again to get them")
    found = convert(content, os.fspath(weights))
    if found.num_columns and found.model not in (None, model):
        raise WeightsError(f"{os.fspath(weights)} has the weights of {found.model}, not of {model}")
    return found


@torch.no_grad()
def load_weights(model: SSD, weights: Pretrained, class_names: Sequence[str] = ()) -> LoadReport:
    """Load what fits: the backbone, the box heads, and in the class heads the rows of the classes that both have.

    Classes are matched by name if both sides have names; else their number must be the same. Everything that is not in
    the weights stays as it is in `model`, which usually means freshly initialised.

    Args:
        model: its weights are overwritten.
        weights: from :func:`read_weights`.
        class_names: name of class 1, 2, ... of the model; default: its ``class_names``.

    Raises:
        ValueError: `class_names` has another length than the model has classes.
        WeightsError: the weights are of another network.
    """
    names = tuple(class_names) or model.class_names
    if names and len(names) != model.num_classes:
        raise ValueError(f"class_names: the model has {model.num_classes} classes, got {len(names)} names")
    own, given = model.state_dict(), dict(weights.state_dict)
    foreign = [name for name in given if name not in own]
    wrong = [name for name in given if name in own and "head." not in name and given[name].shape != own[name].shape]
    if foreign or wrong:
        name = (foreign or wrong)[0]
        raise WeightsError(
            f"weights of {weights.source} are of another network, {weights.model or 'an unknown one'}: {name} "
            f"{list(given[name].shape)} {'does not exist here' if foreign else f'is {list(own[name].shape)} here'}"
        )
    rows = _class_rows(model, weights, names)
    loaded, fresh = [], []
    for name, tensor in own.items():
        source = given.get(name)
        if source is not None and name.startswith("head.classes.") and _has_class_rows(model, name, tensor):
            if None in rows:
                fresh.append(name)
            source = _with_rows(tensor, source, rows, weights.num_columns)
        if source is not None and source.shape == tensor.shape:
            tensor.copy_(source)
            loaded.append(name)
        elif name not in fresh and not name.endswith("num_batches_tracked"):
            fresh.append(name)
    new: tuple[str, ...] = ()
    if weights.num_columns:
        labels = names or tuple(map(str, range(1, model.num_classes + 1)))
        new = tuple(label for label, row in zip(labels, rows[1:], strict=True) if row is None)
    return LoadReport(weights.source, tuple(loaded), tuple(fresh), new)


def _has_class_rows(model: SSD, name: str, tensor: Tensor) -> bool:
    """Whether this tensor of a class head has a row for each of k anchors times C columns."""
    level = int(name.split(".")[2])
    return tensor.ndim > 0 and tensor.shape[0] == model.preset.anchors_per_cell[level] * (model.num_classes + 1)


def _with_rows(tensor: Tensor, source: Tensor, rows: Sequence[int | None], columns: int) -> Tensor | None:
    """`tensor` of a class head, with the rows of column i from column ``rows[i]`` of `source`.

    Args:
        rows: see :func:`_class_rows`.
        columns: number of columns of `source`.

    Returns:
        None if nothing can be taken: `source` has another shape, or `rows` is all None.
    """
    anchors = tensor.shape[0] // len(rows)
    known = [row for row, old in enumerate(rows) if old is not None]
    if not known or source.shape != (anchors * columns, *tensor.shape[1:]):
        return None
    taken = tensor.unflatten(0, (anchors, -1)).clone()  # [k, C, ...]
    taken[:, known] = source.unflatten(0, (anchors, -1))[:, [old for old in rows if old is not None]].to(taken)
    return taken.flatten(0, 1)


def _class_rows(model: SSD, weights: Pretrained, names: tuple[str, ...]) -> list[int | None]:
    """For each column of the model the column of the weights for the same class; None if there is none."""
    nothing: list[int | None] = [None] * (model.num_classes + 1)
    if model.preset.activation != weights.activation:
        return nothing
    if not names or not weights.class_names:
        return list(range(model.num_classes + 1)) if weights.num_columns == model.num_classes + 1 else nothing
    if names == weights.class_names:  # not by name: COCO has "N/A" more than once
        return list(range(model.num_classes + 1))
    columns = {name: column for column, name in enumerate(weights.class_names, start=1)}
    return [0, *(columns.get(name) for name in names)]
