"""Weights and images made by a rule, so that files of golden values need to hold neither."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch

HEADS = ("head.", "loc.", "conf.", "box_head.")


def seeded_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A weight that keeps signals at their size; different for each name, the same on every machine."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        values = draw.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", "bias")):
        values = draw.normal(0, 0.2, shape)
    elif len(shape) == 1:
        values = draw.uniform(0.5, 1.5, shape) * (20 if "scale" in name or "norm.weight" in name.lower() else 1)
    else:
        values = draw.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
        if name.startswith(HEADS):  # VGG's maps are about a hundred times as large as those that are normalised
            values *= 0.02 if shape[-1] == 3 else 0.5
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def seeded_state(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: seeded_tensor(name, tuple(shape)) for name, shape in shapes.items()}


def seeded_image(size: int) -> torch.Tensor:
    """[1, 3, size, size] in [0, 1]: noise over patches, so that places differ."""
    draw = np.random.default_rng(size)
    patches = np.kron(draw.random((3, size // 20 + 1, size // 20 + 1)), np.ones((1, 20, 20)))[:, :size, :size]
    return torch.from_numpy((0.7 * patches + 0.3 * draw.random((3, size, size))).astype(np.float32))[None]
