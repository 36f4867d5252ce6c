"""What docs/contract.md promises of the faces, by its headings. Backends are compared in test_ops.py."""

from __future__ import annotations

from array import array as numbers

import numpy as np
import pytest
import torch

from fastssd import ops
from tests.cases import random_boxes, strided

RNG = np.random.default_rng(0)
BOXES, OTHERS, SCORES = random_boxes(RNG, 12), random_boxes(RNG, 5), RNG.random(12)
LOGITS, DELTAS = RNG.normal(size=(2, 12, 4)), RNG.normal(size=(2, 12, 4))
CLASSES = np.array([[0, 3, 0, 0, -1, 0, 0, 1, 0, 0, 0, 0], [0] * 12])

# Every operator with arguments that work: (arrays, what else it takes).
CALLS = {
    "box_area": ((BOXES,), {}),
    "box_convert": ((BOXES,), {"in_fmt": "xyxy", "out_fmt": "cxcywh"}),
    "clip_boxes_to_image": ((BOXES,), {"size": (50, 60)}),
    "remove_small_boxes": ((BOXES,), {"min_size": 3}),
    "box_iou": ((BOXES, OTHERS), {}),
    "generalized_box_iou": ((BOXES, OTHERS), {}),
    "distance_box_iou": ((BOXES, OTHERS), {}),
    "complete_box_iou": ((BOXES, OTHERS), {}),
    "paired_box_iou": ((BOXES, BOXES[::-1]), {}),
    "match_anchors": ((BOXES, OTHERS), {}),
    "assign_targets": ((BOXES, OTHERS, np.ones(5, np.int64)), {}),
    "mine_hard_negatives": ((SCORES, SCORES > 0.9), {}),
    "multibox_cross_entropy": ((LOGITS, CLASSES), {"min_negatives": 2}),
    "encode_boxes": ((BOXES, BOXES[::-1]), {}),
    "decode_boxes": ((DELTAS, BOXES), {}),
    "nms": ((BOXES, SCORES), {"iou_threshold": 0.3}),
    "batched_nms": ((BOXES, SCORES, np.arange(12) % 2), {"iou_threshold": 0.3}),
    "soft_nms": ((BOXES, SCORES), {}),
    "postprocess_detections": ((LOGITS, DELTAS, BOXES), {"max_detections": 9}),
}


def outputs(result):
    return tuple(result) if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", CALLS)
def test_arrays_torch_in_torch_out_and_inputs_untouched(name):
    arrays, options = CALLS[name]
    function = getattr(ops, name)
    ref = outputs(function(*arrays, **options))
    before = [array.copy() for array in arrays]
    tensors = [torch.from_numpy(array.copy()) for array in arrays]
    comp = outputs(function(*tensors, **options))
    assert all(isinstance(value, np.ndarray) for value in ref)
    assert all(isinstance(value, torch.Tensor) for value in comp)
    for r, c in zip(ref, comp, strict=True):
        np.testing.assert_array_equal(r, c.numpy())
    for array, tensor, copy in zip(arrays, tensors, before, strict=True):
        np.testing.assert_array_equal(array, copy)
        np.testing.assert_array_equal(tensor.numpy(), copy)


def test_arrays_tensors_that_are_negated_only_when_read():
    corners = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    boxes = torch.complex(corners.new_zeros(2, 4), -torch.cat([corners, corners + 3], 1)).conj().imag
    assert boxes.is_neg()
    for call in (ops.box_area, lambda b: ops.box_iou(b, b), lambda b: ops.nms(b, torch.ones(2), 0.1)):
        assert torch.equal(call(boxes), call(boxes.resolve_neg()))


@pytest.mark.parametrize("name", CALLS)
def test_arrays_read_only_and_non_contiguous_inputs(name):
    arrays, options = CALLS[name]
    function = getattr(ops, name)
    views = [strided(array) for array in arrays]
    for view in views:
        view.flags.writeable = False
    for r, c in zip(outputs(function(*arrays, **options)), outputs(function(*views, **options)), strict=True):
        np.testing.assert_array_equal(r, c)


