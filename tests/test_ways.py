"""The way in does not matter: NumPy, torch, a gradient, a dispatch mode, a device's formulas, torch.ops, a compiler."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from fastssd import ops
from tests.cases import difference
from tests.test_contract import BOXES, CALLS, CLASSES, LOGITS, OTHERS, SCORES

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from fastssd.ops._operator import REGISTRY  # noqa: E402
from tests.test_device import OtherDevice  # noqa: E402


class Watched(TorchDispatchMode):
    """Leaves every operator as it is, but is there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def tensor(value: Any) -> Any:
    if isinstance(value, list):
        return [tensor(each) for each in value]
    return torch.tensor(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def graded(value: Any) -> Any:
    if isinstance(value, list):
        return [graded(each) for each in value]
    found = tensor(value)
    return found.requires_grad_() if torch.is_tensor(found) and found.is_floating_point() else found


def the_first(wanted: bool) -> Any:
    """Makes tensors of the first array only, or of all but the first."""

    def convert(value: Any, place: int = 0) -> Any:
        return tensor(value) if (place == 0) is wanted else value

    return convert


def odd(value: Any) -> Any:
    """As an array that is strided, unaligned and of foreign byte order; these have to be copied beside a tensor."""
    if isinstance(value, list):
        return [odd(each) for each in value]
    foreign = np.asarray(value).astype(np.asarray(value).dtype.newbyteorder())
    raw = np.frombuffer(b"." + foreign[::-1].tobytes(), foreign.dtype, offset=1)
    return raw.reshape(foreign.shape)[::-1]


# How arrays are given, and under what.
WAYS = {
    "tensors": (tensor, contextlib.nullcontext),
    "gradient": (graded, contextlib.nullcontext),
    "first a tensor": (the_first(True), contextlib.nullcontext),
    "first an array": (the_first(False), contextlib.nullcontext),
    "odd arrays": (odd, contextlib.nullcontext),
    "odd beside a gradient": (
        lambda value, place=0: graded(value) if place == 0 else odd(value),
        contextlib.nullcontext,
    ),
    "mode": (tensor, Watched),
    "first an array, mode": (the_first(False), Watched),
    "odd, mode": (lambda value, place=0: tensor(value) if place == 0 else odd(value), Watched),
    "device": (tensor, OtherDevice),
}


def outcome(call: Any) -> Any:
    """What a call gives, as NumPy arrays; or the type of what it raises."""
    try:
        found = call()
    except Exception as error:
        return type(error)
    found = found if isinstance(found, tuple) else (found,)
    return tuple(each.detach().numpy() if torch.is_tensor(each) else each for each in found)


def assert_equal(operator: str, ref: Any, comp: Any) -> None:
    if isinstance(ref, type) or isinstance(comp, type):
        assert comp is ref
    else:
        assert difference(operator, ref, comp) is None
        for r, c in zip(ref, comp, strict=True):
            np.testing.assert_array_equal(np.signbit(r), np.signbit(c))


def given(convert: Any, arrays: Any) -> list[Any]:
    try:
        return [convert(array, place) for place, array in enumerate(arrays)]
    except TypeError:  # one for all places
        return [convert(array) for array in arrays]


def test_no_operator_is_missing():
    names = set(REGISTRY) - {"grid_anchors", "multibox_cross_entropy_gradient"}
    assert set(CALLS) == names == {case[0] for case in HOSTILE}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CALLS)
def test_values(name, way):
    arrays, options = CALLS[name]
    convert, context = WAYS[way]
    ref = outcome(lambda: getattr(ops, name)(*arrays, **options))
    taken = given(convert, arrays)
    tensors = any(torch.is_tensor(each) for each in taken)
    with context():
        found = getattr(ops, name)(*taken, **options)
    for each in found if isinstance(found, tuple) else (found,):
        assert torch.is_tensor(each) == tensors
    assert_equal(name, ref, outcome(lambda: found))


