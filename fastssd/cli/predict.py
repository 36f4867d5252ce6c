"""``fastssd predict``."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fastssd.cli.common import Accelerator, Json, On, checkpoint_in, command, print_json, say

SMALLEST_DRAWN = 512  # pixels; smaller pictures are enlarged, so that tags can be read


@command()
def predict(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, a run folder, or a file of fastssd export.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES", help="Pictures, or folders of pictures.")],
    out: Annotated[Path, typer.Option(help="Folder for the drawn pictures and predictions.json.")] = Path(
        "predictions"
    ),
    score_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least score of a box.", show_default="0.3, or the file's")
    ] = None,
    nms_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="IoU from which the weaker of two boxes goes.", show_default="the model's"),
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(min=1, help="Most boxes a picture.", show_default="the model's")
    ] = None,
    draw: Annotated[bool, typer.Option(help="Draw the boxes, or write predictions.json alone.")] = True,
    accelerator: On = Accelerator.AUTO,
    as_json: Json = False,
) -> None:
    """Detect in pictures: draw the boxes with class and score, and write them as JSON.

    Boxes are x1, y1, x2, y2 in pixels of the picture.

    A picture that cannot be read is named, the others go on, and the exit status is 1.

    \b
    [bold]Examples[/bold]
      fastssd predict runs/tinyssd-001 photo.jpg
      fastssd predict best.ckpt holiday/ --out found --score-threshold 0.5
      fastssd predict best.ckpt photo.jpg --json | jq '.images[0].detections'
      fastssd predict cells.onnx photo.jpg
    """
    from fastssd.data import DataError, read_image
    from fastssd.deploy import Detector
    from fastssd.explain.draw import draw_detections

    path = checkpoint_in(checkpoint, "best")
    pictures = expand(images)
    targets = drawn_paths(pictures, out) if draw else []
    detector = Detector(
        path,
        **where(path, accelerator),
        score_threshold=score_threshold,
        iou_threshold=nms_threshold,
        max_detections=max_detections,
    )
    out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for number, picture in enumerate(pictures):
        try:
            image = read_image(picture)
        except DataError as error:
            say(f"error: {error}")
            failed.append({"image": str(picture), "error": str(error)})
            continue
        found = detector(image)
        entry: dict[str, Any] = {
            "image": str(picture),
            "width": image.shape[1],
            "height": image.shape[0],
            "drawn": None,
        }
        if draw:
            drawn = draw_detections(
                image, found.boxes, found.labels, found.scores, detector.class_names, min_size=SMALLEST_DRAWN
            )
            jpeg: dict[str, Any] = {"quality": 92, "subsampling": 0} if targets[number].suffix == ".jpg" else {}
            drawn.save(targets[number], **jpeg)
            entry["drawn"] = str(targets[number])
        entry["detections"] = [
            {"class": name, "label": int(label), "score": float(score), "box": [float(v) for v in box]}
            for name, label, score, box in zip(found.names, found.labels, found.scores, found.boxes, strict=True)
        ]
        results.append(entry)
        if not as_json:
            counts = ", ".join(
                f"{found.names.count(name)} {name}" for name in detector.class_names if name in found.names
            )
            print(f"{picture}: {counts or 'nothing found'}" + (f" -> {targets[number]}" if draw else ""))
    result = {"checkpoint": str(path), "class_names": list(detector.class_names), "images": results, "failed": failed}
    (out / "predictions.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    if as_json:
        print_json(result)
    if failed:
        say(f"{len(failed)} of {len(pictures)} pictures could not be read")
        raise typer.Exit(1)


def where(path: Path, accelerator: Accelerator) -> dict[str, Any]:
    """The options of a detector that say where it computes."""
    from fastssd.deploy.networks import is_checkpoint

    if not is_checkpoint(path):
        return {"providers": ["CUDAExecutionProvider"]} if accelerator is Accelerator.GPU else {}
    import torch

    use_gpu = accelerator is Accelerator.GPU or (accelerator is Accelerator.AUTO and torch.cuda.is_available())
    return {"device": "cuda" if use_gpu else "cpu"}


def expand(images: Sequence[Path]) -> list[Path]:
    """The pictures that are meant: files as they are, of folders every picture in them, each once."""
    from fastssd.data.folder import pictures_in

    found: list[Path] = []
    for path in images:
        if path.is_dir():
            inside = [path / name for name in pictures_in(str(path))]
            if not inside:
                raise FileNotFoundError(errno.ENOENT, "there are no pictures in this folder", str(path))
            found += inside
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def drawn_paths(pictures: Sequence[Path], out: Path) -> list[Path]:
    """Where each drawn picture goes: named after the original, JPEG as JPEG, numbered where two have one name.

    Raises:
        ValueError: a picture would be drawn over an original.
    """
    originals = {picture.resolve() for picture in pictures}
    taken: set[Path] = set()
    targets = []
    for picture in pictures:
        suffix = ".jpg" if picture.suffix.lower() in (".jpg", ".jpeg") else ".png"
        target, number = out / f"{picture.stem}{suffix}", 2
        while target in taken:
            target, number = out / f"{picture.stem}-{number}{suffix}", number + 1
        if target.resolve() in originals:
            raise ValueError(f"{target} would be overwritten by its drawn copy; choose another folder with --out")
        taken.add(target)
        targets.append(target)
    return targets
