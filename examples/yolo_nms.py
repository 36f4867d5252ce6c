"""Detections from a YOLO head's [B, 4 + C, A], cxcywh boxes and class scores: one NMS call for the batch."""

import numpy as np

from fastssd.ops import batched_nms, box_convert


def non_max_suppression(prediction, conf_thres=0.25, iou_thres=0.45, max_det=300):
    """For each image float [N, 6]: x1, y1, x2, y2, score, class; best first. An anchor has only its best class."""
    scores = prediction[:, 4:]  # [B, C, A]
    best, label = scores.max(1), scores.argmax(1)  # [B, A]
    image, anchor = np.nonzero(best > conf_thres)
    boxes = box_convert(prediction[image, :4, anchor], "cxcywh", "xyxy")  # [N, 4]
    score, label = best[image, anchor], label[image, anchor]
    group = image * scores.shape[1] + label  # boxes of different images or classes do not suppress each other
    kept = batched_nms(boxes, score, group, iou_thres)
    rows = np.column_stack([boxes, score, label])[kept]
    return [rows[image[kept] == index][:max_det] for index in range(len(prediction))]


rng = np.random.default_rng(0)
boxes, scores = rng.uniform(20, 600, (2, 4, 8400)), rng.random((2, 80, 8400)) ** 200
for found in non_max_suppression(np.concatenate([boxes, scores], 1).astype(np.float32)):
    print(f"{len(found)} detections, best {found[0, 4]:.3f} of class {found[0, 5]:.0f}")
