"""The command ``fastssd`` (extra ``cli``; the commands that train or detect need ``train``).

Thin: it reads options, calls the layer that does the work, and says what came out. stdout holds results (with
``--json`` nothing but JSON); progress and errors go to stderr.
Exit status: 0 done, 1 failed (one line says why), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

try:
    import typer
except ImportError:
    sys.exit("the command fastssd needs typer and rich; install them with: pip install 'fastssd[cli]'")

if TYPE_CHECKING:
    from fastssd.data import DetectionDataset, Problem
    from fastssd.training import RunResult, TrainConfig

P = ParamSpec("P")
INTERRUPTED = 130
LISTED = 20  # problems of a data set that are shown
MOST_EXPLAINED = 24  # boxes in a picture of NMS
SMALLEST_DRAWN = 512  # pixels; smaller pictures are enlarged, so that tags can be read
DEMO_PICTURES, DEMO_QUICK = 600, 10
DEMO_EPOCHS, DEMO_BATCH = 7, 8  # small batches: many steps in little time
TRAINING, LOSS, AUGMENTATION, HARDWARE = "Training", "Matching and losses", "Augmentation", "Hardware"


class OnError(StrEnum):
    RAISE = "raise"
    SKIP = "skip"


class ExportFormat(StrEnum):
    ONNX = "onnx"


class Accelerator(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


app = typer.Typer(
    name="fastssd",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="SSD object detection: train on your own pictures, detect, and see how it works.\n\n"
    "Start with [bold]fastssd demo[/bold]: it needs no data and takes about five minutes.",
    epilog="Every command has its own --help with examples. FASTSSD_DEBUG=1 shows the traceback of an error.",
)


def main() -> None:
    """The entry point."""
    app(prog_name="fastssd")


def print_version(wanted: bool) -> None:
    if wanted:
        import fastssd

        print(fastssd.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["FASTSSD_DEBUG"] = "1"


def command(name: str | None = None) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Make a function a command whose errors are one line on stderr and an exit status."""

    def decorate(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                function(*args, **kwargs)
            except (typer.Exit, typer.Abort, typer.BadParameter):
                raise
            except KeyboardInterrupt:
                say("interrupted")
                raise typer.Exit(INTERRUPTED) from None
            except BrokenPipeError:  # whoever read our output has enough of it
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None
            except Exception as error:
                if os.environ.get("FASTSSD_DEBUG", "0") not in ("", "0"):
                    raise
                say(f"error: {describe(error)}")
                raise typer.Exit(1) from None

        return app.command(name)(guarded)

    return decorate


def describe(error: Exception) -> str:
    """What was wrong, for people. Errors that a user can cause speak for themselves; others say what they are."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"out of memory{': ' + text if text else ''}"
    if isinstance(error, (ValueError, OSError, ImportError, RuntimeError)) and text:
        return text
    return f"{type(error).__name__}: {text} (unexpected; FASTSSD_DEBUG=1 shows where)"


def say(text: str) -> None:
    """A line for the person at the screen, on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def only_json(wanted: bool) -> Iterator[None]:
    """Let what the libraries print (progress bars) go to stderr, so that stdout holds the result alone."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield


def print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result, indent=2, allow_nan=False))


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A VOC, COCO or YOLO folder; [bold]shapes[/bold] or [bold]shapes:COUNT[/bold] for generated pictures.",
    ),
]
Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run folder, whose best checkpoint is taken.")
]
Skip = Annotated[
    OnError, typer.Option(help="What to do with wrong annotations and pictures: stop, or leave them out and list them.")
]
On = Annotated[Accelerator, typer.Option("--accelerator", help="Where to compute; auto: on a GPU if there is one.")]


# --- training ----------------------------------------------------------------------------------------------------


def option(help: str, default: str, panel: str, *names: str) -> Any:
    """An option of `train` that stays None unless it is given, so that a resumed run keeps what it had."""
    return typer.Option(*names, help=help, show_default=default, rich_help_panel=panel)


@command()
def demo(
    out: Annotated[Path | None, typer.Option(help="The run folder to make.", show_default="runs/demo-NNN")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training pictures.", show_default=str(DEMO_EPOCHS))
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Choose the epochs so that it takes about so long.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few pictures and one epoch, to see that it runs.")] = False,
    as_json: Json = False,
) -> None:
    """Train on generated pictures and draw what was found: all of SSD in about five minutes, without data.

    \b
    [bold]Examples[/bold]
      fastssd demo
      fastssd demo --minutes 2
    """
    if epochs is not None and minutes is not None:
        raise typer.BadParameter("--epochs and --minutes exclude each other")
    import fastssd.training as training

    data = f"shapes:{DEMO_QUICK if quick else DEMO_PICTURES}"
    train_data, eval_data = load(data, "train", OnError.RAISE), load(data, "test", OnError.RAISE)
    config = training.TrainConfig(epochs=epochs or (1 if quick else DEMO_EPOCHS), batch_size=DEMO_BATCH)
    if minutes is not None:
        config = replace(config, epochs=epochs_in(minutes * 60, config, train_data))
    say(
        f"learning to detect {', '.join(train_data.class_names)}: {len(train_data)} generated pictures, "
        f"{config.epochs} epochs, then {len(eval_data)} pictures that it has not seen"
    )
    run_dir = out or training.new_run_dir("demo")
    with only_json(as_json):
        result = training.train(config, train_data, eval_data, run_dir, progress=sys.stderr.isatty(), report_line=say)
    report(result, as_json, ["fastssd", "train", data, "--resume", str(run_dir)])
    if not as_json:
        print(
            f"\nNext:\n"
            f"  fastssd predict {run_dir} PICTURE... --out found   detect in pictures of your own\n"
            f"  fastssd explain shapes --checkpoint {run_dir}      see matching and NMS at work\n"
            f"  fastssd train DATA                                 learn from a folder of your own\n"
        )


@command()
def train(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="The run folder to make.", show_default="runs/MODEL-NNN")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="A run folder to go on with; it keeps its settings unless new ones are given.")
    ] = None,
    train_split: Annotated[str | None, typer.Option(help="Split to learn from.", show_default="found in DATA")] = None,
    eval_split: Annotated[str | None, typer.Option(help="Split to evaluate on.", show_default="found in DATA")] = None,
    on_error: Skip = OnError.RAISE,
    as_json: Json = False,
    progress: Annotated[bool | None, typer.Option(help="Show a progress bar.", show_default="on a terminal")] = None,
    model: Annotated[
        str | None,
        option("tinyssd, ssd300_vgg16, ssd512_vgg16 or ssdlite320_mobilenet_v3_large.", "tinyssd", TRAINING),
    ] = None,
    weights: Annotated[
        str | None, option("What to start from: a published name such as COCO_V1, or a file.", "nothing", TRAINING)
    ] = None,
    freeze: Annotated[
        list[str] | None,
        option("Modules to keep as they are, such as backbone; may be repeated.", "none", TRAINING),
    ] = None,
    epochs: Annotated[int | None, option("Passes over the training pictures.", "60", TRAINING)] = None,
    batch_size: Annotated[int | None, option("Pictures a step.", "16", TRAINING)] = None,
    optimizer: Annotated[str | None, option("adamw or sgd.", "adamw", TRAINING)] = None,
    lr: Annotated[float | None, option("The highest learning rate.", "0.002", TRAINING)] = None,
    momentum: Annotated[float | None, option("Of sgd.", "0.9", TRAINING)] = None,
    weight_decay: Annotated[float | None, option("On weights, not on biases.", "0.01", TRAINING)] = None,
    schedule: Annotated[str | None, option("cosine or constant.", "cosine", TRAINING)] = None,
    warmup: Annotated[float | None, option("Part of all steps in which lr rises.", "0.1", TRAINING)] = None,
    gradient_clip: Annotated[float | None, option("Largest gradient norm; 0: any.", "10.0", TRAINING)] = None,
    seed: Annotated[int | None, option("Weights, order and augmentation.", "0", TRAINING)] = None,
    eval_every: Annotated[int | None, option("Epochs between evaluations.", "1", TRAINING)] = None,
    early_stop: Annotated[
        int | None, option("Stop after so many evaluations without a better AP50; 0: never.", "0", TRAINING)
    ] = None,
    class_loss: Annotated[str | None, option("cross_entropy (with mining) or focal.", "cross_entropy", LOSS)] = None,
    box_loss: Annotated[str | None, option("smooth_l1 or l1.", "smooth_l1", LOSS)] = None,
    box_weight: Annotated[float | None, option("Weight of the box loss.", "1.0", LOSS)] = None,
    neg_pos_ratio: Annotated[float | None, option("Mined negatives a positive.", "3.0", LOSS)] = None,
    iou_threshold: Annotated[float | None, option("IoU that makes an anchor positive.", "0.5", LOSS)] = None,
    force_match: Annotated[
        str | None,
        option(
            "How a ground truth claims anchors under it: bipartite (one), low_quality (all of its best: for objects "
            "much smaller than the anchors), best or none.",
            "bipartite",
            LOSS,
        ),
    ] = None,
    flip: Annotated[float | None, option("Probability of mirroring left to right.", "0.5", AUGMENTATION)] = None,
    vertical_flip: Annotated[
        float | None, option("And top to bottom, for pictures without an up.", "0.0", AUGMENTATION)
    ] = None,
    photometric: Annotated[float | None, option("Strength of colour changes.", "0.5", AUGMENTATION)] = None,
    zoom: Annotated[float | None, option("Largest change of size.", "0.2", AUGMENTATION)] = None,
    shift: Annotated[float | None, option("Largest move, part of the picture.", "0.1", AUGMENTATION)] = None,
    accelerator: Annotated[str | None, option("auto, cpu or gpu.", "auto", HARDWARE)] = None,
    devices: Annotated[str | None, option("How many, or auto.", "1", HARDWARE)] = None,
    num_nodes: Annotated[int | None, option("Machines.", "1", HARDWARE)] = None,
    strategy: Annotated[str | None, option("As Lightning takes it: auto, ddp, ...", "auto", HARDWARE)] = None,
    precision: Annotated[str | None, option("32-true, bf16-mixed or 16-mixed.", "32-true", HARDWARE)] = None,
    num_workers: Annotated[int | None, option("Processes that read pictures.", "chosen", HARDWARE, "--workers")] = None,
    cache: Annotated[bool | None, option("Keep pictures in memory.", "if they fit", HARDWARE)] = None,
) -> None:
    """Train a detector on your own pictures.

    Leaves a run folder: checkpoints, config, metrics, curves, pictures with boxes.

    Ctrl-C stops after the step at hand; the last line then says how to go on.

    \b
    [bold]Examples[/bold]
      fastssd train shapes:500 --epochs 10
      fastssd train VOC2007 --out runs/voc --epochs 120
      fastssd train cells --vertical-flip 0.5 --on-error skip
      fastssd train cells --model ssdlite320_mobilenet_v3_large --weights COCO_V1 --freeze "backbone.0"
      fastssd train cells --resume runs/tinyssd-001
    """
    freeze = freeze or None  # an option that was not given is an empty list in some versions of typer
    given = {name: value for name, value in locals().items() if value is not None}
    import fastssd.training as training

    before = training.TrainConfig()
    if resume is not None:
        before = training.TrainConfig.from_dict(training.load_checkpoint(checkpoint_in(resume, "last"))[1].config)
    config = changed(before, given)
    train_name, eval_name = splits_of(data, train_split, eval_split)
    train_data, eval_data = load(data, train_name, on_error), load(data, eval_name, on_error)
    say(
        f"{data}: {len(train_data)} pictures to learn from ({train_name}), {len(eval_data)} to evaluate on "
        f"({eval_name}), classes {', '.join(train_data.class_names)}"
    )
    with only_json(as_json):
        result = training.train(
            config,
            train_data,
            eval_data,
            out,
            resume=resume,
            progress=sys.stderr.isatty() if progress is None else progress,
            report_line=say,
        )
    if int(os.environ.get("LOCAL_RANK", "0")):  # one process of several tells
        return
    again = ["fastssd", "train", data, "--resume", str(result.run_dir)]
    again += [f"--train-split={train_split}"] * bool(train_split) + [f"--eval-split={eval_split}"] * bool(eval_split)
    again += ["--on-error=skip"] * (on_error is OnError.SKIP)
    report(result, as_json, again, left_out=[*train_data.problems, *eval_data.problems])


@command("eval")
def evaluate(
    checkpoint: Checkpoint,
    data: Data,
    split: Annotated[str | None, typer.Option(help="Split to evaluate on.", show_default="found in DATA")] = None,
    on_error: Skip = OnError.RAISE,
    accelerator: On = Accelerator.AUTO,
    num_workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Processes that read pictures.", show_default="chosen")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint's average precision (COCO) on a data set.

    \b
    [bold]Examples[/bold]
      fastssd eval runs/tinyssd-001 cells
      fastssd eval best.ckpt VOC2007 --split test --json | jq .AP50
    """
    import fastssd.training as training

    path = checkpoint_in(checkpoint, "best")
    class_names = training.load_checkpoint(path)[1].class_names
    name = split or splits_of(data, None, None)[1]
    pictures = load(data, name, on_error, class_names)
    with only_json(as_json):
        metrics = training.evaluate(path, pictures, accelerator=accelerator.value, num_workers=num_workers)
    if as_json:
        left_out = [str(problem) for problem in pictures.problems]
        print_json(
            {"checkpoint": str(path), "data": data, "split": name, "pictures": len(pictures), "left_out": left_out}
            | metrics
        )
    else:
        print(f"{path} on {len(pictures)} pictures of {data}, split {name}")
        print_metrics(metrics)


def checkpoint_in(path: Path, which: str) -> Path:
    """The file that a checkpoint argument means."""
    file = path / "checkpoints" / f"{which}.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no such checkpoint", str(file))
    return file


