"""``fastssd anchors``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastssd._files import write_file
from fastssd.cli.common import (
    Data,
    Json,
    OnError,
    OnErrorOption,
    command,
    load,
    preset_of,
    print_json,
    print_table,
    read_preset,
    say,
    splits_of,
)


@command()
def anchors(
    data: Data,
    model: Annotated[str, typer.Option(help="The model whose anchors to look at.")] = "tinyssd",
    preset: Annotated[Path | None, typer.Option(help="Take the anchors from a file.", show_default=False)] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Height and width of the input.", show_default="the preset's")
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Find scales and ratios that cover DATA better.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Where --fit writes the preset, JSON.", show_default="MODEL-fitted.json")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw sizes, anchors and best IoU into this PNG.", show_default=False)
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split to look at.", show_default="to train on")] = None,
    on_error: OnErrorOption = OnError.RAISE,
    as_json: Json = False,
) -> None:
    """Show how well anchors cover the boxes of a data set, and fit them to it.

    An object that no anchor overlaps with an IoU of 0.5 is learnt from one forced anchor only.

    \b
    [bold]Examples[/bold]
      fastssd anchors cells --plot coverage.png
      fastssd anchors cells --fit --out cells.json
      fastssd train cells --preset cells.json
    """
    from fastssd.detection import MODELS
    from fastssd.detection.anchor_fit import fit_anchors
    from fastssd.detection.coverage import anchor_coverage, coverage_table, ground_truth_of

    if preset is None and model not in MODELS:
        raise typer.BadParameter(f"--model {model}: expected one of {', '.join(MODELS)}")
    given = preset_of(model, None if preset is None else read_preset(preset), image_size)
    dataset = load(data, split or splits_of(data, None, None)[0], on_error)
    boxes, labels = ground_truth_of(dataset)
    presets = {given.name: given}
    if fit:
        presets["fitted"] = fit_anchors(given, boxes, labels)
    target = out or Path(f"{given.name}-fitted.json")
    if fit:
        text = json.dumps(presets["fitted"].to_dict(), indent=2) + "\n"
        write_file(target, lambda file: file.write(text.encode()))
    if plot is not None:
        from fastssd.explain.coverage import coverage_figure
        from fastssd.explain.style import save_figure

        save_figure(coverage_figure(presets, boxes, labels, dataset.class_names), plot)
    coverages = {name: anchor_coverage(anchor_preset, boxes, labels) for name, anchor_preset in presets.items()}
    tables = {name: coverage_table(coverage, dataset.class_names) for name, coverage in coverages.items()}
    positives = {name: float(coverage.positives.mean()) for name, coverage in coverages.items()}
    if as_json:
        results = {name: {"positives_a_picture": positives[name], "coverage": tables[name]} for name in presets}
        print_json({"data": data, "written": str(target) if fit else None, "presets": results})
        return
    for name, table in tables.items():
        print(f"{name}: {positives[name]:.1f} positive anchors per image")
        rows = [
            [title, str(row["objects"]), f"{row['mean_best_iou']:.3f}", f"{row['share_under_0.5']:.1%}"]
            for title, row in table.items()
        ]
        print_table(rows, header=("", "objects", "mean best IoU", "no anchor over 0.5"))
    if fit:
        say(f"train with these anchors: fastssd train {data} --preset {target}")
