"""What the folder formats share: paths that stay in the folder, the check of boxes, and the data set."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from fastssd.data.dataset import Problems, Sample, at, wrong
from fastssd.data.images import SUFFIXES, image_size, read_image

SLACK = 1.0  # pixels that a box may reach beyond the image: VOC counts pixels from 1, and tools round

_SPLIT = re.compile(r"(trainval|train|training|val|valid|validation|test|testing|holdout)[_-]?(\d*)", re.IGNORECASE)
_SAME = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


class Box(NamedTuple):
    """A box as an annotation states it."""

    xyxy: tuple[float, float, float, float]  # pixels, or fractions of the image if ListedImage.relative
    class_name: str
    difficult: bool
    line: int | None
    what: str  # how messages call it


class ListedImage(NamedTuple):
    """An image of a split, as the annotations state it."""

    name: str  # in the data set; its hash decides whether it is held out
    image_id: str
    path: str
    listed: tuple[str, int | None]  # file and line that list it
    source: str  # file with its boxes
    boxes: list[Box]
    relative: bool = False  # whether boxes are fractions of the image
    size: tuple[float, float] | None = None  # width and height, if stated
    size_line: int | None = None


class Layout(Protocol):
    """The files of one data set in one format."""

    format: str
    splits: tuple[str, ...]

    def read(
        self, split: str | None, class_names: tuple[str, ...] | None, problems: Problems
    ) -> tuple[tuple[str, ...], list[ListedImage]]:
        """The class names of all splits (or those given) and the images of one split (or all).

        A problem of one box or image is added to `problems`; a problem of the whole data set is raised.
        """
        ...


class Root:
    """The folder of a data set; no path in the data set may lead out of it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.normpath(path)
        self._real = os.path.realpath(path)
        self._real_directories: dict[str, str] = {}

    def join(self, *parts: str) -> str:
        return os.path.join(self.path, *parts)

    def relative(self, path: str) -> str:
        """`path` as seen from this folder, with forward slashes."""
        return os.path.relpath(path, self.path).replace(os.sep, "/")

    def contains(self, path: str) -> bool:
        """Whether `path`, with links followed, is in this folder."""
        if "\0" in path:  # impossible in a file name, and an error in os.path
            return False
        directory, name = os.path.split(path)
        if directory not in self._real_directories:  # most images share a few folders
            self._real_directories[directory] = os.path.realpath(directory)
        real = os.path.join(self._real_directories[directory], name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        return real == self._real or real.startswith(os.path.join(self._real, ""))

    def find(self, name: str, bases: Iterable[str], source: str, line: int | None) -> str:
        """The first regular file called `name` in one of the folders `bases`.

        Raises:
            DataError: there is none, or the name leads out of this folder.
        """
        outside = False
        for base in bases:
            path = os.path.normpath(os.path.join(base, name))
            if not self.contains(path):
                outside = True
            elif os.path.isfile(path):
                return path
        raise wrong(source, line, f"{name!r} leads out of {self.path}" if outside else f"the file {name!r} is missing")

    def read_bytes(self, path: str) -> bytes:
        """The content of `path`, which exists; DataError if it cannot be read or leads out of this folder."""
        if not self.contains(path) or not os.path.isfile(path):
            raise wrong(path, None, f"is not a file in {self.path}")
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise wrong(path, None, f"cannot be read: {error.strerror}") from error

    def read_text(self, path: str) -> str:
        data = self.read_bytes(path)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise wrong(path, data.count(b"\n", 0, error.start) + 1, "is not UTF-8 text") from error

    def read_lines(self, path: str) -> list[tuple[int, str]]:
        """The lines that are not empty, stripped, with their numbers."""
        stripped = ((number, line.strip()) for number, line in enumerate(self.read_text(path).split("\n"), 1))
        return [(number, line) for number, line in stripped if line]


def files_in(directory: str, suffixes: str | tuple[str, ...]) -> list[str]:
    """Names of the files in `directory` with these suffixes, sorted; empty if it is not a folder."""
    if not os.path.isdir(directory):
        return []
    return sorted(
        entry.name
        for entry in os.scandir(directory)
        # Files with a leading dot belong to some tool ("._0001.jpg").
        if entry.name.lower().endswith(suffixes) and not entry.name.startswith(".") and not entry.is_dir()
    )


def images_in(directory: str) -> list[str]:
    return files_in(directory, SUFFIXES)


def first_folder(root: Root, *names: str) -> str | None:
    return next((root.join(name) for name in names if os.path.isdir(root.join(name))), None)


def split_kind(name: str) -> tuple[str, str] | None:
    """The purpose and year in the name of a split: ("train", "2017") for train2017; None for other names."""
    match = _SPLIT.fullmatch(name)
    return (_SAME.get(match[1].lower(), match[1].lower()), match[2]) if match else None


def split_folders(directory: str) -> list[str]:
    """Names of the folders in `directory` with the name of a split, sorted."""
    if not os.path.isdir(directory):
        return []
    return sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and split_kind(entry.name))