def changed(config: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """`config` with the options that were given; those of the criterion and the augmentation go where they belong."""

    def own(part: Any) -> dict[str, Any]:
        return {field.name: given[field.name] for field in fields(part) if field.name in given}

    if "freeze" in given:
        given = given | {"freeze": tuple(given["freeze"])}
    devices = given.get("devices")
    if isinstance(devices, str) and devices.isdecimal():
        given = given | {"devices": int(devices)}
    try:
        criterion = replace(config.criterion, **own(config.criterion))
        augment = replace(config.augment, **own(config.augment))
        return replace(config, **own(config), criterion=criterion, augment=augment)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def splits_of(data: str, train_split: str | None, eval_split: str | None) -> tuple[str, str]:
    """The splits to use: those given, else those that the data set suggests."""
    if train_split and eval_split:
        return train_split, eval_split
    from fastssd.data import default_splits

    train_name, eval_name = default_splits(data)
    return train_split or train_name, eval_split or eval_name


def load(data: str, split: str, on_error: OnError, class_names: Sequence[str] | None = None) -> DetectionDataset:
    """A data set; what was left out of it is said."""
    from fastssd.data import DataError, load_dataset

    try:
        dataset = load_dataset(data, split, on_error=on_error.value, class_names=class_names)
    except DataError as error:
        say(f"error: {error}")
        if on_error is OnError.RAISE and error.problem.file != data:  # single files are wrong, not the whole
            say(f"{len(error.problems)} problem(s) in {data}; --on-error skip leaves them out and goes on")
        raise typer.Exit(1) from None
    if dataset.problems:
        say(f"left out of {data}, split {split}: {len(dataset.problems)}")
        for problem in dataset.problems[:LISTED]:
            say(f"  {problem}")
        if len(dataset.problems) > LISTED:
            say(f"  ... and {len(dataset.problems) - LISTED} more")
    return dataset


def epochs_in(seconds: float, config: TrainConfig, data: DetectionDataset) -> int:
    """How many epochs fit, judged by a few steps on random pictures."""
    import torch

    from fastssd.detection import build_model

    model = build_model(config.model, len(data.class_names))
    images = torch.rand(config.batch_size, 3, model.preset.image_size, model.preset.image_size)
    started = 0.0
    for step in range(4):
        if step == 1:  # the first one warms up
            started = time.perf_counter()
        logits, deltas = model(images.contiguous(memory_format=torch.channels_last))
        (logits.mean() + deltas.mean()).backward()
    step_seconds = (time.perf_counter() - started) / 3
    overhead = 1.3  # data, targets, loss, optimiser and the evaluation of each epoch
    return max(1, round(seconds / (overhead * step_seconds * len(data) / config.batch_size)))


def report(result: RunResult, as_json: bool, again: Sequence[str], left_out: Sequence[Problem] = ()) -> None:
    """Say what came out of a run. One that was stopped ends here, with the command `again` that goes on with it."""
    if as_json:
        values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(result).items()}
        print_json(values | {"left_out": list(map(str, left_out))})
    if result.interrupted:
        resumable = result.last_checkpoint is not None
        say(f"go on with: {shlex.join(again)}" if resumable else "stopped before the first step; nothing to resume")
        raise typer.Exit(128 + signal.Signals[result.interrupted].value)
    if not as_json:
        print_metrics(result.best)
        places = {"boxes drawn": result.predictions, "checkpoint": result.best_checkpoint, "run folder": result.run_dir}
        print_table([(name, str(path)) for name, path in places.items() if path is not None])


