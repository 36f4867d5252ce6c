"""Dive into Deep Learning's functions: the book's numbers, from a file, and live where package d2l imports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from fastssd import ops
from fastssd.compat import d2l as comp

GOLDEN = {name: torch.from_numpy(value) for name, value in np.load(Path(__file__).parent / "golden/d2l.npz").items()}
KINDS = ("random", "ties")


def equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """As numbers: exp and log may differ in the last bits of a processor's own."""
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=1e-6)


def test_anchors_are_the_books():
    equal(comp.multibox_prior(torch.zeros(2, 3, 5, 8), [0.75, 0.5, 0.25], [1, 2, 0.5]), GOLDEN["prior"])
    assert comp.multibox_prior(torch.zeros(1, 3, 561, 728), [0.75, 0.5, 0.25], [1, 2, 0.5]).shape == (1, 2042040, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_the_books(kind):
    labels, anchors = GOLDEN[f"{kind}.labels"], GOLDEN["anchors"]
    before = labels.clone()
    for name, actual in zip(("offsets", "mask", "classes"), comp.multibox_target(anchors, labels), strict=True):
        equal(actual, GOLDEN[f"{kind}.{name}"])
    assert torch.equal(labels, before)
    assert torch.equal(comp.box_iou(anchors[0], labels[0, :, 1:]), GOLDEN[f"{kind}.iou"])
    for threshold in (0.3, 0.5, 0.7):
        matched = comp.assign_anchor_to_bbox(labels[0, :, 1:], anchors[0], torch.device("cpu"), threshold)
        assert torch.equal(matched, GOLDEN[f"{kind}.assigned.{threshold}"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.7])
def test_nms_is_the_books(kind, threshold):
    kept = comp.nms(GOLDEN[f"{kind}.boxes"], GOLDEN[f"{kind}.scores"], threshold)
    assert torch.equal(kept, GOLDEN[f"{kind}.nms.{threshold}"])


def test_a_threshold_is_compared_in_the_boxes_dtype():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 7.0, 1.0]])  # IoU 0.7 in float32, which is under 0.7
    assert comp.assign_anchor_to_bbox(boxes[:1], boxes, "cpu", 0.7).tolist() == [0, 0]
    iou = comp.box_iou(boxes[:1], boxes[1:]).item()
    assert iou < 0.7
    boxes = torch.tensor([[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 3.0, 1.0]])  # and 0.3 is over 0.3
    assert comp.box_iou(boxes[:1], boxes[1:]).item() > 0.3
    assert comp.nms(boxes, torch.tensor([0.9, 0.8]), 0.3).tolist() == [0, 1]


def test_detections_are_the_books():
    arguments = GOLDEN["probabilities"], GOLDEN["predictions"], GOLDEN["anchors"]
    equal(comp.multibox_detection(*arguments), GOLDEN["detected"])
    equal(comp.multibox_detection(*arguments, nms_threshold=0.3, pos_threshold=0.8), GOLDEN["detected.0.3"])


def test_the_books_example():
    """Section 14.4: a dog and a cat, five anchors; then four predictions, one of which NMS drops."""
    truths = torch.tensor([[0, 0.1, 0.08, 0.52, 0.92], [1, 0.55, 0.2, 0.9, 0.88]])
    anchors = torch.tensor(
        [
            [0, 0.1, 0.2, 0.3],
            [0.15, 0.2, 0.4, 0.4],
            [0.63, 0.05, 0.88, 0.98],
            [0.66, 0.45, 0.8, 0.8],
            [0.57, 0.3, 0.92, 0.9],
        ]
    )
    offsets, mask, classes = comp.multibox_target(anchors[None], truths[None])
    assert classes.tolist() == [[0, 1, 2, 0, 2]]
    assert mask.reshape(5, 4)[:, 0].tolist() == [0, 1, 1, 0, 1]
    found = comp.offset_inverse(anchors, offsets.reshape(5, 4))[[1, 2, 4]]
    torch.testing.assert_close(found, truths[[0, 1, 1], 1:], rtol=1e-4, atol=1e-4)

    anchors = torch.tensor(
        [[0.1, 0.08, 0.52, 0.92], [0.08, 0.2, 0.56, 0.95], [0.15, 0.3, 0.62, 0.91], [0.55, 0.2, 0.9, 0.88]]
    )
    scores = torch.tensor([[0] * 4, [0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.9]])
    output = comp.multibox_detection(scores[None], torch.tensor([[0] * 16]), anchors[None], nms_threshold=0.5)
    assert output[0, :, 0].tolist() == [0, 1, -1, -1]
    torch.testing.assert_close(output[0, :, 1], torch.tensor([0.9, 0.9, 0.8, 0.7]))
    torch.testing.assert_close(output[0, :, 2:], anchors[[0, 3, 1, 2]])


