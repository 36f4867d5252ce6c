"""The odd calls of :mod:`tests.sanitize.hostile`: what is odd, and which calls it is put into."""

from __future__ import annotations

import fractions
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fastssd import _C, ops

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]


SECONDS = 60.0  # far beyond what any call takes, on any machine: only a hang gets there


class Call(NamedTuple):
    name: str
    run: Callable[[], Any]
    operator: str | None = None  # whose reference says what is right; None: any result is
    large: bool = False  # asks for more memory than there is, which a sanitizer's allocator reports as a fault


class Unmade(Exception):
    """There is no such odd value of this array."""


class Expression(NamedTuple):
    """A value, made of the good one in its place, with the text that says how."""

    text: str
    of: Callable[[Any], Any]

    def make(self, value: Any) -> Any:
        try:
            return self.of(value)
        except Exception as error:
            raise Unmade from error


# --- odd values ------------------------------------------------------------------------------------------------------


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
    Expression("falling", lambda a: np.arange(a.size)[::-1].reshape(a.shape).astype(a.dtype)),
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
    Expression("odd bytes", lambda a: np.resize(np.arange(256, dtype=np.uint8), a.shape).view(bool)),
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

# --- good arguments, from which one at a time is replaced ------------------------------------------------------------


def good(operator: str) -> dict[str, Any]:
    """Arguments of the face of `operator`, all of them what it wants."""
    rng = np.random.default_rng(0)

    def boxes(*shape: int) -> Any:
        corner = rng.random((*shape, 2)) * 90
        return np.concatenate([corner, corner + 5 + rng.random((*shape, 2)) * 40], -1).astype(np.float32)

    batch, anchors, classes = 2, 40, 5
    labels = rng.integers(0, classes, (batch, anchors))
    truth = {"anchors": boxes(anchors), "gt_boxes": boxes(batch, 3)}
    matching = {
        "iou_threshold": 0.5,
        "background_threshold": 0.4,
        "force_match": "bipartite",
        "gt_counts": np.array([3, 1]),
    }
    mining = {"neg_pos_ratio": 3.0, "min_negatives": 2}
    suppression = {"boxes": boxes(60), "scores": rng.random(60).astype(np.float32)}
    pair = {"boxes1": boxes(anchors), "boxes2": boxes(anchors)}
    logits = rng.random((batch, anchors, classes)).astype(np.float32)
    deltas = rng.normal(size=(batch, anchors, 4)).astype(np.float32) / 4
    every: dict[str, dict[str, Any]] = {
        "box_area": {"boxes": boxes(anchors)},
        "box_convert": {"boxes": boxes(anchors), "in_fmt": "xyxy", "out_fmt": "cxcywh"},
        "clip_boxes_to_image": {"boxes": boxes(anchors), "size": (50.0, 70.5)},
        "remove_small_boxes": {"boxes": boxes(anchors), "min_size": 12.0},
        "grid_anchors": {
            "grid_sizes": [(4, 3), 2],
            "scales": [(0.2, 0.3), (0.4,)],
            "aspect_ratios": (1.0, 2.0),
            "image_size": (30.0, 40.0),
            "clip": True,
            "dtype": "float32",
        },
        **{
            name: {**pair, "out": np.empty((anchors, anchors), np.float32)}
            for name in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")
        },
        "paired_box_iou": pair,
        "match_anchors": {**truth, **matching},
        "assign_targets": {
            **truth,
            "gt_labels": rng.integers(1, classes, (batch, 3)),
            **matching,
            "variances": (0.1, 0.2),
        },
        "mine_hard_negatives": {
            "loss": rng.random((batch, anchors)).astype(np.float32),
            "positive": labels > 3,
            **mining,
        },
        "multibox_cross_entropy": {"logits": logits, "labels": labels, **mining},
        "encode_boxes": {"boxes": boxes(batch, anchors), "anchors": boxes(anchors), "variances": (0.1, 0.2)},
        "decode_boxes": {"deltas": deltas, "anchors": boxes(anchors), "variances": (0.1, 0.2)},
        "nms": {**suppression, "iou_threshold": 0.45, "nonfinite": "drop"},
        "batched_nms": {
            **suppression,
            "idxs": rng.integers(0, 4, 60),
            "iou_threshold": 0.45,
            "nonfinite": "drop",
        },
        "soft_nms": {
            **suppression,
            "method": "linear",
            "iou_threshold": 0.3,
            "sigma": 0.5,
            "score_threshold": 0.001,
            "nonfinite": "drop",
        },
        "postprocess_detections": {
            "logits": logits,
            "deltas": deltas,
            "anchors": boxes(anchors),
            "score_threshold": 0.01,
            "iou_threshold": 0.45,
            "topk": 20,
            "max_detections": 10,
            "clip": (80.0, 80.0),
            "activation": "none",
            "variances": (0.1, 0.2),
        },
    }
    return every[operator]


