"""Predictions in COCO's format of results, which ``loadRes`` of pycocotools and others read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from fastssd._files import whole_file
from fastssd.deploy.files import write_list


class Written(NamedTuple):
    """What went into a file of results."""

    detections: int
    left_out: int
    """Detections of a class that the annotations do not have."""
    unknown: int
    """Pictures that the annotations do not have."""


class CocoIds:
    """Ids of pictures and classes, as a file of annotations has them.

    A picture belongs to the image whose ``file_name`` its path ends with (the longest), or else to the only one whose
    file has its name, in whatever folder.

    Args:
        annotations: a COCO file; its annotations are not needed, images and categories are.
        class_names: those of the detector.

    Raises:
        DataError: the file is not COCO's.
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
        alone: dict[str, int | str | None] = {}
        for name, key in self._images.items():
            base = name.rpartition("/")[2]
            alone[base] = None if base in alone else key
        self._alone = alone

    def image(self, picture: str) -> int | str | None:
        """The id of a picture; None where the annotations do not have it."""
        rest = _as_posix(picture)
        while True:
            if rest in self._images:
                return self._images[rest]
            folder, _, below = rest.partition("/")
            if not below:
                return self._alone.get(folder)
            rest = below

    def check(self, pictures: Iterable[str]) -> int:
        """How many of the pictures the annotations have.

        Raises:
            ValueError: none, or two that would be the same image.
        """
        seen: dict[int | str, str] = {}
        for picture in pictures:
            key = self.image(picture)
            if key is not None and (other := seen.setdefault(key, picture)) != picture:
                raise ValueError(f"{other} and {picture} are both image {key!r} of {self.source}")
        if not seen:
            raise ValueError(f"{self.source} has none of the pictures")
        return len(seen)


def write_results(path: Path, entries: Iterable[Mapping[str, Any]], ids: CocoIds | None = None) -> Written:
    """Write ``[{"image_id", "category_id", "bbox": [x, y, width, height], "score"}, ...]``, pixels.

    Args:
        path: takes the file when it is whole.
        entries: one a picture, with ``image`` and what :meth:`NamedDetections.to_dict` gives; others, without
            detections, only count.
        ids: default: a picture's place among the entries, from 1, and the detector's labels, as
            :func:`write_images` says them.
    """
    detections, left_out, unknown = 0, 0, 0

    def results() -> Iterator[str]:
        nonlocal detections, left_out, unknown
        for place, entry in enumerate(entries, 1):
            image = place if ids is None else ids.image(entry["image"])
            unknown += image is None
            for found in entry.get("detections") or () if image is not None else ():
                category = found["label"] if ids is None else ids.categories.get(found["class"])
                if category is None:
                    left_out += 1
                    continue
                detections += 1
                x1, y1, x2, y2 = found["box"]
                result = {
                    "image_id": image,
                    "category_id": category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": found["score"],
                }
                yield json.dumps(result, allow_nan=False)

    with whole_file(path) as file:
        write_list(file, results())
        file.write("\n")
    return Written(detections, left_out, unknown)


def write_images(path: Path, entries: Iterable[Mapping[str, Any]], class_names: Sequence[str]) -> None:
    """Write which picture and class the ids of :func:`write_results` mean: a COCO file without annotations."""
    images = (
        {"id": place, "file_name": entry["image"], "width": entry["width"], "height": entry["height"]}
        for place, entry in enumerate(entries, 1)
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
