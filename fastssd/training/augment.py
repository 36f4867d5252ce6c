"""Random changes of a training image and its boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from fastssd._fields import check_fields, within
from fastssd.ops import box_iou

# image [H, W, 3], boxes [G, 4], labels [G]
LabelledImage = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]

Part = Annotated[float, within(0, 1)]

WHOLE = np.array([0.0, 0.0, 1.0, 1.0])
FILL = (124, 116, 104)  # ImageNet's mean, for the area outside of an image
CROP_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)  # SSD, section 2.2, "Data augmentation"
CROP_TRIES = 50
SMALLEST_CROP = 0.3  # side
LARGEST_ZOOM_OUT = 4.0  # SSD, section 3.6
LARGEST_HUE = math.radians(18)
GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True)
class Augment:
    """Colour, crop, zoom, shift, flip and mosaic. All zeros change nothing.

    The image is resampled once, by however many of them: they choose a window, and the window is shown.

    Attributes:
        flip: probability of a mirror image, left to right.
        vertical_flip: the same, top to bottom; for images without an upper side, such as a microscope's.
        photometric: strength of changes of brightness, contrast, saturation and hue; 1 has the ranges of the SSD
            paper's code.
        zoom: the image is scaled by 1 - zoom to 1 + zoom.
        shift: and moved by up to this fraction of it; the area from outside is grey.
        crop: probability of the SSD paper's crop, a part that has a drawn IoU with at least one box.
        zoom_out: probability of the SSD paper's expansion, up to four times as much room around the image.
        mosaic: probability that four images share the place of one (YOLOv4, arXiv:2004.10934, section 3.3).
        min_visible: a box stays if its centre and at least this part of its area are still in the image.

    Source:
        SSD, arXiv:1512.02325, sections 2.2 and 3.6.
    """

    flip: Part = 0.5
    vertical_flip: Part = 0.0
    photometric: Part = 0.5
    zoom: Part = 0.2
    shift: Part = 0.1
    crop: Part = 0.0
    zoom_out: Part = 0.0
    mosaic: Part = 0.0
    min_visible: Part = 0.25

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, images: Sequence[LabelledImage], size: int, rng: np.random.Generator) -> LabelledImage:
        """
        Args:
            images: one, or the four of a mosaic: uint8 [H, W, 3], boxes [G, 4] xyxy as fractions of the image,
                labels [G]. Not written to.
            size: height and width of the result, pixels.
            rng: the only source of randomness.

        Returns:
            The changed image, uint8 [size, size, 3]; the remaining boxes, as fractions of it, inside it and at least a
            pixel wide and high; and their labels.
        """
        if len(images) == 1:
            image, boxes, labels = self._view(images[0], (size, size), rng)
        else:
            image, boxes, labels = self._mosaic(images, size, rng)
        if self.photometric:
            image = self._recolour(image, rng)
        if rng.random() < self.flip:
            image, boxes = image[:, ::-1], boxes[:, [2, 1, 0, 3]] * _MIRROR_X + _SHIFT_X
        if rng.random() < self.vertical_flip:
            image, boxes = image[::-1], boxes[:, [0, 3, 2, 1]] * _MIRROR_Y + _SHIFT_Y
        return np.ascontiguousarray(image), boxes, labels

    def _mosaic(self, images: Sequence[LabelledImage], size: int, rng: np.random.Generator) -> LabelledImage:
        """Four images around a point near the middle."""
        x, y = (int(v) for v in rng.uniform(0.3, 0.7, 2) * size)
        canvas = np.empty((size, size, 3), np.uint8)
        boxes, labels = [], []
        for labelled, (left, right), (top, bottom) in zip(
            images, ((0, x), (x, size)) * 2, ((0, y), (0, y), (y, size), (y, size)), strict=True
        ):
            width, height = right - left, bottom - top
            canvas[top:bottom, left:right], own, own_labels = self._view(labelled, (height, width), rng)
            place = np.array([width, height, width, height]), np.array([left, top, left, top])
            boxes.append(((own * place[0] + place[1]) / size).astype(np.float32))
            labels.append(own_labels)
        return canvas, np.concatenate(boxes), np.concatenate(labels)

    def _view(self, labelled: LabelledImage, size: tuple[int, int], rng: np.random.Generator) -> LabelledImage:
        """The image through a random window, at (height, width) `size`, with the boxes that it shows."""
        image, boxes, labels = labelled
        window = self._window(boxes, rng)
        if (window != WHOLE).any():
            moved = _seen_from(window, boxes)
            inside = moved.clip(0, 1)
            extent, whole = inside[:, 2:] - inside[:, :2], moved[:, 2:] - moved[:, :2]
            center = (moved[:, :2] + moved[:, 2:]) / 2
            keep = (extent.prod(1) >= self.min_visible * whole.prod(1)) & ((center > 0) & (center < 1)).all(1)
            keep &= (extent * size[::-1] >= 1).all(1)
            boxes, labels = inside[keep].astype(np.float32), labels[keep]
        return _show(image, window, size), boxes, labels

    def _window(self, boxes: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float64]:
        """[4] xyxy, the shown window, as fractions of the image; it may extend beyond the border."""
        window = WHOLE
        if rng.random() < self.zoom_out:
            side = rng.uniform(1, LARGEST_ZOOM_OUT)
            corner = -rng.uniform(0, side - 1, 2)
            window = np.concatenate([corner, corner + side])
        if rng.random() < self.crop:
            window = _within(window, _crop(_seen_from(window, boxes), rng))
        if self.zoom or self.shift:
            side = 1 / (1 + self.zoom * rng.uniform(-1, 1))
            corner = 0.5 - side / 2 + self.shift * rng.uniform(-1, 1, 2)
            window = _within(window, np.concatenate([corner, corner + side]))
        return window

    def _recolour(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Brightness, contrast, saturation and hue are linear in RGB: one 3 x 4 matrix per image."""
        from PIL import Image

        spread = self.photometric
        brightness = 32 * spread * rng.uniform(-1, 1)
        contrast, saturation = 1 + 0.5 * spread * rng.uniform(-1, 1, 2)
        hue = _turn_around_grey(LARGEST_HUE * spread * rng.uniform(-1, 1))
        mix = contrast * (saturation * np.eye(3) + (1 - saturation) * GREY) @ hue
        matrix = np.column_stack([mix, np.full(3, brightness)])
        return np.asarray(Image.fromarray(image).convert("RGB", tuple(matrix.ravel().tolist())))


