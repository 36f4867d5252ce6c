"""The outputs of the operators as they are known before they run, from their declarations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastssd.ops._operator import REGISTRY
from fastssd.ops._torch.device import float_dtype


def fake_of(name: str) -> Callable[..., Any]:
    """What the operator returns, as tensors without values."""
    if name == "grid_anchors":
        return fake_grid_anchors
    operator = REGISTRY[name]

    def fake(*arguments: Any) -> Any:
        arrays, options = operator.complete(arguments)
        sizes = operator.bind(arrays) | dict(zip(operator.options, options, strict=True))
        for dim in (dim for spec in operator.outputs for dim in spec.dims):
            if dim not in sizes and not isinstance(dim, int):  # known when the operator has run
                sizes[dim] = torch.library.get_ctx().new_dynamic_size()
        floats: list[Tensor] = [array for array, kind in zip(arrays, operator.kinds, strict=True) if kind == "float"]
        dtypes = {"float": float_dtype(*floats), "int64": torch.int64, "bool": torch.bool}
        found = [
            floats[0].new_empty(operator.output_shape(spec, sizes), dtype=dtypes[spec.kind])
            for spec in operator.outputs
        ]
        return found[0] if operator.result is None else tuple(found)

    return fake


def fake_grid_anchors(
    grid_sizes: Sequence[int],
    scales: Sequence[float],
    scales_per_level: Sequence[int],
    aspect_ratios: Sequence[float],
    ratios_per_level: Sequence[int],
    image_size: Sequence[float] | None = None,
    clip: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """The only one whose number of rows is computed from its options."""
    cells = [rows * columns for rows, columns in zip(grid_sizes[::2], grid_sizes[1::2], strict=True)]
    each = [len_s + len_r - 1 for len_s, len_r in zip(scales_per_level, ratios_per_level, strict=True)]
    return torch.empty(
        (sum(count * k for count, k in zip(cells, each, strict=True)), 4), dtype=dtype or torch.float32, device=device
    )
