"""The arguments of a dispatched call, as ``torch.ops.fastssd.*`` take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastssd import _checks as checks
from fastssd.ops._dispatched import compiling, wants_gradient
from fastssd.ops._operator import Operator
from fastssd.ops._out import check_out
from fastssd.ops._shapes import Spec
from fastssd.ops._torch.device import float_dtype
from fastssd.ops._torch.run import run


def _tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) and compiling(torch):
        return torch.as_tensor(np.asarray(value))  # which torch.compile knows; its memory is not written to in a graph
    tensor: Tensor = checks.to_tensor(name, value)
    return tensor


def call(operator: Operator, arrays: Sequence[Any], options: Sequence[Any], out: Any) -> Any:
    """``torch.ops.fastssd.NAME``; an array that is no tensor becomes one on the device of those that are.

    Where nothing is a tensor, which only torch.compile sends here, NumPy arrays come back.
    """
    given = [each for array in arrays for each in (array if isinstance(array, (list, tuple)) else (array,))]
    if out is not None and wants_gradient(*given):
        raise ValueError("out: cannot be given where a gradient is wanted")
    if not compiling(torch):
        options = operator.checked(options)
    else:  # nothing is checked, because an option may be symbolic; the operator does so when it runs
        options = [[*each] if isinstance(each, tuple) else each for each in options]
    device = next((each.device for each in given if isinstance(each, Tensor)), None)
    named = dict(zip(operator.arrays, arrays, strict=True))
    if operator.lists and checks.check_form(named["gt_boxes"], named.get("gt_labels"), named["gt_counts"]):
        named = _padded_truth(named, device)
    tensors = []
    for name, array in named.items():
        tensor = None if array is None else _tensor(name, array)
        tensors.append(tensor if tensor is None or tensor is array or device is None else tensor.to(device))
    found = run(operator.name, *tensors, *options)
    if operator.result is not None:
        return operator.result(*(found if device is not None else (each.numpy() for each in found)))
    if out is None:
        return found if device is not None else found.numpy()
    check_out(out, found.shape, str(found.dtype).removeprefix("torch."), device is not None)
    if out.device != found.device:
        raise ValueError(f"out: expected a tensor on {found.device}, got {out.device}")
    return out.copy_(found)


def _padded_truth(arrays: dict[str, Any], device: torch.device | None) -> dict[str, Any]:
    """`arrays` with [B, G, 4] and [B, G] of what is in lists, and how many are real; anchors on `device`."""
    arrays = dict(arrays)
    boxes = [_tensor("gt_boxes", each) for each in arrays["gt_boxes"]]
    for image, each in enumerate(boxes):
        Spec(f"gt_boxes[{image}]", "float", ("G", "4")).bind(each, {})
    anchors = arrays["anchors"] = _tensor("anchors", arrays["anchors"]).to(device or "cpu")
    Spec("anchors", "float", ("A", "4")).bind(anchors, {})
    device = next((each.device for each in arrays["gt_boxes"] if isinstance(each, Tensor)), anchors.device)
    dtype = float_dtype(anchors, *boxes)
    arrays["gt_boxes"] = _padded([each.to(device, dtype) for each in boxes], (4,), dtype, device)
    arrays["gt_counts"] = torch.tensor([each.shape[0] for each in boxes], dtype=torch.int64)
    if "gt_labels" in arrays:
        labels = [_tensor("gt_labels", each) for each in arrays["gt_labels"]]
        for image, (each, own) in enumerate(zip(labels, boxes, strict=True)):
            Spec(f"gt_labels[{image}]", "int", ("G",)).bind(each, {"G": own.shape[0]})
        labels = [each.to(device, torch.int64) for each in labels]
        arrays["gt_labels"] = _padded(labels, (), torch.int64, device)
    return arrays


def _padded(tensors: list[Tensor], columns: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[G_i, ...] each as one [B, G, ...], padded with ones, which are legal as labels."""
    if not tensors:
        return torch.empty((0, 0, *columns), dtype=dtype, device=device)
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=1.0)
