"""The ``out=`` of operators that have one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from fastssd import _checks as checks
from fastssd._checks import Array


def memory_of(out: Array, shape: tuple[int, ...], dtype: np.dtype[Any], tensor: bool) -> NDArray[Any]:
    """The memory of `out`, checked."""
    check_out(out, shape, dtype.name, tensor)
    if tensor and (not out.is_cpu or out.is_neg()):
        raise ValueError(f"out: expected a tensor with memory on the CPU, as the boxes are, got one on {out.device}")
    array: NDArray[Any] = out.detach().numpy() if tensor else np.asarray(out)
    if not (array.flags.carray and array.dtype.isnative):
        raise ValueError(f"out: expected writeable, C-contiguous and aligned memory, got strides {array.strides}")
    return array


def check_out(out: Array, shape: Sequence[Any], dtype: str, tensor: bool) -> None:
    """Raise unless a result of this shape and dtype, a tensor or not, can be written to `out`."""
    if checks.is_tensor(out) != tensor or not (tensor or isinstance(out, ndarray)):
        raise TypeError(f"out: expected a {'tensor' if tensor else 'NumPy array'} like the result, got {type(out)}")
    if tuple(out.shape) != tuple(shape) or str(out.dtype).removeprefix("torch.") != dtype:
        raise ValueError(f"out: expected {dtype} {list(shape)}, got {out.dtype} {list(out.shape)}")
    if not tensor:
        return
    if out.requires_grad:
        raise ValueError("out: expected a tensor that requires no gradient")
    strided = out.layout is sys.modules["torch"].strided
    if not strided or not out.is_contiguous():
        raise ValueError("out: expected a C-contiguous tensor with memory of its own")


def mark_written(out: Array) -> None:
    """Tell autograd, which may have saved `out` and does not see what kernels write."""
    if type(out) is ndarray or not checks.is_tensor(out):
        return
    graph = sys.modules["torch"].autograd.graph
    if hasattr(graph, "increment_version"):
        graph.increment_version(out)
    else:  # an older torch
        out.detach().view(-1)[:0].zero_()  # views share the version; nothing is written
