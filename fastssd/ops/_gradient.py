"""Gradients for torch inputs: the kernel computes the value, a plain torch formula or another kernel its derivative.

Imported only when a tensor that requires a gradient reaches an operator, so torch is there already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable


class _KernelValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Callable[..., Any], formula: Callable[..., Any], *tensors: Any) -> Any:
        ctx.formula = formula
        ctx.save_for_backward(*tensors)
        return kernel(*(tensor.detach() for tensor in tensors))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        create_graph = torch.is_grad_enabled()  # a second derivative is wanted
        with torch.enable_grad():
            # An alias each, so that one tensor given as two arguments gets its two gradients apart.
            tensors = [tensor.view_as(tensor) for tensor in ctx.saved_tensors]
            wanted = [tensor for tensor, needed in zip(tensors, ctx.needs_input_grad[2:], strict=True) if needed]
            for tensor in wanted:
                if not tensor.requires_grad:
                    tensor.requires_grad_()
            dtype = grads[0].dtype
            value = ctx.formula(*(tensor.to(dtype) for tensor in tensors))
            found = iter(torch.autograd.grad(value, wanted, grads[0], create_graph=create_graph, allow_unused=True))
        return None, None, *(next(found) if needed else None for needed in ctx.needs_input_grad[2:])


class _WrittenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, holder: list[Any], write: Callable[..., None], *tensors: Any) -> Any:
        ctx.write = write
        ctx.save_for_backward(*tensors)
        return holder[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        tensor, *others = ctx.saved_tensors
        # Of NumPy, which asks for large pages: where much memory is fresh, small ones cost as much as the kernel.
        out = torch.from_numpy(np.empty(tensor.shape, grad.cpu().numpy().dtype))
        ctx.write(float(grad), out, tensor, *others)
        return None, None, out.to(tensor), *(None for _ in others)


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, holder: list[Any], *tensors: Any) -> Any:
        ctx.name = name
        return holder[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(f"fastssd.ops.{ctx.name} has no gradient; detach its inputs or its result")


def _tracked(arrays: tuple[Any, ...]) -> list[Any]:
    return [array for array in arrays if isinstance(array, torch.Tensor) and array.requires_grad]


def wanted(*arrays: Any) -> bool:
    """Whether autograd is recording and one of `arrays` takes part."""
    return torch.is_grad_enabled() and bool(_tracked(arrays))


def differentiable(kernel: Callable[..., Any], formula: Callable[..., Any], *tensors: Any) -> Any:
    """``kernel(*tensors)``, with the derivative of ``formula(*tensors)``."""
    return _KernelValue.apply(kernel, formula, *tensors)


def written(value: Any, write: Callable[..., None], tensor: Any, *others: Any) -> Any:
    """The scalar `value`, computed already, whose gradient by `tensor` the kernel ``write`` writes."""
    return _WrittenGradient.apply([value], write, tensor, *others)


def refuse(name: str, result: Any, *arrays: Any) -> Any:
    """`result`, from which a backward pass raises an error that names the operator."""
    if not isinstance(result, torch.Tensor) or not wanted(*arrays):
        return result
    return _NoGradient.apply(name, [result], *_tracked(arrays))
