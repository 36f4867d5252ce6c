"""Make ``torchvision.npz``: what the parts of torchvision's detectors answer, for ``tests/test_compat_torchvision.py``.

Run once where torchvision imports: ``python tests/golden/make_torchvision_golden.py``.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder, Matcher, SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import boxes as box_ops
from torchvision.ops import sigmoid_focal_loss


def grid_boxes(generator: torch.Generator, n: int, span: int, size: int) -> torch.Tensor:
    """Boxes of whole numbers: overlaps tie, and fall on thresholds."""
    corner = torch.randint(0, span, (n, 2), generator=generator)
    return torch.cat([corner, corner + torch.randint(1, size, (n, 2), generator=generator)], 1).float()


def main() -> None:
    g = torch.Generator().manual_seed(0)
    out: dict[str, torch.Tensor] = {}

    # Matching: ties, overlaps equal to a threshold, and a ground truth that overlaps nothing.
    anchors = grid_boxes(g, 150, 30, 12)
    truths = [grid_boxes(g, n, 30, 12) for n in (1, 4, 9)]
    truths[1][2] = torch.tensor([500.0, 500, 510, 510])
    matchers = {
        "low_quality": Matcher(0.7, 0.3, allow_low_quality_matches=True),
        "threshold": Matcher(0.7, 0.3),
        "ssd": SSDMatcher(0.5),
    }
    out["match.anchors"] = anchors
    for image, boxes in enumerate(truths):
        out[f"match.{image}.boxes"] = boxes
        for name, matcher in matchers.items():
            out[f"match.{image}.{name}"] = matcher(box_ops.box_iou(boxes, anchors))

    # Coding, with four different weights, several classes and sizes beyond the clip.
    coder = BoxCoder((10.0, 9.0, 5.0, 4.0))
    boxes, proposals = grid_boxes(g, 40, 50, 30), grid_boxes(g, 40, 50, 30)
    boxes[3, 2] = boxes[3, 0]  # no width
    codes = torch.randn(40, 12, generator=g) * 12
    out |= {"coder.boxes": boxes, "coder.proposals": proposals, "coder.codes": codes}
    out["coder.encoded"] = coder.encode_single(boxes, proposals)
    out["coder.decoded"] = coder.decode_single(codes, proposals)

    # Anchors: by steps that do not divide the picture and clipped, and by default.
    images = ImageList(torch.zeros(1, 3, 60, 44), [(60, 44)])
    maps = [torch.zeros(1, 1, 5, 4), torch.zeros(1, 1, 2, 1)]
    steps = DefaultBoxGenerator([[2], [2, 3]], scales=[0.3, 0.9, 1.4], steps=[13, 31])
    out["anchors.steps"] = steps(images, maps)[0]
    out["anchors.default"] = DefaultBoxGenerator([[2], [2, 3]], clip=False)(images, maps)[0]

    # Functions of boxes.
    a, b = grid_boxes(g, 12, 20, 20).reshape(2, 6, 4), grid_boxes(g, 8, 20, 20).reshape(2, 4, 4)
    out |= {"ops.a": a, "ops.b": b, "ops.iou": box_ops.box_iou(a, b), "ops.giou": box_ops.generalized_box_iou(a, b)}
    out |= {"ops.diou": box_ops.distance_box_iou(a, b, 0.5), "ops.ciou": box_ops.complete_box_iou(a, b, 0.5)}
    out["ops.int"] = box_ops.box_iou(a[0].long(), b[0].long())
    for fmt in ("xywh", "cxcywh"):
        out[f"ops.iou.{fmt}"] = box_ops.box_iou(a, b, fmt=fmt)
        out[f"ops.area.{fmt}"] = box_ops.box_area(a, fmt=fmt)
    # Classes apart, with negative coordinates: a class at a time, as torchvision does above 1000 boxes.
    crowd, scores = grid_boxes(g, 120, 20, 20) - 30, (torch.rand(120, generator=g) * 16).round() / 16
    idxs = torch.randint(0, 5, (120,), generator=g)
    keep = box_ops._batched_nms_vanilla(crowd, scores + torch.arange(120) * 1e-6, idxs, 0.5)
    out |= {"nms.boxes": crowd, "nms.scores": scores + torch.arange(120) * 1e-6, "nms.idxs": idxs, "nms.keep": keep}

    # The focal loss and its gradient: two images, anchors that are positive, ignored or neither.
    logits = torch.randn(2, 30, 5, generator=g) * 3
    kind = torch.randint(-2, 3, (2, 30), generator=g)  # 1, 2: positive; 0, -1: negative; -2: ignored
    column = torch.randint(0, 5, (2, 30), generator=g)
    weights = torch.tensor([0.25, 1.5])
    targets = torch.zeros(2, 30, 5)
    targets[kind > 0, column[kind > 0]] = 1
    logits.requires_grad_()
    each = sigmoid_focal_loss(logits, targets) * weights[:, None, None]
    loss = each[kind > -2].sum()
    loss.backward()
    out |= {"focal.logits": logits.detach(), "focal.kind": kind, "focal.column": column, "focal.weights": weights}
    out |= {"focal.loss": loss.detach(), "focal.gradient": logits.grad}

    # FCOS's points: three levels, crowded ground truth, an image without any.
    sizes = [8, 16, 32]
    levels = []
    for size in sizes:
        xy = torch.cartesian_prod(torch.arange(0, 128, size), torch.arange(0, 128, size)).flip(1)
        levels.append(torch.cat([xy - size / 2, xy + size / 2], 1).float())
    points = torch.cat(levels)
    found: list[torch.Tensor] = []
    model = SimpleNamespace(
        center_sampling_radius=1.5, head=SimpleNamespace(compute_loss=lambda t, h, a, matched: found.extend(matched))
    )
    crowds = [grid_boxes(g, 20, 90, 60), torch.zeros(0, 4), grid_boxes(g, 3, 60, 120)]
    FCOS.compute_loss(model, [{"boxes": boxes} for boxes in crowds], {}, [points] * 3, [len(one) for one in levels])
    out |= {"points.anchors": points, "points.per_level": torch.tensor([len(one) for one in levels])}
    for image, boxes in enumerate(crowds):
        out |= {f"points.{image}.boxes": boxes, f"points.{image}.matched": found[image]}

    arrays = {name: value.numpy() for name, value in out.items()}
    path = Path(__file__).with_name("torchvision.npz")
    np.savez_compressed(path, version=np.array(torchvision.__version__), **arrays)


if __name__ == "__main__":
    main()
