"""Calls of ``torch.ops.fastssd.*``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastssd.ops._dispatched import compiling
from fastssd.ops._operator import REGISTRY
from fastssd.ops._torch import gradients
from fastssd.ops._torch.device import float_dtype


def run(name: str, *values: Any) -> Any:
    """``torch.ops.fastssd.NAME(*values)``, or its formula where torch.func differentiates by one of `values`."""
    if not compiling(torch):
        tensors = [value for value in values if isinstance(value, Tensor)]
        if any(torch._C._functorch.is_gradtrackingtensor(tensor) for tensor in tensors):
            operator = REGISTRY[name]
            derivative = gradients.derivative(operator)
            if derivative is not None:
                arrays, options = operator.complete(values)
                operator.bind(arrays)
                dtype = float_dtype(*(tensor for tensor in tensors if tensor.is_floating_point()))
                floats = [
                    each.to(dtype) if isinstance(each, Tensor) and each.is_floating_point() else each for each in arrays
                ]
                return derivative.formula(*floats, *options)
    return getattr(torch.ops.fastssd, name)(*values)
