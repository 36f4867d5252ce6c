"""The models: each a backbone, a head and a preset, in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fastssd.detection.models.mobilenet import (
    SSDLITE320,
    ssdlite320_mobilenet_v3_large,
    ssdlite320_mobilenet_v3_large_full,
)
from fastssd.detection.models.preset import Preset
from fastssd.detection.models.ssd import SSD
from fastssd.detection.models.tinyssd import TINYSSD, TinySSD
from fastssd.detection.models.vgg import SSD300, SSD300_VOC, SSD512, SSD512_VOC, ssd300_vgg16, ssd512_vgg16

__all__ = [
    "MODELS",
    "SSD",
    "SSD300",
    "SSD300_VOC",
    "SSD512",
    "SSD512_VOC",
    "SSDLITE320",
    "TINYSSD",
    "ModelEntry",
    "Preset",
    "TinySSD",
    "build_model",
    "ssd300_vgg16",
    "ssd512_vgg16",
    "ssdlite320_mobilenet_v3_large",
    "ssdlite320_mobilenet_v3_large_full",
]


class ModelEntry(NamedTuple):
    """How a model is made, and the preset it has unless another is asked for."""

    make: Callable[[int, Preset], SSD]
    preset: Preset


MODELS: dict[str, ModelEntry] = {
    "tinyssd": ModelEntry(TinySSD, TINYSSD),
    "ssd300_vgg16": ModelEntry(ssd300_vgg16, SSD300),
    "ssd512_vgg16": ModelEntry(ssd512_vgg16, SSD512),
    "ssdlite320_mobilenet_v3_large": ModelEntry(ssdlite320_mobilenet_v3_large, SSDLITE320),
    "ssdlite320_mobilenet_v3_large_full": ModelEntry(ssdlite320_mobilenet_v3_large_full, SSDLITE320),
}
"""The models that a name can ask for. An entry of your own makes its checkpoints readable."""


def build_model(name: str, num_classes: int, preset: Preset | None = None) -> SSD:
    """The model called `name`, freshly initialised.

    Args:
        name: a key of :data:`MODELS`.
        num_classes: foreground classes.
        preset: default the model's own.

    Raises:
        ValueError: no model has that name.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; expected one of {', '.join(map(repr, MODELS))}")
    make, own = MODELS[name]
    return make(num_classes, preset or own)
