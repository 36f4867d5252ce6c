"""The calls of :mod:`tests.sanitize.hostile`: good arguments with one replaced, and threads that interfere."""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from fastssd import _C, ops
from fastssd.backends import shortcuts
from tests.operators import EXAMPLES, OPERATORS, PUBLIC, convert, kernel_arguments, torch_operator, torch_samples
from tests.sanitize.hostile_values import (
    ARRAYS,
    INFINITY,
    LARGE_ARRAYS,
    NAN,
    NUMBERS,
    WORDS,
    Expression,
    tensors,
    torch,
)

SECONDS = 60.0  # far beyond what any call takes, on any machine: only a hang gets there


class Call(NamedTuple):
    name: str
    run: Callable[[], Any]
    operator: str | None = None  # whose reference says what is right; None: any result is
    large: bool = False  # asks for more memory than there is, which a sanitizer's allocator reports as a fault


# --- the public functions --------------------------------------------------------------------------------------------


def in_float32(operator: str, sample: dict[str, Any]) -> dict[str, Any]:
    def change(_: int, array: Any) -> Any:
        return array.astype(np.float32) if array.dtype.kind == "f" else array.copy()

    return convert(operator, sample, change)


def good(operator: str) -> dict[str, Any]:
    """Arguments of the public function, all of them what it wants; one or all of them are replaced."""
    arguments = in_float32(operator, EXAMPLES[operator].samples[0])
    if "out" in inspect.signature(getattr(ops, operator)).parameters:
        arguments["out"] = np.empty((len(arguments["boxes1"]), len(arguments["boxes2"])), np.float32)
    return arguments


def compared(operator: str, argument: str, hostile: Expression) -> str | None:
    """`operator` where its reference says what the result is to be."""
    clipped = argument == "clip"  # to so little that the last bits of what was cut off decide
    return None if clipped or hostile.text in ("no storage", "fake") else operator


def hostile_for(value: Any) -> list[Expression]:
    """What may be put in the place of this value."""
    if isinstance(value, np.ndarray):
        return ARRAYS
    return WORDS if isinstance(value, str) else NUMBERS


def faces() -> Iterator[Call]:
    """Every operator with one argument replaced, and with all of its arrays replaced at once."""
    for operator in PUBLIC:
        function, arguments = getattr(ops, operator), good(operator)
        for name, value in arguments.items():
            for hostile in hostile_for(value):
                yield Call(
                    f"ops.{operator}({name}={hostile.text})",
                    lambda f=function, o=operator, n=name, hostile=hostile: f(
                        **{**(a := good(o)), n: hostile.make(a[n])}
                    ),
                    compared(operator, name, hostile),
                )
            if isinstance(value, np.ndarray):
                for hostile in LARGE_ARRAYS:
                    yield Call(
                        f"ops.{operator}({name}={hostile.text})",
                        lambda f=function, o=operator, n=name, hostile=hostile: f(
                            **{**(a := good(o)), n: hostile.make(a[n])}
                        ),
                        large=True,
                    )
        if any(isinstance(value, np.ndarray) for value in arguments.values()):
            for hostile in ARRAYS:
                yield Call(
                    f"ops.{operator}(every array={hostile.text})",
                    lambda f=function, o=operator, hostile=hostile: f(
                        **{n: hostile.make(v) if isinstance(v, np.ndarray) else v for n, v in good(o).items()}
                    ),
                    operator,
                )


@functools.cache
def recorded(function: str) -> list[Any]:
    """Arguments of ``_C.function``: what the public function gives it for a sample in float32; outputs last.

    Raises:
        KeyError: no operator of that name.
    """
    operator = function.removeprefix("direct_")
    if operator == function:
        return kernel_arguments(operator, in_float32(operator, EXAMPLES[operator].samples[0]))
    calls: list[list[Any]] = []

    def decline(*arguments: Any) -> None:
        calls.append(list(arguments))

    with mock.patch.dict(vars(shortcuts), {operator: decline}):
        for sample in EXAMPLES[operator].samples:  # not all have the short way
            getattr(ops, operator)(**in_float32(operator, sample))
    return calls[0]


def private(function: str) -> list[Any]:
    """Arguments of ``_C.function`` that may be written to."""
    return [value.copy() if isinstance(value, np.ndarray) else value for value in recorded(function)]


NO_OPERATORS = {"isa", "available_isas", "compiled_isas", "set_thread_count"}
PRIVATE = [name for name in vars(_C) if not name.startswith("_") and name not in NO_OPERATORS]


def with_place(arguments: list[Any], place: int, hostile: Expression) -> list[Any]:
    return [hostile.make(value) if i == place else value for i, value in enumerate(arguments)]


def compiled() -> Iterator[Call]:
    """Every function of the compiled module, whatever its faces would have refused."""
    for name in PRIVATE:
        try:
            arguments = private(name)
        except KeyError:  # newer than this table: at least it is called with nonsense
            for count in range(9):
                for hostile in (None, -1, np.zeros((3, 4), np.float32), "text"):
                    yield Call(
                        f"_C.{name}(*[{type(hostile).__name__}] * {count})",
                        lambda n=name, c=count, o=hostile: getattr(_C, n)(*[o] * c),
                    )
            continue
        for place, value in enumerate(arguments):
            for hostile in hostile_for(value):
                yield Call(
                    f"_C.{name}(argument {place} {hostile.text})",
                    lambda n=name, p=place, hostile=hostile: getattr(_C, n)(*with_place(private(n), p, hostile)),
                )
        for hostile in ARRAYS:
            yield Call(
                f"_C.{name}(every array {hostile.text})",
                lambda n=name, hostile=hostile: getattr(_C, n)(
                    *(hostile.make(v) if isinstance(v, np.ndarray) else v for v in private(n))
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


def as_tensors(arguments: dict[str, Any]) -> dict[str, Any]:
    return {n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in arguments.items()}


def of_tensors() -> Iterator[Call]:
    """The faces with tensors, one at a time hostile."""
    for operator in PUBLIC:
        function = getattr(ops, operator)
        for name, value in good(operator).items():
            if isinstance(value, np.ndarray):
                for hostile in tensors():
                    yield Call(
                        f"torch ops.{operator}({name}={hostile.text})",
                        lambda f=function, o=operator, n=name, hostile=hostile: f(
                            **{**(a := as_tensors(good(o))), n: hostile.make(a[n])}
                        ),
                        compared(operator, name, hostile),
                    )


def registered() -> Iterator[Call]:
    """torch.ops.fastssd.*, which faces do not guard."""
    for operator in OPERATORS:
        function = torch_operator(operator)

        def arguments(operator: str = operator) -> dict[str, Any]:
            sample = torch_samples(operator)[0]
            return {n: v.float() if getattr(v, "dtype", None) is torch.float64 else v for n, v in sample.items()}

        for name, value in arguments().items():
            for hostile in tensors() if isinstance(value, torch.Tensor) else hostile_for(value):
                yield Call(
                    f"torch.ops.fastssd.{operator}({name}={hostile.text})",
                    lambda f=function, a=arguments, n=name, hostile=hostile: f(
                        **{**(all_ := a()), n: hostile.make(all_[n])}
                    ),
                    compared(operator, name, hostile),
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
            pass  # it saw the hostile content
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
