"""``fastssd export``."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fastssd.cli.common import Checkpoint, Json, checkpoint_in, command, only_json, print_json, print_table


class ExportFormat(StrEnum):
    ONNX = "onnx"


@command("export")
def export_model(
    checkpoint: Checkpoint,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write.", show_default="beside CHECKPOINT")
    ] = None,
    format: Annotated[ExportFormat, typer.Option(help="What to write.")] = ExportFormat.ONNX,
    nms: Annotated[
        bool, typer.Option("--nms", help="Put decoding and NMS into the file, as standard operators.")
    ] = False,
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a box.")] = 0.3,
    nms_threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="NMS deletes a box whose IoU with a better one is higher.", show_default="the model's"
        ),
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(min=1, help="Most boxes per image.", show_default="the model's")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as a file that runs without torch, for `fastssd predict` and fastssd.Detector.

    It holds anchors, class names and thresholds. Its outputs are compared with torch before it is written.

    The outputs are logits and deltas; with --nms they are boxes, in any program that runs ONNX.

    \b
    [bold]Examples[/bold]
      fastssd export runs/tinyssd-001 -o cells.onnx
      fastssd export best.ckpt --nms --score-threshold 0.1
      fastssd predict cells.onnx photo.jpg
    """
    from fastssd.deploy.onnx_export import export_onnx
    from fastssd.training import load_checkpoint

    path = checkpoint_in(checkpoint, "best")
    target = out or path.with_suffix(f".{format.value}")
    model, info = load_checkpoint(path)
    with only_json(as_json):
        exported = export_onnx(
            model,
            target,
            class_names=info.class_names,
            nms=nms,
            score_threshold=score_threshold,
            iou_threshold=nms_threshold,
            max_detections=max_detections,
        )
    if as_json:
        print_json(asdict(exported) | {"checkpoint": str(path), "format": format.value, "nms": nms})
        return
    for kind, values in (("input", exported.inputs), ("output", exported.outputs)):
        print_table([(kind, name, " x ".join(map(str, shape))) for name, shape in values.items()])
    print(f"{target}: {exported.size / 1e6:.1f} MB, equal to torch within {exported.difference:.1g}")
