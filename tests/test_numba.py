"""What only the Numba backend can get wrong: its ways through large inputs, threads, Ctrl-C, its cache on disk."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastssd
from fastssd import ops
from tests.operators._inputs import crowd, random_boxes

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def numba_backend():
    with fastssd.use_backend("numba"):
        yield


def kernels(name):
    """The module of a family; the package's attribute of that name can be the operator."""
    return importlib.import_module(f"fastssd.backends.numba.{name}")


def reference(call):
    with fastssd.use_backend("reference"):
        return call()


@pytest.mark.parametrize("few", [0, 10**6], ids=["grid", "blocks"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_way_through_nms_gives_the_same(few, dtype, monkeypatch):
    monkeypatch.setattr(kernels("nms"), "FEW", few)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        sizes = np.exp(rng.normal(0, 1.5, (500, 2))) * 20
        middle = rng.random((500, 2)) * 300
        mixed = np.concatenate([middle - sizes / 2, middle + sizes / 2], axis=1)
        rows = np.concatenate([np.repeat(rng.random((400, 1)) * 500, 2, axis=1), np.zeros((400, 2))], axis=1)
        thin = rows[:, [0, 2, 1, 3]] + [0, 0, 20, 1e-3]
        for boxes in (mixed, thin, crowd(rng, 700, 9), random_boxes(rng, 300) + 1e5, np.round(mixed / 16) * 16):
            boxes = boxes.astype(dtype)
            scores = np.round(rng.random(len(boxes)) * 40).astype(dtype)
            for threshold in (0.05, 0.3, 0.5, 1.0):
                comp = ops.nms(boxes, scores, threshold)
                np.testing.assert_array_equal(comp, reference(lambda b=boxes, s=scores, t=threshold: ops.nms(b, s, t)))


def test_work_in_pieces_equals_work_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 150).reshape(3, 50, 4)
    loss, logits = rng.random((5, 90)), rng.normal(size=(5, 150, 4))
    calls = (
        lambda: ops.box_iou(boxes, boxes[:, :40]),
        lambda: ops.mine_hard_negatives(loss, loss > 0.9),
        lambda: ops.postprocess_detections(logits, np.zeros((5, 150, 4)), boxes.reshape(-1, 4)).anchor_idx,
    )
    ref = [call() for call in calls]
    for name, limit in (("iou", "CELLS"), ("mining", "LOSSES"), ("postprocess", "LOGITS")):
        monkeypatch.setattr(kernels(name), limit, 700)
    for call, whole in zip(calls, ref, strict=True):
        np.testing.assert_array_equal(call(), whole)


def test_arrays_that_cannot_be_written_to():
    rng = np.random.default_rng(0)
    boxes, scores = random_boxes(rng, 400), rng.random(400)
    expected = ops.nms(boxes, scores, 0.5)
    boxes.flags.writeable = scores.flags.writeable = False
    np.testing.assert_array_equal(ops.nms(boxes, scores, 0.5), expected)
    assert ops.match_anchors(boxes, [boxes[:3]]).gt_idx.max() == 2


def test_python_threads_at_once():
    rng = np.random.default_rng(0)
    inputs = [(crowd(rng, 2000, 30), rng.random(2000)) for _ in range(8)]
    expected = [ops.nms(*arrays, 0.5) for arrays in inputs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda arrays: ops.nms(*arrays, 0.5), inputs * 4))
    for comp, ref in zip(found, expected * 4, strict=True):
        np.testing.assert_array_equal(comp, ref)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child process")
