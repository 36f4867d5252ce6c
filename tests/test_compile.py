"""torch.compile and torch.export: whole graphs that agree with eager, however many boxes are left."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest

from fastssd import ops
from tests.operators import EXAMPLES, PUBLIC, as_tensor, convert, outcome

torch = pytest.importorskip("torch")

from torch.utils import _pytree as pytree  # noqa: E402

from fastssd.detection import EndToEndSSD, TinySSD  # noqa: E402

# Later releases capture an operator whose number of rows depends on values without being asked (docs/torch.md).
torch._dynamo.config.capture_dynamic_output_shape_ops = True
EXPORT_FAILS = torch.__version__.startswith("2.9.")  # inside torch: a graph that refers to names or tensors it lacks

GENERATOR = torch.Generator().manual_seed(0)


def random(*shape):
    return torch.rand(shape, generator=GENERATOR)


def boxes(*shape):
    corner = random(*shape, 2)
    return torch.cat((corner, corner + 0.05 + random(*shape, 2)), -1)


def assert_same(eager, traced):
    assert type(eager) is type(traced)
    for ref, comp in zip(pytree.tree_leaves(eager), pytree.tree_leaves(traced), strict=True):
        torch.testing.assert_close(comp, ref, rtol=0, atol=0, equal_nan=True)


LABELS = torch.tensor([[1, 0, -1, 2, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]])


def boxes_operators(a, b):
    areas = ops.box_area(a), ops.box_area(ops.clip_boxes_to_image(ops.box_convert(a, "xyxy", "cxcywh"), (0.5, 0.6)))
    large = a[ops.remove_small_boxes(a, 0.5)]
    measures = [ops.box_iou(a, b, out=a.new_empty(a.shape[0], b.shape[0])), ops.generalized_box_iou(a, b)]
    measures += [ops.distance_box_iou(a, b), ops.complete_box_iou(a, b), ops.paired_box_iou(a, a + 0.1)]
    return areas, large, measures


def training_operators(anchors, truth, other, logits):
    labels = [torch.ones(each.shape[0], dtype=torch.int64) for each in (truth, other)]
    matches = ops.match_anchors(anchors, [truth, other], force_match="best")
    targets = ops.assign_targets(anchors, [truth, other], labels)
    coded = ops.decode_boxes(ops.encode_boxes(anchors, anchors + 0.1), anchors)
    loss = ops.multibox_cross_entropy(logits, LABELS)
    return matches, targets, coded, loss, ops.mine_hard_negatives(logits[..., 0], LABELS > 0)


def detection_operators(b, scores, logits, deltas, anchors):
    kept = b[ops.nms(b, scores, 0.3)], b[ops.batched_nms(b, scores, torch.arange(b.shape[0]) % 2, 0.3)]
    soft, lowered = ops.soft_nms(b, scores)
    grid = torch.from_numpy(ops.grid_anchors([(logits.shape[0], 3), 1], [(0.2, 0.3), (0.9, 0.95)]))
    found = ops.postprocess_detections(logits, deltas, anchors, clip=(1.0, 1.0), max_detections=5)
    return kept, b[soft], lowered, grid, found


@pytest.mark.parametrize(
    ("function", "calls"),
    [
        (boxes_operators, [(boxes(3), boxes(4)), (boxes(6), boxes(2))]),
        (
            training_operators,
            [(boxes(7), boxes(g), boxes(h), random(2, 7, 3)) for g, h in ((4, 2), (3, 6))],
        ),
        (
            detection_operators,
            [(boxes(n), random(n), random(2, 7, 3) * 4, random(2, 7, 4), boxes(7)) for n in (9, 12)],
        ),
    ],
)
def test_one_graph_of_many_operators_for_several_sizes(function, calls):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for arguments in calls:
        assert_same(function(*arguments), compiled(*arguments))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_operator_is_traced_whole(name):
    """The first sample, with every option: as constants of the graph, as the compiler sees them."""
    sample = convert(name, EXAMPLES[name].samples[0], lambda _, array: as_tensor(array))
    tensors = {key: value for key, value in sample.items() if torch.is_tensor(value)}
    options = {key: value for key, value in sample.items() if key not in tensors}
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda given: getattr(ops, name)(**given, **options), fullgraph=True, dynamic=True, backend="eager"
    )
    ref, comp = (function(tensors) for function in (lambda given: getattr(ops, name)(**given, **options), compiled))
    assert type(ref) is type(comp)
    for r, c in zip(outcome(lambda: ref), outcome(lambda: comp), strict=True):
        np.testing.assert_array_equal(c, r)


def survivors(b, scores):
    """A whole detector's end in one graph: what is left goes on, whether many, one or none."""
    b, scores = b[scores > 0.5], scores[scores > 0.5]
    keep = ops.nms(b, scores, 0.4)
    return b[keep] * 2, ops.box_iou(b[keep], b), scores[keep].sum()


