"""What a face calls where torch has to dispatch: its arguments as ``torch.ops.fastssd.*`` take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastssd.ops import _library  # registers the operators, also when torch.compile traces this import


def call(name: str, arrays: Sequence[Any], *options: Any) -> Any:
    """``torch.ops.fastssd.NAME(*arrays, *options)``; what is no tensor among `arrays` becomes one on their device."""
    device = next((array.device for array in arrays if isinstance(array, Tensor)), None)
    tensors = [
        array if isinstance(array, Tensor) or array is None else torch.as_tensor(array, device=device)
        for array in arrays
    ]
    return _library.run(name, *tensors, *options)


def call_pairwise(name: str, boxes1: Any, boxes2: Any, out: Any) -> Any:
    """As :func:`call`, with the result in `out` where that is given."""
    result = call(name, (boxes1, boxes2))
    if out is None:
        return result
    if not isinstance(out, Tensor) or out.shape != result.shape or out.dtype != result.dtype:
        raise ValueError(
            f"out: expected a tensor of {result.dtype} and shape {list(result.shape)}, "
            f"got {type(out).__name__} of {out.dtype} and shape {list(out.shape)}"
        )
    return out.copy_(result)


def call_matching(name: str, anchors: Any, gt_boxes: Any, gt_labels: Any, gt_counts: Any, *options: Any) -> Any:
    """As :func:`call`; ground truth in a list is padded. `gt_labels` is None where the operator has none."""
    if isinstance(gt_boxes, list | tuple):
        if gt_counts is not None:
            raise ValueError("gt_counts: only for padded gt_boxes; a list of arrays has its lengths already")
        boxes = [torch.as_tensor(each).reshape(-1, 4) for each in gt_boxes]
        gt_counts = torch.tensor([each.shape[0] for each in boxes], dtype=torch.int64)
        gt_boxes = _padded(boxes, (4,))
    if isinstance(gt_labels, list | tuple):
        labels = [torch.as_tensor(each).reshape(-1) for each in gt_labels]
        for place, each in enumerate(labels):
            if gt_counts is None or each.shape[0] != boxes[place].shape[0]:
                raise ValueError(f"gt_labels[{place}]: expected one label for each box, got {each.shape[0]}")
        gt_labels = _padded(labels, ())
    truth = (gt_boxes,) if gt_labels is None else (gt_boxes, gt_labels)
    return call(name, (anchors, *truth, gt_counts), *options)


def _padded(tensors: list[Tensor], columns: tuple[int, ...]) -> Tensor:
    """[G_i, ...] each as one [B, G, ...], padded with ones, which are legal as labels."""
    if not tensors:
        return torch.empty((0, 0, *columns), dtype=torch.float32 if columns else torch.int64)
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=1.0)


def grid_anchors(grid_sizes: Any, scales: Any, aspect_ratios: Any, image_size: Any, clip: bool, dtype: Any) -> Any:
    """``ops.grid_anchors`` as a node of a graph: lists of lists laid flat, for no schema has them."""
    sizes = [side for grid in grid_sizes for side in (grid if isinstance(grid, Sequence) else (grid, grid))]
    ratios = list(aspect_ratios)
    if not ratios or not isinstance(ratios[0], Sequence):
        ratios = [ratios] * len(scales)
    return torch.ops.fastssd.grid_anchors(
        sizes,
        [float(scale) for level in scales for scale in level],
        [len(level) for level in scales],
        [float(ratio) for level in ratios for ratio in level],
        [len(level) for level in ratios],
        [float(side) for side in image_size],
        clip,
        torch.float64 if dtype in (float, np.float64, "float64") else torch.float32,
    ).numpy()
