"""supervision's detections through our NMS: index with the kept boxes, instead of calling ``with_nms``."""

import sys

import numpy as np

from fastssd.ops import batched_nms, box_iou

try:
    import supervision as sv
except ImportError:
    sys.exit(print("skipped: needs supervision (pip install supervision)"))

rng = np.random.default_rng(0)
corner = rng.uniform(0, 600, (2000, 2))
detections = sv.Detections(
    xyxy=np.concatenate([corner, corner + rng.uniform(20, 200, (2000, 2))], 1).astype(np.float32),
    confidence=rng.random(2000).astype(np.float32),
    class_id=rng.integers(0, 5, 2000),
)
kept = detections[batched_nms(detections.xyxy, detections.confidence, detections.class_id, 0.5)]
print(f"{len(kept)} of {len(detections)} kept, best first")

theirs = detections.with_nms(threshold=0.5)
order = np.argsort(-theirs.confidence, kind="stable")
assert np.array_equal(kept.xyxy, theirs.xyxy[order])
np.testing.assert_allclose(box_iou(kept.xyxy, kept.xyxy), sv.box_iou_batch(kept.xyxy, kept.xyxy), atol=1e-6)
print("equal to with_nms and box_iou_batch")
