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
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import update_wrapper
from typing import Any, TypeVar

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from fastssd import _checks as checks
from fastssd.backends import shortcuts
from fastssd.ops._dispatched import dispatched, wants_gradient
from fastssd.ops._out import mark_written, memory_of
from fastssd.ops._shapes import Sizes, Spec, specs

F = TypeVar("F", bound=Callable[..., Any])


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
        self._defaults = tuple(self.defaults.get(each, inspect.Parameter.empty) for each in self.options)
        self._fit: set[Any] = set()  # shapes and dtypes of arrays that fitted: checking them again takes microseconds
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
        if not options:
            return []
        found = [
            value if value is default else check(name, value)
            for name, check, default, value in zip(self.options, self._checks, self._defaults, options, strict=False)
        ]
        if "background_threshold" in self.options[: len(options)]:
            high, low = (found[self.options.index(name)] for name in ("iou_threshold", "background_threshold"))
            checks.check_order(low, high)
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
        only_numpy = False
        if not self.lists:
            kinds = _kinds(arrays)
            only_numpy = None not in kinds
            if kinds not in self._fit:
                arrays = self._fitting(arrays)
        found = self.core(*arrays, *options)
        if only_numpy or not any(map(checks.is_tensor, given)):
            return found
        to_tensor = sys.modules["torch"].from_numpy
        return to_tensor(found) if self.result is None else self.result(*map(to_tensor, found))

    def _fitting(self, arrays: Sequence[Any]) -> Sequence[NDArray[Any]]:
        """The arrays for NumPy, checked."""
        found = self.to_numpy(arrays)
        kinds = _kinds(found)
        if kinds not in self._fit:
            self.bind(found)
            if len(self._fit) >= _MOST_KEPT:
                self._fit.clear()
            self._fit.add(kinds)
        return found

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
        memory = memory_of(out, shape, checks.float_dtype(*given), any(map(checks.is_tensor, arrays)))
        apart = not any(np.may_share_memory(memory, array) for array in given)
        written = memory if apart else np.empty_like(memory)
        mark_written(out)
        self.core(*given, written)
        if not apart:
            memory[...] = written
        return out


_MOST_KEPT = 64

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
        inputs, outputs = ([*specs(part)] for part in shapes.split("->"))
        names = result._fields if result is not None else ("",)
        if tuple(spec.name for spec in outputs) != names:
            raise TypeError(f"{core.__name__}: the outputs of {shapes!r} are not the fields {names}")
        if missing := {spec.name for spec in inputs} - set(inspect.signature(core).parameters):
            raise TypeError(f"{core.__name__}: {shapes!r} names arrays that are not arguments: {', '.join(missing)}")
        own = name or core.__name__
        REGISTRY[own] = Operator(core, own, inputs, outputs, result, shortcut, lists, formula, gradient, vmap)
        return REGISTRY[own].function  # type: ignore[return-value]  # it has the core's signature

    return declare


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


def _kinds(arrays: Sequence[Any]) -> tuple[Any, ...]:
    """The shapes and dtypes of NumPy arrays, and None for everything else."""
    return tuple([(each.shape, each.dtype.char) if type(each) is ndarray else None for each in arrays])


def _tuple(names: Sequence[str]) -> str:
    return f"({''.join(f'{name}, ' for name in names)})"


def _flat(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(itertools.chain.from_iterable(each if isinstance(each, (list, tuple)) else (each,) for each in values))
