"""torch.ops.fastssd.*: every operator is registered as torch demands, and behaves under its transforms."""

from __future__ import annotations

import pytest

from fastssd import ops
from tests.operators import (
    EXAMPLES,
    PUBLIC,
    arrays_of,
    as_tensor,
    outputs,
    torch_operator,
    torch_samples,
)
from tests.operators._inputs import BOXES, SCORES

torch = pytest.importorskip("torch")

SAMPLES = [(name, place) for name in EXAMPLES for place in range(len(torch_samples(name)))]


@pytest.mark.parametrize(("name", "place"), SAMPLES)
def test_opcheck(name, place):
    """The first two samples with a gradient, where there is one."""
    sample = torch_samples(name)[place]
    for argument in EXAMPLES[name].gradients if place < 2 else ():
        sample[argument].requires_grad_()
    torch.library.opcheck(torch_operator(name), (), sample)


# --- torch.func.vmap -------------------------------------------------------------------------------------------------


def mapped_cases():
    """Each argument that may be mapped alone, and all of them at once, for each sample."""
    for name in EXAMPLES:
        arguments = EXAMPLES[name].mapped
        for place, sample in enumerate(torch_samples(name) if arguments else ()):
            together = tuple(argument for argument in arguments if argument in sample)
            yield from ((name, place, (argument,)) for argument in together)
            if len(together) > 1:
                yield name, place, together


def function_over(name, sample, arguments):
    """An operator as a function of these arguments, by the way that users take: the public one where there is one."""
    function = getattr(ops, name) if name in PUBLIC else torch_operator(name)
    return lambda *values: outputs(function(**sample | dict(zip(arguments, values, strict=True))))


@pytest.mark.parametrize(("name", "place", "arguments"), list(mapped_cases()), ids=str)
def test_vmap_is_a_loop(name, place, arguments):
    sample = torch_samples(name)[place]
    function = function_over(name, sample, arguments)

    def other(value, i):
        """The rows in another order, so that they stay what the operator wants."""
        return value.roll(i, 0) if value.ndim else value * (i + 1)

    values = [[other(sample[argument], i) for i in range(4)] for argument in arguments]
    examples = [function(*each) for each in zip(*values, strict=True)]
    refs = [torch.stack(each) for each in zip(*examples, strict=True)]
    in_dims = tuple(min(i, sample[argument].ndim) for i, argument in enumerate(arguments))
    stacked = [torch.stack(each, dim) for each, dim in zip(values, in_dims, strict=True)]
    for ref, comp in zip(refs, torch.func.vmap(function, in_dims=in_dims)(*stacked), strict=True):
        tolerance = 1e-6 if EXAMPLES[name].rounded else 0.0
        torch.testing.assert_close(comp, ref, rtol=tolerance, atol=tolerance)


NOT_MAPPED = [
    (name, argument) for name in PUBLIC for argument in arrays_of(name) if argument not in (EXAMPLES[name].mapped or ())
]


@pytest.mark.parametrize(("name", "argument"), NOT_MAPPED)
def test_vmap_over_other_arguments_is_refused(name, argument):
    sample = torch_samples(name)[0]
    function = function_over(name, sample, [argument])
    with pytest.raises(NotImplementedError, match=name):
        torch.func.vmap(function)(torch.stack([sample[argument]] * 2))


@pytest.mark.parametrize("name", [name for name in PUBLIC if EXAMPLES[name].mapped is None and arrays_of(name)])
def test_vmap_over_what_keeps_some_says_what_to_use(name):
    sample = torch_samples(name)[0]
    with pytest.raises(NotImplementedError, match="batched_nms"):
        torch.func.vmap(lambda b: torch_operator(name)(**{**sample, "boxes": b}))(sample["boxes"][None])


# --- modes of torch --------------------------------------------------------------------------------------------------


def test_modes_of_torch():
    boxes, scores = as_tensor(BOXES), as_tensor(SCORES)
    nms, box_iou = torch_operator("nms"), torch_operator("box_iou")
    kept, ious = ops.nms(boxes, scores, 0.4), ops.box_iou(boxes, boxes)
    for mode in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with mode:
            for comp in (ops.nms(boxes, scores, 0.4), nms(boxes, scores, 0.4)):
                assert torch.equal(comp, kept)
            for comp in (ops.box_iou(boxes, boxes), box_iou(boxes, boxes)):
                assert torch.equal(comp, ious)


def test_fake_tensors_have_the_shapes():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        found = ops.assign_targets(torch.rand(7, 4), torch.rand(2, 3, 4), torch.ones(2, 3, dtype=torch.int64))
        assert (found.labels.shape, found.deltas.shape) == ((2, 7), (2, 7, 4))


def test_traces_hold_operators_and_no_constants():
    from torch.fx.experimental.proxy_tensor import make_fx

    boxes = as_tensor(BOXES)
    graph = make_fx(lambda boxes: ops.box_iou(boxes, boxes))(boxes)  # with real tensors: not a constant
    assert "fastssd.box_iou" in graph.code
    shifted = make_fx(lambda x: ops.box_iou(x, x + 1))(boxes)
    assert torch.equal(shifted(boxes * 2), ops.box_iou(boxes * 2, boxes * 2 + 1))
    traced = torch.jit.trace(lambda boxes: ops.nms(boxes, boxes[:, 0], 0.4), boxes)
    assert torch.equal(traced(boxes.flip(0)), ops.nms(boxes.flip(0), boxes.flip(0)[:, 0], 0.4))
