"""The way in does not matter: NumPy, torch, a gradient, a dispatch mode, another device, torch.ops, a compiler."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from fastssd import ops
from tests.operators import (
    EXAMPLES,
    OPERATORS,
    PUBLIC,
    SAMPLES,
    arrays_of,
    as_tensor,
    convert,
    difference,
    is_ragged,
    outcome,
    outputs,
    torch_operator,
    torch_samples,
)
from tests.operators._inputs import BOXES, LABELS, LOGITS, OTHERS

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from tests.other_device import OtherDevice  # noqa: E402


class Watched(TorchDispatchMode):
    """Leaves every operator as it is, but is there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def as_graded(array: Any) -> Any:
    tensor = as_tensor(array)
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


def as_foreign(array: Any) -> Any:
    """An array that is strided, unaligned and of foreign byte order; it has to be copied beside a tensor."""
    foreign = array.astype(array.dtype.newbyteorder())
    raw = np.frombuffer(b"." + foreign[::-1].tobytes(), foreign.dtype, offset=1)
    return raw.reshape(foreign.shape)[::-1]


def as_it_is(array: Any) -> Any:
    return array


# What the first array becomes, what all others become, and under what the call is made.
WAYS: dict[str, tuple[Any, Any, Any]] = {
    "tensors": (as_tensor, as_tensor, contextlib.nullcontext),
    "gradient": (as_graded, as_graded, contextlib.nullcontext),
    "first a tensor": (as_tensor, as_it_is, contextlib.nullcontext),
    "first an array": (as_it_is, as_tensor, contextlib.nullcontext),
    "foreign arrays": (as_foreign, as_foreign, contextlib.nullcontext),
    "foreign beside a gradient": (as_graded, as_foreign, contextlib.nullcontext),
    "mode": (as_tensor, as_tensor, Watched),
    "first an array, mode": (as_it_is, as_tensor, Watched),
    "foreign, mode": (as_tensor, as_foreign, Watched),
    "device": (as_tensor, as_tensor, OtherDevice),
}
WITHOUT_GRADIENT = [way for way in WAYS if "gradient" not in way]


def converted(name: str, arguments: dict[str, Any], way: str) -> dict[str, Any]:
    first, others, _ = WAYS[way]

    def change(place: int, array: Any) -> Any:
        make = others if place else first
        no_tensor = array.dtype == np.longdouble or array.dtype.kind not in "fiub"  # torch has no such
        return array if no_tensor and make is not as_foreign else make(array)

    return convert(name, arguments, change)


def assert_equal(operator: str, ref: Any, comp: Any) -> None:
    if isinstance(ref, type) or isinstance(comp, type):
        assert comp is ref
    else:
        assert difference(operator, ref, comp) is None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "place"), [(name, place) for name, place in SAMPLES if name in PUBLIC])
def test_same_values(name, place, way):
    sample = EXAMPLES[name].samples[place]
    arguments = converted(name, sample, way)
    with WAYS[way][2]():
        found = getattr(ops, name)(**arguments)
    tensors = any(torch.is_tensor(leaf) for leaf in torch.utils._pytree.tree_leaves(arguments))
    assert all(torch.is_tensor(each) == tensors for each in outputs(found))
    assert_equal(name, outcome(lambda: getattr(ops, name)(**sample)), outcome(lambda: found))


@pytest.mark.parametrize("name", PUBLIC)
def test_same_values_of_torch_ops(name):
    samples = [sample for sample in EXAMPLES[name].samples if not is_ragged(name, sample)]
    for sample, tensors in zip(samples, torch_samples(name), strict=True):
        comp = outcome(lambda: torch_operator(name)(**tensors))  # noqa: B023
        assert_equal(name, outcome(lambda: getattr(ops, name)(**sample)), comp)  # noqa: B023


@pytest.mark.parametrize("way", WITHOUT_GRADIENT)
@pytest.mark.parametrize("name", PUBLIC)
def test_same_answer_to_what_is_rare(name, way):
    for changes in EXAMPLES[name].rare:
        arguments = EXAMPLES[name].samples[0] | changes
        ref = outcome(lambda: getattr(ops, name)(**arguments))  # noqa: B023
        taken = converted(name, arguments, way)
        with WAYS[way][2]():
            comp = outcome(lambda: getattr(ops, name)(**taken))  # noqa: B023
        assert_equal(name, ref, comp)