FACES = [name for name in ops.__all__ if name[0].islower()]


def compared(operator: str, argument: str, odd: Expression) -> str | None:
    """`operator` where its reference says what the result is to be."""
    clipped = argument == "clip"  # to so little that the last bits of what was cut off decide
    return None if clipped or odd.text in ("no storage", "fake") else operator


def odd_values(value: Any) -> list[Expression]:
    if isinstance(value, np.ndarray):
        return ARRAYS
    return WORDS if isinstance(value, str) else NUMBERS


def faces() -> Iterator[Call]:
    """Every operator with one argument replaced, and with all of its arrays replaced at once."""
    for operator in FACES:
        function, arguments = getattr(ops, operator), good(operator)
        for name, value in arguments.items():
            for odd in odd_values(value):
                yield Call(
                    f"ops.{operator}({name}={odd.text})",
                    lambda f=function, o=operator, n=name, odd=odd: f(**{**(a := good(o)), n: odd.make(a[n])}),
                    compared(operator, name, odd),
                )
            if isinstance(value, np.ndarray):
                for odd in LARGE_ARRAYS:
                    yield Call(
                        f"ops.{operator}({name}={odd.text})",
                        lambda f=function, o=operator, n=name, odd=odd: f(**{**(a := good(o)), n: odd.make(a[n])}),
                        large=True,
                    )
        if any(isinstance(value, np.ndarray) for value in arguments.values()):
            for odd in ARRAYS:
                yield Call(
                    f"ops.{operator}(every array={odd.text})",
                    lambda f=function, o=operator, odd=odd: f(
                        **{n: odd.make(v) if isinstance(v, np.ndarray) else v for n, v in good(o).items()}
                    ),
                    operator,
                )


# --- the private module ----------------------------------------------------------------------------------------------


def private(function: str) -> list[Any]:
    """Arguments of ``_C.function``, outputs last."""
    rng = np.random.default_rng(0)

    def boxes(*shape: int) -> Any:
        corner = rng.random((*shape, 2)) * 90
        return np.concatenate([corner, corner + 5 + rng.random((*shape, 2)) * 40], -1).astype(np.float32)

    def new(*shape: int, dtype: Any = np.float32) -> Any:
        return np.zeros(shape, dtype)

    batch, anchors, classes, integer = 2, 40, 5, np.int64
    logits = rng.normal(size=(batch, anchors, classes)).astype(np.float32)
    labels = rng.integers(0, classes, (batch, anchors))
    offsets = np.array([0, 2, 6])
    pair = [boxes(batch, 7), boxes(batch, 9), new(batch, 7, 9)]
    scores = rng.random(anchors).astype(np.float32)
    keep = new(anchors, dtype=integer)
    every: dict[str, list[Any]] = {
        "box_area": [boxes(anchors), new(anchors)],
        "box_convert": [boxes(anchors), 0, 2, new(anchors, 4)],
        "clip_boxes_to_image": [boxes(anchors), 50.0, 70.0, new(anchors, 4)],
        "remove_small_boxes": [boxes(anchors), 12.0, keep],
        "grid_anchors": [4, 3, rng.random((2, 2)), np.array([30.0, 40.0]), True, new(24, 4)],
        **dict.fromkeys(("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"), pair),
        "paired_box_iou": [boxes(anchors), boxes(anchors), new(anchors)],
        "match_anchors": [
            *(boxes(anchors), boxes(6), offsets, 0.5, 0.4, 1),
            *(new(batch, anchors, dtype=integer), new(batch, anchors)),
        ],
        "assign_targets": [
            *(boxes(anchors), boxes(6), np.arange(1, 7), offsets, 0.5, 0.4, 1, 0.1, 0.2),
            *(new(batch, anchors, dtype=integer), new(batch, anchors, 4), new(batch, anchors, dtype=integer)),
        ],
        "mine_hard_negatives": [logits[..., 0].copy(), labels > 3, 3.0, 2, new(batch, anchors, dtype=bool)],
        "multibox_cross_entropy": [
            *(logits, labels, 3.0, 2, new(batch, dtype=np.float64), new(batch, anchors, dtype=bool)),
        ],
        "multibox_cross_entropy_gradient": [logits, labels, labels > 3, 0.3, np.zeros_like(logits)],
        "encode_boxes": [boxes(batch, anchors), boxes(anchors), 0.1, 0.2, new(batch, anchors, 4)],
        "decode_boxes": [logits[..., :4].copy(), boxes(anchors), 0.1, 0.2, new(batch, anchors, 4)],
        "nms": [boxes(anchors), scores, 0.45, keep],
        "batched_nms": [boxes(anchors), scores, np.arange(anchors) % 3, 0.45, keep],
        "soft_nms": [boxes(anchors), scores, 0, 0.3, 0.5, 0.001, keep, new(anchors)],
        "postprocess_detections": [
            *(logits, logits[..., :4].copy(), boxes(anchors), 0.01, 0.45, 20, 80.0, 80.0, 1, 0.1, 0.2),
            *(new(batch, 10, 4), new(batch, 10)),
            *(new(batch, 10, dtype=integer), new(batch, 10, dtype=integer), new(batch, dtype=integer)),
        ],
        "direct_paired_box_iou": [boxes(anchors), boxes(anchors)],
        "direct_match_anchors": [boxes(anchors), [boxes(3), boxes(1)], 0.5, 0.4, "bipartite"],
        "direct_assign_targets": [
            *(boxes(anchors), [boxes(3), boxes(1)], [np.arange(1, 4), np.ones(1, integer)], 0.5, 0.4),
            *("bipartite", (0.1, 0.2)),
        ],
        "direct_encode_boxes": [boxes(batch, anchors), boxes(anchors), (0.1, 0.2)],
        "direct_decode_boxes": [logits[..., :4].copy(), boxes(anchors), (0.1, 0.2)],
        "direct_nms": [boxes(anchors), scores, 0.45],
        "direct_batched_nms": [boxes(anchors), scores, np.arange(anchors) % 3, 0.45],
    }
    if function.startswith("direct_") and function not in every:
        return [boxes(7), boxes(9), new(7, 9)]
    return every[function]


