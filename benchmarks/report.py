"""Measure everything, and write ``docs/benchmarks.md``, its plots and the table in the README: ``make bench``."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastssd
from fastssd import ops
from fastssd.benchmark import Measurement, environment, measure, workloads
from fastssd.benchmark.workloads import anchors, crowded, objects, sparse, truths

DOCS = Path(__file__).parent.parent / "docs"
README = DOCS.parent / "README.md"
# The README shows one workload of each operator.
SHOWN = (
    "box_iou 8732 x 1000",
    "nms 10000, crowded",
    "nms 10000, sparse",
    "match_anchors 8 x 8732 x 8",
    "mine 8 x 8732",
    "criterion 8 x 8732 x 91",
    "postprocess 8 x 8732 x 91, trained",
)


def seconds(value: float) -> str:
    unit, scale = next((u for u in (("s", 1.0), ("ms", 1e-3)) if value >= u[1]), ("us", 1e-6))
    return f"{value / scale:.3g} {unit}"


def rows(found: list[list[Measurement]]) -> list[str]:
    lines = []
    for group in found:
        peers = [m for m in group if not m.ours]
        best = min(peers, key=lambda m: m.seconds, default=None)
        ours = {m.implementation: m for m in group if m.ours}
        cells = [f"{best.implementation} {seconds(best.seconds)}" if best else "-"]
        for name in ("fastssd cpp, 1 thread", "fastssd cpp, 2 threads", "fastssd numba"):
            m = ours.get(name)
            cells.append("-" if m is None else f"{seconds(m.seconds)}" + (f" (**{m.ratio:.1f} x**)" if m.ratio else ""))
        lines.append(f"| {group[0].workload} | " + " | ".join(cells) + " |")
    return lines


HEAD = ["| work | best peer | C++, 1 thread | C++, 2 threads | Numba |", "|---|---|---|---|---|"]


def detail(found: list[list[Measurement]]) -> list[str]:
    lines = []
    for group in found:
        lines += [f"\n**{group[0].workload}**\n", "| | median of a call |", "|---|---|"]
        lines += [f"| {m.implementation} | {seconds(m.seconds)} |" for m in sorted(group, key=lambda m: m.seconds)]
    return lines


# --- growth -------------------------------------------------------------------------------------------------------


def median_time(calls: list[Callable[[], Any]], rounds: int = 5) -> float:
    times = []
    for turn in range(rounds):
        for call in calls if turn else calls[:1] + calls:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def growth(largest: int) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Median seconds by size: for each figure, for each line, its points."""
    rng = np.random.default_rng(0)
    figures: dict[str, dict[str, list[tuple[int, float]]]] = {}
    sizes = [int(n) for n in 10 ** np.arange(2, np.log10(largest) + 0.01, 0.5)]

    def point(figure: str, line: str, size: int, make: Callable[[], Callable[[], Any]], inputs: int = 5) -> None:
        calls = [make() for _ in range(inputs)]
        figures.setdefault(figure, {}).setdefault(line, []).append((size, median_time(calls)))

    for threads in (1, 2):
        fastssd.set_num_threads(threads)
        suffix = f"{threads} thread{'s' * (threads > 1)}"
        for n in sizes:
            for kind, draw in (("crowded", crowded), ("sparse", sparse)):

                def nms(n: int = n, draw: Any = draw) -> Callable[[], Any]:
                    boxes, scores = draw(rng, n)
                    return lambda: ops.nms(boxes, scores, 0.5)

                point("nms over boxes", f"{kind}, {suffix}", n, nms)
        for g in (1, 3, 10, 30, 100, 300):

            def match(g: int = g) -> Callable[[], Any]:
                gt = [objects(rng, g) for _ in range(8)]
                priors = anchors("ssd300")
                return lambda: ops.match_anchors(priors, gt)

            point("match_anchors over ground-truth boxes (8 images, 8732 anchors)", suffix, g, match)
        for model in ("tinyssd", "ssd300", "ssd512"):
            priors = anchors(model)

            def over_anchors(priors: Any = priors) -> Callable[[], Any]:
                gt, _ = truths(rng, 8, 10)
                return lambda: ops.match_anchors(priors, gt)

            point("match_anchors over anchors (8 images, about 10 boxes each)", suffix, len(priors), over_anchors)
        for m in (10, 30, 100, 300, 1000, 3000):

            def iou(m: int = m) -> Callable[[], Any]:
                a, b = objects(rng, 1000), objects(rng, m)
                out = np.zeros((1000, m), np.float32)
                return lambda: ops.box_iou(a, b, out=out)

            point("box_iou over pairs", suffix, 1000 * m, iou)
    fastssd.set_num_threads(None)
    return figures


