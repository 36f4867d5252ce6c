"""COCO JSON: one file per split, with lists of images, annotations and categories (cocodataset.org, data format)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Set
from typing import Any, NamedTuple

from fastssd.data.dataset import Problems, wrong
from fastssd.data.folder import Box, ListedImage, Root, files_in, first_folder, split_folders

# The fields that are kept of each list's elements. The segmentations in COCO's own files would fill the memory.
_FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "iscrowd"),
    "categories": ("id", "name"),
}
_SPACE = re.compile(r"[ \t\r\n]*")
_AROUND_SPLIT = re.compile(r"^instances_|(_?annotations)?(\.coco)?\.json$", re.IGNORECASE)

Element = tuple[int, dict[str, Any]]  # an element of a list: the line where it begins, and its fields
Boxes = dict[int | str, list[Box]]  # by image id


class Coco:
    """``annotations/instances_<split>.json`` with folders of images, or ``<split>/_annotations.coco.json``."""

    format = "COCO JSON"

    def __init__(self, root: Root, files: dict[str, str]) -> None:
        self.splits = tuple(files)
        self._root = root
        self._files = files

    @classmethod
    def find(cls, root: Root) -> Coco | None:
        folders = [first_folder(root, "annotations", "Annotations"), root.path]
        found = [os.path.join(folder, name) for folder in folders if folder for name in files_in(folder, ".json")]
        # Files with captions and keypoints of the same images may be beside the instances.
        instances = [path for path in found if os.path.basename(path).startswith("instances_")]
        named = [(_AROUND_SPLIT.sub("", os.path.basename(path)) or "all", path) for path in instances or found]
        for split in split_folders(root.path):
            named += [(split, root.join(split, name)) for name in files_in(root.join(split), ".json")]
        files: dict[str, str] = {}
        for split, path in named:
            if _is_coco(root, path):
                if split in files:
                    raise wrong(path, None, f"is a second file of split {split!r}; the other is {files[split]}")
                files[split] = path
        return cls(root, files) if files else None

    def read(
        self, split: str | None, class_names: tuple[str, ...] | None, problems: Problems
    ) -> tuple[tuple[str, ...], list[ListedImage]]:
        chosen = self._files if split is None else {split: self._files[split]}
        # The class names come from all splits, so that all splits have the same labels.
        files = chosen if class_names is not None else self._files
        contents: dict[str, dict[str, list[Element]]] = {}
        categories: dict[str, dict[int, str]] = {}
        for name, path in files.items():
            content = _parse(path, self._root.read_text(path))
            categories[name] = _categories(path, content["categories"])
            if name in chosen:
                contents[name] = content
        if class_names is None:
            class_names = _merged(categories, files)
        listed = []
        for name, path in chosen.items():
            boxes: Boxes = {}
            # Image ids are unique in a file only.
            prefix = f"{name}/" if len(chosen) > 1 else ""
            folders = self._folders(name)
            for image in contents[name]["images"]:
                with problems.collected():
                    listed.append(_listed_image(self._root, path, image, folders, prefix, boxes))
            for annotation in contents[name]["annotations"]:
                with problems.collected():
                    _add_box(path, annotation, categories[name], boxes)
        return class_names, listed

    def _folders(self, split: str) -> list[str]:
        """The folders that may have the images of a split, the likeliest first."""
        bases = (os.path.dirname(self._files[split]), self._root.path)
        below = ("", split, os.path.join("images", split), "images", "data")
        folders = dict.fromkeys(os.path.normpath(os.path.join(base, name)) for base in bases for name in below)
        return [folder for folder in folders if os.path.isdir(folder)]


def _is_coco(root: Root, path: str) -> bool:
    name = os.path.basename(path)
    if name.startswith("instances_") or name.endswith(".coco.json"):
        return True
    content = root.read_bytes(path)
    return all(f'"{key}"'.encode() in content for key in _FIELDS)


class Ids(NamedTuple):
    """The ids of images and categories in a COCO file."""

    images: dict[str, int | str]
    """By ``file_name``."""
    categories: dict[str, int]
    """By name."""


def read_ids(path: str | os.PathLike[str]) -> Ids:
    """The ids of a COCO file, without its annotations.

    Raises:
        DataError: malformed JSON, no list of images or categories, an id or a name that is missing or appears twice.
        OSError: the file cannot be read.
    """
    source = os.fspath(path)
    with open(source, encoding="utf-8-sig") as file:
        content = _parse(source, file.read(), {"images", "categories"})
    images: dict[str, int | str] = {}
    for line, fields in content["images"]:
        key, name = fields.get("id"), fields.get("file_name")
        if not isinstance(key, (int, str)) or not isinstance(name, str):
            raise wrong(source, line, f"an image needs an id and a file_name, not {key!r} and {name!r}")
        if name in images:
            raise wrong(source, line, f"a second image has the file_name {name!r}")
        images[name] = key
    return Ids(images, {name: key for key, name in _categories(source, content["categories"]).items()})


def _parse(path: str, text: str, keys: Set[str] = _FIELDS.keys()) -> dict[str, list[Element]]:
    """The lists with these keys, each element with its `_FIELDS`.

    Raises:
        DataError: malformed JSON, or a list is missing.
    """
    scanner = _Scanner(text)
    lists: dict[str, list[Element]] = {}
    try:
        scanner.take("{")
        for _ in scanner.items("}"):
            key = scanner.value()
            scanner.take(":")
            if key in keys and scanner.peek() == "[":
                scanner.take("[")
                lists[key] = [scanner.element(key) for _ in scanner.items("]")]
            else:
                scanner.value()
        scanner.end()
    except json.JSONDecodeError as error:
        raise wrong(path, error.lineno, f"malformed JSON: {error.msg}") from error
    except (ValueError, TypeError, RecursionError) as error:  # a huge number, a key that is not a string, deep nesting
        raise wrong(path, scanner.line, f"malformed JSON: {error}") from error
    for key in keys:
        if key not in lists:
            raise wrong(path, None, f"has no list of {key}")
    return lists


class _Scanner:
    """Reads the upper levels of a JSON text, and each element of a list with the standard decoder.

    So the line of an element is known, and only the fields that are used stay in memory.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._decode = json.JSONDecoder().raw_decode
        self.line = 1  # of the last element
        self._line_position = 0  # position to which `line` belongs

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        space = _SPACE.match(self._text, self._position)
        self._position = space.end() if space else self._position
        return self._text[self._position : self._position + 1]

    def take(self, characters: str) -> str:
        """Read one character, which must be one of these."""
        found = self.peek()
        if not found or found not in characters:
            raise json.JSONDecodeError(f"expected {' or '.join(characters)}", self._text, self._position)
        self._position += 1
        return found

    def value(self) -> Any:
        """Read a value with the standard decoder."""
        self.peek()
        value, self._position = self._decode(self._text, self._position)
        return value

    def items(self, closing: str) -> Iterator[None]:
        """Read commas and the closing bracket; yields before every item, which the caller reads."""
        if self.peek() != closing:
            yield
            while self.take("," + closing) == ",":
                yield
        else:
            self.take(closing)

    def element(self, key: str) -> Element:
        """Read an element of the list `key`."""
        self.peek()
        self.line += self._text.count("\n", self._line_position, self._position)
        self._line_position = self._position
        value = self.value()
        if not isinstance(value, dict):
            raise json.JSONDecodeError(f"an element of {key} is not an object", self._text, self._line_position)
        return self.line, {field: value[field] for field in _FIELDS[key] if field in value}

    def end(self) -> None:
        """Check that nothing follows."""
        if self.peek():
            raise json.JSONDecodeError("data after the end", self._text, self._position)


