"""What every operator's face does: take arrays or tensors, check them once, and give back what the caller uses.

torch is never imported here: a tensor can only reach us if the caller has imported it.

A face has two ways. The short one is a single call, ``shortcuts.NAME(...)`` of :mod:`fastssd.backends`: where the
backend has one and the arguments are just what its kernels want, it gives the result in under a microsecond. Else it
gives None, and the face goes the long way through the helpers below, which convert, explain what is wrong and care for
gradients. Both give the same result; the long way alone is complete.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Array = Any  # a NumPy array, a torch tensor, or what numpy.asarray understands

_INT64_MAX = 2**63 - 1
_EXACT_IN_FLOAT32 = frozenset("?bBhHef")  # by dtype.char: bool, 8 and 16 bits, float32; dtype.name takes microseconds


_TRACED = ("_len_torch_dispatch_stack", "_are_functorch_transforms_active", "_get_tracing_state")  # of torch._C


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, getattr(torch, "Tensor", ()))


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


def dispatch(function: str, *arguments: Any, **options: Any) -> Any:
    """`function` of :mod:`fastssd.ops._traced`, which calls ``torch.ops.fastssd.*``."""
    from fastssd.ops import _traced

    return getattr(_traced, function)(*arguments, **options)


def to_numpy(name: str, value: Array) -> NDArray[Any]:
    """A NumPy view of `value` (a copy where there is no other way); bfloat16 and smaller floats become float32.

    Raises:
        TypeError: not numeric, or nothing that NumPy can hold as one array.
    """
    if type(value) is np.ndarray:
        array = value
    elif is_tensor(value):
        try:
            tensor = value.detach().cpu().resolve_neg()
            small = tensor.is_floating_point() and tensor.element_size() <= 2
            array = (tensor.float() if small and tensor.dtype is not sys.modules["torch"].float16 else tensor).numpy()
        except (TypeError, RuntimeError) as error:
            raise TypeError(
                f"{name}: expected a dense tensor of real numbers, got {value.dtype}, {value.layout} ({error})"
            ) from None
    else:
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, RuntimeError) as error:  # the last of tensors in a list
            raise TypeError(f"{name}: expected an array, got {type(value).__name__} ({error})") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    return array


BOXES = frozenset(("boxes", "boxes1", "boxes2", "anchors", "gt_boxes", "deltas"))
"""Arguments that are rows of four: an empty one of one dimension, as ``torch.tensor([])`` is, has no rows."""


def to_boxes(name: str, value: Array) -> NDArray[Any]:
    """:func:`to_numpy`, and [0, 4] where there is nothing."""
    array = to_numpy(name, value)
    return array if array.shape != (0,) else array.reshape(0, 4)


def to_tensor(name: str, value: Array) -> Any:
    """`value` as a torch tensor: a tensor is itself, anything else is copied, with NumPy's dtype.

    What was no tensor before has no version either, by which torch would see that it was written to.
    """
    torch = sys.modules["torch"]
    if not isinstance(value, torch.Tensor):
        array = to_numpy(name, value)
        wide = array.dtype.kind == "f" and array.dtype.itemsize > 8  # torch has no such floats
        # A copy: a view of one row can be contiguous with a negative stride, which torch refuses.
        value = torch.from_numpy(np.array(array, np.float64 if wide else array.dtype.newbyteorder("="), order="C"))
    return value.reshape(0, 4) if name in BOXES and value.ndim == 1 and value.shape[0] == 0 else value


def like(result: NDArray[Any], *examples: Array) -> Any:
    """`result` as a tensor where one of `examples` is one, else as it is. Those on other devices never come here."""
    for example in examples:
        if type(example) is not np.ndarray and is_tensor(example):
            return sys.modules["torch"].from_numpy(result)
    return result


def float_dtype(*arrays: NDArray[Any]) -> np.dtype[Any]:
    """The dtype in which these arrays are computed together (docs/contract.md, Arrays)."""
    wide = any(array.dtype.char not in _EXACT_IN_FLOAT32 for array in arrays)
    return np.dtype(np.float64 if wide else np.float32)


def plain(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """`array` as kernels take it: of `dtype`, C-contiguous and aligned; copied only if it has to be."""
    flat = np.ascontiguousarray(array, dtype)
    return flat if flat.flags.aligned else flat.copy()


def promote(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """The arrays in their common float dtype, C-contiguous and aligned; copies only what needs it."""
    dtype = float_dtype(*arrays)
    return tuple(plain(array, dtype) for array in arrays)


def empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An uninitialised array.

    Raises:
        MemoryError: also where NumPy says that so many bytes cannot be counted.
    """
    try:
        return np.empty(shape, dtype)
    except ValueError:
        raise MemoryError(f"cannot allocate an array of shape {list(shape)}") from None


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


