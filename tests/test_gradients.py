"""Gradients: right where the examples promise one, an error where there is none, the same for all who ask."""

from __future__ import annotations

import pytest

from fastssd import ops
from tests.operators import EXAMPLES, PUBLIC, arrays_of, as_tensor, convert, outputs, torch_operator
from tests.operators._inputs import LABELS, LOGITS

torch = pytest.importorskip("torch")

PROMISED = [(name, argument) for name in PUBLIC for argument in EXAMPLES[name].gradients]
HELD_CONSTANT = {"complete_box_iou"}  # a part of it: tests/operators/iou.py
TWICE = {name for name, _ in PROMISED} - {"multibox_cross_entropy"}  # a kernel computes its first


def function_of(name, argument, dtype=torch.float64):
    """The first output of an operator as a function of one of its arguments, and a value for it."""
    sample = convert(name, EXAMPLES[name].samples[0], lambda _, array: as_tensor(array))
    floats = {key: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for key, v in sample.items()}
    return lambda value: outputs(getattr(ops, name)(**{**floats, argument: value}))[0], floats[argument]


@pytest.mark.parametrize(("name", "argument"), [each for each in PROMISED if each[0] not in HELD_CONSTANT])
def test_gradient_is_that_of_finite_differences(name, argument):
    function, value = function_of(name, argument)
    value.requires_grad_()
    assert torch.autograd.gradcheck(function, value)
    if name in TWICE:
        assert torch.autograd.gradgradcheck(function, value)


@pytest.mark.parametrize(("name", "argument"), PROMISED)
def test_gradient_is_the_same_for_all_who_ask(name, argument):
    function, value = function_of(name, argument, torch.float32)

    def loss(x):
        return function(x).square().sum()

    def gradient(function, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(function(x), x)[0]

    def assert_close(ref, comp):
        torch.testing.assert_close(comp, ref, rtol=1e-4, atol=1e-5 * float(ref.abs().max()))

    ref = gradient(loss, value)
    assert ref.abs().sum() > 0
    assert_close(ref, torch.func.grad(loss)(value))
    several = torch.stack((value, value * 0.75))
    refs = torch.stack([gradient(loss, each) for each in several])
    assert_close(refs, torch.func.vmap(torch.func.grad(loss))(several))
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    assert_close(ref, gradient(compiled, value))


WITHOUT = [
    (name, argument)
    for name in PUBLIC
    for argument in arrays_of(name)
    if argument not in EXAMPLES[name].gradients and EXAMPLES[name].samples[0][argument].dtype.kind == "f"
]


@pytest.mark.parametrize(("name", "argument"), WITHOUT)
def test_gradient_that_does_not_exist_is_an_error_when_it_is_asked_for(name, argument):
    sample = convert(name, EXAMPLES[name].samples[0], lambda _, array: as_tensor(array))
    sample[argument].requires_grad_()
    found = [each for each in outputs(getattr(ops, name)(**sample)) if each.is_floating_point()]
    assert all(each.requires_grad for each in found)
    for each in found:
        with pytest.raises(NotImplementedError, match=name):
            each.sum().backward()
    with torch.no_grad():
        assert not any(each.requires_grad for each in outputs(getattr(ops, name)(**sample)))


def test_gradient_that_does_not_exist_is_an_error_compiled_and_under_torch_func():
    sample = convert("postprocess_detections", EXAMPLES["postprocess_detections"].samples[0], lambda _, a: as_tensor(a))

    def detect(logits):
        return ops.postprocess_detections(**{**sample, "logits": logits}).scores

    scores = torch.compile(detect, fullgraph=True, backend="aot_eager")(sample["logits"].clone().requires_grad_())
    assert scores.requires_grad
    with pytest.raises(NotImplementedError, match="postprocess_detections"):
        scores.sum().backward()
    with pytest.raises(NotImplementedError, match="postprocess_detections"):
        torch.func.grad(lambda logits: detect(logits).sum())(sample["logits"])


def test_second_derivatives_of_torch_func():
    function, value = function_of("generalized_box_iou", "boxes1")
    ref = torch.autograd.functional.hessian(lambda x: function(x).sum(), value)
    comp = torch.func.jacrev(torch.func.grad(lambda x: function(x).sum()))(value)
    torch.testing.assert_close(comp, ref)


def test_second_derivative_that_does_not_exist_is_an_error():
    logits, labels = as_tensor(LOGITS).requires_grad_(), as_tensor(LABELS)
    (first,) = torch.autograd.grad(
        torch_operator("multibox_cross_entropy")(logits, labels)[0], logits, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="multibox_cross_entropy"):
        first.sum().backward()