def test_arrays_of_other_people():
    """What numpy.asarray understands, in a field of a structured array, in a buffer, in an object."""

    class Table:
        def __array__(self, dtype=None, copy=None):
            return BOXES.astype(dtype or BOXES.dtype)

    record = np.zeros(12, [("tag", "u1"), ("box", "f8", 4), ("score", "f8"), ("group", "i8")])
    record["box"], record["score"], record["group"] = BOXES, SCORES, np.arange(12) % 2
    assert not record["box"].flags.aligned
    ref = ops.batched_nms(BOXES, SCORES, np.arange(12) % 2, 0.3)
    for boxes, scores, groups in (
        (record["box"], record["score"], record["group"]),
        (Table(), memoryview(SCORES), numbers("h", [i % 2 for i in range(12)])),
        (BOXES.tolist(), tuple(SCORES), [i % 2 for i in range(12)]),
    ):
        np.testing.assert_array_equal(ops.batched_nms(boxes, scores, groups, 0.3), ref)
    np.testing.assert_array_equal(ops.soft_nms(record["box"], record["score"])[1], ops.soft_nms(BOXES, SCORES)[1])
    for empty, none in (([], []), (np.array([]), np.array([])), (torch.tensor([]), torch.tensor([]))):
        assert len(ops.nms(empty, none, 0.5)) == 0
        assert ops.box_iou(BOXES, empty).shape == (12, 0)


def test_nms_groups_are_names_of_64_bits():
    groups = np.array([2**64 - 1, 2**63, 2**64 - 1], np.uint64)
    assert ops.batched_nms(BOXES[:1].repeat(3, 0), [3.0, 2.0, 1.0], groups, 0.3).tolist() == [0, 1]


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(3, 4).to_sparse(),
        torch.ones(3, 4, dtype=torch.complex64),
        np.full((3, 4), np.datetime64("2020-01-01")),
        np.full((3, 4), None),
        [torch.ones(4, requires_grad=True)] * 3,
        "boxes",
        {"boxes": 1},
        None,
    ],
)
def test_arrays_that_hold_no_real_numbers_are_an_error(value):
    for call in (ops.box_area, lambda b: ops.nms(b, np.ones(3), 0.5), lambda b: ops.match_anchors(BOXES, b)):
        with pytest.raises((TypeError, ValueError), match="boxes"):
            call(value)


def test_arrays_grid_sizes_in_every_form():
    scales = [(0.2, 0.3), (0.9, 0.95)]
    ref = ops.grid_anchors([(3, 4), (2, 2)], scales)
    for grids in (
        np.array([[3, 4], [2, 2]]),
        [np.array([3, 4]), np.int64(2)],
        [torch.tensor([3, 4]), torch.Size([2, 2])],
    ):
        np.testing.assert_array_equal(ops.grid_anchors(grids, np.array(scales)), ref)
    np.testing.assert_array_equal(ops.grid_anchors(2, scales[1:]), ops.grid_anchors([2], scales[1:]))
    with pytest.raises(MemoryError):
        ops.grid_anchors(2**32, [[0.1]])
    for wrong in ("ab", None, [(1, 2, 3)], [2.0], [True]):
        with pytest.raises((TypeError, ValueError), match="grid_sizes"):
            ops.grid_anchors(wrong, [[0.1]])
    for wrong in (0.1, [0.1]):
        with pytest.raises(TypeError, match="scales"):
            ops.grid_anchors([2], wrong)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", "float32"), ("bfloat16", "float32"), ("uint8", "float32"), ("int16", "float32"), ("int64", "float64")],
)
def test_arrays_promotion_before_arithmetic(dtype, expected):
    boxes = torch.tensor([[0, 0, 200, 200], [100, 100, 250, 250]]).to(getattr(torch, dtype))
    comp = ops.box_iou(boxes, boxes)
    assert comp.dtype == getattr(torch, expected)
    torch.testing.assert_close(comp[0, 1].item(), 10000 / (40000 + 22500 - 10000))


