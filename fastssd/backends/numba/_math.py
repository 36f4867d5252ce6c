"""Scalars in the dtype of the arrays: an exp that vectorises, and floats as the integers that order like them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from fastssd.backends.numba._jit import jit

# exp(x) = 2**n * exp(r) with n = round(x / log 2) and r = x - n log 2. Adding _SHIFT rounds to an integer, which then
# stands in the low bits of the sum. log 2 comes in two parts of which the first has so few bits that n times it is
# exact. |r| <= log(2) / 2, where the Taylor series to r**7 / 7! is good to a tenth of an ULP.
_LOG2E, _SHIFT = np.float32(math.log2(math.e)), np.float32(1.5 * 2**23)
_LOG2_HIGH, _LOG2_LOW = np.float32(355 / 512), np.float32(math.log(2) - 355 / 512)
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / math.factorial(k)) for k in range(2, 8))
_ONE, _LOWEST, _HIGHEST = np.float32(1), np.float32(-104), np.float32(89)  # beyond them exp is 0 and infinity


@jit
def _exp32(x: Any) -> Any:
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    shifted = x * _LOG2E + _SHIFT
    n = shifted - _SHIFT
    r = x - n * _LOG2_HIGH - n * _LOG2_LOW
    series = _C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))
    power = np.int32(np.float32(shifted).view(np.int32) - np.int32(0x4B400000))
    first = np.int32(power >> 1)  # in two steps, so that results that overflow or are denormal come out right
    second = np.int32(power - first)
    scale1 = np.int32((first + 127) << 23).view(np.float32)
    scale2 = np.int32((second + 127) << 23).view(np.float32)
    return (_ONE + (r + r * r * series)) * scale1 * scale2


def exp(x: Any) -> Any:
    """exp(x) in the dtype of x, to about one ULP."""
    return np.exp(x)


@overload(exp, strict=False)
def _exp(x: Any) -> Callable[[Any], Any]:
    return (lambda x: _exp32(x)) if x == types.float32 else (lambda x: math.exp(x))


def bits_of(x: Any) -> Any:
    """The bits of x as a signed integer: in the order of x for what is positive or +0."""
    return x.view(f"i{x.itemsize}")


@overload(bits_of, strict=False)
def _bits_of(x: Any) -> Callable[[Any], Any]:
    if x == types.float32:
        return lambda x: np.int32(np.float32(x).view(np.int32))
    return lambda x: np.float64(x).view(np.int64)


def ordered(x: Any) -> Any:
    """A signed integer of the width of x that orders as x does; the same for 0 and -0. Not for NaN."""
    bits = bits_of(x + x.dtype.type(0))
    return bits ^ (bits >> 63 & np.iinfo(bits.dtype).max)


@overload(ordered, strict=False)
def _ordered(x: Any) -> Callable[[Any], Any]:
    def ordered32(x: Any) -> Any:
        bits = bits_of(x + np.float32(0))
        return np.int32(bits ^ (np.int32(bits >> 31) & np.int32(0x7FFFFFFF)))

    def ordered64(x: Any) -> Any:
        bits = bits_of(x + 0.0)
        return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)

    return ordered32 if x == types.float32 else ordered64


def value_of(key: Any) -> Any:
    """The float that `ordered` made this integer of."""
    bits = key ^ (key >> 63 & np.iinfo(key.dtype).max)
    return bits.view(f"f{key.itemsize}")


@overload(value_of, strict=False)
def _value_of(key: Any) -> Callable[[Any], Any]:
    def value32(key: Any) -> Any:
        return np.int32(key ^ (np.int32(key >> 31) & np.int32(0x7FFFFFFF))).view(np.float32)

    def value64(key: Any) -> Any:
        return np.int64(key ^ ((key >> 63) & 0x7FFFFFFFFFFFFFFF)).view(np.float64)

    return value32 if key == types.int32 else value64


def descending_keys(values: Any) -> Any:
    """Unsigned integers, the smaller the larger the value; the same for 0 and -0. Not for NaN."""
    keys = np.array([~ordered(value) for value in values], f"i{values.itemsize}").view(f"u{values.itemsize}")
    return keys ^ keys.dtype.type(2 ** (8 * values.itemsize - 1))


@overload(descending_keys, strict=False)
def _descending_keys(values: Any) -> Callable[[Any], Any]:
    def keys32(values: Any) -> Any:
        keys = np.empty(len(values), np.uint32)
        for i in range(len(values)):
            keys[i] = np.uint32(~ordered(values[i])) ^ np.uint32(1 << 31)
        return keys

    def keys64(values: Any) -> Any:
        keys = np.empty(len(values), np.uint64)
        for i in range(len(values)):
            keys[i] = np.uint64(~ordered(values[i])) ^ np.uint64(1 << 63)
        return keys

    return keys32 if values.dtype == types.float32 else keys64


@jit
def softmax_terms(logits: Any, terms: Any) -> Any:
    """exp(logits - largest) to `terms`; returns the largest and the sum of the terms, added up as NumPy does."""
    classes, highest = len(logits), ordered(logits[0])
    for c in range(1, classes):
        highest = max(highest, ordered(logits[c]))
    largest = value_of(highest)
    for c in range(classes):
        terms[c] = exp(logits[c] - largest)
    total, done = terms.dtype.type(0), classes // 8 * 8
    if done:
        t0, t1, t2, t3, t4, t5, t6, t7 = terms[0], terms[1], terms[2], terms[3], terms[4], terms[5], terms[6], terms[7]
        for k in range(1, classes // 8):
            t0, t1, t2, t3 = t0 + terms[8 * k], t1 + terms[8 * k + 1], t2 + terms[8 * k + 2], t3 + terms[8 * k + 3]
            t4, t5, t6, t7 = t4 + terms[8 * k + 4], t5 + terms[8 * k + 5], t6 + terms[8 * k + 6], t7 + terms[8 * k + 7]
        total = ((t0 + t1) + (t2 + t3)) + ((t4 + t5) + (t6 + t7))
    for c in range(done, classes):
        total = total + terms[c]
    return largest, total


def round_down(threshold: float, dtype: np.dtype[Any]) -> Any:
    """The largest float of `dtype` that is not above `threshold`: a float exceeds one iff it exceeds the other."""
    near = dtype.type(threshold)
    return np.nextafter(near, dtype.type(-np.inf)) if float(near) > threshold else near


def round_up(threshold: float, dtype: np.dtype[Any]) -> Any:
    """The smallest float of `dtype` that is not under `threshold`: a float reaches one iff it reaches the other."""
    near = dtype.type(threshold)
    return np.nextafter(near, dtype.type(np.inf)) if float(near) < threshold else near
