"""``fastssd.compat.torchvision``: its parts against golden data, whole detectors against torchvision where it imports.

The second part runs by ``make test-hosts``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from fastssd.compat import torchvision as compat
from fastssd.compat.torchvision.focal import focal_loss
from fastssd.compat.torchvision.points import match_points

GOLDEN = {
    name: torch.from_numpy(value) if value.dtype.kind != "U" else str(value)
    for name, value in np.load(Path(__file__).parent / "golden" / "torchvision.npz").items()
}


def same(comp, ref):
    """Equal values, shape and dtype."""
    torch.testing.assert_close(comp, ref, rtol=0, atol=0, equal_nan=True)


def close(comp, ref):
    torch.testing.assert_close(comp, ref, rtol=2e-6, atol=2e-6, equal_nan=True)


# --- parts, against golden data -------------------------------------------------------------------------------------

MATCHERS = {
    "low_quality": compat.Matcher(0.7, 0.3, allow_low_quality_matches=True),
    "threshold": compat.Matcher(0.7, 0.3),
    "ssd": compat.SSDMatcher(0.5),
}


@pytest.mark.parametrize("name", MATCHERS)
def test_matchers_from_a_matrix_and_from_boxes(name):
    anchors, truths = GOLDEN["match.anchors"], [GOLDEN[f"match.{i}.boxes"] for i in range(3)]
    batch = MATCHERS[name].match_boxes(anchors, [*truths, torch.zeros(0, 4)])
    for image, boxes in enumerate(truths):
        same(MATCHERS[name](compat.box_iou(boxes, anchors)), GOLDEN[f"match.{image}.{name}"])
        same(batch[image], GOLDEN[f"match.{image}.{name}"])
    assert (batch[3] == -1).all()


def test_ssd_matcher_claims_at_any_overlap_and_the_last_ground_truth_wins():
    quality = torch.tensor([[0.0, 0.0, 0.0], [0.4, 0.4, 0.1], [0.3, 0.2, 0.1]])
    same(compat.SSDMatcher(0.5)(quality), torch.tensor([2, -1, -1]))


def test_matchers_compare_thresholds_in_the_dtype_of_the_qualities():
    just = torch.tensor([[0.7]])  # below 0.7 in double
    same(compat.Matcher(0.7, 0.3)(just), torch.tensor([0]))


def test_matchers_take_many_ground_truths_and_nan():
    quality = torch.rand(200, 50, generator=torch.Generator().manual_seed(0))
    same(compat.Matcher(0.0, 0.0)(quality), quality.max(0).indices)
    quality[3, 7] = torch.nan
    same(compat.Matcher(0.0, 0.0)(quality[:9]), quality[:9].max(0).indices)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_matchers_refuse_an_empty_matrix(shape):
    for matcher in MATCHERS.values():
        with pytest.raises(ValueError, match="boxes available"):
            matcher(torch.zeros(shape))


def test_matcher_refuses_thresholds_in_the_wrong_order():
    with pytest.raises(AssertionError):
        compat.Matcher(0.3, 0.7)


def test_box_coder():
    coder = compat.BoxCoder((10.0, 9.0, 5.0, 4.0))
    boxes, proposals, codes = (GOLDEN[f"coder.{name}"] for name in ("boxes", "proposals", "codes"))
    close(coder.encode_single(boxes, proposals), GOLDEN["coder.encoded"])
    decoded = coder.decode_single(codes, proposals)
    torch.testing.assert_close(decoded, GOLDEN["coder.decoded"], rtol=2e-6, atol=1e-4)
    parts = coder.encode([boxes[:15], boxes[15:]], [proposals[:15], proposals[15:]])
    assert [len(part) for part in parts] == [15, 25]
    assert coder.decode(codes, [proposals[:15], proposals[15:]]).shape == (40, 3, 4)
    assert coder.decode(codes[:0], [proposals[:0]]).shape == (0, 12)
    with pytest.raises(AssertionError):
        coder.decode(codes, proposals)


def test_box_coder_clips_large_sizes_only():
    coder, anchor = compat.BoxCoder((1.0, 1.0, 1.0, 1.0)), torch.tensor([[0.0, 0, 16, 16]])
    large, small = (coder.decode_single(torch.tensor([[0.0, 0, size, size]]), anchor)[0] for size in (50.0, -50.0))
    assert (large[2] - large[0]).item() == pytest.approx(1000)
    assert (small[2] - small[0]).item() == 0


def test_box_coder_is_differentiable():
    coder = compat.BoxCoder((10.0, 10.0, 5.0, 5.0))
    codes = GOLDEN["coder.codes"][:5, :4].double().requires_grad_()
    assert torch.autograd.gradcheck(coder.decode_single, (codes, GOLDEN["coder.proposals"][:5].double()))


@pytest.mark.parametrize("name", ["steps", "default"])
def test_default_boxes_are_torchvisions_bit_for_bit(name):
    class Images:
        tensors, image_sizes = torch.zeros(2, 3, 60, 44), [(60, 44)] * 2

    options = {"scales": [0.3, 0.9, 1.4], "steps": [13, 31]} if name == "steps" else {"clip": False}
    generator = compat.DefaultBoxGenerator([[2], [2, 3]], **options)
    first, second = generator(Images, [torch.zeros(2, 1, 5, 4), torch.zeros(2, 1, 2, 1)])
    same(first, GOLDEN[f"anchors.{name}"])
    same(second, first)
    assert first.data_ptr() != second.data_ptr()
    assert generator.num_anchors_per_location() == [4, 6]
    with pytest.raises(ValueError, match="steps"):
        compat.DefaultBoxGenerator([[2]], steps=[1, 2])


def test_ious_of_every_format_dtype_and_epsilon():
    a, b = GOLDEN["ops.a"], GOLDEN["ops.b"]
    same(compat.box_iou(a, b), GOLDEN["ops.iou"])
    same(compat.box_iou(a[0].long(), b[0].long()), GOLDEN["ops.int"])
    close(compat.generalized_box_iou(a, b), GOLDEN["ops.giou"])
    close(compat.distance_box_iou(a, b, 0.5), GOLDEN["ops.diou"])
    close(compat.complete_box_iou(a, b, 0.5), GOLDEN["ops.ciou"])
    close(compat.complete_box_iou(a, b, 1.00001e-7), compat.complete_box_iou(a, b))
    for fmt in ("xywh", "cxcywh"):
        close(compat.box_iou(a, b, fmt=fmt), GOLDEN[f"ops.iou.{fmt}"])
        close(compat.box_area(a, fmt=fmt), GOLDEN[f"ops.area.{fmt}"])
    with pytest.raises(ValueError, match="fmt"):
        compat.box_iou(a, b, fmt="yxyx")


def test_batched_nms_keeps_classes_apart_whatever_the_coordinates():
    boxes, scores, idxs = (GOLDEN[f"nms.{name}"] for name in ("boxes", "scores", "idxs"))
    same(compat.batched_nms(boxes, scores, idxs, 0.5), GOLDEN["nms.keep"])
    same(compat.batched_nms(boxes, scores, idxs.float() / 3, 0.5), GOLDEN["nms.keep"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64])
def test_boxes_keep_their_dtype(dtype):
    boxes = torch.tensor([[1, 2, 30, 41]], dtype=dtype)
    same(compat.clip_boxes_to_image(boxes, (40, 20)), torch.tensor([[1, 2, 20, 40]], dtype=dtype))
    same(compat.box_convert(boxes, "xyxy", "xywh"), torch.tensor([[1, 2, 29, 39]], dtype=dtype))
    halves = dtype if dtype.is_floating_point else torch.float32
    same(compat.box_convert(boxes, "xyxy", "cxcywh"), torch.tensor([[15.5, 21.5, 29, 39]], dtype=halves))
    area = {torch.float16: torch.float32}.get(dtype, dtype)
    same(compat.box_area(boxes), torch.tensor([29 * 39], dtype=area))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_focal_loss_and_its_gradient(dtype):
    logits = GOLDEN["focal.logits"].clone().to(dtype).requires_grad_()
    kind = GOLDEN["focal.kind"]
    positives = (kind > 0).nonzero(as_tuple=True)
    ignored = (kind == -2).nonzero(as_tuple=True)
    columns = GOLDEN["focal.column"][positives]
    loss = focal_loss(logits, (*positives, columns), ignored, GOLDEN["focal.weights"].tolist())
    (3 * loss).backward()
    close(loss.detach(), GOLDEN["focal.loss"].to(dtype))
    close(logits.grad, 3 * GOLDEN["focal.gradient"].to(dtype))


def test_focal_loss_is_finite_at_any_logit_and_blind_to_what_is_ignored():
    logits = torch.tensor([[[-1e4, 1e4, 0.0], [torch.nan, torch.inf, 0.0]]], requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    row = (torch.tensor([0]), torch.tensor([1]))
    loss = focal_loss(logits, (nothing, nothing, nothing), row, [1.0])
    loss.backward()
    assert loss.item() == pytest.approx(0.75 * (1e4 + 0.25 * np.log(2)))
    assert logits.grad.isfinite().all()
    assert not logits.grad[0, 1].any()


def test_points_are_fcoss():
    boxes = [GOLDEN[f"points.{image}.boxes"] for image in range(3)]
    comp = match_points(GOLDEN["points.anchors"], boxes, GOLDEN["points.per_level"].tolist(), 1.5)
    same(comp, torch.stack([GOLDEN[f"points.{image}.matched"] for image in range(3)]))
    assert (comp >= 0).any()


def test_without_torchvision_what_needs_it_says_so():
    code = """
