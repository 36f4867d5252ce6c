"""Time functions of detectron2 and mmdetection and ours on the same inputs; the results are compared first.

    python benchmarks/hosts.py [--detectron2 PATH_TO_DETECTRON2] [--mmdet]

PATH_TO_DETECTRON2 is the folder with ``structures`` and ``modeling``; only its modules in pure Python are loaded.
``--mmdet`` needs mmdet, and mmcv with its compiled NMS. The tables are written into docs/integration.md.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastssd.benchmark import environment
from fastssd.ops import grid_anchors

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "integration.md"
REPEATS, ENOUGH = 15, 4.0  # at most so many times, or so many seconds
Row = tuple[str, Callable[[], Any], Callable[[], Any]]


def fastest(call: Callable[[], Any]) -> float:
    """CPU time of the fastest call, seconds: other processes disturb it least."""
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < ENOUGH:
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def boxes(count: int, span: float, size: float, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=draw) * span
    return torch.cat([corner, corner + 8 + size * torch.rand(count, 2, generator=draw)], 1)


def pyramid(per_cell: int) -> Tensor:
    """Anchors of five feature maps of an image of 800 x 1056, with three ratios and 1 or 3 scales."""
    strides = (4, 8, 16, 32, 64) if per_cell == 3 else (8, 16, 32, 64, 128)
    scales = [[(8 if per_cell == 3 else 4) * s / 800] for s in strides]
    if per_cell == 9:
        grids = [(800 // s, 1056 // s) for s in strides for _ in range(3)]
        scales = [[scale * 2 ** (i / 3)] for (scale,) in scales for i in range(3)]
    else:
        grids = [(800 // s, 1056 // s) for s in strides]
    return torch.from_numpy(grid_anchors(grids, scales, (1.0, 0.5, 2.0), image_size=(800, 1056)))


def detectron2_rows(folder: Path) -> Iterator[Row]:
    from fastssd.compat import detectron2 as ours

    sys.path.insert(0, str(ROOT / "tests" / "golden"))
    host = import_module("make_detectron2").host(folder)
    anchors, truths = host.Boxes(pyramid(3)), host.Boxes(boxes(20, 600, 200, 0))
    size = f"{len(anchors)} anchors, {len(truths)} boxes"
    theirs = host.Matcher([0.3, 0.7], [0, -1, 1], True)
    matcher = ours.Matcher([0.3, 0.7], [0, -1, 1], True)
    quality = ours.pairwise_iou(truths, anchors)
    yield (
        f"`pairwise_iou`, {size}",
        lambda: host.pairwise_iou(truths, anchors),
        lambda: ours.pairwise_iou(truths, anchors),
    )
    yield "`Matcher` on that matrix", lambda: theirs(quality), lambda: matcher(quality)
    yield "both", lambda: theirs(host.pairwise_iou(truths, anchors)), lambda: matcher.match(truths, anchors)


def mmdet_rows() -> Iterator[Row]:
    from mmdet.models.task_modules.assigners import MaxIoUAssigner
    from mmdet.structures.bbox import bbox_overlaps

    from fastssd.compat import mmdet as ours

    mmcv = import_module("mmcv.ops.nms")
    priors, truths = pyramid(9), boxes(20, 600, 200, 0)
    instances = SimpleNamespace(priors=priors), SimpleNamespace(bboxes=truths, labels=torch.arange(len(truths)))
    crowd = SimpleNamespace(bboxes=boxes(2, 600, 300, 1))
    size = f"{len(priors)} priors, {len(truths)} boxes"
    fields = ("gt_inds", "max_overlaps", "labels")

    def assign(kind: Any, **options: Any) -> Callable[[], Any]:
        assigner = kind(pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0.0, **options)
        regions = (crowd,) if options else ()
        return lambda: tuple(getattr(assigner.assign(*instances, *regions), field) for field in fields)

    yield f"`MaxIoUAssigner`, {size}", assign(MaxIoUAssigner), assign(ours.MaxIoUAssigner)
    ignoring = {"ignore_iof_thr": 0.5}
    yield "with 2 ignored regions", assign(MaxIoUAssigner, **ignoring), assign(ours.MaxIoUAssigner, **ignoring)
    for mode in ("iou", "giou"):
        yield (
            f'`bbox_overlaps`, `"{mode}"`, the same boxes',
            lambda mode=mode: bbox_overlaps(truths, priors, mode),  # type: ignore[misc]
            lambda mode=mode: ours.bbox_overlaps(truths, priors, mode),  # type: ignore[misc]
        )
    found = boxes(2000, 600, 100, 2).round()  # integers: exact after mmcv adds an offset for each class
    draw = torch.Generator().manual_seed(3)
    scores, classes = torch.randperm(2000, generator=draw) / 2000, torch.randint(0, 80, (2000,), generator=draw)
    dets = torch.cat([found, scores[:, None]], 1)
    calls: list[tuple[str, Callable[[Any], Any]]] = [
        ("`nms`, 2000 boxes", lambda m: m.nms(found, scores, 0.5)),
        ("`nms`, `offset=1`", lambda m: m.nms(found, scores, 0.5, 1)),
        ("`batched_nms`, 80 classes", lambda m: m.batched_nms(found, scores, classes, {"iou_threshold": 0.5})),
        ("`soft_nms`", lambda m: m.soft_nms(found, scores)),
        (
            '`batched_nms`, `type="soft_nms"`',
            lambda m: m.batched_nms(found, scores, classes, {"type": "soft_nms", "iou_threshold": 0.5}),
        ),
        ("`nms_match`", lambda m: m.nms_match(dets, 0.5)),
    ]
    for name, call in calls:
        yield name, lambda call=call: call(mmcv), lambda call=call: call(ours)  # type: ignore[misc]


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def table(key: str, title: str, rows: Iterator[Row]) -> str:
    lines = [f"<!-- {key}: written by benchmarks/hosts.py -->", f"| | {title} | fastssd | |", "|---|---|---|---|"]
    for name, theirs, ours in rows:
        torch.testing.assert_close(ours(), theirs(), rtol=0, atol=0)
        before, after = fastest(theirs), fastest(ours)
        lines.append(f"| {name} | {milliseconds(before)} | {milliseconds(after)} | **{before / after:.1f} x** |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"CPU time of the fastest of up to {REPEATS} calls; {environment()['cpu']}, one thread, torch "
        f"{torch.__version__.split('+')[0]}.\nAll results are equal to the last bit.",
        f"<!-- /{key} -->",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detectron2", type=Path)
    parser.add_argument("--mmdet", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    blocks = {}
    if chosen.detectron2:
        blocks["detectron2"] = table("detectron2", "detectron2", detectron2_rows(chosen.detectron2))
    if chosen.mmdet:
        versions = [import_module(name).__version__ for name in ("mmdet", "mmcv")]
        blocks["mmdet"] = table("mmdet", "mmdet {}, mmcv {}".format(*versions), mmdet_rows())
    for key, block in blocks.items():
        page = PAGE.read_text()
        PAGE.write_text(re.sub(rf"<!-- {key}: .*?<!-- /{key} -->", lambda _, b=block: b, page, count=1, flags=re.S))


if __name__ == "__main__":
    main()
