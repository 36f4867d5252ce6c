"""What torchvision and D2L's published rules answer; ``tests/golden/make_golden.py`` made the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fastssd
from fastssd import ops
from fastssd.backends import available_backends

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "golden.npz"))
pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture(params=available_backends())
def backend(request):
    with fastssd.use_backend(request.param):
        yield


@pytest.mark.parametrize("kind", ["random", "ties"])
def test_iou_is_torchvisions(kind):
    a, b = GOLDEN[f"iou.{kind}.boxes1"], GOLDEN[f"iou.{kind}.boxes2"]
    np.testing.assert_array_equal(ops.box_iou(a, b), GOLDEN[f"iou.{kind}.box_iou"])
    for name in ("generalized_box_iou", "distance_box_iou", "complete_box_iou"):
        np.testing.assert_allclose(getattr(ops, name)(a, b), GOLDEN[f"iou.{kind}.{name}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("threshold", GOLDEN["thresholds"].tolist())
@pytest.mark.parametrize("kind", ["random", "ties"])
def test_nms_is_torchvisions(kind, threshold):
    boxes, scores, idxs = (GOLDEN[f"nms.{kind}.{name}"] for name in ("boxes", "scores", "idxs"))
    np.testing.assert_array_equal(ops.nms(boxes, scores, threshold), GOLDEN[f"nms.{kind}.nms.{threshold}"])
    comp = ops.batched_nms(boxes, scores, idxs, threshold)
    np.testing.assert_array_equal(comp, GOLDEN[f"nms.{kind}.batched_nms.{threshold}"])


@pytest.mark.parametrize("force", ["best", "bipartite"])
def test_matching_is_torchvisions_and_d2ls(force):
    comp = ops.match_anchors(GOLDEN["match.anchors"], GOLDEN["match.gt_boxes"], force_match=force)
    np.testing.assert_array_equal(comp.gt_idx, GOLDEN[f"match.{force}"])


def test_coding_is_torchvisions():
    anchors = GOLDEN["match.anchors"]
    encoded = ops.encode_boxes(GOLDEN["coding.boxes"], anchors)
    np.testing.assert_allclose(encoded, GOLDEN["coding.encoded"], rtol=1e-5, atol=1e-5)
    decoded = ops.decode_boxes(GOLDEN["coding.encoded"] * np.float32(0.7), anchors)
    np.testing.assert_allclose(decoded, GOLDEN["coding.decoded"], rtol=1e-5, atol=1e-4)


def test_anchors_are_d2ls_and_torchvisions():
    scales = [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)]
    comp = ops.grid_anchors([32, 16, 8, 4, 1], scales, dtype=np.float64)
    np.testing.assert_allclose(comp, GOLDEN["anchors.d2l"], rtol=0, atol=1e-12)
    comp = ops.grid_anchors([10], [(0.2, (0.2 * 0.37) ** 0.5)], image_size=(300, 300))
    np.testing.assert_allclose(comp, GOLDEN["anchors.torchvision"], rtol=0, atol=1e-4)


def test_postprocessing_is_torchvisions():
    found = ops.postprocess_detections(
        GOLDEN["post.logits"],
        GOLDEN["post.deltas"],
        GOLDEN["post.anchors"],
        topk=40,
        max_detections=50,
        clip=(100, 100),
    )
    for image, count in enumerate(found.counts):
        np.testing.assert_array_equal(found.labels[image, :count], GOLDEN[f"post.{image}.labels"])
        np.testing.assert_allclose(found.boxes[image, :count], GOLDEN[f"post.{image}.boxes"], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(found.scores[image, :count], GOLDEN[f"post.{image}.scores"], rtol=1e-5)
