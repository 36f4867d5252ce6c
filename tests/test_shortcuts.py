"""A short way gives the same as the long way, or declines."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import numpy as np
import pytest

import fastssd
from fastssd import ops
from fastssd.backends import available_backends, shortcuts

if "cpp" not in available_backends():
    pytest.skip("only the C++ backend has shortcuts", allow_module_level=True)

RNG = np.random.default_rng(0)
CORNER = RNG.random((2, 37, 2))
BOXES = np.concatenate([CORNER, CORNER + RNG.random((2, 37, 2)) / 3], -1)
BOXES[0, 5], BOXES[1, 6, 2] = BOXES[0, 4], np.nan
SCORES = np.round(RNG.random(37), 1)
GROUPS = RNG.integers(-2, 2, 37)

CALLS = {
    "box_iou": lambda boxes, scores, groups: ops.box_iou(boxes, boxes + 0.125),
    "generalized_box_iou": lambda boxes, scores, groups: ops.generalized_box_iou(boxes[0], boxes[1]),
    "distance_box_iou": lambda boxes, scores, groups: ops.distance_box_iou(boxes[0], boxes[1]),
    "complete_box_iou": lambda boxes, scores, groups: ops.complete_box_iou(boxes[0], boxes[1]),
    "paired_box_iou": lambda boxes, scores, groups: ops.paired_box_iou(boxes[0], boxes[1]),
    "match_anchors": lambda boxes, scores, groups: ops.match_anchors(boxes[0], [boxes[0][3:9], boxes[1][7:9]]),
    "assign_targets": lambda boxes, scores, groups: ops.assign_targets(
        boxes[0], (boxes[0][3:9], boxes[1][7:9]), (abs(groups[:6]) + 1, abs(groups[:2]) + 1)
    ),
    "encode_boxes": lambda boxes, scores, groups: ops.encode_boxes(boxes[:1], boxes[0]),
    "decode_boxes": lambda boxes, scores, groups: ops.decode_boxes(boxes, boxes[0], variances=(0.2, 0.3)),
    "nms": lambda boxes, scores, groups: ops.nms(boxes[0], scores, 0.3),
    "batched_nms": lambda boxes, scores, groups: ops.batched_nms(boxes[0], scores, groups, 0.3),
}


@pytest.fixture(autouse=True)
def cpp():
    with fastssd.use_backend("cpp"):
        yield


def test_every_shortcut_is_tried_below():
    assert vars(shortcuts).keys() == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_takes_the_arguments_of_the_public_function_in_its_order(name):
    signature = vars(shortcuts)[name].__doc__.splitlines()[0]
    assert re.findall(r"(\w+): ", signature) == list(inspect.signature(getattr(ops, name)).parameters)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("name", CALLS)
def test_same_result_as_the_long_way(name, kind, dtype, monkeypatch):
    arrays = [BOXES.astype(dtype), SCORES.astype(dtype), GROUPS]
    if kind == "torch":
        arrays = [pytest.importorskip("torch").from_numpy(array) for array in arrays]
    shortcut, answers = vars(shortcuts)[name], []

    def watched(*arguments):
        answers.append(shortcut(*arguments))
        return answers[-1]

    monkeypatch.setitem(vars(shortcuts), name, watched)
    comp = CALLS[name](*arrays)
    monkeypatch.delitem(vars(shortcuts), name)
    ref = CALLS[name](*arrays)
    assert type(comp) is type(ref)
    for answer, c, r in zip(*(x if isinstance(x, tuple) else (x,) for x in (answers[0], comp, ref)), strict=True):
        assert c is answer
        assert type(c) is type(r)
        assert c.dtype == r.dtype
        np.testing.assert_array_equal(np.asarray(c), np.asarray(r), strict=True)


def unusual_arrays():
    boxes = np.ascontiguousarray(BOXES[0], np.float32)
    yield "list", boxes.tolist()
    yield "integers", (boxes * 99).astype(np.int64)
    yield "half", boxes.astype(np.float16)
    yield "foreign byte order", boxes.astype(boxes.dtype.newbyteorder())
    yield "column order", np.asfortranarray(boxes)
    yield "strided", np.repeat(boxes, 2, 0)[::2]
    yield "misaligned", np.frombuffer(b"." + boxes.tobytes(), np.float32, offset=1).reshape(-1, 4)
    yield "subclass", boxes.view(np.ma.MaskedArray)
    yield "one axis", boxes.ravel()[:4]
    yield "five columns", np.ones((37, 5), np.float32)


def unusual_tensors():
    torch = pytest.importorskip("torch")
    boxes = torch.tensor(BOXES[0], dtype=torch.float32)
    yield "gradient", boxes.clone().requires_grad_()
    yield "parameter", torch.nn.Parameter(boxes, requires_grad=False)
    yield "half", boxes.bfloat16()
    yield "strided", boxes.repeat_interleave(2, 0)[::2]
    yield "negated view", torch.complex(boxes, boxes).conj().imag
    yield "no memory", boxes.to("meta")
    yield "zeros without memory", torch._efficientzerotensor(boxes.shape)
    yield "sparse", boxes.to_sparse()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("unusual", [unusual_arrays, unusual_tensors])
def test_declines_unusual_arrays(name, unusual):
    shortcut = vars(shortcuts)[name]
    plain = [np.float32(BOXES[0]), np.float32(SCORES), GROUPS]
    if unusual is unusual_tensors:
        plain = [pytest.importorskip("torch").from_numpy(array) for array in plain]
    boxes, scores, groups = plain
    match = (0.5, None, "bipartite", None)
    rest = {
        "nms": (scores, 0.3, "drop"),
        "batched_nms": (scores, groups, 0.3, "drop"),
        "paired_box_iou": (boxes,),
        "encode_boxes": (boxes, (0.1, 0.2)),
        "decode_boxes": (boxes, (0.1, 0.2)),
        "match_anchors": ([boxes], *match),
        "assign_targets": ([boxes], [abs(groups) + 1], *match, (0.1, 0.2)),
    }
    arguments = rest.get(name, (boxes, None))
    assert shortcut(boxes, *arguments) is not None
    for what, array in unusual():
        assert shortcut(array, *arguments) is None, what


OLD_TORCH = """
import torch, pytest, sys
del torch.Tensor.__dlpack_c_exchange_api__
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1], "-k", "torch or tensors"]))
"""


def test_tensors_of_a_torch_without_the_exchange_of_dlpack():
    if not hasattr(pytest.importorskip("torch").Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch is one, and the tests above have tried it")
    result = subprocess.run([sys.executable, "-c", OLD_TORCH, __file__], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout


def test_declines_unusual_arguments():
    boxes, scores = np.float32(BOXES[0]), np.float32(SCORES)
    direct = vars(shortcuts)
    assert direct["nms"](boxes, scores, 0.5, "drop") is not None
    for threshold in (-0.1, 1.1, float("nan"), "0.5", np.float32(0.5), None):
        assert direct["nms"](boxes, scores, threshold, "drop") is None
    for nonfinite in ("raise", "Drop", b"drop", None):
        assert direct["nms"](boxes, scores, 0.5, nonfinite) is None
        assert direct["batched_nms"](boxes, scores, GROUPS, 0.5, nonfinite) is None
    assert direct["nms"](boxes, scores[:-1], 0.5, "drop") is None
    assert direct["nms"](boxes, np.float64(scores), 0.5, "drop") is None
    assert direct["batched_nms"](boxes, scores, GROUPS.astype(np.int32), 0.5, "drop") is None
    assert direct["box_iou"](boxes, np.float64(boxes), None) is None
    assert direct["box_iou"](BOXES, BOXES[:1], None) is None
    assert direct["paired_box_iou"](boxes, boxes[:-1]) is None


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_declines_unusual_ground_truth(kind):
    boxes, labels = np.float32(BOXES[0]), abs(GROUPS) + 1
    nan, point, zero = boxes.copy(), boxes.copy(), labels.copy()
    nan[3, 1], point[3, 2:], zero[5] = np.nan, point[3, :2], 0
    if kind == "torch":
        torch = pytest.importorskip("torch")
        boxes, labels, nan, point, zero = map(torch.from_numpy, (boxes, labels, nan, point, zero))
    match, assign, options = shortcuts.match_anchors, shortcuts.assign_targets, (0.5, 0.4, "best", None)
    variances = (0.1, 0.2)
    assert match(boxes, [boxes, point, boxes[:0]], *options) is not None
    assert assign(boxes, boxes, labels, *options, variances) is not None
    for bad in ([nan], [boxes, nan], nan, [], [boxes.tolist()], [boxes[:, :3]], boxes[0], [boxes, None], iter([boxes])):
        assert match(boxes, bad, *options) is None
    assert match(nan, [boxes], *options) is None
    assert match(boxes, [np.float64(boxes)], *options) is None
    for bad in ((1.1, None, "best"), (0.5, 0.6, "best"), (1, None, "best"), (0.5, None, "Best"), (0.5, None, None)):
        assert match(boxes, [boxes], *bad, None) is None
    for counts in ([1], 0, labels[:1]):
        assert match(boxes, [boxes], 0.5, 0.4, "best", counts) is None
        assert assign(boxes, [boxes], [labels], 0.5, 0.4, "best", counts, variances) is None
    for anchors, gt_boxes, gt_labels in (
        (point, [boxes], [labels]),
        (boxes, [point], [labels]),
        (boxes, [boxes], [zero]),
        (boxes, [boxes], [labels[:-1]]),
        (boxes, [boxes], labels),
        (boxes, [boxes[:9], boxes[:1]], [labels[:1], labels[:9]]),
    ):
        assert assign(anchors, gt_boxes, gt_labels, *options, variances) is None
    for bad in ((0.1,), [0.1, 0.2], (0.1, 0.0), (0.1, float("nan")), (1, 2), None):
        assert assign(boxes, [boxes], [labels], *options, bad) is None
        assert shortcuts.decode_boxes(boxes, boxes, bad) is None
    for bad in (nan, point, boxes[:-1]):
        assert shortcuts.encode_boxes(bad, boxes, variances) is None
        assert shortcuts.encode_boxes(boxes, bad, variances) is None
    assert shortcuts.decode_boxes(nan, boxes, variances) is not None


def test_ground_truth_in_every_form():
    boxes, labels = np.float32(BOXES[:1, :6]), abs(GROUPS[:6]) + 1
    anchors = np.float32(BOXES[0])
    batch = ops.assign_targets(anchors, np.concatenate([boxes, boxes]), np.stack([labels, labels]))
    lists = ops.assign_targets(anchors, [boxes[0]] * 2, (labels, labels))
    single = ops.assign_targets(anchors, boxes[0], labels)
    for b, m, s in zip(batch, lists, single, strict=True):
        assert b.flags.writeable
        np.testing.assert_array_equal(b, m, strict=True)
        np.testing.assert_array_equal(b[1], s, strict=True)


def test_writes_into_out():
    boxes = np.float32(BOXES[0])
    out = np.empty((37, 37), np.float32)
    assert shortcuts.box_iou(boxes, boxes, out) is out
    np.testing.assert_array_equal(out, ops.box_iou(boxes, boxes))
    read_only = out.copy()
    read_only.flags.writeable = False
    for bad in (read_only, out[:-1], np.float64(out), out.T, out.tolist()):
        assert shortcuts.box_iou(boxes, boxes, bad) is None


def test_follow_the_backend():
    boxes = np.float32(BOXES[0])
    with fastssd.use_backend("reference"):
        assert shortcuts.box_iou(boxes, boxes, None) is None
    assert shortcuts.box_iou(boxes, boxes, None) is not None