import sys, torch
sys.modules["torchvision"] = None
from fastssd.compat import torchvision as compat
box = torch.zeros(1, 5)
for call in (lambda: compat.accelerate(torch.nn.Linear(1, 1)), compat.patch, lambda: compat.box_iou(box, box, "xywhr")):
    try:
        call()
    except ImportError as error:
        print("pip install torchvision" in str(error))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True"] * 3


# --- whole detectors, beside torchvision ----------------------------------------------------------------------------

NAMES = (
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "fasterrcnn_resnet50_fpn",
)


@pytest.fixture(scope="module")
def detector():
    """A function that makes a :class:`benchmarks.detectors.Detector` of small pictures."""
    pytest.importorskip("torchvision")
    from benchmarks.detectors import Detector

    @functools.cache
    def make(name, trained=True, batch=3):
        return Detector(name, batch, trained, seed=0, size=None if name.startswith("ssd") else (200, 264))

    return make


def outcome(detector, model):
    """Losses, gradients and detections."""
    torch.manual_seed(0)  # of the samplers
    losses = detector.step(model)
    gradients = {name: leaf.grad for name, leaf in detector.leaves.items()}
    return losses, gradients, detector.detect(model)


def assert_equal_outcomes(comp, ref):
    for name, loss in ref[0].items():
        torch.testing.assert_close(comp[0][name], loss, rtol=3e-6, atol=0)
    for name, gradient in ref[1].items():
        torch.testing.assert_close(comp[1][name], gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()))
    for found, expected in zip(comp[2], ref[2], strict=True):
        same(found["boxes"], expected["boxes"])
        same(found["labels"], expected["labels"])
        # torch's sigmoid rounds otherwise at the end of an array than in it.
        torch.testing.assert_close(found["scores"], expected["scores"], rtol=2.5e-7, atol=0)


