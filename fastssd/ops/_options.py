"""The options of the operators, checked as the faces check them, for those who call ``torch.ops.fastssd.*``.

Where torch.compile traces a call nothing is checked, for an option may be symbolic; the operator does so when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastssd.backends import ACTIVATIONS, BOX_FORMATS, FORCE_MATCH, SOFT_NMS_METHODS
from fastssd.ops import _face as face
from fastssd.ops.boxes import check_size
from fastssd.ops.nms import NONFINITE

Check = Callable[[str, Any], Any]


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _one_of(options: dict[str, int]) -> Check:
    def check(name: str, value: Any) -> Any:
        face.choice(name, value, options)
        return value

    return check


# By name; by operator and name where it means something else there.
CHECKS: dict[str, Check] = {
    "activation": _one_of(ACTIVATIONS),
    "background_threshold": _optional(face.fraction),
    "clip": _optional(check_size),
    "force_match": _one_of(FORCE_MATCH),
    "grid_anchors.clip": lambda _, value: bool(value),
    "image_size": _optional(check_size),
    "in_fmt": _one_of(BOX_FORMATS),
    "iou_threshold": face.fraction,
    "max_detections": face.count,
    "method": _one_of(SOFT_NMS_METHODS),
    "min_negatives": face.count,
    "min_size": face.number,
    "neg_pos_ratio": lambda name, value: face.number(name, value, 0.0),
    "nonfinite": _one_of(NONFINITE),
    "out_fmt": _one_of(BOX_FORMATS),
    "score_threshold": face.fraction,
    "sigma": lambda name, value: face.number(name, value, float(np.finfo(np.float32).tiny)),
    "size": check_size,
    "soft_nms.score_threshold": face.number,
    "topk": _optional(face.count),
    "variances": lambda _, value: face.check_variances(value),
}


def checked(operator: str, names: Sequence[str], values: Sequence[Any]) -> list[Any]:
    """The arguments of an operator, by their names: options checked and plain, what has no boxes as [0, 4]."""
    found = []
    for name, value in zip(names, values, strict=False):  # without the trailing arguments that have their defaults
        check = CHECKS.get(f"{operator}.{name}") or CHECKS.get(name)
        if check is not None:
            value = check(name, value)
        elif name in face.BOXES:
            value = face.to_tensor(name, value)
        found.append(value)
    return found
