"""Shapes: a generated detection data set, for demonstrations and tests. Each image is drawn when it is read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fastssd.data.dataset import Problem, Sample, at

CLASS_NAMES = ("circle", "cross", "rectangle", "ring", "star", "triangle")
SMALLEST, USUAL, LARGEST = 0.05, 0.3, 0.8  # longer side of a box, as a share of the image's side
MOST_OBJECTS = 6
VISIBLE = 0.7  # least share of an object that later ones leave uncovered
CONTRAST = 80.0  # least RGB distance between an object and nine tenths of the pixels under it

_RECOGNISABLE = 8  # pixels; smaller shapes look the same
_TRIES = 8  # positions and colours that are tried for an object before it is given up
_DRAWN = 0.25  # a pixel with a smaller coverage, as at the point of a star, does not belong to the box
_CROSS_ARM = 0.35  # half widths and inner radii, as shares of the outer radius
_RING_HOLE = 0.6
_STAR_NOTCH = 0.45
_TRIANGLE_NOTCH = 0.5  # an equilateral triangle is a star with three points

Floats = NDArray[np.float32]


def shapes_dataset(count: int = 1000, *, seed: int = 0, image_size: int = 256) -> ShapesDataset:
    """Circles, crosses, rectangles, rings, stars and triangles on a cluttered background.

    An image has one to six objects. The longer side of a box is 5 % to 80 % of the image's side, most often about 30 %.
    Objects have any colour that stands out; half of them are rotated; later ones cover earlier ones, but at least 70 %
    of every object stay visible. Boxes are tight around the visible pixels.

    Args:
        count: number of images.
        seed: seed and index determine an image, in any process and any order of access.
        image_size: width and height in pixels, at least 32.

    Raises:
        ValueError: an argument out of range.
    """
    for name, value, least in (("count", count, 1), ("seed", seed, 0), ("image_size", image_size, 32)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    return ShapesDataset(count, seed, image_size)


class ShapesDataset:
    """See :func:`shapes_dataset`."""

    def __init__(self, count: int, seed: int, image_size: int) -> None:
        self.class_names: tuple[str, ...] = CLASS_NAMES
        self.problems: tuple[Problem, ...] = ()
        self._count = count
        self._seed = seed
        self._size = image_size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        index = at(index, self._count)
        ground, objects, noise = (np.random.default_rng((self._seed, index, part)) for part in range(3))
        canvas = draw_ground(ground, self._size)
        boxes, labels = draw_objects(objects, canvas)
        grain = noise.integers(0, 256, canvas.shape, np.uint8).astype(np.float32)
        grain -= np.float32(127.5)
        grain *= np.float32(noise.uniform(0, 0.08))
        canvas += grain
        image = canvas.clip(0, 255, out=canvas).astype(np.uint8)
        return Sample(
            np.ascontiguousarray(image.transpose(1, 2, 0)),
            boxes,
            labels,
            f"shapes-{self._seed}-{index}",
            np.zeros(len(labels), np.bool_),
        )


def draw_ground(rng: np.random.Generator, size: int) -> Floats:
    """A background of colour gradients, soft blobs, lines and arcs, stripes and noise: float32 [3, size, size] RGB."""
    base = rng.uniform(40, 215, (3, 1, 1))
    cells = rng.integers(2, 6)
    gradient = _grow(np.clip(base + rng.normal(0, 25, (3, cells, cells)), 0, 255), size // 4)
    pixels = np.arange(size // 4, dtype=np.float32)
    for _ in range(rng.integers(0, 5)):
        x, y = rng.uniform(0, size // 4, 2).astype(np.float32)
        spread_x, spread_y = (rng.uniform(0.03, 0.2, 2) * (size // 4)).astype(np.float32)
        blob = np.exp(-(((pixels - y) / spread_y) ** 2))[:, None] * np.exp(-(((pixels - x) / spread_x) ** 2))
        gradient += blob * rng.normal(0, 40, (3, 1, 1)).astype(np.float32)
    canvas = _grow(np.clip(gradient, 0, 255), size)
    for _ in range(rng.integers(0, 3)):
        colour = np.clip(base + rng.normal(0, 45, (3, 1, 1)), 0, 255).astype(np.float32)
        _blend(canvas, colour, _lines(rng, size))
    pixels = np.arange(size, dtype=np.float32)
    grey = np.zeros((size, size), np.float32)
    if rng.random() < 0.4:
        waves_x, waves_y = rng.normal(0, 12 * 2 * math.pi / size, 2).astype(np.float32)
        grey += np.float32(rng.uniform(3, 12)) * np.sin(waves_x * pixels + waves_y * pixels[:, None])
    grain = size // int(rng.integers(2, 9))
    grey += (_grow(rng.integers(0, 256, (1, grain, grain)), size)[0] - 127.5) * np.float32(rng.uniform(0, 0.2))
    canvas += grey
    return canvas


def _grow(planes: NDArray[Any], size: int) -> Floats:
    """Values in [0, 255] of shape [n, h, w], interpolated to [n, size, size]."""
    images = map(Image.fromarray, planes.astype(np.uint8))
    return np.array([image.resize((size, size), Image.Resampling.BICUBIC) for image in images], np.float32)


def _lines(rng: np.random.Generator, size: int) -> Floats:
    """The share of each pixel that a few lines and arcs cover: [size, size]."""
    # Drawn at twice the size and reduced, because Pillow draws without anti-aliasing.
    large = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(large)
    for _ in range(rng.integers(1, 6)):
        x1, y1, x2, y2 = (float(value) for value in rng.uniform(-0.2, 1.2, 4) * 2 * size)
        opacity, width = int(rng.integers(100, 256)), int(rng.integers(1, 2 + size // 40))
        if rng.random() < 0.7:
            pen.line((x1, y1, x2, y2), opacity, width)
        else:
            start = float(rng.uniform(0, 360))
            corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
            pen.arc(corners, start, start + float(rng.uniform(30, 150)), opacity, width)
    return np.asarray(large.reduce(2)) * np.float32(1 / 255)


def draw_objects(rng: np.random.Generator, canvas: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Draw objects on `canvas` [3, size, size] and return their boxes [G, 4] xyxy and labels [G]."""
    size = canvas.shape[1]
    smallest = max(SMALLEST, _RECOGNISABLE / size)
    # In descending order: a large object that came later would cover the small ones, and be given up.
    sides = np.sort(rng.triangular(smallest, USUAL, LARGEST, rng.integers(1, MOST_OBJECTS + 1)))[::-1] * size
    owner = np.zeros((size, size), np.int64)  # the number of the object that is visible at a pixel; 0: background
    areas, visible = np.zeros((2, 1 + len(sides)), np.int64)
    labels: list[int] = []
    for side in sides:
        label = int(rng.integers(1, len(CLASS_NAMES) + 1))
        coverage = _figure(rng, CLASS_NAMES[label - 1], float(side))
        inside = coverage > _DRAWN
        rows, columns = inside.shape
        for _ in range(_TRIES):
            y, x = (int(rng.integers(0, max(size - length, 0) + 1)) for length in inside.shape)
            region = (slice(y, y + rows), slice(x, x + columns))
            lost = np.bincount(owner[region][inside], minlength=len(areas))
            if (visible - lost >= VISIBLE * areas)[1:].all() and _paint(rng, canvas[:, *region], coverage):
                labels.append(label)
                owner[region][inside] = len(labels)
                visible -= lost
                visible[len(labels)] = areas[len(labels)] = inside.sum()
                break
    boxes = [_bounds(owner == number) for number in range(1, len(labels) + 1)]
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)


