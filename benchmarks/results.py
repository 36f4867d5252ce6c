"""Average precision of the recipes that the documentation recommends, over several seeds. Writes docs/results.md.

    python benchmarks/results.py shapes              # what `fastssd demo` trains
    python benchmarks/results.py bccd BCCD           # BCCD: a folder in Pascal VOC format with trainval and test

Each run is a `fastssd` command of its own, from scratch. It is evaluated once, after its last epoch, so the test images
do not influence any choice. Runs are kept in `--runs` and not repeated. `--jobs 2` trains two seeds at the same time
with one thread each: sums differ in the last bits, the recipe is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastssd.benchmark import environment
from fastssd.data import DetectionDataset, load_dataset
from fastssd.evaluation.errors import BACKGROUND, KINDS, PictureErrors, find_errors
from fastssd.explain.draw import draw_boxes, picture_grid
from fastssd.training.evaluate import Evaluated, detect_all

SHOWN = (0.05, 0.2, 0.4)  # score thresholds in the table of errors
PAGE = Path(__file__).parent.parent / "docs" / "results.md"
PICTURE = PAGE.parent / "bccd.jpg"


class Recipe(NamedTuple):
    name: str
    command: str
    """Arguments of `fastssd`; {data} is replaced, --out and --seed are added."""
    data: str = "{data}"
    """The data set whose split test it is evaluated on."""


RECIPES = {
    "shapes": (Recipe("`make demo`", "demo", "shapes:600"),),
    "bccd": (
        Recipe("(a) TinySSD as it is", "train {data} --on-error skip --epochs 10"),
        Recipe(
            "(b) and fitted anchors, augmentation",
            "train {data} --on-error skip --epochs 10 --fit-anchors --vertical-flip 0.5",
        ),
        Recipe(
            "(c) and larger input, small batches, averaged weights",
            "train {data} --on-error skip --epochs 12 --fit-anchors --vertical-flip 0.5"
            " --image-size 320 --batch-size 4 --lr 0.001 --ema 0.99",
        ),
    ),
}


def fastssd(*words: str, threads: int = 0) -> tuple[dict[str, Any], float]:
    """The JSON that a command prints, and its processor time in seconds."""
    print(f"fastssd {shlex.join(words)}", file=sys.stderr, flush=True)
    environ = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [sys.executable, "-m", "fastssd", *words, "--json"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"fastssd {words[0]} ended with status {process.returncode}")
    return json.loads(text), usage.ru_utime + usage.ru_stime


def run(recipe: Recipe, data: str, seed: int, folder: Path, threads: int) -> dict[str, Any]:
    """The metrics and processor time of the run in `folder`; trains it if it does not exist."""
    record = folder / "result.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)  # the rest of a run that was stopped
        words = recipe.command.format(data=data).split()
        _, seconds = fastssd(*words, "--seed", str(seed), "--out", str(folder), threads=threads)
        last = folder / "checkpoints" / "last.ckpt"
        metrics, _ = fastssd("eval", str(last), recipe.data.format(data=data), "--split", "test", threads=threads)
        record.write_text(json.dumps({"metrics": metrics, "processor_seconds": seconds}))
    return json.loads(record.read_text())


def coverage(data: str, target: Path) -> list[str]:
    """A table of the coverage before and after fitting the anchors to the training images, as lines."""
    target.parent.mkdir(parents=True, exist_ok=True)
    presets = fastssd("anchors", data, "--on-error", "skip", "--fit", "--out", str(target))[0]["presets"]
    rows = []
    for name, before in presets["tinyssd"]["coverage"].items():
        before_after = (before, presets["fitted"]["coverage"][name])
        missed = " | ".join(f"{row['share_under_0.5']:.1%}" for row in before_after)
        mean = " | ".join(f"{row['mean_best_iou']:.3f}" for row in before_after)
        rows.append(f"| {name} | {before['objects']} | {missed} | {mean} |")
    positives = " to ".join(f"{presets[name]['positives_a_picture']:.0f}" for name in ("tinyssd", "fitted"))
    return [
        "",
        "| training objects | number | no anchor over 0.5 | fitted | mean best IoU | fitted |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"Fitting changes the number of positive anchors per image from {positives}.",
    ]


def errors(recipe: Recipe, folder: Path, data: str) -> list[str]:
    """A table of the kinds of errors of the best recipe's first run, as lines."""
    dataset = load_dataset(data, "test")
    found = detect_all(folder / "checkpoints" / "last.ckpt", dataset)
    judged = [find_errors(*pair) for pair in zip(*found, strict=True)]
    kinds = np.concatenate([own.kind for own in judged])
    scores = np.concatenate([own.scores for own in found.detections])
    counts = [np.bincount(kinds[scores >= least], minlength=len(KINDS)) for least in SHOWN]
    draw_background(found, judged, dataset)
    missed, objects = sum(own.missed.sum() for own in judged), sum(len(own.missed) for own in judged)
    return [
        "",
        f"| detections of {recipe.name}, first seed | " + " | ".join(KINDS[:-1]) + " |",
        "|---|" + "---|" * (len(KINDS) - 1),
        *(
            f"| score {least} or more | " + " | ".join(map(str, own[:-1])) + " |"
            for least, own in zip(SHOWN, counts, strict=True)
        ),
        "",
        f"{missed} of {objects} objects have no correct detection at any score.",
    ]


