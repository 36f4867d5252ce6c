"""The usual recipe for TinySSD in plain torch, to compare ours with (Dive into Deep Learning, 14.4 and 14.7).

    python benchmarks/train_baseline.py DATA --epochs 20 --evaluate 10 20

SGD with learning rate 0.2 and weight decay 5e-4, batches of 32 images at 256 x 256 in memory, no augmentation; cross
entropy averaged over all anchors plus the masked L1 loss averaged over all deltas, no mining; anchors matched image by
image. It uses only the data loader and the metric of fastssd.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fastssd.data import DetectionDataset, default_splits, load_dataset
from fastssd.detection.postprocess import ImageDetections
from fastssd.evaluation import GroundTruth, coco_metrics

SIZE = 256
GRIDS = (32, 16, 8, 4, 1)
SCALES = ((0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961))
RATIOS = (1.0, 2.0, 0.5)
ANCHORS_PER_CELL = len(SCALES[0]) + len(RATIOS) - 1


# --- the network -------------------------------------------------------------------------------------------------


def block(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


class PlainTinySSD(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.columns = num_classes + 1
        self.stages = nn.ModuleList(
            [
                nn.Sequential(block(3, 16), block(16, 32), block(32, 64)),
                block(64, 128),
                block(128, 128),
                block(128, 128),
                nn.AdaptiveMaxPool2d((1, 1)),
            ]
        )
        widths = (64, 128, 128, 128, 128)
        self.classes = nn.ModuleList(nn.Conv2d(w, ANCHORS_PER_CELL * self.columns, 3, padding=1) for w in widths)
        self.boxes = nn.ModuleList(nn.Conv2d(w, ANCHORS_PER_CELL * 4, 3, padding=1) for w in widths)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = [], []
        for stage, classes, boxes in zip(self.stages, self.classes, self.boxes, strict=True):
            x = stage(x)
            logits.append(classes(x).permute(0, 2, 3, 1).flatten(1))
            deltas.append(boxes(x).permute(0, 2, 3, 1).flatten(1))
        return torch.cat(logits, 1).reshape(len(x), -1, self.columns), torch.cat(deltas, 1)  # [B, A, C], [B, A * 4]


# --- anchors and targets -----------------------------------------------------------------------------------------


def make_anchors() -> Tensor:
    """Anchors [A, 4] xyxy: at each cell (s1, r1), (s2, r1), (s1, r2), (s1, r3) with scales s and ratios r."""
    levels = []
    for grid, scales in zip(GRIDS, SCALES, strict=True):
        pairs = [(s, RATIOS[0]) for s in scales] + [(scales[0], r) for r in RATIOS[1:]]
        sizes = torch.tensor([(s * math.sqrt(r), s / math.sqrt(r)) for s, r in pairs])  # [K, 2]
        centres = (torch.arange(grid) + 0.5) / grid
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        middle = torch.stack([x, y], -1).reshape(-1, 1, 2)  # [H * W, 1, 2]
        levels.append(torch.cat([middle - sizes / 2, middle + sizes / 2], -1).reshape(-1, 4))
    return torch.cat(levels)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    area = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
    corner1 = torch.max(a[:, None, :2], b[:, :2])
    corner2 = torch.min(a[:, None, 2:], b[:, 2:])
    common = (corner2 - corner1).clamp(min=0).prod(-1)
    return common / (area[0][:, None] + area[1] - common)


def to_center(boxes: Tensor) -> Tensor:
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)


def targets_of(anchors: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Targets of one image: labels [A], deltas [A * 4], mask [A * 4]."""
    matched = torch.full((len(anchors),), -1)
    if len(boxes):
        iou = pairwise_iou(anchors, boxes)  # [A, G]
        best, which = iou.max(1)
        matched = torch.where(best >= 0.5, which, -1)
        for _ in range(len(boxes)):  # take the best remaining pair, until every box has an anchor
            anchor, box = divmod(int(iou.argmax()), len(boxes))
            matched[anchor] = box
            iou[anchor, :] = -1
            iou[:, box] = -1
    positive = matched >= 0
    classes = torch.zeros(len(anchors), dtype=torch.long)
    deltas = torch.zeros(len(anchors), 4)
    if positive.any():
        classes[positive] = labels[matched[positive]]
        anchor, box = to_center(anchors[positive]), to_center(boxes[matched[positive]])
        offset = 10 * (box[:, :2] - anchor[:, :2]) / anchor[:, 2:]
        deltas[positive] = torch.cat([offset, 5 * torch.log(1e-6 + box[:, 2:] / anchor[:, 2:])], 1)
    return classes, deltas.flatten(), positive.float().repeat_interleave(4)


# --- detection ---------------------------------------------------------------------------------------------------


def plain_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    keep = []
    while len(order):
        keep.append(int(order[0]))
        rest = order[1:]
        order = rest[pairwise_iou(boxes[order[:1]], boxes[rest])[0] <= threshold]
    return torch.tensor(keep, dtype=torch.long)