NAN_BOXES = np.where(np.arange(48).reshape(12, 4) == 5, np.nan, BOXES)
FLAT_BOXES = np.where(np.arange(12)[:, None] == 3, [1, 1, 1, 5], BOXES)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: ops.nms(BOXES[:, :3], SCORES, 0.5), ValueError, "boxes"),
        (lambda: ops.nms(BOXES[0], SCORES, 0.5), ValueError, "boxes"),
        (lambda: ops.nms(BOXES, SCORES[:5], 0.5), ValueError, "scores"),
        (lambda: ops.nms(BOXES, SCORES, 1.5), ValueError, "iou_threshold"),
        (lambda: ops.nms(BOXES, SCORES, float("nan")), ValueError, "iou_threshold"),
        (lambda: ops.nms(BOXES, SCORES, "0.5 or so"), TypeError, "iou_threshold"),
        (lambda: ops.nms(BOXES + 1j, SCORES, 0.5), TypeError, "boxes"),
        (lambda: ops.nms([["a"] * 4], [1.0], 0.5), TypeError, "boxes"),
        (lambda: ops.nms([[1, 2, 3, 4], [1]], [1.0], 0.5), TypeError, "boxes"),
        (lambda: ops.nms(NAN_BOXES, SCORES, 0.5, nonfinite="raise"), ValueError, r"boxes\[1\]"),
        (
            lambda: ops.nms(BOXES, np.where(SCORES[4] == SCORES, np.nan, SCORES), 0.5, nonfinite="raise"),
            ValueError,
            "4",
        ),
        (lambda: ops.nms(BOXES, SCORES, 0.5, nonfinite="maybe"), ValueError, "nonfinite"),
        (lambda: ops.batched_nms(BOXES, SCORES, SCORES, 0.5), TypeError, "idxs"),
        (lambda: ops.batched_nms(BOXES, SCORES, np.arange(3), 0.5), ValueError, "idxs"),
        (lambda: ops.soft_nms(BOXES, SCORES, method="hard"), ValueError, "method"),
        (lambda: ops.soft_nms(BOXES, SCORES, sigma=0), ValueError, "sigma"),
        (lambda: ops.box_iou(BOXES, OTHERS, out=np.empty((12, 5), np.float32)), ValueError, "out"),
        (lambda: ops.box_iou(BOXES, OTHERS, out=np.empty((5, 12)).T), ValueError, "out"),
        (lambda: ops.box_iou(np.stack([BOXES] * 2), np.stack([BOXES] * 3)), ValueError, "boxes2"),
        (lambda: ops.paired_box_iou(BOXES, OTHERS), ValueError, "boxes2"),
        (lambda: ops.box_convert(BOXES, "xyxy", "xxyy"), ValueError, "out_fmt"),
        (lambda: ops.clip_boxes_to_image(BOXES, 5), ValueError, "size"),
        (lambda: ops.clip_boxes_to_image(BOXES, (5, -1)), ValueError, "size"),
        (lambda: ops.remove_small_boxes(BOXES, float("nan")), ValueError, "min_size"),
        (lambda: ops.grid_anchors([4, 2], [[0.1]]), ValueError, "scales"),
        (lambda: ops.grid_anchors([4], [[0.1, -1]]), ValueError, "scales"),
        (lambda: ops.grid_anchors([2.5], [[0.1]]), TypeError, "grid_sizes"),
        (lambda: ops.grid_anchors([4], [[0.1]], dtype=np.int32), TypeError, "dtype"),
        (lambda: ops.match_anchors(BOXES, NAN_BOXES), ValueError, r"gt_boxes\[1\]"),
        (lambda: ops.match_anchors(BOXES, [BOXES, BOXES[:0], NAN_BOXES]), ValueError, r"gt_boxes\[2\]\[1\]"),
        (lambda: ops.match_anchors(NAN_BOXES, BOXES), ValueError, r"anchors\[1\]"),
        (lambda: ops.match_anchors(BOXES, OTHERS, force_match="all"), ValueError, "force_match"),
        (lambda: ops.match_anchors(BOXES, OTHERS, background_threshold=0.7), ValueError, "background_threshold"),
        (lambda: ops.match_anchors(BOXES, OTHERS[None], gt_counts=[6]), ValueError, "gt_counts"),
        (lambda: ops.match_anchors(BOXES, [OTHERS], gt_counts=[5]), ValueError, "gt_counts"),
        (lambda: ops.assign_targets(BOXES, FLAT_BOXES, np.ones(12, int)), ValueError, r"gt_boxes\[3\]"),
        (lambda: ops.assign_targets(FLAT_BOXES, OTHERS, np.ones(5, int)), ValueError, r"anchors\[3\]"),
        (lambda: ops.assign_targets(BOXES, OTHERS, np.arange(5)), ValueError, "gt_boxes|label"),
        (lambda: ops.assign_targets(BOXES, OTHERS, np.ones(4, int)), ValueError, "gt_labels"),
        (lambda: ops.assign_targets(BOXES, [OTHERS], np.ones(5, int)), ValueError, "gt_labels"),
        (lambda: ops.mine_hard_negatives(SCORES, SCORES), TypeError, "positive"),
        (lambda: ops.mine_hard_negatives(SCORES, SCORES[:3] > 0), ValueError, "positive"),
        (lambda: ops.mine_hard_negatives(SCORES, SCORES > 0, neg_pos_ratio=-1), ValueError, "neg_pos_ratio"),
        (lambda: ops.mine_hard_negatives(SCORES, SCORES > 0, min_negatives=0.5), TypeError, "min_negatives"),
        (lambda: ops.multibox_cross_entropy(LOGITS, CLASSES[:1]), ValueError, "labels"),
        (lambda: ops.multibox_cross_entropy(LOGITS, CLASSES * 1.0), TypeError, "labels"),
        (lambda: ops.multibox_cross_entropy(LOGITS[..., :3], CLASSES), ValueError, r"labels\[0, 1\]"),
        (lambda: ops.multibox_cross_entropy(LOGITS, CLASSES * 2), ValueError, r"labels\[0, 1\]"),
        (lambda: ops.multibox_cross_entropy(LOGITS, CLASSES - 1), ValueError, r"labels\[0, 4\]"),
        (lambda: ops.multibox_cross_entropy(LOGITS[..., :0], CLASSES), ValueError, "logits"),
        (lambda: ops.multibox_cross_entropy(LOGITS[0, 0], CLASSES[0, 0]), ValueError, "logits"),
        (lambda: ops.multibox_cross_entropy(LOGITS, CLASSES, neg_pos_ratio=np.nan), ValueError, "neg_pos_ratio"),
        (lambda: ops.encode_boxes(FLAT_BOXES, BOXES), ValueError, r"boxes\[3\]"),
        (lambda: ops.encode_boxes(BOXES, FLAT_BOXES), ValueError, r"anchors\[3\]"),
        (lambda: ops.encode_boxes(BOXES, BOXES, variances=(0.1, 0)), ValueError, "variances"),
        (lambda: ops.decode_boxes(DELTAS, BOXES[:3]), ValueError, "deltas"),
        (lambda: ops.postprocess_detections(LOGITS, DELTAS[:1], BOXES), ValueError, "deltas"),
        (lambda: ops.postprocess_detections(LOGITS[..., :0], DELTAS, BOXES), ValueError, "logits"),
        (lambda: ops.postprocess_detections(LOGITS, DELTAS, BOXES, topk=-1), ValueError, "topk"),
        (lambda: ops.postprocess_detections(LOGITS, DELTAS, BOXES, activation="tanh"), ValueError, "activation"),
    ],
)
def test_arrays_bad_input_raises_and_names_the_argument(call, error, named):
    with pytest.raises(error, match=named):
        call()


