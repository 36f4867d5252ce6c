"""The values that :mod:`tests.sanitize.hostile_calls` puts in the place of good arguments."""

from __future__ import annotations

import fractions
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]


class Unmade(Exception):
    """There is no such value of this array."""


class Expression(NamedTuple):
    """A value, made of the good one in its place, with the text that says how."""

    text: str
    of: Callable[[Any], Any]

    def make(self, value: Any) -> Any:
        try:
            return self.of(value)
        except Exception as error:
            raise Unmade from error


# --- arrays and numbers -----------------------------------------------------------------------------------------------


class _Raises:
    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("from __array__")


class _Lies:
    def __array__(self, *_: Any, **__: Any) -> Any:
        return "no array"


class _Subclass(np.ndarray):
    pass


class _Float(float):
    pass


class _Index:
    def __index__(self) -> int:
        return 3


def unaligned(array: Any) -> Any:
    array = np.ascontiguousarray(array)
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    view = buffer[1:].view(array.dtype).reshape(array.shape) if array.size else array
    view[...] = array
    return view


def spaced(array: Any) -> Any:
    wide = np.zeros((*array.shape, 2), array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


def locked(array: Any) -> Any:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def filled(value: float) -> Callable[[Any], Any]:
    def make(array: Any) -> Any:
        with np.errstate(all="ignore"):
            return np.full_like(array, np.array(value).astype(array.dtype))

    return make


def mixed(*values: float) -> Callable[[Any], Any]:
    def make(array: Any) -> Any:
        copy = array.copy()
        with np.errstate(all="ignore"):
            copy.reshape(-1)[::3] = np.resize(np.array(values).astype(copy.dtype), copy.reshape(-1)[::3].shape)
        return copy

    return make


INFINITY, NAN = float("inf"), float("nan")

ARRAYS = [
    Expression("None", lambda a: None),
    Expression("'text'", lambda a: "text"),
    Expression("b'bytes'", lambda a: b"bytes"),
    Expression("object()", lambda a: object()),
    Expression("{}", lambda a: {}),
    Expression("[]", lambda a: []),
    Expression("()", lambda a: ()),
    Expression("[[]]", lambda a: [[]]),
    Expression("ragged", lambda a: [[1.0, 2.0], [3.0]]),
    Expression("tolist", lambda a: a.tolist()),
    Expression("generator", lambda a: (row for row in a)),
    Expression("raises in __array__", lambda a: _Raises()),
    Expression("no array from __array__", lambda a: _Lies()),
    Expression("3.0", lambda a: 3.0),
    Expression("0-d", lambda a: np.array(3.0, a.dtype)),
    Expression("flat", lambda a: a.reshape(-1)),
    Expression("[None]", lambda a: a[None]),
    Expression("[None, None]", lambda a: a[None, None]),
    Expression("9 axes", lambda a: a.reshape((1,) * (9 - a.ndim) + a.shape)),
    Expression("32 axes", lambda a: a.reshape((1,) * (32 - a.ndim) + a.shape)),
    Expression("[:0]", lambda a: a[:0]),
    Expression("[:1]", lambda a: a[:1]),
    Expression("[:-1]", lambda a: a[:-1]),
    Expression("[..., :0]", lambda a: a[..., :0]),
    Expression("[..., :3]", lambda a: a[..., :3]),
    Expression("last axis doubled", lambda a: np.concatenate([a, a], -1)),
    Expression("first axis doubled", lambda a: np.concatenate([a, a], 0)),
    Expression("empty (0, 4)", lambda a: np.empty((0, 4), a.dtype)),
    Expression("empty (4, 0)", lambda a: np.empty((4, 0), a.dtype)),
    Expression("empty (0, 2**30, 2**28)", lambda a: np.empty((0, 2**30, 2**28), a.dtype)),
    Expression("empty (2**58, 0)", lambda a: np.empty((2**58, 0), a.dtype)),
    Expression("T", lambda a: a.T),
    Expression("fortran", lambda a: np.asfortranarray(a)),
    Expression("[::-1]", lambda a: a[::-1]),
    Expression("[..., ::-1]", lambda a: a[..., ::-1]),
    Expression("[::2] of a pair", lambda a: np.repeat(a, 2, 0)[::2]),
    Expression("spaced", spaced),
    Expression("broadcast", lambda a: np.broadcast_to(a[:1], a.shape)),
    Expression("unaligned", unaligned),
    Expression("big-endian", lambda a: a.astype(a.dtype.newbyteorder(">"))),
    Expression("read-only", locked),
    Expression("subclass", lambda a: a.view(_Subclass)),
    Expression("masked", lambda a: np.ma.masked_array(a)),
    Expression("object dtype", lambda a: a.astype(object)),
    Expression("complex", lambda a: a.astype(complex)),
    Expression("longdouble", lambda a: a.astype(np.longdouble)),
    Expression("float16", lambda a: a.astype(np.float16)),
    Expression("float32", lambda a: a.astype(np.float32)),
    Expression("float64", lambda a: a.astype(np.float64)),
    Expression("bool", lambda a: a.astype(bool)),
    Expression("int8", lambda a: a.astype(np.int8)),
    Expression("int64", lambda a: a.astype(np.int64)),
    Expression("uint8", lambda a: np.abs(a).astype(np.uint8)),
    Expression("uint64 at its end", lambda a: np.full(a.shape, 2**64 - 1, np.uint64)),
    Expression("int64 at its ends", lambda a: np.resize(np.array([-(2**63), 2**63 - 1, -1]), a.shape)),
    Expression("labels -100", lambda a: np.full(a.shape, -100)),
    Expression("labels 10**6", lambda a: np.full(a.shape, 10**6)),
    Expression("labels 2**40", lambda a: np.full(a.shape, 2**40)),
    Expression("descending", lambda a: np.arange(a.size)[::-1].reshape(a.shape).astype(a.dtype)),
    Expression("text dtype", lambda a: a.astype(str)),
    Expression("datetime", lambda a: np.zeros(a.shape, "datetime64[s]")),
    Expression("structured", lambda a: np.zeros(a.shape, [("x", "f4"), ("y", "i2")])),
    Expression("all NaN", filled(NAN)),
    Expression("all inf", filled(INFINITY)),
    Expression("all 0", filled(0.0)),
    Expression("all -0.0", filled(-0.0)),
    Expression("all -1", filled(-1.0)),
    Expression("all 1e38", filled(1e38)),
    Expression("all 1e-45", filled(1e-45)),
    Expression("some NaN", mixed(NAN)),
    Expression("some inf", mixed(INFINITY, -INFINITY)),
    Expression("some huge", mixed(3e38, -3e38, 1e30)),
    Expression("some tiny", mixed(1e-45, -1e-40, 1e-30)),
    Expression("bool of every byte", lambda a: np.resize(np.arange(256, dtype=np.uint8), a.shape).view(bool)),
    Expression("bytes of 255", lambda a: np.full(a.shape, 255, np.uint8).view(bool)),
]
LARGE_ARRAYS = [
    Expression("broadcast to 2**40", lambda a: np.broadcast_to(a[:1], (2**40, *a.shape[1:]))),
    Expression("lead of 2**33 zeros", lambda a: np.broadcast_to(np.zeros((), a.dtype), (2**33, *a.shape))),
]

NUMBERS = [
    *(
        Expression(repr(value), lambda a, value=value: value)  # type: ignore[misc]
        for value in (
            *(NAN, INFINITY, -INFINITY, -1.0, -0.0, 0.0, 1.0, 2.0, 0.5, 1e-300, 1e300, 5e-324, 0, 1, -1, 3),
            *(2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, True, False, None, "0.5", b"1", 1j),
            *([], [0.5], (1.0, 2.0), (0.0, 0.0), (NAN, NAN), (-1, -1), (2**63, 2**63), (1, 2, 3), {}),
        )
    ),
    Expression("10**400", lambda a: 10**400),
    Expression("-10**400", lambda a: -(10**400)),
    Expression("numpy.float32(0.5)", lambda a: np.float32(0.5)),
    Expression("numpy.int8(3)", lambda a: np.int8(3)),
    Expression("array(0.5)", lambda a: np.array(0.5)),
    Expression("array([0.5])", lambda a: np.array([0.5])),
    Expression("array([2, 3])", lambda a: np.array([2, 3])),
    Expression("Fraction(1, 2)", lambda a: fractions.Fraction(1, 2)),
    Expression("subclass of float", lambda a: _Float(0.5)),
    Expression("__index__", lambda a: _Index()),
    Expression("object()", lambda a: object()),
    Expression("float", lambda a: float),
]

WORDS = [
    Expression(repr(value)[:40], lambda a, value=value: value)  # type: ignore[misc]
    for value in (None, "", "XYXY", "xyxy\0", "\ud800", 5, b"xyxy", ["xyxy"], "x" * 1_000_000, NAN, 2**64)
]


def tensors() -> list[Expression]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Subclass(torch.Tensor):
        pass

    def fake(tensor: Any) -> Any:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            return mode.from_tensor(tensor)

    def wanted(tensor: Any) -> Any:
        return tensor.clone().requires_grad_(tensor.is_floating_point())

    def freed(tensor: Any) -> Any:
        copy = tensor.clone()
        copy.untyped_storage().resize_(0)
        return copy

    def imaginary(tensor: Any) -> Any:
        return torch.complex(tensor.double(), tensor.double()).conj().imag

    return [
        Expression("as it is", lambda t: t),
        Expression("meta", lambda t: t.to("meta")),
        Expression("fake", fake),
        Expression("sparse", lambda t: t.to_sparse()),
        Expression("requires_grad", wanted),
        Expression("negative bit", lambda t: imaginary(t).to(t.dtype) if t.dtype == torch.bool else imaginary(t)),
        Expression("conjugate", lambda t: torch.complex(t.double(), t.double()).conj()),
        Expression("no storage", freed),
        Expression("subclass", lambda t: t.as_subclass(Subclass)),
        Expression("Parameter", lambda t: torch.nn.Parameter(t, requires_grad=False)),
        Expression("nested", lambda t: torch.nested.nested_tensor([t, t])),
        Expression("mT", lambda t: t.mT if t.ndim > 1 else t),
        Expression("flip", lambda t: t.flip(0)),
        Expression("expanded", lambda t: t[:1].expand(t.shape)),
        Expression("channels apart", lambda t: torch.stack([t, t], -1)[..., 0]),
        Expression("[:0]", lambda t: t[:0]),
        Expression("[..., :0]", lambda t: t[..., :0]),
        Expression("[:-1]", lambda t: t[:-1]),
        Expression("[None]", lambda t: t[None]),
        Expression("flat", lambda t: t.flatten()),
        Expression("0-d", lambda t: t.flatten()[0]),
        Expression("half", lambda t: t.half()),
        Expression("bfloat16", lambda t: t.bfloat16()),
        Expression("double", lambda t: t.double()),
        Expression("bool", lambda t: t.bool()),
        Expression("uint8", lambda t: t.to(torch.uint8)),
        Expression("int32", lambda t: t.int()),
        Expression("uint16", lambda t: t.abs().to(torch.uint16)),
        Expression("float8", lambda t: t.float().to(torch.float8_e4m3fn)),
        Expression("all NaN", lambda t: t * NAN if t.is_floating_point() else t),
        Expression("some inf", lambda t: t / (t > t.mean()) if t.is_floating_point() else t),
        Expression("labels -100", lambda t: torch.full(t.shape, -100)),
        Expression("labels 10**6", lambda t: torch.full(t.shape, 10**6)),
        Expression("labels 2**40", lambda t: torch.full(t.shape, 2**40)),
        Expression("labels at their ends", lambda t: torch.full(t.shape, -(2**63))),
        Expression("numpy", lambda t: t.numpy()),
        Expression("big-endian numpy", lambda t: t.numpy().astype(t.numpy().dtype.newbyteorder(">"))),
        Expression("list", lambda t: t.tolist()),
        Expression("list of rows", lambda t: list(t)),
        Expression("list of rows and None", lambda t: [*t, None]),
        Expression("None", lambda t: None),
        Expression("'text'", lambda t: "text"),
    ]
