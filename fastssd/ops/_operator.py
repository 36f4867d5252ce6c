"""One declaration for each operator: ``@operator`` on its NumPy core says what cannot be read from the signature.

``@operator("boxes: float[N, 4], scores: float[N] -> int64[K]")`` gives the shapes and kinds of the arrays. The names,
options, defaults and the docstring are those of the core. From both follow the conversions, the checks, the choice
between the ways below, and everything that torch knows about the operator (:mod:`fastssd.ops._torch`).

A call goes one of three ways, with the same result:

1. the **dispatched** way, ``torch.ops.fastssd.NAME``, if torch traces, maps or differentiates the call as a function,
   or if a tensor is on another device;
2. the **short** way, if the backend has one: a single call of compiled code, which returns None for arguments that it
   does not take;
3. the **long** way: convert, check, call the core, attach the gradient. It takes everything.

Shapes: a letter is a length, the same in all arrays; ``B?`` is a dimension that all arrays have or none; ``C+`` is at
least 1; ``...`` are leading dimensions, equal in all arrays; ``*`` are leading dimensions that broadcast. In an output
a word is the value of that option, and a letter that no input has is known only after the operator has run.

Kinds: ``float`` takes all real numbers, and all ``float`` arrays of a call are promoted together; ``int`` takes
integers; ``bool`` takes booleans; ``number`` is a scalar that takes no part in the promotion.
"""

from __future__ import annotations

import inspect
import itertools
import linecache
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import update_wrapper
from typing import Any, TypeVar

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from fastssd import _checks as checks
from fastssd._checks import Array
from fastssd.backends import shortcuts

F = TypeVar("F", bound=Callable[..., Any])
Sizes = dict[str, Any]  # the lengths that the letters of a declaration stand for; None for a missing ``B?``


