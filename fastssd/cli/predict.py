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
from fastssd.cli.common import Accelerator, AcceleratorOption, Json, checkpoint_in, command, say
from fastssd.cli.images import check_originals, expand_folders, with_targets

if TYPE_CHECKING:
    from fastssd.deploy import Detector
    from fastssd.deploy.coco import CocoIds
    from fastssd.deploy.predictions import Predictions

SMALLEST_DRAWN = 512  # longer side in pixels; smaller images are enlarged, so that tags can be read
FEW = 20  # no progress bar for up to this many images
BATCH = 4  # the fastest on a CPU: the activations stay in the cache
MOST_WORKERS = 8  # each holds the activations of its batch
DOCUMENTS = ("predictions.json", "coco_detections.json", "coco_images.json")


@command()
def predict(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, a run folder, or a file of fastssd export.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES", help="Images, or folders of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the predictions and the drawn images.")] = Path("predictions"),
    score_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Lowest score of a box.", show_default="0.3, or the file's")
    ] = None,
    nms_threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="NMS deletes a box whose IoU with a better one is higher.", show_default="the model's"
        ),
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(min=1, help="Most boxes per image.", show_default="the model's")
    ] = None,
    draw: Annotated[bool, typer.Option(help="Draw the boxes, or only write them as JSON.")] = True,
    annotations: Annotated[
        Path | None,
        typer.Option(help="COCO file that gives coco_detections.json its image and category ids.", show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a stopped run in the folder; start one if there is none.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the predictions in the folder, even if there are many.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the network together.")] = BATCH,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads; each reads and detects a batch.", show_default=f"the CPUs, {MOST_WORKERS} at most"
        ),
    ] = None,
    accelerator: AcceleratorOption = Accelerator.AUTO,
    progress: Annotated[bool | None, typer.Option(help="Show a progress bar.", show_default="on a terminal")] = None,
    as_json: Json = False,
) -> None:
    """Detect in images: draw the boxes with class and score, and write them as JSON.

    Boxes are x1, y1, x2, y2 in pixels of the image; in coco_detections.json x, y, width, height.

    Results are written batch by batch: a run that was stopped in any way can be continued with --resume.

    An image that cannot be read is reported, the others are done, and the exit status is 1.

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
    paths = expand_folders(images)
    if draw:
        check_originals(paths, out)
    cpus = threads.current()
    workers = workers or min(cpus, MOST_WORKERS, math.ceil(len(paths) / batch_size))
    detector = Detector(
        path,
        **device_options(path, accelerator),
        score_threshold=score_threshold,
        iou_threshold=nms_threshold,
        max_detections=max_detections,
        batch_size=batch_size,
        threads=max(cpus // workers, 1),
    )
    ids = None if annotations is None else CocoIds(annotations, detector.class_names)
    if ids is not None and ids.check(paths) < len(paths):
        say(f"{annotations} does not have all of these images; coco_detections.json will only have those that it has")
    about = {"checkpoint": str(path), "class_names": list(detector.class_names)}
    options = resume_options(path, detector, paths, draw)
    with Predictions(out, options, about, resume=resume, overwrite=overwrite) as predictions:
        for name in DOCUMENTS:  # written at the end; those that exist are of another run or incomplete
            (out / name).unlink(missing_ok=True)
        show_bar = sys.stderr.isatty() and len(paths) > FEW if progress is None else progress
        show_lines = not as_json and not (show_bar and sys.stdout.isatty())
        detect_all(detector, predictions, paths, draw, workers, show_bar, show_lines)
        count, failed = write_documents(predictions, about, ids)
    if as_json:
        with open(out / "predictions.json", encoding="utf-8") as document:
            shutil.copyfileobj(document, sys.stdout)
    elif len(paths) > 1:
        documents = ", ".join(DOCUMENTS[: 3 if ids is None else 2])
        print(f"predictions of {count} images in {out}: predictions.jsonl, {documents}")
    if failed:
        say(f"{failed} of {count} images could not be read")
        raise typer.Exit(1)


def detect_all(
    detector: Detector,
    predictions: Predictions,
    paths: Sequence[str],
    draw: bool,
    workers: int,
    show_bar: bool,
    show_lines: bool,
) -> None:
    """Detect in the images that `predictions` does not have yet, until all are done or a signal comes."""
    from fastssd._stopping import stop_signals
    from fastssd.cli.progress import progress_bar
    from fastssd.deploy.parallel import in_order

    done = set(map(os.path.abspath, predictions.done))
    left = [path for path in paths if os.path.abspath(path) not in done]
    jobs = with_targets(left, predictions.done, predictions.folder) if draw else ((path, None) for path in left)
    batches = iter(lambda: list(islice(jobs, detector.batch_size)), [])
    with (
        stop_signals("batch") as stop,
        progress_bar(show_bar, len(paths), len(paths) - len(left), "images") as advance,
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
                    print(summary_of(entry, detector.class_names), flush=True)
            advance(len(entries))
            if stop.signal is not None and written < len(left):
                say(
                    f"stopped: {len(paths) - len(left) + written} of {len(paths)} images are in "
                    f"{predictions.path}; continue with the same command and --resume"
                )
                raise typer.Exit(stop.status)


def detect_batch(detector: Detector, jobs: Sequence[tuple[str, str | None]]) -> list[dict[str, Any]]:
    """Detect in a batch, and draw the images that have a target.

    Args:
        jobs: for each image its path, and the path of its drawn image or None.

    Returns:
        For each image its entry of ``predictions.jsonl``.
    """
    from fastssd.data import DataError

    entries = []
    results = detector.stream([path for path, _ in jobs], on_error="return")
    for (path, target), result in zip(jobs, results, strict=True):
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
                {"image": path, "width": values.pop("width"), "height": values.pop("height"), "drawn": target} | values
            )
        except DataError as error:
            entries.append({"image": path, "error": str(error)})
    return entries


def write_documents(predictions: Predictions, about: Mapping[str, Any], ids: CocoIds | None) -> tuple[int, int]:
    """Write the documents that are made of the lines of ``predictions.jsonl``.

    Returns:
        The number of images, and the number of those that could not be read.
    """
    from fastssd.deploy.coco import write_images, write_results

    whole, results, images = (predictions.folder / name for name in DOCUMENTS)
    counts = predictions.write_document(whole, about)
    written = write_results(results, predictions.entries(), ids)
    if ids is None:
        write_images(images, predictions.entries(), about["class_names"])
    if ids is not None and written.left_out:
        say(f"{written.left_out} boxes are not in {results}, because {ids.source} does not have their class")
    return counts


def resume_options(path: Path, detector: Detector, images: Sequence[str], draw: bool) -> dict[str, Any]:
    """The options that must be the same when a run is continued."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "checkpoint_sha256": digest,
        **asdict(detector.limits),
        "batch_size": detector.batch_size,
        "draw": draw,
        # Relative paths in the lines are relative to this folder.
        "directory": None if all(map(os.path.isabs, images)) else os.getcwd(),
    }


def summary_of(entry: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """What was found in an image, as a line for the user."""
    found = Counter(detection["class"] for detection in entry["detections"])
    counts = ", ".join(f"{found[name]} {name}" for name in class_names if name in found)
    line = f"{entry['image']}: {counts or 'nothing found'}" + (f" -> {entry['drawn']}" if entry["drawn"] else "")
    return line.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding or "utf-8")


def device_options(path: Path, accelerator: Accelerator) -> dict[str, Any]:
    """The options of :class:`Detector` that choose the device."""
    from fastssd.deploy.networks import is_checkpoint

    if not is_checkpoint(path):
        return {"providers": ["CUDAExecutionProvider"]} if accelerator is Accelerator.GPU else {}
    import torch

    use_gpu = accelerator is Accelerator.GPU or (accelerator is Accelerator.AUTO and torch.cuda.is_available())
    return {"device": "cuda" if use_gpu else "cpu"}
