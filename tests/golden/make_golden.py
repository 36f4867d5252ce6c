"""Make ``golden.npz``: what others answer, for the tests to compare with.

Run once where torchvision imports: ``python tests/golden/make_golden.py``. From torchvision come IoU and its relatives,
NMS, SSD's matcher, coder and postprocessing. From Dive into Deep Learning, section 14.4, come the rules of its anchors
and its matching, written here after the text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD

THRESHOLDS = (0.3, 0.45, 0.5, 0.7)


def boxes_of(generator: torch.Generator, n: int, span: float, size: float, step: float = 0.0) -> torch.Tensor:
    corner = torch.rand(n, 2, generator=generator) * span
    boxes = torch.cat([corner, corner + torch.rand(n, 2, generator=generator) * size + 1], dim=1)
    return (boxes / step).round() * step if step else boxes


def d2l_prior(rows: int, columns: int, sizes: list[float], ratios: list[float]) -> np.ndarray:
    """D2L: sizes at the first ratio, then the first size at the other ratios, around the middle of each pixel."""
    shapes = [(s * np.sqrt(ratios[0]), s / np.sqrt(ratios[0])) for s in sizes]
    shapes += [(sizes[0] * np.sqrt(r), sizes[0] / np.sqrt(r)) for r in ratios[1:]]
    return np.array(
        [
            [
                (x + 0.5) / columns - w / 2,
                (y + 0.5) / rows - h / 2,
                (x + 0.5) / columns + w / 2,
                (y + 0.5) / rows + h / 2,
            ]
            for y in range(rows)
            for x in range(columns)
            for w, h in shapes
        ],
        np.float64,
    )


def d2l_match(quality: np.ndarray, threshold: float) -> np.ndarray:
    """D2L: threshold first, then the largest of the whole matrix again and again, striking out its row and column."""
    anchors, truths = quality.shape
    answer = np.full(anchors, -1)
    for anchor in range(anchors):
        if quality[anchor].max() >= threshold:
            answer[anchor] = quality[anchor].argmax()
    left = quality.copy()
    for _ in range(truths):
        place = left.argmax()
        anchor, truth = place // truths, place % truths
        answer[anchor] = truth
        left[anchor, :], left[:, truth] = -1, -1
    return answer


def main() -> None:
    g = torch.Generator().manual_seed(0)
    out: dict[str, np.ndarray] = {"torchvision": np.array(torchvision.__version__), "thresholds": np.array(THRESHOLDS)}

    for kind, a, b in (
        ("random", boxes_of(g, 60, 100, 30), boxes_of(g, 40, 100, 30)),
        ("ties", boxes_of(g, 50, 24, 24, 4), boxes_of(g, 30, 24, 24, 4)),
    ):
        positive = [x[(x[:, 2] > x[:, 0]) & (x[:, 3] > x[:, 1])] for x in (a, b)]
        a, b = positive
        out[f"iou.{kind}.boxes1"], out[f"iou.{kind}.boxes2"] = a.numpy(), b.numpy()
        for name in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"):
            out[f"iou.{kind}.{name}"] = getattr(torchvision.ops, name)(a, b).numpy()

        crowd = a[torch.randint(0, len(a), (400,), generator=g)] + (
            torch.randn(400, 4, generator=g) if kind == "random" else torch.zeros(400, 4)
        )
        scores = torch.rand(400, generator=g)
        scores = scores if kind == "random" else (scores * 8).round() / 8
        groups = torch.randint(0, 4, (400,), generator=g)
        out[f"nms.{kind}.boxes"], out[f"nms.{kind}.scores"] = crowd.numpy(), scores.numpy()
        out[f"nms.{kind}.idxs"] = groups.numpy()
        for t in THRESHOLDS:
            out[f"nms.{kind}.nms.{t}"] = torchvision.ops.nms(crowd, scores, t).numpy()
            # Per class by hand: torchvision's own batched_nms shifts the classes apart and loses bits.
            kept = [torch.where(groups == c)[0] for c in range(4)]
            kept = [idx[torchvision.ops.nms(crowd[idx], scores[idx], t)] for idx in kept]
            kept = torch.cat(kept).sort().values
            out[f"nms.{kind}.batched_nms.{t}"] = kept[scores[kept].argsort(descending=True, stable=True)].numpy()

    anchors, truths = boxes_of(g, 200, 50, 30), boxes_of(g, 12, 50, 30)
    out["match.anchors"], out["match.gt_boxes"] = anchors.numpy(), truths.numpy()
    out["match.best"] = SSDMatcher(0.5)(torchvision.ops.box_iou(truths, anchors)).numpy()
    out["match.bipartite"] = d2l_match(torchvision.ops.box_iou(anchors, truths).numpy(), 0.5)

    matched = truths[torch.randint(0, 12, (200,), generator=g)]
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    out["coding.boxes"] = matched.numpy()
    out["coding.encoded"] = coder.encode([matched], [anchors])[0].numpy()
    out["coding.decoded"] = coder.decode_single(torch.from_numpy(out["coding.encoded"]) * 0.7, anchors).numpy()

    # TinySSD's anchors by D2L's rule; torchvision's for one grid of SSD300 (without clipping, in pixels).
    scales = [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)]
    grids = (32, 16, 8, 4, 1)
    out["anchors.d2l"] = np.concatenate(
        [d2l_prior(n, n, list(s), [1, 2, 0.5]) for n, s in zip(grids, scales, strict=True)]
    )
    generator = DefaultBoxGenerator([[2]], scales=[0.2, 0.37], clip=False)
    image = ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)])
    out["anchors.torchvision"] = generator(image, [torch.zeros(1, 1, 10, 10)])[0].numpy()

    # SSD's postprocessing, 300 anchors that are already boxes in a image of 100 x 100.
    priors = boxes_of(g, 300, 70, 30)
    logits, deltas = torch.randn(2, 300, 5, generator=g) * 2, torch.randn(2, 300, 4, generator=g)

    class Bare:
        """The attributes that SSD.postprocess_detections reads."""

        box_coder, score_thresh, nms_thresh, topk_candidates, detections_per_img = coder, 0.01, 0.45, 40, 50

    found = SSD.postprocess_detections(
        Bare(), {"cls_logits": logits, "bbox_regression": deltas}, [priors, priors], [(100, 100), (100, 100)]
    )
    out["post.anchors"], out["post.logits"], out["post.deltas"] = priors.numpy(), logits.numpy(), deltas.numpy()
    for image_number, detections in enumerate(found):
        for name in ("boxes", "scores", "labels"):
            out[f"post.{image_number}.{name}"] = detections[name].numpy()

    np.savez_compressed(Path(__file__).with_name("golden.npz"), **out)


if __name__ == "__main__":
    main()
