"""What other people's threads and memory do to the operators: first calls from many threads, arrays that change."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastssd
from fastssd import ops
from fastssd.backends import available_backends, load_backend
from fastssd.backends import threads as pool
from tests.operators._inputs import true_as_any_byte

PACKAGE = Path(fastssd.__file__).parent

FIRST_CALLS = """
import threading
import numpy as np
from fastssd import ops
{more}
rng = np.random.default_rng(0)
corner = rng.random((30, 2), np.float32)
boxes, scores, groups = np.concatenate([corner, corner + np.float32(0.2)], 1), rng.random(30, np.float32), np.arange(30)
{convert}
calls = [
    lambda: ops.nms(boxes, scores, 0.5),
    lambda: ops.box_iou(boxes, boxes),
    lambda: ops.match_anchors(boxes, [boxes]),
    lambda: ops.encode_boxes(boxes, boxes),
    lambda: ops.mine_hard_negatives(scores, scores > 0.5),
    lambda: ops.box_area(boxes),
    lambda: ops.soft_nms(boxes, scores),
    lambda: ops.batched_nms(boxes, scores, groups, 0.5),
]
gate, done = threading.Barrier(8), []
def run(call):
    gate.wait()
    call()
    done.append(call)
each = [threading.Thread(target=run, args=(call,)) for call in calls]
for thread in each: thread.start()
for thread in each: thread.join()
print(len(done))
"""
TO_TORCH = "boxes, scores, groups = map(torch.from_numpy, (boxes, scores, groups))"


@pytest.mark.parametrize(("kind", "processes", "together"), [("numpy", 60, 10), ("torch", 3, 3)])
def test_first_calls_from_eight_threads(kind, processes, together):
    """The time limit only ends a process that hangs, which else would wait for ever."""
    if kind == "torch":
        pytest.importorskip("torch")
    more, convert = ("import torch", TO_TORCH) if kind == "torch" else ("", "")
    code = [sys.executable, "-c", FIRST_CALLS.format(more=more, convert=convert)]
    for _ in range(processes // together):
        started = [subprocess.Popen(code, stdout=subprocess.PIPE, text=True) for _ in range(together)]
        try:
            assert [process.communicate(timeout=600)[0].strip() for process in started] == ["8"] * together
        finally:
            for process in started:
                process.kill()
                process.wait()


@pytest.mark.parametrize("name", available_backends())
@pytest.mark.parametrize("label", [-(2**62), -100, 5, 10**6, 2**62])
def test_kernels_use_no_memory_outside_for_labels_outside(name, label):
    """The faces refuse such labels, but another thread may write them later: they count as the nearest column."""
    backend, rng = load_backend(name), np.random.default_rng(0)
    logits = rng.normal(size=(2, 50, 5)).astype(np.float32)
    labels = np.where(rng.random((2, 50)) < 0.3, label, 0)
    nearest, selected = labels.clip(0, 4), np.ones((2, 50), bool)
    comp, ref = np.empty_like(logits), np.empty_like(logits)
    backend.multibox_cross_entropy_gradient(logits, labels, selected, 1.0, comp)
    backend.multibox_cross_entropy_gradient(logits, nearest, selected, 1.0, ref)
    np.testing.assert_array_equal(comp, ref)
    losses = np.empty(2)
    backend.multibox_cross_entropy(logits, labels, 1e9, 0, losses, selected)
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("name", available_backends())
def test_a_bool_is_true_for_every_byte_but_zero(name):
    rng = np.random.default_rng(0)
    loss, positive = rng.random((4, 3000)), rng.random((4, 3000)) < 0.01
    logits, labels = rng.normal(size=(2, 60, 5)), rng.integers(0, 5, (2, 60))
    with fastssd.use_backend(name):
        mined = ops.mine_hard_negatives(loss, true_as_any_byte(positive))
        np.testing.assert_array_equal(mined, ops.mine_hard_negatives(loss, positive))
        assert (mined.sum(1) == 3 * positive.sum(1)).all()
        assert not (mined & positive).any()
    backend, outs = load_backend(name), np.empty((2, *logits.shape))
    for selected, out in zip((labels > 2, true_as_any_byte(labels > 2)), outs, strict=True):
        backend.multibox_cross_entropy_gradient(logits, labels, selected, 1.0, out)
    np.testing.assert_array_equal(*outs)


@pytest.mark.parametrize("name", [name for name in available_backends() if name != "reference"])
def test_arrays_that_another_thread_writes_to(name):
    """A call answers with what its arrays held or refuses it; indices stay in range, and later calls are right."""
    rng = np.random.default_rng(0)
    corner = rng.random((400, 2))
    anchors = np.concatenate([corner, corner + 0.2], 1)
    gt, classes = anchors[:40].copy(), np.ones(40, np.int64)
    logits, deltas, labels = rng.normal(size=(2, 400, 4)), rng.normal(size=(2, 400, 4)), rng.integers(0, 4, (2, 400))
    arrays = [anchors, gt, classes, logits, deltas, labels]
    clean, done = [array.copy() for array in arrays], threading.Event()
    calls = [
        lambda: ops.match_anchors(anchors, [gt]).gt_idx,
        lambda: ops.assign_targets(anchors, [gt], [classes]).gt_idx,
        lambda: ops.mine_hard_negatives(logits[..., 0], labels > 1),
        lambda: ops.multibox_cross_entropy(logits, labels).selected,
        lambda: ops.postprocess_detections(logits, deltas, anchors).anchor_idx,
        lambda: ops.box_iou(anchors, gt),
        lambda: ops.encode_boxes(anchors, anchors),
    ]

    def write() -> None:
        while not done.is_set():
            for array, right in zip(arrays, clean, strict=True):
                array[::3] = 10**6 if array.dtype == np.int64 else rng.choice([np.nan, -1e30, 1e30])
                array[...] = right

    with fastssd.use_backend("reference"):
        ref = [call() for call in calls]
    writer = threading.Thread(target=write)
    with fastssd.use_backend(name):
        writer.start()
        try:
            for call, right in [*zip(calls, ref, strict=True)] * 40:
                with contextlib.suppress(ValueError), np.errstate(all="ignore"):
                    found = call()
                    assert found.shape == right.shape
                    assert found.dtype != np.int64 or -2 <= found.min() <= found.max() < 400
        finally:
            done.set()
            writer.join()
        for call, right in zip(calls, ref, strict=True):
            np.testing.assert_allclose(call(), right, rtol=1e-12)


@pytest.mark.parametrize("ratio", [np.inf, 1e308, 5e-324, 0.0])
def test_another_device_mines_what_the_kernel_mines(ratio):
    torch = pytest.importorskip("torch")
    from tests.other_device import OtherDevice

    rng = np.random.default_rng(0)
    loss, positive = rng.random((3, 500)), rng.random((3, 500)) < [[0.02], [0.0], [0.3]]
    ref = ops.mine_hard_negatives(loss, positive, neg_pos_ratio=ratio)
    assert not ref[1].any()
    mask = torch.from_numpy(true_as_any_byte(positive).view(np.uint8)).view(torch.bool)
    with OtherDevice():
        comp = ops.mine_hard_negatives(torch.from_numpy(loss), mask, neg_pos_ratio=ratio)
    np.testing.assert_array_equal(comp.numpy(), ref)


def test_another_device_clips_as_the_kernel_does():
    torch = pytest.importorskip("torch")
    from tests.other_device import OtherDevice

    boxes = np.array([[-0.0, 0.0, 5.0, np.nan], [-3.0, -0.0, -0.0, 9.0]] * 9)
    for size in ((4.0, 3.0), (0.0, 0.0)):
        ref = ops.clip_boxes_to_image(boxes, size)
        with OtherDevice():
            comp = ops.clip_boxes_to_image(torch.from_numpy(boxes), size)
        np.testing.assert_array_equal(comp.numpy(), ref)
        finite = np.isfinite(ref)
        np.testing.assert_array_equal(np.signbit(comp.numpy())[finite], np.signbit(ref)[finite])


@pytest.mark.parametrize("wanted", [0, -1, 1025, 2**30, 2**31, 2**64, 1 << 20000], ids=lambda wanted: hex(wanted)[:12])
def test_numbers_of_threads_out_of_range_name_the_argument(wanted):
    with pytest.raises(ValueError, match="threads"):
        fastssd.set_num_threads(wanted)


@pytest.mark.parametrize(
    "wanted", ["0", "-1", "1025", "1073741824", "abc", "1e3", "2.5", " 4", "9" * 5000], ids=lambda wanted: wanted[:12]
)
def test_environment_that_is_no_number_of_threads_names_itself(wanted, monkeypatch):
    pool.choose(None)
    monkeypatch.setenv("FASTSSD_NUM_THREADS", wanted)
    with pytest.raises(ValueError, match="FASTSSD_NUM_THREADS"):
        pool.current()


@pytest.mark.parametrize("name", available_backends())
def test_any_number_of_empty_images_is_no_work(name):
    many = 2**57  # of which NumPy can still count the bytes
    with fastssd.use_backend(name):
        assert ops.mine_hard_negatives(np.empty((many, 0)), np.empty((many, 0), bool)).shape == (many, 0)
        assert ops.box_iou(np.empty((many, 0, 4)), np.empty((many, 0, 4))).shape == (many, 0, 0)
        assert ops.decode_boxes(np.empty((many, 0, 4)), np.empty((0, 4))).shape == (many, 0, 4)
        assert ops.grid_anchors([(many, 0)], [[0.1]]).shape == (0, 4)


@pytest.mark.parametrize("height", [2**32, 2**62])
def test_products_of_lengths_that_overflow_fit_no_array(height):
    compiled = pytest.importorskip("fastssd._C", reason="this build has no compiled kernels")
    for width in (4, 2**32):
        with pytest.raises(ValueError, match="out"):
            compiled.grid_anchors(height, width, np.ones((1, 2)), np.ones(2), False, np.empty((0, 4), np.float32))


@pytest.mark.parametrize("name", available_backends())
def test_a_small_output_that_is_kept_holds_no_large_block(name):
    anchors = np.tile(np.array([[0, 0, 1, 1]], np.float32), (8000, 1))
    images = [anchors[:1]] * 120
    with fastssd.use_backend(name):
        for outputs in (
            ops.match_anchors(anchors, images, force_match="none"),
            ops.assign_targets(anchors, images, [np.ones(1, np.int64)] * 120, force_match="none"),
        ):
            for output in outputs:
                root = output
                while isinstance(root.base, np.ndarray):
                    root = root.base
                assert root.nbytes <= max(output.nbytes, 1 << 24)
