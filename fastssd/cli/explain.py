"""``fastssd explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastssd.cli.common import Data, OnError, OnErrorOption, checkpoint_in, command, load, say, splits_of

MOST_EXPLAINED = 24  # boxes in the picture of NMS


@command()
def explain(
    data: Data,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A checkpoint or run folder, to see NMS on its predictions.", show_default=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split to take the image from.", show_default="to train on")] = None,
    index: Annotated[int, typer.Option(min=0, help="Number of the image in the split.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("explained"),
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a box before NMS.")] = 0.3,
    nms_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="NMS deletes a box whose IoU with a better one is higher.")
    ] = 0.45,
    on_error: OnErrorOption = OnError.RAISE,
) -> None:
    """Draw how SSD sees one of your images: its anchors, how they match the ground truth, and NMS step by step.

    docs/how-ssd-works.md explains the pictures.

    \b
    [bold]Examples[/bold]
      fastssd explain shapes
      fastssd explain cells --index 7 --checkpoint runs/tinyssd-001
    """
    import numpy as np
    import torch

    from fastssd.detection import TINYSSD, Criterion
    from fastssd.detection.postprocess import detect_batch
    from fastssd.detection.preprocess import resize_image, to_input
    from fastssd.explain import style
    from fastssd.explain.anchors import anchors_figure
    from fastssd.explain.matching import matching_figure
    from fastssd.explain.nms import most_crowded, nms_figure

    dataset = load(data, split or splits_of(data, None, None)[0], on_error)
    if index >= len(dataset):
        raise typer.BadParameter(f"--index {index}: there are {len(dataset)} images, counted from 0")
    sample = dataset[index]
    preset, criterion = TINYSSD, Criterion()
    if checkpoint is not None:
        import fastssd.training as training

        model, info = training.load_checkpoint(checkpoint_in(checkpoint, "best"))
        preset, criterion = info.preset, training.TrainConfig.from_dict(info.config).criterion
    height, width = sample.image.shape[:2]
    anchors = preset.anchors() * np.array([width, height, width, height], np.float32)
    out.mkdir(parents=True, exist_ok=True)
    figures = {
        "anchors": anchors_figure(sample.image, anchors, grids=preset.grid_sizes),
        "matching": matching_figure(
            sample.image,
            anchors,
            sample.boxes[~sample.difficult],
            grids=preset.grid_sizes,
            iou_threshold=criterion.iou_threshold,
            background_threshold=criterion.background_threshold,
        ),
    }
    if checkpoint is not None:
        pixels = torch.from_numpy(resize_image(sample.image, preset.image_size).copy())[None]
        # No IoU is over 1, so this NMS deletes nothing. Its output is the input of the NMS that is drawn.
        (found,) = detect_batch(
            model, to_input(pixels), [(height, width)], score_threshold=score_threshold, iou_threshold=1.0
        )
        chosen = most_crowded(found.labels, found.boxes, found.scores, nms_threshold)
        if chosen is None:
            say(f"no box scores over {score_threshold:g}, so no picture of NMS; lower it with --score-threshold")
        else:
            rows = np.flatnonzero(found.labels == chosen)[:MOST_EXPLAINED]  # by descending score
            figures["nms"] = nms_figure(found.boxes[rows], found.scores[rows], nms_threshold, image=sample.image)
            say(f"NMS runs for each class; the picture has {len(rows)} boxes of {info.class_names[chosen - 1]}")
    for name, figure in figures.items():
        style.save_figure(figure, out / f"{name}.png")
        print(out / f"{name}.png")
