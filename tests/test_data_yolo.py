"""YOLO text: rows, label files and descriptions that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")

from fastssd.data import DataError, load_dataset
from tests.datasets import GOOD, assert_one_bad_box, write, write_image, write_yolo, write_yolo_plain, yolo_rows


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
    write_image(tmp_path / "images/x.jpg")
    assert_one_bad_box(tmp_path, write(tmp_path / "labels/x.txt", yolo_rows([GOOD]) + "\n" + row + "\n"), 3)


def test_yolo_polygon_becomes_its_bounding_box(tmp_path: Path) -> None:
    write(tmp_path / "classes.txt", "cat\ndog\n")
    write_image(tmp_path / "images/x.jpg")
    write(tmp_path / "labels/x.txt", "1 0.25 0.1 0.75 0.2 0.5 0.8\n")
    np.testing.assert_allclose(load_dataset(tmp_path)[0].boxes, [[10, 3, 30, 24]], rtol=1e-6)


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


def test_yolo_class_names_are_strings(tmp_path: Path) -> None:
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
def test_yolo_linked_folder_that_leads_out_is_refused(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "set"
    write_yolo_plain(root)
    target = {"train": root / "images/train", "images": root / "images"}[folder]
    target.rename(tmp_path / "outside")
    target.symlink_to(tmp_path / "outside")
    with pytest.raises(DataError):
        load_dataset(root, on_error="skip")
