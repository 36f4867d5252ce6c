"""The training step with targets made in the step, and with targets made by ``TargetCollate``.

    python benchmarks/target_collate.py

First TinySSD on generated shapes in memory, in batches of 32; then only the parts of a step besides the network, also
at the size of SSD300. Every number is processor time of the training process, the fastest of its repetitions, because
other processes can only slow it down. Writes into docs/integration.md.
"""

from __future__ import annotations

import argparse
import pickle
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastssd import ops
from fastssd.benchmark import environment
from fastssd.data import Sample, shapes_dataset
from fastssd.detection import TINYSSD, Criterion, TinySSD

PAGE = Path(__file__).parent.parent / "docs" / "integration.md"
BATCH = 32
PARTS = ("batch", "targets", "loss", "rest")


class Plain(NamedTuple):
    """A batch without targets."""

    images: Tensor
    gt_boxes: list[Tensor]
    gt_labels: list[Tensor]


def stack_only(samples: Sequence[Sample]) -> Plain:
    images = torch.from_numpy(np.stack([sample.image for sample in samples]))
    boxes, labels = [torch.from_numpy(s.boxes) for s in samples], [torch.from_numpy(s.labels) for s in samples]
    return Plain(images, boxes, labels)


def samples_in_memory(count: int) -> list[Sample]:
    """Generated shapes in memory, with boxes as fractions."""
    return [sample._replace(boxes=sample.boxes / np.float32(256)) for sample in shapes_dataset(count)]


def epoch(model: TinySSD, optimizer: Any, criterion: Criterion, loader: DataLoader[Any]) -> list[dict[str, float]]:
    """Processor seconds of each part of each step."""
    steps, batches = [], iter(loader)
    for _ in range(len(loader)):
        times = [time.thread_time()]
        batch = next(batches)
        times.append(time.thread_time())
        images = batch.images.permute(0, 3, 1, 2).float().div_(255)
        logits, deltas = model(images)
        times.append(time.thread_time())
        targets = batch.targets if hasattr(batch, "targets") else criterion.match_targets(model.anchors, *batch[1:])
        times.append(time.thread_time())
        loss = criterion(logits, deltas, targets).total
        times.append(time.thread_time())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.thread_time())
        waited, forward, matched, summed, backward = np.diff(times).tolist()
        steps.append(dict(zip(PARTS, (waited, matched, summed, forward + backward), strict=True)))
    return steps


def fastest(call: Callable[[], Any], repeats: int = 30) -> float:
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times)


def beside_the_network(anchors: np.ndarray, columns: int, boxes: int) -> tuple[float, float, float]:
    """Processor seconds for making the targets of a batch, for receiving them from a worker, and for the loss with its
    gradient."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.6, (BATCH, boxes, 2))
    truths = np.concatenate([corner, corner + rng.uniform(0.05, 0.4, corner.shape)], -1).astype(np.float32)
    labels = rng.integers(1, columns, (BATCH, boxes))
    generator, criterion, priors = torch.Generator().manual_seed(0), Criterion(), torch.from_numpy(anchors)
    logits = torch.randn(BATCH, len(anchors), columns, generator=generator, requires_grad=True)
    deltas = torch.randn(BATCH, len(anchors), 4, generator=generator, requires_grad=True)
    gt_boxes, gt_labels = list(torch.from_numpy(truths)), list(torch.from_numpy(labels))
    targets = criterion.match_targets(priors, gt_boxes, gt_labels)

    def loss() -> None:
        logits.grad = deltas.grad = None
        criterion(logits, deltas, targets).total.backward()

    image = np.zeros((1, 1, 3), np.uint8)
    batch = criterion.collate(anchors)([(image, *sample) for sample in zip(truths, labels, strict=True)])
    sent = pickle.dumps(batch)
    made = fastest(lambda: criterion.match_targets(priors, gt_boxes, gt_labels))
    return made, fastest(lambda: pickle.loads(sent)), fastest(loss)


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="number of steps with each kind of loader")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    criterion, data = Criterion(), samples_in_memory(BATCH * arguments.steps)
    model = TinySSD(6).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    collate = criterion.collate(TINYSSD.anchors())
    ways = {
        "in the step": DataLoader(data, BATCH, collate_fn=stack_only),
        "in the step, 2 workers read": DataLoader(data, BATCH, collate_fn=stack_only, num_workers=2),
        "`TargetCollate`, no workers": DataLoader(data, BATCH, collate_fn=collate),
        "`TargetCollate`, 2 workers": DataLoader(data, BATCH, collate_fn=collate, num_workers=2),
    }
    rows = []
    for name, loader in ways.items():
        steps = epoch(model, optimizer, criterion, loader)[1:]  # the first one starts the workers
        best = {part: min(step[part] for step in steps) for part in PARTS}
        rows.append(f"| {name} | " + " | ".join(ms(best[part]) for part in PARTS) + " |")

    scales = [(0.1, 0.141), (0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)]
    ratios = [(1, 2, 0.5), *[(1, 2, 0.5, 3, 1 / 3)] * 3, *[(1, 2, 0.5)] * 2]
    ssd300 = ops.grid_anchors([38, 19, 10, 5, 3, 1], scales, ratios)
    beside = []
    for name, anchors, columns, boxes in (("TinySSD", TINYSSD.anchors(), 7, 3), ("SSD300", ssd300, 21, 8)):
        made, taken, loss = beside_the_network(anchors, columns, boxes)
        shape = f"{BATCH} x {len(anchors)} anchors, {columns} columns, {boxes} boxes per image"
        beside.append(f"| {name}, {shape} | {ms(made)} | {ms(taken)} | {ms(loss)} |")

    machine = environment()
    block = "\n".join(
        [
            "<!-- target_collate: written by benchmarks/target_collate.py -->",
            f"| TinySSD, batches of {BATCH}; targets made | getting the batch | targets | loss | the rest |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "| besides the network | making targets | receiving them from a worker | loss and its gradient |",
            "|---|---|---|---|",
            *beside,
            "",
            f"Processor time of the training process, the fastest of its repetitions; "
            f"{machine['cpu']}, torch {torch.__version__.split('+')[0]}, one thread.",
            "<!-- /target_collate -->",
        ]
    )
    print(block)
    page = PAGE.read_text()
    PAGE.write_text(
        re.sub(r"<!-- target_collate: .*?<!-- /target_collate -->", lambda _: block, page, count=1, flags=re.S)
    )


if __name__ == "__main__":
    main()
