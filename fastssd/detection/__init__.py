"""The detector: parts, models, criterion (match -> mine -> losses) and postprocessing (extra ``torch``)."""

from __future__ import annotations

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastssd.detection needs torch; install it with: pip install 'fastssd[torch]'") from error

from fastssd.detection.collate import TargetBatch, TargetCollate
from fastssd.detection.criterion import Criterion, Losses
from fastssd.detection.end_to_end import EndToEndSSD
from fastssd.detection.models import (
    MODELS,
    SSD,
    SSD300,
    SSD300_VOC,
    SSD512,
    SSD512_VOC,
    SSDLITE320,
    TINYSSD,
    Preset,
    TinySSD,
    build_model,
    ssd300_vgg16,
    ssd512_vgg16,
    ssdlite320_mobilenet_v3_large,
)
from fastssd.detection.postprocess import ImageDetections, detect, detect_batch
from fastssd.ops import _torch  # noqa: F401  registers torch.ops.fastssd.*, where torch was imported last

__all__ = [
    "MODELS",
    "SSD",
    "SSD300",
    "SSD300_VOC",
    "SSD512",
    "SSD512_VOC",
    "SSDLITE320",
    "TINYSSD",
    "Criterion",
    "EndToEndSSD",
    "ImageDetections",
    "Losses",
    "Preset",
    "TargetBatch",
    "TargetCollate",
    "TinySSD",
    "build_model",
    "detect",
    "detect_batch",
    "ssd300_vgg16",
    "ssd512_vgg16",
    "ssdlite320_mobilenet_v3_large",
]
