"""Derivatives of the operators, as torch.library and torch.func take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastssd.ops import _formulas as formulas


class Derivative(NamedTuple):
    """What :func:`torch.library.register_autograd` takes, and what torch.func does."""

    save: Callable[..., None]
    backward: Callable[..., Any]
    formula: Callable[..., Any]
    """The whole operator in torch operations, for torch.func, which does not see `backward`."""


# torch hands `inputs` over with all defaults, and wants gradients, like `ctx.needs_input_grad`, without those that the
# caller left out.


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors = [value if isinstance(value, Tensor) else None for value in inputs]
    ctx.save_for_backward(*tensors)
    ctx.options = [None if isinstance(value, Tensor) else value for value in inputs]


def of(formula: Callable[..., Tensor]) -> Derivative:
    """The derivative of a torch formula of the operator's arguments."""

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


def none(name: str) -> Derivative:
    """No derivative: a backward pass raises, when it runs and not when it is traced."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)  # zeros would not hang on the backward pass, and raise in the forward one
        _save(ctx, inputs, output)

    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad = next(each for each in grads if each is not None)
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        return tuple(torch.ops.fastssd._no_gradient(grad, tensor, name) if need else None for tensor, need in needed)

    def formula(*_: Any) -> Any:
        raise NotImplementedError(f"fastssd.ops.{name} has no gradient; detach its inputs")

    return Derivative(save, backward, formula)


def _save_multibox(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _backward_multibox(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    logits, labels, selected = ctx.saved_tensors
    gradient = torch.ops.fastssd.multibox_cross_entropy_gradient(grad, logits, labels, selected)
    return gradient.to(logits.dtype), *(None for _ in ctx.needs_input_grad[1:])


def multibox_cross_entropy() -> Derivative:
    """By the kernel that writes the gradient; once, not twice."""
    return Derivative(_save_multibox, _backward_multibox, formulas.multibox_cross_entropy)
