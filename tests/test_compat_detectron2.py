"""detectron2's matcher, IoU, NMS and transform: its own answers, from a file, and what they say about edges."""

from __future__ import annotations

import json
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from fastssd import ops
from fastssd.compat import detectron2 as comp

FILE = np.load(Path(__file__).parent / "golden/detectron2.npz")
MATCHERS = json.loads(str(FILE["matchers"]))
GOLDEN = {name: torch.from_numpy(FILE[name]) for name in FILE if name != "matchers"}
SCENES = ("random", "ties", "degenerate", "apart", "no truth", "no boxes")


class Boxes:
    """What detectron2's ``Boxes`` looks like to us."""

    def __init__(self, tensor):
        self.tensor = tensor


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("wrap", [Boxes, lambda boxes: boxes], ids=["Boxes", "tensor"])
def test_iou_and_matches_are_detectron2s(scene, wrap):
    anchors, truths, quality = (GOLDEN[f"{scene}.{name}"] for name in ("anchors", "truths", "quality"))
    found = comp.pairwise_iou(wrap(truths), wrap(anchors))
    same(found, quality)
    for i, options in enumerate(MATCHERS):
        matcher = comp.Matcher(**options)
        for matches, labels in (matcher(found), matcher.match(wrap(truths), wrap(anchors))):
            same(matches, GOLDEN[f"{scene}.{i}.matches"])
            same(labels, GOLDEN[f"{scene}.{i}.labels"])


def test_iou_is_given_in_float32_and_of_any_strides():
    anchors, truths = GOLDEN["random.anchors"], GOLDEN["random.truths"]
    turned = anchors.t().contiguous().t()
    same(comp.pairwise_iou(truths, turned), GOLDEN["random.quality"])
    same(comp.pairwise_iou(truths.half(), anchors.half()), ops.box_iou(truths.half().float(), anchors.half().float()))
    same(comp.matched_boxlist_iou(Boxes(truths), Boxes(anchors[:8])), GOLDEN["random.quality"][:, :8].diagonal())


def test_many_ground_truths_and_other_dtypes_match_alike():
    quality = torch.rand(40000, 3, generator=torch.Generator().manual_seed(0))
    matcher = comp.Matcher([0.3, 0.7], [0, -1, 1], True)
    for matrix in (quality, quality.double(), quality.half()):
        matches, _ = matcher(matrix)
        assert torch.equal(matrix[matches, torch.arange(3)], matrix.max(0).values)
    first = torch.zeros(40000, 2)
    first[[7, 39999], 0] = 0.5  # a tie
    assert matcher(first)[0].tolist() == [7, 0]


def test_a_quality_at_a_threshold_belongs_above_it_in_the_matrix_dtype():
    matcher = comp.Matcher([0.3, 0.7], [0, -1, 1])
    at = torch.tensor(
        [[0.3, 0.7, np.nextafter(np.float32(0.3), np.float32(0)), np.nextafter(np.float32(0.7), np.float32(0))]]
    )
    assert matcher(at)[1].tolist() == [-1, 1, 0, -1]
    gt, box = torch.tensor([[0.0, 0.0, 10.0, 1.0]]), torch.tensor([[0.0, 0.0, 7.0, 1.0]])  # 0.7 in float32 is under 0.7
    assert matcher.match(gt, box)[1].tolist() == [1]


def test_low_quality_keeps_the_argmax_and_labels_one():
    quality = torch.tensor([[0.9, 0.2], [0.5, 0.1]])  # the second ground truth likes box 0 most, which has a better one
    matches, labels = comp.Matcher([0.95], [0, 1], True)(quality)
    assert (matches.tolist(), labels.tolist()) == ([0, 0], [1, 0])
    assert comp.Matcher([0.95], [0, 1], False)(quality)[1].tolist() == [0, 0]


