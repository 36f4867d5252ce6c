"""torch.ops.fastssd.*: every operator is registered as torch demands, and behaves under its transforms."""

from __future__ import annotations

import pytest

from fastssd import ops

torch = pytest.importorskip("torch")

from torch.utils import _pytree as pytree  # noqa: E402

from fastssd.ops._operator import REGISTRY  # noqa: E402

GENERATOR = torch.Generator().manual_seed(0)


def random(*shape):
    return torch.rand(shape, generator=GENERATOR)


def boxes(*shape):
    corner = random(*shape, 2)
    return torch.cat((corner, corner + 0.05 + random(*shape, 2)), -1)


def graded(tensor):
    return tensor.clone().requires_grad_()


LABELS = torch.tensor([[1, 0, -1, 2, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]])
PAIRS = [
    (boxes(5), boxes(3)),
    (graded(boxes(2, 4)), graded(boxes(3, 1, 2))),
    (boxes(0), graded(boxes(2).double())),
    (boxes(4).bfloat16(), (boxes(2) * 9).to(torch.uint8)),
]
TRUTH = (boxes(7), boxes(2, 3), torch.tensor([3, 0]))
GRID = ([3, 4, 1, 1], [0.2, 0.3, 0.9], [2, 1], [1.0, 2.0, 1.0], [2, 1])
SAMPLES = {
    "box_area": [(boxes(2, 3),), (graded(boxes(3)),), (boxes(0),), (boxes(2).half(),)],
    "box_convert": [(boxes(3), "xyxy", "cxcywh"), (graded(boxes(2, 3)), "xywh", "xyxy"), (boxes(2), "xywh", "xywh")],
    "clip_boxes_to_image": [(boxes(3), [0.5, 0.7]), (graded(boxes(2, 3)), [0.5, 0.7])],
    "remove_small_boxes": [(boxes(6), 0.5), (boxes(6), 9.0), (boxes(0), 0.5)],
    "grid_anchors": [GRID, (*GRID, [300.0, 400.0], True, torch.float64)],
    "box_iou": PAIRS,
    "generalized_box_iou": PAIRS,
    "distance_box_iou": PAIRS,
    "complete_box_iou": PAIRS,
    "paired_box_iou": [(boxes(5), boxes(5)), (graded(boxes(2, 5)), boxes(2, 5).double()), (boxes(0), boxes(0))],
    "match_anchors": [TRUTH, (boxes(7), boxes(3)), (boxes(7), boxes(0).double(), None, 0.6, 0.3, "low_quality")],
    "assign_targets": [
        (TRUTH[0], TRUTH[1], torch.ones(2, 3, dtype=torch.int64), TRUTH[2]),
        (boxes(7), boxes(3), torch.tensor([1, 2, 1], dtype=torch.int32), None, 0.5, 0.4, "best", [1.0, 1.0]),
    ],
    "mine_hard_negatives": [(random(2, 7), LABELS > 0), (random(7), LABELS[0] > 0, 1.5, 2)],
    "multibox_cross_entropy": [(graded(random(2, 7, 3)), LABELS), (random(7, 3).half(), LABELS[0], 1.5, 2)],
    "multibox_cross_entropy_gradient": [(torch.tensor(0.3), random(2, 7, 3), LABELS, LABELS > 0)],
    "encode_boxes": [(graded(boxes(2, 5)), boxes(5)), (boxes(5), graded(boxes(5)), [1.0, 1.0])],
    "decode_boxes": [(graded(random(2, 5, 4)), boxes(5)), (random(5, 4), graded(boxes(5)), [1.0, 1.0])],
    "nms": [(boxes(9), random(9), 0.3), (boxes(1), random(1), 0.3), (boxes(0), random(0), 0.3, "raise")],
    "batched_nms": [(boxes(9), random(9), torch.arange(9) % 3, 0.1), (boxes(0), random(0), torch.arange(0), 0.1)],
    "soft_nms": [(boxes(9), random(9)), (boxes(3), random(3).double(), "gaussian", 0.3, 0.5, 2.0)],
    "postprocess_detections": [
        (random(2, 7, 3) * 3, random(2, 7, 4), boxes(7)),
        (random(7, 3), random(7, 4).double(), boxes(7), 0.5, 0.4, None, 3, [0.5, 0.7], "sigmoid", [1.0, 1.0]),
    ],
}
CASES = [
    pytest.param(name, values, id=f"{name}-{i}") for name, all_of in SAMPLES.items() for i, values in enumerate(all_of)
]


