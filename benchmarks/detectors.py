"""torchvision's detectors without their networks: what remains is the part that `accelerate` replaces.

Anchors, matching, losses and postprocessing are torchvision's own. The network is replaced by fixed outputs: random, or
like those of a trained network.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList

from fastssd import ops
from fastssd.benchmark.workloads import objects

SIZES = {
    "ssd300_vgg16": (300, 300),
    "ssdlite320_mobilenet_v3_large": (320, 320),
    "retinanet_resnet50_fpn": (800, 1056),
    "fcos_resnet50_fpn": (800, 1056),
    "fasterrcnn_resnet50_fpn": (800, 1056),
}
_STRIDES = {"retinanet": (8, 16, 32, 64, 128), "fcos": (8, 16, 32, 64, 128), "fasterrcnn": (4, 8, 16, 32, 64)}
_CELLS = {"ssd300_vgg16": (38, 19, 10, 5, 3, 1), "ssdlite320_mobilenet_v3_large": (20, 10, 5, 3, 2, 1)}


class Detector:
    """A detector with a batch of network outputs, and their ground truth.

    Attributes:
        model: of torchvision.
        targets: list of dicts, as the model expects.
        leaves: the outputs, leaf tensors that require a gradient.
    """

    def __init__(self, name: str, batch: int, trained: bool, seed: int, size: tuple[int, int] | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        self.height, self.width = size or SIZES[name]
        self.model = _bare(name)
        self.grids = _grids(name, (self.height, self.width))
        self.images = [torch.zeros(1, 1, 1).expand(3, self.height, self.width) for _ in range(batch)]
        self.targets = [self._truth() for _ in range(batch)]
        kind = name.split("_")[0].removesuffix("300").removesuffix("320")
        draw: Callable[[bool], dict[str, Tensor]] = getattr(self, f"_{kind}")
        self.leaves = {name: value.requires_grad_() for name, value in draw(trained).items()}
        self.model.transform = _Transform()
        self.model.backbone = _Backbone(self.grids)

    def losses(self, model: nn.Module) -> dict[str, Tensor]:
        """The losses of `model` (this model, or a copy of it) in training mode."""
        return model.train()(self.images, [dict(target) for target in self.targets])

    def step(self, model: nn.Module) -> dict[str, Tensor]:
        """The losses; their gradients are in the leaves afterwards."""
        for leaf in self.leaves.values():
            leaf.grad = None
        losses = self.losses(model)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        return {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def detect(self, model: nn.Module) -> list[dict[str, Tensor]]:
        """The detections of `model` in eval mode."""
        return model.eval()(self.images)

    def copy(self) -> Any:
        """A copy of the model that uses the same leaves."""
        return copy.deepcopy(self.model, {id(leaf): leaf for leaf in self.leaves.values()})

    # --- outputs

    def _truth(self) -> dict[str, Tensor]:
        count = int(self.rng.integers(4, 13))
        scale = np.array([self.width, self.height] * 2, np.float32)
        boxes = torch.from_numpy(objects(self.rng, count) * scale)
        return {"boxes": boxes, "labels": torch.from_numpy(self.rng.integers(1, 91, count))}

    def _normal(self, *shape: int, mean: float = 0.0, spread: float = 1.0) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(shape, np.float32)).mul_(spread).add_(mean)

    def _anchors(self) -> Tensor:
        images = ImageList(torch.zeros(1, 1, 1, 1).expand(1, 3, self.height, self.width), [(self.height, self.width)])
        generator = getattr(self.model, "rpn", self.model).anchor_generator
        found: Tensor = generator(images, list(_Backbone(self.grids)(images.tensors).values()))[0]
        return found

    def _hits(self, anchors: Tensor, threshold: float = 0.4) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Image, anchor, label, IoU and box of each anchor that overlaps an object."""
        found = ops.match_anchors(anchors, [t["boxes"] for t in self.targets], iou_threshold=threshold)
        image, anchor = (found.gt_idx >= 0).nonzero(as_tuple=True)
        truth = found.gt_idx[image, anchor].tolist()
        label = torch.tensor([int(self.targets[i]["labels"][g]) for i, g in zip(image.tolist(), truth, strict=True)])
        box = torch.stack([self.targets[i]["boxes"][g] for i, g in zip(image.tolist(), truth, strict=True)])
        return image, anchor, label, found.iou[image, anchor], box

    def _ssd(self, trained: bool) -> dict[str, Tensor]:
        anchors, batch = self._anchors(), len(self.images)
        logits, deltas = self._normal(batch, len(anchors), 91), self._normal(batch, len(anchors), 4)
        if trained:
            image, anchor, label, iou, box = self._hits(anchors)
            logits[..., 0] += 9
            logits[image, anchor, label] += 16 * iou
            deltas[image, anchor] *= 0.3
            deltas[image, anchor] += self.model.box_coder.encode_single(box, anchors[anchor])
        leaves = {"cls_logits": logits, "bbox_regression": deltas}
        self.model.head = _Head(leaves)
        return leaves

    _ssdlite = _ssd

    def _retinanet(self, trained: bool) -> dict[str, Tensor]:
        anchors, batch = self._anchors(), len(self.images)
        logits = self._normal(batch, len(anchors), 91, mean=-4.6, spread=0.5)  # the mean is the prior of the head
        deltas = self._normal(batch, len(anchors), 4, spread=0.3)
        if trained:
            image, anchor, label, iou, box = self._hits(anchors)
            logits -= 3
            logits[image, anchor, label] += 12 * iou
            deltas[image, anchor] += self.model.box_coder.encode_single(box, anchors[anchor])
        leaves = {"cls_logits": logits, "bbox_regression": deltas}
        self.model.head.forward = lambda features: dict(leaves)
        return leaves

    def _fcos(self, trained: bool) -> dict[str, Tensor]:
        anchors, batch = self._anchors(), len(self.images)
        logits = self._normal(batch, len(anchors), 91, mean=-4.6, spread=0.5)
        deltas = self._normal(batch, len(anchors), 4).exp_()
        centerness = self._normal(batch, len(anchors), 1)
        if trained:
            # Points near the middle of an object: those whose square, enlarged five times, matches it.
            middle, half = (anchors[:, :2] + anchors[:, 2:]) / 2, (anchors[:, 2:] - anchors[:, :2]) * 2.5
            image, anchor, label, iou, box = self._hits(torch.cat([middle - half, middle + half], 1), 0.3)
            logits -= 3
            logits[image, anchor, label] += 20 * iou
            centerness[image, anchor, 0] += 2
            deltas[image, anchor] = self.model.box_coder.encode(anchors[anchor], box).clamp(min=0.1)
        leaves = {"cls_logits": logits, "bbox_regression": deltas, "bbox_ctrness": centerness}
        self.model.head.forward = lambda features: dict(leaves)
        return leaves

    def _fasterrcnn(self, trained: bool) -> dict[str, Tensor]:
        anchors, batch = self._anchors(), len(self.images)
        objectness, deltas = self._normal(batch, len(anchors), 1), self._normal(batch, len(anchors), 4, spread=0.3)
        rows = batch * 2000
        logits, boxes = self._normal(rows, 91), self._normal(rows, 91 * 4, spread=0.3)
        if trained:
            image, anchor, _, iou, box = self._hits(anchors)
            objectness -= 6
            objectness[image, anchor, 0] += 12 * iou
            deltas[image, anchor] += self.model.rpn.box_coder.encode_single(box, anchors[anchor])
            known = torch.from_numpy(np.flatnonzero(self.rng.random(rows) < 0.1))
            logits[:, 0] += 9
            logits[known, torch.from_numpy(self.rng.integers(1, 91, len(known)))] += 12
        leaves = {"objectness": objectness, "deltas": deltas, "logits": logits, "boxes": boxes}
        self.model.rpn.head = _ProposalHead(objectness, deltas, self.grids)
        heads = self.model.roi_heads
        heads.box_roi_pool, heads.box_head, heads.box_predictor = _RowsOf(), nn.Identity(), _Predictor(logits, boxes)
        return leaves