def test_arrays_result_too_large_is_a_memory_error():
    many = np.zeros((3_000_000, 4), np.float32)
    with pytest.raises(MemoryError):
        ops.box_iou(many, many)  # 36 TB


def test_iou_out_is_written_and_returned():
    out = np.full((12, 5), 7.0)
    assert ops.box_iou(BOXES, OTHERS, out=out) is out
    np.testing.assert_array_equal(out, ops.box_iou(BOXES, OTHERS))


PAIRWISE = [ops.box_iou, ops.generalized_box_iou, ops.distance_box_iou, ops.complete_box_iou]


@pytest.mark.parametrize("function", PAIRWISE)
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("start", [0, 8, 37, 47, 48, 95, 96])
def test_iou_out_may_share_memory_with_the_boxes(function, kind, dtype, start):
    # The memory of 12 and 12 boxes, and 60 numbers more; `out` starts before, among or behind them.
    memory = np.concatenate([BOXES.ravel(), BOXES[::-1].ravel(), np.zeros(144)]).astype(dtype)
    ref = function(memory[:48].reshape(12, 4).copy(), memory[48:96].reshape(12, 4).copy())
    memory = kind(memory)
    a, b, out = memory[:48].reshape(12, 4), memory[48:96].reshape(12, 4), memory[start : start + 144].reshape(12, 12)
    assert function(a, b, out=out) is out
    np.testing.assert_array_equal(np.asarray(out), ref)