def _crop(boxes: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A window with the centre of a box in it and the drawn IoU with one; the whole image if no try has both."""
    least = rng.choice(CROP_OVERLAPS)
    sides = rng.uniform(SMALLEST_CROP, 1, (CROP_TRIES, 2))
    corners = rng.uniform(0, 1, (CROP_TRIES, 2)) * (1 - sides)
    windows = np.concatenate([corners, corners + sides], 1)
    fits = (sides.max(1) <= 2 * sides.min(1)) & (box_iou(windows, boxes).max(1, initial=0.0) >= least)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    shown = (centers > corners[:, None]) & (centers < (corners + sides)[:, None])  # [tries, G, 2]
    fits &= np.any(shown.all(2), 1) | (len(boxes) == 0)
    return windows[fits.argmax()] if fits.any() else WHOLE


def _seen_from(window: NDArray[np.float64], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """Boxes as fractions of the window instead of the image."""
    corner, side = window[:2], window[2:] - window[:2]
    return (boxes - np.tile(corner, 2)) / np.tile(side, 2)


def _within(window: NDArray[np.float64], part: NDArray[np.float64]) -> NDArray[np.float64]:
    """A part of a window, given as fractions of it, as fractions of the image."""
    corner, side = window[:2], window[2:] - window[:2]
    return np.tile(corner, 2) + part * np.tile(side, 2)


def _show(image: NDArray[np.uint8], window: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The content of a window of the image, uint8 [*size, 3], resampled once as :func:`resize_image` does."""
    from PIL import Image

    length, target = np.array([image.shape[1], image.shape[0]]), np.array([size[1], size[0]])  # x, y
    corner, side = window[:2] * length, (window[2:] - window[:2]) * length
    # The part of the target that the image covers, in whole pixels, and the part of the image that belongs to it.
    first = np.round((0 - corner) / side * target).clip(0, target).astype(int)
    last = np.round((length - corner) / side * target).clip(0, target).astype(int)
    source = np.concatenate([corner + first / target * side, corner + last / target * side]).clip(0, np.tile(length, 2))
    if (last <= first).any() or (source[2:] - source[:2] <= 0).any():
        return np.full((*size, 3), FILL, np.uint8)
    part = np.asarray(
        Image.fromarray(image).resize(
            tuple((last - first).tolist()), Image.Resampling.BILINEAR, tuple(source.tolist()), reducing_gap=3.0
        )
    )
    if part.shape[:2] == size:
        return part
    canvas = np.full((*size, 3), FILL, np.uint8)
    canvas[first[1] : last[1], first[0] : last[0]] = part
    return canvas


def _turn_around_grey(angle: float) -> NDArray[np.float64]:
    """The rotation of RGB space that leaves grey as it is and moves the hues by `angle`."""
    cos, sin = math.cos(angle), math.sin(angle) / math.sqrt(3)
    rest = (1 - cos) / 3
    return np.array(
        [
            [cos + rest, rest - sin, rest + sin],
            [rest + sin, cos + rest, rest - sin],
            [rest - sin, rest + sin, cos + rest],
        ]
    )


_MIRROR_X, _SHIFT_X = np.array([-1, 1, -1, 1], np.float32), np.array([1, 0, 1, 0], np.float32)
_MIRROR_Y, _SHIFT_Y = np.array([1, -1, 1, -1], np.float32), np.array([0, 1, 0, 1], np.float32)