def _bare(name: str) -> Any:
    """The model without memory for the weights of its network, which is replaced later."""
    options: dict[str, Any] = {} if name.startswith("ssd") else {"num_classes": 91}
    with torch.device("meta"):
        model = getattr(detection, name)(weights=None, weights_backbone=None, **options)
    generator = getattr(model, "rpn", model).anchor_generator
    for attribute in ("cell_anchors", "_wh_pairs"):  # made again, because they are on the meta device
        if hasattr(generator, attribute):
            fresh = type(generator)(
                **{
                    key: getattr(generator, key)
                    for key in ("sizes", "aspect_ratios", "scales", "steps", "clip")
                    if hasattr(generator, key)
                }
            )
            setattr(generator, attribute, getattr(fresh, attribute))
    return model


def _grids(name: str, size: tuple[int, int]) -> list[tuple[int, int]]:
    """(rows, columns) of each level."""
    if name in _CELLS:
        return [(cells, cells) for cells in _CELLS[name]]
    return [(-(-size[0] // s), -(-size[1] // s)) for s in _STRIDES[name.split("_")[0]]]


class _Transform(nn.Module):
    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        size = tuple(images[0].shape[-2:])
        return ImageList(images[0].expand(len(images), -1, -1, -1), [size] * len(images)), targets

    def postprocess(self, result: Any, *sizes: Any) -> Any:
        return result


class _Backbone(nn.Module):
    def __init__(self, grids: list[tuple[int, int]]) -> None:
        super().__init__()
        self.grids = grids

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = [torch.zeros(1, 1, 1, 1).expand(len(images), 1, *grid) for grid in self.grids]
        return OrderedDict((str(level), feature_map) for level, feature_map in enumerate(maps))


class _Head(nn.Module):
    def __init__(self, leaves: dict[str, Tensor]) -> None:
        super().__init__()
        self.leaves = leaves

    def forward(self, features: Any) -> dict[str, Tensor]:
        return dict(self.leaves)


class _ProposalHead(nn.Module):
    """Outputs [B, A, 1] and [B, A, 4] as the maps [B, K, rows, columns] and [B, 4 K, rows, columns] of each level."""

    def __init__(self, objectness: Tensor, deltas: Tensor, grids: list[tuple[int, int]]) -> None:
        super().__init__()
        self.outputs, self.grids = (objectness, deltas), grids

    def forward(self, features: Any) -> tuple[list[Tensor], list[Tensor]]:
        sizes = [rows * columns * 3 for rows, columns in self.grids]
        objectness, deltas = (
            [
                level.unflatten(1, (*grid, 3)).permute(0, 3, 4, 1, 2).flatten(1, 2)
                for level, grid in zip(output.split(sizes, 1), self.grids, strict=True)
            ]
            for output in self.outputs
        )
        return objectness, deltas


class _RowsOf(nn.Module):
    def forward(self, features: Any, proposals: list[Tensor], image_shapes: Any) -> Tensor:
        return torch.zeros(sum(len(boxes) for boxes in proposals), 1)


class _Predictor(nn.Module):
    def __init__(self, logits: Tensor, boxes: Tensor) -> None:
        super().__init__()
        self.outputs = (logits, boxes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = self.outputs
        return logits[: len(features)], boxes[: len(features)]
