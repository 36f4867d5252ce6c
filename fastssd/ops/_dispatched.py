"""What torch is doing with a call: tracing it, mapping it, recording its gradient. torch is not imported for it."""

from __future__ import annotations

import sys
from typing import Any

from numpy import ndarray

from fastssd import _checks as checks
from fastssd._checks import Array

_TRACED = ("_len_torch_dispatch_stack", "_are_functorch_transforms_active", "_get_tracing_state")  # of torch._C


def compiling(torch: Any) -> bool:
    """Whether torch.compile traces this call. A torch that cannot say so cannot trace the operators either."""
    compiler: Any = getattr(torch, "compiler", None)
    return hasattr(compiler, "is_dynamo_compiling") and bool(compiler.is_dynamo_compiling())


def dispatched(*arrays: Array) -> bool:
    """Whether torch has to dispatch this call: it is traced, mapped or differentiated as a function, or a tensor among
    `arrays` is on another device or no plain tensor. Without arrays, whether torch.compile traces it.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    try:
        if torch.compiler.is_dynamo_compiling():  # what torch.compile sees as True
            return True
        core = torch._C
        traced = (
            core._len_torch_dispatch_stack() or core._are_functorch_transforms_active() or core._get_tracing_state()
        )
        tensor = torch.Tensor
    except AttributeError:  # an older torch, or something else of that name
        if compiling(torch):
            return True
        core, tensor = getattr(torch, "_C", None), getattr(torch, "Tensor", ())
        traced = any(getattr(core, asks)() for asks in _TRACED if hasattr(core, asks))
    for array in arrays:
        kind = type(array)
        if kind is tensor or isinstance(array, tensor):
            plain = kind is tensor or kind.__torch_dispatch__ is tensor.__torch_dispatch__
            if traced or not plain or not array.is_cpu:
                return True
    return False


def wants_gradient(*arrays: Array) -> bool:
    """Whether autograd is recording and a torch tensor among `arrays` asks for a gradient."""
    for array in arrays:
        if type(array) is not ndarray and checks.is_tensor(array) and array.requires_grad:
            return bool(sys.modules["torch"].is_grad_enabled())
    return False