def number(text: str) -> float:
    """`text` as a number, NaN and infinity included; ValueError if it is not a number."""
    if "_" in text:  # allowed in Python only
        raise ValueError
    return float(text)


class FolderDataset:
    """Ground truth in memory, and images that are read from their files when they are used."""

    def __init__(self, class_names: tuple[str, ...], images: Iterable[ListedImage], problems: Problems) -> None:
        """Check `images` and keep the valid ones; add the problems of the others to `problems`."""
        label_of = {name: label for label, name in enumerate(class_names, 1)}
        boxes: list[tuple[float, float, float, float]] = []
        labels: list[int] = []
        difficult: list[bool] = []
        offsets = [0]
        seen: set[str] = set()
        self._images: list[tuple[str, str, int, int]] = []  # id, path, width, height
        for image in images:
            with problems.collected():
                if image.image_id in seen:
                    raise wrong(*image.listed, f"image id {image.image_id!r} appears twice")
                seen.add(image.image_id)
                width, height = _checked_size(image)
                for box in image.boxes:
                    with problems.collected():
                        if box.class_name not in label_of:
                            raise wrong(
                                image.source, box.line, f"{box.what} is of the unknown class {box.class_name!r}"
                            )
                        boxes.append(_checked_box(image, box, width, height))
                        labels.append(label_of[box.class_name])
                        difficult.append(box.difficult)
                self._images.append((image.image_id, image.path, width, height))
                offsets.append(len(boxes))
        self.class_names = class_names
        self.problems = tuple(problems)
        # Few arrays and not an object per image: forked workers copy the memory of every Python object they touch.
        self._boxes = np.array(boxes, np.float32).reshape(-1, 4)
        self._labels = np.array(labels, np.int64)
        self._difficult = np.array(difficult, np.bool_)
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        index = at(index, len(self))
        image_id, path, width, height = self._images[index]
        image = read_image(path)
        if image.shape[:2] != (height, width):
            raise wrong(
                path, None, f"is now {image.shape[1]} x {image.shape[0]}; it was {width} x {height} when loaded"
            )
        own = slice(self._offsets[index], self._offsets[index + 1])
        return Sample(image, self._boxes[own].copy(), self._labels[own].copy(), image_id, self._difficult[own].copy())


def _checked_size(image: ListedImage) -> tuple[int, int]:
    """Width and height of the image; an error if the annotations state others."""
    width, height = image_size(image.path)
    if image.size not in (None, (width, height)):
        stated = " x ".join(f"{side:g}" for side in image.size or ())
        message = f"states a size of {stated}, but {image.path} is {width} x {height} (upright)"
        raise wrong(image.source, image.size_line, message)
    return width, height


def _checked_box(image: ListedImage, box: Box, width: int, height: int) -> tuple[float, float, float, float]:
    """The box in pixels, clipped to its image."""
    x1, y1, x2, y2 = box.xyxy
    if image.relative:
        x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
    fault = ""
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        fault = "is not finite"
    elif x2 < x1 or y2 < y1:
        fault = "has its corners swapped"
    elif min(x1, y1) < -SLACK or x2 > width + SLACK or y2 > height + SLACK:
        fault = f"leaves its image of {width} x {height}"
    # The area is checked in float32, the dtype of the boxes: a very thin box may have none there.
    left, top, right, bottom = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    box_width, box_height = np.float32(right) - np.float32(left), np.float32(bottom) - np.float32(top)
    if not fault and not (box_width > 0 and box_height > 0 and box_width * box_height > 0):
        fault = "has no area"
    if fault:
        raise wrong(image.source, box.line, f"{box.what} {fault}: x1 {x1:g}, y1 {y1:g}, x2 {x2:g}, y2 {y2:g}")
    return left, top, right, bottom
