"""``fastssd predict``."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastssd._files import replacing
from fastssd.cli.common import Accelerator, Json, On, checkpoint_in, command, say
from fastssd.cli.pictures import check_originals, expand, with_targets

if TYPE_CHECKING:
    from fastssd.deploy import Detector
    from fastssd.deploy.coco import CocoIds
    from fastssd.deploy.predictions import Predictions

SMALLEST_DRAWN = 512  # pixels; smaller pictures are enlarged, so that tags can be read
FEW = 20  # so many pictures need no progress bar
BATCH = 4  # on a CPU the fastest: what lies between the layers stays in the cache
MOST_WORKERS = 8  # each holds what lies between the layers of its batch
DOCUMENTS = ("predictions.json", "coco_detections.json", "coco_images.json")


@command()
def predict(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, a run folder, or a file of fastssd export.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES", help="Pictures, or folders of pictures.")],
    out: Annotated[Path, typer.Option(help="Folder for the predictions and the drawn pictures.")] = Path("predictions"),
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
    draw: Annotated[bool, typer.Option(help="Draw the boxes, or write them as JSON alone.")] = True,
    annotations: Annotated[
        Path | None,
        typer.Option(
            help="COCO file whose image and category ids coco_detections.json shall have.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what a stopped run has left in the folder; else begin.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the predictions in the folder, however many.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that go through the network together.")] = BATCH,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads that read and detect, a batch each.", show_default=f"the CPUs, {MOST_WORKERS} at most"
        ),
    ] = None,
    accelerator: On = Accelerator.AUTO,
    progress: Annotated[bool | None, typer.Option(help="Show a progress bar.", show_default="on a terminal")] = None,
    as_json: Json = False,
) -> None:
    """Detect in pictures: draw the boxes with class and score, and write them as JSON.

    Boxes are x1, y1, x2, y2 in pixels of the picture; in coco_detections.json x, y, width, height.

    Results are written as they come: a run that was stopped, however it was, goes on with --resume.

    A picture that cannot be read is named, the others go on, and the exit status is 1.

    \b
    [bold]Examples[/bold]
      fastssd predict runs/tinyssd-001 photo.jpg
      fastssd predict best.ckpt holiday/ --out found --score-threshold 0.5
      fastssd predict best.ckpt archive/ --out found --no-draw --resume
      fastssd predict best.ckpt val2017/ --annotations instances_val2017.json --score-threshold 0.01 --no-draw
      fastssd predict best.ckpt photo.jpg --json | jq '.images[0].detections'
      fastssd predict cells.onnx photo.jpg
    """
    from fastssd.backends import threads
    from fastssd.deploy import Detector
    from fastssd.deploy.coco import CocoIds
    from fastssd.deploy.predictions import Predictions

    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    path = checkpoint_in(checkpoint, "best")
    pictures = expand(images)
    if draw:
        check_originals(pictures, out)
    cpus = threads.current()
    workers = workers or min(cpus, MOST_WORKERS, math.ceil(len(pictures) / batch_size))
    detector = Detector(
        path,
        **where(path, accelerator),
        score_threshold=score_threshold,
        iou_threshold=nms_threshold,
        max_detections=max_detections,
        batch_size=batch_size,
        threads=max(cpus // workers, 1),
    )
    ids = None if annotations is None else CocoIds(annotations, detector.class_names)
    if ids is not None and ids.check(pictures) < len(pictures):
        say(f"{annotations} does not have all of the pictures; coco_detections.json will hold those that it has")
    about = {"checkpoint": str(path), "class_names": list(detector.class_names)}
    options = made_with(path, detector, pictures, draw)
    with Predictions(out, options, about, resume=resume, overwrite=overwrite) as predictions:
        for name in DOCUMENTS:  # they come at the end, and what is there is of another run or of a part
            (out / name).unlink(missing_ok=True)
        show_bar = sys.stderr.isatty() and len(pictures) > FEW if progress is None else progress
        show_lines = not as_json and not (show_bar and sys.stdout.isatty())
        detect_all(detector, predictions, pictures, draw, workers, show_bar, show_lines)
        count, failed = write_documents(predictions, about, ids)
    if as_json:
        with open(out / "predictions.json", encoding="utf-8") as document:
            shutil.copyfileobj(document, sys.stdout)
    elif len(pictures) > 1:
        print(f"{count} pictures are in {out}: predictions.jsonl, " + ", ".join(DOCUMENTS[: 3 if ids is None else 2]))
    if failed:
        say(f"{failed} of {count} pictures could not be read")
        raise typer.Exit(1)


def detect_all(
    detector: Detector,
    predictions: Predictions,
    pictures: Sequence[str],
    draw: bool,
    workers: int,
    show_bar: bool,
    show_lines: bool,
) -> None:
    """Detect in the pictures that are not done, until a signal comes."""
    from fastssd._stopping import stop_signals
    from fastssd.cli.progress import progress_bar
    from fastssd.deploy.parallel import in_order

    done = set(map(os.path.abspath, predictions.done))
    left = [picture for picture in pictures if os.path.abspath(picture) not in done]
    jobs = with_targets(left, predictions.done, predictions.folder) if draw else ((picture, None) for picture in left)
    batches = iter(lambda: list(islice(jobs, detector.batch_size)), [])
    with (
        stop_signals("batch") as stop,
        progress_bar(show_bar, len(pictures), len(pictures) - len(left), "pictures") as advance,
        contextlib.closing(in_order(partial(detect_batch, detector), batches, workers)) as found,
    ):
        written = 0
        for entries in found:
            predictions.write(entries)
            written += len(entries)
            for entry in entries:
                if "error" in entry:
                    say(f"error: {entry['error']}")
                elif show_lines:
                    print(line_of(entry, detector.class_names), flush=True)
            advance(len(entries))
            if stop.signal is not None and written < len(left):
                say(
                    f"stopped: {len(pictures) - len(left) + written} of {len(pictures)} pictures are in "
                    f"{predictions.path}; the same command with --resume goes on"
                )
                raise typer.Exit(stop.status)


def detect_batch(detector: Detector, jobs: Sequence[tuple[str, str | None]]) -> list[dict[str, Any]]:
    """The lines of a batch, and the drawn pictures of those that have a target."""
    from fastssd.data import DataError

    entries = []
    found = detector.stream([picture for picture, _ in jobs], on_error="return")
    for (picture, target), result in zip(jobs, found, strict=True):
        try:
            if isinstance(result, DataError):
                raise result
            if target is not None:
                options: dict[str, Any] = {"quality": 92, "subsampling": 0} if target.endswith(".jpg") else {}
                drawn = io.BytesIO()
                result.draw(min_size=SMALLEST_DRAWN).save(drawn, "JPEG" if options else "PNG", **options)
                with replacing(target, durable=False) as file:
                    file.write(drawn.getbuffer())
            values = result.to_dict()
            entries.append(
                {"image": picture, "width": values.pop("width"), "height": values.pop("height"), "drawn": target}
                | values
            )
        except DataError as error:
            entries.append({"image": picture, "error": str(error)})
    return entries


def write_documents(predictions: Predictions, about: Mapping[str, Any], ids: CocoIds | None) -> tuple[int, int]:
    """All of the folder that is made of the lines; how many pictures there are, and how many could not be read."""
    from fastssd.deploy.coco import write_images, write_results

    whole, results, images = (predictions.folder / name for name in DOCUMENTS)
    counts = predictions.write_document(whole, about)
    written = write_results(results, predictions.entries(), ids)
    if ids is None:
        write_images(images, predictions.entries(), about["class_names"])
    if ids is not None and written.left_out:
        say(f"{written.left_out} boxes are not in {results}: {ids.source} does not have their class")
    return counts


def made_with(path: Path, detector: Detector, pictures: Sequence[str], draw: bool) -> dict[str, Any]:
    """What has to be the same when a run is gone on with."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "checkpoint_sha256": digest,
        **asdict(detector.limits),
        "batch_size": detector.batch_size,
        "draw": draw,
        # Lines name relative pictures as seen from here.
        "directory": None if all(map(os.path.isabs, pictures)) else os.getcwd(),
    }


def line_of(entry: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """A line for people."""
    found = Counter(detection["class"] for detection in entry["detections"])
    counts = ", ".join(f"{found[name]} {name}" for name in class_names if name in found)
    line = f"{entry['image']}: {counts or 'nothing found'}" + (f" -> {entry['drawn']}" if entry["drawn"] else "")
    return line.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding or "utf-8")


def where(path: Path, accelerator: Accelerator) -> dict[str, Any]:
    """The options of a detector that say where it computes."""
    from fastssd.deploy.networks import is_checkpoint

    if not is_checkpoint(path):
        return {"providers": ["CUDAExecutionProvider"]} if accelerator is Accelerator.GPU else {}
    import torch

    use_gpu = accelerator is Accelerator.GPU or (accelerator is Accelerator.AUTO and torch.cuda.is_available())
    return {"device": "cuda" if use_gpu else "cpu"}
