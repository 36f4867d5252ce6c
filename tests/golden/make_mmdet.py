"""Make ``mmdet.npz``: what mmdetection and mmcv answer, for tests/test_compat_mmdet.py to compare with.

Run once where mmdet 3.3.0 and mmcv 2.1.0 (with its compiled operators) import: ``python tests/golden/make_mmdet.py``.
Scores differ, for mmcv's sort leaves the order of equal ones to the processor; but those of soft-NMS also tie.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mmdet.models.task_modules.assigners import MaxIoUAssigner
from mmdet.structures.bbox import bbox_overlaps

ASSIGNERS = [
    {"pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "min_pos_iou": 0.3},
    {"pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0.0},
    {"pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.0, "gt_max_assign_all": False},
    {"pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.5, "match_low_quality": False},
    {"pos_iou_thr": 0.5, "neg_iou_thr": (0.1, 0.4), "gpu_assign_thr": 3},
    {"pos_iou_thr": 0.5, "neg_iou_thr": 0.3, "ignore_iof_thr": 0.5},
    {"pos_iou_thr": 0.5, "neg_iou_thr": 0.3, "ignore_iof_thr": 0.2, "ignore_wrt_candidates": False},
    {"pos_iou_thr": 0.5, "neg_iou_thr": 0.3, "iou_calculator": {"type": "BboxOverlaps2D", "dtype": "fp16", "scale": 2}},
]
NMS = [
    {"iou_threshold": 0.5},
    {"iou_threshold": 0.3, "offset": 1},
    {"iou_threshold": 0.7, "score_threshold": 0.3, "max_num": 15},
]
SOFT_NMS = [
    {"method": "linear"},
    {"method": "linear", "iou_threshold": 0.5, "min_score": 0.3, "offset": 1},
    {"method": "gaussian", "sigma": 0.3, "min_score": 0.1},
    {"method": "naive", "iou_threshold": 0.5},
    {"method": "naive", "iou_threshold": 0.5, "min_score": 0.0},
    {"method": "linear", "min_score": 1.5},
]
BATCHED = [
    {"iou_threshold": 0.5},
    {"type": "nms", "iou_thr": 0.3, "max_num": 20},
    {"iou_threshold": 0.5, "class_agnostic": True, "score_threshold": 0.2},
    {"iou_threshold": 0.5, "split_thr": 10, "max_num": 20},
    {"iou_threshold": 0.4, "offset": 1},
    {"type": "soft_nms", "iou_threshold": 0.3, "min_score": 0.6},
    {"type": "soft_nms", "iou_threshold": 0.3, "min_score": 0.9, "split_thr": 10},
]


def boxes(rng: np.random.Generator, n: int, step: float = 0.0) -> torch.Tensor:
    corner = rng.random((n, 2)) * 40
    found = np.concatenate([corner, corner + rng.random((n, 2)) * 20 + 1], 1)
    return torch.from_numpy((np.round(found / step) * step if step else found).astype(np.float32))


def main() -> None:
    mmcv = import_module("mmcv.ops.nms")
    rng = np.random.default_rng(0)
    flat = boxes(rng, 60)
    flat[::4, 2:] = flat[::4, :2]  # no area
    back = boxes(rng, 60)
    back[::5, 2:] -= 30  # sides that run backwards
    scenes = {
        "random": (boxes(rng, 90), boxes(rng, 8)),
        "ties": (boxes(rng, 90, 8.0), boxes(rng, 8, 8.0)),
        "flat": (flat, flat[2:10].clone()),
        "backwards": (back, back[2:10].clone()),
        "tiny": (boxes(rng, 60) * 3e-5, boxes(rng, 8) * 3e-5),  # areas about eps
        "apart": (boxes(rng, 40), torch.cat([boxes(rng, 2) + 1000, boxes(rng, 2)])),
        "no truth": (boxes(rng, 5), torch.empty(0, 4)),
        "no priors": (torch.empty(0, 4), boxes(rng, 3)),
    }
    out: dict[str, object] = {
        "options": json.dumps({"assigners": ASSIGNERS, "nms": NMS, "soft_nms": SOFT_NMS, "batched": BATCHED})
    }
    for name, (priors, truths) in scenes.items():
        labels = torch.from_numpy(rng.integers(0, 80, len(truths)))
        ignored = boxes(rng, 3) * (3e-5 if name == "tiny" else 1)
        out |= {
            f"{name}.priors": priors,
            f"{name}.truths": truths,
            f"{name}.labels": labels,
            f"{name}.ignored": ignored,
        }
        for mode in ("iou", "iof", "giou"):
            out[f"{name}.{mode}"] = bbox_overlaps(truths, priors, mode)
            both = min(len(truths), len(priors))
            out[f"{name}.{mode}.aligned"] = bbox_overlaps(truths[:both], priors[:both], mode, is_aligned=True)
        for i, options in enumerate(ASSIGNERS):
            result = MaxIoUAssigner(**options).assign(
                SimpleNamespace(priors=priors),
                SimpleNamespace(bboxes=truths, labels=labels),
                SimpleNamespace(bboxes=ignored),
            )
            for field in ("gt_inds", "max_overlaps", "labels"):
                out[f"{name}.{i}.{field}"] = getattr(result, field)
    crowd = boxes(rng, 120, 1.0)  # whole numbers, which mmcv's shift of classes leaves as they are
    scores = torch.from_numpy(rng.permutation(120).astype(np.float32) / 120)
    ties = torch.from_numpy(rng.integers(1, 12, 120).astype(np.float32) / 12)
    classes = torch.from_numpy(rng.integers(0, 5, 120))
    out |= {"crowd": crowd, "scores": scores, "tied scores": ties, "classes": classes}
    for i, options in enumerate(NMS):
        out[f"nms.{i}.dets"], out[f"nms.{i}.keep"] = mmcv.nms(crowd, scores, **options)
    for i, options in enumerate(SOFT_NMS):
        out[f"soft.{i}.scores.dets"], out[f"soft.{i}.scores.keep"] = mmcv.soft_nms(crowd, scores, **options)
    for i, options in enumerate(BATCHED):
        out[f"batched.{i}.dets"], out[f"batched.{i}.keep"] = mmcv.batched_nms(crowd, scores, classes, options)
    groups = mmcv.nms_match(torch.cat([crowd, scores[:, None]], 1), 0.5)
    out["match"], out["match.sizes"] = torch.cat(groups), np.array([len(group) for group in groups])
    np.savez_compressed(Path(__file__).parent / "mmdet.npz", **{name: np.asarray(value) for name, value in out.items()})


if __name__ == "__main__":
    main()