def print_metrics(metrics: Mapping[str, Any] | None) -> None:
    if not metrics:
        return
    measures = ("AP50", "AP75", "AP")
    rows = {"all classes": metrics} if len(metrics["per_class"]) > 1 else {}
    rows |= metrics["per_class"]
    print_table(
        [[name, *("-" if found[m] is None else f"{found[m]:.3f}" for m in measures)] for name, found in rows.items()],
        header=("", *measures),
    )


# --- using a trained detector --------------------------------------------------------------------------------------


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
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Least score of a box.")] = 0.3,
    nms_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="IoU from which the weaker of two boxes goes.", show_default="the model's"),
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(min=1, help="Most boxes a picture.", show_default="the model's")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as a file that runs without torch: `fastssd predict` and fastssd.Detector read it.

    Anchors, class names and thresholds go into it. It is compared with torch before it is written.

    The file gives logits and deltas; with --nms it gives boxes, in any program that runs ONNX.

    
    [bold]Examples[/bold]
      fastssd export runs/tinyssd-001 -o cells.onnx
      fastssd export best.ckpt --nms --score-threshold 0.1
      fastssd predict cells.onnx photo.jpg
    """
    from fastssd.deploy.onnx_export import export_onnx
    from fastssd.training import load_checkpoint

    path = checkpoint_in(checkpoint, "best")
    target = out or path.with_suffix(f".{format.value}")
    model, made = load_checkpoint(path)
    with only_json(as_json):
        exported = export_onnx(
            model,
            target,
            class_names=made.class_names,
            nms=nms,
            score_threshold=score_threshold,
            iou_threshold=nms_threshold,
            max_detections=max_detections,
        )
    if as_json:
        print_json(asdict(exported) | {"checkpoint": str(path), "format": format.value, "nms": nms})
        return
    for kind, values in (("takes", exported.inputs), ("gives", exported.outputs)):
        print_table([(kind, name, " x ".join(map(str, shape))) for name, shape in values.items()])
    print(f"{target}: {exported.size / 1e6:.1f} MB, equal to torch within {exported.difference:.1g}")


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


@command()
def explain(
    data: Data,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A checkpoint or run folder, to see NMS on what it predicts.", show_default=False),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to take the picture from.", show_default="to learn from")
    ] = None,
    index: Annotated[int, typer.Option(min=0, help="Number of the picture in the split.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("explained"),
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Least score of a box before NMS.")] = 0.3,
    nms_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="IoU from which the weaker of two boxes goes.")
    ] = 0.45,
    on_error: Skip = OnError.RAISE,
) -> None:
    """Draw how SSD sees a picture of yours: its anchors, how they match the ground truth, and NMS step by step.

    docs/how-ssd-works.md explains what is drawn.

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
        raise typer.BadParameter(f"--index {index}: there are {len(dataset)} pictures, counted from 0")
    sample = dataset[index]
    preset, criterion = TINYSSD, Criterion()
    if checkpoint is not None:
        import fastssd.training as training

        model, made = training.load_checkpoint(checkpoint_in(checkpoint, "best"))
        preset, criterion = made.preset, training.TrainConfig.from_dict(made.config).criterion
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
        # No IoU is over 1: this NMS deletes nothing, and what comes out is what goes into the one that we draw.
        (found,) = detect_batch(
            model, to_input(pixels), [(height, width)], score_threshold=score_threshold, iou_threshold=1.0
        )
        chosen = most_crowded(found.labels, found.boxes, found.scores, nms_threshold)
        if chosen is None:
            say(f"no box scores over {score_threshold:g}: no picture of NMS; --score-threshold lowers it")
        else:
            own = np.flatnonzero(found.labels == chosen)[:MOST_EXPLAINED]  # by falling score
            figures["nms"] = nms_figure(found.boxes[own], found.scores[own], nms_threshold, image=sample.image)
            say(f"NMS runs class by class; drawn are {len(own)} boxes of class {made.class_names[chosen - 1]}")
    for name, figure in figures.items():
        style.save_figure(figure, out / f"{name}.png")
        print(out / f"{name}.png")


