"""Anchors on a grid, in float64 and rounded once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastssd.backends.codes import Float
from fastssd.backends.numba._jit import jit


@jit
def grid_anchors(
    height: int, width: int, shapes: NDArray[np.float64], scale: NDArray[np.float64], clip: bool, out: Float
) -> None:
    row = 0
    for y in range(height if len(out) else 0):
        cy = (y + 0.5) / height
        for x in range(width):
            cx = (x + 0.5) / width
            for k in range(len(shapes)):
                half_w, half_h = shapes[k, 0] / 2, shapes[k, 1] / 2
                x1, y1, x2, y2 = cx - half_w, cy - half_h, cx + half_w, cy + half_h
                if clip:
                    x1, y1 = min(max(x1, 0.0), 1.0), min(max(y1, 0.0), 1.0)
                    x2, y2 = min(max(x2, 0.0), 1.0), min(max(y2, 0.0), 1.0)
                out[row, 0], out[row, 1] = x1 * scale[1], y1 * scale[0]
                out[row, 2], out[row, 3] = x2 * scale[1], y2 * scale[0]
                row += 1
