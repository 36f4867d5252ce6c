"""IoU and its relatives as the tests know them (tests/operators/__init__.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastssd import ops
from tests.operators._inputs import (
    BOXES,
    DTYPES,
    NO_ROWS,
    OTHERS,
    Arguments,
    Case,
    Examples,
    as_dtype,
    bad,
    case,
    hostile_box_sets,
    random_boxes,
    strided,
)

PAIRWISE = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")


def pairwise(*, rare: list[Arguments], rounded: bool = False) -> Examples:
    """The examples of an operator that compares all pairs of boxes."""
    return Examples(
        samples=[
            {"boxes1": BOXES, "boxes2": OTHERS},
            {"boxes1": BOXES.reshape(2, 6, 4), "boxes2": OTHERS[:4].reshape(2, 1, 2, 4)},
            {"boxes1": BOXES[:0], "boxes2": OTHERS.astype(np.float32)},
            {"boxes1": BOXES.astype(np.float16), "boxes2": OTHERS.astype(np.uint8)},
        ],
        bad=[
            bad("boxes1", ValueError, boxes1=BOXES[0]),
            bad("boxes2", ValueError, boxes2=OTHERS[:, :3]),
            bad("boxes2", ValueError, boxes1=np.stack([BOXES] * 2), boxes2=np.stack([BOXES] * 3)),
        ],
        rare=[{"boxes1": NO_ROWS}, *rare],
        gradients=("boxes1", "boxes2"),
        mapped=("boxes1", "boxes2"),
        rounded=rounded,
    )


EXAMPLES = {
    "box_iou": pairwise(rare=[{"boxes1": BOXES.astype(np.longdouble)}]),
    "generalized_box_iou": pairwise(rare=[{"boxes1": BOXES.astype(np.uint16), "boxes2": OTHERS.astype(np.int16)}]),
    "distance_box_iou": pairwise(rare=[{"boxes2": np.stack([OTHERS] * 2)}]),
    "complete_box_iou": pairwise(
        rare=[{"boxes1": BOXES[None].repeat(3, 0), "boxes2": np.stack([OTHERS] * 2)}], rounded=True
    ),
    "paired_box_iou": Examples(
        samples=[
            {"boxes1": BOXES, "boxes2": BOXES[::-1] * 0.5 + BOXES * 0.5},
            {"boxes1": BOXES.reshape(2, 6, 4), "boxes2": (BOXES + 3).reshape(2, 6, 4).astype(np.float32)},
            {"boxes1": BOXES[:0], "boxes2": BOXES[:0]},
        ],
        bad=[bad("boxes2", ValueError, boxes2=OTHERS), bad("boxes1", ValueError, boxes1=BOXES[:, :3])],
        gradients=("boxes1", "boxes2"),
        mapped=("boxes1", "boxes2"),
    ),
}


def cases(rng: np.random.Generator) -> Iterator[Case]:
    sets = list(hostile_box_sets(rng))
    for name in PAIRWISE:
        for tag, boxes in sets:
            if name == "complete_box_iou" and tag == "extremes":
                continue  # its terms cancel to nothing but rounding there
            for dtype in DTYPES if tag == "typical" else DTYPES[:2]:
                yield case(name, f"{tag} {dtype}", as_dtype(boxes, dtype), as_dtype(boxes[::2] + 1, dtype))
        a, b = random_boxes(rng, 9), random_boxes(rng, 133)
        yield case(name, "none against many", b[:0], b)
        yield case(name, "mixed dtypes", a.astype("float32"), b)
        yield case(name, "non-contiguous", strided(a), np.asfortranarray(b))
        yield case(name, "leading dimensions", a.reshape(3, 1, 3, 4), b.reshape(7, 19, 4))
    for tag, boxes in sets:
        for dtype in DTYPES[:2]:
            a, b = as_dtype(boxes, dtype), as_dtype(np.roll(boxes, 1, axis=0), dtype)
            yield case("paired_box_iou", f"{tag} {dtype}", a, b)


def test_iou_by_hand():
    a, b = [[0.0, 0, 4, 2]], [[2.0, 0, 6, 2]]  # they share 4 of 12; around both is a box of 6 x 2
    assert ops.box_iou(a, b).tolist() == [[4 / 12]]
    assert ops.paired_box_iou(a, b).tolist() == [4 / 12]
    assert ops.generalized_box_iou(a, [[6.0, 0, 8, 2]]).tolist() == [[-4 / 16]]  # apart: minus the share of the gap
    np.testing.assert_allclose(ops.distance_box_iou(a, b), [[4 / 12 - 4 / 40]])  # minus (distance / diagonal)^2
    np.testing.assert_allclose(ops.complete_box_iou(a, b), ops.distance_box_iou(a, b))  # the same shape


def test_iou_result_too_large_is_a_memory_error():
    many = np.zeros((3_000_000, 4), np.float32)
    with pytest.raises(MemoryError):
        ops.box_iou(many, many)  # 36 TB


# --- out= ------------------------------------------------------------------------------------------------------------


def test_out_is_written_and_returned():
    out = np.full((12, 5), 7.0)
    assert ops.box_iou(BOXES, OTHERS, out=out) is out
    np.testing.assert_array_equal(out, ops.box_iou(BOXES, OTHERS))


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("start", [0, 8, 37, 47, 48, 95, 96])
def test_out_may_share_memory_with_the_boxes(name, kind, dtype, start):
    # The memory of 12 and 12 boxes, and 60 numbers more; `out` starts before, among or behind them.
    function = getattr(ops, name)
    memory: Any = np.concatenate([BOXES.ravel(), BOXES[::-1].ravel(), np.zeros(144)]).astype(dtype)
    ref = function(memory[:48].reshape(12, 4).copy(), memory[48:96].reshape(12, 4).copy())
    memory = pytest.importorskip("torch").from_numpy(memory) if kind == "torch" else memory
    a, b, out = memory[:48].reshape(12, 4), memory[48:96].reshape(12, 4), memory[start : start + 144].reshape(12, 12)
    assert function(a, b, out=out) is out
    np.testing.assert_array_equal(np.asarray(out), ref)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("strided_boxes", [False, True])  # the long way, and the short one
def test_out_that_autograd_has_saved_is_seen_to_change(name, strided_boxes):
    torch = pytest.importorskip("torch")
    boxes = torch.from_numpy(BOXES)
    boxes = boxes.repeat_interleave(2, 0)[::2] if strided_boxes else boxes
    out, weight = torch.ones(12, 12, dtype=torch.float64), torch.ones(12, 12, requires_grad=True)
    loss = (out * weight).sum()
    getattr(ops, name)(boxes, boxes, out=out)
    with pytest.raises(RuntimeError):
        loss.backward()


def wrong_outs() -> Iterator[tuple[str, Any]]:
    """What `out` may not be, for 12 and 5 boxes of float64; and whether the boxes are tensors then."""
    import torch

    base = torch.zeros(12, 5, dtype=torch.float64)
    for out in (
        *(base.clone().requires_grad_(), base.clone().requires_grad_() * 1, base[:, :4], base.float()),
        *(base.bfloat16(), base.long(), base.T.contiguous().T, base[:1].expand(12, 5), base.to("meta")),
        *(base.to_sparse(), torch.complex(base, base).conj().imag, base.numpy(), base.tolist()),
    ):
        yield "torch", out
    array = np.zeros((12, 5))
    read_only = array.copy()
    read_only.flags.writeable = False
    unaligned = np.frombuffer(bytearray(481), np.float64, offset=1).reshape(12, 5)
    for out in (
        *(read_only, array.T.copy().T, np.broadcast_to(array[:1], (12, 5)), array.astype(">f8"), base),
        *(unaligned, array.astype("f"), array.tolist()),
    ):
        yield "numpy", out


@pytest.mark.parametrize("place", range(21))
def test_out_that_cannot_be_written_is_an_error(place):
    torch = pytest.importorskip("torch")
    kind, out = list(wrong_outs())[place]
    make = torch.from_numpy if kind == "torch" else np.asarray
    for boxes in (BOXES, BOXES.repeat(2, 0)[::2]):
        for context in (torch.enable_grad(), torch.no_grad()):
            with context, pytest.raises((TypeError, ValueError), match=r"^out"):
                ops.box_iou(make(boxes), make(OTHERS), out=out)
    with pytest.raises(ValueError, match=r"^out"):
        ops.box_iou(torch.from_numpy(BOXES).requires_grad_(), torch.from_numpy(OTHERS), out=torch.zeros(12, 5).double())


def test_gradient_of_complete_iou_holds_the_weight_constant():
    torch = pytest.importorskip("torch")
    a, b = (torch.from_numpy(array).requires_grad_() for array in (BOXES[:5], OTHERS))
    diou = ops.distance_box_iou(a, b)
    angle = [torch.atan2(x[:, 2] - x[:, 0], x[:, 3] - x[:, 1]) for x in (a, b)]
    v = 4 / np.pi**2 * (angle[0][:, None] - angle[1]) ** 2
    alpha = (v / (1 - ops.box_iou(a, b) + v + 1e-7)).detach()
    refs = torch.autograd.grad((diou - alpha * v).sum(), (a, b))
    for ref, comp in zip(refs, torch.autograd.grad(ops.complete_box_iou(a, b).sum(), (a, b)), strict=True):
        torch.testing.assert_close(comp, ref)


def test_gradient_of_one_tensor_as_both_arguments():
    torch = pytest.importorskip("torch")
    a, b = (torch.from_numpy(BOXES.copy()).requires_grad_() for _ in range(2))
    twice = torch.autograd.grad(ops.box_iou(a, a).sum(), a)[0]
    apart = torch.autograd.grad(ops.box_iou(a, b).sum(), (a, b))
    torch.testing.assert_close(twice, apart[0] + apart[1])