def test_offsets_are_differentiable():
    anchors = GOLDEN["anchors"][0].double()
    boxes = (anchors + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: comp.offset_boxes(anchors, b), boxes)
    offsets = torch.zeros_like(anchors, requires_grad=True)
    assert torch.autograd.gradcheck(lambda o: comp.offset_inverse(anchors, o), offsets)
    probabilities = GOLDEN["probabilities"].clone().requires_grad_()
    found = comp.multibox_detection(probabilities, GOLDEN["predictions"], GOLDEN["anchors"])
    found[..., 1].sum().backward()
    assert probabilities.grad.abs().sum() > 0


def test_indices_above_float32():
    """Anchors x ground truths > 2**24, where the book's division of indices in float32 picks other anchors."""
    anchors = comp.multibox_prior(torch.zeros(1, 3, 561, 728), [0.75, 0.5, 0.25], [1, 2, 0.5])[0]
    corner = torch.rand(9, 2, generator=torch.Generator().manual_seed(0)) * 0.05 + torch.tensor([0.5, 0.98])
    truths = torch.cat([corner, corner + 0.09], 1)  # at the lower edge, where indices are largest, under the threshold
    matched = comp.assign_anchor_to_bbox(truths, anchors, "cpu")
    owners = (matched >= 0).nonzero().flatten()
    assert len(owners) == 9
    overlap = ops.box_iou(anchors, truths)
    for anchor in owners:
        assert overlap[anchor, matched[anchor]] == overlap[:, matched[anchor]].max()


def test_what_the_book_leaves_open():
    anchors, labels = GOLDEN["anchors"], GOLDEN["random.labels"]
    offsets, mask, classes = comp.multibox_target(anchors, labels[:, :0])  # no ground truth at all
    assert not offsets.any()
    assert not mask.any()
    assert not classes.any()
    matched = comp.assign_anchor_to_bbox(labels[0, :, 1:], anchors[0, :2], "cpu")  # more ground truths than anchors
    assert len(set(matched.tolist())) == 2
    assert comp.nms(torch.zeros(0, 4), torch.zeros(0), 0.5).shape == (0,)
    with pytest.raises(ValueError, match="labels"):
        comp.multibox_target(anchors, labels[..., 1:])
    with pytest.raises(ValueError, match="iou_threshold"):
        comp.nms(GOLDEN["random.boxes"], GOLDEN["random.scores"], 1.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_what_the_cpu_gives():
    names = ("random.labels", "probabilities", "predictions", "anchors")
    here = [GOLDEN[name] for name in names]
    results = []
    for labels, probabilities, predictions, anchors in (here, [x.cuda() for x in here]):
        found = [
            *comp.multibox_target(anchors, labels),
            comp.multibox_detection(probabilities, predictions, anchors),
            comp.multibox_prior(anchors[None], [0.3, 0.4], [1, 2]),
        ]
        assert all(x.device == anchors.device for x in found)
        results.append(found)
    for one, other in zip(*results, strict=True):
        equal(one, other.cpu())


def test_live_package_on_our_kernels():
    ref = pytest.importorskip("d2l.torch")
    generator = torch.Generator().manual_seed(5)
    before = ref.multibox_target
    for _ in range(10):
        data = torch.zeros(1, 1, *torch.randint(1, 9, (2,), generator=generator).tolist())
        anchors = ref.multibox_prior(data, sizes=[0.4, 0.3], ratios=[1, 2, 0.5])
        corner = torch.rand(2, 3, 2, generator=generator) * 0.6
        truths = torch.cat([corner, corner + torch.rand(2, 3, 2, generator=generator) * 0.4 + 0.01], -1)
        labels = torch.cat([torch.randint(0, 3, (2, 3, 1), generator=generator), truths], -1)
        scores = (torch.randn(2, 4, anchors.shape[1], generator=generator) * 3).softmax(1)
        offsets = torch.randn(2, anchors.shape[1] * 4, generator=generator)
        expected = [*ref.multibox_target(anchors, labels), ref.multibox_detection(scores, offsets, anchors)]
        with comp.patch():
            assert ref.multibox_target is not before
            assert torch.equal(ref.multibox_prior(data, sizes=[0.4, 0.3], ratios=[1, 2, 0.5]), anchors)
            actual = [*ref.multibox_target(anchors, labels), ref.multibox_detection(scores, offsets, anchors)]
        for one, other in zip(actual, expected, strict=True):
            equal(one, other)
    assert ref.multibox_target is before