def test_every_public_operator_is_registered():
    public = {name for name in ops.__all__ if name.islower()}
    assert public <= set(REGISTRY) == set(SAMPLES)


@pytest.mark.parametrize(("name", "values"), CASES)
def test_opcheck(name, values):
    torch.library.opcheck(getattr(torch.ops.fastssd, name), values)


def assert_same(ref, comp, tolerance=0.0):
    refs, comps = pytree.tree_leaves(ref), pytree.tree_leaves(comp)
    for r, c in zip(refs, comps, strict=True):
        torch.testing.assert_close(c, r, rtol=tolerance, atol=tolerance)


# What is mapped over, and where its examples lie; the same function loops over them one by one.
ANCHORS, LOGITS, DELTAS = boxes(7), random(4, 2, 7, 3), random(4, 2, 7, 4)
TRUTHS, COUNTS = boxes(4, 2, 3), torch.tensor([[1, 2], [0, 3], [3, 3], [2, 0]])
ONES = torch.ones(2, 3, dtype=torch.int64)
MAPPED = {
    "box_area": (ops.box_area, (0,), (boxes(4, 3),)),
    "box_convert": (lambda b: ops.box_convert(b, "xyxy", "xywh"), (1,), (boxes(3, 4),)),
    "clip_boxes_to_image": (lambda b: ops.clip_boxes_to_image(b, (0.5, 0.7)), (0,), (boxes(4, 3),)),
    "box_iou": (ops.box_iou, (0, 1), (boxes(4, 5), boxes(3, 4))),
    "generalized_box_iou": (ops.generalized_box_iou, (0, None), (boxes(4, 5), boxes(2, 3))),
    "distance_box_iou": (ops.distance_box_iou, (None, 0), (boxes(5), boxes(4, 2, 3))),
    "complete_box_iou": (ops.complete_box_iou, (0, 0), (boxes(4, 1, 5), boxes(4, 2, 3))),
    "paired_box_iou": (ops.paired_box_iou, (0, None), (boxes(4, 3), boxes(3))),
    "encode_boxes": (ops.encode_boxes, (None, 0), (boxes(2, 7), boxes(4, 7))),
    "encode_boxes both": (ops.encode_boxes, (0, 0), (boxes(4, 7), boxes(4, 7))),
    "decode_boxes": (ops.decode_boxes, (0, None), (DELTAS, ANCHORS)),
    "match_anchors": (lambda gt: ops.match_anchors(ANCHORS, gt), (0,), (boxes(4, 3),)),
    "match_anchors padded": (lambda gt, n: ops.match_anchors(ANCHORS, gt, gt_counts=n), (0, 0), (TRUTHS, COUNTS)),
    "assign_targets": (lambda gt: ops.assign_targets(ANCHORS, gt, ONES), (0,), (TRUTHS,)),
    "mine_hard_negatives": (lambda x: ops.mine_hard_negatives(x, LABELS > 0), (0,), (LOGITS[..., 0],)),
    "multibox_cross_entropy": (lambda x: ops.multibox_cross_entropy(x, LABELS), (0,), (LOGITS,)),
    "postprocess_detections": (
        lambda x, d: ops.postprocess_detections(x, d, ANCHORS, max_detections=4),
        (0, 0),
        (LOGITS, DELTAS),
    ),
    "postprocess_detections of one": (
        lambda x, d: ops.postprocess_detections(x, d, ANCHORS, max_detections=4),
        (0, 0),
        (LOGITS[:, 0], DELTAS[:, 0]),
    ),
}


@pytest.mark.parametrize("name", MAPPED)
def test_vmap_is_a_loop(name):
    function, places, values = MAPPED[name]
    comp = torch.func.vmap(function, in_dims=places)(*values)
    pairs = list(zip(values, places, strict=True))
    examples = [
        function(*(value if place is None else value.select(place, i) for value, place in pairs)) for i in range(4)
    ]
    ref = [torch.stack(leaves) for leaves in zip(*map(pytree.tree_leaves, examples), strict=True)]
    assert_same(ref, comp, 1e-6 if name == "multibox_cross_entropy" else 0.0)


