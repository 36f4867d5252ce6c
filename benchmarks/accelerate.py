"""Time torchvision's detectors before and after `accelerate`, and write the table in ``docs/integration.md``.

    .bench-venv/bin/python benchmarks/accelerate.py      # the environment of make bench

Everything but the network is timed: anchors, matching, losses and their backward pass, postprocessing. Before and after
take turns over different batches, and the results of each pair are compared first.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision
from detectors import SIZES, Detector
from torch import Tensor

from fastssd.benchmark import environment
from fastssd.compat.torchvision import accelerate

PAGE = Path(__file__).parent.parent / "docs" / "integration.md"
BEGIN, END = "<!-- accelerate: written by benchmarks/accelerate.py -->", "<!-- /accelerate -->"


def check(before: Any, after: Any) -> None:
    """Raise if the two losses or detections differ."""
    if isinstance(before, dict):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=0)
        return
    for ref, comp in zip(before, after, strict=True):
        torch.testing.assert_close(comp["boxes"], ref["boxes"], rtol=0, atol=0)
        torch.testing.assert_close(comp["labels"], ref["labels"], rtol=0, atol=0)
        torch.testing.assert_close(comp["scores"], ref["scores"], rtol=2.5e-7, atol=0)


def class_by_class(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """torchvision's NMS per class. Equal scores are ordered by index; torchvision leaves their order to its sort."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for label in idxs.unique():
        own = (idxs == label).nonzero()[:, 0]
        kept[own[torchvision.ops.nms(boxes[own], scores[own], iou_threshold)]] = True
    indices = kept.nonzero()[:, 0]
    return indices[scores[indices].argsort(descending=True, stable=True)]


@contextmanager
def nms_per_class() -> Iterator[None]:
    """Use :func:`class_by_class` in torchvision, which otherwise shifts coordinates or leaves the order of ties
    open."""
    boxes = torchvision.ops.boxes
    before = boxes._batched_nms_coordinate_trick, boxes._batched_nms_vanilla
    boxes._batched_nms_coordinate_trick = boxes._batched_nms_vanilla = class_by_class
    try:
        yield
    finally:
        boxes._batched_nms_coordinate_trick, boxes._batched_nms_vanilla = before


def medians(pairs: list[tuple[Callable[[], Any], Callable[[], Any]]], rounds: int) -> tuple[float, float]:
    """Median seconds of a call before and after, over all inputs."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for pair in pairs:
            for call, found in zip(pair, times, strict=True):
                torch.manual_seed(0)  # for the samplers
                start = time.perf_counter()
                call()
                found.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def measure(name: str, batch: int, trained: bool, inputs: int, rounds: int) -> list[tuple[float, float]]:
    """Median seconds before and after, of losses with backward and of detection."""
    cases = [Detector(name, batch, trained, seed) for seed in range(inputs)]
    fast = [accelerate(case.copy()) for case in cases]
    found = []
    for task in (Detector.step, Detector.detect):
        pairs = []
        for case, model in zip(cases, fast, strict=True):
            pair = tuple(lambda m=m, case=case, task=task: task(case, m) for m in (case.model, model))
            results = []
            for call in pair:
                torch.manual_seed(0)
                with nms_per_class():
                    results.append(call())
            check(*results)
            pairs.append(pair)
        found.append(medians(pairs, rounds))
    return found


def text_of(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="number of calls with each input")
    parser.add_argument("--inputs", type=int, default=3, help="number of different batches")
    parser.add_argument("--threads", type=int, default=1, help="number of threads of torch and of fastssd")
    parser.add_argument("--only", default="", help="measure detectors with this in their name; keep the other rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    lines = [
        "| detector | heads | losses and backward: torchvision | accelerated | detection: torchvision | accelerated |",
        "|---|---|---|---|---|---|",
    ]
    old = PAGE.read_text()
    for name, size in SIZES.items():
        if options.only not in name:
            lines += [line for line in old.splitlines() if line.startswith(f"| {name}, ")]
            continue
        batch = 8 if name.startswith("ssd") else 2
        for trained in (False, True):
            cells = []
            for before, after in measure(name, batch, trained, options.inputs, options.rounds):
                cells += [text_of(before), f"{text_of(after)} (**{before / after:.1f} x**)"]
            heads = "trained" if trained else "random"
            lines.append(f"| {name}, {batch} images of {size[0]} x {size[1]} | {heads} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)

    machine = environment()
    text = [
        BEGIN,
        *lines,
        "",
        "Everything but the network: anchors, matching, losses with their backward pass; anchors and postprocessing.\n"
        "Median times of a call; both take turns over different batches, and their results are compared first "
        "(torchvision's with NMS per class and ties by index, see below).\n"
        f"{machine['cpu']}, {machine['cpus']} CPUs, {options.threads} thread{'s' * (options.threads > 1)}; "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}.",
        END,
    ]
    new = re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: "\n".join(text), old, count=1, flags=re.S)
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
