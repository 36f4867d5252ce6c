"""``fastssd demo`` and ``fastssd train``."""

from __future__ import annotations

import math
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastssd.cli.common import (
    Data,
    Json,
    OnError,
    OnErrorOption,
    checkpoint_in,
    command,
    load,
    only_json,
    preset_of,
    print_json,
    print_metrics,
    print_table,
    read_preset,
    say,
    splits_of,
)

if TYPE_CHECKING:
    from fastssd.data import DetectionDataset, Problem
    from fastssd.detection import Preset
    from fastssd.training import RunResult, TrainConfig

DEMO_IMAGES, DEMO_QUICK_IMAGES = 600, 10
DEMO_EPOCHS, DEMO_BATCH = 8, 4  # small batches: many steps in little time
DEMO_MINUTES, DEMO_LEAST_EPOCHS = 4.5, 4  # a slow machine trains for as many epochs as fit, but for these
DEMO_MOSAIC, DEMO_CLOSE_MOSAIC = 0.6, 2  # four times the objects in the time of one image; whole images at the end
DEMO_BACKGROUND = 0.4  # anchors that nearly match are neither positive nor background
TRAINING, LOSS, AUGMENTATION, HARDWARE = "Training", "Matching and losses", "Augmentation", "Hardware"


def option(help: str, default: str, panel: str, *names: str) -> Any:
    """An option of `train` that is None unless it is given, so that a resumed run keeps its settings."""
    return typer.Option(*names, help=help, show_default=default, rich_help_panel=panel)


@command()
def demo(
    out: Annotated[Path | None, typer.Option(help="The run folder to make.", show_default="runs/demo-NNN")] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Passes over the training images.",
            show_default=f"{DEMO_EPOCHS}, or as many as fit into {DEMO_MINUTES} minutes",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Choose the number of epochs for about this duration.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few images and one epoch, to see that it runs.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, order and augmentation.")] = 0,
    as_json: Json = False,
) -> None:
    """Fit anchors to generated images, train on them, detect, and draw the boxes: all of SSD in about five minutes,
    without data.

    \b
    [bold]Examples[/bold]
      fastssd demo
      fastssd demo --minutes 2
    """
    if epochs is not None and minutes is not None:
        raise typer.BadParameter("--epochs and --minutes exclude each other")
    import fastssd.training as training
    from fastssd.detection.criterion import Criterion

    data = f"shapes:{DEMO_QUICK_IMAGES if quick else DEMO_IMAGES}"
    train_data, eval_data = load(data, "train", OnError.RAISE), load(data, "test", OnError.RAISE)
    config = training.TrainConfig(
        epochs=epochs or (1 if quick else DEMO_EPOCHS),
        batch_size=DEMO_BATCH,
        criterion=Criterion(background_threshold=DEMO_BACKGROUND),
        augment=training.Augment(mosaic=DEMO_MOSAIC),
        close_mosaic=DEMO_CLOSE_MOSAIC,
        seed=seed,
    )
    config = replace(config, preset=fitted(config, train_data))
    if minutes or not (epochs or quick):
        fitting = epochs_in(60 * (minutes or DEMO_MINUTES), config, train_data)
        config = replace(config, epochs=fitting if minutes else min(DEMO_EPOCHS, max(fitting, DEMO_LEAST_EPOCHS)))
    say(
        f"training on {len(train_data)} generated images with {', '.join(train_data.class_names)} for {config.epochs} "
        f"epochs, evaluating on {len(eval_data)} others"
    )
    run_dir = out or training.new_run_dir("demo")
    with only_json(as_json):
        result = training.train(config, train_data, eval_data, run_dir, progress=sys.stderr.isatty(), report_line=say)
    report(result, as_json, ["fastssd", "train", data, "--resume", str(run_dir)])
    if not as_json:
        print(
            f"\nNext:\n"
            f"  fastssd predict {run_dir} IMAGE... --out found   detect in your own images\n"
            f"  fastssd explain shapes --checkpoint {run_dir}    see how matching and NMS work\n"
            f"  fastssd train DATA --fit-anchors                 train on your own data\n"
        )


