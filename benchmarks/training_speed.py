"""Speed of training and inference of each model: plain torch, and ways to make it faster. Writes into docs/models.md.

    python benchmarks/training_speed.py
    python benchmarks/training_speed.py --models tinyssd --rounds 5

Every way runs in processes of its own, in turn, and the medians of its rounds are compared. The loss of its first step
must be that of plain torch. A step is forward, loss, backward and optimizer on images in memory. The time to make
training images from a data set (the whole augmentation of SSD, on generated images of 640 x 640) is measured too.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fastssd.benchmark import environment
from fastssd.data import Sample, shapes_dataset
from fastssd.detection import MODELS, Criterion, build_model
from fastssd.training.augment import Augment
from fastssd.training.datasets import Cached, Item, TrainSet
from fastssd.training.trainer import keep_freed_memory

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
NUM_CLASSES = 20


class Way(NamedTuple):
    channels_last: bool = False
    keep_memory: bool = False
    compile: bool = False
    bfloat16: bool = False


WAYS = {
    "plain": Way(),
    "channels_last": Way(channels_last=True),
    "fastssd train": Way(channels_last=True, keep_memory=True),
    "and compiled": Way(channels_last=True, keep_memory=True, compile=True),
    "and bfloat16": Way(channels_last=True, keep_memory=True, bfloat16=True),
}
BATCH = 16
SMALL_BATCHES = {"ssd300_vgg16": 2, "ssd512_vgg16": 1}
SLOW = {"ssd512_vgg16"}  # only inference is measured


def shapes_with_fractions(count: int, size: int) -> list[Sample]:
    """Generated shapes with boxes as fractions."""
    data = shapes_dataset(count, image_size=size)
    return [sample._replace(boxes=sample.boxes / np.float32(size)) for sample in data]


def measure(name: str, way: Way, seconds: float) -> dict[str, float]:
    """Images per second in training and inference, and the loss of the first step."""
    if way.keep_memory:
        keep_freed_memory()
    torch.manual_seed(0)
    model = build_model(name, NUM_CLASSES)
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    model.to(memory_format=layout)  # type: ignore[call-overload]
    criterion, size = Criterion(), model.preset.image_size
    samples = shapes_with_fractions(SMALL_BATCHES.get(name, BATCH), size)
    batch = criterion.collate(model.preset.anchors(), model.preset.variances)(samples)
    images = (batch.images.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    network = torch.compile(model, dynamic=False) if way.compile else model

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=way.bfloat16):
            logits, deltas = network(images)
        return logits, deltas

    def step() -> float:
        loss = criterion(*forward(), batch.targets).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def infer() -> None:
        with torch.inference_mode():
            forward()

    rates: dict[str, float] = {}
    if name not in SLOW:
        rates = {"loss": step(), "training": len(images) / median_time(step, seconds)}
    model.eval()
    with torch.inference_mode():
        logits = forward()[0].float()
    if name in SLOW:
        rates["loss"] = logits.abs().mean().item()
    return rates | {"inference": len(images) / median_time(infer, seconds)}


def median_time(call: Callable[[], object], seconds: float) -> float:
    """Median seconds of a call, after a first call that does not count."""
    call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def augmented_images_per_second(size: int, seconds: float) -> float:
    """How many training images of `size` one process makes per second from images of 640 x 640 in memory, with crop,
    zoom-out, colour and flip."""
    data = Cached(shapes_dataset(32, image_size=640))
    made = TrainSet(data, Augment(crop=0.5, zoom_out=0.5, photometric=1.0), seed=0)
    for index in range(len(data)):  # fills the cache
        made[Item(0, index, size)]
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        made[Item(1 + count // len(data), count % len(data), size)]
        count += 1
    return count / (time.perf_counter() - start)


def in_a_process(name: str, way: str, seconds: float) -> dict[str, float]:
    command = [sys.executable, __file__, "--models", name, "--way", way, "--seconds", str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(name: str, rounds: int, seconds: float) -> list[str]:
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            runs[way].append(in_a_process(name, way, seconds))
            print(name, way, runs[way][-1], file=sys.stderr, flush=True)
    expected = runs["plain"][0]["loss"]
    rows = []
    for task in ("training", "inference"):
        if task not in runs["plain"][0]:
            continue
        rates = {way: statistics.median(run[task] for run in found) for way, found in runs.items()}
        cells = [f"{rate:.3g} ({rate / rates['plain']:.1f}x)" for rate in list(rates.values())[1:]]
        rows.append(f"| `{name}`, {task} | {rates['plain']:.3g} | " + " | ".join(cells) + " |")
    for way, found in runs.items():
        tolerance = 0.05 if WAYS[way].bfloat16 else 1e-3
        for run in found:
            if abs(run["loss"] - expected) > tolerance * abs(expected):
                raise SystemExit(f"{name}, {way}: the first loss is {run['loss']}, plain torch has {expected}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[n for n in MODELS if not n.endswith("_full")])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="duration of each measurement")
    parser.add_argument("--way", choices=WAYS, help="measure only this way, in this process, and print the result")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.models[0], WAYS[arguments.way], arguments.seconds)))
        return
    rows = [row for name in arguments.models for row in rows_of(name, arguments.rounds, arguments.seconds)]
    augmented = augmented_images_per_second(256, arguments.seconds)
    machine = environment()
    block = "\n".join(
        [
            "<!-- speed: written by benchmarks/training_speed.py -->",
            "| images per second | plain torch, float32 | " + " | ".join(list(WAYS)[1:]) + " |",
            "|---|" + "---:|" * len(WAYS),
            *rows,
            "",
            f"{machine['cpu']}, {machine['isa']}, threads: {torch.get_num_threads()}, "
            f"torch {torch.__version__.split('+')[0]}; batches of {BATCH} images (SSD300: 2, SSD512: 1).\nOne process "
            f"makes {augmented:.0f} training images per second from images of 640 x 640 in memory: crop, zoom-out, "
            "colour and flip.",
            "<!-- /speed -->",
        ]
    )
    print(block)
    page = PAGE.read_text()
    PAGE.write_text(re.sub(r"<!-- speed: .*?<!-- /speed -->", lambda _: block, page, count=1, flags=re.S))


if __name__ == "__main__":
    main()
