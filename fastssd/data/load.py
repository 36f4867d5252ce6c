"""Which format a folder has, which splits, and the data set of one of them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from typing import Literal

from fastssd.data.coco import Coco
from fastssd.data.dataset import DataError, DetectionDataset, Problem, Problems, wrong
from fastssd.data.folder import FolderDataset, Layout, Picture, Root, split_kind
from fastssd.data.shapes import shapes_dataset
from fastssd.data.voc import Voc
from fastssd.data.yolo import Yolo

HOLDOUT = 0.2  # share of the images held out where a data set has one split or none

_FORMATS: dict[type[Voc | Coco | Yolo], str] = {
    Voc: "Annotations/*.xml with JPEGImages, or *.xml beside images",
    Coco: "annotations/*.json, or <split>/_annotations.coco.json",
    Yolo: "data.yaml, or images with labels",
}
_SHAPES = re.compile(r"shapes(?::(\d+))?", re.ASCII)
_SHAPES_SPLITS = ("train", "test")
_LISTED = 10  # entries of an unknown folder that a message names
_ORDER = ("train", "trainval", "val", "test", "holdout")
_PAIRS = (("trainval", "test"), ("train", "val"), ("train", "test"), ("train", "holdout"))  # the first that exists


def load_dataset(
    path: str | os.PathLike[str],
    split: str | None = None,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    class_names: Sequence[str] | None = None,
) -> DetectionDataset:
    """Load a Pascal VOC, COCO JSON or YOLO text data set, told apart by what lies in its folder.

    Everything but the pixels is checked here: annotations, paths, image headers (``docs/data.md`` lists the checks).

    Args:
        path: the folder; or ``"shapes"`` or ``"shapes:COUNT"`` for generated images (:func:`shapes_dataset`): COUNT
            (1000) in split ``"train"``, a fifth of it in ``"test"``. A folder of that name is ``"./shapes"``.
        split: one of :func:`available_splits`; None for every image of all splits (of shapes: ``"train"``).
        on_error: ``"raise"``, or ``"skip"`` to leave out the boxes and images that are wrong and list them in
            ``.problems``. What makes the whole data set unusable is raised in either case.
        class_names: the classes, in the order of their labels; a box of another class is an error. Default: those of
            all splits, sorted by name (VOC), by category id (COCO), or as listed (YOLO).

    Raises:
        DataError: with all problems found, by file and line.
        ValueError: an unknown split, or bad arguments.
        ModuleNotFoundError: YOLO's data.yaml without PyYAML installed.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
    names = None if class_names is None else _checked(class_names)
    if (count := _shapes(path)) is not None:
        _check_split(path, split, _SHAPES_SPLITS)
        shapes = shapes_dataset(max(count // 5, 1), seed=1) if split == "test" else shapes_dataset(count)
        if names not in (None, shapes.class_names):
            raise ValueError(f"class_names has to be {', '.join(shapes.class_names)}, which are the classes of shapes")
        return shapes
    layout = _layout(path)
    _check_split(path, split, _splits(layout))
    problems = Problems()
    if len(layout.splits) > 1:
        names, pictures = layout.read(split, names, problems)
    else:
        names, pictures = layout.read(None, names, problems)
        held_out = _held_out(pictures)
        pictures = [p for p in pictures if split is None or (p.name in held_out) == (split == "holdout")]
    dataset = FolderDataset(names, pictures, problems)
    if problems and on_error == "raise":
        raise DataError(*problems)
    if not len(dataset):
        problems.insert(0, Problem(os.fspath(path), None, "holds no image that can be used"))
        raise DataError(*problems)
    return dataset


def available_splits(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names that `split` can have in :func:`load_dataset`.

    A data set with one split or none has ``"train"`` and ``"holdout"``: a fifth of the images, chosen by a hash of
    their names, so that an image stays on its side when others come and go.
    """
    return _SHAPES_SPLITS if _shapes(path) is not None else _splits(_layout(path))


def default_splits(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The splits to train on and to evaluate on: trainval and test, else train and val, test or the hold-out.

    Raises:
        ValueError: the names of the splits do not say; the message lists them.
    """
    splits = available_splits(path)
    kinds = {name: split_kind(name) for name in splits}
    for wanted in _PAIRS:
        for train, kind in kinds.items():
            for evaluation, other in kinds.items():
                if kind and other and (kind[0], other[0]) == wanted and kind[1] == other[1]:
                    return train, evaluation
    raise ValueError(
        f"cannot tell which splits of {os.fspath(path)} to train and evaluate on; it has {', '.join(splits)}"
    )


def _layout(path: str | os.PathLike[str]) -> Layout:
    name = os.fspath(path)
    if not os.path.isdir(path):
        raise wrong(name, None, "is not a folder" if os.path.exists(path) else "does not exist")
    root = Root(path)
    layouts: list[Layout] = [layout for kind in _FORMATS if (layout := kind.find(root))]
    if len(layouts) == 1:
        return layouts[0]
    looked = "; ".join(f"{kind.format} ({what})" for kind, what in _FORMATS.items())
    there = [entry.name + "/" * entry.is_dir() for entry in os.scandir(path)]
    content = ", ".join(sorted(there)[:_LISTED]) + ", ..." * (len(there) > _LISTED)
    what = "is " + " and ".join(layout.format for layout in layouts) + " at once" if layouts else "is no known data set"
    raise wrong(name, None, f"{what}; looked for {looked}; found {content or 'nothing'}")


def _splits(layout: Layout) -> tuple[str, ...]:
    if len(layout.splits) < 2:
        return "train", "holdout"

    def place(name: str) -> tuple[int, str]:
        kind = split_kind(name)
        return _ORDER.index(kind[0]) if kind else len(_ORDER), name

    return tuple(sorted(layout.splits, key=place))


def _check_split(path: str | os.PathLike[str], split: str | None, splits: Sequence[str]) -> None:
    if split is not None and split not in splits:
        raise ValueError(f"{os.fspath(path)} has no split {split!r}; it has {', '.join(splits)}")


def _held_out(pictures: Sequence[Picture]) -> set[str]:
    """Names of the images to evaluate on."""

    def share(name: str) -> float:
        return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:4], "big") / 2**32

    names = sorted((picture.name for picture in pictures), key=share)
    # At least one, where there is one to spare.
    return {name for rank, name in enumerate(names) if share(name) < HOLDOUT or (rank == 0 and len(names) > 1)}


def _checked(class_names: Sequence[str]) -> tuple[str, ...]:
    names = (class_names,) if isinstance(class_names, str) else tuple(class_names)
    if not names or isinstance(class_names, str) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"class_names must be a sequence of names, not {class_names!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"class_names names a class twice: {', '.join(names)}")
    return names


def _shapes(path: str | os.PathLike[str]) -> int | None:
    """How many images ``"shapes:COUNT"`` asks for; None for a folder."""
    match = _SHAPES.fullmatch(path) if isinstance(path, str) else None
    return int(match[1] or 1000) if match else None
