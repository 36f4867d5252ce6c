"""Hard numbers on every instruction set and several numbers of threads: ``python -m tests.sanitize.differential``.

Boxes and scores of both signs, with NaN, infinities, -0.0, subnormals, a huge value beside small ones and many ties, in
sizes on both sides of those at which kernels change their plan. What the contract says to be equal bit for bit is
compared with the reference bit for bit, the sign of zero included; what it allows to differ in last bits is compared
with the reference within that, and bit for bit between instruction sets and numbers of threads. ``--numba`` compares
the Numba kernels too, which first compiles them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastssd
from fastssd import _C, ops
from tests.operators import EXAMPLES, OPERATORS, difference
from tests.operators._inputs import crowd, random_boxes

Array = NDArray[Any]
THREADS = (1, 2, 5)


class HardCase(NamedTuple):
    operator: str
    name: str
    call: Callable[[], Any]
    reference: Callable[[], Any] | None = None  # where it is not the same call
    steady: bool = True  # whether last bits change little: else only instruction sets and threads are compared


# --- hard numbers ----------------------------------------------------------------------------------------------------


def spread(rng: np.random.Generator, array: Array, values: list[float], share: float) -> Array:
    """`array` with this share of its entries replaced by `values`."""
    copy = array.copy()
    where = rng.random(copy.shape) < share
    with np.errstate(over="ignore", under="ignore"):
        copy[where] = rng.choice(np.array(values), copy.shape)[where]
    return copy


def hard_boxes(rng: np.random.Generator, n: int) -> Iterator[tuple[str, Array]]:
    """Sets of `n` boxes, each hard in a way of its own."""
    base = crowd(rng, n, max(1, n // 25)) if rng.random() < 0.5 else random_boxes(rng, n, span=300, size=40)
    yield "plain", base
    yield "both signs", base - 150
    yield "on a lattice", np.round(base / 16) * 16 - 64
    yield "NaN and infinity", spread(rng, base, [np.nan, np.inf, -np.inf], 0.02)
    yield "zeros", spread(rng, base, [0.0, -0.0], 0.2)
    yield "subnormal", spread(rng, base * 1e-3, [1e-45, -1e-45, 1e-40, 1e-38, 0.0], 0.3)
    few = base.copy()
    few[:: max(1, n // 3)] *= [[-1e9, -1e9, 1e9, 1e9]]
    yield "few are huge", few
    tiny = base.copy()
    tiny[:: max(1, n // 5), 2:] = tiny[:: max(1, n // 5), :2] * (1 + 1e-6) + 1e-15
    yield "few are tiny", tiny
    yield "all sizes", base * 10.0 ** rng.integers(-12, 12, (n, 1))
    yield "overflow", spread(rng, base, [3e38, -3e38, 1e30], 0.05)
    flat = base.copy()
    flat[::3, 2] = flat[::3, 0]
    flat[1::7, 3] -= 500
    yield "degenerate", flat
    bars = random_boxes(rng, n, span=300, size=1)
    bars[::2, 2] += 250
    bars[1::2, 3] += 250
    yield "bars that cross", bars


def hard_scores(rng: np.random.Generator, n: int) -> Iterator[tuple[str, Array]]:
    base = rng.normal(size=n) * 10
    yield "both signs", base
    yield "both signs and NaN", spread(rng, base, [np.nan], 0.06)
    yield "ties", np.round(base)
    yield "zeros", spread(rng, np.round(base / 4), [0.0, -0.0], 0.3)
    yield "subnormal", spread(rng, base * 1e-40, [0.0, -0.0, 1e-45, -1e-45], 0.3)
    yield "infinities", spread(rng, base, [np.inf, -np.inf, np.nan, 3e38], 0.1)
    yield "none but NaN", np.full(n, np.nan)
    yield "one level", np.full(n, 0.25)
    yield "all below zero", -np.abs(base) - 1


def as_type(array: Array, dtype: str) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        return array.astype(dtype)


def pick(rng: np.random.Generator, pairs: Iterator[tuple[str, Array]], count: int) -> list[tuple[str, Array]]:
    every = list(pairs)
    return [every[i] for i in sorted(rng.choice(len(every), min(count, len(every)), replace=False))]


# --- calls -----------------------------------------------------------------------------------------------------------


def all_hard_cases(seed: int) -> Iterator[HardCase]:
    for place, make in enumerate((_boxes, _iou, _nms, _matching, _mining, _multibox, _coding, _postprocess)):
        yield from make(np.random.default_rng([seed, place]))


def _boxes(rng: np.random.Generator) -> Iterator[HardCase]:
    for tag, array in hard_boxes(rng, 1037):
        for dtype in ("float32", "float64"):
            b, name = as_type(array, dtype), f"{tag} {dtype}"
            yield HardCase("box_area", name, lambda b=b: ops.box_area(b))
            for size in ((100.0, 150.5), (0.0, 1e30)):
                yield HardCase(
                    "clip_boxes_to_image", f"{name} {size}", lambda b=b, s=size: ops.clip_boxes_to_image(b, s)
                )
            for least in (0.0, 20.0, -1.0):
                yield HardCase(
                    "remove_small_boxes", f"{name} {least}", lambda b=b, s=least: ops.remove_small_boxes(b, s)
                )
            for source in ("xyxy", "xywh", "cxcywh"):
                for to in ("xyxy", "xywh", "cxcywh"):
                    yield HardCase(
                        "box_convert", f"{name} {source} {to}", lambda b=b, s=source, t=to: ops.box_convert(b, s, t)
                    )


def _iou(rng: np.random.Generator) -> Iterator[HardCase]:
    for name in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"):
        function = getattr(ops, name)
        for n, m in ((37, 333), (610, 500)):
            for tag, array in pick(rng, hard_boxes(rng, n + m), 5):
                for dtype in ("float32", "float64"):
                    b = as_type(array, dtype)
                    steady = name != "complete_box_iou" or tag in ("plain", "both signs", "degenerate")
                    call = partial(function, b[:n], b[n:])
                    yield HardCase(name, f"{tag} {dtype} {n} x {m}", call, steady=steady)
    for tag, array in hard_boxes(rng, 30_001):
        for dtype in ("float32", "float64"):
            b = as_type(array, dtype)
            yield HardCase("paired_box_iou", f"{tag} {dtype}", lambda b=b: ops.paired_box_iou(b, b[::-1]))


def _nms(rng: np.random.Generator) -> Iterator[HardCase]:
    for n in (7, 33, 255, 256, 600, 2500):
        sets = pick(rng, hard_boxes(rng, n), 4 if n > 1000 else 12)
        for tag, array in sets:
            dtype = rng.choice(["float32", "float64"])
            b = as_type(array, dtype)
            for score_tag, values in pick(rng, hard_scores(rng, n), 2 if n > 1000 else 4):
                s = as_type(values, dtype)
                threshold = float(rng.choice([0.0, 1e-30, 0.05, 0.3, 0.45, 0.5, 0.7, 1.0]))
                name = f"{n} {tag}, {score_tag} {dtype} {threshold}"
                groups = rng.choice([-(2**63), -1, 0, 3, 2**63 - 1], n)
                yield HardCase("nms", name, lambda b=b, s=s, t=threshold: ops.nms(b, s, t))
                yield HardCase("batched_nms", name, lambda b=b, s=s, g=groups, t=threshold: ops.batched_nms(b, s, g, t))
                if n <= 256:
                    for method in ("linear", "gaussian"):
                        call = partial(ops.soft_nms, b, s, method=method)
                        # Tied scores that decay alike are put in order by last bits.
                        steady = method == "linear" and score_tag.startswith("both")
                        yield HardCase("soft_nms", f"{name} {method}", call, steady=steady)
                        call = partial(ops.matrix_nms, b, s, groups, method=method)
                        yield HardCase("matrix_nms", f"{name} {method}", call, steady=method == "linear")


def _matching(rng: np.random.Generator) -> Iterator[HardCase]:
    grid = ops.grid_anchors([20, 10, 5, 1], [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.88, 0.961)])
    for n, per_image in ((60, (9, 0, 40)), (3000, (30, 1, 64, 0, 12, 12))):
        sets: list[tuple[str, Array]] = [("lattice", np.round(random_boxes(rng, n, span=60, size=30) / 4) * 4 - 32)]
        sets += [("plain", random_boxes(rng, n)), ("all sizes", random_boxes(rng, n) * 10.0 ** rng.integers(-9, 9))]
        zeros = spread(rng, random_boxes(rng, n), [0.0, -0.0], 0.1)
        sets += [("zeros", zeros), ("overflow", spread(rng, random_boxes(rng, n), [3e37, 1e30, 1e-38], 0.01))]
        for tag, array in sets:
            dtype = str(rng.choice(["float32", "float64"]))
            anchors = as_type(array, dtype)
            gt = [
                as_type(array[rng.integers(0, n, count)] + rng.integers(-2, 3, (count, 4)), dtype)
                for count in per_image
            ]
            for force in ("bipartite", "best", "low_quality", "none"):
                options = {
                    "iou_threshold": 0.5,
                    "background_threshold": float(rng.choice([0.3, 0.5])),
                    "force_match": force,
                }
                call = partial(ops.match_anchors, anchors, gt, **options)
                yield HardCase("match_anchors", f"{n} {tag} {dtype} {force}", call)
    for dtype in ("float32", "float64"):
        gt = [np.sort(rng.random((count, 2, 2)), 1).reshape(count, 4).astype(dtype) for count in (9, 1, 0, 25) * 3]
        gt = [boxes + np.array([0, 0, 0.01, 0.01], dtype) for boxes in gt]
        labels = [rng.integers(1, 2**62, len(boxes)) for boxes in gt]
        anchors = grid.astype(dtype)
        yield HardCase("assign_targets", dtype, lambda a=anchors, g=gt, y=labels: ops.assign_targets(a, g, y))


def mask_of_any_byte(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> tuple[Array, Array]:
    """A mask, and the same mask in which true is any byte but 0, as views of images of 0 and 255 are."""
    mask = rng.random(shape) < share
    return mask, np.where(mask, rng.choice([1, 2, 128, 255], shape), 0).astype(np.uint8).view(bool)


def _mining(rng: np.random.Generator) -> Iterator[HardCase]:
    for shape in ((3, 77), (5, 8000)):
        for tag, values in hard_scores(rng, shape[0] * shape[1]):
            dtype = str(rng.choice(["float32", "float64"]))
            loss = as_type(values, dtype).reshape(shape)
            mask, bytes_of_it = mask_of_any_byte(rng, shape, float(rng.choice([0.0, 0.003, 0.3])))
            ratio, least = float(rng.choice([0.0, 0.4, 3.0, 1e300])), int(rng.choice([0, 5, 2**40]))
            name = f"{shape} {tag} {dtype} ratio {ratio} least {least}"

            def mine(positive: Array, loss: Array = loss, ratio: float = ratio, least: int = least) -> Any:
                return ops.mine_hard_negatives(loss, positive, neg_pos_ratio=ratio, min_negatives=least)

            yield HardCase("mine_hard_negatives", name, lambda m=mask, f=mine: f(m))
            yield HardCase(
                "mine_hard_negatives",
                f"{name} bytes other than 0 and 1",
                lambda m=bytes_of_it, f=mine: f(m),
                lambda m=mask, f=mine: f(m),
            )


def _multibox(rng: np.random.Generator) -> Iterator[HardCase]:
    for anchors, columns in ((90, 3), (3000, 21), (2000, 91)):
        logits = rng.normal(size=(4, anchors, columns)) * 3
        labels = np.where(rng.random((4, anchors)) < 0.05, rng.integers(-1, columns, (4, anchors)), 0)
        broken = spread(rng, logits, [np.nan, np.inf, -np.inf, 3e38, -3e38, -0.0, 1e-45], 0.002)
        for tag, values in (
            ("plain", logits),
            ("broken", broken),
            ("huge beside small", logits * np.array([1e4, *[1] * (columns - 1)])),
        ):
            for dtype in ("float32", "float64"):
                x = as_type(values, dtype)
                name = f"{anchors} x {columns} {tag} {dtype}"
                call = partial(ops.multibox_cross_entropy, x, labels, min_negatives=2)
                yield HardCase("multibox_cross_entropy", name, call, steady=tag == "plain")


def _coding(rng: np.random.Generator) -> Iterator[HardCase]:
    for dtype in ("float32", "float64"):
        anchors, boxes = random_boxes(rng, 9001).astype(dtype), random_boxes(rng, 9001).astype(dtype)
        yield HardCase("encode_boxes", dtype, lambda b=boxes, a=anchors: ops.encode_boxes(b, a))
        for tag, deltas in (
            ("plain", rng.normal(size=(3, 9001, 4))),
            ("broken", spread(rng, rng.normal(size=(3, 9001, 4)), [np.nan, np.inf, -np.inf, 1e3, -1e3, -0.0], 0.05)),
        ):
            d = as_type(deltas, dtype)
            yield HardCase(
                "decode_boxes", f"{tag} {dtype}", lambda d=d, a=anchors: ops.decode_boxes(d, a), steady=tag == "plain"
            )


def _postprocess(rng: np.random.Generator) -> Iterator[HardCase]:
    for anchors, columns in ((70, 3), (3000, 8)):
        priors = random_boxes(rng, anchors)
        deltas = rng.normal(size=(4, anchors, 4)) / 2
        levels = np.round(rng.random((4, anchors, columns)) * 16) / 16  # exact in both dtypes: ties, and no rounding
        broken = spread(rng, levels, [np.nan, np.inf, -np.inf, -0.0, -1.0], 0.01)
        wild = spread(rng, deltas, [np.nan, np.inf, 80.0, -80.0], 0.02)
        options = {"score_threshold": 0.3, "topk": 60, "max_detections": 50}
        for tag, scores, moves in (
            ("levels", levels, deltas),
            ("broken scores", broken, deltas),
            ("wild deltas", levels, wild),
        ):
            for dtype in ("float32", "float64"):
                arrays = [as_type(array, dtype) for array in (scores, moves, priors)]
                for activation in ("none", "softmax", "sigmoid"):
                    detect = partial(ops.postprocess_detections, *arrays, activation=activation, **options)
                    # Boxes of deltas that reach far, and tied scores of an exponential, differ in last bits.
                    steady = activation == "none" and tag != "wild deltas"
                    name = f"{anchors} x {columns} {tag} {dtype} {activation}"
                    yield HardCase("postprocess_detections", name, detect, steady=steady)


# --- comparing -------------------------------------------------------------------------------------------------------


def outputs(value: Any) -> tuple[Array, ...]:
    return tuple(np.asarray(each) for each in (value if isinstance(value, tuple) else (value,)))


def digest(value: Any) -> str:
    """Of the bits; NaN is NaN, whatever its bits."""
    total = hashlib.sha256()
    for array in outputs(value):
        if array.dtype.kind == "f":
            array = np.where(np.isnan(array), np.array(np.nan, array.dtype), array)
        total.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def problem_of(case: HardCase, ref: Any, comp: Any) -> str | None:
    problem = difference(case.operator, ref, comp)
    if problem is None and not EXAMPLES[case.operator].rounded:
        for place, (r, c) in enumerate(zip(outputs(ref), outputs(comp), strict=True)):
            if r.dtype.kind == "f" and (signs := (np.signbit(r) != np.signbit(c)) & (r == 0)).any():
                return f"output {place}: the sign of zero differs in {signs.sum()} of {r.size}"
    return problem


def references(cases: list[HardCase]) -> list[Any]:
    with fastssd.use_backend("reference"):
        return [(case.reference or case.call)() if case.steady else None for case in cases]


def compare(seeds: list[int], refs: list[Any], backend: str, threads: tuple[int, ...]) -> dict[str, Any]:
    """What differs from the reference, and what from one number of threads to the next; and digests."""
    cases = [case for seed in seeds for case in all_hard_cases(seed)]
    problems, digests = [], []
    with fastssd.use_backend(backend):
        for case, ref in zip(cases, refs, strict=True):
            seen = set()
            for count in threads:
                fastssd.set_num_threads(count)
                comp = case.call()
                seen.add(digest(comp))
                if count == threads[0] and case.steady and (problem := problem_of(case, ref, comp)) is not None:
                    problems.append(f"{case.operator} [{case.name}]: {problem}")
            if len(seen) > 1:
                problems.append(f"{case.operator} [{case.name}]: depends on the number of threads")
            digests.append(min(seen))
    return {"isa": _C.isa() if backend == "cpp" else backend, "problems": problems, "digests": digests}


def child(isa: str, seeds: list[int], refs: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.sanitize.differential", "--child", str(refs), "--seeds", *map(str, seeds)]
    environment = {**os.environ, **({"FASTSSD_ISA": isa} if isa != "numba" else {})}
    if isa == "numba":
        command.append("--numba")
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--numba", action="store_true", help="the Numba kernels as well")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    np.seterr(all="ignore")
    if options.child is not None:
        refs = pickle.loads(options.child.read_bytes())
        found = compare(options.seeds, refs, "numba" if options.numba else "cpp", (1,) if options.numba else THREADS)
        print(json.dumps(found))
        return 0

    started = time.monotonic()
    cases = [case for seed in options.seeds for case in all_hard_cases(seed)]
    isas = [*_C.available_isas(), *(["numba"] if options.numba else [])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "references.pickle"
        path.write_bytes(pickle.dumps(references(cases)))
        found = [child(isa, options.seeds, path) for isa in isas]
    problems = [f"{isa}: {problem}" for isa, each in zip(isas, found, strict=True) for problem in each["problems"]]
    problems += [f"{isa}: ran {each['isa']}" for isa, each in zip(isas, found, strict=True) if isa != each["isa"]]
    compiled = [each["digests"] for each in found if each["isa"] != "numba"]
    for case, *seen in zip(cases, *compiled, strict=True):
        if len(set(seen)) > 1:
            problems.append(f"{case.operator} [{case.name}]: depends on the instruction set")
    # Their cases are those of tests/operators alone.
    missing = set(OPERATORS) - {case.operator for case in cases} - {"grid_anchors", "multibox_cross_entropy_gradient"}
    problems += [f"{operator}: has no hard cases here" for operator in sorted(missing)]
    print("\n".join(problems[:100]), end="\n" if problems else "")
    calls = len(cases) * (len(THREADS) * len(compiled) + (len(isas) - len(compiled)))
    by_operator = Counter(case.operator for case in cases)
    print(
        f"{calls} calls ({len(cases)} cases of {len(by_operator)} operators, {', '.join(isas)}, threads "
        f"{', '.join(map(str, THREADS))}) in {time.monotonic() - started:.0f} s, {len(problems)} went wrong."
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
