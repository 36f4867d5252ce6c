"""The shapes and kinds of a declaration (:mod:`fastssd.ops._operator` explains them), and arrays compared with them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

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
        expected = ", ".join(str(dim).replace("+", " >= 1").removesuffix("?") for dim in (*lead, *dims))
        known = ", ".join(f"{dim} = {sizes[dim]}" for dim in dims if sizes.get(dim) is not None)
        return ValueError(
            f"{self.name}: expected shape [{expected}]{f' with {known}' if known else ''}, got {list(shape)}"
        )

    def _check_kind(self, array: Any, shape: Any) -> None:
        kind = array.dtype.kind if isinstance(array, ndarray) else _torch_kind(array)
        if kind == "c":
            raise TypeError(f"{self.name}: expected real numbers, got dtype {array.dtype}")
        if self.kind == "bool" and kind != "b":
            raise TypeError(f"{self.name}: expected bool, got dtype {array.dtype}")
        if self.kind == "int" and kind not in "iu" and not any(_is_zero(length) for length in shape):
            raise TypeError(f"{self.name}: expected integers, got dtype {array.dtype}")


def _is_zero(length: Any) -> bool:
    return isinstance(length, int) and length == 0


def _torch_kind(tensor: Any) -> str:
    """As ``dtype.kind`` of NumPy."""
    if tensor.is_complex():
        return "c"
    if tensor.is_floating_point():
        return "f"
    return "b" if tensor.dtype is sys.modules["torch"].bool else "i"


def _same(length: Any, other: Any) -> bool:
    same = length == other
    if isinstance(same, bool):
        return same
    sys.modules["torch"]._check(same)  # a length that is known when the graph runs: it is compared then
    return True


def specs(text: str) -> Iterable[Spec]:
    for name, kind, dims in re.findall(r"(?:(\w+): )?(\w+)\[(.*?)\]", text):
        yield Spec(name, kind, [dim.strip() for dim in dims.split(",") if dim])
