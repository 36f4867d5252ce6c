"""What every operator's face does: take arrays or tensors, check them once, and give back what the caller uses.

torch is never imported here: a tensor can only reach us if the caller has imported it.

A face has two ways. The short one is a single call, ``shortcuts.NAME(...)`` of :mod:`fastssd.backends`: where the
backend has one and the arguments are just what its kernels want, it gives the result in under a microsecond. Else it
gives None, and the face goes the long way through the helpers below, which convert, explain what is wrong and care for
gradients. Both give the same result; the long way alone is complete.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = Any  # a NumPy array, a torch tensor, or what numpy.asarray understands

_EXACT_IN_FLOAT32 = frozenset("?bBhHef")  # by dtype.char: bool, 8 and 16 bits, float32; dtype.name takes microseconds


_TRACED = ("_len_torch_dispatch_stack", "_are_functorch_transforms_active", "_get_tracing_state")  # of torch._C


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, getattr(torch, "Tensor", ()))


def compiling(torch: Any) -> bool:
    """Whether torch.compile traces this call. A torch that cannot say so cannot trace the operators either."""
    compiler = getattr(torch, "compiler", None)
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


def dispatch(name: str, *arguments: Any) -> Any:
    """The function called `name` of :mod:`fastssd.ops._traced`, which calls ``torch.ops.fastssd.*``."""
    from fastssd.ops import _traced

    return getattr(_traced, name)(*arguments)


def to_numpy(name: str, value: Array) -> NDArray[Any]:
    """A NumPy view of `value` (a copy where there is no other way); bfloat16 becomes float32.

    Raises:
        TypeError: not numeric, or nothing that NumPy can hold as one array.
    """
    if type(value) is np.ndarray:
        array = value
    elif is_tensor(value):
        tensor = value.detach().cpu().resolve_neg()
        array = (tensor.float() if tensor.dtype is sys.modules["torch"].bfloat16 else tensor).numpy()
    else:
        try:
            array = np.asarray(value)
        except (ValueError, TypeError) as error:
            raise TypeError(f"{name}: expected an array, got {type(value).__name__} ({error})") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    return array


def like(example: Array, result: NDArray[Any]) -> Any:
    """`result` as the kind of array that `example` is: a tensor on its device, or the NumPy array itself."""
    if type(example) is np.ndarray or not is_tensor(example):
        return result
    tensor = sys.modules["torch"].from_numpy(result)
    return tensor if example.device.type == "cpu" else tensor.to(example.device)


def float_dtype(*arrays: NDArray[Any]) -> np.dtype[Any]:
    """The dtype in which these arrays are computed together (docs/contract.md, Arrays)."""
    wide = any(array.dtype.char not in _EXACT_IN_FLOAT32 for array in arrays)
    return np.dtype(np.float64 if wide else np.float32)


def promote(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """The arrays in their common float dtype, C-contiguous; copies only what needs it."""
    dtype = float_dtype(*arrays)
    return tuple(np.ascontiguousarray(array, dtype) for array in arrays)


def check_shape(name: str, array: Array, shape: Sequence[int | str]) -> None:
    """Raise unless `array` has this shape. A letter fits any length; ``"..."`` in front fits leading dimensions."""
    fixed, dims = shape, array.shape
    if shape[0] == "...":
        fixed = shape[1:]
        dims = dims[-len(fixed) :]
    fits = len(dims) == len(fixed)
    for got, want in zip(dims, fixed, strict=False):
        fits = fits and (got == want or isinstance(want, str))
    if not fits:
        text = ", ".join(str(dim) for dim in shape)
        raise ValueError(f"{name}: expected shape [{text}], got {list(array.shape)}")


def check_length(name: str, array: NDArray[Any], other: str, length: int) -> None:
    """Raise unless the first dimension of `array` is `length`, the number of `other`."""
    if len(array) != length:
        raise ValueError(f"{name}: expected one entry for each of the {length} {other}, got {len(array)}")


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a float in [low, high].

    Raises:
        TypeError: not a number.
        ValueError: NaN or out of range.
    """
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None
    if not low <= result <= high:
        raise ValueError(f"{name}: expected a number in [{low:g}, {high:g}], got {value!r}")
    return result


