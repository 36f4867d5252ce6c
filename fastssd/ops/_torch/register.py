"""Registers ``torch.ops.fastssd.*`` from the declarations of the operators.

Every torch since 2.0 works. Where an older torch lacks a way of registering something, the operator raises an error
that says which torch has it (docs/torch.md). A registration that fails leaves nothing behind, so the next import starts
anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from fastssd import _checks as checks
from fastssd.ops._operator import REGISTRY, Operator
from fastssd.ops._torch import device, gradients, shapes, vmap

# --- schemas ---------------------------------------------------------------------------------------------------------

_TYPES = {
    "float": "float",
    "float | None": "float?",
    "int": "SymInt",
    "int | None": "SymInt?",
    "str": "str",
    "bool": "bool",
    "tuple[float, float]": "float[]",
    "list[int]": "SymInt[]",
    "list[float]": "float[]",
    "torch.dtype | None": "ScalarType?",
    "torch.device | None": "Device?",
}
# Lengths in images may be symbolic: one graph for images of all sizes. Floats would be constants of a graph.
_LENGTHS = {
    "float": "Scalar",
    "tuple[float, float]": "Scalar[]",
    "tuple[float, float] | None": "Scalar[]?",
}
_LENGTH_NAMES = ("size", "clip", "image_size", "min_size")


def schema(operator: Operator) -> str:
    """The operator for ``torch.library``: the arrays first, then the options, with their defaults."""
    arguments = []
    for name in operator.arrays:
        arguments.append(f"Tensor? {name}=None" if name in operator.defaults else f"Tensor {name}")
    for name in operator.options:
        annotation = operator.annotations[name]
        kind = _LENGTHS.get(annotation) if name in _LENGTH_NAMES else None
        default = f"={_literal(operator.defaults[name])}" if name in operator.defaults else ""
        arguments.append(f"{kind or _TYPES[annotation]} {name}{default}")
    outputs = ", ".join(f"Tensor {spec.name}".strip() for spec in operator.outputs)
    returns = outputs if operator.result is None else f"({outputs})"
    return f"{operator.name}({', '.join(arguments)}) -> {returns}"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return str(list(value)) if isinstance(value, tuple) else str(value)


# --- kernels ---------------------------------------------------------------------------------------------------------


def _checked(operator: Operator, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` after the checks of the options; shapes it checks itself."""
    count = len(operator.arrays)

    def run(*arguments: Any) -> Any:
        places = {each.device.type for each in arguments if isinstance(each, Tensor)}
        if "meta" in places and len(places) > 1:  # which has no values to compute with
            raise ValueError(f"{operator.name}: expected tensors of one device, got {', '.join(sorted(places))}")
        arrays = [
            checks.to_tensor(name, array) if name in checks.BOXES else array
            for name, array in zip(operator.arrays, arguments, strict=False)
        ]
        return function(*arrays, *operator.checked(arguments[count:]))  # without those that have their defaults

    return run


def _too_old(feature: str, since: str) -> NotImplementedError:
    return NotImplementedError(f"fastssd: {feature} needs torch {since} or later, this is torch {torch.__version__}")


def _refuse(feature: str, since: str) -> Callable[..., Any]:
    def kernel(*_: Any) -> Any:
        raise _too_old(feature, since)

    return kernel


def _refuse_gradients(name: str) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in arguments):
            raise _too_old(f"a gradient through torch.ops.fastssd.{name}", "2.4")
        below = torch._C._AutoDispatchBelowAutograd()  # a context manager only since torch 2.1
        try:
            return getattr(torch.ops.fastssd, name)(*arguments)
        finally:
            del below

    return kernel


def _define(library: Any, schema: str, *tags: str) -> None:
    """With those tags that this torch knows."""
    known = [getattr(torch.Tag, tag) for tag in tags if hasattr(torch.Tag, tag)]
    library.define(schema, **({"tags": known} if known else {}))


def _register_fake(library: Any, name: str, fake: Callable[..., Any]) -> None:
    if hasattr(torch.library, "register_fake"):
        torch.library.register_fake(f"fastssd::{name}", fake, lib=library)
    else:
        library.impl(name, _refuse(f"tracing torch.ops.fastssd.{name}", "2.4"), "Meta")


def _register(library: Any, operator: Operator) -> None:
    name, qualified = operator.name, f"fastssd::{operator.name}"
    _define(library, schema(operator), "pt2_compliant_tag", "flexible_layout")
    on_cpu, on_device = device.by_kernel(operator), device.by_formula(operator)
    for key in ("CPU", "MPS"):  # MPS has no float64, which formulas compare and sum in
        library.impl(name, on_cpu, key)
    # Every other device, known or not.
    library.impl(name, _checked(operator, on_device) if on_device else on_cpu, "CompositeExplicitAutograd")
    _register_fake(library, name, _checked(operator, shapes.fake_of(name)))
    derivative = gradients.derivative(operator)
    if derivative is not None:
        if hasattr(torch.library, "register_autograd"):
            torch.library.register_autograd(qualified, derivative.backward, setup_context=derivative.save, lib=library)
        else:
            library.impl(name, _refuse_gradients(name), "Autograd")
    if operator.vmap is not None:
        rule = getattr(vmap, operator.vmap)
        if hasattr(torch.library, "register_vmap"):
            torch.library.register_vmap(
                qualified, lambda info, dims, *values: rule(name, info.batch_size, dims, values), lib=library
            )
        else:
            library.impl(name, _refuse(f"torch.func.vmap over torch.ops.fastssd.{name}", "2.5"), "FuncTorchBatched")


_HOLDER = "_fastssd_library"


def register_all() -> None:
    """The operators are there as long as their torch library is held, by ``torch.ops.fastssd``. A second import of
    fastssd finds what was registered before, and takes it back.
    """
    namespace = vars(torch.ops.fastssd)
    if _HOLDER in namespace:
        _take_back(namespace.pop(_HOLDER))
    library = torch.library.Library("fastssd", "DEF")
    try:
        for operator in REGISTRY.values():
            _register(library, operator)
        _define(library, "_no_gradient(Tensor grad, Tensor like, str name) -> Tensor", "pt2_compliant_tag")
        library.impl("_no_gradient", _raise_no_gradient, "CompositeExplicitAutograd")
        _register_fake(library, "_no_gradient", lambda grad, like, name: torch.empty_like(like))
    except BaseException:
        _take_back(library)
        raise
    namespace[_HOLDER] = library


def _take_back(library: Any) -> None:
    if hasattr(library, "_destroy"):
        library._destroy()
    else:  # before torch 2.4 a library ends with the last reference to it, but what was called of it stays known
        for name in (*REGISTRY, "_no_gradient"):
            vars(torch.ops.fastssd).pop(name, None)


def _raise_no_gradient(grad: Tensor, like: Tensor, name: str) -> Tensor:
    raise gradients.no_gradient(name)


if hasattr(_pytree, "_register_namedtuple"):  # so that torch.export can save a graph that returns one
    for _kind in {operator.result for operator in REGISTRY.values()} - {None}:
        _pytree._register_namedtuple(_kind, serialized_type_name=f"fastssd.ops.{_kind.__name__}")