@pytest.mark.parametrize("name", CALLS)
def test_values_of_torch_ops(name):
    arrays, options = CALLS[name]
    comp = outcome(lambda: getattr(torch.ops.fastssd, name)(*map(tensor, arrays), **options))
    assert_equal(name, outcome(lambda: getattr(ops, name)(*arrays, **options)), comp)


NOTHING, FLAT = np.array([]), np.where(np.arange(12)[:, None] == 3, [1, 1, 1, 5], BOXES)
EMPTY_INT, WIDE = np.zeros((0, 4), np.int64), np.array([[0, 0, 2**24 + 1, 10], [3, 3, 9, 9]])
BOX = OTHERS[:1].astype(np.float32)
HUGE = np.array([2**64 - 1] + [0] * 11, np.uint64)
# (operator, arrays, options): what is legal and rare, or wrong.
HOSTILE: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("box_area", (NOTHING,), {}),
    ("box_area", (BOXES + 1j,), {}),
    ("box_area", (BOXES[:, :3],), {}),
    ("box_convert", (BOXES > 9,), {"in_fmt": "xyxy", "out_fmt": "xywh"}),
    ("box_convert", (BOXES,), {"in_fmt": "xyxy", "out_fmt": 5}),
    ("clip_boxes_to_image", (-0.0 * BOXES,), {"size": (0, 9)}),
    ("clip_boxes_to_image", (BOXES,), {"size": (5, 5, 5)}),
    ("clip_boxes_to_image", (BOXES,), {"size": "55"}),
    ("clip_boxes_to_image", (BOXES,), {"size": (5, True)}),
    ("clip_boxes_to_image", (BOXES,), {"size": np.array([5, 9])}),
    ("remove_small_boxes", (NOTHING,), {"min_size": 1}),
    ("remove_small_boxes", (BOXES,), {"min_size": "1"}),
    ("remove_small_boxes", (BOXES,), {"min_size": 10**400}),
    ("box_iou", (NOTHING, BOXES), {}),
    ("box_iou", (BOXES.astype(np.longdouble), OTHERS), {}),
    ("generalized_box_iou", (BOXES.astype(np.uint16), OTHERS.astype(np.int16)), {}),
    ("distance_box_iou", (BOXES, np.stack([OTHERS] * 2)), {}),
    ("complete_box_iou", (BOXES[None].repeat(3, 0), np.stack([OTHERS] * 2)), {}),
    ("paired_box_iou", (BOXES, OTHERS), {}),
    ("match_anchors", (BOX, [EMPTY_INT, BOX]), {}),
    ("match_anchors", (BOX, [WIDE, BOX]), {}),
    ("match_anchors", (BOX, [BOX.astype(np.int16), BOX.astype(np.uint16)]), {}),
    ("match_anchors", (BOX, [np.ones((4, 5)), BOX]), {}),
    ("match_anchors", (BOX, [NOTHING, BOX]), {}),
    ("match_anchors", (BOX, NOTHING), {}),
    ("match_anchors", (NOTHING, BOX), {}),
    ("match_anchors", (BOX, []), {}),
    ("match_anchors", (BOX, [BOX]), {"gt_counts": np.array([1])}),
    ("match_anchors", (BOX, BOX), {"gt_counts": np.array([1])}),
    ("match_anchors", (BOX, BOX[None]), {"gt_counts": np.array([1.0])}),
    ("match_anchors", (BOX, BOX[None]), {"gt_counts": np.array([2**64 - 1], np.uint64)}),
    ("match_anchors", (BOX, BOX), {"background_threshold": 0.7}),
    ("match_anchors", (BOX, BOX), {"force_match": None}),
    ("match_anchors", (BOX, np.where(BOX > 0, np.nan, BOX)), {}),
    ("assign_targets", (BOX, [BOX, BOX], [np.array([7], np.uint8), np.array([300])]), {}),
    ("assign_targets", (BOX, [BOX], [np.array([[7]])]), {}),
    ("assign_targets", (BOX, BOX, np.array([[7]])), {}),
    ("assign_targets", (BOX, [NOTHING, BOX], [NOTHING, np.array([1])]), {}),
    ("assign_targets", (BOX, [BOX], [np.array([1.0])]), {}),
    ("assign_targets", (BOX, [BOX], [np.array([2**64 - 1], np.uint64)]), {}),
    ("assign_targets", (BOX, BOX[None], [np.array([7])]), {"gt_counts": np.array([1])}),
    ("assign_targets", (BOX, [BOX], [np.array([7]), np.array([7])]), {}),
    ("assign_targets", (BOX, BOX, np.array([7])), {"variances": (0.1, "0.2")}),
    ("mine_hard_negatives", (SCORES, SCORES > 0.9), {"neg_pos_ratio": np.float32(0.5), "min_negatives": np.int8(4)}),
    ("mine_hard_negatives", (SCORES, SCORES > 0.9), {"min_negatives": True}),
    ("mine_hard_negatives", (SCORES, SCORES > 0.9), {"min_negatives": 2**63}),
    ("mine_hard_negatives", (SCORES, SCORES > 0.9), {"neg_pos_ratio": b"3"}),
    ("mine_hard_negatives", (SCORES, (SCORES > 0.9).view(np.uint8)), {}),
    ("multibox_cross_entropy", (LOGITS[0], HUGE), {}),
    ("multibox_cross_entropy", (LOGITS[0], HUGE // 2**63), {"neg_pos_ratio": 1}),
    ("multibox_cross_entropy", (LOGITS[0], HUGE.astype(np.float32)), {}),
    ("multibox_cross_entropy", (LOGITS, CLASSES + 1), {}),
    ("encode_boxes", (NOTHING, NOTHING), {}),
    ("encode_boxes", (FLAT, BOXES), {}),
    ("decode_boxes", (NOTHING, NOTHING), {}),
    ("decode_boxes", (BOXES, BOXES), {"variances": 0.1}),
    ("nms", (NOTHING, NOTHING), {"iou_threshold": 0.5}),
    ("nms", (BOXES, SCORES[:5]), {"iou_threshold": 0.5}),
    ("nms", (BOXES, SCORES), {"iou_threshold": 1}),
    ("nms", (BOXES, SCORES), {"iou_threshold": np.array(0.5)}),
    ("nms", (BOXES, SCORES), {"iou_threshold": np.array([0.5])}),
    ("nms", (BOXES, SCORES), {"iou_threshold": "0.5"}),
    ("nms", (BOXES, SCORES), {"iou_threshold": np.array("0.5")}),
    ("nms", (BOXES, SCORES), {"iou_threshold": False}),
    ("nms", (BOXES, SCORES), {"iou_threshold": np.bool_(True)}),
    ("nms", (BOXES, SCORES), {"iou_threshold": np.nan}),
    ("batched_nms", (BOXES[:1].repeat(12, 0), SCORES, HUGE), {"iou_threshold": 0.5}),
    ("batched_nms", (BOXES, SCORES, SCORES), {"iou_threshold": 0.5}),
    ("batched_nms", (NOTHING, NOTHING, NOTHING), {"iou_threshold": 0.5}),
    ("soft_nms", (NOTHING, NOTHING), {}),
    ("soft_nms", (BOXES, SCORES), {"score_threshold": -1, "sigma": 0}),
    ("soft_nms", (BOXES, SCORES), {"score_threshold": -1, "method": "gaussian"}),
    ("postprocess_detections", (LOGITS, BOXES[None].repeat(2, 0), BOXES), {"clip": np.array([20, 30]), "topk": None}),
    ("postprocess_detections", (LOGITS, LOGITS, BOXES), {"topk": 2.0}),
    ("postprocess_detections", (LOGITS, LOGITS, BOXES), {"max_detections": np.array([2])}),
    ("postprocess_detections", (LOGITS, LOGITS, BOXES), {"activation": "tanh"}),
]
HOSTILE_IDS = [f"{name}-{i}" for i, (name, *_) in enumerate(HOSTILE)]


@pytest.mark.parametrize("way", ["tensors", "first an array", "odd arrays", "mode", "first an array, mode", "device"])
@pytest.mark.parametrize(("name", "arrays", "options"), HOSTILE, ids=HOSTILE_IDS)
def test_what_is_rare_or_wrong(name, arrays, options, way):
    convert, context = WAYS[way]
    if way != "odd arrays" and any(a.dtype == np.longdouble for a in arrays if isinstance(a, np.ndarray)):
        convert = the_first(None)  # torch has no such floats
    ref = outcome(lambda: getattr(ops, name)(*arrays, **options))
    taken = given(convert, arrays)
    with context():
        comp = outcome(lambda: getattr(ops, name)(*taken, **options))
    assert_equal(name, ref, comp)


@pytest.mark.parametrize("wrong", [False, True])
def test_compiled_ground_truth_in_lists(wrong):
    """The forms that a compiler sees apart from what torch.ops takes."""
    cases = [
        case for case in HOSTILE if case[0] in ("match_anchors", "assign_targets") and isinstance(case[1][1], list)
    ]
    torch._dynamo.reset()
    seen = 0
    for name, arrays, options in cases:
        ref = outcome(lambda: getattr(ops, name)(*arrays, **options))  # noqa: B023
        if isinstance(ref, type) != wrong or any(key == "variances" for key in options):
            continue
        compiled = torch.compile(lambda *given: getattr(ops, name)(*given, **options), backend="eager")  # noqa: B023
        comp = outcome(lambda: compiled(*map(tensor, arrays)))  # noqa: B023
        assert isinstance(comp, type) if wrong else difference(name, ref, comp) is None
        seen += 1
    assert seen > 2


@pytest.mark.parametrize("context", [contextlib.nullcontext, Watched])
def test_arrays_beside_a_gradient_are_copied(context):
    """What has no version is the caller's again when the call returns."""
    pairs = {
        "box_iou": (BOXES, OTHERS),
        "paired_box_iou": (BOXES, BOXES + 1),
        "encode_boxes": (BOXES, BOXES + 1),
        "decode_boxes": (BOXES, BOXES + 1),
        "multibox_cross_entropy": (LOGITS, CLASSES),
    }
    for name, (first, second) in pairs.items():
        gradients = []
        for overwrite in (False, True):
            x, buffer = graded(first), second.copy()
            with context():
                found = getattr(ops, name)(x, buffer)
                loss = found.loss if name == "multibox_cross_entropy" else found.square().sum()
            if overwrite:
                buffer[:] = 10**6 if buffer.dtype == np.int64 else 0
            loss.backward()
            gradients.append(x.grad)
        assert gradients[0].abs().sum() > 0
        assert torch.equal(*gradients)


def test_lists_beside_a_gradient_are_what_numpy_makes_of_them():
    for context in (contextlib.nullcontext, Watched):
        with context():
            assert ops.box_iou(graded(BOX), OTHERS.tolist()).dtype == torch.float64


def test_labels_that_change_before_the_backward_pass():
    labels = torch.tensor(CLASSES)
    loss = ops.multibox_cross_entropy(graded(LOGITS), labels).loss
    labels += 0
    with pytest.raises(RuntimeError):  # torch saw it
        loss.backward()
    for wrong in (-100, 10**6):
        labels = torch.tensor(CLASSES)
        loss = ops.multibox_cross_entropy(graded(LOGITS), labels).loss
        labels.numpy()[0, 1] = wrong  # torch did not
        with pytest.raises(ValueError, match=r"labels\[0, 1\]"):
            loss.backward()
        for context in (contextlib.nullcontext, OtherDevice):
            with context(), pytest.raises(ValueError, match=r"labels\[0, 1\]"):
                torch.ops.fastssd.multibox_cross_entropy_gradient(torch.tensor(1.0), tensor(LOGITS), labels, labels > 0)