@pytest.mark.parametrize("how", ["aot_eager", "inductor", "export"])
def test_any_number_of_survivors(how):
    torch._dynamo.reset()
    many = boxes(6), torch.tensor([0.9, 0.8, 0.7, 0.6, 0.95, 0.55])
    if how == "export":
        if EXPORT_FAILS:
            pytest.skip("this torch exports no graph whose sizes depend on values")
        count = torch.export.Dim("count", min=0)
        shapes = ({0: count}, {0: count})
        traced = torch.export.export(_Module(survivors), many, dynamic_shapes=(shapes,)).module()
    else:
        traced = torch.compile(survivors, fullgraph=True, dynamic=True, backend=how)
    some = boxes(6)
    some[1:] = some[0]
    for b, scores in (many, (some, many[1]), (boxes(6), many[1] * 0.5), (boxes(6), many[1] * 0.6)):
        eager, comp = survivors(b, scores), traced(b, scores)
        assert_same(eager[:2], comp[:2])
        torch.testing.assert_close(comp[2], eager[2])  # a sum, in an order of the compiler's


class _Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *arguments):
        return self.function(*arguments)


@pytest.fixture(scope="module")
def detector_and_images():
    """A detector that finds many boxes in the last of six images, one in the last but one, and none in the others."""
    torch.manual_seed(0)
    model = TinySSD(num_classes=3).eval()
    for parameter in model.head.parameters():  # wide apart, so that a threshold chooses
        torch.nn.init.normal_(parameter, std=0.3)
    images = random(6, 3, 256, 256) * torch.linspace(0, 1, 6)[:, None, None, None]
    scores = EndToEndSSD(model)(images).scores  # the brighter, the higher
    detector = EndToEndSSD(model, score_threshold=float(scores[4, :2].mean()), max_detections=20)
    counts = detector(images).counts
    assert counts[:-1].tolist() == [0, 0, 0, 0, 1]
    assert counts[-1] > 1
    return detector, images


