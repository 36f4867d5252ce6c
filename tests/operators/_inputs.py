"""What the files of this folder are written with: the kinds of examples, and arrays that are special in some way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastssd import ops

DTYPES = ("float32", "float64", "float16", "int32", "uint8")
Boxes = NDArray[Any]
Arguments = dict[str, Any]


class Bad(NamedTuple):
    """A call that is an error: what is changed in the first sample, and what the error must be and say."""

    changes: Arguments
    error: type[Exception]
    names: str  # a pattern that the message contains: the argument's name


def bad(names: str, error: type[Exception], /, **changes: Any) -> Bad:
    return Bad(changes, error, names)


class Examples(NamedTuple):
    """What the table tests know of one operator, beside its cases."""

    samples: list[Arguments]
    """Calls that work, as arguments by name. The first has every argument; over all samples every option has an effect,
    and no two options can be swapped unnoticed (tests/test_options.py)."""
    bad: list[Bad]
    rare: list[Arguments] = []  # noqa: RUF012  a constant
    """Changes of the first sample that are legal but rare, or wrong in a rare way: every way in answers alike."""
    gradients: tuple[str, ...] = ()
    """The arguments by which it has a gradient."""
    mapped: tuple[str, ...] | None = None
    """The arguments over which torch.func.vmap may map; None where vmap is refused."""
    rounded: bool = False
    """Whether backends agree within ULPs instead of bit for bit, for exp, log or atan (docs/contract.md, Equality)."""
    registered: Callable[[Arguments], Arguments] = dict
    """A sample as torch.ops.fastssd takes it, where that differs from the public function."""


class Case(NamedTuple):
    """A call whose result must be the same in every backend."""

    operator: str
    name: str
    arguments: tuple[Any, ...]
    options: Arguments
    function: Callable[..., Any] | None = None  # None: the public one

    def call(self) -> Any:
        return (self.function or getattr(ops, self.operator))(*self.arguments, **self.options)


def case(operator: str, name: str, /, *arguments: Any, **options: Any) -> Case:
    return Case(operator, name, arguments, options)


# --- boxes -----------------------------------------------------------------------------------------------------------


def random_boxes(rng: np.random.Generator, n: int, *, span: float = 100.0, size: float = 30.0) -> Boxes:
    corner = rng.random((n, 2)) * span
    return np.concatenate([corner, corner + rng.random((n, 2)) * size + 1], axis=1)


def crowd(rng: np.random.Generator, n: int, centers: int) -> Boxes:
    """Boxes in heaps, as a detector makes them before NMS."""
    heaps = random_boxes(rng, centers, span=1000, size=80)
    return heaps[rng.integers(0, centers, n)] + rng.normal(0, 3, (n, 4))


def box_sets(rng: np.random.Generator) -> Iterator[tuple[str, Boxes]]:
    """Sets of boxes, named by what is special about them."""
    typical = random_boxes(rng, 70)
    yield "typical", typical
    yield "empty", np.empty((0, 4))
    yield "single", random_boxes(rng, 1)
    yield "ties", np.round(random_boxes(rng, 60, span=12, size=12) / 4) * 4
    yield "equal", np.tile(random_boxes(rng, 1), (33, 1))
    yield "degenerate", with_rows(typical, [[5, 5, 5, 9], [7, 7, 7, 7], [9, 9, 3, 3], [9, 3, 3, 9], [0, 0, 0, 0]])
    yield "crowd", crowd(rng, 300, 12)
    yield "signed zeros", signed_zeros(rng)
    yield "huge beside small", huge_beside_small(rng)


def hostile_box_sets(rng: np.random.Generator) -> Iterator[tuple[str, Boxes]]:
    """:func:`box_sets`, and sets whose arithmetic leaves the finite numbers."""
    yield from box_sets(rng)
    yield "nonfinite", nonfinite(rng)
    yield "extremes", extremes(rng)


def nonfinite(rng: np.random.Generator) -> Boxes:
    inf, nan = np.inf, np.nan
    rows = [[nan, 0, 5, 5], [0, nan, 5, 5], [0, 0, inf, 5], [-inf, 0, 5, 5], [-inf, -inf, inf, inf], [nan] * 4]
    return with_rows(random_boxes(rng, 40), rows)


def with_rows(boxes: Boxes, rows: list[list[float]]) -> Boxes:
    """`boxes` with these rows spread among them."""
    return np.insert(boxes, np.linspace(0, len(boxes), len(rows)).astype(int), rows, axis=0)


def extremes(rng: np.random.Generator) -> Boxes:
    """Areas that overflow and underflow float32, next to ordinary ones."""
    boxes = random_boxes(rng, 24)
    boxes[::4] *= 1e24
    boxes[1::4] *= 1e-30
    return boxes


def signed_zeros(rng: np.random.Generator) -> Boxes:
    """Boxes at the origin, with coordinates that are 0 or -0."""
    boxes = random_boxes(rng, 30, span=0, size=9)
    boxes[::3] -= boxes[::3, [2, 3, 2, 3]]  # they end at the origin
    boxes[1::5, 2:] = 0
    return np.where((boxes == 0) & (rng.random(boxes.shape) < 0.5), -0.0, boxes)


def huge_beside_small(rng: np.random.Generator) -> Boxes:
    """A few boxes that are far larger than the others, and a few that are almost nothing; every area is finite."""
    return with_rows(
        random_boxes(rng, 60),
        [[-1e9, -1e9, 1e9, 1e9], [0, 0, 1e9, 3], [7, 7, 7 + 1e-5, 7 + 1e-5], [1e8, 1e8, 2e8, 2e8]],
    )


# --- other arrays ----------------------------------------------------------------------------------------------------


def random_scores(rng: np.random.Generator, boxes: Boxes, *, steps: int = 0) -> NDArray[Any]:
    """A score for each box; with ties where they are rounded to so many steps."""
    scores = rng.random(len(boxes))
    return np.round(scores * steps) / steps if steps else scores


def around(value: float, dtype: str = "float32") -> tuple[float, ...]:
    """Thresholds at `value` and one ULP of the dtype to both sides, those of them that are in [0, 1]."""
    middle = np.dtype(dtype).type(value)
    near = (np.nextafter(middle, np.dtype(dtype).type(0)), middle, np.nextafter(middle, np.dtype(dtype).type(1)))
    return tuple(float(v) for v in near if 0 <= v <= 1)


def as_dtype(array: Boxes, dtype: str) -> Boxes:
    with np.errstate(all="ignore"):
        return np.clip(array, 0, 255).astype(dtype) if dtype == "uint8" else array.astype(dtype)


# --- the same values in other memory ---------------------------------------------------------------------------------


def strided(array: NDArray[Any]) -> NDArray[Any]:
    """The same values in memory that is neither contiguous nor in order."""
    return np.repeat(array[::-1], 2, axis=0)[::2][::-1]


def true_as_any_byte(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The same truth values in bytes that are not only 0 and 1, as in a view of a mask of 0 and 255."""
    return np.where(mask, np.resize([255, 2, 1], mask.shape), 0).astype(np.uint8).view(np.bool_)


