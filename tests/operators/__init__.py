"""Every operator as the tests know it. One file a family, with the family's name in every other folder too.

A family's file holds

``EXAMPLES``     for each operator :class:`~tests.operators._inputs.Examples`: samples, bad input, promises about torch
``cases(rng)``   the calls that must give the same result in every backend
``test_...``     what a person can check by hand

The table tests (``tests/test_*.py``, one a promise) read them here, and fail by name where an operator has none. A new
operator needs an entry in its family's ``EXAMPLES`` and a line in its ``cases``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from fastssd import backends, ops
from tests.operators._inputs import DTYPES, FORMS, Arguments, Bad, Boxes, Case, Examples

__all__ = ["DTYPES", "Arguments", "Bad", "Boxes", "Case", "Examples"]

OPERATORS: tuple[str, ...] = backends.OPERATORS
"""The names of all operators: the one line that says where they come from."""
FAMILIES = {
    path.stem: importlib.import_module(f"tests.operators.{path.stem}")
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py"))
}
EXAMPLES: dict[str, Examples] = {
    name: examples for family in FAMILIES.values() for name, examples in family.EXAMPLES.items()
}
PUBLIC = [name for name in OPERATORS if name in ops.__all__ and name in EXAMPLES]
"""Those with a public function. What has no examples is missing here, and fails in test_operators.py."""
SAMPLES = [(name, place) for name, examples in EXAMPLES.items() for place in range(len(examples.samples))]
"""Every sample, as (operator, place in its list): what the table tests are parametrised with."""
ULP = 4
"""How much backends may differ where an operator is ``rounded``."""


def is_array(value: Any) -> bool:
    """Whether this argument of a sample is an array, or a list of one array an image."""
    if isinstance(value, list):
        return bool(value) and all(map(is_array, value))
    return isinstance(value, np.ndarray)


def arrays_of(name: str) -> list[str]:
    """The arguments of an operator that are arrays."""
    return [argument for argument, value in EXAMPLES[name].samples[0].items() if is_array(value)]


def is_ragged(name: str, arguments: Arguments) -> bool:
    """Whether there is a list of arrays among these arguments."""
    return any(isinstance(arguments.get(argument), list) for argument in arrays_of(name))


def options_of(name: str) -> list[str]:
    """The arguments of a public operator that are no arrays; ``out`` is one."""
    parameters = inspect.signature(getattr(ops, name)).parameters
    return [argument for argument in parameters if argument != "out" and argument not in arrays_of(name)]


def convert(name: str, sample: Arguments, convert_one: Callable[[int, Any], Any]) -> Arguments:
    """`sample` with its arrays replaced by ``convert_one(place, array)``, in lists as well."""
    names = arrays_of(name)

    def each(place: int, value: Any) -> Any:
        if isinstance(value, list):
            return [each(place, item) for item in value]
        return convert_one(place, value) if isinstance(value, np.ndarray) else value

    return {key: each(names.index(key), value) if key in names else value for key, value in sample.items()}


def as_tensor(array: Any) -> Any:
    """A copy as a tensor."""
    import torch

    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))


def torch_operator(name: str) -> Any:
    """``torch.ops.fastssd.NAME``."""
    import torch

    import fastssd.detection  # noqa: F401  registers them, whichever of torch and fastssd was imported first

    return getattr(torch.ops.fastssd, name)


def torch_samples(name: str) -> list[Arguments]:
    """The samples as torch.ops.fastssd takes them: tensors. Its schemas have no lists of ground truth."""
    whole = [sample for sample in EXAMPLES[name].samples if not is_ragged(name, sample)]
    return [convert(name, EXAMPLES[name].registered(sample), lambda _, array: as_tensor(array)) for sample in whole]


def kernel_arguments(name: str, sample: Arguments, backend: str = "reference") -> list[Any]:
    """What the kernel of a backend gets for a call: inputs and options in its order, outputs last."""
    module, kernel = backends.load_backend(backend), getattr(backends.load_backend("reference"), name)
    signature, calls = inspect.signature(getattr(module, name)), []

    def recorded(*arguments: Any, **named: Any) -> Any:
        calls.append(list(signature.bind(*arguments, **named).arguments.values()))
        return kernel(*arguments, **named)

    with mock.patch.object(module, name, recorded), backends.use_backend(backend):
        if name in PUBLIC:
            getattr(ops, name)(**sample)
        else:
            torch_operator(name)(**convert(name, sample, lambda _, array: as_tensor(array)))
    return calls[-1]


def outputs(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def outcome(call: Callable[[], Any]) -> Any:
    """The outputs of a call as NumPy arrays, or the type of the error that it raises."""
    try:
        return tuple(each if isinstance(each, np.ndarray) else each.detach().numpy() for each in outputs(call()))
    except Exception as error:
        return type(error)


def all_cases(seed: int = 0) -> Iterator[Case]:
    """The cases of every family, with arrays drawn from `seed`; and the first samples in every form of memory."""
    for family in FAMILIES.values():
        yield from family.cases(np.random.default_rng(seed))
    for name in PUBLIC:
        yield from _forms(name, EXAMPLES[name].samples[0])


def _forms(name: str, sample: Arguments) -> Iterator[Case]:
    for dtype in ("float32", "float64") if arrays_of(name) else ():
        for form, make in FORMS.items():

            def changed(_: int, array: Any, dtype: str = dtype, make: Any = make) -> Any:
                return make(array.astype(dtype) if array.dtype.kind == "f" else array)

            yield Case(name, f"{form} {dtype}", (), convert(name, sample, changed))


def difference(operator: str, ref: Any, comp: Any) -> str | None:
    """How `comp` differs from `ref` beyond what the contract allows; None where it does not."""
    for place, (r, c) in enumerate(zip(outputs(ref), outputs(comp), strict=True)):
        r, c = np.asarray(r), np.asarray(c)
        if r.dtype != c.dtype or r.shape != c.shape:
            return f"output {place}: {r.dtype} {r.shape} became {c.dtype} {c.shape}"
        if EXAMPLES[operator].rounded and r.dtype.kind == "f" and r.size:
            finite = np.isfinite(r)
            largest = np.abs(r[finite]).max(initial=0)
            near = np.abs(r[finite].astype(np.float64) - c[finite]) <= ULP * np.finfo(r.dtype).eps * largest
            same = near.all() and np.array_equal(r[~finite], c[~finite], equal_nan=True)
        else:
            same = np.array_equal(r, c, equal_nan=r.dtype.kind == "f")
        # -0 is not 0. The sign of a NaN says nothing, nor does that of what is not 0 in both.
        signs_differ = np.zeros(r.shape, bool)
        if r.dtype.kind == "f":
            signs_differ = (r == 0) & (c == 0) & (np.signbit(r) != np.signbit(c))
        if not same or signs_differ.any():
            wrong = np.argwhere(~((r == c) | ((r != r) & (c != c))) | signs_differ)
            at = tuple(wrong[0]) if r.ndim else ()
            count = f"{len(wrong)} of {r.size} differ"
            return f"output {place}: {count}, first at {[int(i) for i in at]}: {r[at]!r} became {c[at]!r}"
    return None
