"""What all folder formats share: the same data from every layout, classes, splits, images that cannot be used."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from fastssd.data import DataError, available_splits, default_splits, load_dataset
from tests.datasets import (
    BBOX,
    CLASSES,
    GOOD,
    HEIGHT,
    TRUTH,
    WIDTH,
    WRITERS,
    coco_content,
    truncate,
    voc_xml,
    write,
    write_image,
    write_one_coco,
    write_voc,
    write_yolo,
    yolo_rows,
)


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


def test_samples_may_be_written_to_and_are_indexed_like_a_list(tmp_path: Path) -> None:
    write_voc(tmp_path)
    dataset = pickle.loads(pickle.dumps(load_dataset(tmp_path, "train")))  # as for a worker process
    for array in dataset[0][:3]:
        array[:] = 0
    assert dataset[-2].boxes.tolist() == [[10, 3, 30, 24]]
    with pytest.raises(IndexError):
        dataset[2]


def test_a_folder_of_no_format_or_of_two_is_refused_with_its_content(tmp_path: Path) -> None:
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


def test_classes_come_from_all_splits(tmp_path: Path) -> None:
    for split, label in (("train", "zebra"), ("val", "ant")):
        write(tmp_path / split / "x.xml", voc_xml([(label, (0, 0, 9, 9))]))
        write_image(tmp_path / split / "x.jpg")
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


@pytest.mark.parametrize("names", [[], ["cat", "cat"], "cat", [1]])
def test_bad_class_names_are_refused(tmp_path: Path, names: Any) -> None:
    write_voc(tmp_path)
    with pytest.raises(ValueError, match="class_names"):
        load_dataset(tmp_path, class_names=names)


def test_a_box_may_reach_a_pixel_beyond_the_image_and_is_clipped(tmp_path: Path) -> None:
    write(tmp_path / "x.xml", voc_xml([("dog", (-1, 0, WIDTH + 1, HEIGHT + 0.5))]))
    write_image(tmp_path / "x.jpg")
    assert load_dataset(tmp_path)[0].boxes.tolist() == [[0, 0, WIDTH, HEIGHT]]


def test_difficult_and_crowds_are_marked(tmp_path: Path) -> None:
    text = voc_xml([GOOD, GOOD]).replace("<difficult>0</difficult>", "<difficult>1</difficult>", 1)
    write(tmp_path / "voc/x.xml", text)
    write_image(tmp_path / "voc/x.jpg")
    (tmp_path / "coco").mkdir()
    write_one_coco(tmp_path / "coco", {**BBOX, "bbox": [1, 2, 3, 4], "iscrowd": 1})
    assert load_dataset(tmp_path / "voc")[0].difficult.tolist() == [True, False]
    assert load_dataset(tmp_path / "coco")[0].difficult.tolist() == [False, True]


def bomb(path: Path) -> None:
    """A small file whose header states 60000 x 60000 pixels."""
    data = bytearray(path.read_bytes())
    size_start = data.index(b"\xff\xc0") + 5
    data[size_start : size_start + 4] = (60000).to_bytes(2, "big") * 2
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


IMAGE_FAULTS = (Path.unlink, truncate, bomb, lead_out, pipe, postscript, floats, lambda path: path.write_bytes(b""))


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
@pytest.mark.parametrize("form", ["voc", "coco", "yolo"])
def test_an_image_that_cannot_be_used(tmp_path: Path, form: str, fault: Any) -> None:
    root = tmp_path / "set"
    images = {"bad": [GOOD], "good": [GOOD]}
    for name, boxes in images.items():
        write_image(root / f"images/{name}.jpg")
        if form == "voc":
            write(root / f"annotations/{name}.xml", voc_xml(boxes))
        if form == "yolo":
            write(root / f"labels/{name}.txt", yolo_rows(boxes))
    if form == "coco":
        write(root / "annotations.json", json.dumps(coco_content(images)))
    fault(root / "images/bad.jpg")
    with pytest.raises(DataError) as caught:
        load_dataset(root, class_names=CLASSES)
    assert len(caught.value.problems) == 1
    assert "bad" in str(caught.value)
    dataset = load_dataset(root, class_names=CLASSES, on_error="skip")
    assert dataset.problems == caught.value.problems
    assert len(dataset) == 1
    assert "bad" not in dataset[0].image_id


def test_images_of_background_only_are_legal_but_no_images_are_not(tmp_path: Path) -> None:
    write(tmp_path / "x.xml", voc_xml([]))
    write_image(tmp_path / "x.jpg")
    assert load_dataset(tmp_path, class_names=CLASSES)[0].boxes.shape == (0, 4)
    (tmp_path / "x.jpg").unlink()
    with pytest.raises(DataError):
        load_dataset(tmp_path, on_error="skip")


def write_beside(root: Path, names: list[str]) -> None:
    for name in names:
        write(root / f"{name}.xml", voc_xml([GOOD]))
        write_image(root / f"{name}.jpg")


def ids(dataset: Any) -> set[str]:
    return {dataset[index].image_id for index in range(len(dataset))}


def test_a_fifth_is_held_out_of_a_data_set_without_splits(tmp_path: Path) -> None:
    names = [f"{index:03}" for index in range(100)]
    write_beside(tmp_path, names)
    assert available_splits(tmp_path) == default_splits(tmp_path) == ("train", "holdout")
    train, holdout = ids(load_dataset(tmp_path, "train")), ids(load_dataset(tmp_path, "holdout"))
    assert train | holdout == ids(load_dataset(tmp_path)) == set(names)
    assert not train & holdout
    assert 10 <= len(holdout) <= 30
    write_beside(tmp_path, ["a", "b", "c"])  # new images do not move the others to another split
    assert ids(load_dataset(tmp_path, "holdout")) >= holdout
    assert ids(load_dataset(tmp_path, "train")) >= train


def test_two_images_are_enough_to_hold_one_out(tmp_path: Path) -> None:
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
        write(tmp_path / f"annotations/instances_{split}.json", json.dumps(coco_content({"x": [GOOD]})))
    write_image(tmp_path / "images/x.jpg")
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


@pytest.mark.skipif("FASTSSD_BCCD" not in os.environ, reason="FASTSSD_BCCD is not set to the BCCD folder")
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