# --- information ---------------------------------------------------------------------------------------------------


@command()
def info(as_json: Json = False) -> None:
    """Show version, backends, instruction set and threads.

    \b
    [bold]Examples[/bold]
      fastssd info
      fastssd info --json | jq .backend
      FASTSSD_BACKEND=reference fastssd info
    """
    import fastssd
    from fastssd.backends import available_backends, load_backend

    config = fastssd.show_config()
    backends: dict[str, str | None] = {}  # name: why it cannot run here
    for name in ("cpp", "numba", "reference"):
        backends[name] = None
        if name not in available_backends():
            try:
                load_backend(name)
            except RuntimeError as error:
                backends[name] = str(error)
    if as_json:
        print_json(config | {"backends": backends})
        return

    rows = [("fastssd", config["fastssd"]), ("python", f"{config['python']} on {config['platform']}")]
    rows += [(package, config[package] or "not installed") for package in ("numpy", "numba", "torch")]
    for name, reason in backends.items():
        state = "in use" if name == config["backend"] else "available"
        rows.append((f"backend {name}", reason or state))
    isa = f"{config['isa']} in use; this CPU can run {', '.join(config['available_isas'])}"
    rows.append(("instruction set", isa if config["isa"] else "none: no compiled kernels"))
    rows.append(("threads", str(config["num_threads"])))
    rows += list(config["environment"].items())
    print_table(rows)


