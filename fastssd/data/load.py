"""Finds the format and the splits of a folder, and loads the data set of a split."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from typing import Literal

from fastssd.data.coco import Coco
from fastssd.data.dataset import DataError, DetectionDataset, Problem, Problems, wrong
from fastssd.data.folder import FolderDataset, Layout, ListedImage, Root, split_kind
from fastssd.data.shapes import shapes_dataset
from fastssd.data.voc import Voc
from fastssd.data.yolo import Yolo

HOLDOUT = 0.2  # share of the images that is held out if a data set has only one split or none

_FORMATS: dict[type[Voc | Coco | Yolo], str] = {
    Voc: "Annotations/*.xml with JPEGImages, or *.xml beside images",
    Coco: "annotations/*.json, or <split>/_annotations.coco.json",
    Yolo: "data.yaml, or images with labels",
}
_SHAPES = re.compile(r"shapes(?::(\d+))?", re.ASCII)
_SHAPES_SPLITS = ("train", "test")
_MOST_LISTED = 10  # entries of an unknown folder in a message
_ORDER = ("train", "trainval", "val", "test", "holdout")
_PAIRS = (("trainval", "test"), ("train", "val"), ("train", "test"), ("train", "holdout"))  # the first that exists


def load_dataset(
    path: str | os.PathLike[str],
    split: str | None = None,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    class_names: Sequence[str] | None = None,
) -> DetectionDataset:
    """Load a Pascal VOC, COCO JSON or YOLO text data set. The format is recognised from the files in the folder.

    Everything but the pixels is checked here: annotations, paths, image headers (``docs/data.md`` lists the checks).

    Args:
        path: the folder; or ``"shapes"`` or ``"shapes:COUNT"`` for generated images (:func:`shapes_dataset`): COUNT
            (default 1000) in split ``"train"``, a fifth of it in ``"test"``. For a folder of that name write
            ``"./shapes"``.
        split: one of :func:`available_splits`; None for the images of all splits (of shapes: ``"train"``).
        on_error: ``"raise"``, or ``"skip"`` to leave out wrong boxes and images and list them in ``.problems``. A
            problem that makes the whole data set unusable is always raised.
        class_names: the classes, in the order of their labels; a box of another class is an error. None: those of all
            splits, sorted by name (VOC), by category id (COCO), or as listed (YOLO).

    Raises:
        DataError: wrong annotations or images; it has all problems, with file and line.
        ValueError: an unknown split, or bad arguments.
        ModuleNotFoundError: PyYAML is not installed, which YOLO's data.yaml needs.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: expected 'raise' or 'skip', got {on_error!r}")
    names = None if class_names is None else _checked(class_names)
    if (count := _shapes(path)) is not None:
        _check_split(path, split, _SHAPES_SPLITS)
        shapes = shapes_dataset(max(count // 5, 1), seed=1) if split == "test" else shapes_dataset(count)
        if names not in (None, shapes.class_names):
            raise ValueError(f"class_names: the classes of shapes are {', '.join(shapes.class_names)}; got {names}")
        return shapes
    layout = _layout(path)
    _check_split(path, split, _splits(layout))
    problems = Problems()
    if len(layout.splits) > 1:
        names, images = layout.read(split, names, problems)
    else:
        names, images = layout.read(None, names, problems)
        held_out = _held_out(images)
        images = [image for image in images if split is None or (image.name in held_out) == (split == "holdout")]
    dataset = FolderDataset(names, images, problems)
    if problems and on_error == "raise":
        raise DataError(*problems)
    if not len(dataset):
        problems.insert(0, Problem(os.fspath(path), None, "has no image that can be used"))
        raise DataError(*problems)
    return dataset


def available_splits(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names that `split` can have in :func:`load_dataset`.

    A data set with one split or none is split into ``"train"`` and ``"holdout"``: a fifth of the images, chosen by a
    hash of their names, so that an image stays in its split when others are added or removed.
    """
    return _SHAPES_SPLITS if _shapes(path) is not None else _splits(_layout(path))


def default_splits(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The splits to train on and to evaluate on: trainval and test, else train and the first of val, test, holdout.

    Raises:
        ValueError: no splits have such names; the message lists them.
    """
    splits = available_splits(path)
    kinds = {name: split_kind(name) for name in splits}
    for wanted in _PAIRS:
        for train, kind in kinds.items():
            for evaluation, other in kinds.items():
                if kind and other and (kind[0], other[0]) == wanted and kind[1] == other[1]:
                    return train, evaluation
    raise ValueError(
        f"unknown which splits of {os.fspath(path)} to train and to evaluate on; it has {', '.join(splits)}"
    )


def _layout(path: str | os.PathLike[str]) -> Layout:
    name = os.fspath(path)
    if not os.path.isdir(path):
        raise wrong(name, None, "is not a folder" if os.path.exists(path) else "does not exist")
    root = Root(path)
    layouts: list[Layout] = [layout for kind in _FORMATS if (layout := kind.find(root))]
    if len(layouts) == 1:
        return layouts[0]
    expected = "; ".join(f"{kind.format} ({what})" for kind, what in _FORMATS.items())
    there = [entry.name + "/" * entry.is_dir() for entry in os.scandir(path)]
    content = ", ".join(sorted(there)[:_MOST_LISTED]) + ", ..." * (len(there) > _MOST_LISTED)
    formats = " and ".join(layout.format for layout in layouts)
    what = f"is {formats} at the same time" if layouts else "is not a known data set"
    raise wrong(name, None, f"{what}; expected {expected}; found {content or 'nothing'}")


def _splits(layout: Layout) -> tuple[str, ...]:
    if len(layout.splits) < 2:
        return "train", "holdout"

    def rank(name: str) -> tuple[int, str]:
        kind = split_kind(name)
        return _ORDER.index(kind[0]) if kind else len(_ORDER), name

    return tuple(sorted(layout.splits, key=rank))


def _check_split(path: str | os.PathLike[str], split: str | None, splits: Sequence[str]) -> None:
    if split is not None and split not in splits:
        raise ValueError(f"{os.fspath(path)} has no split {split!r}; it has {', '.join(splits)}")


def _held_out(images: Sequence[ListedImage]) -> set[str]:
    """Names of the images that are held out."""

    def share(name: str) -> float:
        """A number in [0, 1) from the hash of the name."""
        return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:4], "big") / 2**32

    names = sorted((image.name for image in images), key=share)
    # At least one, if there are two or more.
    return {name for rank, name in enumerate(names) if share(name) < HOLDOUT or (rank == 0 and len(names) > 1)}


def _checked(class_names: Sequence[str]) -> tuple[str, ...]:
    names = (class_names,) if isinstance(class_names, str) else tuple(class_names)
    if not names or isinstance(class_names, str) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"class_names must be a sequence of names, not {class_names!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"class_names names a class twice: {', '.join(names)}")
    return names


def _shapes(path: str | os.PathLike[str]) -> int | None:
    """The COUNT of ``"shapes:COUNT"``; None if `path` is a folder."""
    match = _SHAPES.fullmatch(path) if isinstance(path, str) else None
    return int(match[1] or 1000) if match else None