def draw_background(found: Evaluated, judged: Sequence[PictureErrors], data: DetectionDataset) -> None:
    """Draw the two images with most detections on background: the annotations left, these detections right."""
    chosen = [
        (own.kind == BACKGROUND) & (detections.scores >= SHOWN[-1])
        for own, detections in zip(judged, found.detections, strict=True)
    ]
    drawn = []
    for index in np.argsort([-own.sum() for own in chosen], kind="stable")[:2]:
        image, truth, detections = data[int(index)].image, found.truths[index], found.detections[index]
        for boxes, labels, color in (
            (truth.boxes, truth.labels, "#00aa00"),
            (detections.boxes[chosen[index]], detections.labels[chosen[index]], "#dd0000"),
        ):
            names = [data.class_names[label - 1] for label in labels]
            drawn.append(draw_boxes(image, boxes, names, [color] * len(names)).resize((480, 360)))
    picture_grid(drawn, columns=2).save(PICTURE, quality=85)


def row(recipe: Recipe, runs: Sequence[dict[str, Any]]) -> str:
    """One line of the table: the mean over the seeds, with the lowest and the highest."""
    metrics = [found["metrics"] for found in runs]
    measured = [[found[name] for found in metrics] for name in ("AP50", "AP")]
    measured += [[found["per_class"][name]["AP50"] for found in metrics] for name in metrics[0]["per_class"]]
    cells = [f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" for values in measured]
    minutes = statistics.mean(found["processor_seconds"] for found in runs) / 60
    return f"| {recipe.name} | " + " | ".join(cells) + f" | {minutes:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=RECIPES)
    parser.add_argument("data", nargs="?", help="the folder of BCCD")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="where runs are kept")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time")
    arguments = parser.parse_args()
    if (arguments.set == "bccd") != (arguments.data is not None):
        parser.error("bccd needs a folder, shapes does not take one")
    recipes, threads = RECIPES[arguments.set], max(1, torch.get_num_threads() // arguments.jobs)

    def folder_of(recipe: Recipe, seed: int) -> Path:
        return arguments.runs / arguments.set / (re.sub(r"\W+", "-", recipe.name).strip("-") + f"-{seed}")

    def run_seed(recipe: Recipe, seed: int) -> dict[str, Any]:
        return run(recipe, arguments.data, seed, folder_of(recipe, seed), threads)

    pool = ThreadPoolExecutor(arguments.jobs)
    try:
        futures = [[pool.submit(run_seed, recipe, seed) for seed in arguments.seeds] for recipe in recipes]
        runs = [[future.result() for future in seeds] for seeds in futures]
    finally:
        pool.shutdown(cancel_futures=True)

    other_tables: list[str] = []
    if arguments.set == "bccd":
        other_tables = errors(recipes[-1], folder_of(recipes[-1], arguments.seeds[0]), arguments.data)
        other_tables += coverage(arguments.data, arguments.runs / "fitted.json")
    machine = environment()
    classes = list(runs[0][0]["metrics"]["per_class"])
    commands = [f"fastssd {recipe.command} --seed N".format(data="BCCD") for recipe in recipes]
    block = "\n".join(
        [
            f"<!-- {arguments.set}: written by benchmarks/results.py -->",
            f"| {len(arguments.seeds)} seeds | AP50 | AP | "
            + " | ".join(f"{name}, AP50" for name in classes)
            + " | minutes |",
            "|---|" + "---|" * (3 + len(classes)),
            *(row(recipe, seeds) for recipe, seeds in zip(recipes, runs, strict=True)),
            "",
            "Mean, and lowest to highest seed, after the last epoch.\nMinutes of processor time, so half as many "
            f"on two cores; {machine['cpu']}, torch {torch.__version__.split('+')[0]}.",
            "",
            "```sh",
            *commands,
            "```",
            *other_tables,
            f"<!-- /{arguments.set} -->",
        ]
    )
    print(block)
    page = PAGE.read_text()
    marks = rf"<!-- {arguments.set}: .*?<!-- /{arguments.set} -->"
    PAGE.write_text(re.sub(marks, lambda _: block, page, count=1, flags=re.S))


if __name__ == "__main__":
    main()
