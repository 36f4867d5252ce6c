"""What the commands share: the application, options, data sets, and how results and errors are printed."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

try:
    import typer
except ImportError:
    sys.exit("the command fastssd needs typer and rich; install them with: pip install 'fastssd[cli]'")

if TYPE_CHECKING:
    from fastssd.data import DetectionDataset
    from fastssd.detection import Preset

P = ParamSpec("P")
INTERRUPTED = 130
MOST_LISTED = 20  # problems of a data set that are printed


class OnError(StrEnum):
    RAISE = "raise"
    SKIP = "skip"


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
    help="SSD object detection: train on your own images, detect, and see how it works.\n\n"
    "Start with [bold]fastssd demo[/bold]: it needs no data and takes about five minutes.",
    epilog="Every command has its own --help with examples. FASTSSD_DEBUG=1 shows the traceback of an error.",
)


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
            except BrokenPipeError:  # the reader of our output is gone
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
    """The message of an error for the user. An error that no user should cause is marked as unexpected."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"out of memory{': ' + text if text else ''}"
    if isinstance(error, (ValueError, OSError, ImportError, RuntimeError)) and text:
        return text
    return f"{type(error).__name__}: {text} (unexpected; FASTSSD_DEBUG=1 shows where)"


def say(text: str) -> None:
    """Print a line for the user on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def only_json(wanted: bool) -> Iterator[None]:
    """Send what libraries print (progress bars) to stderr, so that stdout holds nothing but the result."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield


def print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result, indent=2, allow_nan=False))


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A VOC, COCO or YOLO folder; [bold]shapes[/bold] or [bold]shapes:COUNT[/bold] for generated images.",
    ),
]
Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run folder: its best checkpoint is used.")
]
OnErrorOption = Annotated[
    OnError, typer.Option(help="On wrong annotations or images: stop, or leave them out and list them.")
]
AcceleratorOption = Annotated[
    Accelerator, typer.Option("--accelerator", help="Where to compute; auto: on a GPU if there is one.")
]


def checkpoint_in(path: Path, which: str) -> Path:
    """The file of a checkpoint argument: `path` itself, or the checkpoint called `which` of a run folder."""
    file = path / "checkpoints" / f"{which}.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such checkpoint", str(file))
    return file


def read_preset(path: Path) -> Preset:
    """The preset in a JSON file of ``fastssd anchors --fit``."""
    from fastssd._fields import read_json
    from fastssd.detection import Preset

    try:
        return Preset.from_dict(read_json(path.read_bytes()))
    except ValueError as error:  # not JSON, or not a preset
        raise ValueError(f"{path}: {error}") from None


def preset_of(model: str, preset: Preset | None, image_size: int | None) -> Preset:
    """`preset`, or the model's own if it is None, for the input size `image_size` if that is not None."""
    from fastssd.detection import MODELS, build_model

    own = preset or MODELS[model].preset
    return own if image_size is None else build_model(model, 1, own).allow_size(image_size)


def splits_of(data: str, train_split: str | None, eval_split: str | None) -> tuple[str, str]:
    """The splits to train on and to evaluate on: those given, else the data set's defaults."""
    if train_split and eval_split:
        return train_split, eval_split
    from fastssd.data import default_splits

    train_name, eval_name = default_splits(data)
    return train_split or train_name, eval_split or eval_name


def load(data: str, split: str, on_error: OnError, class_names: Sequence[str] | None = None) -> DetectionDataset:
    """A data set; prints what was left out of it."""
    from fastssd.data import DataError, load_dataset

    try:
        dataset = load_dataset(data, split, on_error=on_error.value, class_names=class_names)
    except DataError as error:
        say(f"error: {error}")
        if on_error is OnError.RAISE and error.problem.file != data:  # single files are wrong, not the whole data set
            say(f"{len(error.problems)} problem(s) in {data}; --on-error skip leaves them out")
        raise typer.Exit(1) from None
    if dataset.problems:
        say(f"left out of {data}, split {split}: {len(dataset.problems)}")
        for problem in dataset.problems[:MOST_LISTED]:
            say(f"  {problem}")
        if len(dataset.problems) > MOST_LISTED:
            say(f"  ... and {len(dataset.problems) - MOST_LISTED} more")
    return dataset


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


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> None:
    """Aligned columns on stdout. With a header, the columns after the first hold numbers and are aligned right."""
    lines = [header, *rows] if header else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        cells = [cell.rjust(width) if header else cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        cells[0] = line[0].ljust(widths[0])
        typer.secho("  ".join(cells).rstrip(), bold=bool(header) and number == 0)
