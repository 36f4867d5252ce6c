"""``python -m fastssd.explain docs/images``: draw the figures of docs/how-ssd-works.md."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fastssd.data import shapes_dataset
from fastssd.detection import TINYSSD
from fastssd.explain.anchors import anchors_figure
from fastssd.explain.draw import draw_detections
from fastssd.explain.matching import matching_figure, matching_steps_figure
from fastssd.explain.mining import mining_figure
from fastssd.explain.nms import nms_figure
from fastssd.explain.paths import paths_figure
from fastssd.explain.style import save_figure

SHOWN = 2  # number of the generated image

# G1 and G2 both overlap a2 most; G3 overlaps no anchor by 0.5. examples/ssd_by_hand.py has the same boxes.
GT_BOXES = ((12, 11, 54, 62), (26, 19, 71, 60), (76, 8, 96, 28))
ANCHORS = ((7, 6, 44, 54), (18, 17, 59, 65), (41, 24, 88, 69), (71, 2, 90, 32), (54, 75, 93, 96))

# Two objects, found several times each. Box 6 overlaps box 5, which box 1 has deleted before.
BOXES = (
    (3, 5, 43, 51),
    (58, 4, 89, 39),
    (9, 8, 48, 56),
    (58, 10, 86, 50),
    (7, 12, 40, 75),
    (12, 29, 46, 80),
    (15, 37, 55, 82),
    (57, 66, 85, 91),
)
SCORES = (0.95, 0.91, 0.86, 0.78, 0.64, 0.58, 0.52, 0.40)


def main(folder: Path) -> None:
    """Draw all figures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = shapes_dataset(SHOWN + 1)
    sample = shapes[SHOWN]
    anchors = TINYSSD.anchors() * sample.image.shape[0]
    rng = np.random.default_rng(4)
    loss, positive = rng.gamma(1.1, 0.6, 40), np.zeros(40, bool)
    positive[[9, 20, 33]], loss[[9, 20, 33]] = True, (1.9, 1.1, 0.8)
    figures = {
        "paths": paths_figure(),
        "anchors": anchors_figure(sample.image, anchors, grids=TINYSSD.grid_sizes),
        "matching-steps": matching_steps_figure(ANCHORS, GT_BOXES),
        "matching": matching_figure(sample.image, anchors, sample.boxes, grids=TINYSSD.grid_sizes),
        "mining": mining_figure(loss, positive),
        "nms": nms_figure(BOXES, SCORES, 0.45),
    }
    for name, figure in figures.items():
        buffer = io.BytesIO()
        save_figure(figure, buffer)
        write(Image.open(buffer).convert("RGB"), folder / f"{name}.png")
    drawn = draw_detections(sample.image, sample.boxes, sample.labels, None, shapes.class_names, min_size=768)
    write(drawn, folder / "detections.png")


def write(picture: Image.Image, path: Path) -> None:
    """As PNG with a palette: a third of the size, so that the page loads fast."""
    few = picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fastssd.explain FOLDER")
    main(Path(sys.argv[1]))
