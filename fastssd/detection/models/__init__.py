"""The models, a file for each: a backbone, a head and a preset."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from fastssd.detection.models.mobilenet import SSDLITE320, make_ssdlite320
from fastssd.detection.models.preset import Preset
from fastssd.detection.models.ssd import SSD
from fastssd.detection.models.tinyssd import TINYSSD, TinySSD
from fastssd.detection.models.vgg import SSD300, SSD300_VOC, SSD512, SSD512_VOC, make_ssd300, make_ssd512

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
]


class ModelEntry(NamedTuple):
    """The function that makes a model, and its default preset."""

    make: Callable[[int, Preset], SSD]
    preset: Preset


MODELS: dict[str, ModelEntry] = {
    "tinyssd": ModelEntry(TinySSD, TINYSSD),
    "ssd300_vgg16": ModelEntry(make_ssd300, SSD300),
    "ssd512_vgg16": ModelEntry(make_ssd512, SSD512),
    "ssdlite320_mobilenet_v3_large": ModelEntry(make_ssdlite320, SSDLITE320),
    "ssdlite320_mobilenet_v3_large_full": ModelEntry(partial(make_ssdlite320, tail=160), SSDLITE320),
}
"""The models by name. Add an entry for a model of your own, so that its checkpoints can be read."""


def build_model(
    name: str,
    num_classes: int | None = None,
    preset: Preset | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] = (),
) -> SSD:
    """The model called `name`, freshly initialised or with pretrained weights.

    Args:
        name: a key of :data:`MODELS`.
        num_classes: number of foreground classes; None: that of `class_names`, else that of the weights.
        preset: None: that of the weights, else the model's own.
        weights: a published name such as ``"COCO_V1"`` or the path of a file, as in
            :func:`fastssd.detection.weights.read_weights`. Tensors that are not in the weights stay freshly
            initialised.
        class_names: name of class 1, 2, ...; default: those of the weights, if the number of classes is the same.

    Raises:
        ValueError: no model has that name, or the number of classes is unknown or differs from that of `class_names`.
        FileNotFoundError, WeightsError: no such weights, or weights of another model.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; expected one of {', '.join(map(repr, MODELS))}")
    pretrained = None
    if weights is not None:
        from fastssd.detection.weights import load_weights, read_weights  # here because it imports this module

        pretrained = read_weights(weights, name)
    classes = tuple(class_names)
    if pretrained and not classes and num_classes in (None, len(pretrained.class_names)):
        classes = pretrained.class_names
    if num_classes is None:
        num_classes = len(classes) or (max(pretrained.num_columns - 1, 0) if pretrained else 0)
        if not num_classes:
            raise ValueError("num_classes: expected it, class_names, or weights that have classes; got none of them")
    if classes and len(classes) != num_classes:
        raise ValueError(f"class_names: expected {num_classes} names, got {len(classes)}")
    make, default_preset = MODELS[name]
    model = make(num_classes, preset or (pretrained.preset if pretrained else None) or default_preset)
    model.class_names = classes
    if pretrained:
        load_weights(model, pretrained)
    return model


def ssd300_vgg16(
    num_classes: int | None = None,
    preset: Preset | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] = (),
) -> SSD:
    """SSD300 on VGG16 (arXiv:1512.02325), 8732 anchors. Arguments as in :func:`build_model`; weights ``"COCO_V1"`` (a
    detector) or ``"IMAGENET1K_FEATURES"`` (a backbone)."""
    return build_model("ssd300_vgg16", num_classes, preset, weights=weights, class_names=class_names)


def ssd512_vgg16(
    num_classes: int | None = None,
    preset: Preset | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] = (),
) -> SSD:
    """SSD512 on VGG16 (arXiv:1512.02325), 24564 anchors. Arguments as in :func:`build_model`; weights
    ``"IMAGENET1K_FEATURES"`` (a backbone)."""
    return build_model("ssd512_vgg16", num_classes, preset, weights=weights, class_names=class_names)


def ssdlite320_mobilenet_v3_large(
    num_classes: int | None = None,
    preset: Preset | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] = (),
) -> SSD:
    """SSDlite (arXiv:1801.04381, section 6.2) on MobileNetV3-Large with the reduced tail (arXiv:1905.02244, table 6),
    3234 anchors. Arguments as in :func:`build_model`; weights ``"COCO_V1"``. For the full tail, which ImageNet weights
    need, use ``build_model("ssdlite320_mobilenet_v3_large_full")``."""
    return build_model("ssdlite320_mobilenet_v3_large", num_classes, preset, weights=weights, class_names=class_names)
