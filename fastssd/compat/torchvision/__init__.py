"""torchvision's box functions and detectors on our kernels: names, signatures and results as there.

- In place of ``torchvision.ops``: :func:`nms`, :func:`batched_nms`, :func:`box_iou` and its relatives.
- In place of ``torchvision.models.detection``'s parts: :class:`Matcher`, :class:`SSDMatcher`, :class:`BoxCoder`,
  :class:`DefaultBoxGenerator`.
- :func:`accelerate` replaces the slow parts of a whole detector, :func:`restore` undoes it.
- :class:`patch` routes ``torchvision.ops`` itself.

Only these last two need torchvision, when they are called. Results are torchvision's on finite boxes of positive area;
docs/contract.md says what happens to others, and docs/integration.md where the two differ on purpose.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "fastssd.compat.torchvision needs torch; install it with: pip install 'fastssd[torch]'"
    ) from error

from fastssd.compat.torchvision.anchors import DefaultBoxGenerator
from fastssd.compat.torchvision.coder import BoxCoder
from fastssd.compat.torchvision.matcher import Matcher, SSDMatcher
from fastssd.compat.torchvision.ops import (
    batched_nms,
    box_area,
    box_convert,
    box_iou,
    clip_boxes_to_image,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
    nms,
    remove_small_boxes,
)
from fastssd.compat.torchvision.routing import patch
from fastssd.compat.torchvision.swap import accelerate, restore

__all__ = [
    "BoxCoder",
    "DefaultBoxGenerator",
    "Matcher",
    "SSDMatcher",
    "accelerate",
    "batched_nms",
    "box_area",
    "box_convert",
    "box_iou",
    "clip_boxes_to_image",
    "complete_box_iou",
    "distance_box_iou",
    "generalized_box_iou",
    "nms",
    "patch",
    "remove_small_boxes",
    "restore",
]
