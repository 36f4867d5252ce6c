"""Areas, formats, clipping: the definition (docs/contract.md, Arrays and IoU)."""

from __future__ import annotations

import numpy as np

from fastssd.backends.codes import Float, Int


def area(boxes: Float) -> Float:
    """Area of boxes [..., 4]: 0 for a degenerate box, NaN for a non-finite one."""
    with np.errstate(all="ignore"):
        width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
        result = np.where((width > 0) & (height > 0), width * height, 0)
    return np.where(np.isfinite(boxes).all(-1), result, np.nan).astype(boxes.dtype)


def box_area(boxes: Float, out: Float) -> None:
    """boxes [N, 4], out [N]. Zero or negative extent: 0. Non-finite box: NaN."""
    out[...] = area(boxes)


def box_convert(boxes: Float, in_fmt: int, out_fmt: int, out: Float) -> None:
    """boxes [N, 4], out [N, 4]; formats as in ``BOX_FORMATS``."""
    with np.errstate(all="ignore"):
        a, b, c, d = boxes.T
        if in_fmt == 0:  # xyxy
            x1, y1, x2, y2 = a, b, c, d
        elif in_fmt == 1:  # xywh
            x1, y1, x2, y2 = a, b, a + c, b + d
        else:  # cxcywh
            x1, y1, x2, y2 = a - c / 2, b - d / 2, a + c / 2, b + d / 2
        if in_fmt == out_fmt:
            columns = (a, b, c, d)
        elif out_fmt == 0:
            columns = (x1, y1, x2, y2)
        elif out_fmt == 1:
            columns = (x1, y1, x2 - x1, y2 - y1)
        else:
            columns = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        out[...] = np.stack(columns, axis=-1)


def clip_boxes_to_image(boxes: Float, height: float, width: float, out: Float) -> None:
    """boxes [N, 4], out [N, 4]; x to [0, width], y to [0, height]; NaN stays NaN."""
    sides = np.array([width, height, width, height], boxes.dtype)
    above = np.where(boxes < 0, 0, boxes)  # -0 and NaN stay, as in torch.clamp
    out[...] = np.where(above > sides, sides, above)


def remove_small_boxes(boxes: Float, min_size: float, keep: Int) -> int:
    """boxes [N, 4], keep [N]: indices of boxes with both sides >= min_size, ascending. Returns how many."""
    with np.errstate(all="ignore"):
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    large = np.flatnonzero((width.astype(np.float64) >= min_size) & (height.astype(np.float64) >= min_size))
    keep[: len(large)] = large
    return len(large)