@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("name", NAMES)
def test_accelerated_losses_gradients_and_detections_are_torchvisions(detector, name, trained):
    case = detector(name, trained)
    ref = outcome(case, case.model)
    model = case.copy()
    assert compat.accelerate(model) is model
    comp = outcome(case, model)
    assert_equal_outcomes(comp, ref)
    assert sum(len(found["boxes"]) for found in ref[2]) > 3


@pytest.mark.parametrize("name", NAMES)
def test_pictures_without_objects(detector, name):
    case = copy.copy(detector(name))
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    for targets in ([case.targets[0], empty, case.targets[2]], [empty] * 3):
        case.targets = targets
        torch.manual_seed(0)
        ref = case.step(case.model)
        torch.manual_seed(0)
        comp = case.step(compat.accelerate(case.copy()))
        for loss, value in ref.items():
            torch.testing.assert_close(comp[loss], value, rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_and_restore_leave_nothing_behind(detector, name):
    case = detector(name)
    model = case.copy()

    def classes():
        return [type(module) for module in model.modules()]

    before, state = classes(), [dict(vars(module)) for module in model.modules()]
    compat.accelerate(model)
    during = classes()
    assert during != before
    assert isinstance(model, type(case.model))
    assert classes() == [type(module) for module in compat.accelerate(model).modules()] == during
    assert compat.restore(model) is model
    assert classes() == before
    assert [vars(module).keys() for module in model.modules()] == [attributes.keys() for attributes in state]
    compat.restore(model)
    assert classes() == before


def test_accelerated_models_are_copied_pickled_saved_and_loaded():
    detection = pytest.importorskip("torchvision.models.detection")
    model = compat.accelerate(detection.ssdlite320_mobilenet_v3_large(weights_backbone=None, num_classes=3))
    images = [torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        ref = model.eval()(images)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(twin) is type(model)
            assert twin(images)[0]["scores"].equal(ref[0]["scores"])
            assert type(compat.restore(twin)) is detection.ssd.SSD
    plain = detection.ssdlite320_mobilenet_v3_large(weights_backbone=None, num_classes=3)
    plain.load_state_dict(model.state_dict())
    assert list(plain.state_dict()) == list(model.state_dict())


def test_what_a_subclass_overrides_stays():
    ssd = pytest.importorskip("torchvision.models.detection.ssd")
    calls = []

    class Mine(ssd.SSD):
        def compute_loss(self, *args):
            calls.append("loss")
            return super().compute_loss(*args)

        def postprocess_detections(self, *args):
            return ["mine"]

    from benchmarks.detectors import Detector

    case = Detector("ssd300_vgg16", 2, True, seed=1)
    ref = case.step(case.model)
    case.model.__class__ = Mine
    model = compat.accelerate(case.copy())
    assert isinstance(model, Mine)
    comp = case.step(model)
    assert calls == ["loss"]
    torch.testing.assert_close(comp, ref, rtol=1e-6, atol=0)
    assert case.detect(model) == ["mine"]


def test_strangers_parts_are_respected(detector):
    """A matcher of the user's, four different weights, thresholds out of the ordinary: torchvision's way."""
    case = detector("ssd300_vgg16")
    utils = pytest.importorskip("torchvision.models.detection._utils")

    class Mine(utils.SSDMatcher):
        def __call__(self, quality):
            return super().__call__(quality * 0.9)

    for change in (
        {"proposal_matcher": Mine(0.5)},
        {"box_coder": utils.BoxCoder((10.0, 9.0, 5.0, 4.0))},
        {"box_coder": compat.BoxCoder((10.0, 10.0, 5.0, 5.0)), "proposal_matcher": compat.SSDMatcher(0.6)},
        {"nms_thresh": 1.5, "topk_candidates": 30},
        {"neg_to_pos_ratio": 7 / 3},
        {"neg_to_pos_ratio": 1e6},  # more than there are: torchvision counts positives twice
        {"score_thresh": 0.9, "detections_per_img": 3},
    ):
        slow, fast = case.copy(), compat.accelerate(case.copy())
        for model in (slow, fast):
            vars(model).update(change)
        ref, comp = outcome(case, slow), outcome(case, fast)
        torch.testing.assert_close(comp[0], ref[0], rtol=1e-6, atol=1e-7)
        for found, expected in zip(comp[2], ref[2], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("name", NAMES[:2])
def test_detections_are_differentiable_as_torchvisions_are(detector, name):
    case = detector(name)
    gradients = []
    for model in (case.copy(), compat.accelerate(case.copy())):
        found = model.eval()(case.images)
        total = sum(one["scores"].sum() + one["boxes"].sum() for one in found)
        gradients.append(torch.autograd.grad(total, list(case.leaves.values())))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_other_dtypes(detector, kind):
    """Half the bits: the decisions are made in float32. (torchvision's own NMS refuses bfloat16 on the CPU.)"""
    case = copy.copy(detector("ssd300_vgg16"))
    model = compat.accelerate(case.copy())
    leaves = {name: leaf.detach().to(kind).requires_grad_() for name, leaf in case.leaves.items()}
    for one in (case.model, model):
        vars(one.head)["leaves"] = leaves
    try:
        ref, comp = case.step(case.model), case.step(model)
        found = case.detect(model)
        expected = case.detect(case.model) if kind == torch.float64 else found
    finally:
        vars(case.model.head)["leaves"] = case.leaves
    rtol = 1e-2 if kind == torch.bfloat16 else 1e-6
    for name, loss in ref.items():
        torch.testing.assert_close(comp[name].double(), loss.double(), rtol=rtol, atol=0)
    assert {one["boxes"].dtype for one in found} == {kind}
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)


def test_what_is_traced_or_compiled_is_torchvisions(detector, monkeypatch):
    pytest.importorskip("torchvision")
    from fastssd.compat.torchvision import _host

    def refuse(*args, **kwargs):
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(_host, "traced", lambda: True)
    for name in ("match_anchors", "multibox_cross_entropy", "postprocess_detections", "batched_nms"):
        monkeypatch.setattr(f"fastssd.ops.{name}", refuse)
    for name in NAMES:
        case = detector(name)
        model = compat.accelerate(case.copy())
        case.step(model)
        case.detect(model)


def test_degenerate_ground_truth_and_missing_targets_raise(detector):
    case = copy.copy(detector("ssd300_vgg16"))
    model = compat.accelerate(case.copy())
    bad = {"boxes": torch.tensor([[0.0, 0, 9, 9], [5.0, 5, 5, 9]]), "labels": torch.tensor([1, 1])}
    case.targets = [case.targets[0], bad, case.targets[2]]
    with pytest.raises(AssertionError, match="index 1"):
        case.losses(model)
    with pytest.raises(AssertionError):
        model.train()(case.images)
    case.targets = [{"boxes": torch.zeros(3), "labels": torch.zeros(0)}] * 3
    with pytest.raises(AssertionError):
        case.losses(model)


def test_a_detector_inside_of_another_module(detector):
    case = detector("fcos_resnet50_fpn")
    wrapped = torch.nn.ModuleDict({"student": case.copy(), "teacher": torch.nn.Linear(2, 2)})
    compat.accelerate(wrapped)
    assert type(wrapped["student"]) is not type(case.model)
    assert type(wrapped["teacher"]) is torch.nn.Linear


def test_an_unknown_model_is_refused_by_name():
    pytest.importorskip("torchvision")
    with pytest.raises(TypeError, match=r"torch\.nn\.modules\.linear\.Linear"):
        compat.accelerate(torch.nn.Linear(2, 2))


def test_mask_rcnn():
    detection = pytest.importorskip("torchvision.models.detection")
    torch.manual_seed(0)
    model = detection.maskrcnn_resnet50_fpn(weights_backbone=None, num_classes=2, min_size=64, max_size=96)
    images = [torch.rand(3, 64, 80), torch.rand(3, 60, 64)]
    model.eval()
    model.roi_heads.score_thresh = 0.3
    with torch.no_grad():
        ref = model(images)
        comp = compat.accelerate(model)(images)
    assert len(ref[0]["boxes"])
    torch.testing.assert_close(comp, ref, rtol=1e-6, atol=1e-5)


# --- torchvision.ops itself -----------------------------------------------------------------------------------------


@pytest.fixture
def host_ops():
    return pytest.importorskip("torchvision.ops")


def crowd(n=60):
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(n, 2, generator=g) * 40
    return torch.cat([corner, corner + torch.rand(n, 2, generator=g) * 30 + 1], 1), torch.rand(n, generator=g)


def test_functions_have_torchvisions_signatures(host_ops):
    for name in (name for name in compat.__all__ if hasattr(host_ops, name)):
        ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (compat, host_ops))
        assert list(ours)[: len(theirs)] == list(theirs), name
        assert all(ours[key].default == theirs[key].default for key in theirs)
        # What ours has besides is by keyword and optional.
        assert all(ours[key].kind is inspect.Parameter.KEYWORD_ONLY for key in list(ours)[len(theirs) :])


def test_patch_routes_torchvision_and_gives_back(host_ops):
    from torchvision.models.detection import ssd

    before = {name: getattr(host_ops, name) for name in host_ops.__all__}
    boxes, scores = crowd()
    ref = host_ops.nms(boxes, scores, 0.5), host_ops.box_iou(boxes, boxes), host_ops.generalized_box_iou(boxes, boxes)
    with compat.patch():
        for name in ("nms", "batched_nms", "box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"):
            assert getattr(host_ops, name) is getattr(host_ops.boxes, name) is getattr(ssd.box_ops, name)
            assert getattr(host_ops, name) is not before[name]
        same((host_ops.nms(boxes, scores, 0.5), host_ops.box_iou(boxes, boxes)), ref[:2])
        close(host_ops.generalized_box_iou(boxes, boxes), ref[2])
    assert {name: getattr(host_ops, name) for name in host_ops.__all__} == before


def test_patch_leaves_to_torchvision_what_is_not_ours(host_ops):
    boxes, scores = crowd()
    groups = torch.arange(len(boxes)) % 3
    ref = host_ops.nms(boxes, scores, 1.5)
    with compat.patch():
        same(host_ops.nms(boxes, scores, 1.5), ref)
        assert host_ops.box_iou(boxes.to("meta"), boxes.to("meta")).device.type == "meta"
        traced = torch.jit.trace(lambda a, b: host_ops.nms(a, b, 0.5), (boxes, scores), check_trace=False)
        same(host_ops.batched_nms(boxes, scores, groups, 0.5), compat.batched_nms(boxes, scores, groups, 0.5))
    assert "torchvision::nms" in str(traced.graph)
    few = boxes[:5], scores[:5]
    same(traced(*few), host_ops.nms(*few, 0.5))


def test_patch_leaves_rotated_boxes_to_torchvision(host_ops):
    rotated = torch.tensor([[10.0, 10, 5, 5, 30]])
    try:
        ref = host_ops.box_iou(rotated, rotated, fmt="cxcywhr")
    except (TypeError, ValueError):
        pytest.skip("this torchvision knows no rotated boxes")
    with compat.patch():
        same(host_ops.box_iou(rotated, rotated, fmt="cxcywhr"), ref)
        same(compat.box_iou(rotated, rotated, fmt="cxcywhr"), ref)


IOUS = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")
KINDS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)


