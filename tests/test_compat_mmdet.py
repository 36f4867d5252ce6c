"""mmdetection's assigner and overlaps and mmcv's NMS: their own answers, from a file and live, and what edges give."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from fastssd.compat import mmdet as comp

FILE = np.load(Path(__file__).parent / "golden/mmdet.npz")
OPTIONS = json.loads(str(FILE["options"]))
GOLDEN = {name: torch.from_numpy(FILE[name]) for name in FILE if name != "options"}
SCENES = ("random", "ties", "flat", "backwards", "tiny", "apart", "no truth", "no priors")
FIELDS = ("gt_inds", "max_overlaps", "labels")


class Boxes:
    """What mmdet's ``HorizontalBoxes`` looks like to us."""

    def __init__(self, tensor):
        self.tensor = tensor
        self.detach, self.numel = lambda: self, tensor.numel


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert torch.equal(actual.nan_to_num(nan=-9), expected.nan_to_num(nan=-9))


def tuples(options: dict) -> dict:
    """JSON knows no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def assign(options, priors, truths, labels, ignored=None):
    instances = SimpleNamespace(bboxes=truths, labels=labels)
    regions = None if ignored is None else SimpleNamespace(bboxes=ignored)
    return comp.MaxIoUAssigner(**tuples(options)).assign(SimpleNamespace(priors=priors), instances, regions)


def scene(name: str):
    return [GOLDEN[f"{name}.{part}"] for part in ("priors", "truths", "labels", "ignored")]


# --- overlaps


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
def test_overlaps_are_mmdets(name, mode):
    priors, truths, *_ = scene(name)
    same(comp.bbox_overlaps(truths, priors, mode), GOLDEN[f"{name}.{mode}"])
    both = min(len(priors), len(truths))
    same(comp.bbox_overlaps(truths[:both], priors[:both], mode, is_aligned=True), GOLDEN[f"{name}.{mode}.aligned"])
    turned = priors.t().contiguous().t()
    same(comp.BboxOverlaps2D()(Boxes(truths), torch.cat([turned, turned], 1)[:, :5], mode), GOLDEN[f"{name}.{mode}"])


@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
def test_overlaps_of_batches_and_of_pixels_that_a_box_ends_after(mode):
    priors, truths, *_ = scene("ties")  # whole numbers
    grown = [boxes + torch.tensor([0.0, 0.0, 1.0, 1.0]) for boxes in (truths, priors)]
    expected = comp.bbox_overlaps(*grown, mode)
    same(comp.bbox_overlaps(truths, priors, mode, offset=1), expected)
    same(comp.BboxOverlaps2D(offset=1)(truths, priors, mode), expected)
    batch = comp.bbox_overlaps(torch.stack([truths, truths]), torch.stack([priors, priors]), mode, offset=1)
    same(batch, torch.stack([expected, expected]))


def test_half_precision_is_computed_in_half_precision():
    priors, truths, *_ = scene("random")
    found = comp.bbox_overlaps(truths.half(), priors.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), GOLDEN["random.iou"], rtol=0, atol=0.02)


@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
def test_overlaps_are_differentiable(mode):
    boxes, others = scene("random")[0][:6].double().requires_grad_(), scene("random")[1][:6].double()
    for aligned in (True, False):
        assert torch.autograd.gradcheck(lambda b, a=aligned: comp.bbox_overlaps(b, others, mode, a), boxes)


def test_empty_sets_have_shapes():
    none, some = torch.empty(0, 4), torch.rand(3, 4)
    assert comp.bbox_overlaps(none, some).shape == (0, 3)
    assert comp.bbox_overlaps(some, torch.empty(0)).shape == (3, 0)
    assert comp.bbox_overlaps(none, none, is_aligned=True).shape == (0,)
    assert comp.bbox_overlaps(torch.empty(2, 0, 4), torch.rand(2, 3, 4)).shape == (2, 0, 3)


# --- assigner


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("i", range(len(OPTIONS["assigners"])))
def test_assignments_are_mmdets(name, i):
    priors, truths, labels, ignored = scene(name)
    before = [part.clone() for part in (priors, truths, ignored)]
    options = OPTIONS["assigners"][i]
    result = assign(options, priors, truths, labels, ignored)
    for field in FIELDS:
        same(getattr(result, field), GOLDEN[f"{name}.{i}.{field}"])
    assert (result.num_gts, result.num_preds) == (len(truths), len(priors))
    assert all(torch.equal(a, b) for a, b in zip(before, (priors, truths, ignored), strict=True))
    wrapped = assign(options, Boxes(priors.t().contiguous().t()), Boxes(truths), labels, Boxes(ignored))
    for field in FIELDS:
        same(getattr(wrapped, field), getattr(result, field))


@pytest.mark.parametrize("name", ["random", "ties", "flat", "apart", "no truth", "no priors"])
@pytest.mark.parametrize("everything", [True, False])
def test_the_kernel_says_what_a_matrix_says(name, everything):
    priors, truths, labels, ignored = scene(name)
    options = {"pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0.1, "gt_max_assign_all": everything}
    result = assign(options, priors, truths, labels)
    for other in (
        comp.MaxIoUAssigner(**options).assign_wrt_overlaps(comp.bbox_overlaps(truths, priors), labels),
        assign(options | {"iou_calculator": comp.bbox_overlaps}, priors, truths, labels),
    ):
        for field in FIELDS:
            same(getattr(other, field), getattr(result, field))
    both = [
        assign(options | {"ignore_iof_thr": 0.3} | more, priors, truths, labels, ignored)
        for more in ({}, {"iou_calculator": comp.bbox_overlaps})
    ]
    for field in FIELDS:
        same(getattr(both[0], field), getattr(both[1], field))


def test_an_overlap_at_a_threshold_reaches_it_in_the_priors_dtype():
    truth, labels = torch.tensor([[0.0, 0.0, 10.0, 1.0]]), torch.tensor([5])
    priors = torch.tensor([[0.0, 0.0, 7.0, 1.0], [0.0, 0.0, 3.0, 1.0], [0.0, 0.0, 2.9, 1.0], [20.0, 0.0, 30.0, 1.0]])
    options = {"pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "match_low_quality": False}
    result = assign(options, priors, truth, labels)
    assert result.gt_inds.tolist() == [1, -1, 0, 0]
    assert result.labels.tolist() == [5, -1, -1, -1]
    assert assign(options, priors.double(), truth.double(), labels).gt_inds.tolist() == [1, -1, 0, 0]


def test_the_last_ground_truth_keeps_a_prior_and_min_pos_iou_denies_it():
    priors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]])
    truths = torch.tensor([[0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 4.0]])  # both like prior 0 most: 0.9 and 0.4
    labels = torch.tensor([3, 7])
    options = {"pos_iou_thr": 0.5, "neg_iou_thr": 0.3}
    assert assign(options, priors, truths, labels).gt_inds.tolist() == [2, 0]
    assert assign(options | {"min_pos_iou": 0.41}, priors, truths, labels).gt_inds.tolist() == [1, 0]
    assert assign(options | {"match_low_quality": False}, priors, truths, labels).labels.tolist() == [3, -1]


def test_a_ground_truth_that_nothing_overlaps_takes_every_prior_it_does_not_overlap():
    priors, truths = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0]]), torch.tensor([[9.0, 9.0, 10.0, 10.0]])
    options = {"pos_iou_thr": 0.5, "neg_iou_thr": 0.5}
    assert assign(options, priors, truths, torch.tensor([0])).gt_inds.tolist() == [1, 1]
    assert assign(options | {"gt_max_assign_all": False}, priors, truths, torch.tensor([0])).gt_inds.tolist() == [1, 0]
    assert assign(options | {"min_pos_iou": 1e-9}, priors, truths, torch.tensor([0])).gt_inds.tolist() == [0, 0]


def test_priors_of_ignored_regions_take_no_part():
    priors, truths, labels, _ = scene("random")
    result = assign({"pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "ignore_iof_thr": 0.5}, priors, truths, labels, priors[:2])
    assert result.gt_inds[:2].tolist() == result.max_overlaps[:2].tolist() == [-1, -1]
    everything = torch.tensor([[-100.0, -100.0, 200.0, 200.0]])
    result = assign({"pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "ignore_iof_thr": 0.5}, priors, truths, labels, everything)
    assert (result.gt_inds == -1).all()


def test_repeated_ground_truths_are_shaken_apart():
    _, truths, labels, _ = scene("random")
    truths = truths[[0, 0, 1]]
    options = {"pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "match_low_quality": False}
    assert 2 not in assign(options, truths, truths, labels[:3]).gt_inds
    shaken = [{"perm_repeat_gt_cfg": {"iou_thr": 0.9, "perm_range": 0.05}} | options for _ in range(20)]
    assert {2} <= {int(i) for each in shaken for i in assign(each, truths, truths, labels[:3]).gt_inds}


def test_an_assignment_serves_a_sampler():
    result = assign({"pos_iou_thr": 0.5, "neg_iou_thr": 0.5}, *scene("random")[:3])
    before = result.gt_inds.clone()
    result.add_gt_(torch.tensor([4, 5]))
    assert torch.equal(result.gt_inds, torch.cat([torch.tensor([1, 2]), before]))
    assert result.max_overlaps[:2].tolist() == [1, 1]
    assert result.labels[:2].tolist() == [4, 5]
    result.set_extra_property("mine", 1)
    assert (result.get_extra_property("mine"), result.info["mine"], result.info["num_preds"]) == (1, 1, len(before) + 2)
    with pytest.raises(ValueError, match="labels"):
        result.set_extra_property("labels", 1)


def as_described(assigner, overlaps, labels):
    """The assignment as mmdet describes it, from the whole matrix, ground truth by ground truth."""
    best, best_gt = overlaps.max(0)
    most, first = overlaps.max(1)
    low, high = assigner.neg_iou_thr if isinstance(assigner.neg_iou_thr, tuple) else (0, assigner.neg_iou_thr)
    gt_inds = torch.full_like(best_gt, -1)
    gt_inds[(best >= low) & (best < high)] = 0
    gt_inds = torch.where(best >= assigner.pos_iou_thr, best_gt + 1, gt_inds)
    for gt in range(len(overlaps)) if assigner.match_low_quality else ():
        if most[gt] >= assigner.min_pos_iou:
            takes = overlaps[gt] == most[gt] if assigner.gt_max_assign_all else first[gt]
            gt_inds[takes] = gt + 1
    return gt_inds, best, torch.where(gt_inds > 0, labels[(gt_inds - 1).clamp(min=0)], -1)


HOSTILE = {
    "nothing": lambda priors, truths: None,
    "a ground truth alone": lambda priors, truths: truths[2].add_(5000),
    "all alone": lambda priors, truths: truths.add_(5000),
    "one place for all ground truths": lambda priors, truths: truths.copy_(truths[:1].clone()),
    "one place for all priors": lambda priors, truths: priors.copy_(priors[:1].clone()),
    "NaN among the priors": lambda priors, truths: priors[3].fill_(np.nan),
    "an area beyond float32": lambda priors, truths: priors[3].copy_(torch.tensor([-1e20, -1e20, 1e20, 1e20])),
    "infinite ground truth": lambda priors, truths: truths[1].fill_(np.inf),
    "a tiny ground truth": lambda priors, truths: truths[1].copy_(torch.tensor([3, 3, 3.0001, 3.0001])),
}


@pytest.mark.parametrize("cells", [1, 64, 1 << 18])  # blocks of a prior, of a few, of all
@pytest.mark.parametrize("kind", HOSTILE)
def test_blocks_say_what_the_matrix_says(kind, cells, monkeypatch):
    monkeypatch.setattr("fastssd.compat.mmdet.assigner._CELLS", cells)
    rng = np.random.default_rng(5)
    for step, offset, everything, low_quality, region in itertools.product((0, 8), (0, 1), (0, 1), (0, 1), (0, 1, 2)):
        corner = rng.random((49, 2)) * 60
        boxes = np.concatenate([corner, corner + 2 + rng.random((49, 2)) * 30], 1)
        boxes = torch.from_numpy((np.round(boxes / step) * step if step else boxes).astype(np.float32))
        priors, truths, ignored = (
            boxes[:40],
            boxes[40:47],
            [None, boxes[47:], boxes.new_tensor([[-9e3, -9e3, 9e3, 9e3]])],
        )
        HOSTILE[kind](priors, truths)
        labels = torch.from_numpy(rng.integers(0, 9, len(truths)))
        options = {
            "pos_iou_thr": float(rng.choice([0, 0.5, 0.7])),
            "neg_iou_thr": (0.1, 0.5),
            "min_pos_iou": float(rng.choice([0, 0, 0.2, -1])),
            "gt_max_assign_all": bool(everything),
            "match_low_quality": bool(low_quality),
            "ignore_iof_thr": 0.3,
            "offset": offset,
        }
        overlaps = comp.bbox_overlaps(truths, priors, offset=offset)
        if ignored[region] is not None:
            iof = comp.bbox_overlaps(priors, ignored[region], "iof", offset=offset)
            overlaps[:, iof.max(1).values > 0.3] = -1
        result = assign(options, priors, truths, labels, ignored[region])
        for field, expected in zip(FIELDS, as_described(comp.MaxIoUAssigner(**options), overlaps, labels), strict=True):
            same(getattr(result, field), expected)


MEMORY = """
import resource, sys, torch
from types import SimpleNamespace
from fastssd.compat.mmdet import MaxIoUAssigner

