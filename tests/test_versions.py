"""Whatever torch there is, older, half imported or not torch at all: fastssd imports, and plain operators work."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.oldest import oldest

PLAIN = """
import numpy as np

def plain(ops, torch):
    boxes, scores = np.float32([[0, 0, 2, 2], [0, 0, 2, 1.5], [5, 5, 6, 6]]), np.float32([0.3, 0.9, 0.5])
    for make in (np.asarray, np.ndarray.tolist, *([torch.from_numpy] if torch else [])):
        given, values = make(boxes), make(scores)
        assert ops.nms(given, values, 0.5).tolist() == [1, 2]
        assert ops.box_iou(given, given).tolist() == [[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]]
        assert ops.match_anchors(given, [given[:1]]).gt_idx.tolist() == [[0, 0, -1]]
        loss, selected = ops.multibox_cross_entropy(make(np.zeros((2, 2))), make(np.array([0, 1])))
        assert selected.tolist() == [True, True] and abs(float(loss) - 2 * np.log(2)) < 1e-6
    if torch:
        tensor, out = torch.from_numpy(boxes), torch.empty(3, 3)
        assert ops.box_iou(tensor, tensor, out=out) is out and out.tolist()[0] == [1, 0.75, 0]
        tensor.requires_grad_()
        ops.box_area(tensor).sum().backward()
        assert tensor.grad.tolist() == [[-2, -2, 2, 2], [-1.5, -2, 1.5, 2], [-1, -1, 1, 1]]
        assert refused(lambda: ops.soft_nms(tensor, torch.from_numpy(scores))[1].sum().backward())

def refused(call):
    try:
        call()
    except NotImplementedError:
        return True
    return False
"""

OLDER_TORCH = (
    PLAIN
    + """
import sys
import torch
from torch.utils import _pytree  # torch imports it when it is first needed

def trace(ops, boxes):
    return ops.box_iou(boxes.to("meta"), boxes.to("meta"))

def mapped(ops, boxes):
    return torch.func.vmap(ops.box_area)(boxes[None])

def gradient(ops, boxes):
    boxes.requires_grad_()
    return torch.autograd.grad(torch.ops.fastssd.box_area(boxes).sum(), boxes)

USES = (trace, mapped, gradient)

def without(path, missing):
    *owner, name = path.split(".")
    where = torch
    for part in owner:
        where = getattr(where, part)
    if name not in vars(where):
        return  # this torch is such a one
    feature = vars(where)[name]
    delattr(where, name)
    from fastssd import ops
    plain(ops, torch)
    setattr(where, name, feature)  # which torch uses itself
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.5]])
    assert torch.ops.fastssd.nms(boxes, torch.tensor([0.3, 0.9]), 0.5).tolist() == [1]
    for use in USES:
        assert refused(lambda: use(ops, boxes.clone())) == (use in missing), use

for path, missing in {
    "Tag.flexible_layout": [],
    "Tag.pt2_compliant_tag": [],
    "library.register_fake": [trace],
    "library.register_autograd": [gradient],
    "library.register_vmap": [mapped],
    "library.Library._destroy": [],
    "utils._pytree._register_namedtuple": [],
    "compiler.is_dynamo_compiling": [],
}.items():
    for module in [module for module in sys.modules if module.split(".")[0] == "fastssd"]:
        del sys.modules[module]
    try:
        without(path, missing)
    except BaseException as error:
        error.add_note("without " + path)
        raise
"""
)

AGAIN = (
    PLAIN
    + """
import sys
import torch

define, count = torch.library.Library.define, 0

def interrupted(*args, **kwargs):
    global count
    count += 1
    if count == 7:
        raise OSError("interrupted")
    return define(*args, **kwargs)

torch.library.Library.define = interrupted
import fastssd
assert count == 7
plain(fastssd.ops, torch)
torch.library.Library.define = define
boxes, scores = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.5]]), torch.tensor([0.3, 0.9])
torch.func.vmap(fastssd.ops.box_area)(boxes[None])  # a call that is dispatched registers them
assert torch.ops.fastssd.nms(boxes, scores, 0.5).tolist() == [1]

before = fastssd
for name in [name for name in sys.modules if name.split(".")[0] == "fastssd"]:
    del sys.modules[name]
import fastssd
assert fastssd is not before
for ops in (torch.ops.fastssd, fastssd.ops, before.ops):
    assert ops.nms(boxes, scores, 0.5).tolist() == [1]
    assert torch.func.vmap(ops.box_area)(boxes[None]).tolist() == [[4, 3]]
"""
)

STANDS_IN = {
    "an empty module": "sys.modules['torch'] = types.ModuleType('torch')",
    "a folder": "sys.modules['torch'] = types.ModuleType('torch'); sys.modules['torch'].__path__ = []",
    "forbidden": "sys.modules['torch'] = None",
    "one half imported": "sys.modules['torch'] = types.ModuleType('torch'); sys.modules['torch'].Tensor = Tensor",
}

NO_TORCH = (
    PLAIN
    + """
import sys, types
Tensor = type("Tensor", (), {})
exec(sys.argv[1])
import fastssd
plain(fastssd.ops, None)
assert fastssd.show_config()["num_threads"] > 0
assert "TinySSD" in dir(fastssd)
"""
)


def run(code: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_what_an_older_torch_lacks():
    """One feature is taken away at a time: what needs it is refused, all else works."""
    pytest.importorskip("torch")
    run(OLDER_TORCH)


def test_registration_that_failed_and_a_second_import():
    pytest.importorskip("torch")
    run(AGAIN)


@pytest.mark.parametrize("what", STANDS_IN)
def test_what_is_called_torch_and_is_none(what):
    run(NO_TORCH, STANDS_IN[what])


def test_every_dependency_declares_its_oldest_release():
    assert {"numpy", "torch", "numba", "typer"} <= set(oldest())
