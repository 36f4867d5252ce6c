"""What was found in an image, with names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastssd.deploy.pictures import Picture, read_picture

if TYPE_CHECKING:
    from PIL import Image


class NamedBox(NamedTuple):
    """One detection."""

    name: str
    score: float
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the image."""


_SHOWN = 5  # boxes in the repr of a result


@dataclass(frozen=True, eq=False, repr=False)
class NamedDetections:
    """What was found in one image, by descending score; iterating over it gives a :class:`NamedBox` for each box.

    Attributes:
        boxes: float32 [N, 4] xyxy, pixels of the image, clipped to it.
        scores: float32 [N] in (0, 1].
        labels: int64 [N], 1-based index into the detector's class names.
        names: N class names.
        size: (height, width) of the image.
        picture: the image as it was given to the detector.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    size: tuple[int, int]
    picture: Picture

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[NamedBox]:
        for name, score, (x1, y1, x2, y2) in zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True):
            yield NamedBox(name, score, (x1, y1, x2, y2))

    def __getitem__(self, index: int) -> NamedBox:
        x1, y1, x2, y2 = self.boxes[index].tolist()
        return NamedBox(self.names[index], float(self.scores[index]), (x1, y1, x2, y2))

    def __repr__(self) -> str:
        best = [f"{name} {score:.2f}" for name, score in zip(self.names[:_SHOWN], self.scores.tolist(), strict=False)]
        more = f", and {len(self) - _SHOWN} more" if len(self) > _SHOWN else ""
        return f"<{len(self)} found: {', '.join(best)}{more}>" if best else "<nothing found>"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: ``width``, ``height`` and ``detections``, each with class, label, score and box.

        The numbers are exact: read back as float32 they are the same.
        """
        height, width = self.size
        found = zip(self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        return {
            "width": width,
            "height": height,
            "detections": [
                {"class": name, "label": label, "score": score, "box": box} for name, label, score, box in found
            ],
        }

    def draw(self, *, min_size: int = 0) -> Image.Image:
        """A copy of the image with these boxes on it, tagged with name and score (extra ``viz``).

        An image that was given by its path is read again.

        Args:
            min_size: as in :func:`fastssd.explain.draw.draw_detections`.
        """
        from fastssd.explain.draw import draw_detections

        names = dict(zip(self.labels.tolist(), self.names, strict=True))
        by_label = [names.get(label, "") for label in range(1, max(names, default=0) + 1)]
        return draw_detections(
            read_picture(self.picture), self.boxes, self.labels, self.scores, by_label, min_size=min_size
        )
