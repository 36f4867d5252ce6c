"""Make ``d2l.npz``: what the functions of Dive into Deep Learning answer, for the tests to compare with.

Run once where the package d2l (1.0.3) imports: ``python tests/golden/make_d2l.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from d2l import torch as d2l


def boxes_of(generator: torch.Generator, *shape: int, step: float = 0.0) -> torch.Tensor:
    corner = torch.rand(*shape, 2, generator=generator) * 0.7
    boxes = torch.cat([corner, corner + torch.rand(*shape, 2, generator=generator) * 0.3 + 0.02], -1)
    return (boxes / step).round() * step + torch.tensor([0.0, 0.0, step, step]) if step else boxes


def main() -> None:
    generator = torch.Generator().manual_seed(14)
    out: dict[str, torch.Tensor] = {}
    out["prior"] = d2l.multibox_prior(torch.zeros(2, 3, 5, 8), sizes=[0.75, 0.5, 0.25], ratios=[1, 2, 0.5])
    anchors = d2l.multibox_prior(torch.zeros(1, 1, 6, 6), sizes=[0.3, 0.4], ratios=[1, 2, 0.5])
    out["anchors"] = anchors
    for kind, step in (("random", 0.0), ("ties", 1 / 8)):
        truths = boxes_of(generator, 3, 5, step=step)
        labels = torch.cat([torch.randint(0, 4, (3, 5, 1), generator=generator).float(), truths], -1)
        labels[1, 3:] = -1  # the padding of the book's data set
        out[f"{kind}.labels"] = labels
        found = d2l.multibox_target(anchors, labels)
        out |= dict(zip((f"{kind}.offsets", f"{kind}.mask", f"{kind}.classes"), found, strict=True))
        for threshold in (0.3, 0.5, 0.7):
            matched = d2l.assign_anchor_to_bbox(truths[0], anchors[0], "cpu", threshold)
            out[f"{kind}.assigned.{threshold}"] = matched
        out[f"{kind}.iou"] = d2l.box_iou(anchors[0], truths[0])
        boxes, scores = boxes_of(generator, 60, step=step), torch.rand(60, generator=generator)
        out[f"{kind}.boxes"], out[f"{kind}.scores"] = boxes, scores
        for threshold in (0.25, 0.5, 0.7):
            out[f"{kind}.nms.{threshold}"] = d2l.nms(boxes, scores, threshold)
    out["probabilities"] = (torch.randn(2, 4, anchors.shape[1], generator=generator) * 3).softmax(1)
    out["predictions"] = torch.randn(2, anchors.shape[1] * 4, generator=generator)
    arguments = out["probabilities"], out["predictions"], anchors
    out["detected"] = d2l.multibox_detection(*arguments)
    out["detected.0.3"] = d2l.multibox_detection(*arguments, nms_threshold=0.3, pos_threshold=0.8)
    np.savez_compressed(Path(__file__).parent / "d2l.npz", **{name: value.numpy() for name, value in out.items()})


if __name__ == "__main__":
    main()