@pytest.mark.parametrize("way", WITHOUT_GRADIENT)
@pytest.mark.parametrize("name", PUBLIC)
def test_same_error_that_names_the_argument(name, way):
    for changes, error, names in EXAMPLES[name].bad:
        arguments = converted(name, EXAMPLES[name].samples[0] | changes, way)
        with WAYS[way][2](), pytest.raises(error, match=names):
            getattr(ops, name)(**arguments)


@pytest.mark.parametrize("device", ["CPU", "other"])
@pytest.mark.parametrize("name", OPERATORS)
def test_torch_ops_refuse_bad_input(name, device):
    for changes, error, names in EXAMPLES[name].bad:
        arguments = EXAMPLES[name].samples[0] | changes
        if not changes.keys() & set(arrays_of(name)) and error is TypeError:
            continue  # torch converts or refuses options of another type itself
        if EXAMPLES[name].registered is not dict or is_ragged(name, arguments):
            continue  # a schema has no lists of arrays
        arguments = convert(name, arguments, lambda _, array: as_tensor(array))
        context = OtherDevice() if device == "other" else contextlib.nullcontext()
        schema = (RuntimeError, OverflowError)  # where the value does not fit the schema, in which torch names it
        with context, pytest.raises((error, *schema), match=names):
            torch_operator(name)(**arguments)


# --- what only some ways have ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PUBLIC if any(is_ragged(name, s) for s in EXAMPLES[name].samples)])
def test_compiled_ground_truth_in_lists(name):
    """The forms that a compiler sees apart from what torch.ops takes."""
    examples = EXAMPLES[name]
    calls = [sample for sample in examples.samples if is_ragged(name, sample)]
    calls += [examples.samples[0] | c for c in (*examples.rare, *(each.changes for each in examples.bad))]
    torch._dynamo.reset()
    right, wrong = 0, 0
    for arguments in (call for call in calls if is_ragged(name, call)):
        arrays = {key: value for key, value in arguments.items() if key in arrays_of(name)}
        options = {key: value for key, value in arguments.items() if key not in arrays}
        ref = outcome(lambda: getattr(ops, name)(**arguments))  # noqa: B023
        compiled = torch.compile(lambda given, options=options: getattr(ops, name)(**given, **options), backend="eager")
        comp = outcome(lambda: compiled(convert(name, arrays, lambda _, array: as_tensor(array))))  # noqa: B023
        assert isinstance(comp, type) if isinstance(ref, type) else difference(name, ref, comp) is None
        right, wrong = right + (not isinstance(ref, type)), wrong + isinstance(ref, type)
    assert min(right, wrong) > 0


@pytest.mark.parametrize("context", [contextlib.nullcontext, Watched])
@pytest.mark.parametrize("name", [name for name in PUBLIC if EXAMPLES[name].gradients and len(arrays_of(name)) > 1])
def test_arrays_beside_a_gradient_are_copied(name, context):
    """What has no version is the caller's again when the call returns."""
    sample = EXAMPLES[name].samples[0]
    first, *others = arrays_of(name)
    gradients = []
    for overwrite in (False, True):
        x, buffers = as_graded(sample[first]), {key: sample[key].copy() for key in others}
        with context():
            found = outputs(getattr(ops, name)(**{**sample, first: x, **buffers}))[0]
            loss = found.square().sum()
        for buffer in buffers.values() if overwrite else ():
            buffer[:] = 10**6 if buffer.dtype == np.int64 else 0
        loss.backward()
        gradients.append(x.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)


def test_lists_beside_a_gradient_are_what_numpy_makes_of_them():
    for context in (contextlib.nullcontext, Watched):
        with context():
            assert ops.box_iou(as_graded(BOXES.astype(np.float32)), OTHERS.tolist()).dtype == torch.float64


def test_labels_that_change_before_the_backward_pass():
    labels = torch.tensor(LABELS)
    loss = ops.multibox_cross_entropy(as_graded(LOGITS), labels).loss
    labels += 0
    with pytest.raises(RuntimeError):  # torch saw it
        loss.backward()
    for wrong in (-100, 10**6):
        labels = torch.tensor(LABELS)
        loss = ops.multibox_cross_entropy(as_graded(LOGITS), labels).loss
        labels.numpy()[0, 1] = wrong  # torch did not
        with pytest.raises(ValueError, match=r"labels\[0, 1\]"):
            loss.backward()
        gradient = torch_operator("multibox_cross_entropy_gradient")
        for context in (contextlib.nullcontext, OtherDevice):
            with context(), pytest.raises(ValueError, match=r"labels\[0, 1\]"):
                gradient(torch.tensor(1.0), as_tensor(LOGITS), labels, labels > 0)
