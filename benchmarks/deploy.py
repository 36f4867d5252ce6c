"""Time to the first detection and memory, with onnxruntime and with torch: writes the table in ``docs/deploy.md``.

    python benchmarks/deploy.py

Every measurement is a process of its own with one thread. The ways take turns, and the first turn, which fills the disk
cache, is not counted. The time is from the first line of Python to the detections of the first image; the memory is the
peak of the process (Linux: VmHWM). Every process must find the same boxes as torch.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fastssd.benchmark import environment

PAGE = Path(__file__).parent.parent / "docs" / "deploy.md"
WAYS = {  # by name in the table: the file, the runtime, and the package that must not be loaded
    "ONNX file": ("heads.onnx", "onnxruntime", "torch"),
    "ONNX file, NMS inside": ("nms.onnx", "onnxruntime", "torch"),
    "checkpoint": ("model.ckpt", "torch", "onnxruntime"),
}

MAKE = """
import sys
import torch
from PIL import Image
from fastssd.data import shapes_dataset
from fastssd.deploy.onnx_export import export_onnx
from fastssd.detection import build_model
from fastssd.training.checkpoint import KEY, CheckpointInfo, save_checkpoint

folder, name, classes = sys.argv[1], sys.argv[2], shapes_dataset(1).class_names
torch.manual_seed(0)
model = build_model(name, len(classes)).eval()
with torch.no_grad():
    for convs, factor in ((model.head.classes, 15), (model.head.boxes, 10)):  # confident, like a trained model
        for conv in convs:
            conv.weight *= factor
info = CheckpointInfo(name, classes, model.preset, {}, 1, 0, {}, None, None, [])
save_checkpoint({"state_dict": model.state_dict(), KEY: info.to_dict()}, f"{folder}/model.ckpt")
export_onnx(model, f"{folder}/heads.onnx", class_names=classes)
export_onnx(model, f"{folder}/nms.onnx", class_names=classes, nms=True)
Image.fromarray(shapes_dataset(1)[0].image).resize((640, 480)).save(f"{folder}/image.jpg")
"""

MEASURE = """
import time
start = time.perf_counter()
import sys
import fastssd
detector = fastssd.Detector(sys.argv[1], threads=1)
found = detector(sys.argv[2])
first = time.perf_counter() - start
times = []
for _ in range(30):
    start = time.perf_counter()
    detector(sys.argv[2])
    times.append(time.perf_counter() - start)
assert sys.argv[3] not in sys.modules, sys.argv[3]
import json, resource, statistics
try:
    memory = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
except OSError:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"first": first, "next": statistics.median(times), "memory": memory,
                  "found": [[*box.box, box.score] for box in found], "names": found.names}))
"""


def child(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def megabytes(package: str) -> float:
    """The size of a package on disk in MiB."""
    files = importlib.metadata.files(package) or []
    return sum(file.locate().stat().st_size for file in files if file.locate().is_file()) / 2**20


def measure(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of each way."""

    def run(way: str) -> dict[str, Any]:
        file, _, absent = WAYS[way]
        return json.loads(child(MEASURE, folder / file, folder / "image.jpg", absent))

    ref = run("checkpoint")
    assert ref["found"], "no boxes were found, so there is nothing to compare"
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds + 1):
        for way in WAYS:
            comp = run(way)
            assert comp["names"] == ref["names"]
            np.testing.assert_allclose(comp["found"], ref["found"], rtol=1e-4, atol=1e-4)
            results[way].append(comp)
    keys = ("first", "memory", "next")
    return {way: {key: statistics.median(r[key] for r in found[1:]) for key in keys} for way, found in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="tinyssd")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        child(MAKE, folder, options.model)
        measured = measure(Path(folder), options.rounds)
    machine = environment()
    size = {package: megabytes(package) for package in ("onnxruntime", "torch")}
    torch = measured["checkpoint"]
    lines = [
        "| | import, load, first image | memory | each further image | runtime on disk |",
        "|---|---|---|---|---|",
    ]
    for way, values in measured.items():
        runtime = WAYS[way][1]
        times = [
            f"{values['first']:.2f} s",
            f"{values['memory']:.0f} MB",
            f"{values['next'] * 1e3:.1f} ms",
        ]
        if values is not torch:
            times = [f"{text} (**{torch[key] / values[key]:.1f} x**)" for text, key in zip(times, values, strict=True)]
        times.append(f"{size[runtime]:.0f} MB")
        lines.append(f"| {way}, {runtime} {importlib.metadata.version(runtime)} | " + " | ".join(times) + " |")
    block = "\n".join(
        [
            "<!-- numbers: written by python benchmarks/deploy.py -->",
            *lines,
            "",
            f"{options.model}, one JPEG of 640 x 480, one thread, medians of {options.rounds} processes each "
            f"in turns, {machine['cpu']}, Python {machine['python']}.\n**n x**: torch's number divided by this one.",
            "<!-- /numbers -->",
        ]
    )
    print(block)
    page = PAGE.read_text()
    PAGE.write_text(re.sub(r"<!-- numbers.*?<!-- /numbers -->", lambda _: block, page, count=1, flags=re.S))


if __name__ == "__main__":
    main()