class Spec:
    """An array of a declaration: ``name: kind[dims]``."""

    def __init__(self, name: str, kind: str, dims: Sequence[str]) -> None:
        self.name = name
        self.kind = kind
        self.dims = tuple(int(dim) if dim.isdecimal() else dim for dim in dims)
        first = dims[0] if dims else ""
        self._lead = first if first in ("...", "*") else None
        self._optional = first if first.endswith("?") else None
        self._fixed = self.dims[1:] if self._lead else self.dims

    def bind(self, array: Any, sizes: Sizes) -> None:
        """Raise unless `array` has this shape and kind; remember the lengths in `sizes`."""
        shape, dims = array.shape, self._fixed
        if self._optional is not None:
            if self._optional not in sizes:
                missing = len(shape) == len(dims) - 1
                sizes[self._optional] = None if missing else shape[0] if shape else 0
            dims = dims[1:] if sizes[self._optional] is None else dims
        start = len(shape) - len(dims)
        fits = start == 0 or (start > 0 and self._lead is not None)
        if fits:
            for length, dim in zip(shape[start:] if start else shape, dims, strict=True):
                if type(dim) is int:
                    fits = length == dim and fits
                else:
                    fits = self._bind_letter(str(dim), length, sizes) and fits
        if not fits:
            raise self._misfit(shape, dims, sizes)
        if self._lead is not None:
            self._bind_lead(self._lead, shape, start, sizes)
        if self.kind in ("int", "bool"):
            self._check_kind(array, shape)

    def _bind_letter(self, dim: str, length: Any, sizes: Sizes) -> bool:
        if dim.endswith("+"):
            dim = dim[:-1]
            if dim not in sizes and not length >= 1:
                return False
        if dim in sizes:
            return _same(length, sizes[dim])
        if dim + "?" in sizes:
            known = sizes[dim + "?"]
            if known is None:
                raise ValueError(f"{self.name}: expected only where the other arguments have a dimension {dim}")
            return _same(length, known)
        sizes[dim] = length
        return True

    def _bind_lead(self, lead: str, shape: Any, start: int, sizes: Sizes) -> None:
        given, known = tuple(shape[:start]), sizes.get(lead)
        if known is None or given == known:
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

    def _misfit(self, shape: Any, dims: Sequence[Any], sizes: Sizes) -> ValueError:
        lead = [] if self._lead is None else [self._lead]
        expected = ", ".join(str(dim).replace("+", " >= 1") for dim in (*lead, *dims))
        known = ", ".join(f"{dim} = {sizes[dim]}" for dim in dims if sizes.get(dim) is not None)
        return ValueError(
            f"{self.name}: expected shape [{expected}]{f' with {known}' if known else ''}, got {list(shape)}"
        )

    def _check_kind(self, array: Any, shape: Any) -> None:
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
    """An operator of :data:`REGISTRY`. Its arguments come as arrays and options, each in the order of the signature."""

    def __init__(
        self,
        core: Callable[..., Any],
        name: str,
        inputs: Sequence[Spec],
        outputs: Sequence[Spec],
        result: Any,
        shortcut: bool,
        lists: bool,
        formula: bool,
        gradient: str | None,
        vmap: str | None,
    ) -> None:
        self.name = name
        self.inputs = tuple(inputs)
        """In the order in which they are checked."""
        self.outputs = tuple(outputs)
        self.result = result
        """The named tuple of several outputs, or None."""
        self.shortcut, self.lists = shortcut, lists
        self.formula, self.gradient, self.vmap = formula, gradient, vmap

        self.signature = inspect.signature(core)
        parameters = self.signature.parameters
        kinds = {spec.name: spec.kind for spec in inputs}
        self.arrays = tuple(name for name in parameters if name in kinds)
        self.kinds = tuple(kinds[name] for name in self.arrays)
        self.options = tuple(name for name in parameters if name not in kinds and name != "out")
        self.has_out = "out" in parameters
        self._places = tuple((spec, self.arrays.index(spec.name)) for spec in inputs)
        self.annotations = {name: str(parameters[name].annotation) for name in parameters}
        self.defaults = {
            name: each.default for name, each in parameters.items() if each.default is not inspect.Parameter.empty
        }
        self._to_numpy = tuple(checks.to_boxes if each in checks.BOXES else checks.to_numpy for each in self.arrays)
        self._checks = tuple(checks.option_check(name, each) for each in self.options)
        self.core, self.function = _functions(self, core)

    def bind(self, arrays: Sequence[Any]) -> Sizes:
        """The lengths in `arrays`, which are checked against the declaration.

        Raises:
            TypeError, ValueError: naming the array that does not fit.
        """
        sizes: Sizes = {}
        for spec, place in self._places:
            if arrays[place] is not None:
                spec.bind(arrays[place], sizes)
        return sizes

    def output_shape(self, spec: Spec, sizes: Sizes) -> tuple[Any, ...]:
        """The shape of an output; `sizes` has all of its letters and words."""
        shape: list[Any] = []
        for dim in spec.dims:
            if dim in ("...", "*"):
                shape.extend(sizes[dim])
            elif isinstance(dim, int):
                shape.append(dim)
            elif sizes[dim] is not None:
                shape.append(sizes[dim])
        return tuple(shape)

    def checked(self, options: Sequence[Any]) -> list[Any]:
        """The options, checked, each as a plain number, string or tuple. Trailing ones may be left out."""
        names = self.options[: len(options)]
        found = [check(name, value) for name, check, value in zip(names, self._checks, options, strict=False)]
        if "background_threshold" in names:
            checks.check_order(found[names.index("background_threshold")], found[names.index("iou_threshold")])
        return found

    def complete(self, values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """(arrays, options) from one list of both. Arguments that are left out at its end get their defaults."""
        names = (*self.arrays, *self.options)
        everything = [*values, *(self.defaults[name] for name in names[len(values) :])]
        return everything[: len(self.arrays)], everything[len(self.arrays) :]

    # --- the dispatched way ------------------------------------------------------------------------------------------

    def dispatch(self, arrays: tuple[Any, ...], options: tuple[Any, ...], out: Any = None) -> Any:
        from fastssd.ops import _torch  # the only door to torch

        return _torch.call(self, arrays, options, out)

    # --- the long way ------------------------------------------------------------------------------------------------

    def compute(self, arrays: tuple[Any, ...], options: tuple[Any, ...], out: Any = None) -> Any:
        given = _flat(arrays) if self.lists else arrays
        if self.lists and dispatched(*given):
            return self.dispatch(arrays, options)
        if out is not None:
            return self._write(arrays, out)
        checked = self.checked(options)
        if not wants_gradient(*given):
            return self.run(arrays, checked, given)
        from fastssd.ops import _torch

        if self.gradient is not None:
            return _torch.differentiable(self, arrays, checked)
        found = self.run(arrays, checked, given)
        if self.result is None:
            return found if self.outputs[0].kind != "float" else _torch.refuse(self.name, found, given)
        pairs = zip(self.outputs, found, strict=True)
        return self.result(
            *(_torch.refuse(self.name, each, given) if spec.kind == "float" else each for spec, each in pairs)
        )

    def run(self, arrays: Sequence[Any], options: Sequence[Any], given: Sequence[Any]) -> Any:
        """The core on `arrays`; tensors where one of `given` is one."""
        if not self.lists:
            arrays = self.to_numpy(arrays)
            self.bind(arrays)
        found = self.core(*arrays, *options)
        if not any(map(checks.is_tensor, given)):
            return found
        to_tensor = sys.modules["torch"].from_numpy
        return to_tensor(found) if self.result is None else self.result(*map(to_tensor, found))

    def to_numpy(self, arrays: Sequence[Any]) -> list[NDArray[Any]]:
        return [convert(name, array) for convert, name, array in zip(self._to_numpy, self.arrays, arrays, strict=True)]

    def _write(self, arrays: Sequence[Any], out: Any) -> Any:
        """The result in `out`."""
        if type(out) is not ndarray:  # for an array the short way was tried already
            try:
                if getattr(shortcuts, self.name)(*arrays, out) is not None:
                    mark_written(out)
                    return out
            except BaseException:  # Ctrl-C: part of it may be written
                mark_written(out)
                raise
        if wants_gradient(*arrays):
            raise ValueError("out: cannot be given where a gradient is wanted")
        given = self.to_numpy(arrays)
        shape = self.output_shape(self.outputs[0], self.bind(given))
        memory = _memory(out, shape, checks.float_dtype(*given), any(map(checks.is_tensor, arrays)))
        apart = not any(np.may_share_memory(memory, array) for array in given)
        written = memory if apart else np.empty_like(memory)
        mark_written(out)
        self.core(*given, written)
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
        lists: arguments may be lists with one array for each image. The core gets the arguments as they came.
        formula: whether :mod:`fastssd.ops._torch.formulas` has a function of this name, which gets the arrays,
            promoted, and the options. It runs on other devices than the CPU; else the arrays go to the CPU and back.
        gradient: ``"formula"``: the derivative of the formula; ``"kernel"``: by the first array, what the operator
            ``NAME_gradient`` returns; None: a backward pass through a float output raises.
        vmap: the rule in :mod:`fastssd.ops._torch.vmap`; ``"refuse"`` where the lengths of the outputs differ from
            example to example; None where nothing can be mapped over.
        name: the name of the operator, if it is not that of the function.
    """

    def declare(core: F) -> F:
        inputs, outputs = ([*_specs(part)] for part in shapes.split("->"))
        names = result._fields if result is not None else ("",)
        if tuple(spec.name for spec in outputs) != names:
            raise TypeError(f"{core.__name__}: the outputs of {shapes!r} are not the fields {names}")
        if missing := {spec.name for spec in inputs} - set(inspect.signature(core).parameters):
            raise TypeError(f"{core.__name__}: {shapes!r} names arrays that are not arguments: {', '.join(missing)}")
        own = name or core.__name__
        REGISTRY[own] = Operator(core, own, inputs, outputs, result, shortcut, lists, formula, gradient, vmap)
        return REGISTRY[own].function  # type: ignore[return-value]  # it has the core's signature

    return declare


def _specs(text: str) -> Iterable[Spec]:
    for name, kind, dims in re.findall(r"(?:(\w+): )?(\w+)\[(.*?)\]", text):
        yield Spec(name, kind, [dim.strip() for dim in dims.split(",") if dim])


def _functions(declared: Operator, core: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(the core with its arguments in one row: arrays, options, out; the function that users call).

    The few lines of both are written out for each operator, as ``dataclasses`` does: a wrapper that takes
    ``*arguments, **options`` costs a short call a fifth of its time, and torch.compile traces what is written out as
    it is.
    """
    name, parameters, out = declared.name, declared.signature.parameters, ["out"] * declared.has_out
    row = [*declared.arrays, *declared.options, *out]
    given = ", ".join(f"{each}={each}" if parameters[each].kind is _KEYWORD else each for each in row)
    signature: list[str] = []
    for parameter in parameters.values():
        if parameter.kind is _KEYWORD and "*" not in signature:
            signature.append("*")
        signature.append(
            parameter.name + (f"=defaults[{parameter.name!r}]" if parameter.name in declared.defaults else "")
        )
    apart = ", ".join([_tuple(declared.arrays), _tuple(declared.options), *out])
    # Of lists only the first argument is looked at before the short way: the others may be long.
    looked = declared.arrays[:1] if declared.lists else declared.arrays
    plain = " is ".join([*(f"type({each})" for each in looked), "ndarray"])
    lines = [
        f"def in_a_row({', '.join(row)}{'=None' if out else ''}):",
        f"    return core({given})",
        f"def {name}({', '.join(signature)}):",
    ]
    if looked:
        lines.append(f"    if not ({plain}) and dispatched({', '.join(looked)}):")
        lines.append(f"        return dispatch({apart})")
    if declared.shortcut:
        guard = "(out is None or type(out) is ndarray) and " if declared.has_out else ""
        lines.append(f"    if {guard}(found := shortcuts.{name}({', '.join(parameters)})) is not None:")
        lines.append(f"        return {'found' if declared.result is None else 'result(*found)'}")
    lines.append(f"    return compute({apart})")
    lines.append(f"return in_a_row, {name}")
    scope = "core, dispatched, dispatch, shortcuts, compute, ndarray, result, defaults"
    source = f"def make({scope}):\n" + "".join(f"    {line}\n" for line in lines)
    file = f"<fastssd operator {name}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file  # for tracebacks
    made: dict[str, Any] = {}
    exec(compile(source, file, "exec"), core.__globals__, made)
    ways = dispatched, declared.dispatch, shortcuts, declared.compute
    in_a_row, function = made["make"](core, *ways, ndarray, declared.result, declared.defaults)
    return in_a_row, update_wrapper(function, core)


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _tuple(names: Sequence[str]) -> str:
    return f"({''.join(f'{name}, ' for name in names)})"


def _flat(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(itertools.chain.from_iterable(each if isinstance(each, list | tuple) else (each,) for each in values))


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
