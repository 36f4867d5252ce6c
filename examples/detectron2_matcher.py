"""detectron2's anchors matched by our kernels: the RPN's labels of one image, with and without the matrix of IoUs.

With detectron2 installed, its own results are compared. For a model, call ``fastssd.compat.detectron2.patch()``
before it is built; nothing else changes.
"""

import time

import torch

from fastssd.compat import detectron2 as fast
from fastssd.ops import grid_anchors

torch.set_num_threads(1)


def milliseconds(call):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


# Anchors as in Faster R-CNN with FPN, on an image of 800 x 1056: five feature maps, three shapes a cell.
height, width = 800, 1056
strides = (4, 8, 16, 32, 64)
grids = [(height // stride, width // stride) for stride in strides]
scales = [[8 * stride / height] for stride in strides]
anchors = torch.from_numpy(grid_anchors(grids, scales, (1.0, 0.5, 2.0), image_size=(height, width)))
generator = torch.Generator().manual_seed(0)
corner = torch.rand(20, 2, generator=generator) * 600
gt_boxes = torch.cat([corner, corner + 20 + 200 * torch.rand(20, 2, generator=generator)], 1)

matcher = fast.Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)
matched, labels = matcher(fast.pairwise_iou(gt_boxes, anchors))  # as in detectron2
again = matcher.match(gt_boxes, anchors)  # the same result without the matrix
assert torch.equal(matched, again[0])
assert torch.equal(labels, again[1])
counts = [int((labels == label).sum()) for label in (1, 0, -1)]
print(f"{len(anchors)} anchors, {len(gt_boxes)} boxes: {counts[0]} positive, {counts[1]} negative, {counts[2]} ignored")
print(f"matrix and Matcher   {milliseconds(lambda: matcher(fast.pairwise_iou(gt_boxes, anchors))):8.1f} ms")
print(f"Matcher.match        {milliseconds(lambda: matcher.match(gt_boxes, anchors)):8.1f} ms")

transform = fast.Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
positive = labels == 1
deltas = transform.get_deltas(anchors[positive], gt_boxes[matched[positive]])
torch.testing.assert_close(
    transform.apply_deltas(deltas, anchors[positive]), gt_boxes[matched[positive]], rtol=1e-4, atol=1e-2
)

try:
    from detectron2.modeling.matcher import Matcher
    from detectron2.structures import Boxes, pairwise_iou
except ImportError:
    print("detectron2 is not installed here, so there is no comparison with it")
else:
    theirs = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)
    host = theirs(pairwise_iou(Boxes(gt_boxes), Boxes(anchors)))
    assert torch.equal(host[0], matched)
    assert torch.equal(host[1], labels)
    print(f"detectron2           {milliseconds(lambda: theirs(pairwise_iou(Boxes(gt_boxes), Boxes(anchors)))):8.1f} ms")