@pytest.mark.parametrize("name", IOUS)
def test_ious_have_torchvisions_dtype_whatever_comes(host_ops, name):
    boxes = crowd(6)[0].round()
    theirs, direct = getattr(host_ops, name), getattr(compat, name)
    for first in KINDS:
        for second in KINDS:
            ref = theirs(boxes.to(first), boxes.to(second))
            with compat.patch():
                routed = getattr(host_ops, name)(boxes.to(first), boxes.to(second))
            assert direct(boxes.to(first), boxes.to(second)).dtype == routed.dtype == ref.dtype
            if {first, second} <= {torch.float32, torch.float64, torch.int64}:
                close(routed, ref)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "uint8", "int64"])
def test_areas_have_torchvisions_dtype(host_ops, name):
    boxes = torch.tensor([[1, 2, 13, 14]]).to(getattr(torch, name))
    for fmt in ("xyxy", "xywh", "cxcywh"):
        try:
            ref = host_ops.box_area(boxes, fmt=fmt)
        except TypeError:
            pytest.skip("this torchvision knows no formats here")
        same(compat.box_area(boxes, fmt), ref)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (0, 5)])
def test_batched_nms_of_nothing_is_nothing_in_any_shape(shape):
    none = torch.empty(shape)
    same(compat.batched_nms(none, torch.empty(0), torch.empty(0), 0.5), torch.empty(0, dtype=torch.int64))


