"""Pascal VOC: one XML file per image (Everingham et al., IJCV 2010)."""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from xml.parsers import expat

from fastssd.data.dataset import DataError, Problems, wrong
from fastssd.data.folder import Box, ListedImage, Root, files_in, first_folder, images_in, number, split_folders

_DEEPEST = 4  # levels that are read: annotation/object/bndbox/xmin
_CLASS_FLAG = re.compile(r"\S+\s+(-1|0|1)")  # a line of ImageSets/Main/<class>_<split>.txt, which is not a split
_CORNERS = tuple(f"object/bndbox/{corner}" for corner in ("xmin", "ymin", "xmax", "ymax"))


class Field(NamedTuple):
    """An element and its text."""

    text: str
    line: int  # where it begins


Fields = dict[str, Field]  # by path below <annotation>


class Annotation(NamedTuple):
    """The content of one XML file."""

    path: str
    fields: Fields
    objects: list[Fields]


class Entry(NamedTuple):
    """An image that a split lists."""

    name: str  # path of its XML file in the folder of annotations, without suffix; the image id
    listed: tuple[str, int | None]  # file and line that list it


class Voc:
    """``Annotations/*.xml`` with ``JPEGImages`` and ``ImageSets/Main``, or XML files beside their images."""

    format = "Pascal VOC"

    def __init__(self, root: Root, annotations: str, images: str, entries: dict[str, list[Entry]]) -> None:
        self.splits = tuple(filter(None, entries))
        self._root = root
        self._annotations = annotations
        self._images = images
        self._entries = entries  # by split, "" if there are no splits
        self._same_name: dict[str, dict[str, list[str]]] = {}  # folder -> name without suffix -> images

    @classmethod
    def find(cls, root: Root) -> Voc | None:
        folder = first_folder(root, "Annotations", "annotations")
        if folder and files_in(folder, ".xml"):
            images = first_folder(root, "JPEGImages", "images", "Images") or folder
            return cls(root, folder, images, _listed(root) or {"": _entries(folder)})
        if entries := _entries(root.path):
            return cls(root, root.path, root.path, {"": entries})
        below = {split: _entries(root.path, split) for split in split_folders(root.path)}
        below = {split: entries for split, entries in below.items() if entries}
        return cls(root, root.path, root.path, below) if below else None

    def read(
        self, split: str | None, class_names: tuple[str, ...] | None, problems: Problems
    ) -> tuple[tuple[str, ...], list[ListedImage]]:
        all_entries = list({entry.name: entry for entries in self._entries.values() for entry in entries}.values())
        chosen = all_entries if split is None else self._entries[split]
        annotations: dict[str, Annotation] = {}
        # The class names come from all splits, so that all splits have the same labels.
        for name, listed in all_entries if class_names is None else chosen:
            with problems.collected():
                path = self._root.find(name + ".xml", [self._annotations], *listed)
                annotations[name] = parse(path, self._root.read_bytes(path))
        if class_names is None:
            named = {o["object/name"].text for a in annotations.values() for o in a.objects if "object/name" in o}
            class_names = tuple(sorted(named - {""}))
        images = []
        for entry in chosen:
            if entry.name in annotations:
                with problems.collected():
                    images.append(self._listed_image(entry, annotations[entry.name], problems))
        return class_names, images

    def _listed_image(self, entry: Entry, annotation: Annotation, problems: Problems) -> ListedImage:
        path = self._image_path(entry.name, annotation)
        size, size_line = _size(annotation)
        boxes = []
        for index, fields in enumerate(annotation.objects, 1):
            with problems.collected():
                boxes.append(_box(annotation.path, fields, index))
        name = self._root.relative(path)
        return ListedImage(name, entry.name, path, entry.listed, annotation.path, boxes, size=size, size_line=size_line)

    def _image_path(self, name: str, annotation: Annotation) -> str:
        """The image file with the same name as the XML file.

        ``filename`` in the XML file is used only if there is no such image or more than one, because it is often wrong
        after files were renamed.
        """
        filename, line = annotation.fields.get("filename", Field("", 1))
        folder, stem = os.path.split(os.path.join(self._images, name))
        stated = os.path.normpath(os.path.join(folder, filename))
        if not self._root.contains(stated):
            raise wrong(annotation.path, line, f"{filename!r} leads out of {self._root.path}")
        if folder not in self._same_name:
            stems = self._same_name[folder] = {}
            for file in images_in(folder):
                stems.setdefault(os.path.splitext(file)[0], []).append(file)
        found = self._same_name[folder].get(stem, [])
        if len(found) == 1:
            filename = found[0]
        elif len(found) > 1 and filename not in found:
            raise wrong(annotation.path, line, f"belongs to more than one image: {', '.join(found)}")
        return self._root.find(filename or stem + ".jpg", [folder], annotation.path, line)