@pytest.mark.parametrize(
    ("call", "size"),
    [
        ("ops.nms(boxes[:n], scores[:n], 0.05)", 300_000),
        ("ops.soft_nms(boxes[:n], scores[:n])", 300_000),
        ("ops.matrix_nms(boxes[:n], scores[:n], np.zeros(n, int))", 300_000),
        ("ops.match_anchors(boxes[:n], [boxes[:1000]] * (n // 200))", 100_000),
    ],
)
def test_ctrl_c_stops_a_long_call(call, size):
    code = f"""
import signal
import numpy as np
from fastssd import ops
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born without
rng = np.random.default_rng(0)
corner = rng.random((300_000, 2), np.float32)
boxes, scores = np.concatenate([corner, corner + np.float32(5e-4)], axis=1), rng.random(300_000, np.float32)
n = 400
{call}  # compiles
n = {size}
try:
    print("go", flush=True)
    {call}
    print("finished")
except KeyboardInterrupt:
    print("stopped")
"""
    environment = os.environ | {"FASTSSD_BACKEND": "numba"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "go\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopped\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child process")
def test_ctrl_c_at_any_moment_is_a_keyboard_interrupt():
    """Also where Numba makes Python objects of a result, and in every operator that can take long."""
    code = """
import random, signal, threading, os
import numpy as np
from fastssd import ops
signal.signal(signal.SIGINT, signal.default_int_handler)
rng = np.random.default_rng(0)
n = 20_000
corner = rng.random((n, 2), np.float32)
boxes, scores = np.concatenate([corner, corner + np.float32(0.05)], axis=1), rng.random(n, np.float32)
logits, deltas = rng.normal(size=(1, n, 5)), rng.normal(size=(1, n, 4))
groups, none = rng.integers(0, 9, n), np.zeros((1, n), bool)
calls = [
    lambda: ops.nms(boxes, scores, 0.5),
    lambda: ops.batched_nms(boxes, scores, groups, 0.5),
    lambda: ops.soft_nms(boxes[:2000], scores[:2000]),
    lambda: ops.matrix_nms(boxes, scores, groups),
    lambda: ops.box_iou(boxes[:2000], boxes[:2000]),
    lambda: ops.match_anchors(boxes, [boxes[:200]]),
    lambda: ops.mine_hard_negatives(scores[None], none, min_negatives=99),
    lambda: ops.multibox_cross_entropy(logits, groups[None] % 5),
    lambda: ops.encode_boxes(boxes, boxes),
    lambda: ops.decode_boxes(deltas[0], boxes),
    lambda: ops.postprocess_detections(logits, deltas, boxes.astype(float), score_threshold=0.0, topk=None),
]
for call in calls:
    call()  # compiles
    for turn in range(12):
        timer = threading.Timer(random.Random(turn).uniform(0, 0.03), os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            while True:
                call()
        except KeyboardInterrupt:
            pass
        timer.join()
print("stopped every time")
"""
    environment = os.environ | {"FASTSSD_BACKEND": "numba"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (found.stdout, found.returncode) == ("stopped every time\n", 0), found.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child process")
def test_ctrl_c_inside_of_one_image():
    """One image whose candidates all stay, which takes many minutes."""
    code = """
import signal
import numpy as np
from fastssd import ops
signal.signal(signal.SIGINT, signal.default_int_handler)
def call(n):
    boxes = np.arange(n)[:, None] * 2.0 + np.array([0.0, 0, 1, 1])
    scores = np.tile([0.1, 0.9], (1, n, 1))
    zeros, most = np.zeros((1, n, 4)), dict(activation="none", topk=None, max_detections=n)
    print("go", flush=True)
    ops.postprocess_detections(scores, zeros, boxes, **most)
try:
    call(9)  # compiles
    call(1_000_000)
except KeyboardInterrupt:
    print("stopped")
"""
    environment = os.environ | {"FASTSSD_BACKEND": "numba"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert [process.stdout.readline(), process.stdout.readline()] == ["go\n", "go\n"]
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopped\n"


def test_without_a_place_for_the_cache():
    code = "from fastssd import ops; print(ops.box_area([[0, 0, 2, 3]]))"
    environment = os.environ | {
        "FASTSSD_BACKEND": "numba",
        "NUMBA_CACHE_LOCATOR_CLASSES": "IPythonCacheLocator",  # which finds none outside of IPython
    }
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert (found.stdout.strip(), found.stderr) == ("[6.]", "")
