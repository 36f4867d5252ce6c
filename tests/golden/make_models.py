"""Make ``models.json``: what torchvision's detectors answer with weights from a rule.

Run once, in the root of the repository, where torchvision imports: ``python -m tests.golden.make_models``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.models import mobilenet_v3_large, vgg16
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList

from tests.seeded import seeded_image, seeded_state

PLACES = 40  # rows of the outputs that are kept


def rounded(values: torch.Tensor) -> list[Any]:
    return values.double().numpy().round(6).tolist()


@torch.no_grad()
def answers(model: torch.nn.Module, size: int) -> dict[str, Any]:
    """Logits, deltas, anchors and detections of a detector of torchvision."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(seeded_state(shapes))
    model.eval()
    images = seeded_image(size)
    maps = list(model.backbone(model.transform(list(images))[0].tensors).values())
    out = model.head(maps)
    anchors = model.anchor_generator(ImageList(images, [(size, size)]), maps)[0]
    (found,) = model(list(images))
    rows = np.linspace(0, len(anchors) - 1, PLACES).astype(int)
    return {
        "shapes": shapes,
        "rows": rows.tolist(),
        "logits": rounded(out["cls_logits"][0, rows, :5]),
        "deltas": rounded(out["bbox_regression"][0, rows]),
        "anchors": rounded(anchors[rows] / size),
        "detections": {
            "boxes": rounded(found["boxes"][:PLACES]),
            "scores": rounded(found["scores"][:PLACES]),
            "labels": found["labels"][:PLACES].tolist(),
        },
        "count": len(found["scores"]),
    }


def main() -> None:
    result: dict[str, Any] = {
        "ssd300_vgg16": answers(ssd300_vgg16(weights=None, weights_backbone=None), 300),
        "ssdlite320_mobilenet_v3_large": answers(
            ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None), 320
        ),
    }
    for name, model in (("vgg16", vgg16(weights=None)), ("mobilenet_v3_large", mobilenet_v3_large(weights=None))):
        state = model.state_dict()
        result[name] = {"shapes": {key: list(value.shape) for key, value in state.items() if "classifier" not in key}}
    path = Path(__file__).with_name("models.json")
    path.write_text(json.dumps(result, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