@pytest.mark.parametrize("function", PAIRWISE)
@pytest.mark.parametrize("strided_boxes", [False, True])  # the long way, and the short one
def test_iou_out_that_autograd_has_saved_is_seen_to_change(function, strided_boxes):
    boxes = torch.from_numpy(BOXES)
    boxes = boxes.repeat_interleave(2, 0)[::2] if strided_boxes else boxes
    out, weight = torch.ones(12, 12, dtype=torch.float64), torch.ones(12, 12, requires_grad=True)
    loss = (out * weight).sum()
    function(boxes, boxes, out=out)
    with pytest.raises(RuntimeError):
        loss.backward()


def not_to_be_written():
    """What `out` may not be, for 12 and 5 boxes of float64: tensors, then arrays."""
    base = torch.zeros(12, 5, dtype=torch.float64)
    yield from (base.clone().requires_grad_(), (base.clone().requires_grad_() * 1), base[:, :4], base.float())
    yield from (base.bfloat16(), base.long(), base.T.contiguous().T, base[:1].expand(12, 5), base.to("meta"))
    yield from (base.to_sparse(), torch.complex(base, base).conj().imag, base.numpy(), base.tolist())
    array = np.zeros((12, 5))
    read_only = array.copy()
    read_only.flags.writeable = False
    yield from (read_only, array.T.copy().T, np.broadcast_to(array[:1], (12, 5)), array.astype(">f8"), base)
    yield from (np.frombuffer(bytearray(481), np.float64, offset=1).reshape(12, 5), array.astype("f"), array.tolist())


@pytest.mark.parametrize("place", range(21))
def test_iou_out_that_cannot_be_written_is_an_error(place):
    out = list(not_to_be_written())[place]
    kind = torch.from_numpy if place < 13 else np.asarray
    for boxes in (BOXES, BOXES.repeat(2, 0)[::2]):
        for context in (torch.enable_grad(), torch.no_grad()):
            with context, pytest.raises((TypeError, ValueError), match=r"^out"):
                ops.box_iou(kind(boxes), kind(OTHERS), out=out)
    with pytest.raises(ValueError, match=r"^out"):
        ops.box_iou(torch.from_numpy(BOXES).requires_grad_(), torch.from_numpy(OTHERS), out=torch.zeros(12, 5).double())


def test_matching_by_hand():
    # Anchor 0 is the best of both ground truths; the larger IoU wins it, the other takes its second best.
    anchors = np.array([[0, 0, 10, 10], [0, 0, 10, 4], [50, 50, 60, 60], [0, 0, 10, 8]], np.float32)
    gt = np.array([[0, 0, 10, 9], [0, 0, 10, 10]], np.float32)
    bipartite = ops.match_anchors(anchors, gt)
    assert bipartite.gt_idx.tolist() == [1, -1, -1, 0]
    np.testing.assert_allclose(bipartite.iou, [1, 40 / 90, 0, 80 / 90], rtol=1e-6)
    # torchvision's: the last ground truth wins the shared anchor, the other keeps what the threshold gave.
    assert ops.match_anchors(anchors, gt, force_match="best", iou_threshold=0.95).gt_idx.tolist() == [1, -1, -1, -1]
    # detectron2's: the best anchor of a ground truth is positive, for its own best ground truth.
    assert ops.match_anchors(anchors, gt, force_match="low_quality", iou_threshold=1).gt_idx.tolist() == [1, -1, -1, -1]
    ignored = ops.match_anchors(anchors, gt, force_match="none", iou_threshold=0.95, background_threshold=0.42)
    assert ignored.gt_idx.tolist() == [1, -2, -1, -2]


def test_matching_pictures_of_a_batch_do_not_touch_each_other():
    pictures = [random_boxes(RNG, n) for n in (3, 0, 7)]
    batch = ops.match_anchors(BOXES, pictures)
    for image, gt in enumerate(pictures):
        one = ops.match_anchors(BOXES, gt)
        np.testing.assert_array_equal(batch.gt_idx[image], one.gt_idx)
        np.testing.assert_array_equal(batch.iou[image], one.iou)


