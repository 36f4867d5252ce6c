"""The report of an evaluation, one self-contained HTML file: numbers, curves, kinds of errors, and the worst images."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastssd._files import write_file
from fastssd.detection.postprocess import ImageDetections
from fastssd.evaluation.coco import coco_metrics
from fastssd.evaluation.errors import (
    BACKGROUND,
    BADLY_PLACED,
    CORRECT,
    DUPLICATE,
    IGNORED,
    KINDS,
    WRONG_CLASS,
    PictureErrors,
    confusion_matrix,
    find_errors,
)
from fastssd.evaluation.truth import GroundTruth
from fastssd.evaluation.voc import precision_recall, voc_metrics
from fastssd.explain import style
from fastssd.explain.draw import draw_boxes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {
    CORRECT: style.GREEN,
    DUPLICATE: style.PURPLE,
    BADLY_PLACED: style.ORANGE,
    WRONG_CLASS: style.BLUE,
    BACKGROUND: style.VERMILLION,
}
MISSED = "#b3001b"
MOST_LABELLED = 25  # with more classes, the confusion matrix has no numbers and the curves no legend
IMAGE_SIZE = 640  # longer side of an image in the report, pixels
COLUMNS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "AP_small": "small",
    "AP_medium": "medium",
    "AP_large": "large",
    "AR": "AR",
    "AP07": "VOC 07",
    "AP12": "VOC 12",
}

STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; color: #16191d; background: #fff; max-width: 74rem; margin: 2rem auto;
       padding: 0 1.5rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem }
p { color: #5c646e; max-width: 48rem; margin: .2rem 0 .8rem }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1.2rem 0 }
.tile { border: 1px solid #d5dae0; border-radius: .5rem; padding: .5rem .9rem; min-width: 5.2rem }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums } .tile span { color: #5c646e }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .3rem .75rem; border-bottom: 1px solid #d5dae0 }
th { color: #5c646e; font-weight: 600 }
th:first-child, td:first-child { text-align: left }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start }
svg { max-width: 100%; height: auto }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1.2rem }
figure { margin: 0 } img { width: 100%; border-radius: .3rem; display: block }
figcaption { color: #5c646e; font-size: .9rem; overflow-wrap: anywhere; margin-top: .3rem }
.key { display: inline-block; width: .8em; height: .8em; border-radius: .15em; margin: 0 .3em 0 1em }
"""


def write_report(
    path: Path,
    detections: Sequence[ImageDetections],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    picture: Callable[[int], tuple[NDArray[np.uint8], str]],
    *,
    title: str,
    score_threshold: float = 0.3,
    worst: int = 12,
) -> None:
    """Write the report of an evaluation.

    Args:
        path: the HTML file.
        detections: what was found in each image, with the low scores too, which AP needs.
        truths: the ground truth of each image, in the same order.
        class_names: name of class 1, 2, ...
        picture: returns the image with this index, uint8 [H, W, 3], and its name; called for the worst images only.
        title: names the model and the data.
        score_threshold: the least score of detections in the errors, in the confusion matrix, and in the images.
        worst: number of images to show, those with the most errors.

    Raises:
        ValueError: lengths that differ.
        ImportError: matplotlib or Pillow is missing (``pip install 'fastssd[viz]'``).
    """
    metrics: dict[str, Any] = coco_metrics(detections, truths, class_names, by_size=True)
    voc = voc_metrics(detections, truths, class_names)
    shown = [_over(found, score_threshold) for found in detections]
    errors = [find_errors(found, truth) for found, truth in zip(shown, truths, strict=True)]
    counts = _counts(shown, truths, errors, len(class_names))
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _tiles(metrics | voc, len(truths), int(counts["objects"].sum())),
        "<h2>Average precision by class</h2>",
        "<p>AP is COCO's mean over IoU 0.50 to 0.95; small is under 32 x 32 pixels, large over 96 x 96; "
        "VOC is at IoU 0.5, with 11 recalls (07) and by area (12).</p>",
        _class_table(metrics, voc, class_names, counts["objects"]),
        "<h2>Precision and recall, and kinds of errors</h2>",
        f"<p>Left: curves at IoU 0.5, with a dot at score {score_threshold:g}. Right: detections of at least that "
        "score, by kind, and objects that were missed.</p>",
        f'<div class="figures">{_svg(_curves(detections, truths, class_names, score_threshold))}'
        f"{_svg(_error_bars(counts, class_names))}</div>",
        "<h2>Confusion matrix</h2>",
        "<p>Detections and objects are paired by an IoU of at least 0.5, without regard to their classes.</p>",
        _svg(_confusion(confusion_matrix(shown, truths, len(class_names), score_threshold=0.0), class_names)),
        "<h2>The images with the most errors</h2>",
        f"<p>{_legend()}</p>",
        '<div class="images">',
        *_worst(shown, truths, errors, class_names, picture, worst),
        "</div>",
    ]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )
    write_file(path, lambda file: file.write(page.encode()))


