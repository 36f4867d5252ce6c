"""What a face calls where torch has to dispatch: its arguments as ``torch.ops.fastssd.*`` take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastssd.ops import _face as face
from fastssd.ops import _library  # registers the operators, also when torch.compile traces this import
from fastssd.ops import _shapes as shapes
from fastssd.ops._device import float_dtype
from fastssd.ops._options import checked
from fastssd.ops.matching import check_form, thresholds


def _tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) and face.compiling(torch):
        return torch.as_tensor(np.asarray(value))  # which torch.compile knows; its memory is not written to in a graph
    tensor: Tensor = face.to_tensor(name, value)
    return tensor


def call(name: str, arrays: dict[str, Any], **options: Any) -> Any:
    """``torch.ops.fastssd.NAME(*arrays, *options)``; what is no tensor among `arrays` becomes one on their device.

    Where nothing is a tensor, which only torch.compile sends here, NumPy arrays come back.
    """
    device = next((array.device for array in arrays.values() if isinstance(array, Tensor)), None)
    tensors = []
    for argument, array in arrays.items():
        tensor = None if array is None else _tensor(argument, array)
        tensors.append(tensor if tensor is None or tensor is array or device is None else tensor.to(device))
    values = list(options.values())
    if not face.compiling(torch):
        values = checked(name, list(options), values)
    elif "size" in options or options.get("clip") is not None:
        values = [[*each] if option in ("size", "clip") else each for option, each in options.items()]
    found = _library.run(name, *tensors, *values)
    return found if device is not None else _arrays(found)


def _arrays(found: Any) -> Any:
    return tuple(each.numpy() for each in found) if isinstance(found, tuple) else found.numpy()


def call_pairwise(name: str, boxes1: Any, boxes2: Any, out: Any) -> Any:
    """As :func:`call`, with the result in `out` where that is given."""
    from fastssd.ops.iou import check_out

    if out is not None and face.wants_gradient(boxes1, boxes2):
        raise ValueError("out: cannot be given where a gradient is wanted")
    result = call(name, {"boxes1": boxes1, "boxes2": boxes2})
    if out is None:
        return result
    check_out(out, result.shape, str(result.dtype).removeprefix("torch."), isinstance(result, Tensor))
    if out.device != result.device:
        raise ValueError(f"out: expected a tensor on {result.device}, got {out.device}")
    return out.copy_(result)


def call_matching(name: str, arrays: dict[str, Any], **options: Any) -> Any:
    """As :func:`call`; ground truth in lists is padded."""
    if not face.compiling(torch):
        thresholds(options["iou_threshold"], options["background_threshold"])
    given = [each for array in arrays.values() for each in (array if isinstance(array, list | tuple) else (array,))]
    devices = [each.device for each in given if isinstance(each, Tensor)]
    if not check_form(arrays["gt_boxes"], arrays.get("gt_labels"), arrays["gt_counts"]):
        return call(name, arrays, **options)
    found = call(name, _padded_truth(arrays, devices[0] if devices else None), **options)
    return found if devices else _arrays(found)


def _padded_truth(arrays: dict[str, Any], device: torch.device | None) -> dict[str, Any]:
    """`arrays` with [B, G, 4] and [B, G] of what is in lists, and how many are real; anchors on `device`."""
    arrays = dict(arrays)
    boxes = [_tensor("gt_boxes", each) for each in arrays["gt_boxes"]]
    for image, each in enumerate(boxes):
        face.check_shape(f"gt_boxes[{image}]", each, ("G", 4))
    anchors = arrays["anchors"] = _tensor("anchors", arrays["anchors"]).to(device or "cpu")
    device = next((each.device for each in arrays["gt_boxes"] if isinstance(each, Tensor)), anchors.device)
    dtype = float_dtype(anchors, *boxes)
    arrays["gt_boxes"] = _padded([each.to(device, dtype) for each in boxes], (4,), dtype, device)
    arrays["gt_counts"] = torch.tensor([each.shape[0] for each in boxes], dtype=torch.int64)
    if "gt_labels" in arrays:
        labels = [_tensor("gt_labels", each) for each in arrays["gt_labels"]]
        for image, (each, own) in enumerate(zip(labels, boxes, strict=True)):
            face.check_shape(f"gt_labels[{image}]", each, (own.shape[0],))
            shapes.check_integers(f"gt_labels[{image}]", each)
        labels = [each.to(device, torch.int64) for each in labels]
        arrays["gt_labels"] = _padded(labels, (), torch.int64, device)
    return arrays


def _padded(tensors: list[Tensor], columns: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[G_i, ...] each as one [B, G, ...], padded with ones, which are legal as labels."""
    if not tensors:
        return torch.empty((0, 0, *columns), dtype=dtype, device=device)
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=1.0)


def grid_anchors(grids: Any, scales: Any, ratios: Any, image_size: Any, clip: bool, dtype: Any) -> Any:
    """``ops.grid_anchors`` as a node of a graph: lists of lists laid flat, for no schema has them."""
    if dtype not in (float, np.float32, np.float64, "float32", "float64"):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
    return torch.ops.fastssd.grid_anchors(
        [side for grid in grids for side in grid],
        [float(scale) for level in scales for scale in level],
        [len(level) for level in scales],
        [float(ratio) for level in ratios for ratio in level],
        [len(level) for level in ratios],
        [*image_size],
        clip,
        torch.float64 if dtype in (float, np.float64, "float64") else torch.float32,
    ).numpy()