def _categories(path: str, elements: list[Element]) -> dict[int, str]:
    """Class names by category id."""
    names: dict[int, str] = {}
    for line, fields in elements:
        key, name = fields.get("id"), fields.get("name")
        if not isinstance(key, int) or not isinstance(name, str) or not name:
            raise wrong(path, line, f"a category needs an integer id and a name, not {key!r} and {name!r}")
        if key in names or name in names.values():
            raise wrong(path, line, f"category {key} ({name}) has the id or the name of another category")
        names[key] = name
    return names


def _merged(categories: dict[str, dict[int, str]], files: dict[str, str]) -> tuple[str, ...]:
    """The class names of all splits, by id; an error if a class has another id in another split."""
    names: dict[int, str] = {}
    for split, own in categories.items():
        for key, name in own.items():
            if names.setdefault(key, name) != name or sum(other == name for other in names.values()) > 1:
                raise wrong(files[split], None, f"category {key} ({name}) has another id or name in another split")
    return tuple(names[key] for key in sorted(names))


def _listed_image(root: Root, path: str, image: Element, folders: list[str], prefix: str, boxes: Boxes) -> ListedImage:
    line, fields = image
    key, name = fields.get("id"), fields.get("file_name")
    if not isinstance(key, (int, str)) or not isinstance(name, str):
        raise wrong(path, line, f"an image needs an id and a file_name, not {key!r} and {name!r}")
    own = boxes.setdefault(key, [])  # before anything can fail, because boxes of listed images are not an error
    file = root.find(name, folders, path, line)
    size = None
    if "width" in fields or "height" in fields:
        size = _number(fields.get("width")), _number(fields.get("height"))
    return ListedImage(name, f"{prefix}{key}", file, (path, line), path, own, size=size, size_line=line)


def _add_box(path: str, annotation: Element, categories: dict[int, str], boxes: Boxes) -> None:
    line, fields = annotation
    key, image, category, bbox = (fields.get(field) for field in ("id", "image_id", "category_id", "bbox"))
    what = f"annotation {key}"
    if not isinstance(image, (int, str)) or image not in boxes:
        raise wrong(path, line, f"{what} is for the image {image!r}, which is not listed")
    if not isinstance(category, int) or category not in categories:
        raise wrong(path, line, f"{what} is of the unknown category {category!r}")
    what += f" ({categories[category]})"
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise wrong(path, line, f"{what} needs a bbox of 4 numbers (x, y, width, height), not {bbox!r}")
    x, y, width, height = map(_number, bbox)
    if fields.get("iscrowd", 0) not in (0, 1):
        raise wrong(path, line, f"{what} has iscrowd {fields['iscrowd']!r}, not 0 or 1")
    crowd = bool(fields.get("iscrowd", 0))
    boxes[image].append(Box((x, y, x + width, y + height), categories[category], crowd, line, what))


def _number(value: object) -> float:
    """`value` as a float; NaN if it is not a number, which the common check of boxes finds."""
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")
    except OverflowError:
        return float("inf")