def fraction(name: str, value: Any) -> float:
    """`value` as a float in [0, 1]."""
    return number(name, value, 0.0, 1.0)


def count(name: str, value: Any, low: int = 0) -> int:
    """`value` as an int of at least `low`."""
    try:
        result = value.__index__()
    except AttributeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if result < low:
        raise ValueError(f"{name}: expected an integer of at least {low}, got {result}")
    return int(result)


def choice(name: str, value: Any, options: dict[str, int]) -> int:
    """The code of the option called `value`."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, options))}, got {value!r}")
    return options[value]


def integers(name: str, array: NDArray[Any]) -> NDArray[np.int64]:
    """`array` as C-contiguous int64.

    Raises:
        TypeError: floats; a silent truncation would be a wrong answer.
    """
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name}: expected integers, got dtype {array.dtype}")
    return np.ascontiguousarray(array, np.int64)


def check_rows(name: str, bad: NDArray[np.bool_], rows: NDArray[Any], what: str) -> None:
    """Raise if any entry of `bad` is set, naming the first row that is."""
    if bad.any():
        index = np.unravel_index(int(bad.argmax()), bad.shape)
        place = ", ".join(str(int(i)) for i in index)
        raise ValueError(f"{name}[{place}] {what}: {rows[index].tolist()}")


def check_finite(name: str, rows: NDArray[Any]) -> None:
    """Raise if a number in the last dimension of `rows` is NaN or infinite, naming the row."""
    finite = np.isfinite(rows)
    if not finite.all():
        check_rows(name, ~finite.all(-1), rows, "is not finite")


def check_extent(name: str, boxes: NDArray[Any]) -> None:
    """Raise if a box has no positive width or height, naming it."""
    check_rows(
        name, ~((boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])), boxes, "has no positive extent"
    )


def check_variances(variances: Any) -> tuple[float, float]:
    """The coder's (center, size) variances, both positive and finite."""
    try:
        center, size = variances
    except (TypeError, ValueError):
        raise ValueError(f"variances: expected two numbers (center, size), got {variances!r}") from None
    tiny, huge = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    return number("variances[0]", center, tiny, huge), number("variances[1]", size, tiny, huge)


def wants_gradient(*arrays: Array) -> bool:
    """Whether a torch tensor among `arrays` asks for a gradient."""
    for array in arrays:
        if type(array) is not np.ndarray and is_tensor(array) and array.requires_grad:
            from fastssd.ops import _gradient

            return _gradient.wanted(*arrays)
    return False


def differentiable(kernel: Callable[..., Any], formula: str, arrays: Sequence[Array], *options: Any) -> Any:
    """``kernel(*arrays)``; where a gradient is wanted, with the derivative of a formula of `fastssd.ops._formulas`,
    which takes `arrays` and `options`.
    """
    if not wants_gradient(*arrays):
        return kernel(*arrays)
    from fastssd.ops import _formulas, _gradient

    function = getattr(_formulas, formula)
    return _gradient.differentiable(kernel, lambda *tensors: function(*tensors, *options), *arrays)


def with_gradient(value: Any, write: Callable[..., None], array: Array, *others: Array) -> Any:
    """`value`, whose derivative by `array` ``write(scale, out, array, *others)`` writes to `out`; once, not twice."""
    if not wants_gradient(array):
        return value
    from fastssd.ops import _gradient

    return _gradient.written(value, write, array, *others)


def without_gradient(name: str, result: Any, *arrays: Array) -> Any:
    """`result`; a backward pass through it raises instead of giving a silent None."""
    if not wants_gradient(*arrays):
        return result
    from fastssd.ops import _gradient

    return _gradient.refuse(name, result, *arrays)