NO_OPERATORS = {"isa", "available_isas", "compiled_isas", "set_thread_count"}
PRIVATE = [name for name in vars(_C) if not name.startswith("_") and name not in NO_OPERATORS]


def with_place(arguments: list[Any], place: int, odd: Expression) -> list[Any]:
    return [odd.make(value) if i == place else value for i, value in enumerate(arguments)]


def compiled() -> Iterator[Call]:
    """Every function of the compiled module, whatever its faces would have refused."""
    for name in PRIVATE:
        try:
            arguments = private(name)
        except KeyError:  # newer than this table: at least it is called with nonsense
            for count in range(9):
                for odd in (None, -1, np.zeros((3, 4), np.float32), "text"):
                    yield Call(
                        f"_C.{name}(*[{type(odd).__name__}] * {count})",
                        lambda n=name, c=count, o=odd: getattr(_C, n)(*[o] * c),
                    )
            continue
        for place, value in enumerate(arguments):
            for odd in odd_values(value):
                yield Call(
                    f"_C.{name}(argument {place} {odd.text})",
                    lambda n=name, p=place, odd=odd: getattr(_C, n)(*with_place(private(n), p, odd)),
                )
        for odd in ARRAYS:
            yield Call(
                f"_C.{name}(every array {odd.text})",
                lambda n=name, odd=odd: getattr(_C, n)(
                    *(odd.make(v) if isinstance(v, np.ndarray) else v for v in private(n))
                ),
            )
        yield Call(f"_C.{name}()", lambda n=name: getattr(_C, n)())
        yield Call(f"_C.{name}(one too many)", lambda n=name: getattr(_C, n)(*private(n), None))
    shapes, scale, none = np.ones((2, 2)), np.ones(2), np.empty((0, 4), np.float32)
    for height, width in ((2**32, 2**32), (2**62, 2), (2**62, 4), (2**63 - 1, 2**63 - 1), (0, 2**63 - 1), (2**31, 0)):
        yield Call(
            f"_C.grid_anchors({height}, {width}, no room)",
            lambda h=height, w=width: _C.grid_anchors(h, w, shapes, scale, False, none),
        )
    for least in (2**63 - 1, -(2**63), -1):
        for ratio in (NAN, INFINITY, -1.0, 1e300):

            def mine(least: int = least, ratio: float = ratio) -> None:
                loss, positive, _, _, out = private("mine_hard_negatives")
                _C.mine_hard_negatives(loss, positive, ratio, least, out)

            def cross_entropy(least: int = least, ratio: float = ratio) -> None:
                logits, labels, _, _, losses, selected = private("multibox_cross_entropy")
                _C.multibox_cross_entropy(logits, labels, ratio, least, losses, selected)

            yield Call(f"_C.mine_hard_negatives(ratio {ratio}, least {least})", mine)
            yield Call(f"_C.multibox_cross_entropy(ratio {ratio}, least {least})", cross_entropy)


