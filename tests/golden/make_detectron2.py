"""Make ``detectron2.npz``: what detectron2 answers, for tests/test_compat_detectron2.py to compare with.

Run once: ``python tests/golden/make_detectron2.py PATH_TO_DETECTRON2``, the folder that holds ``structures`` and
``modeling`` (of a checkout, or of the sdist ``detectron2-cdo`` on PyPI). Its pure modules are loaded alone, without
building its extension.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
MATCHERS = [
    {"thresholds": [0.3, 0.7], "labels": [0, -1, 1], "allow_low_quality_matches": True},
    {"thresholds": [0.4, 0.5], "labels": [0, -1, 1], "allow_low_quality_matches": False},
    {"thresholds": [0.5], "labels": [0, 1], "allow_low_quality_matches": False},
    {"thresholds": [0.5], "labels": [-1, 1], "allow_low_quality_matches": True},
    {"thresholds": [0.2, 0.5, 0.7], "labels": [-1, 0, -1, 1], "allow_low_quality_matches": True},
]
WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0), (0.3, 0.7, 2.0, 3.0)]
UNWANTED = ("from fvcore", "from detectron2.layers import cat", "@torch.jit.script")


def host(folder: Path) -> types.SimpleNamespace:
    """The classes, with stand-ins for what their files import besides torch."""
    for name in (
        "detectron2",
        "detectron2.utils",
        "detectron2.utils.env",
        "detectron2.layers",
        "detectron2.structures",
    ):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["detectron2.utils.env"].TORCH_VERSION = (2, 0)
    sys.modules["detectron2.layers"].nonzero_tuple = lambda x: x.nonzero(as_tuple=True)
    spaces = []
    for path in ("structures/boxes.py", "modeling/matcher.py", "modeling/box_regression.py"):
        text = (folder / path).read_text().split("\n@torch.jit.script\nclass Box2BoxTransformRotated")[0]
        lines = [line for line in text.splitlines() if not line.startswith(UNWANTED)]
        space = {"__name__": path}
        if path == "modeling/box_regression.py":
            sys.modules["detectron2.structures"].Boxes = spaces[0]["Boxes"]
        exec(compile("\n".join(lines), path, "exec"), space)
        spaces.append(space)
    return types.SimpleNamespace(**spaces[0] | spaces[1] | spaces[2])


def boxes(rng: np.random.Generator, n: int, step: float = 0.0) -> torch.Tensor:
    corner = rng.random((n, 2)) * 40
    found = np.concatenate([corner, corner + rng.random((n, 2)) * 20 + 1], 1)
    return torch.from_numpy((np.round(found / step) * step if step else found).astype(np.float32))


def main() -> None:
    d2 = host(Path(sys.argv[1]))
    rng = np.random.default_rng(0)
    flat = boxes(rng, 60)
    flat[::4, 2:] = flat[::4, :2]  # no area
    scenes = {
        "random": (boxes(rng, 90), boxes(rng, 8)),
        "ties": (boxes(rng, 90, 8.0), boxes(rng, 8, 8.0)),
        "degenerate": (flat, flat[2:10].clone()),
        "apart": (boxes(rng, 40), torch.cat([boxes(rng, 2), boxes(rng, 2) + 1000])),
        "no truth": (boxes(rng, 5), torch.empty(0, 4)),
        "no boxes": (torch.empty(0, 4), boxes(rng, 3)),
    }
    out: dict[str, object] = {"matchers": json.dumps(MATCHERS), "weights": np.array(WEIGHTS)}
    for name, (anchors, truths) in scenes.items():
        quality = d2.pairwise_iou(d2.Boxes(truths), d2.Boxes(anchors))
        out |= {f"{name}.anchors": anchors, f"{name}.truths": truths, f"{name}.quality": quality}
        for i, options in enumerate(MATCHERS):
            out[f"{name}.{i}.matches"], out[f"{name}.{i}.labels"] = d2.Matcher(**options)(quality)
    source, target = boxes(rng, 50), boxes(rng, 50)
    target[3, 2:] = target[3, :2]  # a delta of -inf
    deltas = torch.from_numpy(rng.normal(0, 3, (50, 8)).astype(np.float32))
    out |= {"coder.source": source, "coder.target": target, "coder.deltas": deltas}
    for i, weights in enumerate(WEIGHTS):
        transform = d2.Box2BoxTransform(weights)
        out[f"coder.{i}.encoded"] = transform.get_deltas(source, target)
        out[f"coder.{i}.decoded"] = transform.apply_deltas(deltas, source)
    np.savez_compressed(HERE / "detectron2.npz", **{name: np.asarray(value) for name, value in out.items()})


if __name__ == "__main__":
    main()
