"""Random changes of a training picture and its boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True)
class Augment:
    """Flip, colour, zoom and shift. All zeros change nothing.

    Attributes:
        flip: probability of a mirror image, left to right.
        vertical_flip: the same, top to bottom; for pictures that have no up, such as a microscope's.
        photometric: strength of brightness, contrast and saturation; 1 has the ranges of the SSD paper's code.
        zoom: the picture is shown at 1 - zoom to 1 + zoom of its size.
        shift: and moved by up to this fraction of it; what comes in from outside is grey.
        min_visible: a box stays if at least this part of its area is still in the picture.
    """

    flip: float = 0.5
    vertical_flip: float = 0.0
    photometric: float = 0.5
    zoom: float = 0.2
    shift: float = 0.1
    min_visible: float = 0.4

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
        """
        Args:
            image: uint8 [S, S, 3]; not written to.
            boxes: [G, 4] xyxy, fractions of the picture.
            labels: [G].
            rng: the only source of chance.

        Returns:
            The changed picture, the boxes that are left, inside it and of positive extent, and their labels.
        """
        if self.photometric:
            image = self._recolour(image, rng)
        if self.zoom or self.shift:
            image, boxes, keep = self._move(image, boxes, rng)
            labels = labels[keep]
        if rng.random() < self.flip:
            image, boxes = image[:, ::-1], boxes[:, [2, 1, 0, 3]] * _MIRROR_X + _SHIFT_X
        if rng.random() < self.vertical_flip:
            image, boxes = image[::-1], boxes[:, [0, 3, 2, 1]] * _MIRROR_Y + _SHIFT_Y
        return np.ascontiguousarray(image), boxes, labels

    def _recolour(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Brightness, contrast and saturation are linear in RGB: one 3 x 4 matrix a picture."""
        from PIL import Image

        spread = self.photometric
        brightness = 32 * spread * rng.uniform(-1, 1)
        contrast, saturation = 1 + 0.5 * spread * rng.uniform(-1, 1, 2)
        mix = contrast * (saturation * np.eye(3) + (1 - saturation) * GREY)
        matrix = np.column_stack([mix, np.full(3, brightness)])
        return np.asarray(Image.fromarray(image).convert("RGB", tuple(matrix.ravel().tolist())))

    def _move(
        self, image: NDArray[np.uint8], boxes: NDArray[np.float32], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_]]:
        """What a window of the picture shows, as large as the picture itself."""
        from PIL import Image

        size = image.shape[0]
        side = 1 / (1 + self.zoom * rng.uniform(-1, 1))
        corner = 0.5 - side / 2 + self.shift * rng.uniform(-1, 1, 2)  # x, y of the window
        window = size * np.concatenate([corner, corner + side])
        moved = Image.fromarray(image).transform(
            (size, size),
            Image.Transform.EXTENT,
            tuple(window.tolist()),
            Image.Resampling.BILINEAR,
            fillcolor=(124, 116, 104),  # ImageNet's mean
        )
        boxes = ((boxes - np.tile(corner, 2)) / side).astype(np.float32)
        inside = boxes.clip(0, 1)
        extent = inside[:, 2:] - inside[:, :2]
        visible = extent.prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
        keep = (visible >= self.min_visible) & (extent * size >= 1).all(1)
        return np.asarray(moved), inside[keep], keep


_MIRROR_X, _SHIFT_X = np.array([-1, 1, -1, 1], np.float32), np.array([1, 0, 1, 0], np.float32)
_MIRROR_Y, _SHIFT_Y = np.array([1, -1, 1, -1], np.float32), np.array([0, 1, 0, 1], np.float32)
