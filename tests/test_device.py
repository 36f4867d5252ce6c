"""What runs on another device: formulas that equal the kernels, little that is moved, and CUDA as the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastssd import ops
from tests import cases

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from fastssd import _checks as checks  # noqa: E402
from fastssd.ops._operator import REGISTRY, dispatched  # noqa: E402
from fastssd.ops._torch import device  # noqa: E402

ON_DEVICE = {name: device.by_formula(operator) for name, operator in REGISTRY.items() if operator.formula}


class OtherDevice(TorchDispatchMode):
    """Runs operators on tensors of the CPU as they run on another device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("fastssd::")
        if name not in ON_DEVICE:
            return func(*args, **(kwargs or {}))
        return ON_DEVICE[name](*args)


def as_tensors(value: Any) -> Any:
    if isinstance(value, list):
        return [as_tensors(each) for each in value]
    # What torch has no strides, byte order or alignment for is copied.
    return (
        torch.from_numpy(checks.plain(value, value.dtype.newbyteorder("="))) if isinstance(value, np.ndarray) else value
    )


def as_arrays(value: Any) -> Any:
    return tuple(map(as_arrays, value)) if isinstance(value, tuple) else value.cpu().numpy()


def results(name: str) -> Iterator[tuple[str, Any]]:
    return ((case.name, case.call()) for case in cases.all_cases() if case.operator == name)


def differences(name: str, face: Any, monkeypatch: Any) -> list[str]:
    """How the cases of an operator differ where `face` takes its place."""
    refs = list(results(name))
    monkeypatch.setattr(cases, "ops", SimpleNamespace(**vars(ops) | {name: face}))
    bad = []
    for (case, ref), (_, comp) in zip(refs, results(name), strict=True):
        if name == "multibox_cross_entropy":  # a double sum in another order
            ref, comp = ((found[0].astype(np.float32), found[1]) for found in (ref, comp))
        if problem := cases.difference(name, ref, comp):
            bad.append(f"{case}: {problem}")
    return bad


PUBLIC = sorted({name for name in REGISTRY if hasattr(ops, name)} - {"grid_anchors"})


@pytest.mark.parametrize("name", [name for name in PUBLIC if name in ON_DEVICE])
def test_formulas_equal_the_kernels(name, monkeypatch):
    face = getattr(ops, name)

    def by_formula(*arrays: Any, **options: Any) -> Any:
        with OtherDevice():
            return as_arrays(face(*map(as_tensors, arrays), **{key: as_tensors(v) for key, v in options.items()}))

    assert not differences(name, by_formula, monkeypatch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PUBLIC)
def test_cuda_gives_what_the_cpu_gives(name, monkeypatch):
    face = getattr(ops, name)

    def on_cuda(*arrays: Any, **options: Any) -> Any:
        def moved(value: Any) -> Any:
            if isinstance(value, list):
                return [moved(each) for each in value]
            return value.cuda() if isinstance(value, torch.Tensor) else value  # a threshold, the name of a format

        found = face(
            *(moved(as_tensors(array)) for array in arrays), **{key: as_tensors(v) for key, v in options.items()}
        )
        assert all(each.is_cuda for each in (found if isinstance(found, tuple) else (found,)))
        return as_arrays(found)

    assert not differences(name, on_cuda, monkeypatch)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_operator_has_a_kernel_for_every_device(name):
    for key in ("CPU", "CUDA", "XPU", "MPS", "PrivateUse1", "Meta"):
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"fastssd::{name}", key)


def test_only_what_torch_must_dispatch_is_dispatched():
    plain, elsewhere = torch.rand(3, 4), torch.empty(3, 4, device="meta")
    assert not dispatched(plain, torch.nn.Parameter(plain), plain.numpy(), [plain], None)
    assert dispatched(plain, elsewhere)
    assert dispatched(torch.func.vmap(lambda boxes: boxes)(plain)) is False
    assert ops.box_iou(elsewhere, elsewhere).device.type == "meta"
    seen = []
    torch.func.vmap(lambda boxes: seen.append(dispatched(boxes)) or boxes)(plain)
    with OtherDevice():
        seen.append(dispatched(plain))
    assert seen == [True, True]


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
    anchors = Anchors()
    assert [device.on_cpu(anchors) for _ in range(3)] == [1, 1, 1]
    anchors._version += 1  # written to in place
    assert device.on_cpu(anchors) == 2
    assert device.on_cpu(Anchors()) == 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("encode_boxes", ([[0, 0, 1, 1], [1, 1, 1, 2]], [[0, 0, 1, 1], [0, 0, 1, 1]])),
        ("multibox_cross_entropy", ([[0.0, 1.0]], [2])),
        ("mine_hard_negatives", ([0.0, 1.0], [0, 1])),
        ("box_iou", ([0.0, 0.0, 1.0, 1.0], [[0.0, 0.0, 1.0, 1.0]])),
        ("decode_boxes", ([[0.0] * 4], [[0.0, 0.0, 1.0, 1.0]] * 2)),
        ("postprocess_detections", ([[0.0] * 3], [[0.0] * 4], [[0.0, 0.0, 1.0, 1.0]] * 2)),
    ],
)
def test_bad_input_is_an_error_that_names_the_argument(name, arguments):
    tensors = [torch.tensor(argument) for argument in arguments]
    with (
        OtherDevice(),
        pytest.raises((ValueError, TypeError), match=r"^(boxes\[1\]|boxes1|labels\[0\]|positive|deltas|logits)"),
    ):
        getattr(ops, name)(*tensors)