@command()
def train(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="The run folder to make.", show_default="runs/MODEL-NNN")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="A run folder to continue, with its settings unless new ones are given.")
    ] = None,
    train_split: Annotated[str | None, typer.Option(help="Split to train on.", show_default="found in DATA")] = None,
    eval_split: Annotated[str | None, typer.Option(help="Split to evaluate on.", show_default="found in DATA")] = None,
    on_error: OnErrorOption = OnError.RAISE,
    as_json: Json = False,
    progress: Annotated[bool | None, typer.Option(help="Show a progress bar.", show_default="on a terminal")] = None,
    model: Annotated[
        str | None,
        option("tinyssd, ssd300_vgg16, ssd512_vgg16 or ssdlite320_mobilenet_v3_large.", "tinyssd", TRAINING),
    ] = None,
    weights: Annotated[
        str | None, option("Weights to start from: a published name such as COCO_V1, or a file.", "none", TRAINING)
    ] = None,
    freeze: Annotated[
        list[str] | None,
        option("Modules that are not trained, such as backbone; may be repeated.", "none", TRAINING),
    ] = None,
    preset: Annotated[
        Path | None, option("Anchors for the model: a file from fastssd anchors --fit.", "the model's own", TRAINING)
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Height and width of the input, pixels.", show_default="the preset's", rich_help_panel=TRAINING
        ),
    ] = None,
    fit_anchors: Annotated[
        bool, typer.Option("--fit-anchors", help="Fit the anchors to DATA first.", rich_help_panel=TRAINING)
    ] = False,
    epochs: Annotated[int | None, option("Passes over the training images.", "60", TRAINING)] = None,
    batch_size: Annotated[int | None, option("Images per batch.", "16", TRAINING)] = None,
    optimizer: Annotated[str | None, option("adamw or sgd.", "adamw", TRAINING)] = None,
    lr: Annotated[float | None, option("The highest learning rate.", "0.002", TRAINING)] = None,
    momentum: Annotated[float | None, option("Momentum of sgd.", "0.9", TRAINING)] = None,
    weight_decay: Annotated[float | None, option("For weights, not for biases.", "0.01", TRAINING)] = None,
    schedule: Annotated[str | None, option("cosine, step or constant.", "cosine", TRAINING)] = None,
    warmup: Annotated[float | None, option("Share of all steps in which lr rises.", "0.1", TRAINING)] = None,
    gradient_clip: Annotated[float | None, option("Largest gradient norm; 0: no limit.", "10.0", TRAINING)] = None,
    accumulate: Annotated[int | None, option("Batches per step of the optimizer.", "1", TRAINING)] = None,
    ema: Annotated[
        float | None,
        option("Decay of a moving average of the weights, which is what is saved; 0: none.", "0.0", TRAINING),
    ] = None,
    seed: Annotated[int | None, option("Seed of weights, order and augmentation.", "0", TRAINING)] = None,
    eval_every: Annotated[int | None, option("Epochs between evaluations.", "1", TRAINING)] = None,
    early_stop: Annotated[
        int | None, option("Stop after this many evaluations without a better AP50; 0: never.", "0", TRAINING)
    ] = None,
    class_loss: Annotated[str | None, option("cross_entropy (with mining) or focal.", "cross_entropy", LOSS)] = None,
    box_loss: Annotated[str | None, option("smooth_l1 or l1.", "smooth_l1", LOSS)] = None,
    box_weight: Annotated[float | None, option("Weight of the box loss.", "1.0", LOSS)] = None,
    class_weights: Annotated[
        str | None,
        option("Weights of classes in the class loss, by name: Platelets=3,WBC=0.5; others have 1.", "none", LOSS),
    ] = None,
    neg_pos_ratio: Annotated[float | None, option("Mined negatives per positive.", "3.0", LOSS)] = None,
    min_negatives: Annotated[int | None, option("Least number of mined negatives per image.", "3", LOSS)] = None,
    iou_threshold: Annotated[float | None, option("Anchors from this IoU on are positive.", "0.5", LOSS)] = None,
    background_threshold: Annotated[
        float | None,
        option(
            "Anchors below this IoU are background; between it and --iou-threshold, ignored.", "--iou-threshold", LOSS
        ),
    ] = None,
    force_match: Annotated[
        str | None,
        option(
            "How a ground-truth box gets anchors below --iou-threshold: bipartite (one), low_quality (all with its "
            "best IoU, for objects much smaller than the anchors), best or none.",
            "bipartite",
            LOSS,
        ),
    ] = None,
    flip: Annotated[float | None, option("Probability of a horizontal flip.", "0.5", AUGMENTATION)] = None,
    vertical_flip: Annotated[
        float | None,
        option("Probability of a vertical flip, for images such as a microscope's.", "0.0", AUGMENTATION),
    ] = None,
    photometric: Annotated[float | None, option("Strength of colour changes.", "0.5", AUGMENTATION)] = None,
    zoom: Annotated[float | None, option("Largest change of size.", "0.2", AUGMENTATION)] = None,
    shift: Annotated[float | None, option("Largest shift, as a share of the image.", "0.1", AUGMENTATION)] = None,
    crop: Annotated[
        float | None, option("Probability of a random crop with a minimum IoU to a box.", "0.0", AUGMENTATION)
    ] = None,
    zoom_out: Annotated[
        float | None, option("Probability of placing the image on a larger canvas, up to 4x.", "0.0", AUGMENTATION)
    ] = None,
    mosaic: Annotated[float | None, option("Probability of four images in one.", "0.0", AUGMENTATION)] = None,
    close_mosaic: Annotated[int | None, option("Epochs at the end without mosaic.", "0", AUGMENTATION)] = None,
    multi_scale: Annotated[
        str | None,
        option("Input sizes; each batch has a random one of them: 224,256,288.", "the preset's", AUGMENTATION),
    ] = None,
    accelerator: Annotated[str | None, option("auto, cpu or gpu.", "auto", HARDWARE)] = None,
    devices: Annotated[str | None, option("Number of devices, or auto.", "1", HARDWARE)] = None,
    num_nodes: Annotated[int | None, option("Number of machines.", "1", HARDWARE)] = None,
    strategy: Annotated[str | None, option("A strategy of Lightning: auto, ddp, ...", "auto", HARDWARE)] = None,
    precision: Annotated[str | None, option("32-true, bf16-mixed or 16-mixed.", "32-true", HARDWARE)] = None,
    num_workers: Annotated[int | None, option("Processes that read images.", "chosen", HARDWARE, "--workers")] = None,
    cache: Annotated[bool | None, option("Keep images in memory.", "if they fit", HARDWARE)] = None,
) -> None:
    """Train a detector on your own images.

    Makes a run folder with checkpoints, config, metrics, curves, and images with drawn boxes.

    Ctrl-C stops after the current step; the last line then says how to continue.

    \b
    [bold]Examples[/bold]
      fastssd train shapes:500 --epochs 10
      fastssd train VOC2007 --out runs/voc --epochs 120
      fastssd train cells --fit-anchors --vertical-flip 0.5 --on-error skip
      fastssd train cells --model ssdlite320_mobilenet_v3_large --weights COCO_V1 --freeze "backbone.0"
      fastssd train cells --resume runs/tinyssd-001
    """
    freeze = freeze or None  # an option that was not given is an empty list in some versions of typer
    given = {name: value for name, value in locals().items() if value is not None}
    if preset is not None:
        given["preset"] = read_preset(preset)
    if weights is not None and (fit_anchors or image_size is not None):
        raise typer.BadParameter(
            "--weights cannot be used with --fit-anchors or --image-size: the weights were trained with other anchors"
        )
    if fit_anchors and resume is not None:
        raise typer.BadParameter("--fit-anchors and --resume exclude each other: a run keeps its anchors")
    import fastssd.training as training

    base = training.TrainConfig()
    if resume is not None:
        base = training.TrainConfig.from_dict(training.load_checkpoint(checkpoint_in(resume, "last"))[1].config)
    weights_by_name = given.pop("class_weights", None)
    config = changed(base, given)
    train_name, eval_name = splits_of(data, train_split, eval_split)
    train_data, eval_data = load(data, train_name, on_error), load(data, eval_name, on_error)
    if weights_by_name is not None:
        config = changed(config, {"class_weights": class_weights_in(weights_by_name, train_data.class_names)})
    if image_size is not None:
        config = replace(config, preset=preset_of(config.model, config.preset, image_size))
    if fit_anchors:
        config = replace(config, preset=fitted(config, train_data))
    if training.is_main_process():
        say(
            f"{data}: {len(train_data)} images to train on ({train_name}), {len(eval_data)} to evaluate on "
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
    if not training.is_main_process():
        return
    again = ["fastssd", "train", data, "--resume", str(result.run_dir)]
    again += [f"--train-split={train_split}"] * bool(train_split) + [f"--eval-split={eval_split}"] * bool(eval_split)
    again += ["--on-error=skip"] * (on_error is OnError.SKIP)
    report(result, as_json, again, left_out=[*train_data.problems, *eval_data.problems])


def fitted(config: TrainConfig, data: DetectionDataset) -> Preset:
    """The preset of the configuration, or of its model, with anchors fitted to the data."""
    from fastssd.detection.anchor_fit import fit_anchors
    from fastssd.detection.coverage import ground_truth_of

    return fit_anchors(preset_of(config.model, config.preset, None), *ground_truth_of(data))


def changed(config: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """`config` with the options that were given, those of its criterion and its augmentation included."""

    def options_of(part: Any) -> dict[str, Any]:
        return {field.name: given[field.name] for field in fields(part) if field.name in given}

    if "freeze" in given:
        given = given | {"freeze": tuple(given["freeze"])}
    if isinstance(given.get("multi_scale"), str):
        given = given | {"multi_scale": sizes_in(given["multi_scale"])}
    devices = given.get("devices")
    if isinstance(devices, str) and devices.isdecimal():
        given = given | {"devices": int(devices)}
    try:
        criterion = replace(config.criterion, **options_of(config.criterion))
        augment = replace(config.augment, **options_of(config.augment))
        return replace(config, **options_of(config), criterion=criterion, augment=augment)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def class_weights_in(text: str, class_names: Sequence[str]) -> tuple[float, ...]:
    """The weight of each class from ``name=weight,name=weight``; 1 for classes that are not named."""
    weights = dict.fromkeys(class_names, 1.0)
    for part in text.split(","):
        name, _, weight = (piece.strip() for piece in part.rpartition("="))
        if name not in weights:
            known = ", ".join(class_names)
            raise typer.BadParameter(f"--class-weights: expected NAME=WEIGHT, got {part!r}; the classes are {known}")
        try:
            weights[name] = float(weight)
        except ValueError:
            raise typer.BadParameter(f"--class-weights: {weight!r} of {name} is not a number") from None
    return tuple(weights.values())


def sizes_in(text: str) -> tuple[int, ...]:
    """Integers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(f"--multi-scale: expected sizes such as 224,256,288; got {text!r}") from None


def epochs_in(seconds: float, config: TrainConfig, data: DetectionDataset) -> int:
    """How many epochs fit into `seconds`, estimated from a few steps on random images."""
    import torch

    from fastssd.detection import build_model

    model = build_model(config.model, len(data.class_names)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(config.batch_size, 3, model.preset.image_size, model.preset.image_size)
    images = images.contiguous(memory_format=torch.channels_last)
    step_seconds = math.inf  # the fastest step: the machine may be busy with something else for a moment
    for _ in range(10):
        started = time.perf_counter()
        logits, deltas = model(images)
        (logits.mean() + deltas.mean()).backward()
        step_seconds = min(step_seconds, time.perf_counter() - started)
    overhead = 1.3  # data, targets, loss, optimiser and the evaluation of each epoch, against the fastest step
    return max(1, int(seconds / (overhead * step_seconds * len(data) / config.batch_size)))


def report(result: RunResult, as_json: bool, again: Sequence[str], left_out: Sequence[Problem] = ()) -> None:
    """Print the result of a run.

    Args:
        again: the command that continues a run that was stopped.
        left_out: problems of the data sets.

    Raises:
        typer.Exit: the run was stopped by a signal.
    """
    if as_json:
        values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(result).items()}
        print_json(values | {"left_out": list(map(str, left_out))})
    if result.interrupted:
        resumable = result.last_checkpoint is not None
        say(f"continue with: {shlex.join(again)}" if resumable else "stopped before the first step; nothing to resume")
        raise typer.Exit(128 + signal.Signals[result.interrupted].value)
    if not as_json:
        print_metrics(result.best)
        places = {"boxes drawn": result.predictions, "checkpoint": result.best_checkpoint, "run folder": result.run_dir}
        print_table([(name, str(path)) for name, path in places.items() if path is not None])