def unaligned(array: NDArray[Any]) -> NDArray[Any]:
    """The same values in memory that begins at an odd address."""
    return np.frombuffer(b"." + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


def field_of_records(array: NDArray[Any]) -> NDArray[Any]:
    """The same values as a field of a structured array: far apart and not aligned."""
    records = np.zeros(len(array), [("tag", "u1"), ("value", array.dtype, array.shape[1:])])
    records["value"] = array
    return records["value"]


def negative_strides(array: NDArray[Any]) -> NDArray[Any]:
    backwards = (slice(None, None, -1),) * array.ndim
    return array[backwards].copy()[backwards]


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


FORMS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "unaligned": unaligned,
    "field of records": field_of_records,
    "foreign byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "negative strides": negative_strides,
    "read-only": read_only,
    "true as any byte": lambda array: true_as_any_byte(array) if array.dtype == np.bool_ else array,
    "subclass": lambda array: array.view(np.ma.MaskedArray),
}
"""Every form of memory that NumPy has."""

# Twelve anchors in two images, for samples and for examples by hand.
_RNG = np.random.default_rng(0)
BOXES, OTHERS, SCORES = random_boxes(_RNG, 12), random_boxes(_RNG, 5), _RNG.random(12)
LOGITS, DELTAS = _RNG.normal(size=(2, 12, 4)), _RNG.normal(size=(2, 12, 4))
LABELS = np.array([[0, 3, 0, 0, -1, 0, 0, 1, 0, 0, 0, 0], [0] * 12])
NAN_BOXES = np.where(np.arange(48).reshape(12, 4) == 5, np.nan, BOXES)  # in row 1
FLAT_BOXES = np.where(np.arange(12)[:, None] == 3, [1, 1, 1, 5], BOXES)  # row 3 has no width
NO_ROWS = np.array([])  # as torch.tensor([]) is
PAST_INT64 = np.array([2**64 - 1] + [0] * 11, np.uint64)
