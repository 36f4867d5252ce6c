"""The compiled module: the instruction set asked for runs, all give the same bits, and C++ agrees with Python."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastssd import backends
from fastssd.backends import reference, threads
from fastssd.ops import matching
from fastssd.ops._operator import REGISTRY

_C = pytest.importorskip("fastssd._C", reason="this build has no compiled kernels")

ROOT = Path(__file__).parents[1]

# Every operator on both dtypes, with lengths that are no multiple of any vector; prints the ISA and a digest.
DIGEST = """
import hashlib
import numpy as np
from fastssd import _C
from fastssd.backends import OPERATORS, cpp

called = set()
rng = np.random.default_rng(0)
digest = hashlib.sha256()

def call(name, *arguments, out):
    called.add(name)
    returned = getattr(cpp, name)(*arguments, *out)
    for array in out:
        digest.update(np.ascontiguousarray(array[:returned]).tobytes())

for dtype in (np.float32, np.float64):
    def boxes(*shape):
        corner, size = rng.random((*shape, 2)), rng.random((*shape, 2)) / 3
        grid = 64 if shape[-1] % 2 else 1 << 20  # coarse coordinates make ties
        return np.round(np.concatenate([corner, corner + size + 1 / 64], -1) * grid).astype(dtype) / dtype(grid)

    def new(*shape, dtype=dtype):
        return np.zeros(shape, dtype)

    a, b = boxes(2, 37), boxes(2, 333)
    for name in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"):
        call(name, a, b, out=[new(2, 37, 333)])
    flat, other = boxes(777), boxes(777)
    flat[5, 2], flat[9, 0] = np.nan, np.inf
    scores = np.round(rng.random(777) * 99).astype(dtype) / dtype(99)
    groups = rng.integers(-2, 3, 777)
    call("paired_box_iou", flat, other, out=[new(777)])
    call("box_area", flat, out=[new(777)])
    call("box_convert", flat, 0, 2, out=[new(777, 4)])
    call("clip_boxes_to_image", flat, 0.5, 0.75, out=[new(777, 4)])
    call("remove_small_boxes", flat, 0.2, out=[new(777, dtype=np.int64)])
    call("grid_anchors", 5, 7, rng.random((3, 2)), np.array([240.0, 320.0]), True, out=[new(105, 4)])
    keep = new(777, dtype=np.int64)
    call("nms", flat, scores, 0.3, out=[keep])
    call("batched_nms", flat, scores, groups, 0.3, out=[keep])
    for method in (0, 1):
        call("soft_nms", flat, scores, method, 0.3, 0.5, 0.01, out=[keep, new(777)])
        call("matrix_nms", flat, scores, groups, method, 0.5, 0.05, out=[keep, new(777)])
    offsets = np.array([0, 21, 21, 50])
    gt, labels = boxes(50), rng.integers(1, 9, 50)
    long = [new(3, 777, dtype=np.int64) for _ in range(2)]
    for force in range(4):
        call("match_anchors", other, gt, offsets, 0.5, 0.4, force, out=[long[0], new(3, 777)])
    call("assign_targets", other, gt, labels, offsets, 0.5, 0.4, 1, 0.1, 0.2, out=[long[0], new(3, 777, 4), long[1]])
    loss, positive = rng.random((3, 777)).astype(dtype), rng.random((3, 777)) < 0.05
    call("mine_hard_negatives", loss, positive, 3.0, 5, out=[new(3, 777, dtype=bool)])
    for columns in (5, 37):
        logits, classes = rng.standard_normal((3, 777, columns)).astype(dtype), rng.integers(-1, 5, (3, 777))
        classes[rng.random(classes.shape) < 0.9] = 0
        selected = new(3, 777, dtype=bool)
        call("multibox_cross_entropy", logits, classes, 3.0, 5, out=[new(3, dtype=np.float64), selected])
        call("multibox_cross_entropy_gradient", logits, classes, selected, 0.3, out=[new(3, 777, columns)])
    deltas = rng.standard_normal((3, 777, 4)).astype(dtype)
    call("encode_boxes", boxes(3, 777), other, 0.1, 0.2, out=[new(3, 777, 4)])
    call("decode_boxes", deltas, other, 0.1, 0.2, out=[new(3, 777, 4)])
    logits = rng.standard_normal((3, 777, 29)).astype(dtype) * 3  # so many candidates that some are left out
    for activation in range(3):
        detections = [new(3, 50, 4), new(3, 50), new(3, 50, dtype=np.int64), new(3, 50, dtype=np.int64)]
        detections.append(new(3, dtype=np.int64))
        call("postprocess_detections", logits, deltas, other, 1e-3, 0.45, 100, np.inf, np.inf, activation, 0.1, 0.2,
             out=detections)
