"""State dicts of other projects under our names. docs/models.md has a table of what differs besides the names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fastssd.detection.models.mobilenet import SSDLITE320
from fastssd.detection.models.preset import Preset
from fastssd.detection.models.vgg import SSD300, SSD300_VOC, SSD512, SSD512_VOC
from fastssd.detection.weights.labels import COCO_80, COCO_91, VOC_20
from fastssd.detection.weights.reading import columns_of


class WeightsError(ValueError):
    """Weights that cannot be downloaded, read or used."""


@dataclass(frozen=True)
class Pretrained:
    """Weights under the names of this package.

    Attributes:
        source: where they are from, for messages.
        model: a key of :data:`fastssd.detection.MODELS`; None if the file does not say.
        state_dict: the tensors of the detector, or of a backbone alone.
        preset: the anchors and normalisation that the weights were trained with; None for a backbone, or if the file
            does not say.
        class_names: name of class 1, 2, ...; empty if they are unknown.
    """

    source: str
    model: str | None
    state_dict: dict[str, Tensor]
    preset: Preset | None = None
    class_names: tuple[str, ...] = ()

    @property
    def activation(self) -> str:
        return self.preset.activation if self.preset else "softmax"

    @property
    def num_columns(self) -> int:
        """Number of columns, background and classes; 0 for a backbone."""
        return columns_of(self.state_dict)


Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""The beginning of a foreign name, as a regular expression, and our name for it; "" for tensors that we do not use."""


def _pair(match: re.Match[str]) -> str:
    """Our name of a convolution in ssd.pytorch's list of extras: it is flat and without ReLUs, ours has pairs with
    them."""
    return f"backbone.extras.{int(match[1]) // 2}.{int(match[1]) % 2 * 2}."


TORCHVISION_SSD300: tuple[Rule, ...] = (
    (r"backbone\.scale_weight$", "backbone.norm.scale"),
    (r"backbone\.features\.", "backbone.vgg."),
    (r"backbone\.extra\.0\.7\.1\.", "backbone.vgg.31."),
    (r"backbone\.extra\.0\.7\.3\.", "backbone.vgg.33."),
    (r"backbone\.extra\.0\.(\d)\.", lambda m: f"backbone.vgg.{int(m[1]) + 23}."),
    (r"backbone\.extra\.(\d)\.", lambda m: f"backbone.extras.{int(m[1]) - 1}."),
    (r"head\.classification_head\.module_list\.", "head.classes."),
    (r"head\.regression_head\.module_list\.", "head.boxes."),
)
TORCHVISION_SSDLITE: tuple[Rule, ...] = (
    (r"backbone\.features\.", "backbone."),
    (r"backbone\.extra\.(\d)\.", lambda m: f"backbone.{int(m[1]) + 2}."),
    *TORCHVISION_SSD300[-2:],
)
TORCHVISION_VGG16: tuple[Rule, ...] = ((r"features\.", "backbone.vgg."), (r"classifier\.", ""))
TORCHVISION_MOBILENET: tuple[Rule, ...] = (
    (r"features\.13\.block\.0\.", "backbone.0.13."),  # this block is split after its expansion
    (r"features\.13\.block\.", "backbone.1.0."),
    (r"features\.(1[4-6])\.", lambda m: f"backbone.1.{int(m[1]) - 13}."),
    (r"features\.", "backbone.0."),
    (r"classifier\.", ""),
)
SSD_PYTORCH: tuple[Rule, ...] = (
    (r"vgg\.", "backbone.vgg."),
    (r"L2Norm\.weight$", "backbone.norm.scale"),
    (r"extras\.(\d+)\.", _pair),
    (r"conf\.", "head.classes."),
    (r"loc\.", "head.boxes."),
)
SSD_PYTORCH_VGG: tuple[Rule, ...] = ((r"(?=\d+\.)", "backbone.vgg."),)
LUFFICC: tuple[Rule, ...] = (
    (r"backbone\.vgg\.", "backbone.vgg."),
    (r"backbone\.l2_norm\.weight$", "backbone.norm.scale"),
    (r"backbone\.extras\.(\d+)\.", _pair),
    (r"box_head\.predictor\.cls_headers\.", "head.classes."),
    (r"box_head\.predictor\.reg_headers\.", "head.boxes."),
)