def detect(logits: Tensor, deltas: Tensor, anchors: Tensor, size: tuple[int, int]) -> ImageDetections:
    """Detections of one image, as in fastssd's evaluation: score 0.01, NMS 0.45, the best 400 per class, 100 in all."""
    scores = logits.softmax(-1)  # [A, C]
    deltas = deltas.reshape(-1, 4)
    anchor = to_center(anchors)
    middle = deltas[:, :2] / 10 * anchor[:, 2:] + anchor[:, :2]
    half = (deltas[:, 2:] / 5).exp() * anchor[:, 2:] / 2
    boxes = torch.cat([middle - half, middle + half], 1).clamp(0, 1)
    found = []
    for label in range(1, scores.shape[1]):
        candidates = (scores[:, label] > 0.01).nonzero()[:, 0]
        candidates = candidates[scores[candidates, label].argsort(descending=True, stable=True)[:400]]
        kept = candidates[plain_nms(boxes[candidates], scores[candidates, label], 0.45)]
        found.append((boxes[kept], scores[kept, label], torch.full((len(kept),), label)))
    out_boxes, out_scores, labels = (torch.cat(part) for part in zip(*found, strict=True))
    best = out_scores.argsort(descending=True, stable=True)[:100]
    scale = torch.tensor([size[1], size[0], size[1], size[0]])
    return ImageDetections((out_boxes[best] * scale).numpy(), out_scores[best].numpy(), labels[best].numpy())


# --- data and training -------------------------------------------------------------------------------------------


class InMemory:
    """A data set resized to 256 x 256, in memory."""

    def __init__(self, data: DetectionDataset) -> None:
        samples = [data[i] for i in range(len(data))]
        images = [np.asarray(Image.fromarray(s.image).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for s in samples]
        self.images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().float()  # [N, 3, S, S]
        self.sizes = [sample.image.shape[:2] for sample in samples]
        self.truths = [GroundTruth(sample.boxes, sample.labels, sample.difficult) for sample in samples]
        self.boxes = [
            torch.from_numpy(truth.boxes[~truth.difficult]) / torch.tensor([width, height, width, height])
            for truth, (height, width) in zip(self.truths, self.sizes, strict=True)
        ]
        self.labels = [torch.from_numpy(truth.labels[~truth.difficult]) for truth in self.truths]


def train_epoch(
    net: nn.Module, optimizer: torch.optim.Optimizer, data: InMemory, anchors: Tensor, batch_size: int
) -> float:
    """Train one epoch; returns the seconds for making targets."""
    net.train()
    in_targets = 0.0
    for rows in torch.randperm(len(data.images)).split(batch_size):
        logits, deltas = net(data.images[rows])
        started = time.perf_counter()
        found = [targets_of(anchors, data.boxes[i], data.labels[i]) for i in rows.tolist()]
        classes, wanted, mask = (torch.stack(part) for part in zip(*found, strict=True))
        in_targets += time.perf_counter() - started
        class_loss = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none")
        box_loss = F.l1_loss(deltas * mask, wanted * mask, reduction="none")
        optimizer.zero_grad()
        (class_loss.reshape(len(rows), -1).mean(1) + box_loss.mean(1)).mean().backward()
        optimizer.step()
    return in_targets


@torch.no_grad()
def evaluate(net: nn.Module, data: InMemory, anchors: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    net.eval()
    found = []
    for start in range(0, len(data.images), 16):
        logits, deltas = net(data.images[start : start + 16])
        sizes = data.sizes[start : start + 16]
        found += [detect(*row, anchors, size) for *row, size in zip(logits, deltas, sizes, strict=True)]
    return coco_metrics(found, data.truths, class_names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a VOC, COCO or YOLO folder")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--evaluate", type=int, nargs="*", help="after these epochs; default the last")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    train_data, eval_data = (
        load_dataset(options.data, split, on_error="skip") for split in default_splits(options.data)
    )
    train, held_out = InMemory(train_data), InMemory(eval_data)
    class_names = train_data.class_names
    net = PlainTinySSD(len(class_names))
    anchors = make_anchors()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, weight_decay=5e-4)
    print(f"{len(train.images)} images to train on, {len(held_out.images)} to evaluate on, {len(anchors)} anchors")
    total, total_targets = 0.0, 0.0
    for epoch in range(1, options.epochs + 1):
        started = time.perf_counter()
        in_targets = train_epoch(net, optimizer, train, anchors, options.batch_size)
        seconds = time.perf_counter() - started
        total, total_targets = total + seconds, total_targets + in_targets
        rate = len(train.images) / seconds
        line = f"epoch {epoch:3d}  {seconds:6.1f} s  {rate:5.1f} images/s  targets {in_targets / seconds:4.1%}"
        if epoch in (options.evaluate or [options.epochs]):
            metrics = evaluate(net, held_out, anchors, class_names)
            line += f"  AP50 {metrics['AP50']:.3f}  AP {metrics['AP']:.3f}"
        print(line, flush=True)
    print(f"mean: {total / options.epochs:.1f} s per epoch, targets {total_targets / total:.1%} of it")


if __name__ == "__main__":
    main()
