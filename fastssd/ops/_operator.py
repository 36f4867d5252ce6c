"""One declaration an operator: ``@operator`` on its NumPy core says what cannot be read from the signature.

``@operator("boxes: float[N, 4], scores: float[N] -> keep: int64[K]")`` gives the shapes and kinds of the arrays. All
else is in the core's own signature, docstring and result. From the two follow the conversions, the checks, the
choice between the ways below, and everything that torch knows of the operator (:mod:`fastssd.ops._torch`).

A call takes one of three ways, which give the same result:

1. the **dispatched** way, where torch traces, maps or differentiates the call as a function, or where a tensor is on
   another device: ``torch.ops.fastssd.NAME``;
2. the **short** way, where the backend has one: one call of compiled code. It declines with None what it does not take;
3. the **long** way: convert, check, call the core, and care for the gradient. It alone is complete.

Shapes: a letter is a length that is the same wherever it stands; ``B?`` may be missing, then everywhere; ``C+`` is at
least 1; ``...`` are leading dimensions, equal in all arrays; ``*`` are leading dimensions that broadcast. In an output
a word is the value of that option, and a letter that no input has is known only when the operator has run.

Kinds: ``float`` takes all real numbers, and what is computed together is promoted together; ``int`` takes integers;
``bool``; ``number`` is a scalar that takes no part in the promotion.
"""

from __future__ import annotations

import inspect
import itertools
import linecache
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import update_wrapper
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from fastssd import _checks as checks
from fastssd._checks import Array
from fastssd.backends import shortcuts

F = TypeVar("F", bound=Callable[..., Any])
Sizes = dict[str, Any]  # what the letters of a declaration stand for; None: a dimension that is not there


_EMPTY = inspect.Parameter.empty


class Spec(NamedTuple):
    """An array of a declaration: ``name: kind[dims]``."""

    name: str
    kind: str
    dims: tuple[str, ...]

    def bind(self, array: Any, sizes: Sizes) -> None:
        """Raise unless `array` has this shape and kind; remember the lengths in `sizes`."""
        shape, dims, before = tuple(array.shape), self.dims, dict(sizes)
        if dims and dims[0].endswith("?"):
            if dims[0] not in sizes:
                sizes[dims[0]] = None if len(shape) == len(dims) - 1 else shape[0] if shape else 0
            dims = dims[1:] if sizes[dims[0]] is None else dims
        elif dims and sizes.get(dims[0] + "?", 0) is None:
            raise ValueError(f"{self.name}: expected only where the other arguments have a dimension {dims[0]}")
        lead = dims[0] if dims and dims[0] in ("...", "*") else ""
        fixed = dims[1:] if lead else dims
        start = len(shape) - len(fixed)
        if start < 0 or (start and not lead):
            raise self._misfit(shape, dims, before)
        for length, dim in zip(shape[start:], fixed, strict=True):
            letter = dim.rstrip("+")
            known = int(dim) if dim.isdecimal() else sizes.get(letter, sizes.get(letter + "?"))
            if known is None:
                sizes[letter] = length
                fits = not dim.endswith("+") or length >= 1
            else:
                fits = _same(length, known)
            if not fits:
                raise self._misfit(shape, dims, before)
        if lead:
            self._bind_lead(lead, shape, start, sizes)
        self._check_kind(array, shape)

    def _bind_lead(self, lead: str, shape: tuple[Any, ...], start: int, sizes: Sizes) -> None:
        given, known = shape[:start], sizes.get(lead)
        if known is None:
            sizes[lead] = given
        elif lead == "*":
            sizes[lead] = self._broadcast(given, known)
        elif len(given) != len(known) or not all(map(_same, given, known)):
            raise ValueError(f"{self.name}: expected leading dimensions {list(known)}, got shape {list(shape)}")

    def _broadcast(self, given: tuple[Any, ...], known: tuple[Any, ...]) -> tuple[Any, ...]:
        if all(isinstance(length, int) for length in (*given, *known)):
            try:
                return np.broadcast_shapes(given, known)
            except ValueError:
                raise ValueError(
                    f"{self.name}: leading dimensions {list(given)} do not broadcast with {list(known)}"
                ) from None
        return tuple(sys.modules["torch"].broadcast_shapes(given, known))  # of symbolic lengths

    def _misfit(self, shape: tuple[Any, ...], dims: tuple[str, ...], sizes: Sizes) -> ValueError:
        expected = ", ".join(str(sizes.get(dim, sizes.get(dim + "?", dim))) for dim in dims)
        if any(dim.endswith("+") for dim in dims):
            expected = expected.replace("+", " >= 1")
        return ValueError(f"{self.name}: expected shape [{expected}], got {list(shape)}")

    def _check_kind(self, array: Any, shape: tuple[Any, ...]) -> None:
        kind = array.dtype.kind if isinstance(array, ndarray) else _torch_kind(array)
        if self.kind == "bool" and kind != "b":
            raise TypeError(f"{self.name}: expected bool, got dtype {array.dtype}")
        if self.kind == "int" and kind not in "iu" and not any(_is_zero(length) for length in shape):
            raise TypeError(f"{self.name}: expected integers, got dtype {array.dtype}")