def test_mining_by_hand():
    loss = np.array([5.0, 1.0, 9.0, 3.0, 3.0, 2.0])
    positive = np.array([True, False, False, False, False, False])
    assert np.flatnonzero(ops.mine_hard_negatives(loss, positive, neg_pos_ratio=2)).tolist() == [2, 3]
    assert np.flatnonzero(ops.mine_hard_negatives(loss, positive & False)).tolist() == []
    assert np.flatnonzero(ops.mine_hard_negatives(loss, positive & False, min_negatives=1)).tolist() == [2]


@pytest.mark.parametrize(("columns", "bias"), [(2, 0), (4, 9), (40, 0), (40, 9)])
def test_multibox_is_mining_and_cross_entropy(columns, bias):
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(size=(3, 500, columns)))
    logits[..., 0] += bias
    logits.requires_grad_()
    labels = torch.from_numpy(rng.integers(1, columns, (3, 500)) * (rng.random((3, 500)) < [[0.0], [0.02], [0.5]]))
    labels[:, ::9] = -1
    loss, selected = ops.multibox_cross_entropy(logits, labels, neg_pos_ratio=2, min_negatives=4)
    of_background = (-logits.detach().log_softmax(-1)[..., 0]).masked_fill(labels < 0, -torch.inf)
    mined = ops.mine_hard_negatives(of_background, labels > 0, neg_pos_ratio=2, min_negatives=4)
    assert torch.equal(selected, mined | (labels > 0))
    expected = torch.nn.functional.cross_entropy(logits[selected], labels[selected], reduction="sum")
    torch.testing.assert_close(loss, expected)
    comp, ref = (torch.autograd.grad(3 * value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(comp, ref)


def test_multibox_nan_logits_reach_the_loss():
    for place in ((1, 5, 0), (1, 5, 3), (0, 1, 2)):  # in a negative's background, in its foreground, in a positive
        logits = LOGITS.copy()
        logits[place] = np.nan
        loss, selected = ops.multibox_cross_entropy(logits, CLASSES, min_negatives=1)
        assert selected[place[:2]]
        assert np.isnan(loss)


def test_nms_by_hand():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30], [0, 0, 10, 6]], np.float32)
    scores = np.array([0.9, 0.8, 0.8, 0.95], np.float32)
    assert ops.nms(boxes, scores, 0.5).tolist() == [3, 2]
    assert ops.nms(boxes, scores, 0.6).tolist() == [3, 2]  # 6 / 10 in float32 is greater than 0.6 in double
    assert ops.nms(boxes, scores, 0.61).tolist() == [3, 0, 2]
    assert ops.batched_nms(boxes, scores, [0, 1, 0, 1], 0.5).tolist() == [3, 0, 2]


def test_nms_nonfinite_boxes_leave_the_others_unaffected():
    bad = np.array([[np.nan, 0, 1, 1], [-np.inf, -np.inf, np.inf, np.inf]])
    mixed, scores = np.concatenate([BOXES, bad]), np.concatenate([SCORES, [2.0, 3.0]])
    np.testing.assert_array_equal(ops.nms(mixed, scores, 0.3), ops.nms(BOXES, SCORES, 0.3))


def test_soft_nms_by_hand():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]], np.float64)
    keep, scores = ops.soft_nms(boxes, np.array([0.9, 0.8, 0.5]), method="linear", iou_threshold=0.3)
    assert keep.tolist() == [0, 2, 1]
    np.testing.assert_allclose(scores, [0.9, 0.5, 0.4])
    _, scores = ops.soft_nms(boxes, np.array([0.9, 0.8, 0.5]), method="gaussian", sigma=0.5)
    np.testing.assert_allclose(scores, [0.9, 0.5, 0.8 * np.exp(-0.5)])