def check_length(name: str, array: Array, other: str, length: int) -> None:
    """Raise unless the first dimension of `array` is `length`, the number of `other`."""
    if array.shape[0] != length:
        raise ValueError(f"{name}: expected one entry for each of the {length} {other}, got {array.shape[0]}")


def symbolic(value: Any) -> bool:
    """Whether `value` is a number that torch will know when the graph runs; it is checked then."""
    return type(value).__name__ in ("SymInt", "SymFloat")


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a float in [low, high].

    Raises:
        TypeError: not a number; a bool, text and an array with dimensions are none.
        ValueError: NaN or out of range.
    """
    result = value if type(value) is float else _float(name, value)
    if not symbolic(result) and not low <= result <= high:
        raise ValueError(f"{name}: expected a number in [{low:g}, {high:g}], got {value!r}")
    return result


def _float(name: str, value: Any) -> float:
    if symbolic(value):
        return cast(float, value)
    scalar = value
    if hasattr(value, "dtype"):  # a NumPy scalar, an array or a tensor
        scalar = to_numpy(name, value)
        scalar = scalar.item() if scalar.ndim == 0 else None
    if isinstance(scalar, bool) or not (hasattr(scalar, "__float__") or hasattr(scalar, "__index__")):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        return float(scalar)
    except OverflowError:
        raise ValueError(f"{name}: expected a number that a float can hold, got {value!r}") from None
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None


def fraction(name: str, value: Any) -> float:
    """`value` as a float in [0, 1]."""
    return number(name, value, 0.0, 1.0)


def count(name: str, value: Any, low: int = 0) -> int:
    """`value` as an int of at least `low` that an int64 can hold.

    Raises:
        TypeError: not an integer; a bool and an array with dimensions are none.
        ValueError: out of range.
    """
    if symbolic(value):
        return cast(int, value)
    try:
        result = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        result = None
    if result is None or isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if getattr(value, "ndim", 0):
        raise TypeError(f"{name}: expected an integer, got an array of shape {list(value.shape)}")
    if not low <= result <= _INT64_MAX:
        raise ValueError(f"{name}: expected an integer in [{low}, {_INT64_MAX}], got {result}")
    return result


def choice(name: str, value: Any, options: dict[str, int]) -> int:
    """The code of the option called `value`."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, options))}, got {value!r}")
    return options[value]


def integers(name: str, array: NDArray[Any]) -> NDArray[np.int64]:
    """`array` as C-contiguous int64.

    Raises:
        TypeError: floats; a silent truncation would be a wrong answer.
        ValueError: a number that int64 cannot hold.
    """
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        check_rows(name, array > np.uint64(_INT64_MAX), array, "is more than an int64 can hold")
    return identifiers(name, array)


def identifiers(name: str, array: NDArray[Any]) -> NDArray[np.int64]:
    """`array` as C-contiguous int64, where only equality counts: different integers stay different.

    Raises:
        TypeError: floats.
    """
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name}: expected integers, got dtype {array.dtype}")
    return plain(array, np.dtype(np.int64))


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


def differentiable(kernel: Callable[..., Any], formula: str, arrays: dict[str, Array], *options: Any) -> Any:
    """``kernel(*arrays)``; where a gradient is wanted, with the derivative of a formula of `fastssd.ops._formulas`,
    which takes `arrays` and `options`. `arrays` are by the names of the operator's arguments.
    """
    if not wants_gradient(*arrays.values()):
        return kernel(*arrays.values())
    from fastssd.ops import _formulas, _gradient

    function = getattr(_formulas, formula)
    tensors = [to_tensor(name, array) for name, array in arrays.items()]
    return _gradient.differentiable(kernel, lambda *tensors: function(*tensors, *options), *tensors)


def with_gradient(value: Any, write: Callable[..., None], tensor: Any, *others: Any) -> Any:
    """`value`, whose derivative by `tensor` ``write(scale, out, tensor, *others)`` writes to `out`; once, not twice.

    `others` are tensors too, so that a write to them before the backward pass is seen.
    """
    if not wants_gradient(tensor):
        return value
    from fastssd.ops import _gradient

    return _gradient.written(value, write, tensor, *others)


def without_gradient(name: str, result: Any, *arrays: Array) -> Any:
    """`result`; a backward pass through it raises instead of giving a silent None."""
    if not wants_gradient(*arrays):
        return result
    from fastssd.ops import _gradient

    return _gradient.refuse(name, result, *arrays)
