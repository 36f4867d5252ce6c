"""Evaluation: metrics and kinds of errors, compared with values by hand, and the report."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fastssd.detection import ImageDetections
from fastssd.evaluation import GroundTruth, coco_metrics, confusion_matrix, find_errors, voc_metrics
from fastssd.evaluation.errors import BACKGROUND, BADLY_PLACED, CORRECT, DUPLICATE, IGNORED, WRONG_CLASS
from fastssd.evaluation.report import write_report

BOXES = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]], np.float32)


def found(boxes, scores, labels):
    return ImageDetections(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels))


def truth(boxes, labels, difficult=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    mask = np.zeros(len(boxes), bool) if difficult is None else np.array(difficult, bool)
    return GroundTruth(boxes, np.array(labels, np.int64), mask)


def test_coco_by_hand():
    there = truth(BOXES, [1, 1, 2], [False, False, True])
    # Class 1: an exact detection, then a wrong one: recall 0.5 at precision 1. Class 2: only a difficult box.
    seen = found([BOXES[0], [70, 70, 80, 80], BOXES[2]], [0.9, 0.8, 0.99], [1, 1, 2])
    metrics = coco_metrics([seen], [there], ("a", "b"), by_size=True)
    assert metrics["AP50"] == metrics["AP"] == metrics["AP_small"] == pytest.approx(51 / 101)
    assert metrics["AR"] == 0.5
    assert metrics["AP_large"] is None
    assert metrics["per_class"]["b"]["AP"] is None
    nothing = found([], [], [])
    assert coco_metrics([nothing], [there], ("a", "b"))["AP50"] == 0
    assert coco_metrics([seen], [truth([], [])], ("a", "b"))["AP50"] is None
    with pytest.raises(ValueError, match="detections"):
        coco_metrics([], [there], ("a", "b"))


def test_voc_by_hand():
    there = [truth(BOXES[:2], [1, 1]), truth(BOXES, [1, 1, 2], [False, True, False])]
    seen = [
        found([BOXES[0], BOXES[0], [70, 70, 80, 80]], [0.9, 0.8, 0.3], [1, 1, 1]),  # right, duplicate, wrong
        found([BOXES[1], BOXES[0]], [0.95, 0.5], [1, 1]),  # difficult, right
    ]
    metrics = voc_metrics(seen, there, ("a", "b", "c"))
    # Of three: right at 0.9, wrong at 0.8, right at 0.5, wrong at 0.3. Precision 1, 1/2, 2/3, 1/2; recall 1/3 to 2/3.
    assert metrics["per_class"]["a"]["AP12"] == pytest.approx((1 + 2 / 3) / 3)
    assert metrics["per_class"]["a"]["AP07"] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    assert metrics["per_class"]["b"] == {"AP07": 0.0, "AP12": 0.0}
    assert metrics["per_class"]["c"] == {"AP07": None, "AP12": None}
    assert metrics["AP12"] == pytest.approx((1 + 2 / 3) / 6)


def test_every_kind_of_error():
    there = truth([*BOXES, [100, 0, 110, 10]], [1, 2, 1, 1], [False, False, True, False])
    seen = found(
        [[0, 0, 10, 11], BOXES[0], [2, 0, 12, 22], BOXES[1], BOXES[2], [80, 80, 90, 90], [100, 0, 110, 30]],
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],
        [1, 1, 1, 1, 1, 2, 1],
    )
    errors = find_errors(seen, there)
    assert errors.kind.tolist() == [CORRECT, DUPLICATE, BADLY_PLACED, WRONG_CLASS, IGNORED, BACKGROUND, BADLY_PLACED]
    assert errors.gt_idx.tolist() == [0, 0, 0, 1, 2, -1, 3]
    assert errors.missed.tolist() == [False, True, False, True]
    assert errors.total == 7
    nothing = find_errors(found([], [], []), truth([], []))
    assert nothing.total == 0


def test_confusion_by_hand():
    there = truth([*BOXES, [100, 0, 110, 10]], [1, 2, 1, 1], [False, False, True, False])
    seen = found([BOXES[0], BOXES[1], BOXES[2], [80, 80, 90, 90], BOXES[0]], [0.9, 0.8, 0.7, 0.6, 0.1], [1, 1, 2, 2, 2])
    # Right; class 2 detected as class 1; a difficult box, which does not count; background; below the threshold.
    assert confusion_matrix([seen], [there], 2).tolist() == [[1, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_the_report_is_self_contained_and_shows_the_worst_images_first(tmp_path):
    there = [truth(BOXES, [1, 1, 2]), truth(BOXES, [1, 1, 2]), truth([], [])]
    seen = [found([BOXES[0]], [0.9], [1]), found(BOXES, [0.9, 0.8, 0.7], [1, 1, 2]), found(BOXES[:1], [0.9], [2])]
    read = []

    def image_at(index):
        read.append(index)
        return np.full((64, 80, 3), 90, np.uint8), f"image <{index}>"

    write_report(tmp_path / "report.html", seen, there, ("a", "b & c"), image_at, title="a test")
    page = (tmp_path / "report.html").read_text()
    assert read == [0, 2]  # two missed, then one wrong; the image without errors is not shown
    assert page.count("data:image/jpeg;base64") == 2
    assert page.count("<svg") == 3
    assert "b &amp; c" in page
    assert "image &lt;0&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)  # loads nothing