def parse(path: str, data: bytes) -> Annotation:
    """Read one XML file, without expanding entities.

    Raises:
        DataError: malformed XML, a document type declaration (it could define entities), or another root element.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    annotation = Annotation(path, {}, [])
    open_elements: list[tuple[str, int]] = []  # path below the root, "" if it is not read; and line
    text: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        depth = len(open_elements)
        if depth == 0 and tag != "annotation":
            raise wrong(path, parser.CurrentLineNumber, f"the root element is <{tag}>, not <annotation>")
        if depth == 1 and tag == "object":
            annotation.objects.append({})
        key = "" if depth == 0 or depth >= _DEEPEST else tag if depth == 1 else f"{open_elements[-1][0]}/{tag}"
        open_elements.append((key, parser.CurrentLineNumber))
        text.clear()

    def end(tag: str) -> None:
        key, line = open_elements.pop()
        if key:
            fields = annotation.objects[-1] if f"{key}/".startswith("object/") else annotation.fields
            fields[key] = Field("".join(text).strip(), line)
        text.clear()

    def refuse(*declaration: object) -> None:
        raise wrong(path, parser.CurrentLineNumber, "has a document type declaration (DTD), which is refused")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except DataError:
        raise
    except (expat.ExpatError, ValueError, LookupError) as error:  # the last two: an encoding that expat cannot read
        raise wrong(path, parser.CurrentLineNumber, f"malformed XML: {error}") from error
    return annotation


def _box(path: str, fields: Fields, index: int) -> Box:
    name, line = fields.get("object/name", Field("", fields["object"].line))
    what = f"box {index} ({name})"
    if not name:
        raise wrong(path, line, f"box {index} has no class name")
    for key in _CORNERS:
        if key not in fields:
            raise wrong(path, fields["object"].line, f"{what} has no {key}")
    x1, y1, x2, y2 = (_number(path, fields[key], f"{what}: {key}") for key in _CORNERS)
    difficult, line = fields.get("object/difficult", Field("0", 0))
    if difficult not in ("0", "1"):
        raise wrong(path, line, f"{what}: difficult is {difficult!r}, not 0 or 1")
    return Box((x1, y1, x2, y2), name, difficult == "1", fields["object/bndbox"].line, what)


def _size(annotation: Annotation) -> tuple[tuple[float, float] | None, int | None]:
    """Width and height and their line; None if they are not stated."""
    if "size" not in annotation.fields:
        return None, None
    line = annotation.fields["size"].line
    width, height = (
        _number(annotation.path, annotation.fields.get(key, Field("", line)), key)
        for key in ("size/width", "size/height")
    )
    return (width, height), line


def _number(path: str, field: Field, what: str) -> float:
    try:
        return number(field.text)
    except ValueError:
        raise wrong(path, field.line, f"{what} is {field.text!r}, not a number") from None


def _entries(folder: str, below: str = "") -> list[Entry]:
    """An entry for every XML file in `below`, a folder in `folder`."""
    names = (os.path.join(below, name) for name in files_in(os.path.join(folder, below), ".xml"))
    return [Entry(name.removesuffix(".xml"), (os.path.join(folder, name), None)) for name in names]


def _listed(root: Root) -> dict[str, list[Entry]]:
    """The splits of ``ImageSets/Main``."""
    folder = root.join("ImageSets", "Main")
    splits = {}
    for name in files_in(folder, ".txt"):
        path = os.path.join(folder, name)
        lines = root.read_lines(path)
        if not (lines and "_" in name and _CLASS_FLAG.fullmatch(lines[0][1])):
            splits[name.removesuffix(".txt")] = [Entry(image_id, (path, line)) for line, image_id in lines]
    return splits