def test_postprocessing_is_the_sum_of_its_parts():
    found = ops.postprocess_detections(LOGITS, DELTAS, BOXES, score_threshold=0.1, iou_threshold=0.4, topk=None)
    boxes = ops.decode_boxes(DELTAS, BOXES)
    scores = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    for image in range(2):
        anchor, label = np.nonzero(scores[image, :, 1:] > 0.1)
        keep = ops.batched_nms(boxes[image, anchor], scores[image, anchor, label + 1], label, 0.4)
        count = found.counts[image]
        assert count == len(keep) > 0
        np.testing.assert_array_equal(found.anchor_idx[image, :count], anchor[keep])
        np.testing.assert_array_equal(found.labels[image, :count], label[keep] + 1)
        np.testing.assert_allclose(found.boxes[image, :count], boxes[image, anchor[keep]])
        assert (found.labels[image, count:] == -1).all()
        assert not found.boxes[image, count:].any()


def tensors_of(*arrays):
    return [torch.from_numpy(array.copy()).requires_grad_() for array in arrays]


@pytest.mark.parametrize(
    "function",
    [ops.box_iou, ops.generalized_box_iou, ops.distance_box_iou, lambda a, b: ops.paired_box_iou(a[:5], b)],
)
def test_gradients_of_the_iou_family(function):
    pair = tensors_of(BOXES, OTHERS)
    assert torch.autograd.gradcheck(function, pair)
    assert torch.autograd.gradgradcheck(function, pair)


def test_gradients_of_complete_iou_hold_the_weight_constant():
    a, b = tensors_of(BOXES[:5], OTHERS)
    diou = ops.distance_box_iou(a, b)
    angle = [torch.atan2(x[:, 2] - x[:, 0], x[:, 3] - x[:, 1]) for x in (a, b)]
    v = 4 / np.pi**2 * (angle[0][:, None] - angle[1]) ** 2
    alpha = (v / (1 - ops.box_iou(a, b) + v + 1e-7)).detach()
    expected = torch.autograd.grad((diou - alpha * v).sum(), (a, b))
    for e, found in zip(expected, torch.autograd.grad(ops.complete_box_iou(a, b).sum(), (a, b)), strict=True):
        torch.testing.assert_close(found, e)


@pytest.mark.parametrize(
    ("function", "arrays"),
    [
        (ops.encode_boxes, (BOXES, BOXES[::-1])),
        (ops.decode_boxes, (DELTAS, BOXES)),
        (ops.box_area, (BOXES,)),
        (lambda b: ops.box_convert(b, "xyxy", "cxcywh"), (BOXES,)),
        (lambda b: ops.box_convert(b, "cxcywh", "xywh"), (BOXES,)),
        (lambda b: ops.clip_boxes_to_image(b, (50, 60)), (BOXES,)),
    ],
)
def test_gradients_of_the_coder_and_of_boxes(function, arrays):
    assert torch.autograd.gradcheck(function, tensors_of(*arrays))


def test_gradients_of_multibox_once_and_in_the_dtype_of_the_logits():
    (logits,) = tensors_of(LOGITS)
    assert torch.autograd.gradcheck(lambda x: ops.multibox_cross_entropy(x, CLASSES).loss, logits)
    loss, selected = ops.multibox_cross_entropy(logits, CLASSES)
    assert not selected.requires_grad
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()
    half = logits.detach().bfloat16().requires_grad_()
    loss = ops.multibox_cross_entropy(half, CLASSES).loss
    loss.backward()
    assert (loss.dtype, half.grad.dtype) == (torch.float32, torch.bfloat16)


def test_gradients_one_tensor_as_both_arguments():
    a, b = tensors_of(BOXES, BOXES)
    twice = torch.autograd.grad(ops.box_iou(a, a).sum(), a)[0]
    apart = torch.autograd.grad(ops.box_iou(a, b).sum(), (a, b))
    torch.testing.assert_close(twice, apart[0] + apart[1])


@pytest.mark.parametrize(
    "call",
    [
        lambda b, s: ops.soft_nms(b, s)[1],
        lambda b, s: ops.match_anchors(b, OTHERS).iou,
        lambda b, s: ops.assign_targets(b, OTHERS, np.ones(5, int)).deltas,
        lambda b, s: ops.postprocess_detections(b, b, b).boxes,
        lambda b, s: ops.postprocess_detections(b, b, b).scores,
    ],
)
def test_gradients_that_do_not_exist_are_an_error(call):
    boxes, scores = tensors_of(BOXES, SCORES)
    with pytest.raises(NotImplementedError):
        call(boxes, scores).sum().backward()
    with torch.no_grad():
        assert not call(boxes, scores).requires_grad