# A name that only this layout has, the project, the model, the rules.
LAYOUTS: tuple[tuple[str, str, str, tuple[Rule, ...]], ...] = (
    ("backbone.scale_weight", "torchvision", "ssd300_vgg16", TORCHVISION_SSD300),
    ("backbone.features.1.0.1.0.weight", "torchvision", "ssdlite320_mobilenet_v3_large", TORCHVISION_SSDLITE),
    ("features.13.block.0.0.weight", "torchvision", "ssdlite320_mobilenet_v3_large_full", TORCHVISION_MOBILENET),
    ("features.28.weight", "torchvision", "ssd300_vgg16", TORCHVISION_VGG16),
    ("L2Norm.weight", "ssd.pytorch", "ssd300_vgg16", SSD_PYTORCH),
    ("backbone.l2_norm.weight", "lufficc/SSD", "ssd300_vgg16", LUFFICC),
    ("33.weight", "ssd.pytorch", "ssd300_vgg16", SSD_PYTORCH_VGG),
)


def convert(content: Any, where: str) -> Pretrained:
    """What ``torch.load`` returned, under our names.

    Args:
        content: a state dict, or a dictionary that holds one.
        where: the file, for messages.

    Raises:
        WeightsError: an unknown layout, or a name that does not belong to the layout.
    """
    if isinstance(content, Mapping) and "fastssd" in content:
        return _own_checkpoint(content, where)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]  # lufficc's and torchvision's training scripts
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{where} has no state dict")
    state = {str(name).removeprefix("module."): value for name, value in content.items()}  # DataParallel's prefix
    if "head.classes.0.bias" in state or "head.classes.0.1.bias" in state:
        return Pretrained(f"fastssd ({where})", None, state)
    for mark, project, model, rules in LAYOUTS:
        if mark in state:
            found = Pretrained(f"{project} ({where})", model, _renamed(state, rules, where))
            return _described(found, project)
    some = ", ".join(list(state)[:3])
    raise WeightsError(f"{where}: unknown layout, with the names {some}, ...")


def _own_checkpoint(content: Mapping[str, Any], where: str) -> Pretrained:
    try:
        about = content["fastssd"]
        state = {name.removeprefix("model."): value for name, value in content["state_dict"].items()}
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("its state_dict has values that are not tensors")
        names, preset = tuple(about["class_names"]), Preset.from_dict(about["preset"])
        if not all(isinstance(name, str) for name in (about["model"], *names)):
            raise ValueError("a name in it is not a string")
        return Pretrained(f"fastssd ({where})", about["model"], state, preset, names)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(f"{where} is not a checkpoint that this version can read: {error}") from error


def _renamed(state: Mapping[str, Tensor], rules: tuple[Rule, ...], where: str) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for pattern, ours in rules:
            match = re.match(pattern, name)
            if match:
                if ours != "":
                    renamed[(ours if isinstance(ours, str) else ours(match)) + name[match.end() :]] = tensor
                break
        else:
            raise WeightsError(f"{where}: {name} is unknown in this layout")
    return renamed


def _described(found: Pretrained, project: str) -> Pretrained:
    """`found` with the model, anchors and class names that its tensors imply."""
    model = found.model
    if "backbone.1.3.0.weight" in found.state_dict and len(found.state_dict["backbone.1.3.0.weight"]) == 960:
        model = "ssdlite320_mobilenet_v3_large_full"
    columns = found.num_columns
    if not columns:
        return replace(found, model=model)
    names = {91: COCO_91, 81: COCO_80, 21: VOC_20}.get(columns, ())
    preset = SSDLITE320 if "backbone.1.3.0.weight" in found.state_dict else SSD300
    if project != "torchvision":
        large = "head.boxes.6.bias" in found.state_dict
        model = "ssd512_vgg16" if large else "ssd300_vgg16"
        coco = columns > 80
        preset = (SSD512 if large else SSD300) if coco else (SSD512_VOC if large else SSD300_VOC)
        preset = replace(preset, clip="all")
    return replace(found, model=model, preset=preset, class_names=names)
