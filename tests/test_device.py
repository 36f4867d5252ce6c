"""What runs on another device: formulas that equal the kernels, little that is moved, and CUDA as the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastssd import ops
from tests.operators import OPERATORS, PUBLIC, all_cases, arrays_of, as_tensor, difference, outcome, torch_operator
from tests.operators._inputs import BOXES

torch = pytest.importorskip("torch")

from tests.other_device import OtherDevice  # noqa: E402

WITH_ARRAYS = [name for name in PUBLIC if arrays_of(name)]


def as_tensors(value: Any) -> Any:
    if isinstance(value, list):
        return [as_tensors(each) for each in value]
    return as_tensor(value) if isinstance(value, np.ndarray) else value


def differences(name: str, function: Any) -> list[str]:
    """How the cases of an operator differ where `function` takes its place."""
    found = []
    for case in (case for case in all_cases() if case.operator == name):
        ref, arguments = outcome(case.call), [as_tensors(each) for each in case.arguments]
        options = {key: as_tensors(value) for key, value in case.options.items()}
        comp = outcome(lambda: function(*arguments, **options))  # noqa: B023
        if name == "multibox_cross_entropy":  # a double sum in another order
            ref, comp = ((result[0].astype(np.float32), result[1]) for result in (ref, comp))
        if problem := difference(name, ref, comp):
            found.append(f"{case.name}: {problem}")
    return found


@pytest.mark.parametrize("name", WITH_ARRAYS)
def test_other_device_equals_the_kernels(name):
    """By the formulas of those operators that have one."""

    def elsewhere(*arguments: Any, **options: Any) -> Any:
        with OtherDevice():
            return getattr(ops, name)(*arguments, **options)

    assert not differences(name, elsewhere)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", WITH_ARRAYS)
def test_cuda_equals_the_cpu(name):
    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(each) for each in value]
        return value.cuda() if isinstance(value, torch.Tensor) else value  # a threshold, the name of a format

    def on_cuda(*arguments: Any, **options: Any) -> Any:
        found = getattr(ops, name)(*map(moved, arguments), **options)
        found = found if isinstance(found, tuple) else (found,)
        assert all(each.is_cuda for each in found)
        return tuple(each.cpu() for each in found)

    assert not differences(name, on_cuda)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_a_kernel_for_every_device(name):
    torch_operator(name)
    for device in ("CPU", "CUDA", "XPU", "MPS", "PrivateUse1", "Meta"):
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"fastssd::{name}", device)


def test_only_what_torch_must_dispatch_is_dispatched():
    boxes, elsewhere = as_tensor(BOXES), torch.empty(3, 4, device="meta")

    def dispatched(call: Any) -> bool:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            call()
        return any(event.key == "fastssd::box_iou" for event in profile.key_averages())

    for plain in (boxes, torch.nn.Parameter(boxes, requires_grad=False), BOXES):
        assert not dispatched(lambda: ops.box_iou(plain, boxes))  # noqa: B023
    assert dispatched(lambda: torch_operator("box_iou")(boxes, boxes))
    assert dispatched(lambda: torch.func.vmap(lambda b: ops.box_iou(b, boxes))(boxes[None]))
    with OtherDevice():
        assert dispatched(lambda: ops.box_iou(boxes, boxes))
    assert ops.box_iou(elsewhere, elsewhere).device.type == "meta"


class Anchors:
    """A tensor elsewhere, as far as the copies on the CPU are concerned; counts how often it is copied."""

    is_cpu, shape, dtype, _version, copies = False, (3, 4), torch.float32, 0, 0

    def is_inference(self) -> bool:
        return False

    def data_ptr(self) -> int:
        return 64

    def detach(self) -> Anchors:
        return self

    def cpu(self) -> int:
        self.copies += 1
        return self.copies


def test_anchors_move_once_until_they_change():
    from fastssd.ops._torch.device import on_cpu  # without a device there is no other way to see it

    anchors = Anchors()
    assert [on_cpu(anchors) for _ in range(3)] == [1, 1, 1]
    anchors._version += 1  # written to in place
    assert on_cpu(anchors) == 2
    assert on_cpu(Anchors()) == 1
