"""COCO JSON: boxes, images and files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL")

from fastssd.data import DataError, load_dataset
from tests.datasets import (
    BBOX,
    CORNERS,
    GOOD,
    TRUTH,
    assert_one_bad_box,
    coco_content,
    write,
    write_coco,
    write_image,
    write_one_coco,
)


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
    write_image(root / "x.jpg")
    write_image(tmp_path / "outside.jpg")
    content = coco_content({"x": [GOOD]})
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


def test_splits_that_disagree_on_categories_are_refused(tmp_path: Path) -> None:
    write_coco(tmp_path)
    content = coco_content(TRUTH["val"])
    content["categories"][0]["id"], content["categories"][1]["id"] = 0, 3
    write(tmp_path / "annotations/instances_val.json", json.dumps(content))
    with pytest.raises(DataError):
        load_dataset(tmp_path, "train", on_error="skip")
