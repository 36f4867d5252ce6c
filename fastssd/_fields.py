"""Check the fields of a dataclass against their type hints, and make such a dataclass from plain values.

A hint states the type, and in ``Annotated`` further rules::

    @dataclass(frozen=True)
    class Preset:
        image_size: Annotated[int, within(1, 4096)]
        variances: tuple[Annotated[float, within(0, 10, above=True)], ...]

        def __post_init__(self) -> None:
            check_fields(self)

So values from Python, files and command line options pass the same check, and one line says all about a field.
"""

from __future__ import annotations

import json
import math
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

DEEPEST = 20  # lists and mappings inside each other, in plain values
MOST_VALUES = 1_000_000  # and values in all

_HINTS: dict[Any, dict[str, Any]] = {}  # by dataclass


class Rule(NamedTuple):
    """A rule for a value besides its type, and its text in errors."""

    holds: Callable[[Any], bool]
    text: str


def within(low: float, high: float = math.inf, *, above: bool = False) -> Rule:
    """A number of at least `low` (or `above` it) and at most `high`; infinity only where `high` is infinite."""
    if math.isinf(high):
        text = f"above {low:g}" if above else f"of at least {low:g}"
    else:
        text = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
    return Rule(lambda value: (low < value if above else low <= value) and value <= high, text)


def one_of(*options: str) -> Rule:
    return Rule(lambda value: value in options, f"of {', '.join(map(repr, options))}")


def length(low: int, high: int) -> Rule:
    """From `low` to `high` entries, or characters."""
    return Rule(lambda value: low <= len(value) <= high, f"of length {low} to {high}")


def check_fields(instance: Any) -> None:
    """Check all fields of a dataclass instance, and make them what their hints say: lists become tuples, numbers of
    NumPy become numbers of Python.

    Raises:
        ValueError: names the field, what came and what was expected.
    """
    for name, hint in _hints(type(instance)).items():
        object.__setattr__(instance, name, _checked(hint, getattr(instance, name), name))


def from_plain(kind: type[T], values: Any) -> T:
    """An instance of a dataclass that checks its fields, from plain values as a JSON file holds them.

    Raises:
        ValueError: a field is missing, unknown, of a wrong type or out of range.
    """
    hints = _hints(kind)
    if not isinstance(values, Mapping):
        raise ValueError(f"expected a mapping with {', '.join(hints)}; got {_shown(values)}")
    if unknown := [name for name in values if name not in hints]:
        raise ValueError(f"unknown field {_shown(unknown[0])}; the fields are {', '.join(hints)}")
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{', '.join(missing)}: missing; the fields are {', '.join(hints)}")
    given = {}
    for name, value in values.items():
        nested = next((part for part in _parts(hints[name]) if isinstance(part, type) and is_dataclass(part)), None)
        if nested is not None and isinstance(value, Mapping):
            try:
                value = from_plain(nested, value)
            except ValueError as error:
                raise ValueError(f"{name}.{error}") from None
        given[name] = value
    return kind(**given)


def read_json(text: str | bytes) -> Any:
    """The content of a JSON text. As in the standard, NaN and infinity are errors.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None


def check_plain(value: Any, name: str) -> None:
    """Raise ValueError unless `value` is made of plain values (None, text, numbers, lists, mappings from texts), is no
    deeper than ``DEEPEST`` and has at most ``MOST_VALUES``. Repeated values count again, so cycles are found."""
    left = MOST_VALUES

    def walk(part: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if depth > DEEPEST or left < 0:
            raise ValueError(f"{name}: expected at most {MOST_VALUES} values, nested {DEEPEST} deep")
        if isinstance(part, Mapping):
            for key, item in part.items():
                if not isinstance(key, (str, int)):
                    raise ValueError(f"{name}: expected mappings from texts, got the key {_shown(key)}")
                walk(item, depth + 1)
        elif isinstance(part, (list, tuple)):
            for item in part:
                walk(item, depth + 1)
        elif part is not None and not isinstance(part, (str, bool, int, float)):
            raise ValueError(f"{name}: expected plain values, got {_shown(part)}")

    walk(value, 0)


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _hints(kind: Any) -> dict[str, Any]:
    if kind not in _HINTS:
        hints = typing.get_type_hints(kind, include_extras=True)
        _HINTS[kind] = {field.name: hints[field.name] for field in fields(kind)}
    return _HINTS[kind]


def _parts(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the hint itself."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _shown(value: Any) -> str:
    return reprlib.repr(value)


def _checked(hint: Any, value: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kind, *rules = arguments
        if value is None and type(None) in _parts(kind):  # rules do not apply to None
            return None
        described = f"{_described(kind)} {' and '.join(rule.text for rule in rules)}"
        try:
            value = _checked(kind, value, key)
        except _WrongTypeError as error:
            if not str(error).startswith(f"{key}:"):  # it is about an entry, and names it
                raise
            raise _WrongTypeError(f"{key}: expected {described}, got {_shown(value)}") from None
        for rule in rules:
            if not rule.holds(value):
                raise ValueError(f"{key}: expected {described}, got {_shown(value)}")
        return value
    if origin in (typing.Union, types.UnionType):
        for alternative in arguments:
            try:
                return _checked(alternative, value, key)
            except _WrongTypeError:
                continue
    elif origin is tuple:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            each = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
            if len(each) == len(value):
                pairs = zip(each, value, strict=True)
                return tuple(_checked(part, item, f"{key}[{place}]") for place, (part, item) in enumerate(pairs))
    elif origin in (dict, list):
        if isinstance(value, Mapping if origin is dict else list):
            check_plain(value, key)
            entries = value.items() if isinstance(value, Mapping) else enumerate(value)
            if arguments[-1] is not Any:
                for place, item in entries:
                    _checked(arguments[-1], item, f"{key}[{place!r}]")
            return value
    elif hint is None or hint is type(None):
        if value is None:
            return None
    elif hint is bool:
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
    elif hint is int:
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            return int(value)
    elif hint is float:
        if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                return math.inf
    elif isinstance(value, origin or hint):
        return value
    raise _WrongTypeError(f"{key}: expected {_described(hint)}, got {_shown(value)}")


class _WrongTypeError(ValueError):
    """The value has another type; a different alternative of a union may fit."""


def _described(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{_described(arguments[0])} {' and '.join(rule.text for rule in arguments[1:])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_described, arguments))
    if origin is tuple:
        count = "" if arguments[1:] == (...,) else f"{len(arguments)} times "
        return f"a list of {count}{_described(arguments[0])}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "none"}
    return names.get(hint) or (f"a {origin.__name__}" if origin else f"a {hint.__name__}")