@pytest.mark.parametrize("i", range(3))
def test_transform_is_detectron2s(i):
    transform = comp.Box2BoxTransform(tuple(GOLDEN["weights"][i].tolist()))
    source, target, deltas = (GOLDEN[f"coder.{name}"] for name in ("source", "target", "deltas"))
    close = {"rtol": 2e-6, "atol": 1e-5}  # exp and log are the processor's
    torch.testing.assert_close(transform.get_deltas(source, target), GOLDEN[f"coder.{i}.encoded"], **close)
    torch.testing.assert_close(transform.apply_deltas(deltas, source), GOLDEN[f"coder.{i}.decoded"], **close)
    back = transform.apply_deltas(transform.get_deltas(source, source + 1), source)
    torch.testing.assert_close(back, source + 1, rtol=1e-5, atol=1e-4)
    assert transform.apply_deltas(deltas[:0], source[:0]).shape == (0, 8)
    assert transform.apply_deltas(deltas.half(), source).dtype == torch.float32


def test_transform_is_differentiable():
    source, deltas = GOLDEN["coder.source"], GOLDEN["coder.deltas"][:, :4].clone().requires_grad_()
    boxes = comp.Box2BoxTransform((1.0, 1.0, 1.0, 1.0)).apply_deltas(deltas, source)
    boxes[:, 2].sum().backward()
    width = source[:, 2] - source[:, 0]
    clamped = deltas[:, 2] > np.log(1000 / 16)
    torch.testing.assert_close(deltas.grad[:, 0], width)
    torch.testing.assert_close(deltas.grad[:, 2], (deltas[:, 2].exp() * width / 2).masked_fill(clamped, 0).detach())


def test_scale_is_clamped():
    source = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    far = comp.Box2BoxTransform((1.0, 1.0, 1.0, 1.0)).apply_deltas(torch.tensor([[0.0, 0.0, 99.0, 99.0]]), source)
    torch.testing.assert_close(far, torch.tensor([[-492.0, -492.0, 508.0, 508.0]]))
    near = comp.Box2BoxTransform((1.0, 1.0, 1.0, 1.0), 0.0).apply_deltas(torch.tensor([[0.0, 0.0, 99.0, 9.0]]), source)
    assert torch.equal(near, source)


def test_nms_per_class_wherever_the_boxes_are():
    boxes = torch.tensor([[-9.0, -9, -1, -1], [-9.0, -9, -1, -1], [-9.0, -9, -1, -2]])
    scores, classes = torch.tensor([0.5, 0.9, 0.7]), torch.tensor([0, 1, 1])
    assert comp.batched_nms(Boxes(boxes), scores, classes, 0.5).tolist() == [1, 0]
    assert comp.batched_nms(boxes.half(), scores, classes, 0.5).tolist() == [1, 0]
    assert comp.nms(boxes, scores, 0.5).tolist() == [1]
    assert comp.nms(boxes, scores, 1.5).tolist() == [1, 2, 0]
    assert comp.batched_nms(boxes[:0], scores[:0], classes[:0], 0.5).shape == (0,)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="thresholds"):
        comp.Matcher([0.7, 0.3], [0, -1, 1])
    with pytest.raises(ValueError, match="thresholds"):
        comp.Matcher([0.0], [0, 1])
    with pytest.raises(ValueError, match="labels"):
        comp.Matcher([0.5], [0, 2])
    with pytest.raises(ValueError, match="labels"):
        comp.Matcher([0.5], [0])
    matcher = comp.Matcher([0.5], [0, 1])
    for quality in (torch.rand(3), torch.tensor([[-0.1]]), torch.tensor([[float("nan")]])):
        with pytest.raises(ValueError, match="match_quality_matrix"):
            matcher(quality)
    with pytest.raises(ValueError, match="src_boxes"):
        comp.Box2BoxTransform((1.0, 1.0, 1.0, 1.0)).get_deltas(torch.zeros(1, 4), torch.ones(1, 4))


