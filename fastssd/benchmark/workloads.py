"""The workloads that are timed: inputs of realistic sizes, and many of each, so that they do not stay in a cache."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastssd import ops

Boxes = NDArray[np.float32]
Inputs = tuple[Any, ...]


class Workload(NamedTuple):
    """An operator with inputs of one size and kind.

    Attributes:
        name: in tables.
        operator: a key of :data:`fastssd.benchmark.peers.PEERS`.
        make: makes new inputs with a random generator.
        rotation: number of different inputs that take turns.
        quick: whether ``fastssd benchmark`` includes it.
    """

    name: str
    operator: str
    make: Callable[[np.random.Generator], Inputs]
    rotation: int = 16
    quick: bool = True


# (cells per side, anchors per cell) of each level; scales as in the SSD paper, section 2.2.
_GRIDS = {
    "tinyssd": ((32, 4), (16, 4), (8, 4), (4, 4), (1, 4)),
    "ssd300": ((38, 4), (19, 6), (10, 6), (5, 6), (3, 4), (1, 4)),
    "ssd512": ((64, 4), (32, 6), (16, 6), (8, 6), (4, 6), (2, 4), (1, 4)),
}


def anchors(model: str) -> Boxes:
    """The anchors of a model, [A, 4] as fractions: tinyssd 5444, ssd300 8732, ssd512 24564."""
    grids = _GRIDS[model]
    scales = np.linspace(0.1, 0.95, len(grids) + 1)
    pairs = [(scales[i], float(np.sqrt(scales[i] * scales[i + 1]))) for i in range(len(grids))]
    ratios = [(1.0, 2.0, 0.5) if k == 4 else (1.0, 2.0, 0.5, 3.0, 1 / 3) for _, k in grids]
    return ops.grid_anchors([side for side, _ in grids], pairs, ratios)


def objects(rng: np.random.Generator, n: int) -> Boxes:
    """Boxes of objects in an image, [n, 4] xyxy as fractions of it: many small ones, a few large."""
    side = np.exp(rng.uniform(np.log(0.04), np.log(0.8), (n, 1))) * np.exp(rng.normal(0, 0.3, (n, 2)))
    side = side.clip(0.02, 0.95)
    corner = rng.random((n, 2)) * (1 - side)
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def crowded(rng: np.random.Generator, n: int) -> tuple[Boxes, NDArray[np.float32]]:
    """Boxes in clusters of about 50, like those of a detector before NMS, with scores: [n, 4] xyxy and [n]."""
    centers = rng.uniform(0, 10 * np.sqrt(n), (max(n // 50, 1), 2))
    size = rng.uniform(20, 80, (len(centers), 2))
    cluster = rng.integers(0, len(centers), n)
    middle = centers[cluster] + rng.normal(0, 4, (n, 2))
    half = size[cluster] * rng.uniform(0.85, 1.15, (n, 2)) / 2
    return np.concatenate([middle - half, middle + half], axis=1).astype(np.float32), rng.random(n, np.float32)


def sparse(rng: np.random.Generator, n: int) -> tuple[Boxes, NDArray[np.float32]]:
    """Boxes of which few overlap, with scores: [n, 4] xyxy and [n]."""
    corner = rng.uniform(0, 100 * np.sqrt(n), (n, 2))
    return (
        np.concatenate([corner, corner + rng.uniform(10, 100, (n, 2))], axis=1).astype(np.float32),
        rng.random(n, np.float32),
    )


def truths(rng: np.random.Generator, batch: int, mean: int) -> tuple[list[Boxes], list[NDArray[np.int64]]]:
    """Ground truth of a batch, boxes and labels: about `mean` boxes per image."""
    counts = rng.integers(max(1, mean // 2), mean * 3 // 2 + 1, batch)
    return [objects(rng, n) for n in counts], [rng.integers(1, 91, n) for n in counts]


def network_outputs(
    rng: np.random.Generator, model: str, batch: int, columns: int, trained: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], Boxes]:
    """Logits [B, A, C], deltas [B, A, 4] and anchors [A, 4], as from a trained network, or random."""
    priors = anchors(model)
    logits = rng.standard_normal((batch, len(priors), columns), np.float32)
    deltas = rng.standard_normal((batch, len(priors), 4), np.float32)
    if trained:
        logits[..., 0] += 9
        boxes, labels = truths(rng, batch, 10)
        match = ops.match_anchors(priors, boxes, iou_threshold=0.4)
        for image in range(batch):
            positive = np.flatnonzero(match.gt_idx[image] >= 0)
            truth = match.gt_idx[image][positive]
            logits[image, positive, labels[image][truth] % (columns - 1) + 1] += 16 * match.iou[image][positive]
            exact = ops.encode_boxes(boxes[image][truth], priors[positive])
            deltas[image, positive] = exact + 0.3 * deltas[image, positive]
    return logits, deltas, priors


def _iou(n: int, m: int, rotation: int = 16, quick: bool = True) -> Workload:
    def make(rng: np.random.Generator) -> Inputs:
        return objects(rng, n), objects(rng, m)

    return Workload(f"box_iou {n} x {m}", "box_iou", make, rotation, quick)


def _nms(n: int, kind: str, rotation: int = 16, quick: bool = True) -> Workload:
    draw = crowded if kind == "crowded" else sparse

    def make(rng: np.random.Generator) -> Inputs:
        return *draw(rng, n), 0.5

    return Workload(f"nms {n}, {kind}", "nms", make, rotation, quick)


def _match(operator: str, model: str, batch: int, mean: int, quick: bool = True) -> Workload:
    def make(rng: np.random.Generator) -> Inputs:
        boxes, labels = truths(rng, batch, mean)
        return (anchors(model), boxes) if operator == "match_anchors" else (anchors(model), boxes, labels)

    name = f"{operator} {batch} x {len(anchors(model))} x {mean}"
    return Workload(name, operator, make, 16, quick)


def _postprocess(model: str, batch: int, columns: int, trained: bool, rotation: int, quick: bool = True) -> Workload:
    def make(rng: np.random.Generator) -> Inputs:
        return network_outputs(rng, model, batch, columns, trained)

    kind = "trained" if trained else "random"
    name = f"postprocess {batch} x {len(anchors(model))} x {columns}, {kind}"
    return Workload(name, "postprocess_detections", make, rotation, quick)


def _mine(model: str, batch: int, quick: bool = True) -> Workload:
    def make(rng: np.random.Generator) -> Inputs:
        count = len(anchors(model))
        loss = rng.gamma(0.3, 1.0, (batch, count)).astype(np.float32)
        return loss, rng.random((batch, count)) < rng.uniform(0.001, 0.02, (batch, 1))

    return Workload(f"mine {batch} x {len(anchors(model))}", "mine_hard_negatives", make, 16, quick)


def _criterion(model: str, batch: int, columns: int) -> Workload:
    def make(rng: np.random.Generator) -> Inputs:
        boxes, labels = truths(rng, batch, 8)
        labels = [label % (columns - 1) + 1 for label in labels]
        return *network_outputs(rng, model, batch, columns, True), boxes, labels

    return Workload(f"criterion {batch} x {len(anchors(model))} x {columns}", "criterion", make, 3)


def workloads() -> tuple[Workload, ...]:
    """All workloads, in the order of the table; those that need torch only if it is installed."""
    with_torch = (_criterion("ssd300", 8, 91),) if importlib.util.find_spec("torch") else ()
    return (
        _iou(8, 8, rotation=64),
        _iou(8732, 20),
        _iou(1000, 1000),
        _iou(8732, 1000, rotation=4),
        _nms(8, "crowded", rotation=64),
        _nms(1_000, "crowded"),
        _nms(10_000, "crowded"),
        _nms(50_000, "crowded", rotation=8),
        _nms(1_000, "sparse"),
        _nms(10_000, "sparse"),
        _nms(50_000, "sparse", rotation=8, quick=False),
        _match("match_anchors", "tinyssd", 32, 8),
        _match("match_anchors", "ssd300", 8, 8),
        _match("match_anchors", "ssd300", 32, 100, quick=False),
        _match("match_anchors", "ssd512", 8, 30, quick=False),
        _match("assign_targets", "ssd300", 32, 8),
        _mine("ssd300", 8),
        _mine("ssd300", 32),
        *with_torch,
        _postprocess("tinyssd", 1, 4, True, 16),
        _postprocess("ssd300", 8, 91, True, 4),
        _postprocess("ssd300", 8, 91, False, 3, quick=False),
    )
