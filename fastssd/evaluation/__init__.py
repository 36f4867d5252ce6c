"""How good detections are: COCO and VOC average precision, kinds of errors, and a report with all of this."""

from fastssd.evaluation.coco import MAX_DETECTIONS, coco_metrics
from fastssd.evaluation.errors import KINDS, PictureErrors, confusion_matrix, find_errors
from fastssd.evaluation.truth import GroundTruth
from fastssd.evaluation.voc import Curve, precision_recall, voc_metrics

__all__ = [
    "KINDS",
    "MAX_DETECTIONS",
    "Curve",
    "GroundTruth",
    "PictureErrors",
    "coco_metrics",
    "confusion_matrix",
    "find_errors",
    "precision_recall",
    "voc_metrics",
]