def _is_zero(length: Any) -> bool:
    return isinstance(length, int) and length == 0


def _torch_kind(tensor: Any) -> str:
    if tensor.is_floating_point() or tensor.is_complex():
        return "f"
    return "b" if tensor.dtype is sys.modules["torch"].bool else "i"


def _same(length: Any, other: Any) -> bool:
    same = length == other
    if isinstance(same, bool):
        return same
    sys.modules["torch"]._check(same)  # a length that is known when the graph runs: it is compared then
    return True


class Operator:
    """An operator of :data:`REGISTRY`."""

    def __init__(
        self,
        core: Callable[..., Any],
        inputs: Sequence[Spec],
        outputs: Sequence[Spec],
        result: Any,
        name: str,
        options: Mapping[str, Any],
    ) -> None:
        self.name = name
        self.core = core
        self.function: Callable[..., Any] = core
        signature = inspect.signature(core).parameters
        self.parameters = tuple(signature)
        self.annotations: dict[str, str] = {each: str(signature[each].annotation) for each in signature}
        self.defaults = {each: signature[each].default for each in signature if signature[each].default is not _EMPTY}
        self.arrays = tuple(inputs)
        self.outputs = tuple(outputs)
        self.result: Any = result
        """The named tuple of several outputs, or None."""
        specified = {spec.name for spec in self.arrays}
        self.array_names = tuple(name for name in self.parameters if name in specified)
        self.option_names = tuple(name for name in self.parameters if name != "out" and name not in specified)
        self.has_out = "out" in self.parameters
        self.shortcut: bool = options["shortcut"]
        self.lists: bool = options["lists"]
        self.formula: bool = options["formula"]
        self.gradient: str | None = options["gradient"]
        self.vmap: str | None = options["vmap"]

    def bind(self, arrays: Mapping[str, Any]) -> Sizes:
        """The lengths in `arrays`, which are checked against the declaration.

        Raises:
            TypeError, ValueError: naming the array that does not fit.
        """
        sizes: Sizes = {}
        for spec in self.arrays:
            if arrays.get(spec.name) is not None:
                spec.bind(arrays[spec.name], sizes)
        return sizes

    def output_shape(self, spec: Spec, sizes: Sizes) -> tuple[Any, ...]:
        """The shape of an output; `sizes` has all of its letters and words."""
        shape: list[Any] = []
        for dim in spec.dims:
            if dim in ("...", "*"):
                shape.extend(sizes[dim])
            elif dim.isdecimal():
                shape.append(int(dim))
            elif sizes.get(dim) is not None or not dim.endswith("?"):
                shape.append(sizes[dim])
        return tuple(shape)

    def split(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(arrays, options) by name."""
        return (
            {name: arguments[name] for name in self.array_names},
            {name: arguments[name] for name in self.option_names},
        )

    # --- the dispatched way ------------------------------------------------------------------------------------------

    def dispatch(self, *values: Any) -> Any:
        from fastssd.ops import _torch  # the only door to torch

        return _torch.call(self, dict(zip(self.parameters, values, strict=True)))

    # --- the long way ------------------------------------------------------------------------------------------------

    def compute(self, *values: Any) -> Any:
        arguments = dict(zip(self.parameters, values, strict=True))
        arrays, options = self.split(arguments)
        given = [*_flat(arrays.values())] if self.lists else [*arrays.values()]
        if self.lists and dispatched(*given):
            return self.dispatch(*values)
        if arguments.get("out") is not None:
            return self._write(arguments["out"], values, arrays)
        options = checks.check_options(self.name, options)
        if self.gradient is not None and wants_gradient(*given):
            from fastssd.ops import _torch

            return _torch.differentiable(self, arrays, options)
        found = self.run(arrays, options, given)
        return found if self.gradient is not None else self._refuse_gradient(found, given)

    def run(self, arrays: Mapping[str, Any], options: Mapping[str, Any], given: Sequence[Any]) -> Any:
        """The core on `arrays`; tensors where one of `given` is one."""
        if not self.lists:
            arrays = self.to_numpy(arrays)
            self.bind(arrays)
        found = self.core(**arrays, **options)
        if self.result is None:
            return checks.like(found, *given)
        return self.result(*(checks.like(array, *given) for array in found))

    def to_numpy(self, arrays: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        return {
            name: (checks.to_boxes if name in checks.BOXES else checks.to_numpy)(name, value)
            for name, value in arrays.items()
        }

    def _refuse_gradient(self, found: Any, given: Sequence[Any]) -> Any:
        """`found`; a backward pass through its floats raises instead of giving a silent None."""
        if not wants_gradient(*given):
            return found
        from fastssd.ops import _torch

        if self.result is None:
            return found if self.outputs[0].kind != "float" else _torch.refuse(self.name, found, given)
        pairs = zip(self.outputs, found, strict=True)
        return self.result(
            *(_torch.refuse(self.name, each, given) if spec.kind == "float" else each for spec, each in pairs)
        )

    def _write(self, out: Any, values: Sequence[Any], arrays: Mapping[str, Any]) -> Any:
        """The result in `out`."""
        if type(out) is not ndarray:  # for which the short way was tried
            try:
                if getattr(shortcuts, self.name)(*values) is not None:
                    mark_written(out)
                    return out
            except BaseException:  # Ctrl-C: part of it may be written
                mark_written(out)
                raise
        if wants_gradient(*arrays.values()):
            raise ValueError("out: cannot be given where a gradient is wanted")
        given = self.to_numpy(arrays)
        shape = self.output_shape(self.outputs[0], self.bind(given))
        tensor = any(map(checks.is_tensor, arrays.values()))
        memory = _memory(out, shape, checks.float_dtype(*given.values()), tensor)
        apart = not any(np.may_share_memory(memory, array) for array in given.values())
        written = memory if apart else np.empty_like(memory)
        mark_written(out)
        self.core(**given, out=written)
        if not apart:
            memory[...] = written
        return out


REGISTRY: dict[str, Operator] = {}
"""Every operator by its name."""


def operator(
    shapes: str,
    *,
    result: Any = None,
    shortcut: bool = False,
    lists: bool = False,
    formula: bool = False,
    gradient: str | None = None,
    vmap: str | None = "refuse",
    name: str | None = None,
) -> Callable[[F], F]:
    """Declare the operator whose NumPy core is decorated, and make the function that users call.

    Args:
        shapes: ``"name: kind[dims], ... -> name: kind[dims], ..."``, the arrays among the arguments and the outputs.
        result: the named tuple that the core returns; None where it returns one array.
        shortcut: whether a backend may have a short way. It gets all arguments in the order of the signature.
        lists: arguments may be lists of arrays, one an image. The core gets the arguments as they came.
        formula: whether :mod:`fastssd.ops._torch.formulas` has a function of this name, which gets the arrays,
            promoted, and the options. It runs on other devices than the CPU; else the arrays go to the CPU and back.
        gradient: ``"formula"``: the derivative of the formula; ``"kernel"``: by the first array, what the operator
            ``NAME_gradient`` returns; None: a backward pass through a float output raises.
        vmap: the rule in :mod:`fastssd.ops._torch.vmap`; ``"refuse"`` where the lengths of the outputs differ from
            example to example; None where nothing can be mapped over.
        name: the operator's, where the function has another.
    """

    def declare(core: F) -> F:
        inputs, outputs = ([*_specs(part)] for part in shapes.split("->"))
        names = result._fields if result is not None else ("",)
        if tuple(spec.name for spec in outputs) != names:
            raise TypeError(f"{core.__name__}: the outputs of {shapes!r} are not the fields {names}")
        options = {"shortcut": shortcut, "lists": lists, "formula": formula, "gradient": gradient, "vmap": vmap}
        declared = Operator(core, inputs, outputs, result, name or core.__name__, options)
        if missing := {spec.name for spec in inputs} - set(declared.parameters):
            raise TypeError(f"{core.__name__}: {shapes!r} names what is no argument: {', '.join(missing)}")
        declared.function = _function(declared)
        REGISTRY[declared.name] = declared
        return declared.function  # type: ignore[return-value]  # it has the core's signature

    return declare


def _specs(text: str) -> Iterable[Spec]:
    for name, kind, dims in re.findall(r"(?:(\w+): )?(\w+)\[(.*?)\]", text):
        yield Spec(name, kind, tuple(dim.strip() for dim in dims.split(",") if dim))


def _function(declared: Operator) -> Callable[..., Any]:
    """The function that users call, with the signature of the core.

    Its few lines are written out for each operator, as ``dataclasses`` does: a wrapper that takes ``*arguments,
    **options`` costs a short call a fifth of its time, and torch.compile traces what is written out as it is.
    """
    name, arrays = declared.name, declared.array_names
    parameters, star = [], False
    for parameter in inspect.signature(declared.core).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parameters.append("*")
            star = True
        default = "" if parameter.default is parameter.empty else f"=defaults[{parameter.name!r}]"
        parameters.append(parameter.name + default)
    everything = ", ".join(declared.parameters)
    # Of lists only the first argument is looked at before the short way: the others may be long.
    looked = arrays[:1] if declared.lists else arrays
    plain = " is ".join([f"type({each})" for each in looked] + ["ndarray"])
    lines = [f"def {name}({', '.join(parameters)}):"]
    if looked:
        lines += [
            f"    if not ({plain}) and dispatched({', '.join(looked)}):",
            f"        return dispatch({everything})",
        ]
    if declared.shortcut:
        guard = "(out is None or type(out) is ndarray) and " if declared.has_out else ""
        lines += [
            f"    if {guard}(found := shortcuts.{name}({everything})) is not None:",
            f"        return {'found' if declared.result is None else 'result(*found)'}",
        ]
    lines.append(f"    return compute({everything})")
    scope = "dispatched, dispatch, shortcuts, compute, ndarray, result, defaults"
    source = f"def make({scope}):\n" + "".join(f"    {line}\n" for line in [*lines, f"return {name}"])
    file = f"<fastssd operator {name}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file  # for tracebacks
    made: dict[str, Any] = {}
    exec(compile(source, file, "exec"), declared.core.__globals__, made)
    signature = inspect.signature(declared.core)
    defaults = {each.name: each.default for each in signature.parameters.values()}
    function = made["make"](
        dispatched, declared.dispatch, shortcuts, declared.compute, ndarray, declared.result, defaults
    )
    return update_wrapper(function, declared.core)


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    return itertools.chain.from_iterable(each if isinstance(each, list | tuple) else (each,) for each in values)


# --- what torch does with a call ------------------------------------------------------------------------------------

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


# --- out= ------------------------------------------------------------------------------------------------------------


def _memory(out: Array, shape: tuple[int, ...], dtype: np.dtype[Any], tensor: bool) -> NDArray[Any]:
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