def test_compiled_detector(detector_and_images):
    detector, images = detector_and_images
    torch._dynamo.reset()
    compiled = torch.compile(detector, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (images, images[:4], images[3:5]):
        assert_same(detector(batch), compiled(batch))


def test_exported_detector_is_saved_and_loaded(detector_and_images):
    detector, images = detector_and_images
    program = torch.export.export(detector, (images,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (images, images[4:5], images[:1]):
        assert_same(detector(batch), loaded(batch))


@pytest.mark.parametrize("first", ["torch", "fastssd"])
def test_either_may_be_imported_first(first):
    code = f"""
import {first}, fastssd, numpy, sys
assert ("torch" in sys.modules) == ({first!r} == "torch")
fastssd.ops.nms(numpy.zeros((1, 4), "f"), numpy.ones(1, "f"), 0.5)  # chooses a backend
import torch
torch._dynamo.config.capture_dynamic_output_shape_ops = True
boxes, scores = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2.1], [5, 5, 6, 6]]), torch.tensor([0.5, 0.9, 0.7])
compiled = torch.compile(lambda b, s: b[fastssd.ops.nms(b, s, 0.5)], fullgraph=True, backend="eager")
print(compiled(boxes, scores).tolist() == boxes[[1, 2]].tolist())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "True", found.stderr


ANCHORS, LOGITS, DELTAS = boxes(7) * 50, random(7, 3) * 4, random(7, 4)
OF_ANY_SIZE = {
    "clip_boxes_to_image": lambda image, b: ops.clip_boxes_to_image(b, image.shape[-2:]),
    "clip_boxes_to_image of a fraction": lambda image, b: ops.clip_boxes_to_image(
        b, (image.shape[-2] * 0.5, image.shape[-1] / 4)
    ),
    "remove_small_boxes": lambda image, b: ops.remove_small_boxes(b, image.shape[-1] - 29.5),
    "grid_anchors": lambda image, b: torch.from_numpy(
        ops.grid_anchors([(3, 4), 2], [(0.2, 0.3), (0.9, 0.95)], image_size=image.shape[-2:])
    ),
    "postprocess_detections": lambda image, b: ops.postprocess_detections(
        LOGITS, DELTAS, ANCHORS, clip=image.shape[-2:], max_detections=5
    ),
}


@pytest.mark.parametrize("name", OF_ANY_SIZE)
def test_one_graph_for_images_of_all_sizes(name):
    function, graphs = OF_ANY_SIZE[name], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    b, sizes = boxes(5) * 60, [(20 + i, 30 + 2 * i) for i in range(12)]
    results = [function(torch.empty(3, *size), b) for size in sizes]
    for size, ref in zip(sizes, results, strict=True):
        assert_same(ref, compiled(torch.empty(3, *size), b))
    assert len(graphs) == 1
    assert not all(torch.equal(pytree.tree_leaves(ref)[0], pytree.tree_leaves(results[0])[0]) for ref in results)
    if EXPORT_FAILS and name == "postprocess_detections":
        pytest.skip("this torch exports no function with tensors of its own")
    dynamic = ({1: torch.export.Dim("height"), 2: torch.export.Dim("width")}, None)
    program = torch.export.export(
        _Module(function), (torch.empty(3, 20, 30), b), dynamic_shapes=(dynamic,), strict=True
    )
    for size in ((11, 17), (45, 33)):
        assert_same(function(torch.empty(3, *size), b), program.module()(torch.empty(3, *size), b))


def test_one_graph_for_gradients_at_all_sizes():
    def loss(image, b):
        return ops.clip_boxes_to_image(b, image.shape[-2:]).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    b = boxes(5) * 60
    for i in range(12):  # more than torch lets be compiled anew
        image, found = torch.empty(3, 20 + i, 30 + 2 * i), []
        for function in (loss, compiled):
            x = b.clone().requires_grad_()
            found.append(torch.autograd.grad(function(image, x), x)[0])
        assert_same(*found)


def test_arrays_and_lists_in_a_graph_are_what_numpy_makes_of_them():
    b, listed = boxes(3), [[0.0, 0.0, 0.5, 0.5]]
    torch._dynamo.reset()
    compiled = torch.compile(lambda b: ops.box_iou(b, listed), fullgraph=True, backend="eager")
    assert_same(ops.box_iou(b, listed), compiled(b))
    assert compiled(b).dtype == torch.float64


def test_arrays_still_run_where_a_graph_breaks():
    array = boxes(3).numpy()
    torch._dynamo.reset()
    found = torch.compile(lambda x: x + float(ops.box_iou(array, array).sum()), backend="eager")(torch.zeros(1))
    np.testing.assert_allclose(found.numpy(), ops.box_iou(array, array).sum(), rtol=1e-6)