def test_groups_may_be_truths(host_ops):
    boxes, scores = crowd()
    groups = torch.arange(len(boxes)) % 2
    same(compat.batched_nms(boxes, scores, groups.bool(), 0.5), compat.batched_nms(boxes, scores, groups, 0.5))


REFUSED = {
    "scores of two dimensions": ("nms", lambda b, s: (b, s[:, None], 0.5)),
    "too few scores": ("nms", lambda b, s: (b, s[:3], 0.5)),
    "boxes of three numbers": ("nms", lambda b, s: (b[:, :3], s, 0.5)),
    "no box at all": ("nms", lambda b, s: (b[0], s, 0.5)),
    "complex boxes": ("nms", lambda b, s: (b + 0j, s, 0.5)),
    "no threshold": ("nms", lambda b, s: (b, s, None)),
    "a threshold over 1": ("nms", lambda b, s: (b, s, 1.5)),
    "a negative threshold": ("batched_nms", lambda b, s: (b, s, torch.zeros(len(b), dtype=torch.int64), -0.5)),
    "NaN for a threshold": ("nms", lambda b, s: (b, s, float("nan"))),
    "a group for all": ("batched_nms", lambda b, s: (b, s, torch.zeros(1, dtype=torch.int64), 0.5)),
    "too few groups": ("batched_nms", lambda b, s: (b, s, torch.zeros(6, dtype=torch.int64), 0.5)),
    "sparse boxes": ("box_iou", lambda b, s: (b.to_sparse(), b)),
    "None": ("generalized_box_iou", lambda b, s: (b, None)),
    "boxes of five numbers": ("complete_box_iou", lambda b, s: (b, torch.rand(2, 5))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_ours_refuses_torchvision_answers_or_refuses(host_ops, case):
    name, make = REFUSED[case]
    arguments = make(*crowd(7))

    def outcome():
        try:
            return getattr(host_ops, name)(*arguments)
        except Exception as error:
            return type(error), str(error), error.__context__

    ref = outcome()
    with compat.patch():
        comp = outcome()
    assert comp == ref if isinstance(ref, tuple) else torch.equal(comp, ref)


def test_gradients_tangents_and_strides_are_torchvisions(host_ops):
    boxes, others = crowd(6)[0].double(), crowd(9)[0].double()[3:]
    turned = boxes.t().contiguous().t()
    for name in IOUS:
        outcomes = []
        for patched in (False, True):
            with compat.patch() if patched else contextlib.nullcontext():
                leaf = turned.detach().requires_grad_()
                value = getattr(host_ops, name)(leaf, others[::2])
                value.sum().backward()
                with forward_ad.dual_level():
                    dual = forward_ad.make_dual(boxes, boxes)
                    tangent = forward_ad.unpack_dual(getattr(host_ops, name)(dual, others)).tangent
                outcomes.append((value.detach(), leaf.grad, tangent))
        close(*outcomes)
    with compat.patch():
        kept = host_ops.nms(boxes.requires_grad_(), boxes[:, 0], 0.5)
        assert (kept.dtype, kept.requires_grad) == (torch.int64, False)


def _scripted(boxes, scores, groups):
    return torchvision.ops.batched_nms(boxes, scores, groups, 0.5), torchvision.ops.box_iou(boxes, boxes)  # noqa: F821


@pytest.mark.filterwarnings("ignore")
def test_patched_functions_are_scripted_and_compiled(host_ops, monkeypatch):
    monkeypatch.setitem(globals(), "torchvision", sys.modules["torchvision"])
    boxes, scores = crowd()
    groups = torch.arange(len(boxes)) % 3
    ref = _scripted(boxes, scores, groups)
    with compat.patch():
        same(torch.jit.script(_scripted)(boxes, scores, groups), ref)
        for name in IOUS:
            close(torch.jit.script(getattr(host_ops, name))(boxes, boxes), getattr(host_ops, name)(boxes, boxes))
        compiled = torch.compile(lambda a: host_ops.box_iou(a, a), fullgraph=True, backend="eager")
        same(compiled(boxes), ref[1])


def test_the_example_runs():
    pytest.importorskip("torchvision")
    script = Path(__file__).parent.parent / "examples" / "torchvision_ssd.py"
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert "equal" in found.stdout