def _figure(rng: np.random.Generator, name: str, side: float) -> Floats:
    """The share of each pixel that the figure `name` covers; the longer side of its box is `side` pixels."""
    aspect = float(rng.uniform(0.5, 1.0))  # of a rectangle
    angle = float(rng.uniform(0, 2 * math.pi)) if rng.random() < 0.5 else 0.0
    cos, sin = math.cos(angle), math.sin(angle)
    low, high = np.array([-1.0, -1.0]), np.array([1.0, 1.0])
    if name not in ("circle", "ring"):
        corners = _corners(name, aspect) @ np.array([[cos, sin], [-sin, cos]])
        low, high = corners.min(0), corners.max(0)
    radius = side / float((high - low).max())
    center = rng.uniform(0, 1, 2) - low * radius  # from the corner of the array, which is a corner of a pixel
    width, height = np.ceil(center + high * radius).astype(int)
    x = ((np.arange(width) + 0.5 - center[0]) / radius).astype(np.float32)
    y = ((np.arange(height) + 0.5 - center[1]) / radius).astype(np.float32)[:, None]
    u, v = np.float32(cos) * x + np.float32(sin) * y, np.float32(cos) * y - np.float32(sin) * x
    return np.clip(np.float32(0.5) - _distance(name, u, v, aspect) * np.float32(radius), 0, 1)


