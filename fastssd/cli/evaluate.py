"""``fastssd eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fastssd.cli.common import (
    Accelerator,
    AcceleratorOption,
    Checkpoint,
    Data,
    Json,
    OnError,
    OnErrorOption,
    checkpoint_in,
    command,
    load,
    only_json,
    print_json,
    print_metrics,
    splits_of,
)


@command("eval")
def evaluate(
    checkpoint: Checkpoint,
    data: Data,
    split: Annotated[str | None, typer.Option(help="Split to evaluate on.", show_default="found in DATA")] = None,
    on_error: OnErrorOption = OnError.RAISE,
    accelerator: AcceleratorOption = Accelerator.AUTO,
    num_workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Processes that read images.", show_default="chosen")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="HTML file to write: AP by class and size, curves, confusion, the worst images.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the average precision (COCO) of a checkpoint on a data set.

    \b
    [bold]Examples[/bold]
      fastssd eval runs/tinyssd-001 cells --report cells.html
      fastssd eval best.ckpt VOC2007 --split test --json | jq .AP50
    """
    import fastssd.training as training
    from fastssd.evaluation import coco_metrics
    from fastssd.evaluation.report import write_report

    path = checkpoint_in(checkpoint, "best")
    class_names = training.load_checkpoint(path)[1].class_names
    name = split or splits_of(data, None, None)[1]
    dataset = load(data, name, on_error, class_names)
    with only_json(as_json):
        found = training.detect_all(path, dataset, accelerator=accelerator.value, num_workers=num_workers)
        metrics = coco_metrics(*found, class_names)
    if report is not None:

        def image_at(index: int) -> tuple[Any, str]:
            sample = dataset[index]
            return sample.image, sample.image_id

        write_report(report, *found, class_names, image_at, title=f"{path} on {data}, split {name}")
    if as_json:
        left_out = [str(problem) for problem in dataset.problems]
        print_json(
            {"checkpoint": str(path), "data": data, "split": name, "pictures": len(dataset), "left_out": left_out}
            | metrics
        )
    else:
        print(f"{path} on {len(dataset)} images of {data}, split {name}")
        print_metrics(metrics)
        if report is not None:
            print(f"report: {report}")
