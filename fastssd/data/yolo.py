"""YOLO text: ``data.yaml`` with names and splits, and a text file per image in ``labels``, which mirrors ``images``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from fastssd.data.dataset import Problem, Problems, wrong
from fastssd.data.folder import Box, ListedImage, Root, files_in, images_in, number, split_folders

_NAMES = re.compile(r"^names\s*:", re.MULTILINE)
_SPLITS = ("train", "val", "test")  # keys of data.yaml
_NULL = ("", "~", "null", "Null", "NULL")


class Yolo:
    """Rows of ``class cx cy width height``, or of a class and a polygon, in fractions of the image."""

    format = "YOLO text"

    def __init__(self, root: Root, file: str, names: dict[int, str], sources: dict[str, list[str]], base: str) -> None:
        self.splits = tuple(filter(None, sources))
        self._root = root
        self._file = file  # with the class names
        self._names = names  # by class index; empty if they are not stated
        self._sources = sources  # by split, "" if there are no splits: folders, and files that list images
        self._base = base  # the folder to which sources are relative

    @classmethod
    def find(cls, root: Root) -> Yolo | None:
        files = [root.join(name) for name in files_in(root.path, (".yaml", ".yml"))]
        files = [path for path in files if _NAMES.search(root.read_text(path))]
        if len(files) > 1:
            raise wrong(root.path, None, f"more than one file describes the data set: {', '.join(files)}")
        if files:
            path = files[0]
            content = _yaml(path, root.read_text(path))
            sources = {split: _strings(path, content, split) for split in _SPLITS if split in content}
            base = root.join(*_strings(path, content, "path")) if "path" in content else root.path
            return cls(root, path, _class_names(path, content), sources or _image_folders(root), base)
        if os.path.isdir(root.join("images")) and os.path.isdir(root.join("labels")):
            paths = [root.join("classes.txt"), root.join("labels", "classes.txt")]
            path = next(filter(os.path.isfile, paths), paths[0])
            lines = root.read_lines(path) if os.path.isfile(path) else []
            return cls(root, path, dict(enumerate(name for _, name in lines)), _image_folders(root), root.path)
        return None

    def read(
        self, split: str | None, class_names: tuple[str, ...] | None, problems: Problems
    ) -> tuple[tuple[str, ...], list[ListedImage]]:
        names = self._names or dict(enumerate(class_names or ()))
        if not names:
            raise wrong(self._file, None, "has no class names; state them there or in class_names")
        images: list[ListedImage] = []
        labelled: dict[str, set[str]] = {}  # folder of labels -> label files of its images
        chosen = [self._sources[split]] if split is not None else list(self._sources.values())
        for source in dict.fromkeys(source for sources in chosen for source in sources):
            path = self._path_of(source)
            if os.path.isdir(path):
                bases = [path]
                walked = list(_walk(self._root, path, images_in))
                listed: list[tuple[int | None, str]] = [(None, os.path.relpath(file, path)) for file in walked]
                if (labels := _label_folder(self._root, path)) != path:
                    labelled.setdefault(labels, set()).update(_label_file(self._root, file) for file in walked)
            else:
                bases = [os.path.dirname(path), self._base, self._root.path]
                listed = [*self._root.read_lines(path)]
            for line, name in listed:
                with problems.collected():
                    file = self._root.find(name, bases, path, line)
                    images.append(self._listed_image(file, (path, line), names, problems))
        if images and not any(os.path.isfile(image.source) for image in images):
            raise wrong(images[0].source, None, "is missing, and so are the label files of all other images")
        for labels, known in labelled.items():
            for label_file in _walk(self._root, labels, _label_files):
                if label_file not in known:
                    problems.append(Problem(label_file, None, "has labels of an image that is missing"))
        return class_names or tuple(names[index] for index in sorted(names)), images

    def _path_of(self, source: str) -> str:
        """The folder or file of a source. Some exports write ``../train/images`` for ``train/images``."""
        for base in (self._base, self._root.path):
            for name in (source, re.sub(r"^(\.\./)+", "", source)):
                path = os.path.normpath(os.path.join(base, name))
                if self._root.contains(path) and os.path.exists(path):
                    return path
        raise wrong(self._file, None, f"{source!r} is missing in {self._root.path}")

    def _listed_image(
        self, path: str, listed: tuple[str, int | None], names: dict[int, str], problems: Problems
    ) -> ListedImage:
        name = self._root.relative(path)
        source = _label_file(self._root, path)
        boxes = []
        # An image without a label file has no objects.
        for line, row in self._root.read_lines(source) if os.path.lexists(source) else ():
            with problems.collected():
                boxes.append(_box(source, line, row, names))
        return ListedImage(name, os.path.splitext(name)[0], path, listed, source, boxes, relative=True)


def _box(path: str, line: int, row: str, names: dict[int, str]) -> Box:
    try:
        index, *values = map(number, row.split())
    except ValueError:
        raise wrong(path, line, f"{row!r} is not a row of numbers") from None
    if index not in names:
        raise wrong(path, line, f"class {index:g} is unknown; there are {len(names)}, counted from 0")
    if not all(map(math.isfinite, values)):  # min and max of a polygon could hide a NaN
        raise wrong(path, line, f"{row!r} is not finite")
    name = names[int(index)]
    if len(values) == 4:
        cx, cy, width, height = values
        xyxy = cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2
    elif len(values) >= 6 and len(values) % 2 == 0:  # a polygon: its bounding box
        x, y = values[::2], values[1::2]
        xyxy = min(x), min(y), max(x), max(y)
    else:
        raise wrong(path, line, f"class and {len(values)} numbers are neither a box (4) nor a polygon (6, 8, ...)")
    return Box(xyxy, name, False, line, f"box ({name})")


def _label_folder(root: Root, folder: str) -> str:
    """The folder with the labels of the images in `folder`: the last ``images`` in its path becomes ``labels``."""
    parts = root.relative(folder).split("/")
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return os.path.normpath(root.join(*parts))


def _label_file(root: Root, file: str) -> str:
    folder, name = os.path.split(file)
    return os.path.join(_label_folder(root, folder), os.path.splitext(name)[0] + ".txt")


def _label_files(folder: str) -> list[str]:
    return [name for name in files_in(folder, ".txt") if name != "classes.txt"]


def _walk(root: Root, folder: str, names_in: Callable[[str], list[str]]) -> Iterator[str]:
    """The files that `names_in` finds in `folder` and in its subfolders, sorted."""
    for directory, below, _ in os.walk(folder):
        below.sort()
        for name in below:
            if not root.contains(os.path.join(directory, name)):
                raise wrong(os.path.join(directory, name), None, f"leads out of {root.path}")
        for name in names_in(directory):
            yield os.path.join(directory, name)


def _image_folders(root: Root) -> dict[str, list[str]]:
    """The sources of the ``images`` folder, by split."""
    images = root.join("images")
    splits = [] if images_in(images) else split_folders(images)
    return {split: [os.path.join("images", split)] for split in splits} or {"": ["images"]}


def _yaml(path: str, text: str) -> dict[str, Any]:
    """The mapping in a YAML file, without null values. Scalars stay strings, because a class may be called ``no``."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path} needs PyYAML; install it with: pip install 'fastssd[train]'") from error
    try:
        content = yaml.load(text, yaml.BaseLoader)  # makes strings, lists and mappings only
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:  # the last two: from its constructor
        mark = getattr(error, "problem_mark", None)
        raise wrong(
            path, mark.line + 1 if mark else None, f"malformed YAML: {getattr(error, 'problem', error)}"
        ) from error
    if not isinstance(content, dict):
        raise wrong(path, None, "is not a mapping")
    if "kpt_shape" in content:
        raise wrong(path, None, "describes keypoints (kpt_shape), not boxes")
    return {key: value for key, value in content.items() if not isinstance(value, str) or value not in _NULL}


def _strings(path: str, content: dict[str, Any], key: str) -> list[str]:
    values = content[key] if isinstance(content[key], list) else [content[key]]
    if not all(isinstance(value, str) for value in values):
        raise wrong(path, None, f"{key} is neither a string nor a list of strings")
    return values


def _class_names(path: str, content: dict[str, Any]) -> dict[int, str]:
    names = content.get("names")
    pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else ()
    try:
        named = {int(key): name for key, name in pairs}
        count = int(content.get("nc", len(named)))
    except (ValueError, TypeError):  # a string that is not a number; a list
        raise wrong(path, None, "nc and the keys of names must be integers") from None
    texts = [name for name in named.values() if isinstance(name, str) and name]
    if not named or len(set(texts)) < len(named):
        raise wrong(path, None, "names must be a list of different names, or a mapping from class indices to names")
    if count != len(named):
        raise wrong(path, None, f"nc is {count}, but there are {len(named)} names")
    return named
