"""Data sets of the folder formats, for the tests: the same images and boxes in every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("yaml")
from PIL import Image

from fastssd.data import DataError, load_dataset

CLASSES = ("cat", "dog")
WIDTH, HEIGHT = 40, 30
# By split and image: class and corners, which every format can write exactly.
TRUTH = {
    "train": {"a": [("dog", (10, 3, 30, 24))], "b": [("cat", (0, 0, 20, 15)), ("dog", (20, 15, 40, 30))]},
    "val": {"c": [], "d": [("cat", (2, 6, 38, 27))]},
}
Boxes = list[tuple[str, tuple[float, ...]]]


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 50).convert("RGB").save(path)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def voc_xml(boxes: Boxes, name: str = "x.jpg", size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    """An annotation; the corners of box i (from 0) begin on line 7 + 9 * i."""
    lines = ["<annotation>", f"<filename>{name}</filename>"]
    lines += ["<size>", f"<width>{size[0]}</width><height>{size[1]}</height>", "</size>"]
    for label, corners in boxes:
        lines += ["<object>", f"<name>{label}</name><bndbox>"]
        lines += [
            f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        ]
        lines += ["</bndbox>", "<difficult>0</difficult>", "</object>"]
    return "\n".join([*lines, "</annotation>"])


def coco_content(images: dict[str, Boxes], suffix: str = ".jpg") -> dict[str, Any]:
    names = list(images)
    annotations = [
        {"image_id": names.index(name), "category_id": 3 * CLASSES.index(label), "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for name, boxes in images.items()
        for label, (x1, y1, x2, y2) in boxes
    ]
    return {
        "categories": [{"id": 3 * index, "name": name} for index, name in reversed([*enumerate(CLASSES)])],
        "images": [
            {"id": index, "file_name": name + suffix, "width": WIDTH, "height": HEIGHT}
            for index, name in enumerate(names)
        ],
        "annotations": [{"id": index, **annotation} for index, annotation in enumerate(annotations)],
    }


def yolo_rows(boxes: Boxes) -> str:
    return "".join(
        f"{CLASSES.index(label)} {(x1 + x2) / 2 / WIDTH!r} {(y1 + y2) / 2 / HEIGHT!r} "
        f"{(x2 - x1) / WIDTH!r} {(y2 - y1) / HEIGHT!r}\n"
        for label, (x1, y1, x2, y2) in boxes
    )


def write_voc(root: Path) -> None:
    for split, images in TRUTH.items():
        write(root / f"ImageSets/Main/{split}.txt", "\n".join(images) + "\n")
        write(root / f"ImageSets/Main/cat_{split}.txt", "a -1\n")  # from the development kit; not a split
        for name, boxes in images.items():
            write(root / f"Annotations/{name}.xml", voc_xml(boxes, "renamed.jpg"))
            write_image(root / f"JPEGImages/{name}.jpg")


def write_voc_beside(root: Path) -> None:
    for split, images in TRUTH.items():
        for name, boxes in images.items():
            write(root / split / f"{name}.xml", voc_xml(boxes, f"{name}.PNG"))
            write_image(root / split / f"{name}.PNG")


def write_coco(root: Path) -> None:
    for split, images in TRUTH.items():
        write(root / f"annotations/instances_{split}.json", json.dumps(coco_content(images)))
        write(root / f"annotations/captions_{split}.json", json.dumps({"images": [], "annotations": []}))
        for name in images:
            write_image(root / f"images/{split}/{name}.jpg")


def write_coco_beside(root: Path) -> None:
    for split, images in TRUTH.items():
        write(root / split / "_annotations.coco.json", json.dumps(coco_content(images)))
        for name in images:
            write_image(root / split / f"{name}.jpg")


def write_yolo(root: Path) -> None:
    write(root / "data.yaml", "train: ../train/images\nval: val/images\ntest:\nnc: 2\nnames: [cat, dog]\n")
    for split, images in TRUTH.items():
        for name, boxes in images.items():
            write_image(root / split / f"images/{name}.jpg")
            if boxes:
                write(root / split / f"labels/{name}.txt", yolo_rows(boxes))


def write_yolo_lists(root: Path) -> None:
    write(root / "set.yaml", "path: .\ntrain: train.txt\nval: lists/val.txt\nnames:\n  0: cat\n  1: dog\n")
    write(root / "train.txt", "images/a.jpg\n./images/b.jpg\n")
    write(root / "lists/val.txt", "../images/c.jpg\nimages/d.jpg\n")
    for images in TRUTH.values():
        for name, boxes in images.items():
            write_image(root / f"images/{name}.jpg")
            write(root / f"labels/{name}.txt", yolo_rows(boxes))


def write_yolo_plain(root: Path) -> None:
    write(root / "classes.txt", "cat\ndog\n")
    for split, images in TRUTH.items():
        for name, boxes in images.items():
            write_image(root / f"images/{split}/{name}.jpg")
            write(root / f"labels/{split}/{name}.txt", yolo_rows(boxes))


WRITERS = (write_voc, write_voc_beside, write_coco, write_coco_beside, write_yolo, write_yolo_lists, write_yolo_plain)
GOOD = ("dog", (1, 2, 11, 12))
CORNERS = {
    "no width": (5, 5, 5, 9),
    "no area": (7, 7, 7, 7),
    "sliver": (7, 7, 7 + 1e-9, 9),
    "swapped": (9, 5, 5, 9),
    "left": (-2, 5, 9, 9),
    "below": (5, 5, 9, HEIGHT + 2),
    "beside": (-0.9, -0.9, -0.5, -0.5),
    "nan": (float("nan"), 5, 9, 9),
    "infinite": (5, 5, float("inf"), 9),
}


def assert_one_bad_box(root: Path, file: Path, line: int, **options: Any) -> None:
    """The error names file and line of the box, and only this box is left out with on_error="skip"."""
    with pytest.raises(DataError) as caught:
        load_dataset(root, **options)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (str(file), line)
    dataset = load_dataset(root, on_error="skip", **options)
    assert dataset.problems == (problem,)
    assert len(dataset) == 1
    np.testing.assert_allclose(dataset[0].boxes, [GOOD[1]])


BBOX = {"id": 7, "image_id": 0, "category_id": 0}


def write_one_coco(root: Path, annotation: dict[str, Any]) -> Path:
    """One image with GOOD on line 4 and `annotation` on line 5."""
    content = coco_content({"x": [GOOD]})
    good, *_ = content.pop("annotations")
    lines = [
        json.dumps(content)[:-1] + ",",
        '"annotations"',
        ": [",
        json.dumps(good) + ",",
        json.dumps(annotation),
        "]}",
    ]
    write_image(root / "x.jpg")
    return write(root / "annotations.json", "\n".join(lines))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])
