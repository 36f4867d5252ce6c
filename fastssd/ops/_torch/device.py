"""Where a dispatched operator runs: on the CPU by its kernel, on another device by its formula, or on the CPU for it.

What pays on a device runs there (:mod:`fastssd.ops._torch.formulas`). The rest, sequential by nature, goes to the CPU
and back: nms takes boxes and scores down and brings indices up; matching keeps the anchors in the CPU's memory, takes
the few ground-truth boxes down and brings indices up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fastssd import _checks as checks
from fastssd.ops._operator import REGISTRY, Operator
from fastssd.ops._torch import formulas

_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_EXACT_IN_FLOAT32 = {
    getattr(torch, name)
    for name in ("bool", "uint8", "int8", "uint16", "int16", "float16", "bfloat16", "float32")
    if hasattr(torch, name)
}


def float_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype in which these tensors are computed together (docs/contract.md, Arrays)."""
    for tensor in tensors:
        if tensor.dtype.is_complex:
            raise TypeError(f"expected real numbers, got dtype {tensor.dtype}")
    return torch.float32 if all(tensor.dtype in _EXACT_IN_FLOAT32 for tensor in tensors) else torch.float64


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    dtype = float_dtype(*tensors)
    return tuple(tensor.to(dtype) for tensor in tensors)


# --- on the CPU ------------------------------------------------------------------------------------------------------


def by_kernel(operator: Operator) -> Callable[..., Any]:
    """The operator on NumPy views of its tensors; what it returns goes to where the first tensor is."""
    names = (*operator.arrays, *operator.options)

    def kernel(*arguments: Any) -> Any:
        given = dict(zip(names, arguments, strict=False))  # without the trailing arguments that have their defaults
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        device = tensors[0].device if tensors else torch.device(given.get("device") or "cpu")
        for name, value in given.items():
            if isinstance(value, Tensor):
                given[name] = checks.to_numpy(name, on_cpu(value) if name == "anchors" else value)
        found = operator.function(**given)
        if isinstance(found, tuple):
            return tuple(_on_device(array, device) for array in found)
        return _on_device(found, device)

    return kernel


_copies: WeakIdKeyDictionary = WeakIdKeyDictionary()


def on_cpu(tensor: Tensor) -> Tensor:
    """`tensor` in the CPU's memory, kept as long as it lives unchanged: anchors are the same in every step."""
    if tensor.is_cpu:
        return tensor
    if tensor.is_inference():  # has no version that would tell of a change
        return tensor.cpu()
    state = (tensor._version, tensor.data_ptr(), tensor.shape, tensor.dtype)
    known = _copies.get(tensor)
    if known is None or known[0] != state:
        known = _copies[tensor] = (state, tensor.detach().cpu())
    return known[1]


def _on_device(array: Any, device: torch.device) -> Tensor:
    """`array` as a tensor there; indices travel with half their bytes."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.int().to(device).long() if tensor.dtype is torch.int64 else tensor.to(device)


# --- on the device ---------------------------------------------------------------------------------------------------


def by_formula(operator: Operator) -> Callable[..., Any] | None:
    """The operator by its formula, on promoted tensors; None where it has none. Options are checked before."""
    if not operator.formula:
        return None
    formula = _WITH_MORE.get(operator.name) or getattr(formulas, operator.name)

    def on_device(*arguments: Any) -> Any:
        arrays, options = operator.complete(arguments)
        operator.bind(arrays)
        if operator.name not in _UNPROMOTED:
            pairs = [*zip(arrays, operator.kinds, strict=True)]
            dtype = float_dtype(*(array for array, kind in pairs if kind == "float"))
            arrays = [array.to(dtype) if kind == "float" else array for array, kind in pairs]
        return formula(*arrays, *options)

    return on_device


def _encode_boxes(boxes: Tensor, anchors: Tensor, variances: Sequence[float]) -> Tensor:
    for name, rows in (("boxes", boxes), ("anchors", anchors)):
        if not bool(rows.isfinite().all() & (rows[..., 2:] > rows[..., :2]).all()):
            checks.check_codable(name, checks.to_numpy(name, rows))  # raises, with the place
    return formulas.encode_boxes(boxes, anchors, variances)


def _assign_targets(
    anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor, gt_counts: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    found = by_kernel(REGISTRY["assign_targets"])(on_cpu(anchors), gt_boxes, gt_labels, gt_counts, *options)
    gt_idx = _on_device(found[2].numpy(), anchors.device)  # 4 bytes an anchor go up; labels and deltas would be 24 more
    anchors, gt_boxes = promote(anchors, gt_boxes.to(anchors.device))
    labels, deltas = formulas.gather_targets(
        anchors, gt_boxes, gt_labels.to(anchors.device, torch.int64), gt_idx, options[-1]
    )
    return labels, deltas, gt_idx


def _multibox_cross_entropy(logits: Tensor, labels: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return formulas.multibox_cross_entropy(logits, _classes(labels, logits.shape[-1]), *options)


def _multibox_cross_entropy_gradient(scale: Tensor, logits: Tensor, labels: Tensor, selected: Tensor) -> Tensor:
    classes = _classes(labels, logits.shape[-1])
    return formulas.multibox_cross_entropy_gradient(scale, logits, classes, selected)


def _classes(labels: Tensor, columns: int) -> Tensor:
    """int64 labels, checked."""
    classes = labels.long()
    lowest = 0 if labels.dtype not in _SIGNED else -1  # what is too large for int64 is negative now
    wrong = (classes < lowest) | (classes >= columns)
    if bool(wrong.any()):
        given = checks.to_numpy("labels", labels)
        checks.check_rows("labels", checks.to_numpy("labels", wrong), given, f"is not in [-1, {columns - 1}]")
    return classes


_WITH_MORE: dict[str, Callable[..., Any]] = {
    "encode_boxes": _encode_boxes,
    "assign_targets": _assign_targets,
    "multibox_cross_entropy": _multibox_cross_entropy,
    "multibox_cross_entropy_gradient": _multibox_cross_entropy_gradient,
}
"""Operators that do more on a device than their formula: they check values, or match on the CPU."""

_UNPROMOTED = ("assign_targets",)  # the CPU keeps a copy of the anchors as they came
