"""Anchors that fit a data set: what coverage measures, and that fitting improves it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastssd.detection import MODELS, TINYSSD
from fastssd.detection.anchor_fit import _overlaps, fit_anchors
from fastssd.detection.coverage import anchor_coverage
from fastssd.explain.coverage import coverage_figure
from fastssd.ops import box_iou


def ground_truth(seed, sizes, images=12):
    """Images with boxes of class k around the k-th size, fractions of the image."""
    rng = np.random.default_rng(seed)
    boxes, labels = [], []
    for _ in range(images):
        count = rng.integers(0, 3 * len(sizes))
        label = rng.integers(1, len(sizes) + 1, count)
        sides = np.asarray(sizes)[label - 1, None] * rng.uniform(0.8, 1.25, (count, 2))
        centers = rng.uniform(0, 1, (count, 2))
        boxes.append(np.concatenate([centers - sides / 2, centers + sides / 2], 1).astype(np.float32))
        labels.append(label.astype(np.int64))
    return boxes, labels


def test_coverage_is_the_best_iou_of_all_anchors():
    boxes, labels = ground_truth(0, (0.06, 0.3, 0.9))
    coverage = anchor_coverage(TINYSSD, boxes, labels)
    flat = np.concatenate(boxes)
    np.testing.assert_array_equal(coverage.best_iou, box_iou(flat, TINYSSD.anchors()).max(1))
    np.testing.assert_array_equal(coverage.labels, np.concatenate(labels))
    assert coverage.missed() == (coverage.best_iou < 0.5).mean()
    assert ((coverage.positives > 0) == [len(own) > 0 for own in boxes]).all()


@pytest.mark.parametrize("name", MODELS)
def test_the_nearest_cell_overlaps_most(name):
    """Fitting is cheap because it needs only the nearest cell."""
    preset = MODELS[name].preset
    boxes, labels = ground_truth(1, (0.03, 0.2, 1.2), images=40)
    coverage = anchor_coverage(preset, boxes, labels)
    np.testing.assert_allclose(_overlaps(preset, np.concatenate(boxes)).max(0), coverage.best_iou, atol=1e-5)


def test_fitted_anchors_cover_small_objects_and_keep_the_network():
    boxes, labels = ground_truth(2, (0.06, 0.25))
    fitted = fit_anchors(TINYSSD, boxes, labels)
    assert fitted == fit_anchors(TINYSSD, boxes, labels)
    assert replace(fitted, scales=TINYSSD.scales, aspect_ratios=TINYSSD.aspect_ratios) == TINYSSD
    assert fitted.anchors_per_cell == TINYSSD.anchors_per_cell
    before, after = (anchor_coverage(preset, boxes, labels) for preset in (TINYSSD, fitted))
    small = before.labels == 1
    assert before.missed(small) > 0.9
    assert after.missed(small) < 0.2
    assert after.mean() > before.mean() + 0.1


def test_anchors_that_fit_already_do_not_get_worse():
    scales = ((0.06, 0.12), (0.12, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
    preset = replace(TINYSSD, scales=scales)
    anchors = preset.anchors()[::37]
    boxes, labels = [anchors], [np.ones(len(anchors), np.int64)]
    assert anchor_coverage(fit_anchors(preset, boxes, labels), boxes, labels).mean() > 1 - 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_anchors_have_at_most_four_cells_of_their_level(name):
    boxes, labels = ground_truth(4, (0.02, 0.3, 0.9))
    fitted = fit_anchors(MODELS[name].preset, boxes, labels)
    for (rows, columns), scales in zip(fitted.grid_sizes, fitted.scales, strict=True):
        assert max(scales) * min(rows, columns) <= 4 + 1e-9


def test_no_boxes_to_fit_are_an_error():
    with pytest.raises(ValueError, match="gt_boxes"):
        fit_anchors(TINYSSD, [np.empty((0, 4), np.float32)], [np.empty(0, np.int64)])
    with pytest.raises(ValueError, match="gt_labels"):
        anchor_coverage(TINYSSD, [np.zeros((2, 4), np.float32)], [np.ones(1, np.int64)])


def test_coverage_is_drawn():
    boxes, labels = ground_truth(3, (0.06, 0.25))
    figure = coverage_figure({"tinyssd": TINYSSD}, boxes, labels, ("small", "large", "absent"))
    assert len(figure.axes) == 2