@pytest.mark.parametrize("name", ["nms", "batched_nms", "soft_nms", "remove_small_boxes"])
def test_vmap_over_what_keeps_some_says_what_to_use(name):
    operator, values = getattr(torch.ops.fastssd, name), SAMPLES[name][0]
    with pytest.raises(NotImplementedError, match="batched_nms"):
        torch.func.vmap(lambda b: operator(b, *values[1:]))(values[0][None])


DIFFERENTIABLE = {
    "box_area": (ops.box_area, boxes(3)),
    "box_convert": (lambda b: ops.box_convert(b, "cxcywh", "xyxy"), boxes(3)),
    "clip_boxes_to_image": (lambda b: ops.clip_boxes_to_image(b, (1.0, 1.2)), boxes(3)),
    "box_iou": (lambda b: ops.box_iou(b, ANCHORS), boxes(3)),
    "complete_box_iou": (lambda b: ops.complete_box_iou(ANCHORS, b), boxes(3)),
    "paired_box_iou": (lambda b: ops.paired_box_iou(b, ANCHORS), boxes(7)),
    "encode_boxes": (lambda b: ops.encode_boxes(b, ANCHORS), boxes(7)),
    "decode_boxes": (lambda b: ops.decode_boxes(DELTAS, b), boxes(7)),
    "multibox_cross_entropy": (lambda x: ops.multibox_cross_entropy(x, LABELS).loss, LOGITS[0]),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_agree_whoever_asks(name):
    function, value = DIFFERENTIABLE[name]

    def loss(x):
        return function(x).square().sum()

    def gradient(function, x):
        x = graded(x)
        return torch.autograd.grad(function(x), x)[0]

    ref = gradient(loss, value)
    assert ref.abs().sum() > 0
    assert_same(ref, torch.func.grad(loss)(value), 1e-5)
    several = torch.stack((value, value * 0.75))
    refs = torch.stack([gradient(loss, each) for each in several])
    assert_same(refs, torch.func.vmap(torch.func.grad(loss))(several), 1e-5)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    assert_same(ref, gradient(compiled, value), 1e-5)


def test_second_derivatives():
    def loss(b):
        return ops.generalized_box_iou(b, ANCHORS).sum()

    value = boxes(2)
    ref = torch.autograd.functional.hessian(loss, value)
    assert_same(ref, torch.func.jacrev(torch.func.grad(loss))(value), 1e-4)
    logits = graded(LOGITS[0])
    operator = torch.ops.fastssd.multibox_cross_entropy
    (once,) = torch.autograd.grad(operator(logits, LABELS)[0], logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="multibox_cross_entropy"):
        once.sum().backward()


def test_a_gradient_that_is_not_there_raises_when_it_is_asked_for_and_not_before():
    def detect(logits):
        return ops.postprocess_detections(logits, DELTAS[0], ANCHORS).scores

    compiled = torch.compile(detect, fullgraph=True, backend="aot_eager")
    for function in (detect, compiled):
        scores = function(graded(LOGITS[0]))
        assert scores.requires_grad
        with pytest.raises(NotImplementedError, match="postprocess_detections"):
            scores.sum().backward()
    with pytest.raises(NotImplementedError, match="postprocess_detections"):
        torch.func.grad(lambda logits: detect(logits).sum())(LOGITS[0])


def test_modes_of_torch():
    b, scores = boxes(5), random(5)
    ref = ops.nms(b, scores, 0.4), ops.box_iou(b, b)
    for mode in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with mode:
            assert_same(ref, (ops.nms(b, scores, 0.4), ops.box_iou(b, b)))
            assert_same(ref, (torch.ops.fastssd.nms(b, scores, 0.4), torch.ops.fastssd.box_iou(b, b)))
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        found = ops.assign_targets(torch.rand(7, 4), torch.rand(2, 3, 4), torch.ones(2, 3, dtype=torch.int64))
        assert (found.labels.shape, found.deltas.shape) == ((2, 7), (2, 7, 4))
    graph = make_fx(lambda boxes: ops.box_iou(boxes, boxes))(b)  # with real tensors: not a constant
    assert_same(ops.box_iou(b * 2, b * 2 + 1), make_fx(lambda x: ops.box_iou(x, x + 1))(b)(b * 2))
    assert "fastssd.box_iou" in graph.code
    traced = torch.jit.trace(lambda boxes: ops.nms(boxes, boxes[:, 0], 0.4), b)
    assert_same(ops.nms(b.flip(0), b.flip(0)[:, 0], 0.4), traced(b.flip(0)))
