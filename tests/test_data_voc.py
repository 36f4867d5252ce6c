"""Pascal VOC: boxes, objects and XML files that are wrong, and which image an annotation belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL")

from fastssd.data import DataError, load_dataset
from tests.datasets import (
    CLASSES,
    CORNERS,
    GOOD,
    HEIGHT,
    WIDTH,
    assert_one_bad_box,
    voc_xml,
    write,
    write_image,
    write_voc,
)


@pytest.mark.parametrize("corners", [*CORNERS.values(), ("five", 5, 9, 9), ("1_0", 5, 20, 9), ("", 5, 9, 9)], ids=str)
def test_voc_box(tmp_path: Path, corners: tuple[Any, ...]) -> None:
    file = write(tmp_path / "x.xml", voc_xml([GOOD, ("dog", corners)]))
    write_image(tmp_path / "x.jpg")
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
    text = voc_xml([GOOD]).replace("</annotation>", f"<object>{content}</object>\n</annotation>")
    file = write(tmp_path / "x.xml", text)
    write_image(tmp_path / "x.jpg")
    assert_one_bad_box(tmp_path, file, 15, class_names=CLASSES)


ENTITIES = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (ENTITIES + voc_xml([("&b;", (1, 1, 9, 9))]), 1),
        (EXTERNAL + voc_xml([("&a;", (1, 1, 9, 9))]), 1),
        ("\n<!DOCTYPE annotation SYSTEM 'a.dtd'>" + voc_xml([GOOD]), 2),
        (voc_xml([("&undefined;", (1, 1, 9, 9))]), 7),
        (voc_xml([GOOD])[:-20], 14),
        (voc_xml([GOOD]).replace("annotation", "note"), 1),
        ("", 1),
        ("\0", 1),
        ('<?xml version="1.0" encoding="utf-99"?>' + voc_xml([GOOD]), 1),
        (voc_xml([GOOD], size=(WIDTH, HEIGHT + 1)), 3),
        (voc_xml([GOOD], size=(0, 0)), 3),
        (voc_xml([GOOD]).replace(f"<width>{WIDTH}</width>", "<width>wide</width>"), 4),
        (voc_xml([GOOD]).replace(f"<width>{WIDTH}</width>", ""), 3),
        (voc_xml([GOOD], "../../outside.jpg"), 2),
        (voc_xml([GOOD], "/etc/passwd"), 2),
    ],
)
def test_voc_annotation_that_cannot_be_used(tmp_path: Path, text: str, line: int) -> None:
    for name in ("bad", "good"):
        write(tmp_path / f"{name}.xml", voc_xml([GOOD]))
        write_image(tmp_path / f"{name}.jpg")
    file = write(tmp_path / "bad.xml", text)
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (str(file), line)
    assert [sample.image_id for sample in load_dataset(tmp_path, on_error="skip")] == ["good"]


def test_voc_element_depth_and_size_cost_no_more_than_their_bytes(tmp_path: Path) -> None:
    depth = 200_000
    write(tmp_path / "x.xml", voc_xml([GOOD]).replace("</size>", "</size>" + "<a>" * depth + "</a>" * depth))
    write_image(tmp_path / "x.jpg")
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


def test_voc_filename_decides_between_images_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path / "x.xml", voc_xml([GOOD], "x.png"))
    write_image(tmp_path / "x.jpg", (WIDTH + 1, HEIGHT))
    write_image(tmp_path / "x.png")
    assert len(load_dataset(tmp_path)) == 1
    write(tmp_path / "x.xml", voc_xml([GOOD], "y.png"))
    with pytest.raises(DataError):
        load_dataset(tmp_path)
