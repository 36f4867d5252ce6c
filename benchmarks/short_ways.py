"""What each short way of the C++ backend gains: ``python -m benchmarks.short_ways``.

Prints the time of the public function with its short way, and with the long way only, the best of alternating runs:
for NumPy arrays and for tensors, for few boxes and for the anchors of SSD300. Also the time of a declined call.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import fastssd
from fastssd import ops
from fastssd.backends import shortcuts

FEW, SSD300 = (8, 2), (8732, 8)  # anchors or boxes, and ground-truth boxes


def calls(boxes: int, truths: int, convert: Callable[[Any], Any]) -> dict[str, Callable[[], Any]]:
    """A call of each operator with a short way, on arrays that the short way takes."""
    rng = np.random.default_rng(0)

    def random_boxes(n: int) -> Any:
        corner = rng.random((n, 2))
        return convert(np.concatenate([corner, corner + rng.random((n, 2)) / 3], -1).astype(np.float32))

    some, gt_boxes = random_boxes(boxes), random_boxes(truths)
    scores, groups = convert(rng.random(boxes).astype(np.float32)), convert(rng.integers(0, 4, boxes))
    gt_labels = convert(rng.integers(1, 9, truths))
    return {
        "box_iou": lambda: ops.box_iou(some, gt_boxes),
        "generalized_box_iou": lambda: ops.generalized_box_iou(some, gt_boxes),
        "distance_box_iou": lambda: ops.distance_box_iou(some, gt_boxes),
        "complete_box_iou": lambda: ops.complete_box_iou(some, gt_boxes),
        "paired_box_iou": lambda: ops.paired_box_iou(some, some),
        "match_anchors": lambda: ops.match_anchors(some, [gt_boxes]),
        "assign_targets": lambda: ops.assign_targets(some, [gt_boxes], [gt_labels]),
        "encode_boxes": lambda: ops.encode_boxes(some, some),
        "decode_boxes": lambda: ops.decode_boxes(some, some),
        "nms": lambda: ops.nms(some, scores, 0.5),
        "batched_nms": lambda: ops.batched_nms(some, scores, groups, 0.5),
    }


def microseconds(call: Callable[[], Any]) -> float:
    """Of one run of a few milliseconds."""
    once = timeit.timeit(call, number=1)
    number = max(1, int(3e-3 / once))
    return timeit.timeit(call, number=number) / number * 1e6


def measure(name: str, call: Callable[[], Any]) -> tuple[float, float]:
    """(with the short way, with the long way only) in microseconds."""
    short_way, short, long = vars(shortcuts)[name], [], []
    for _ in range(15):
        short.append(microseconds(call))
        del vars(shortcuts)[name]
        try:
            long.append(microseconds(call))
        finally:
            vars(shortcuts)[name] = short_way
    return min(short), min(long)


def main() -> None:
    fastssd.set_num_threads(1)
    torch.set_num_threads(1)
    with fastssd.use_backend("cpp"):
        names = list(vars(shortcuts))
        print(f"{'':24}{'boxes':>6}{'kind':>8}{'short us':>10}{'long us':>10}{'gain us':>10}{'ratio':>7}")
        for size in (FEW, SSD300):
            for kind, convert in (("numpy", np.asarray), ("torch", torch.as_tensor)):
                timed = calls(*size, convert)
                for name in names:
                    short, long = measure(name, timed[name])
                    gain = f"{short:10.2f}{long:10.2f}{long - short:10.2f}{long / short:7.2f}"
                    print(f"{name:24}{size[0]:6}{kind:>8}{gain}", flush=True)
        declined = min(microseconds(lambda: shortcuts.nms(None, None, 0.5, "drop")) for _ in range(15))
        print(f"{'a short way that declines':38}{declined:10.2f}")


if __name__ == "__main__":
    main()