# --- torch -----------------------------------------------------------------------------------------------------------


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


def as_tensors(arguments: dict[str, Any]) -> dict[str, Any]:
    return {n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in arguments.items()}


def of_tensors() -> Iterator[Call]:
    """The faces with tensors, one at a time odd."""
    for operator in FACES:
        function = getattr(ops, operator)
        for name, value in good(operator).items():
            if isinstance(value, np.ndarray):
                for odd in tensors():
                    yield Call(
                        f"torch ops.{operator}({name}={odd.text})",
                        lambda f=function, o=operator, n=name, odd=odd: f(
                            **{**(a := as_tensors(good(o))), n: odd.make(a[n])}
                        ),
                        compared(operator, name, odd),
                    )


def registered() -> Iterator[Call]:
    """torch.ops.fastssd.*, which faces do not guard."""
    from fastssd.ops._operator import REGISTRY

    for operator in sorted(REGISTRY):
        if operator == "grid_anchors":
            continue
        entry = getattr(torch.ops.fastssd, operator)
        names = [argument.name for argument in entry.default._schema.arguments]

        def arguments(operator: str = operator, names: list[str] = names) -> dict[str, Any]:
            if operator == "multibox_cross_entropy_gradient":
                logits, labels, selected, scale, _ = private(operator)
                values = {"scale": np.array(scale, np.float32), "logits": logits, "labels": labels}
                return as_tensors({**values, "selected": selected})
            return {n: v for n, v in as_tensors(good(operator)).items() if n in names}

        for name, value in arguments().items():
            odd_ones = tensors() if isinstance(value, torch.Tensor) else odd_values(value)
            for odd in odd_ones:
                yield Call(
                    f"torch.ops.fastssd.{operator}({name}={odd.text})",
                    lambda f=entry, a=arguments, n=name, odd=odd: f(**{**(given := a()), n: odd.make(given[n])}),
                    compared(operator, name, odd),
                )


# --- arrays that change, threads, numbers of threads -----------------------------------------------------------------