def boxes(n):
    corner = torch.rand(n, 2) * 1000
    return torch.cat([corner, corner + 4 + torch.rand(n, 2) * 60], 1)

torch.manual_seed(0)
priors, truths, regions = boxes(40000), boxes(1000), boxes(200)
kind, options = sys.argv[1], {}
if kind == "alone":
    truths[7] += 5000
elif kind == "all alone":
    truths += 5000
elif kind == "alike":
    truths[:] = torch.tensor([0.0, 0.0, 1100.0, 1100.0])
    priors[:, :2] = priors[:, :2].floor()
    priors[:, 2:] = priors[:, :2] + 50
elif kind == "offset":
    options = {"offset": 1}
elif kind == "NaN":
    priors[5] = torch.nan
elif kind == "ignored":
    options, truths[7] = {"ignore_iof_thr": 0.5}, truths[7] + 5000
elif kind == "first":
    options, truths[7] = {"gt_max_assign_all": False}, truths[7] + 5000

def assign(count):
    gt = SimpleNamespace(bboxes=truths[:count], labels=torch.zeros(count, dtype=torch.int64))
    ignored = SimpleNamespace(bboxes=regions) if kind == "ignored" else None
    MaxIoUAssigner(0.5, 0.4, **options).assign(SimpleNamespace(priors=priors), gt, ignored)

