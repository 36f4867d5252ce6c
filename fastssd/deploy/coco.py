"""Predictions in the COCO results format, which ``loadRes`` of pycocotools and others read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from fastssd._files import whole_file
from fastssd.deploy.files import write_list


class Written(NamedTuple):
    """What is in a file of results."""

    detections: int
    left_out: int
    """Detections whose class is not in the annotations."""
    unknown: int
    """Images that are not in the annotations."""


class CocoIds:
    """The ids that a COCO file gives to images and classes.

    The entry of an image file is the one whose ``file_name`` is the end of its path (the longest such name); else the
    only one with the same name in any folder.

    Args:
        annotations: a COCO file. Only its images and categories are used.
        class_names: those of the detector.

    Raises:
        DataError: the file is not a COCO file.
        OSError: it cannot be read.
        ValueError: it has none of the classes.
    """

    def __init__(self, annotations: str | os.PathLike[str], class_names: Sequence[str]) -> None:
        from fastssd.data.coco import read_ids

        self.source = os.fspath(annotations)
        images, categories = read_ids(annotations)
        self.categories = {name: categories[name] for name in class_names if name in categories}
        if not self.categories:
            raise ValueError(
                f"{self.source} has none of the classes {', '.join(class_names)}; it has {', '.join(categories)}"
            )
        self._images = {_as_posix(name): key for name, key in images.items()}
        unique: dict[str, int | str | None] = {}  # by name without folder; None if several images have the name
        for name, key in self._images.items():
            base = name.rpartition("/")[2]
            unique[base] = None if base in unique else key
        self._unique = unique

    def image(self, path: str) -> int | str | None:
        """The id of the image in the file `path`; None if the annotations do not have it."""
        rest = _as_posix(path)
        while True:
            if rest in self._images:
                return self._images[rest]
            folder, _, below = rest.partition("/")
            if not below:
                return self._unique.get(folder)
            rest = below

    def check(self, paths: Iterable[str]) -> int:
        """How many of these image files the annotations have.

        Raises:
            ValueError: the annotations have none of them, or two files have the same id.
        """
        seen: dict[int | str, str] = {}
        for path in paths:
            key = self.image(path)
            if key is not None and (other := seen.setdefault(key, path)) != path:
                raise ValueError(f"{other} and {path} are both image {key!r} of {self.source}")
        if not seen:
            raise ValueError(f"{self.source} has none of the images")
        return len(seen)


def write_results(path: Path, entries: Iterable[Mapping[str, Any]], ids: CocoIds | None = None) -> Written:
    """Write ``[{"image_id", "category_id", "bbox": [x, y, width, height], "score"}, ...]``, in pixels.

    Args:
        path: the file to write; it is replaced when all is written.
        entries: one per image, with ``image`` and the values of :meth:`NamedDetections.to_dict`. Entries without
            detections give no results but count for the default ids.
        ids: None: image ids count the entries from 1, and category ids are the detector's labels, as in
            :func:`write_images`.
    """
    detections, left_out, unknown = 0, 0, 0

    def results() -> Iterator[str]:
        nonlocal detections, left_out, unknown
        for number, entry in enumerate(entries, 1):
            image_id = number if ids is None else ids.image(entry["image"])
            unknown += image_id is None
            for detection in entry.get("detections") or () if image_id is not None else ():
                category = detection["label"] if ids is None else ids.categories.get(detection["class"])
                if category is None:
                    left_out += 1
                    continue
                detections += 1
                x1, y1, x2, y2 = detection["box"]
                result = {
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": detection["score"],
                }
                yield json.dumps(result, allow_nan=False)

    with whole_file(path) as file:
        write_list(file, results())
        file.write("\n")
    return Written(detections, left_out, unknown)


def write_images(path: Path, entries: Iterable[Mapping[str, Any]], class_names: Sequence[str]) -> None:
    """Write a COCO file without annotations: the images and classes of the default ids of :func:`write_results`."""
    images = (
        {"id": number, "file_name": entry["image"], "width": entry["width"], "height": entry["height"]}
        for number, entry in enumerate(entries, 1)
        if entry.get("detections") is not None
    )
    categories = ({"id": label, "name": name} for label, name in enumerate(class_names, 1))
    with whole_file(path) as file:
        file.write('{\n  "images": ')
        write_list(file, map(json.dumps, images), "  ")
        file.write(',\n  "annotations": [],\n  "categories": ')
        write_list(file, map(json.dumps, categories), "  ")
        file.write("\n}\n")


def _as_posix(name: str) -> str:
    return PurePath(os.path.normpath(name)).as_posix()