def in_new_process(code: str, **environment: str) -> None:
    """Runs `code` by a new Python; what it prints is an error, and so is a signal."""
    head = "import tests.sanitize, threading, numpy as np\n"
    found = subprocess.run(
        [sys.executable, "-c", head + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if found.returncode:
        raise SystemError(f"exit status {found.returncode}: {found.stdout}{found.stderr[-2000:]}")


FIRST_USE = """
start, rng = threading.Barrier(8), np.random.default_rng(0)
boxes = rng.random((50, 4), np.float32) + [0, 0, 1, 1]
def first():
    from fastssd import ops
    start.wait()
    ops.nms(boxes.astype(np.float32), rng.random(50, np.float32), 0.5)
threads = [threading.Thread(target=first) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
MANY_THREADS = """
import fastssd
from fastssd import ops
boxes = np.random.default_rng(0).random((2000, 4), np.float32) + np.float32([0, 0, 1, 1])
try:
    fastssd.set_num_threads({threads})
    ops.box_iou(boxes, boxes)
except (TypeError, ValueError):
    pass
"""
WRITTEN_TO = """
from fastssd import ops
rng = np.random.default_rng(0)
stop = threading.Event()
{arrays}
def write():
    while not stop.is_set():
        {write}
thread = threading.Thread(target=write)
thread.start()
try:
    for _ in range(60):
        try:
            {call}
        except ValueError:
            pass  # it saw the odd content
finally:
    stop.set()
    thread.join()
"""
ANCHORS = """
def draw(n):
    corner = rng.random((n, 2))
    return np.concatenate([corner, corner + 0.1], -1).astype(np.float32)
anchors, gt, labels = draw(20000), draw(12), np.arange(1, 13)
logits, classes = rng.normal(size=(4, 5000, 8)).astype(np.float32), rng.integers(0, 8, (4, 5000))
"""


def behaviours() -> Iterator[Call]:
    for count in range(8):
        yield Call(f"8 threads import and call first, process {count}", lambda: in_new_process(FIRST_USE))
    for threads in (1, 64, 100_000, 2**30, 2**31, 2**63, 2**70):
        code = MANY_THREADS.format(threads=threads)
        yield Call(f"set_num_threads({threads})", lambda code=code: in_new_process(code))
        yield Call(
            f"FASTSSD_NUM_THREADS={threads}",
            lambda threads=threads: in_new_process(MANY_THREADS.format(threads=None), FASTSSD_NUM_THREADS=str(threads)),
        )
    for name, write, call in (
        (
            "anchors",
            "anchors[:] = np.nan; anchors[:] = draw(20000)",
            "ops.match_anchors(anchors, gt)",
        ),
        ("ground truth", "gt[:] = np.nan; gt[:] = draw(12)", "ops.match_anchors(anchors, [gt, gt])"),
        ("gt_labels", "labels[:] = -(2**62); labels[:] = 1", "ops.assign_targets(anchors, [gt], [labels])"),
        (
            "labels of the loss",
            "classes[:] = 10**6; classes[:] = -100; classes[:] = 1",
            "ops.multibox_cross_entropy(logits, classes)",
        ),
        (
            "logits",
            "logits[:] = np.nan; logits[:] = 1",
            "ops.postprocess_detections(logits, logits[..., :4].copy(), anchors[:5000])",
        ),
        (
            "boxes of nms",
            "anchors[:] = np.nan; anchors[:] = draw(20000)",
            "ops.nms(anchors, logits.ravel()[:20000], 0.5)",
        ),
        (
            "groups of batched_nms",
            "classes[:] = -(2**63); classes[:] = rng.integers(0, 8, (4, 5000))",
            "ops.batched_nms(anchors, logits.ravel()[:20000], classes.ravel(), 0.5)",
        ),
    ):
        code = WRITTEN_TO.format(arrays=ANCHORS, write=write, call=call)
        yield Call(f"written to by another thread: {name}", lambda code=code: in_new_process(code))

    for answer in (-5, 0, 2**31, 2**31 - 1, None, "2", 1.5):

        def odd_count(answer: Any = answer) -> None:
            _C.set_thread_count(lambda: answer)
            a = np.random.default_rng(0).random((1, 2000, 4), np.float32)
            _C.box_iou(a, a, np.empty((1, 2000, 2000), np.float32))

        yield Call(f"_C.set_thread_count(lambda: {answer!r})", odd_count)
    for value in (None, 3, "text"):

        def no_callable(value: Any = value) -> None:
            _C.set_thread_count(value)
            a = np.random.default_rng(0).random((1, 2000, 4), np.float32)
            _C.box_iou(a, a, np.empty((1, 2000, 2000), np.float32))

        yield Call(f"_C.set_thread_count({value!r})", no_callable)

    if torch is None:
        return
    for label in (-100, 10**6, 2**40, -(2**63), 3):
        for kind in ("numpy", "tensor"):

            def relabelled(label: int = label, kind: str = kind) -> None:
                values = good("multibox_cross_entropy")
                logits = torch.from_numpy(values["logits"]).requires_grad_()
                labels = values["labels"] if kind == "numpy" else torch.from_numpy(values["labels"])
                loss = ops.multibox_cross_entropy(logits, labels).loss
                expected = torch.autograd.grad(loss, logits, retain_graph=True)[0]
                labels[:] = label
                found = torch.autograd.grad(loss, logits)[0]
                assert torch.equal(found, expected), "the gradient is that of other labels"

            yield Call(f"labels of {kind} become {label} between forward and backward", relabelled)
    for operator in ("box_iou", "complete_box_iou"):
        for place in ("boxes1", "boxes2"):

            def aliased(operator: str = operator, place: str = place) -> None:
                boxes = {"boxes1": good("box_iou")["boxes1"][:4], "boxes2": good("box_iou")["boxes2"][:4]}
                expected = getattr(ops, operator)(**boxes)
                found = getattr(ops, operator)(**boxes, out=boxes[place])
                assert np.array_equal(found, expected), "out is the memory of an input, and the result is wrong"

            yield Call(f"ops.{operator}(out={place})", aliased)

    def emptied_by_a_mode() -> None:
        gt = [torch.rand(3, 4) + torch.tensor([0, 0, 1, 1]) for _ in range(50)]

        class Mode(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                gt.clear()
                return function(*args, **(kwargs or {}))

        with Mode():
            ops.match_anchors(torch.from_numpy(good("match_anchors")["anchors"]), gt)

    yield Call("a list of ground truth that a torch function mode empties", emptied_by_a_mode)


# --- all of them -----------------------------------------------------------------------------------------------------


def all_calls() -> list[Call]:
    groups = [faces(), compiled(), behaviours()] + ([of_tensors(), registered()] if torch is not None else [])
    return [call for group in groups for call in group]
