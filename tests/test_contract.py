"""What docs/contract.md promises of arrays, whatever the operator.

Backends are compared in test_backends.py, ways in with each other in test_ways.py, bad input is in both.
"""

from __future__ import annotations

from array import array as numbers

import numpy as np
import pytest
import torch

from fastssd import ops
from tests.operators import EXAMPLES, PUBLIC, SAMPLES, as_tensor, convert, outputs
from tests.operators._inputs import BOXES, SCORES, strided

GROUPS = np.arange(12) % 2


@pytest.mark.parametrize(("name", "place"), [(name, place) for name, place in SAMPLES if name in PUBLIC])
def test_arrays_torch_in_torch_out_and_inputs_untouched(name, place):
    arrays = EXAMPLES[name].samples[place]
    before = convert(name, arrays, lambda _, array: array.copy())
    tensors = convert(name, arrays, lambda _, array: as_tensor(array))
    ref, comp = outputs(getattr(ops, name)(**arrays)), outputs(getattr(ops, name)(**tensors))
    assert all(isinstance(value, np.ndarray) for value in ref)
    for r, c in zip(ref, comp, strict=True):
        np.testing.assert_array_equal(r, np.asarray(c))
    np.testing.assert_equal(convert(name, arrays, lambda _, array: array), before)
    np.testing.assert_equal({key: np.asarray(v) if torch.is_tensor(v) else v for key, v in tensors.items()}, before)


@pytest.mark.parametrize("name", PUBLIC)
def test_arrays_read_only_and_non_contiguous_inputs(name):
    def view(_, array):
        changed = strided(array)
        changed.flags.writeable = False
        return changed

    sample, function = EXAMPLES[name].samples[0], getattr(ops, name)
    for r, c in zip(outputs(function(**sample)), outputs(function(**convert(name, sample, view))), strict=True):
        np.testing.assert_array_equal(r, c)


@pytest.mark.parametrize(("name", "place"), [(n, i) for n in PUBLIC for i in range(len(EXAMPLES[n].bad))])
def test_arrays_bad_input_raises_and_names_the_argument(name, place):
    changes, error, names = EXAMPLES[name].bad[place]
    with pytest.raises(error, match=names):
        getattr(ops, name)(**EXAMPLES[name].samples[0] | changes)


def test_arrays_tensors_that_are_negated_only_when_read():
    corners = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    boxes = torch.complex(corners.new_zeros(2, 4), -torch.cat([corners, corners + 3], 1)).conj().imag
    assert boxes.is_neg()
    for call in (ops.box_area, lambda b: ops.box_iou(b, b), lambda b: ops.nms(b, torch.ones(2), 0.1)):
        assert torch.equal(call(boxes), call(boxes.resolve_neg()))


def test_arrays_of_other_people():
    """What numpy.asarray understands, in a field of a structured array, in a buffer, in an object."""

    class Table:
        def __array__(self, dtype=None, copy=None):
            return BOXES.astype(dtype or BOXES.dtype)

    record = np.zeros(12, [("tag", "u1"), ("box", "f8", 4), ("score", "f8"), ("group", "i8")])
    record["box"], record["score"], record["group"] = BOXES, SCORES, GROUPS
    assert not record["box"].flags.aligned
    ref = ops.batched_nms(BOXES, SCORES, GROUPS, 0.3)
    for boxes, scores, groups in (
        (record["box"], record["score"], record["group"]),
        (Table(), memoryview(SCORES), numbers("h", GROUPS.tolist())),
        (BOXES.tolist(), tuple(SCORES), GROUPS.tolist()),
    ):
        np.testing.assert_array_equal(ops.batched_nms(boxes, scores, groups, 0.3), ref)
    np.testing.assert_array_equal(ops.soft_nms(record["box"], record["score"])[1], ops.soft_nms(BOXES, SCORES)[1])
    for empty, none in (([], []), (np.array([]), np.array([])), (torch.tensor([]), torch.tensor([]))):
        assert len(ops.nms(empty, none, 0.5)) == 0
        assert ops.box_iou(BOXES, empty).shape == (12, 0)


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


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", "float32"), ("bfloat16", "float32"), ("uint8", "float32"), ("int16", "float32"), ("int64", "float64")],
)
def test_arrays_promotion_before_arithmetic(dtype, expected):
    boxes = torch.tensor([[0, 0, 200, 200], [100, 100, 250, 250]]).to(getattr(torch, dtype))
    comp = ops.box_iou(boxes, boxes)
    assert comp.dtype == getattr(torch, expected)
    torch.testing.assert_close(comp[0, 1].item(), 10000 / (40000 + 22500 - 10000))