@command()
def benchmark(
    only: Annotated[str, typer.Option(help="Workloads whose name has this in it.", show_default="all")] = "",
    seconds: Annotated[float, typer.Option(min=0.01, help="For each implementation of each workload.")] = 0.3,
    as_json: Json = False,
) -> None:
    """Time the operators here, beside every peer that is installed: about two minutes.

    Each implementation has to give the same result before it is timed; inputs rotate, and implementations take turns.

    \b
    [bold]Examples[/bold]
      fastssd benchmark
      fastssd benchmark --only nms
      fastssd benchmark --json > measured.json
    """
    from fastssd.benchmark import environment, measure, workloads
    from fastssd.benchmark.__main__ import table

    chosen = [workload for workload in workloads() if workload.quick and only in workload.name]
    if not chosen:
        raise typer.BadParameter(f"no workload has {only!r} in its name")
    found = []
    for workload in chosen:
        say(workload.name)
        found.append(measure(workload, seconds))
    if as_json:
        measurements = [measurement._asdict() for group in found for measurement in group]
        print_json({"environment": environment(), "measurements": measurements})
        return
    for group in found:
        print(table(group))


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> None:
    """Aligned columns on stdout; under a header the columns after the first are numbers and stand to the right."""
    lines = [header, *rows] if header else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        cells = [cell.rjust(width) if header else cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        cells[0] = line[0].ljust(widths[0])
        typer.secho("  ".join(cells).rstrip(), bold=bool(header) and number == 0)
