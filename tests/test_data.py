"""Data sets: the three folder formats, what is wrong in them, images, splits, and the generated shapes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("yaml")
from PIL import Image, ImageFile

from fastssd.data import (
    DataError,
    available_splits,
    default_splits,
    images,
    load_dataset,
    read_image,
    shapes,
    shapes_dataset,
)

CLASSES = ("cat", "dog")
WIDTH, HEIGHT = 40, 30
# By image: class and corners, of which every format can write the exact value.
TRUTH = {
    "train": {"a": [("dog", (10, 3, 30, 24))], "b": [("cat", (0, 0, 20, 15)), ("dog", (20, 15, 40, 30))]},
    "val": {"c": [], "d": [("cat", (2, 6, 38, 27))]},
}
Boxes = list[tuple[str, tuple[float, ...]]]


def write_picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 50).convert("RGB").save(path)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def xml(boxes: Boxes, name: str = "x.jpg", size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
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


def coco(pictures: dict[str, Boxes], suffix: str = ".jpg") -> dict[str, Any]:
    names = list(pictures)
    annotations = [
        {"image_id": names.index(name), "category_id": 3 * CLASSES.index(label), "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for name, boxes in pictures.items()
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


def rows(boxes: Boxes) -> str:
    return "".join(
        f"{CLASSES.index(label)} {(x1 + x2) / 2 / WIDTH!r} {(y1 + y2) / 2 / HEIGHT!r} "
        f"{(x2 - x1) / WIDTH!r} {(y2 - y1) / HEIGHT!r}\n"
        for label, (x1, y1, x2, y2) in boxes
    )


def write_voc(root: Path) -> None:
    for split, pictures in TRUTH.items():
        write(root / f"ImageSets/Main/{split}.txt", "\n".join(pictures) + "\n")
        write(root / f"ImageSets/Main/cat_{split}.txt", "a -1\n")  # the development kit's own; no split
        for name, boxes in pictures.items():
            write(root / f"Annotations/{name}.xml", xml(boxes, "renamed.jpg"))
            write_picture(root / f"JPEGImages/{name}.jpg")


def write_voc_beside(root: Path) -> None:
    for split, pictures in TRUTH.items():
        for name, boxes in pictures.items():
            write(root / split / f"{name}.xml", xml(boxes, f"{name}.PNG"))
            write_picture(root / split / f"{name}.PNG")


def write_coco(root: Path) -> None:
    for split, pictures in TRUTH.items():
        write(root / f"annotations/instances_{split}.json", json.dumps(coco(pictures)))
        write(root / f"annotations/captions_{split}.json", json.dumps({"images": [], "annotations": []}))
        for name in pictures:
            write_picture(root / f"images/{split}/{name}.jpg")


def write_coco_beside(root: Path) -> None:
    for split, pictures in TRUTH.items():
        write(root / split / "_annotations.coco.json", json.dumps(coco(pictures)))
        for name in pictures:
            write_picture(root / split / f"{name}.jpg")


def write_yolo(root: Path) -> None:
    write(root / "data.yaml", "train: ../train/images\nval: val/images\ntest:\nnc: 2\nnames: [cat, dog]\n")
    for split, pictures in TRUTH.items():
        for name, boxes in pictures.items():
            write_picture(root / split / f"images/{name}.jpg")
            if boxes:
                write(root / split / f"labels/{name}.txt", rows(boxes))


def write_yolo_lists(root: Path) -> None:
    write(root / "set.yaml", "path: .\ntrain: train.txt\nval: lists/val.txt\nnames:\n  0: cat\n  1: dog\n")
    write(root / "train.txt", "images/a.jpg\n./images/b.jpg\n")
    write(root / "lists/val.txt", "../images/c.jpg\nimages/d.jpg\n")
    for pictures in TRUTH.values():
        for name, boxes in pictures.items():
            write_picture(root / f"images/{name}.jpg")
            write(root / f"labels/{name}.txt", rows(boxes))


def write_yolo_plain(root: Path) -> None:
    write(root / "classes.txt", "cat\ndog\n")
    for split, pictures in TRUTH.items():
        for name, boxes in pictures.items():
            write_picture(root / f"images/{split}/{name}.jpg")
            write(root / f"labels/{split}/{name}.txt", rows(boxes))


WRITERS = (write_voc, write_voc_beside, write_coco, write_coco_beside, write_yolo, write_yolo_lists, write_yolo_plain)


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
@pytest.mark.parametrize("split", [*TRUTH, None])
def test_every_layout_gives_the_same_data(tmp_path: Path, writer: Any, split: str | None) -> None:
    writer(tmp_path)
    dataset = load_dataset(tmp_path, split)
    expected = TRUTH[split] if split else TRUTH["train"] | TRUTH["val"]
    assert available_splits(tmp_path) == default_splits(tmp_path) == ("train", "val")
    assert dataset.class_names == CLASSES
    assert dataset.problems == ()
    assert len({sample.image_id for sample in dataset}) == len(dataset) == len(expected)
    for index, boxes in enumerate(expected.values()):
        sample = dataset[index]
        assert sample.image.shape == (HEIGHT, WIDTH, 3)
        assert sample.image.dtype == np.uint8
        np.testing.assert_allclose(sample.boxes, np.array([box for _, box in boxes], np.float32).reshape(-1, 4))
        assert sample.boxes.dtype == np.float32
        assert [dataset.class_names[label - 1] for label in sample.labels] == [label for label, _ in boxes]
        assert sample.difficult.shape == sample.labels.shape


def test_samples_belong_to_the_caller_and_indices_are_a_list_s(tmp_path: Path) -> None:
    write_voc(tmp_path)
    dataset = pickle.loads(pickle.dumps(load_dataset(tmp_path, "train")))  # as a worker process gets it
    for array in dataset[0][:3]:
        array[:] = 0
    assert dataset[-2].boxes.tolist() == [[10, 3, 30, 24]]
    with pytest.raises(IndexError):
        dataset[2]


# ----------------------------------------------------------------------------------------------------------- classes


def test_classes_come_from_all_splits(tmp_path: Path) -> None:
    for split, label in (("train", "zebra"), ("val", "ant")):
        write(tmp_path / split / "x.xml", xml([(label, (0, 0, 9, 9))]))
        write_picture(tmp_path / split / "x.jpg")
    assert load_dataset(tmp_path, "train").class_names == load_dataset(tmp_path, "val").class_names == ("ant", "zebra")


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_class_names_set_the_labels(tmp_path: Path, writer: Any) -> None:
    writer(tmp_path)
    dataset = load_dataset(tmp_path, "train", class_names=["dog", "emu", "cat"])
    assert dataset.class_names == ("dog", "emu", "cat")
    assert dataset[1].labels.tolist() == [3, 1]
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path, "train", class_names=["cat"])
    assert len(caught.value.problems) == 2
    assert caught.value.problem.line is not None
    skipped = load_dataset(tmp_path, "train", class_names=["cat"], on_error="skip")
    assert [skipped[index].labels.tolist() for index in range(2)] == [[], [1]]


def test_splits_that_disagree_on_categories_are_refused(tmp_path: Path) -> None:
    write_coco(tmp_path)
    content = coco(TRUTH["val"])
    content["categories"][0]["id"], content["categories"][1]["id"] = 0, 3
    write(tmp_path / "annotations/instances_val.json", json.dumps(content))
    with pytest.raises(DataError):
        load_dataset(tmp_path, "train", on_error="skip")


@pytest.mark.parametrize("names", [[], ["cat", "cat"], "cat", [1]])
def test_bad_class_names_are_refused(tmp_path: Path, names: Any) -> None:
    write_voc(tmp_path)
    with pytest.raises(ValueError, match="class_names"):
        load_dataset(tmp_path, class_names=names)


# ------------------------------------------------------------------------------------------------------- wrong boxes

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
    """The problem is named, and skipping leaves out that one box."""
    with pytest.raises(DataError) as caught:
        load_dataset(root, **options)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (str(file), line)
    dataset = load_dataset(root, on_error="skip", **options)
    assert dataset.problems == (problem,)
    assert len(dataset) == 1
    np.testing.assert_allclose(dataset[0].boxes, [GOOD[1]])


@pytest.mark.parametrize("corners", [*CORNERS.values(), ("five", 5, 9, 9), ("1_0", 5, 20, 9), ("", 5, 9, 9)], ids=str)
def test_voc_box(tmp_path: Path, corners: tuple[Any, ...]) -> None:
    file = write(tmp_path / "x.xml", xml([GOOD, ("dog", corners)]))
    write_picture(tmp_path / "x.jpg")
    assert_one_bad_box(tmp_path, file, 17 if isinstance(corners[0], str) else 16)


@pytest.mark.parametrize(
    "content",
    [
        "<name>dog</name>",
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>",
        "<name>emu</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>",
        "<name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        "<difficult>maybe</difficult>",
        "<part><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>",
    ],
)
def test_voc_object(tmp_path: Path, content: str) -> None:
    text = xml([GOOD]).replace("</annotation>", f"<object>{content}</object>\n</annotation>")
    file = write(tmp_path / "x.xml", text)
    write_picture(tmp_path / "x.jpg")
    assert_one_bad_box(tmp_path, file, 15, class_names=CLASSES)


def write_one_coco(root: Path, annotation: dict[str, Any]) -> Path:
    """One image with GOOD on line 4 and `annotation` on line 5."""
    content = coco({"x": [GOOD]})
    good, *_ = content.pop("annotations")
    lines = [
        json.dumps(content)[:-1] + ",",
        '"annotations"',
        ": [",
        json.dumps(good) + ",",
        json.dumps(annotation),
        "]}",
    ]
    write_picture(root / "x.jpg")
    return write(root / "annotations.json", "\n".join(lines))


BBOX = {"id": 7, "image_id": 0, "category_id": 0}


@pytest.mark.parametrize(
    "annotation",
    [
        *({**BBOX, "bbox": [x1, y1, x2 - x1, y2 - y1]} for x1, y1, x2, y2 in CORNERS.values()),
        BBOX,
        {**BBOX, "bbox": [1, 2, 3]},
        {**BBOX, "bbox": ["1", 2, 3, 4]},
        {**BBOX, "bbox": [True, 2, 3, 4]},
        {**BBOX, "bbox": [10**400, 2, 3, 4]},
        {**BBOX, "bbox": [1, 2, 3, 4], "category_id": 1},
        {**BBOX, "bbox": [1, 2, 3, 4], "category_id": []},
        {**BBOX, "bbox": [1, 2, 3, 4], "image_id": 1},
        {**BBOX, "bbox": [1, 2, 3, 4], "image_id": {}},
        {**BBOX, "bbox": [1, 2, 3, 4], "iscrowd": 2},
    ],
    ids=str,
)
def test_coco_box(tmp_path: Path, annotation: dict[str, Any]) -> None:
    assert_one_bad_box(tmp_path, write_one_coco(tmp_path, annotation), 5)


@pytest.mark.parametrize(
    "row",
    [
        "0 0.5 0.5 0 0.5",
        "0 0.5 0.5 -0.1 0.5",
        "0 0.5 0.5 1.2 0.5",
        "0 nan 0.5 0.1 0.1",
        "0 0.5 0.5 inf 0.1",
        "0 0.1 0.1 0.5 0.5 nan 0.2",
        "0 0.5 0.5 0.1",
        "0 0.5 0.5 0.1 0.1 0.9",
        "0",
        "2 0.5 0.5 0.1 0.1",
        "-1 0.5 0.5 0.1 0.1",
        "0.5 0.5 0.5 0.1 0.1",
        "cat 0.5 0.5 0.1 0.1",
        "0 10 10 20 20",
    ],
)
def test_yolo_box(tmp_path: Path, row: str) -> None:
    write(tmp_path / "classes.txt", "cat\ndog\n")
    write_picture(tmp_path / "images/x.jpg")
    assert_one_bad_box(tmp_path, write(tmp_path / "labels/x.txt", rows([GOOD]) + "\n" + row + "\n"), 3)


def test_yolo_polygon_becomes_its_bounding_box(tmp_path: Path) -> None:
    write(tmp_path / "classes.txt", "cat\ndog\n")
    write_picture(tmp_path / "images/x.jpg")
    write(tmp_path / "labels/x.txt", "1 0.25 0.1 0.75 0.2 0.5 0.8\n")
    np.testing.assert_allclose(load_dataset(tmp_path)[0].boxes, [[10, 3, 30, 24]], rtol=1e-6)


def test_a_box_may_leave_the_picture_by_a_pixel_and_is_clipped(tmp_path: Path) -> None:
    write(tmp_path / "x.xml", xml([("dog", (-1, 0, WIDTH + 1, HEIGHT + 0.5))]))
    write_picture(tmp_path / "x.jpg")
    assert load_dataset(tmp_path)[0].boxes.tolist() == [[0, 0, WIDTH, HEIGHT]]


def test_difficult_and_crowds_are_marked(tmp_path: Path) -> None:
    text = xml([GOOD, GOOD]).replace("<difficult>0</difficult>", "<difficult>1</difficult>", 1)
    write(tmp_path / "voc/x.xml", text)
    write_picture(tmp_path / "voc/x.jpg")
    (tmp_path / "coco").mkdir()
    write_one_coco(tmp_path / "coco", {**BBOX, "bbox": [1, 2, 3, 4], "iscrowd": 1})
    assert load_dataset(tmp_path / "voc")[0].difficult.tolist() == [True, False]
    assert load_dataset(tmp_path / "coco")[0].difficult.tolist() == [False, True]


# ---------------------------------------------------------------------------------------------------- wrong images


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def bomb(path: Path) -> None:
    """A small file that states 60000 x 60000 pixels."""
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = (60000).to_bytes(2, "big") * 2
    path.write_bytes(data)


def lead_out(path: Path) -> None:
    outside = path.parents[2] / "outside.jpg"
    path.rename(outside)
    path.symlink_to(outside)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n")


def floats(path: Path) -> None:
    Image.new("F", (WIDTH, HEIGHT)).save(path, "TIFF")


PICTURE_FAULTS = (Path.unlink, truncate, bomb, lead_out, pipe, postscript, floats, lambda path: path.write_bytes(b""))


@pytest.mark.parametrize("fault", PICTURE_FAULTS)
@pytest.mark.parametrize("form", ["voc", "coco", "yolo"])
def test_a_picture_that_cannot_be_used(tmp_path: Path, form: str, fault: Any) -> None:
    root = tmp_path / "set"
    pictures = {"bad": [GOOD], "good": [GOOD]}
    for name, boxes in pictures.items():
        write_picture(root / f"images/{name}.jpg")
        if form == "voc":
            write(root / f"annotations/{name}.xml", xml(boxes))
        if form == "yolo":
            write(root / f"labels/{name}.txt", rows(boxes))
    if form == "coco":
        write(root / "annotations.json", json.dumps(coco(pictures)))
    fault(root / "images/bad.jpg")
    with pytest.raises(DataError) as caught:
        load_dataset(root, class_names=CLASSES)
    assert len(caught.value.problems) == 1
    assert "bad" in str(caught.value)
    dataset = load_dataset(root, class_names=CLASSES, on_error="skip")
    assert dataset.problems == caught.value.problems
    assert len(dataset) == 1
    assert "bad" not in dataset[0].image_id


ENTITIES = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (ENTITIES + xml([("&b;", (1, 1, 9, 9))]), 1),
        (EXTERNAL + xml([("&a;", (1, 1, 9, 9))]), 1),
        ("\n<!DOCTYPE annotation SYSTEM 'a.dtd'>" + xml([GOOD]), 2),
        (xml([("&undefined;", (1, 1, 9, 9))]), 7),
        (xml([GOOD])[:-20], 14),
        (xml([GOOD]).replace("annotation", "note"), 1),
        ("", 1),
        ("\0", 1),
        ('<?xml version="1.0" encoding="utf-99"?>' + xml([GOOD]), 1),
        (xml([GOOD], size=(WIDTH, HEIGHT + 1)), 3),
        (xml([GOOD], size=(0, 0)), 3),
        (xml([GOOD]).replace(f"<width>{WIDTH}</width>", "<width>wide</width>"), 4),
        (xml([GOOD]).replace(f"<width>{WIDTH}</width>", ""), 3),
        (xml([GOOD], "../../outside.jpg"), 2),
        (xml([GOOD], "/etc/passwd"), 2),
    ],
)
def test_voc_annotation_that_cannot_be_used(tmp_path: Path, text: str, line: int) -> None:
    for name in ("bad", "good"):
        write(tmp_path / f"{name}.xml", xml([GOOD]))
        write_picture(tmp_path / f"{name}.jpg")
    file = write(tmp_path / "bad.xml", text)
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (str(file), line)
    assert [sample.image_id for sample in load_dataset(tmp_path, on_error="skip")] == ["good"]


def test_voc_element_depth_and_size_cost_no_more_than_their_bytes(tmp_path: Path) -> None:
    depth = 200_000
    write(tmp_path / "x.xml", xml([GOOD]).replace("</size>", "</size>" + "<a>" * depth + "</a>" * depth))
    write_picture(tmp_path / "x.jpg")
    assert load_dataset(tmp_path)[0].labels.tolist() == [1]


@pytest.mark.parametrize("line", ["a", "missing", "../train/a", "/etc/passwd"])
def test_voc_list(tmp_path: Path, line: str) -> None:
    write_voc(tmp_path)
    file = write(tmp_path / "ImageSets/Main/train.txt", f"a\n\n{line}\n")
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path, "train")
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (str(file), 3)
    assert len(load_dataset(tmp_path, "train", on_error="skip")) == 1


def test_voc_two_pictures_of_one_name_are_told_apart_by_filename(tmp_path: Path) -> None:
    write(tmp_path / "x.xml", xml([GOOD], "x.png"))
    write_picture(tmp_path / "x.jpg", (WIDTH + 1, HEIGHT))
    write_picture(tmp_path / "x.png")
    assert len(load_dataset(tmp_path)) == 1
    write(tmp_path / "x.xml", xml([GOOD], "y.png"))
    with pytest.raises(DataError):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    "image",
    [
        {"id": 0, "file_name": "x.jpg"},
        {"id": 1, "file_name": "../outside.jpg"},
        {"id": 1, "file_name": "/etc/passwd"},
        {"id": 1, "file_name": "nul\0.jpg"},
        {"id": 1, "file_name": "missing.jpg"},
        {"id": 1, "file_name": ""},
        {"id": 1, "file_name": 5},
        {"id": [1], "file_name": "x.jpg"},
        {"file_name": "x.jpg"},
        {"id": 1, "file_name": "x.jpg", "width": 41, "height": 30},
        {"id": 1, "file_name": "x.jpg", "width": "40", "height": 30},
        {"id": 1, "file_name": "x.jpg", "width": 40},
    ],
    ids=str,
)
def test_coco_image(tmp_path: Path, image: dict[str, Any]) -> None:
    root = tmp_path / "set"
    write_picture(root / "x.jpg")
    write_picture(tmp_path / "outside.jpg")
    content = coco({"x": [GOOD]})
    content["images"].append("LINE")
    file = write(root / "annotations.json", json.dumps(content).replace('"LINE"', "\n" + json.dumps(image)))
    with pytest.raises(DataError) as caught:
        load_dataset(root)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (str(file), 2)
    assert len(load_dataset(root, on_error="skip")) == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"images": [],\n"annotations": [', 2),
        ('{"images": [],\n"annotations": [],\n"categories": [,]}', 3),
        ('{"images": [{}\n{}], "annotations": [], "categories": []}', 2),
        ('{"images": [1], "annotations": [], "categories": []}', 1),
        ('{"images": [], "annotations": [], "categories": []} more', 1),
        ('{"images": [], "annotations": [], "categories": [],}', 1),
        ('{"images": [], "annotations": [], "categories": {}}', None),
        ('{"images": [], "annotations": []}', None),
        ('{"images": [' + "9" * 5000 + '], "annotations": [], "categories": []}', 1),
        ('{"info": ' + "[" * 100_000 + ', "images": [], "annotations": [], "categories": []}', 1),
        ("{[1]: 2}", 1),
        ("[]", 1),
        ("", 1),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', 1),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"},\n{"id": 1, "name": "b"}]}', 2),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"},\n{"id": 2, "name": "a"}]}', 2),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_coco_file_that_cannot_be_used(tmp_path: Path, text: str, line: int | None) -> None:
    file = write(tmp_path / "annotations/instances_train.json", text)
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path, on_error="skip")
    assert (caught.value.problem.file, caught.value.problem.line) == (str(file), line)


@pytest.mark.parametrize(
    ("file", "content", "line", "left"),
    [
        ("labels/train/stray.txt", b"0 0.5 0.5 0.1 0.1", None, 2),
        ("labels/train/a.txt", b"\n0 0.5 0.5 0.1 0.1 # \xff", 2, 1),
    ],
)
def test_yolo_label_file_that_cannot_be_used(
    tmp_path: Path, file: str, content: bytes, line: int | None, left: int
) -> None:
    write_yolo_plain(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path, "train")
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (str(tmp_path / file), line)
    assert len(load_dataset(tmp_path, "train", on_error="skip")) == left


@pytest.mark.parametrize(
    "description",
    [
        "names: [cat, dog]\ntrain: ../../outside\nval: val/images",
        "names: [cat, dog]\ntrain: /etc\nval: val/images",
        'names: [cat, dog]\ntrain: "nul\\0"\nval: val/images',
        "names: [cat, dog]\ntrain: missing\nval: val/images",
        "names: [cat, dog]\ntrain: {a: b}\nval: val/images",
        "names: [cat, dog]\nnc: 3\ntrain: train/images\nval: val/images",
        "names: [cat, dog]\nkpt_shape: [17, 3]\ntrain: train/images\nval: val/images",
        "names: [cat, cat]\ntrain: train/images\nval: val/images",
        "names: {a: cat}\ntrain: train/images\nval: val/images",
        "names: cat\ntrain: train/images\nval: val/images",
        "names: [cat\ntrain: train/images",
        "names: [!!python/object/apply:os.system [touch outside]]\ntrain: train/images\nval: val/images",
    ],
)
def test_yolo_description_that_cannot_be_used(tmp_path: Path, description: str) -> None:
    root = tmp_path / "set"
    write_yolo(root)
    (tmp_path / "outside").mkdir()
    write(root / "data.yaml", description)
    with pytest.raises(DataError) as caught:
        load_dataset(root, on_error="skip")
    assert caught.value.problem.file == str(root / "data.yaml")


def test_yolo_class_names_are_text(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    write(tmp_path / "data.yaml", "train: train/images\nval: val/images\nnames: [no, 1.0]\n")
    assert load_dataset(tmp_path, "train").class_names == ("no", "1.0")


def test_yolo_without_any_label_file_is_refused(tmp_path: Path) -> None:
    write_yolo_plain(tmp_path)
    for path in tmp_path.glob("labels/*/*.txt"):
        path.unlink()
    with pytest.raises(DataError):
        load_dataset(tmp_path, "train", on_error="skip")


@pytest.mark.parametrize("folder", ["train", "images"])
def test_a_linked_folder_that_leads_out_is_refused(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "set"
    write_yolo_plain(root)
    target = {"train": root / "images/train", "images": root / "images"}[folder]
    target.rename(tmp_path / "outside")
    target.symlink_to(tmp_path / "outside")
    with pytest.raises(DataError):
        load_dataset(root, on_error="skip")


# ------------------------------------------------------------------------------------------------------------ splits


def write_beside(root: Path, names: list[str]) -> None:
    for name in names:
        write(root / f"{name}.xml", xml([GOOD]))
        write_picture(root / f"{name}.jpg")


def ids(dataset: Any) -> set[str]:
    return {dataset[index].image_id for index in range(len(dataset))}


def test_a_data_set_without_splits_holds_a_fifth_out(tmp_path: Path) -> None:
    names = [f"{index:03}" for index in range(100)]
    write_beside(tmp_path, names)
    assert available_splits(tmp_path) == default_splits(tmp_path) == ("train", "holdout")
    train, holdout = ids(load_dataset(tmp_path, "train")), ids(load_dataset(tmp_path, "holdout"))
    assert train | holdout == ids(load_dataset(tmp_path)) == set(names)
    assert not train & holdout
    assert 10 <= len(holdout) <= 30
    write_beside(tmp_path, ["a", "b", "c"])  # more images move none of the others
    assert ids(load_dataset(tmp_path, "holdout")) >= holdout
    assert ids(load_dataset(tmp_path, "train")) >= train


def test_two_pictures_are_enough_to_hold_one_out(tmp_path: Path) -> None:
    write_beside(tmp_path, ["0", "1"])
    assert len(load_dataset(tmp_path, "train")) == len(load_dataset(tmp_path, "holdout")) == 1


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ("train val trainval test", ("trainval", "test")),
        ("train val trainval", ("train", "val")),
        ("train valid test", ("train", "valid")),
        ("train test", ("train", "test")),
        ("train2017 val2017", ("train2017", "val2017")),
        ("train2014 val2014 train2017 val2017", ("train2014", "val2014")),
        ("default", ("train", "holdout")),
        ("fold1 fold2", None),
        ("train2014 val2017", None),
    ],
)
def test_default_splits(tmp_path: Path, splits: str, expected: tuple[str, str] | None) -> None:
    for split in splits.split():
        write(tmp_path / f"annotations/instances_{split}.json", json.dumps(coco({"x": [GOOD]})))
    write_picture(tmp_path / "images/x.jpg")
    if expected:
        assert default_splits(tmp_path) == expected
        assert all(len(load_dataset(tmp_path, split)) for split in expected if split != "holdout")
    else:
        with pytest.raises(ValueError, match="split"):
            default_splits(tmp_path)


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    write_voc(tmp_path)
    with pytest.raises(ValueError, match=r"trian.*train, val"):
        load_dataset(tmp_path, "trian")


def test_a_folder_of_no_format_or_of_two_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "set/notes.md", "")
    with pytest.raises(DataError, match=r"VOC.*COCO.*YOLO.*notes\.md"):
        load_dataset(tmp_path / "set")
    write_voc(tmp_path / "set")
    write_yolo(tmp_path / "set")
    with pytest.raises(DataError, match="VOC and YOLO"):
        load_dataset(tmp_path / "set")
    for path in (tmp_path / "missing", tmp_path / "set/notes.md"):
        with pytest.raises(DataError):
            load_dataset(path)


def test_pictures_of_background_only_are_legal_and_no_pictures_are_not(tmp_path: Path) -> None:
    write(tmp_path / "x.xml", xml([]))
    write_picture(tmp_path / "x.jpg")
    assert load_dataset(tmp_path, class_names=CLASSES)[0].boxes.shape == (0, 4)
    (tmp_path / "x.jpg").unlink()
    with pytest.raises(DataError):
        load_dataset(tmp_path, on_error="skip")


# ---------------------------------------------------------------------------------------------------------- images

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def two_colours(left: Any, right: Any, mode: str) -> Image.Image:
    image = Image.new(mode, (8, 4), left)
    image.paste(right, (4, 0, 8, 4))
    return image


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.array([[0x1234] * 4 + [0xFF00] * 4] * 4, np.uint16))


def palette_with_transparency(path: Path) -> None:
    image = two_colours(0, 1, "P")
    image.putpalette([*RED, *GREEN])
    image.save(path, transparency=1)


@pytest.mark.parametrize(
    ("name", "save", "left", "right"),
    [
        ("grey.png", lambda path: two_colours(7, 200, "L").save(path), (7, 7, 7), (200, 200, 200)),
        ("bits.png", lambda path: two_colours(0, 1, "1").save(path), (0, 0, 0), (255, 255, 255)),
        ("alpha.png", lambda path: two_colours((*RED, 255), (*BLUE, 0), "RGBA").save(path), RED, (255, 255, 255)),
        ("grey_alpha.png", lambda path: two_colours((9, 255), (9, 0), "LA").save(path), (9, 9, 9), (255, 255, 255)),
        ("palette.png", palette_with_transparency, RED, (255, 255, 255)),
        ("cmyk.jpg", lambda path: two_colours((0, 255, 255, 0), (0, 0, 0, 0), "CMYK").save(path), RED, (255, 255, 255)),
        ("sixteen.png", lambda path: sixteen_bits().save(path), (0x12,) * 3, (0xFF,) * 3),
        ("sixteen.tif", lambda path: sixteen_bits().save(path), (0x12,) * 3, (0xFF,) * 3),
        ("plain.bmp", lambda path: two_colours(RED, BLUE, "RGB").save(path), RED, BLUE),
        ("lossless.webp", lambda path: two_colours(RED, BLUE, "RGB").save(path, lossless=True), RED, BLUE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_pixel_type_becomes_rgb(tmp_path: Path, name: str, save: Any, left: Any, right: Any) -> None:
    save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.shape == (4, 8, 3)
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image[0, 0].astype(int), left, atol=3)
    np.testing.assert_allclose(image[-1, -1].astype(int), right, atol=3)
    assert images.image_size(tmp_path / name) == (8, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3).repeat(16, 0).repeat(16, 1) * 40
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}  # quarter turns to the left, after the mirror
    upright = np.rot90(stored[:, ::-1] if orientation in (2, 4, 5, 7) else stored, turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"x.{suffix}", exif=exif)
    image = read_image(tmp_path / f"x.{suffix}")
    np.testing.assert_allclose(image[:, :, 0].astype(int), upright, atol=4)
    assert images.image_size(tmp_path / f"x.{suffix}") == upright.shape[::-1]


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_is_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (8, 4)).save(tmp_path / "x.jpg", exif=exif)
    assert images.image_size(tmp_path / "x.jpg") == read_image(tmp_path / "x.jpg").shape[1::-1] == (8, 4)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "ppm"])
@pytest.mark.parametrize("pillow_fills_up", [False, True])
def test_a_truncated_picture_is_never_filled_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, pillow_fills_up: bool
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", pillow_fills_up)
    path = tmp_path / f"x.{suffix}"
    write_picture(path)
    whole = path.read_bytes()
    read_image(path)
    for length in (len(whole) // 2, len(whole) - 14):
        path.write_bytes(whole[:length])
        for read in (read_image, images.image_size):
            with pytest.raises(DataError) as caught:
                read(path)
            assert caught.value.problem.file == str(path)


def test_bytes_after_the_end_of_a_picture_are_no_fault(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.jpg")
    with open(tmp_path / "x.jpg", "ab") as file:
        file.write(b"a camera's notes")
    assert images.image_size(tmp_path / "x.jpg") == (WIDTH, HEIGHT)


@pytest.mark.parametrize("size", [None, (WIDTH + 1, HEIGHT)])
def test_a_picture_that_changes_after_loading_is_named(tmp_path: Path, size: tuple[int, int] | None) -> None:
    write_voc(tmp_path)
    dataset = load_dataset(tmp_path, "train")
    path = tmp_path / "JPEGImages/a.jpg"
    write_picture(path, size) if size else truncate(path)
    with pytest.raises(DataError) as caught:
        dataset[0]
    assert caught.value.problem.file == str(path)
    assert str(path) in str(DataError(str(caught.value)))  # as a DataLoader hands it on


# ------------------------------------------------------------------------------------------------------------ shapes


def test_shapes_follow_from_seed_and_index_alone() -> None:
    script = (
        "import sys; from fastssd.data import shapes_dataset; dataset = shapes_dataset(9, seed=5, image_size=64);"
        "samples = [dataset[index] for index in (7, 2)]; assert 'torch' not in sys.modules;"
        "sys.stdout.buffer.write(b''.join(array.tobytes() for sample in samples for array in sample[:3]))"
    )
    other = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout
    dataset = shapes_dataset(20, seed=5, image_size=64)
    mine = [dataset[index] for index in (2, 7)]
    assert other == b"".join(array.tobytes() for sample in reversed(mine) for array in sample[:3])
    assert not np.array_equal(mine[0].image, shapes_dataset(20, seed=6, image_size=64)[2].image)


@pytest.mark.parametrize("size", [32, 256])
def test_shapes_lie_in_the_picture_in_the_sizes_promised(size: int) -> None:
    dataset = shapes_dataset(150, image_size=size)
    samples = [dataset[index] for index in range(len(dataset))]
    boxes = np.concatenate([sample.boxes for sample in samples])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert boxes.min() >= 0
    assert boxes.max() <= size
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert sides.max() <= 0.8 * size + 1
    assert sides.max() > 0.6 * size
    assert np.median(sides) < 0.6 * size
    assert {*np.concatenate([sample.labels for sample in samples])} == {*range(1, len(dataset.class_names) + 1)}
    assert all(1 <= len(sample.labels) <= shapes.MOST_OBJECTS for sample in samples)
    assert all(sample.image.shape == (size, size, 3) for sample in samples)


def test_shapes_boxes_are_tight_to_what_is_drawn() -> None:
    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(60):
        ground = shapes.draw_ground(rng, 256)
        canvas = ground.copy()
        boxes, labels = shapes.draw_objects(rng, canvas)
        if len(labels) == 1:
            drawn = np.linalg.norm(canvas - ground, axis=0) > shapes.CONTRAST / 2
            rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
            expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(boxes[0], expected, atol=1)
            checked += 1
    assert checked >= 5


def test_shapes_overlap_but_stay_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    kept: list[int] = []
    paint = shapes._paint

    def painted(rng: Any, under: Any, coverage: Any) -> bool:
        done = paint(rng, under, coverage)
        drawn.extend([int((coverage > 0.25).sum())] * done)
        return done

    monkeypatch.setattr(shapes, "_paint", painted)
    monkeypatch.setattr(shapes, "_bounds", lambda mask: kept.append(int(mask.sum())) or (0, 0, 1, 1))
    for index in range(40):
        shapes.draw_objects(np.random.default_rng(index), np.zeros((3, 128, 128), np.float32))
    shares = np.array(kept) / np.array(drawn)
    assert shares.min() >= 0.7
    assert (shares < 0.95).mean() > 0.1


def test_shapes_by_name() -> None:
    assert available_splits("shapes") == default_splits("shapes:7") == ("train", "test")
    assert (len(load_dataset("shapes")), len(load_dataset("shapes", "test"))) == (1000, 200)
    train, test = (load_dataset("shapes:10", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (10, 2)
    assert train.class_names == test.class_names == load_dataset("shapes", class_names=train.class_names).class_names
    assert train[0].image_id != test[0].image_id
    assert not np.array_equal(train[0].image, test[0].image)
    for arguments in ({"split": "val"}, {"class_names": ["cat"]}):
        with pytest.raises(ValueError, match=r"split|class_names"):
            load_dataset("shapes", **arguments)
    for arguments in ({"count": 0}, {"seed": -1}, {"image_size": 8}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            shapes_dataset(**arguments)


# -------------------------------------------------------------------------------------------------------- blood cells


@pytest.mark.skipif("FASTSSD_BCCD" not in os.environ, reason="FASTSSD_BCCD does not say where the BCCD data set is")
def test_blood_cells() -> None:
    root = os.environ["FASTSSD_BCCD"]
    assert default_splits(root) == ("trainval", "test")
    with pytest.raises(DataError) as caught:
        load_dataset(root)
    named = {(Path(problem.file).stem, problem.line) for problem in caught.value.problems}
    assert named == {("BloodImage_00338", 163), ("BloodImage_00343", 55)}
    train, test = (load_dataset(root, split, on_error="skip") for split in ("trainval", "test"))
    assert (len(train), len(test)) == (292, 72)
    assert train.class_names == test.class_names == ("Platelets", "RBC", "WBC")