assign(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assign(1000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("kind", ["alone", "all alone", "alike", "offset", "NaN", "ignored", "first"])
def test_no_matrix_of_overlaps_is_held(kind):
    """1000 x 40000 overlaps are 153 MiB."""
    found = subprocess.run([sys.executable, "-c", MEMORY, kind], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 76


# --- NMS


@pytest.mark.parametrize("i", range(len(OPTIONS["nms"])))
def test_nms_is_mmcvs(i):
    boxes, scores, options = GOLDEN["crowd"], GOLDEN["scores"], OPTIONS["nms"][i]
    for found, expected in zip(comp.nms(boxes, scores, **options), ("dets", "keep"), strict=True):
        same(found, GOLDEN[f"nms.{i}.{expected}"])
    for found, expected in zip(comp.nms(boxes.numpy(), scores.numpy(), **options), ("dets", "keep"), strict=True):
        assert isinstance(found, np.ndarray)
        same(torch.from_numpy(found), GOLDEN[f"nms.{i}.{expected}"])


@pytest.mark.parametrize("i", range(len(OPTIONS["soft_nms"])))
def test_soft_nms_is_mmcvs_but_for_the_order_of_equal_scores(i):
    boxes, options = GOLDEN["crowd"].t().contiguous().t(), OPTIONS["soft_nms"][i]
    before = boxes.clone()
    dets, keep = comp.soft_nms(boxes, GOLDEN["scores"], **options)
    ref = GOLDEN[f"soft.{i}.scores.keep"]
    order = np.lexsort((ref, -GOLDEN[f"soft.{i}.scores.dets"][:, 4]))  # "naive" leaves many with score 0
    same(keep, ref[order])
    torch.testing.assert_close(dets, GOLDEN[f"soft.{i}.scores.dets"][order], rtol=1e-6, atol=1e-7)  # exp
    assert torch.equal(boxes, before)


@pytest.mark.parametrize("i", range(len(OPTIONS["soft_nms"])))
def test_soft_nms_takes_the_lower_index_of_equal_scores(i):
    """As scores do that differ by less than they round to: the same order, and the same scores but for that."""
    boxes, scores = GOLDEN["crowd"], GOLDEN["tied scores"]
    ranks = torch.arange(len(scores), dtype=torch.float64)
    dets, keep = comp.soft_nms(boxes.double(), scores.double(), **OPTIONS["soft_nms"][i])
    expected = comp.soft_nms(boxes.double(), scores.double() - 1e-13 * ranks, **OPTIONS["soft_nms"][i])
    assert len(scores.unique()) < len(scores)
    same(keep, expected[1])
    torch.testing.assert_close(dets, expected[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("i", range(len(OPTIONS["batched"])))
def test_batched_nms_is_mmcvs(i):
    options = OPTIONS["batched"][i]
    before = dict(options)
    dets, keep = comp.batched_nms(GOLDEN["crowd"], GOLDEN["scores"], GOLDEN["classes"], options)
    same(keep, GOLDEN[f"batched.{i}.keep"])
    same(dets, GOLDEN[f"batched.{i}.dets"])
    assert options == before


def test_nms_match_is_mmcvs():
    dets = torch.cat([GOLDEN["crowd"], GOLDEN["scores"][:, None]], 1)
    groups = comp.nms_match(dets, 0.5)
    assert [len(group) for group in groups] == GOLDEN["match.sizes"].tolist()
    same(torch.cat(groups), GOLDEN["match"])
    assert all(isinstance(group, np.ndarray) for group in comp.nms_match(dets.numpy(), 0.5))
    assert comp.nms_match(dets[:0], 0.5) == []


def test_boxes_with_offset_are_compared_as_mmcvs_arithmetic_rounds():
    rng = np.random.default_rng(3)
    corner = rng.random((600, 2)) * 50 + 4000  # where float32 is coarse
    boxes = np.concatenate([corner, corner + rng.random((600, 2)) * 30], 1).astype(np.float32)
    scores = rng.permutation(600).astype(np.float32)
    kept: list[int] = []
    for i in np.argsort(-scores):
        ok = True
        for j in kept:
            x, y = (
                max(min(boxes[i, 2 + a], boxes[j, 2 + a]) - max(boxes[i, a], boxes[j, a]) + np.float32(1), 0)
                for a in (0, 1)
            )
            areas = [
                (boxes[k, 2] - boxes[k, 0] + np.float32(1)) * (boxes[k, 3] - boxes[k, 1] + np.float32(1))
                for k in (j, i)
            ]
            ok = ok and not x * y / (areas[0] + areas[1] - x * y) > np.float32(0.4)
        if ok:
            kept.append(int(i))
    assert comp.nms(boxes, scores, 0.4, offset=1)[1].tolist() == kept


def test_a_threshold_of_nms_is_compared_in_float32_and_classes_never_meet():
    boxes, scores = torch.tensor([[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 3.0, 1.0]]), torch.tensor([0.9, 0.8])
    assert comp.nms(boxes, scores, iou_thr=0.3)[1].tolist() == [0, 1]  # 0.3 in float32 is over 0.3
    assert comp.nms(boxes.double(), scores.double(), 0.3)[1].tolist() == [0, 1]
    assert [group.tolist() for group in comp.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.3)] == [[0, 1]]
    boxes = torch.tensor([[-9.0, -9, -1, -1], [-9.0, -9, -1, -1]])
    assert comp.batched_nms(boxes, scores, torch.tensor([0, 1]), {"iou_threshold": 0.5})[1].tolist() == [0, 1]


def test_nms_of_nothing_of_functions_and_of_gradients():
    none = torch.empty(0, 4), torch.empty(0)
    for function in (comp.nms, comp.soft_nms):
        dets, keep = function(*none, 0.5)
        assert (dets.shape, keep.shape, keep.dtype) == ((0, 5), (0,), torch.int64)
    assert comp.batched_nms(*none, torch.empty(0, dtype=torch.int64), {"iou_threshold": 0.5})[0].shape == (0, 5)
    boxes, scores, classes = GOLDEN["crowd"], GOLDEN["scores"], GOLDEN["classes"]
    ranked = comp.batched_nms(boxes, scores, classes, None)[1]
    assert torch.equal(scores[ranked], scores.sort(descending=True).values)
    own = {"type": lambda b, s, top: (torch.cat([b, s[:, None]], 1)[:top], torch.arange(len(b))[:top]), "top": 1}
    assert len(comp.batched_nms(boxes, scores, classes, own)[1]) == len(classes.unique())
    wanted = boxes.clone().requires_grad_()
    dets, keep = comp.nms(wanted, scores, 0.5)
    dets[:, :4].sum().backward()
    assert torch.equal(wanted.grad.sum(1) == 4, torch.zeros(len(boxes), dtype=bool).index_fill(0, keep, True))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: comp.bbox_overlaps(torch.rand(2, 4), torch.rand(2, 4), "ciou"), "mode"),
        (lambda: comp.bbox_overlaps(torch.rand(2, 4), torch.rand(3, 4), is_aligned=True), "bboxes2"),
        (lambda: comp.bbox_overlaps(torch.rand(2, 5), torch.rand(3, 4)), "bboxes1"),
        (lambda: comp.bbox_overlaps(torch.rand(2, 4), torch.rand(3, 4), offset=2), "offset"),
        (lambda: comp.MaxIoUAssigner(0.5, "0.5"), "neg_iou_thr"),
        (lambda: comp.MaxIoUAssigner(0.5, 0.5, iou_calculator=3), "iou_calculator"),
        (lambda: comp.nms(torch.rand(2, 5), torch.rand(2), 0.5), "boxes"),
        (lambda: comp.nms(torch.rand(2, 4), torch.rand(3), 0.5), "scores"),
        (lambda: comp.nms(torch.rand(2, 4), torch.rand(2)), "iou_threshold"),
        (lambda: comp.soft_nms(torch.rand(2, 4), torch.rand(2), method="hard"), "method"),
        (lambda: comp.soft_nms(torch.rand(2, 4), torch.tensor([1.0, np.nan])), "scores"),
        (lambda: comp.batched_nms(torch.rand(2, 4), torch.rand(2), torch.zeros(3), {"iou_threshold": 0.5}), "idxs"),
        (lambda: comp.batched_nms(torch.rand(2, 4), torch.rand(2), torch.zeros(2), {"type": "nms_rotated"}), "type"),
        (lambda: comp.nms_match(torch.rand(2, 4), 0.5), "dets"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises((TypeError, ValueError), match=name):
        call()


# --- live


class NotCompiled(types.ModuleType):
    """A module that has every function; calling one skips the test."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: pytest.skip(f"mmcv's {name} is not compiled")


@pytest.fixture(scope="module")
def host():
    """mmdet, with stand-ins for mmcv's compiled operators where only mmcv-lite is there."""
    pytest.importorskip("mmengine")
    pytest.importorskip("mmcv")
    if importlib.util.find_spec("mmcv._ext") is None:
        sys.modules["mmcv._ext"] = NotCompiled("mmcv._ext")
    pytest.importorskip("mmdet")
    importlib.import_module("mmdet.models.task_modules.assigners")
    return importlib.import_module("mmdet.registry")


@pytest.mark.parametrize("seed", range(8))
def test_live_assigner_and_overlaps(host, seed):
    from mmdet.models.task_modules.assigners import MaxIoUAssigner
    from mmdet.structures.bbox import HorizontalBoxes, bbox_overlaps
    from mmengine.structures import InstanceData

    rng = np.random.default_rng(seed)
    step = (0.0, 4.0)[seed % 2]
    sets = []
    for n in (rng.integers(50, 400), rng.integers(1, 20), rng.integers(0, 4)):
        corner = rng.random((n, 2)) * 60
        boxes = np.concatenate([corner, corner + rng.random((n, 2)) * 30 + 1], 1)
        sets.append(torch.from_numpy((np.round(boxes / step) * step if step else boxes).astype(np.float32)))
    priors, truths, ignored = sets
    for mode in ("iou", "iof", "giou"):
        same(comp.bbox_overlaps(truths, priors, mode), bbox_overlaps(truths, priors, mode))
    labels = torch.from_numpy(rng.integers(0, 80, len(truths)))
    for options in OPTIONS["assigners"]:
        arguments = (
            InstanceData(priors=HorizontalBoxes(priors)),
            InstanceData(bboxes=HorizontalBoxes(truths), labels=labels),
            InstanceData(bboxes=HorizontalBoxes(ignored)),
        )
        found = comp.MaxIoUAssigner(**tuples(options)).assign(*arguments)
        expected = MaxIoUAssigner(**tuples(options)).assign(*arguments)
        for field in FIELDS:
            same(getattr(found, field), getattr(expected, field))


def test_live_registry_builds_ours_and_samplers_take_it(host, monkeypatch):
    from mmengine.structures import InstanceData

    tasks = host.TASK_UTILS
    monkeypatch.setattr(tasks, "_module_dict", dict(tasks.module_dict))
    comp.register()
    sampler = tasks.build({"type": "RandomSampler", "num": 32, "pos_fraction": 0.5})
    priors, truths, labels, _ = scene("random")
    for name in ("MaxIoUAssigner", "FastMaxIoUAssigner"):
        assigner = tasks.build({"type": name, "pos_iou_thr": 0.5, "neg_iou_thr": 0.4})
        assert type(assigner) is comp.MaxIoUAssigner
        instances = InstanceData(priors=priors), InstanceData(bboxes=truths, labels=labels)
        assert len(sampler.sample(assigner.assign(*instances), *instances).pos_inds) > 0
    assert type(tasks.build({"type": "BboxOverlaps2D"})) is comp.BboxOverlaps2D
    glip = comp.MaxIoUAssigner(0.5, 0.5, iou_calculator={"type": "BboxOverlaps2D_GLIP"})
    gt = SimpleNamespace(bboxes=truths, labels=labels)
    expected = assign({"pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "offset": 1}, priors, truths, labels)
    same(glip.assign(SimpleNamespace(priors=priors), gt).gt_inds, expected.gt_inds)


def test_live_patch_routes_functions_and_takes_it_back(host):
    from mmdet.models.layers import bbox_nms
    from mmdet.structures import bbox

    before = bbox_nms.batched_nms, bbox.bbox_overlaps
    with comp.patch():
        assert before[0] is not bbox_nms.batched_nms is sys.modules["mmcv.ops"].batched_nms
        assert before[1] is not bbox.bbox_overlaps
        boxes, scores = GOLDEN["crowd"], GOLDEN["scores"]
        same(sys.modules["mmcv.ops"].nms(boxes, scores, 0.5)[1], comp.nms(boxes, scores, 0.5)[1])
        with pytest.raises(AssertionError):  # the host's
            bbox.bbox_overlaps(boxes, boxes, mode="ciou")
    assert (bbox_nms.batched_nms, bbox.bbox_overlaps) == before
