"""The files of a run folder: metrics as JSON and CSV, curves and drawn detections as PNG."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastssd._files import write_file
from fastssd.data import DetectionDataset
from fastssd.detection.models import SSD
from fastssd.detection.postprocess import detect

SHOWN = 6  # images
SHOWN_SCORE = 0.4
SHOWN_SIZE = 320  # pixels, at least: labels need room


def write_metrics(
    folder: Path,
    history: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any] | None,
    timing: Mapping[str, Any],
) -> None:
    """metrics.json and metrics.csv, each whole or not at all."""
    write_json(folder / "metrics.json", {"best": best, "timing": timing, "epochs": history})
    text = io.StringIO()
    if history:
        writer = csv.DictWriter(text, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    write_file(folder / "metrics.csv", lambda file: file.write(text.getvalue().encode()))


def write_json(path: Path, content: Any) -> None:
    """Plain values as JSON, whole or not at all."""
    text = json.dumps(content, indent=2) + "\n"
    write_file(path, lambda file: file.write(text.encode()))


def draw_curves(path: Path, history: Sequence[Mapping[str, Any]], timing: Mapping[str, Any]) -> None:
    """Losses and AP by epoch, and the time of the parts of a step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    losses, precision, time = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]
    for name, text in (("loss", "total"), ("loss_class", "classification"), ("loss_box", "box regression")):
        losses.plot(epochs, [row[name] for row in history], marker=".", label=text)
    losses.set(title="training loss", xlabel="epoch", yscale="log")
    for name in ("AP50", "AP", "AP75"):
        points = [(row["epoch"], row[name]) for row in history if row[name] is not None]
        if points:
            precision.plot(*zip(*points, strict=True), marker=".", label=name)
    precision.set(title="average precision, evaluation set", xlabel="epoch", ylim=(0, 1))
    for axes in (losses, precision):
        axes.grid(alpha=0.3)
        if axes.lines and epochs:
            axes.legend()
    parts = list(timing["seconds_per_step"].items())[::-1]
    bars = time.barh([name for name, _ in parts], [1000 * seconds for _, seconds in parts], color="tab:gray")
    time.bar_label(bars, [f"{timing['share'][name]:.0%}" for name, _ in parts], padding=3)
    time.set(title="time of a training step", xlabel="ms per step")
    time.margins(x=0.15)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_file(path, lambda file: file.write(buffer.getvalue()))


def draw_predictions(path: Path, model: SSD, data: DetectionDataset) -> None:
    """Detections drawn on some images, spread evenly over the data set."""
    from fastssd.explain.draw import draw_detections, picture_grid

    indices = np.unique(np.linspace(0, len(data) - 1, SHOWN).round().astype(int))
    images = [data[int(index)].image for index in indices]
    found = detect(model, images, score_threshold=SHOWN_SCORE)
    drawn = [
        draw_detections(image, seen.boxes, seen.labels, seen.scores, data.class_names, min_size=SHOWN_SIZE)
        for image, seen in zip(images, found, strict=True)
    ]
    buffer = io.BytesIO()
    picture_grid(drawn).save(buffer, "PNG")
    write_file(path, lambda file: file.write(buffer.getvalue()))
