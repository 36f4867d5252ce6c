"""Checks and conversions of arguments, used by the operators, the detection code and the deployed detector.

torch is never imported here: a tensor can only reach us if the caller has imported it.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastssd.backends import ACTIVATIONS, BOX_FORMATS, FORCE_MATCH, SOFT_NMS_METHODS

Array = Any  # a NumPy array, a torch tensor, or what numpy.asarray understands

NONFINITE = ("drop", "raise")

_INT64_MAX = 2**63 - 1
_EXACT_IN_FLOAT32 = frozenset("?bBhHef")  # by dtype.char: bool, 8 and 16 bits, float32; dtype.name takes microseconds


# --- arrays ----------------------------------------------------------------------------------------------------------


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, getattr(torch, "Tensor", ()))


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
"""Arguments that are rows of four. An empty array of one dimension, as ``torch.tensor([])`` is, has no rows."""


def to_boxes(name: str, value: Array) -> NDArray[Any]:
    """:func:`to_numpy`, and [0, 4] where there is nothing."""
    array = to_numpy(name, value)
    return array if array.shape != (0,) else array.reshape(0, 4)


def to_tensor(name: str, value: Array) -> Any:
    """`value` as a torch tensor: a tensor is itself, anything else is copied, with NumPy's dtype.

    An array has no version by which torch could see that it was written to.
    """
    torch = sys.modules["torch"]
    if not isinstance(value, torch.Tensor):
        array = to_numpy(name, value)
        wide = array.dtype.kind == "f" and array.dtype.itemsize > 8  # torch has no such floats
        # A copy: a view of one row can be contiguous with a negative stride, which torch refuses.
        value = torch.from_numpy(np.array(array, np.float64 if wide else array.dtype.newbyteorder("="), order="C"))
    return value.reshape(0, 4) if name in BOXES and value.ndim == 1 and value.shape[0] == 0 else value


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


# --- shapes and values -----------------------------------------------------------------------------------------------


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


def check_codable(name: str, boxes: Any) -> None:
    """Raise unless every box is finite and has positive extent, so that its size has a logarithm."""
    check_finite(name, boxes)
    check_extent(name, boxes)


def check_form(gt_boxes: Array, gt_labels: Array | None, gt_counts: Array | None) -> bool:
    """Whether ground truth comes in lists.

    Raises:
        ValueError: labels in another form than the boxes, or counts of what has its own lengths.
    """
    listed = isinstance(gt_boxes, (list, tuple))
    if listed and gt_counts is not None:
        raise ValueError("gt_counts: only for padded gt_boxes; a list of arrays has its lengths already")
    if gt_labels is not None and (
        listed != isinstance(gt_labels, (list, tuple)) or (listed and len(gt_labels) != len(gt_boxes))
    ):
        raise ValueError("gt_labels: expected the same form and length as gt_boxes")
    return listed


# --- options ---------------------------------------------------------------------------------------------------------


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


def choice(name: str, value: Any, options: Sequence[str] | Mapping[str, int]) -> str:
    """`value`, which must be one of `options`."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def check_variances(variances: Any) -> tuple[float, float]:
    """The coder's (center, size) variances, both positive and finite."""
    try:
        center, size = variances
    except (TypeError, ValueError):
        raise ValueError(f"variances: expected two numbers (center, size), got {variances!r}") from None
    tiny, huge = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    return number("variances[0]", center, tiny, huge), number("variances[1]", size, tiny, huge)


def check_size(name: str, size: Any) -> tuple[float, float]:
    """(height, width) as finite, non-negative floats."""
    try:
        height, width = size
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected (height, width), got {size!r}") from None
    largest = float(np.finfo(np.float32).max)
    return number(f"{name}[0]", height, 0, largest), number(f"{name}[1]", width, 0, largest)


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _one_of(options: Sequence[str] | Mapping[str, int]) -> Callable[[str, Any], str]:
    return lambda name, value: choice(name, value, options)


OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "activation": _one_of(ACTIVATIONS),
    "background_threshold": _optional(fraction),
    "clip": _optional(check_size),
    "force_match": _one_of(FORCE_MATCH),
    "grid_anchors.clip": lambda _, value: bool(value),
    "image_size": _optional(check_size),
    "in_fmt": _one_of(BOX_FORMATS),
    "iou_threshold": fraction,
    "max_detections": count,
    "method": _one_of(SOFT_NMS_METHODS),
    "min_negatives": count,
    "min_size": number,
    "neg_pos_ratio": lambda name, value: number(name, value, 0.0),
    "nonfinite": _one_of(NONFINITE),
    "out_fmt": _one_of(BOX_FORMATS),
    "score_threshold": fraction,
    "sigma": lambda name, value: number(name, value, float(np.finfo(np.float32).tiny)),
    "size": check_size,
    "soft_nms.score_threshold": number,
    "topk": _optional(count),
    "variances": lambda _, value: check_variances(value),
}
"""The check of every option of the operators, by name; by operator and name where a name means something else there."""


def option_check(operator: str, option: str) -> Callable[[str, Any], Any]:
    """The check of an option: of its name and value it makes a plain number, string or tuple, or raises."""
    return OPTIONS.get(f"{operator}.{option}") or OPTIONS.get(option) or (lambda name, value: value)


def check_order(background_threshold: float | None, iou_threshold: float) -> None:
    """Raise unless the background threshold is at most the IoU threshold."""
    if background_threshold is None or symbolic(background_threshold) or symbolic(iou_threshold):
        return
    if background_threshold > iou_threshold:
        raise ValueError(
            f"background_threshold: expected at most iou_threshold {iou_threshold:g}, got {background_threshold:g}"
        )
