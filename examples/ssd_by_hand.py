"""IoU, matching and NMS by hand, on a few boxes: change a number, run it again, and see what changes.

docs/how-ssd-works.md shows this program piece by piece, with what it prints and why.
"""

import numpy as np

from fastssd.ops import match_anchors, nms


def box_iou(boxes1, boxes2):
    """The IoU of every pair: boxes [N, 4] and [M, 4] give [N, M]."""
    ax1, ay1, ax2, ay2 = boxes1.T[:, :, None]
    bx1, by1, bx2, by2 = boxes2.T[:, None, :]
    width = np.maximum(np.minimum(ax2, bx2) - np.maximum(ax1, bx1), 0)
    height = np.maximum(np.minimum(ay2, by2) - np.maximum(ay1, by1), 0)
    inter = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    return inter / union


# Matching: five anchors, a1 to a5, and three ground-truth boxes, G1 to G3. A box is x1, y1, x2, y2.
anchors = np.array([[7, 6, 44, 54], [18, 17, 59, 65], [41, 24, 88, 69], [71, 2, 90, 32], [54, 75, 93, 96]], float)
gt_boxes = np.array([[12, 11, 54, 62], [26, 19, 71, 60], [76, 8, 96, 28]], float)
matching_threshold = 0.5

iou = box_iou(anchors, gt_boxes)
print("  ", *(f"   G{gt + 1}" for gt in range(len(gt_boxes))))
for anchor, row in enumerate(iou):
    print(f"a{anchor + 1}", *(f" {value:.2f}" for value in row))

# 1. The threshold: every anchor takes the ground-truth box that it overlaps most, if their IoU is large enough.
gt_idx = np.where(iou.max(axis=1) >= matching_threshold, iou.argmax(axis=1), -1)  # -1: background
for anchor, gt in enumerate(gt_idx):
    print(f"a{anchor + 1} is", f"positive for G{gt + 1}" if gt >= 0 else "background")

# 2. The forcing: every ground-truth box takes an anchor of its own, the pair with the largest IoU first.
left = iou.copy()
for _ in range(min(len(anchors), len(gt_boxes))):
    anchor, gt = divmod(int(left.argmax()), len(gt_boxes))
    gt_idx[anchor] = gt  # whatever the threshold has decided
    left[anchor, :] = left[:, gt] = -1  # both leave the table
    print(f"G{gt + 1} takes a{anchor + 1}, IoU {iou[anchor, gt]:.2f}")

print("result:", gt_idx.tolist())
assert gt_idx.tolist() == match_anchors(anchors, gt_boxes, iou_threshold=matching_threshold).gt_idx.tolist()

# NMS: eight boxes of one class, 1 to 8, and their scores.
boxes = np.array(
    [
        [3, 5, 43, 51],
        [58, 4, 89, 39],
        [9, 8, 48, 56],
        [58, 10, 86, 50],
        [7, 12, 40, 75],
        [12, 29, 46, 80],
        [15, 37, 55, 82],
        [57, 66, 85, 91],
    ],
    float,
)
scores = np.array([0.95, 0.91, 0.86, 0.78, 0.64, 0.58, 0.52, 0.40])
nms_threshold = 0.45

kept = []
left = np.argsort(-scores, kind="stable")  # descending score
while len(left):
    best, rest = left[0], left[1:]
    too_close = box_iou(boxes[[best]], boxes[rest])[0] > nms_threshold
    print(f"left {left + 1}: keep {best + 1}, delete {rest[too_close] + 1}")
    kept.append(int(best))
    left = rest[~too_close]

print("result:", kept)
assert kept == nms(boxes, scores, nms_threshold).tolist()

print(f"IoU of box 5 and box 6: {box_iou(boxes[[4]], boxes[[5]])[0, 0]:.2f}")
