"""Dive into Deep Learning, sections 14.4 and 14.7: the chapter's functions, the chapter's example.

Where the package d2l is installed, one line lets its notebooks run on these functions unchanged.
"""

import importlib.util

import torch

import fastssd.compat.d2l
from fastssd.compat.d2l import multibox_detection, multibox_prior, multibox_target

# The dog and the cat of section 14.4: class, then the box as fractions of the image.
gt_boxes = torch.tensor([[0, 0.1, 0.08, 0.52, 0.92], [1, 0.55, 0.2, 0.9, 0.88]])
maps = [torch.zeros(1, 1, cells, cells) for cells in (32, 16, 8, 4, 1)]
sizes = [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)]
anchors = torch.cat([multibox_prior(x, s, ratios=[1, 2, 0.5]) for x, s in zip(maps, sizes, strict=True)], 1)
offsets, mask, classes = multibox_target(anchors, gt_boxes[None])
print(f"{anchors.shape[1]} anchors: {(classes == 1).sum()} for the dog, {(classes == 2).sum()} for the cat")

# A network that predicts exactly these targets finds both.
probabilities = torch.nn.functional.one_hot(classes, 3).float().transpose(1, 2)  # [1, C, A]
output = multibox_detection(probabilities, offsets, anchors)
for kind, score, *box in output[0][output[0, :, 0] >= 0].tolist():
    print(("dog", "cat")[int(kind)], f"{score:.2f}", [round(x, 3) for x in box])

missing = [name for name in ("d2l", "torchvision", "pandas", "IPython") if importlib.util.find_spec(name) is None]
if missing:
    print("skipped: needs", ", ".join(missing), "to run the package's own notebooks")
else:
    from d2l import torch as d2l

    expected = d2l.multibox_target(anchors, gt_boxes[None])
    fastssd.compat.d2l.patch()  # this one line is enough
    for ours, theirs in zip(d2l.multibox_target(anchors, gt_boxes[None]), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    print("d2l.multibox_target is", d2l.multibox_target.__module__, "and gives the same numbers")