assert called == set(OPERATORS), set(OPERATORS) - called
print(_C.isa(), digest.hexdigest())
"""


def run(code: str, isa: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "FASTSSD_ISA"}
    if isa is not None:
        environment["FASTSSD_ISA"] = isa
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)


def test_every_available_isa_runs_when_forced_and_gives_the_same_bits() -> None:
    digests = set()
    for isa in _C.available_isas():
        result = run(DIGEST, isa)
        assert result.returncode == 0, result.stderr
        ran, digest = result.stdout.split()
        assert ran == isa
        digests.add(digest)
    assert len(digests) == 1


def test_the_best_available_isa_is_the_default() -> None:
    result = run("from fastssd import _C; print(_C.isa())", None)
    assert result.stdout.strip() == _C.available_isas()[0]


def test_an_isa_that_cannot_run_is_an_error() -> None:
    cannot_run = [isa for isa in _C.compiled_isas() if isa not in _C.available_isas()]
    for isa in ["sse9", *cannot_run]:
        result = run("import fastssd._C", isa)
        assert result.returncode != 0
        assert "ImportError" in result.stderr
        assert isa in result.stderr


@pytest.mark.parametrize(
    ("boxes", "scores", "keep"),
    [
        (None, np.zeros(3), np.zeros(3, np.int64)),
        (np.zeros((3, 4)), np.zeros(3, np.float32), np.zeros(3, np.int64)),
        (np.zeros((3, 4)), np.zeros(2), np.zeros(3, np.int64)),
        (np.zeros((3, 5)), np.zeros(3), np.zeros(3, np.int64)),
        (np.zeros((3, 8))[:, ::2], np.zeros(3), np.zeros(3, np.int64)),
        (np.zeros((3, 4), ">f8"), np.zeros(3), np.zeros(3, np.int64)),
        (np.zeros((3, 4), np.int64), np.zeros(3, np.int64), np.zeros(3, np.int64)),
        (np.zeros((3, 4)), np.zeros(3), np.zeros(3, np.int32)),
        (np.zeros((3, 4)), np.zeros(3), np.broadcast_to(np.int64(0), 3)),
    ],
)
def test_the_bindings_refuse_arrays_that_would_crash_a_kernel(boxes: Any, scores: Any, keep: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        _C.nms(boxes, scores, 0.5, keep)


def parameters(function: Any) -> list[str]:
    """The names in the signature of a compiled function, which pybind11 puts in the first line of its docstring."""
    signature = function.__doc__.splitlines()[0]
    return re.findall(r"(\w+): ", signature)


@pytest.mark.parametrize("name", backends.OPERATORS)
def test_a_binding_has_the_arguments_of_the_reference_in_its_order(name: str) -> None:
    assert parameters(getattr(_C, name)) == list(inspect.signature(getattr(reference, name)).parameters)


def test_the_module_has_the_functions_of_the_stub_of_the_reference_and_the_short_ways() -> None:
    stub = {
        node.name for node in ast.parse((ROOT / "fastssd/_C.pyi").read_text()).body if isinstance(node, ast.FunctionDef)
    }
    short_ways = {f"direct_{name}" for name, operator in REGISTRY.items() if operator.shortcut}
    functions = {name for name, entry in vars(_C).items() if callable(entry) and not name.startswith("__")}
    assert functions == stub | set(backends.OPERATORS) | short_ways


def test_codes_and_limits_are_the_same_in_python_and_in_cpp() -> None:
    codes = ("BOX_FORMATS", "FORCE_MATCH", "ACTIVATIONS", "SOFT_NMS_METHODS")
    in_python = {name: list(getattr(backends, name)) for name in codes}
    for name in codes:
        assert list(getattr(backends, name).values()) == list(range(len(in_python[name])))
    limits = {"shared block bytes": matching._MOST_SHARED_BYTES, "threads": threads.MOST}
    assert _C.shared_constants == in_python | limits


def test_no_object_defines_weak_symbols_outside_its_namespace() -> None:
    """The linker keeps one copy of a weak symbol, maybe the one with the widest instructions, and uses it for all."""
    nm = shutil.which("nm")
    # Not those of build/sanitize/: the linker of an unoptimised build has such symbols to choose from.
    objects = [path for path in ROOT.glob("build/*/CMakeFiles/kernels_*/**/kernels.cpp.o*") if path.is_file()]
    if nm is None or not objects:
        pytest.skip("needs nm and the objects of a build in build/")
    for path in objects:
        isa = (
            next(part for part in path.parts if part.startswith("kernels_"))
            .removeprefix("kernels_")
            .removesuffix(".dir")
        )
        lines = subprocess.run(
            [nm, "--defined-only", path], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        symbols = [line.split()[-2:] for line in lines]
        own = f"7fastssd{len(isa)}{isa}"
        assert any(own in name for _, name in symbols)  # this is what the search below would find
        # DW.ref is a pointer to the exception handler, the same in every object.
        weak = [name for kind, name in symbols if kind in "WVu" and own not in name and not name.startswith("DW.ref.")]
        assert weak == []
