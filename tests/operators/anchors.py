"""Anchors on grids as the tests know them (tests/operators/__init__.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastssd import ops
from tests.operators._inputs import Arguments, Case, Examples, bad, case

TINY_SSD = [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)]


def registered(sample: Arguments) -> Arguments:
    """torch.ops.fastssd.grid_anchors takes flat lists and their lengths: a schema has no lists of lists."""
    import torch

    sizes, scales = sample["grid_sizes"], sample["scales"]
    ratios = sample.get("aspect_ratios", [(1.0, 2.0, 0.5)] * len(sizes))
    flat: Arguments = {
        "grid_sizes": [length for size in sizes for length in size],
        "scales": [scale for level in scales for scale in level],
        "scales_per_level": [len(level) for level in scales],
        "aspect_ratios": [ratio for level in ratios for ratio in level],
        "ratios_per_level": [len(level) for level in ratios],
    }
    if "dtype" in sample:
        flat["dtype"] = getattr(torch, sample["dtype"])
    return {**flat, **{name: sample[name] for name in ("image_size", "clip") if name in sample}}


EXAMPLES = {
    "grid_anchors": Examples(
        samples=[
            {
                "grid_sizes": [(4, 3), (2, 1)],
                "scales": [(0.2, 0.3), (0.4,)],
                "aspect_ratios": [(2.0, 1.0), (3.0,)],
                "image_size": (30.0, 40.0),
                "clip": True,
                "dtype": "float64",
            },
            {
                "grid_sizes": [(1, 5)],
                "scales": [(0.7,)],
                "aspect_ratios": [(1.0, 0.5)],
                "image_size": (1.0, 1.0),
                "clip": False,
                "dtype": "float32",
            },
        ],
        bad=[
            *(bad("grid_sizes", ValueError, grid_sizes=wrong) for wrong in ([(1, 2, 3), (1, 2)], "ab", [(4, -1), 2])),
            *(bad("grid_sizes", TypeError, grid_sizes=wrong) for wrong in ([2.0, 2], [True, 2])),
            bad("grid_sizes", TypeError, grid_sizes=None, scales=[(0.1,)], aspect_ratios=[(1.0,)]),
            bad("scales", ValueError, scales=[(0.1,)]),
            bad("scales", ValueError, scales=[(0.1,), (-0.1,)]),
            *(bad("scales", TypeError, scales=wrong) for wrong in (0.1, [0.1, 0.2])),
            bad("aspect_ratios", ValueError, aspect_ratios=[(1.0,)]),
            bad("image_size", ValueError, image_size=(5, -5)),
            bad("dtype", TypeError, dtype="int32"),
        ],
        registered=registered,
    ),
}


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for dtype in ("float32", "float64"):
        for clip in (False, True):
            tag = f"TinySSD {dtype} clip={clip}"
            yield case("grid_anchors", tag, [32, 16, 8, 4, 1], TINY_SSD, clip=clip, dtype=dtype)
        uneven: tuple[Any, ...] = ([(3, 5), (0, 4)], [[0.1], [0.3]], [[1, 3], [2]])
        yield case("grid_anchors", f"uneven {dtype}", *uneven, image_size=(37, 91), dtype=dtype)


def test_anchors_by_hand():
    # One row of two cells; in each the scale at ratio 1 and at ratio 4, which is twice as wide and half as high.
    anchors = ops.grid_anchors([(1, 2)], [(0.5,)], (1, 4), image_size=(8, 16))
    assert anchors.tolist() == [[0, 2, 8, 6], [-4, 3, 12, 5], [8, 2, 16, 6], [4, 3, 20, 5]]


def test_grid_sizes_in_every_form():
    torch = pytest.importorskip("torch")
    scales = [(0.2, 0.3), (0.9, 0.95)]
    ref = ops.grid_anchors([(3, 4), (2, 2)], scales)
    for grids in (
        np.array([[3, 4], [2, 2]]),
        [np.array([3, 4]), np.int64(2)],
        [torch.tensor([3, 4]), torch.Size([2, 2])],
    ):
        np.testing.assert_array_equal(ops.grid_anchors(grids, np.array(scales)), ref)
    np.testing.assert_array_equal(ops.grid_anchors(2, scales[1:]), ops.grid_anchors([2], scales[1:]))
    with pytest.raises(MemoryError):
        ops.grid_anchors(2**32, [[0.1]])