def _corners(name: str, aspect: float) -> NDArray[np.float64]:
    """Corners of the convex hull of an upright figure of radius 1, y down: [V, 2]."""
    if name in ("star", "triangle"):
        points = 5 if name == "star" else 3
        turns = np.arange(points) * 2 * math.pi / points
        return np.stack((np.sin(turns), -np.cos(turns)), 1)
    long, short = (1.0, _CROSS_ARM) if name == "cross" else (1.0, aspect)
    corners = np.array([[x * long, y * short] for x in (-1, 1) for y in (-1, 1)])
    return np.concatenate((corners, corners[:, ::-1])) if name == "cross" else corners


def _distance(name: str, u: Floats, v: Floats, aspect: float) -> Floats:
    """Signed distance of each point to the edge of a figure of radius 1, negative inside; u to the right, v down."""
    if name == "rectangle":
        return np.maximum(np.abs(u) - 1, np.abs(v) - np.float32(aspect))
    if name == "cross":
        u, v = np.abs(u), np.abs(v)
        return np.maximum(np.maximum(u, v) - 1, np.minimum(u, v) - np.float32(_CROSS_ARM))
    r = np.sqrt(u * u + v * v)
    if name == "circle":
        return r - 1
    if name == "ring":
        return np.abs(r - np.float32((1 + _RING_HOLE) / 2)) - np.float32((1 - _RING_HOLE) / 2)
    points, notch = (5, _STAR_NOTCH) if name == "star" else (3, _TRIANGLE_NOTCH)
    # By symmetry all edges are one: from a point of the star, at angle 0 and radius 1, to the notch at angle `half`.
    half = math.pi / points
    turn = np.abs((np.arctan2(u, -v) + np.float32(half)) % np.float32(2 * half) - np.float32(half))
    normal_x, normal_y = notch * math.sin(half), 1 - notch * math.cos(half)
    length = math.hypot(normal_x, normal_y)
    edge = (r * np.cos(turn) - 1) * np.float32(normal_x / length) + r * np.sin(turn) * np.float32(normal_y / length)
    return np.maximum(edge, r - 1)  # beyond a sharp point the distance to its edges grows too slowly


def _paint(rng: np.random.Generator, under: Floats, coverage: Floats) -> bool:
    """Fill the figure on the part `under` of the canvas. False, and nothing drawn, if no colour stands out."""
    rows, columns = coverage.shape
    shade = rng.uniform(-15, 15, 2).astype(np.float32)
    shading = np.linspace(-shade[0], shade[0], rows)[:, None] + np.linspace(-shade[1], shade[1], columns)
    shading = shading.astype(np.float32)
    sample = (..., slice(None, None, 1 + rows // 16), slice(None, None, 1 + columns // 16))
    for _ in range(_TRIES):
        colour = rng.uniform(0, 255, (3, 1, 1)).astype(np.float32)
        distance = np.linalg.norm(colour + shading[sample] - under[sample], axis=0)
        if (distance < CONTRAST).mean() < 0.1:
            _blend(under, colour + shading, coverage)
            return True
    return False


def _blend(canvas: Floats, colour: Floats, coverage: Floats) -> None:
    """Blend `colour` into `canvas` [3, h, w] with the weights `coverage` [h, w]."""
    change = colour - canvas
    change *= coverage
    canvas += change


def _bounds(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The smallest box around the pixels that are set, xyxy."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
