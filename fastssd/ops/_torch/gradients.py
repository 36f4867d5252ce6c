"""Gradients: the kernel computes the value, a formula of torch operations or another kernel its derivative.

The first half is for ``torch.ops.fastssd.*`` and torch.func, the second for eager calls, which never meet these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssd import _checks as checks
from fastssd.ops._operator import REGISTRY, Operator
from fastssd.ops._torch import formulas

# --- for torch.library and torch.func --------------------------------------------------------------------------------


class Derivative(NamedTuple):
    """What :func:`torch.library.register_autograd` takes, and what torch.func does."""

    save: Callable[..., None]
    backward: Callable[..., Any]
    formula: Callable[..., Any]
    """The whole operator in torch operations, for torch.func, which does not see `backward`."""


def derivative(operator: Operator) -> Derivative | None:
    """None where all outputs are integers or booleans."""
    if operator.gradient == "formula":
        return _of_formula(getattr(formulas, operator.name))
    if operator.gradient == "kernel":
        return _of_kernel(operator)
    floats = any(spec.kind == "float" for spec in operator.outputs)
    return _missing(operator.name) if floats and operator.arrays else None


# torch hands `inputs` over with all defaults, and wants gradients, like `ctx.needs_input_grad`, without those that the
# caller left out.


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors = [value if isinstance(value, Tensor) else None for value in inputs]
    ctx.save_for_backward(*tensors)
    ctx.options = [None if isinstance(value, Tensor) else value for value in inputs]


def _of_formula(formula: Callable[..., Tensor]) -> Derivative:
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values = [
            tensor if tensor is not None else option
            for tensor, option in zip(ctx.saved_tensors, ctx.options, strict=True)
        ]
        wanted = [place for place, needed in enumerate(ctx.needs_input_grad) if needed]

        def value(*tensors: Tensor) -> Tensor:
            given = list(values)
            for place, tensor in zip(wanted, tensors, strict=True):
                given[place] = tensor
            return formula(*(each.to(grad.dtype) if isinstance(each, Tensor) else each for each in given))

        pull: Any = torch.func.vjp(value, *(values[place] for place in wanted))[1]
        found = dict(zip(wanted, pull(grad), strict=True))
        return tuple(found.get(place) for place in range(len(ctx.needs_input_grad)))

    return Derivative(_save, backward, formula)


def _of_kernel(operator: Operator) -> Derivative:
    """By the operator that writes the gradient, of the first array; once, not twice."""
    arrays = len(operator.arrays)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:arrays], *output[1:])

    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        gradient = getattr(torch.ops.fastssd, f"{operator.name}_gradient")(grad, *ctx.saved_tensors)
        return gradient.to(ctx.saved_tensors[0].dtype), *(None for _ in ctx.needs_input_grad[1:])

    return Derivative(save, backward, getattr(formulas, operator.name))


def _missing(name: str) -> Derivative:
    """No derivative: a backward pass raises, when it runs and not when it is traced."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)  # zeros would not hang on the backward pass, and raise in the forward one
        _save(ctx, inputs, output)

    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad = next(each for each in grads if each is not None)
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        return tuple(torch.ops.fastssd._no_gradient(grad, tensor, name) if need else None for tensor, need in needed)

    def formula(*_: Any) -> Any:
        raise no_gradient(name)

    return Derivative(save, backward, formula)


def no_gradient(name: str) -> NotImplementedError:
    return NotImplementedError(f"fastssd.ops.{name} has no gradient; detach its inputs or its result")


# --- for eager calls -------------------------------------------------------------------------------------------------


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
    def forward(ctx: Any, holder: list[Any], name: str, *tensors: Any) -> Any:
        ctx.name = name
        ctx.save_for_backward(*tensors)
        return holder[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        tensor, *others = ctx.saved_tensors
        # In memory of NumPy, which asks for large pages: where much memory is fresh, small ones cost as much as the
        # kernel.
        arrays = (np.asarray(float(grad)), *(tensor.detach().cpu().resolve_neg() for tensor in ctx.saved_tensors))
        out = torch.as_tensor(REGISTRY[ctx.name].function(*arrays))
        return None, None, out.to(tensor), *(None for _ in others)


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, holder: list[Any], *tensors: Any) -> Any:
        ctx.name = name
        return holder[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise no_gradient(ctx.name)


def differentiable(operator: Operator, arrays: Sequence[Any], options: Sequence[Any]) -> Any:
    """The operator on the CPU, where a gradient by one of `arrays` is wanted and it has one."""
    tensors = [checks.to_tensor(name, array) for name, array in zip(operator.arrays, arrays, strict=True)]
    if operator.gradient == "formula":
        formula = getattr(formulas, operator.name)
        return _KernelValue.apply(
            lambda *values: operator.run(values, options, values), lambda *values: formula(*values, *options), *tensors
        )
    found = operator.run(tensors, options, tensors)
    if not tensors[0].requires_grad:
        return found
    # All are saved, so that a write to one of them before the backward pass is seen.
    value = _WrittenGradient.apply([found[0]], f"{operator.name}_gradient", *tensors, *found[1:])
    return operator.result(value, *found[1:])


def refuse(name: str, result: Any, arrays: Sequence[Any]) -> Any:
    """`result`, from which a backward pass raises an error that names the operator."""
    if not isinstance(result, Tensor):
        return result
    tracked = [array for array in arrays if isinstance(array, Tensor) and array.requires_grad]
    return _NoGradient.apply(name, [result], *tracked)