def plot(figures: dict[str, dict[str, list[tuple[int, float]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(2, 2).flat, figures.items(), strict=True):
        for name, points in lines.items():
            x, y = zip(*points, strict=True)
            axes.loglog(x, np.array(y) * 1e3, marker="o", markersize=4, label=name)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylabel("ms")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def compile_times() -> list[str]:
    """A table of the compile time of each Numba operator: its first call in a new process, minus a second call."""
    import json
    import subprocess
    import sys

    code = """
import json, os, sys, tempfile, time
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()
import numpy as np, fastssd
from fastssd.benchmark import workloads
from fastssd.benchmark.peers import PEERS
found, seen = {}, set()
with fastssd.use_backend("numba"):
    for workload in workloads():
        if workload.operator in seen or "8 x 8" in workload.name and workload.operator == "box_iou":
            continue
        seen.add(workload.operator)
        call = PEERS[workload.operator][0](*workload.make(np.random.default_rng(0)))
        times = []
        for _ in range(2):
            start = time.perf_counter(); call(); times.append(time.perf_counter() - start)
        found[workload.operator] = times[0] - times[1]
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    times = json.loads(done.stdout)
    return ["| operator | compiling |", "|---|---|"] + [f"| {name} | {value:.1f} s |" for name, value in times.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.6, help="time per implementation of a workload")
    parser.add_argument("--largest", type=int, default=1_000_000, help="number of boxes in the largest nms")
    parser.add_argument("--without", default="-", help="leave out workloads with this in their name")
    options = parser.parse_args()

    machine = environment()
    found = []
    for workload in workloads():
        if options.without not in workload.name:
            print(workload.name, flush=True)
            found.append(measure(workload, options.seconds))
    print("growth", flush=True)
    plot(growth(options.largest), DOCS / "growth.png")

    left_out = [workload.name for workload in workloads() if options.without in workload.name]
    peers = ", ".join(f"{name} {version}" for name, version in machine["peers"].items() if version)
    text = [
        "# Benchmarks",
        "",
        "Written by `make bench`.\nTimes are medians of a call.\nImplementations take turns in one process, over many "
        "different inputs, and each must give the same result before it is timed.\nA ratio is the time of the fastest "
        "peer divided by ours in the same run, because absolute times on a shared machine mean little.",
        "",
        f"{machine['cpu']}, {machine['cpus']} CPUs, instruction set {machine['isa']}; Python {machine['python']}, "
        f"NumPy {machine['numpy']}, torch {machine['torch']}, Numba {machine['numba']}; {peers}.",
        "",
        *HEAD,
        *rows(found),
        "",
        *([f"Left out of this run: {', '.join(left_out)}.", ""] if left_out else []),
        "Numba is timed after its first call, which compiles the operator:",
        "",
        *compile_times(),
        "",
        "## How the cost grows",
        "",
        "![Time over size for nms, match_anchors and box_iou](growth.png)",
        "",
        "## All implementations",
        *detail(found),
        "",
    ]
    (DOCS / "benchmarks.md").write_text("\n".join(text))
    shown = [group for group in found if group[0].workload in SHOWN]
    block = "\n".join(
        [
            "<!-- numbers: written by make bench -->",
            "## Numbers",
            "",
            *HEAD,
            *rows(shown),
            "",
            f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['isa']}.\nAll results, and how they were measured: "
            "[benchmarks](docs/benchmarks.md).",
            "<!-- /numbers -->",
        ]
    )
    old = README.read_text()
    README.write_text(re.sub(r"<!-- numbers.*?-->(.*<!-- /numbers -->)?", lambda _: block, old, count=1, flags=re.S))


if __name__ == "__main__":
    main()