@pytest.fixture
def host(monkeypatch):
    """Modules with detectron2's names, whose functions say that the host was asked."""
    names = ("structures.boxes", "layers.nms", "modeling.matcher", "structures", "modeling.rpn")
    modules = {name: types.ModuleType(f"detectron2.{name}") for name in names}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"detectron2.{name}", module)
    monkeypatch.setitem(sys.modules, "detectron2", types.ModuleType("detectron2"))

    def pairwise_iou(boxes1, boxes2):
        raise AssertionError("the host was asked")

    class Matcher:
        def __init__(self, thresholds, labels, allow_low_quality_matches=False):
            assert thresholds[0] > 0, "the host was asked"
            self.thresholds, self.labels = [-np.inf, *thresholds, np.inf], labels
            self.allow_low_quality_matches = allow_low_quality_matches

        def __call__(self, matrix):
            raise AssertionError("the host was asked")

        def set_low_quality_matches_(self):
            return "the host's"

    modules["structures.boxes"].pairwise_iou = modules["structures"].pairwise_iou = pairwise_iou
    modules["modeling.rpn"].iou_of_pairs = pairwise_iou  # under another name
    modules["structures.boxes"].matched_boxlist_iou = modules["layers.nms"].batched_nms = lambda *_: "the host's"
    modules["modeling.matcher"].Matcher = Matcher
    return modules


def test_patch_routes_every_module_of_the_host_and_takes_it_back(host):
    theirs = host["structures"].pairwise_iou
    truths, anchors = GOLDEN["random.truths"], GOLDEN["random.anchors"]
    with comp.patch():
        assert host["structures"].pairwise_iou is host["modeling.rpn"].iou_of_pairs is not theirs
        same(host["structures"].pairwise_iou(Boxes(truths), Boxes(anchors)), GOLDEN["random.quality"])
    assert host["structures"].pairwise_iou is host["modeling.rpn"].iou_of_pairs is theirs


def test_under_a_patch_the_host_is_asked_what_ours_refuses(host):
    theirs = host["modeling.matcher"].Matcher
    with comp.patch():
        Matcher = host["modeling.matcher"].Matcher
        assert issubclass(Matcher, theirs)
        matcher = Matcher([0.3, 0.7], [0, -1, 1])
        same(matcher(GOLDEN["random.quality"])[0], comp.Matcher([0.3, 0.7], [0, -1, 1])(GOLDEN["random.quality"])[0])
        assert pickle.loads(pickle.dumps(matcher)).thresholds == matcher.thresholds
        assert matcher.set_low_quality_matches_() == "the host's"
        for refused in (
            lambda: matcher(torch.tensor([[-0.1]])),
            lambda: Matcher([0.0], [0, 1]),
            lambda: host["structures"].pairwise_iou(torch.rand(2, 3), torch.rand(2, 4)),
        ):
            with pytest.raises(AssertionError, match="the host was asked"):
                refused()
        assert host["layers.nms"].batched_nms(torch.rand(2, 4), torch.rand(3), torch.rand(2), 0.5) == "the host's"


def test_live():
    pytest.importorskip("detectron2")
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.matcher import Matcher
    from detectron2.structures import Boxes as HostBoxes
    from detectron2.structures import pairwise_iou

    anchors, truths = HostBoxes(GOLDEN["random.anchors"]), HostBoxes(GOLDEN["random.truths"])
    quality = pairwise_iou(truths, anchors)
    same(comp.pairwise_iou(truths, anchors), quality)
    for options in MATCHERS:
        expected = Matcher(**options)(quality)
        for actual, wanted in zip(comp.Matcher(**options).match(truths, anchors), expected, strict=True):
            same(actual, wanted)
    transform = (comp.Box2BoxTransform((10.0, 10.0, 5.0, 5.0)), Box2BoxTransform((10.0, 10.0, 5.0, 5.0)))
    found, expected = (t.get_deltas(GOLDEN["coder.source"], GOLDEN["coder.target"]) for t in transform)
    torch.testing.assert_close(found, expected)
