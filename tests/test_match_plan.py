"""The C++ kernel keeps its plans of anchors: results must not show it, beyond what tests/test_ops.py covers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastssd
from fastssd import ops

pytest.importorskip("fastssd._C", reason="this build has no compiled kernels")

MODES = ("none", "bipartite", "best", "low_quality")


@pytest.fixture(autouse=True)
def cpp():
    with fastssd.use_backend("cpp"):
        yield


def lattice(cells: int, scale: float = 1.0) -> np.ndarray:
    """Four anchors at each cell of a square grid, enough for several levels of bounds."""
    centre = (np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), -1).reshape(-1, 1, 2) + 0.5) / cells
    half = np.array([[2, 2], [3, 3], [3, 1.5], [1.5, 3]]) / cells / 2
    anchors = np.concatenate([centre - half, centre + half], -1).reshape(-1, 4).clip(0, 1)
    return (anchors * scale).astype(np.float32)


def boxes(rng: np.random.Generator, n: int, grid: int = 64) -> np.ndarray:
    """On a grid, so that IoUs tie."""
    corner, size = rng.integers(0, grid, (n, 2)), rng.integers(1, grid // 2, (n, 2))
    return (np.concatenate([corner, corner + size], -1) / grid).astype(np.float32)


def check(anchors: np.ndarray, gt: list[np.ndarray], **options) -> None:
    labels = [np.arange(1, len(b) + 1) for b in gt]
    comp, targets = ops.match_anchors(anchors, gt, **options), ops.assign_targets(anchors, gt, labels, **options)
    with fastssd.use_backend("reference"):
        ref, wanted = ops.match_anchors(anchors, gt, **options), ops.assign_targets(anchors, gt, labels, **options)
    for r, c in zip((*ref, wanted.labels, wanted.gt_idx), (*comp, targets.labels, targets.gt_idx), strict=True):
        np.testing.assert_array_equal(c, r)
    np.testing.assert_allclose(targets.deltas, wanted.deltas, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("force", MODES)
@pytest.mark.parametrize("cells", [40, 7, 2])
def test_many_blocks_of_anchors_give_what_the_reference_gives(cells, force):
    rng = np.random.default_rng(cells)
    anchors = lattice(cells)[: cells * cells * 4 - 3]  # the last block is not full
    gt = [boxes(rng, n) for n in (0, 1, 9, 60)]
    gt.append(anchors[rng.integers(0, len(anchors), 40)])  # IoU 1, and duplicates that compete
    for iou_threshold, background_threshold in ((0.5, None), (0.7, 0.3), (0.3, 0.0), (0.0, 0.0), (1.0, 1.0)):
        check(anchors, gt, force_match=force, iou_threshold=iou_threshold, background_threshold=background_threshold)


def test_more_equal_ground_truth_boxes_than_anchors_that_overlap_them():
    """Each takes the best free anchor; the last ones take anchors that they do not overlap, until none is free."""
    anchors = lattice(5)
    check(anchors, [np.repeat(boxes(np.random.default_rng(0), 1), 130, axis=0)])


def test_anchors_written_to_between_calls_are_seen():
    rng = np.random.default_rng(1)
    anchors = lattice(20)
    gt = [boxes(rng, 20)]
    for row in (0, 799, 1599):
        check(anchors, gt)
        anchors[row] = boxes(rng, 1)[0]
    check(anchors, gt)
    anchors[5, 2] = np.nan
    with pytest.raises(ValueError, match=r"anchors\[5\]"):
        ops.match_anchors(anchors, gt)


def test_more_sets_of_anchors_than_are_kept():
    rng = np.random.default_rng(2)
    sets = [lattice(12, 1 + i / 16) for i in range(12)]
    for _ in range(2):
        for anchors in sets:
            check(anchors, [boxes(rng, 8)])
            check(anchors.astype(np.float64), [boxes(rng, 8)])


def test_anchors_written_to_during_a_call_do_not_spoil_later_calls():
    """The call that another thread disturbs may return anything; the next call on the same content is right."""
    rng = np.random.default_rng(4)
    one, other = lattice(60), lattice(60)[::-1].copy()
    gt, anchors, stop = [boxes(rng, 10)], one.copy(), threading.Event()
    with fastssd.use_backend("reference"):
        refs = [ops.match_anchors(each, gt).iou for each in (one, other)]

    def write() -> None:
        while not stop.is_set():
            anchors[:] = other
            anchors[:] = one

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(40):
            ops.match_anchors(anchors, gt)
    finally:
        stop.set()
        writer.join()
    for each, ref in zip((one, other), refs, strict=True):
        np.testing.assert_array_equal(ops.match_anchors(each, gt).iou, ref)


def test_threads_that_use_different_anchors_do_not_disturb_each_other():
    rng = np.random.default_rng(3)
    work = [(lattice(10 + i % 12), [boxes(rng, 12)] * 4) for i in range(48)]
    alone = [ops.match_anchors(*arguments) for arguments in work]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda arguments: ops.match_anchors(*arguments), work))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a.gt_idx, b.gt_idx)
        np.testing.assert_array_equal(a.iou, b.iou)


def test_a_list_of_arrays_of_several_dtypes_is_promoted_as_one():
    anchors = lattice(6, 1 << 12)
    large = np.array([[0, 0, 1 << 11, (1 << 11) + 1]])
    mixed = ops.match_anchors(anchors, [large.astype(np.float32), large.astype(np.int64)])
    assert mixed.iou.dtype == np.float64
    assert ops.match_anchors(anchors, [large.astype(np.float32)] * 2).iou.dtype == np.float32