def _over(found: ImageDetections, score_threshold: float) -> ImageDetections:
    keep = found.scores >= score_threshold
    return ImageDetections(found.boxes[keep], found.scores[keep], found.labels[keep])


def _counts(
    shown: Sequence[ImageDetections], truths: Sequence[GroundTruth], errors: Sequence[PictureErrors], num_classes: int
) -> dict[str, NDArray[np.int64]]:
    """For each class [K] the number of objects, of missed objects, and of detections of each kind."""

    def by_class(labels: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        return np.bincount(np.concatenate([*labels, np.empty(0, np.int64)]) - 1, minlength=num_classes)

    counts = {
        "objects": by_class([truth.labels[~truth.difficult] for truth in truths]),
        "missed": by_class([truth.labels[own.missed] for truth, own in zip(truths, errors, strict=True)]),
    }
    for kind, name in enumerate(KINDS):
        counts[name] = by_class([found.labels[own.kind == kind] for found, own in zip(shown, errors, strict=True)])
    return counts


def _tiles(metrics: Mapping[str, Any], images: int, objects: int) -> str:
    values = {"images": str(images), "objects": str(objects)}
    values |= {text: _number(metrics[name]) for name, text in COLUMNS.items()}
    tiles = "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for name, value in values.items())
    return f'<div class="tiles">{tiles}</div>'


def _class_table(
    metrics: Mapping[str, Any], voc: Mapping[str, Any], class_names: Sequence[str], objects: NDArray[np.int64]
) -> str:
    head = "".join(f"<th>{text}</th>" for text in ("class", "objects", *COLUMNS.values()))
    rows = []
    for name, count in zip(class_names, objects, strict=True):
        own = metrics["per_class"][name] | voc["per_class"][name]
        cells = "".join(f"<td>{_number(own[key])}</td>" for key in COLUMNS)
        rows.append(f"<tr><td>{html.escape(name)}</td><td>{count}</td>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# --- figures -----------------------------------------------------------------------------------------------------


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _curves(
    detections: Sequence[ImageDetections],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    score_threshold: float,
) -> Figure:
    figure = style.new_figure(5.6, 4.6)
    axes = figure.subplots()
    for label, name in enumerate(class_names, 1):
        curve = precision_recall(detections, truths, label)
        if curve is None:
            continue
        color = style.class_color(label)
        axes.plot(curve.recall, curve.precision, color=color, label=name)
        last = int((curve.scores >= score_threshold).sum()) - 1
        if last >= 0:
            axes.plot(curve.recall[last], curve.precision[last], "o", color=color)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(color=style.RULE, linewidth=0.6)
    if axes.lines and len(class_names) <= MOST_LABELLED:
        axes.legend(frameon=False, fontsize=style.TEXT_SIZE)
    figure.tight_layout()
    return figure


def _error_bars(counts: Mapping[str, NDArray[np.int64]], class_names: Sequence[str]) -> Figure:
    figure = style.new_figure(5.6, max(2.4, 1.4 + 0.55 * len(class_names)))
    axes = figure.subplots()
    rows = np.arange(len(class_names))
    left = np.zeros(len(class_names))
    for kind, color in COLORS.items():
        axes.barh(rows, counts[KINDS[kind]], left=left, color=color, height=0.6, label=KINDS[kind])
        left += counts[KINDS[kind]]
    axes.barh(rows, -counts["missed"], color=MISSED, height=0.6, label="missed")
    axes.axvline(0, color=style.INK, linewidth=0.8)
    axes.set_yticks(rows, class_names)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.set_xlabel("missed objects (left), detections (right)")
    axes.legend(frameon=False, fontsize=style.TAG_SIZE, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    figure.tight_layout()
    return figure


def _confusion(matrix: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    size = len(matrix)
    side = min(12.0, 2.2 + 0.55 * size)
    figure = style.new_figure(side, side)
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if size <= MOST_LABELLED + 1:
        for row, column in np.ndindex(size, size):
            if matrix[row, column]:
                color = style.PAPER if share[row, column] > 0.5 else style.INK
                axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(size), [*class_names, "missed"], rotation=45, ha="right")
    axes.set_yticks(range(size), [*class_names, "background"])
    axes.set(xlabel="detected class", ylabel="true class")
    figure.tight_layout()
    return figure


# --- images ----------------------------------------------------------------------------------------------------


def _legend() -> str:
    keys = [*((KINDS[kind], color) for kind, color in COLORS.items()), ("missed", MISSED)]
    return "".join(f'<span class="key" style="background:{color}"></span>{name}' for name, color in keys)


def _worst(
    shown: Sequence[ImageDetections],
    truths: Sequence[GroundTruth],
    errors: Sequence[PictureErrors],
    class_names: Sequence[str],
    picture: Callable[[int], tuple[NDArray[np.uint8], str]],
    most: int,
) -> list[str]:
    order = sorted(range(len(errors)), key=lambda index: -errors[index].total)
    figures = []
    for index in order[:most]:
        if not errors[index].total:
            break
        image, name = picture(index)
        drawn = _draw_errors(image, shown[index], truths[index], errors[index], class_names)
        buffer = io.BytesIO()
        drawn.save(buffer, "JPEG", quality=88)
        data = base64.b64encode(buffer.getvalue()).decode()
        wrong, missed = errors[index].total - int(errors[index].missed.sum()), int(errors[index].missed.sum())
        caption = f"{html.escape(name)}: {wrong} wrong, {missed} missed"
        figures.append(
            f'<figure><img loading="lazy" alt="{html.escape(name)}" src="data:image/jpeg;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return figures


def _draw_errors(
    image: NDArray[np.uint8],
    found: ImageDetections,
    truth: GroundTruth,
    errors: PictureErrors,
    class_names: Sequence[str],
) -> Any:
    """A Pillow image: detections in the colour of their kind, correct ones without a tag, and missed objects."""
    judged = np.flatnonzero(errors.kind != IGNORED)
    texts = [_tag(int(errors.kind[i]), class_names[found.labels[i] - 1], float(found.scores[i])) for i in judged]
    colors = [COLORS[int(errors.kind[i])] for i in judged]
    boxes = np.concatenate([found.boxes[judged], truth.boxes[errors.missed]])
    texts += [f"missed {class_names[label - 1]}" for label in truth.labels[errors.missed]]
    colors += [MISSED] * int(errors.missed.sum())
    drawn = draw_boxes(image, boxes, texts, colors, min_size=IMAGE_SIZE)
    drawn.thumbnail((IMAGE_SIZE, IMAGE_SIZE))
    return drawn


def _tag(kind: int, name: str, score: float) -> str:
    return "" if kind == CORRECT else f"{name} {score:.2f}"
