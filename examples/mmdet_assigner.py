"""mmdetection's MaxIoUAssigner on our kernels: built from a config if mmdet is installed, else constructed directly."""

import time
from types import SimpleNamespace

import torch

from fastssd.compat import mmdet as fast

torch.set_num_threads(1)


def milliseconds(call):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def boxes(count, size, generator):
    corner = torch.rand(count, 2, generator=generator) * 1000
    return torch.cat([corner, corner + 1 + size * torch.rand(count, 2, generator=generator)], 1)


generator = torch.Generator().manual_seed(0)
priors, gt_boxes, crowd = boxes(100_000, 200, generator), boxes(30, 300, generator), boxes(2, 300, generator)
options = {"pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0.0, "ignore_iof_thr": 0.5}
config = {"type": "MaxIoUAssigner", **options}

# InstanceData of mmengine has these attributes; any other object that has them works too.
pred_instances = SimpleNamespace(priors=priors)
gt_instances = SimpleNamespace(bboxes=gt_boxes, labels=torch.arange(30))
ignored = SimpleNamespace(bboxes=crowd)

try:
    from mmdet.models.task_modules.assigners import MaxIoUAssigner as Theirs
    from mmdet.registry import TASK_UTILS
except ImportError:
    Theirs = None
    print("mmdet is not installed here: the assigner is constructed directly")
    assigner = fast.MaxIoUAssigner(**options)
else:
    fast.register()  # in a config file: custom_imports = dict(imports=["fastssd.compat.mmdet.registered"])
    assigner = TASK_UTILS.build(config)
    assert type(assigner) is fast.MaxIoUAssigner

result = assigner.assign(pred_instances, gt_instances, ignored)
counts = [int(n) for n in ((result.gt_inds > 0).sum(), (result.gt_inds == 0).sum(), (result.gt_inds < 0).sum())]
print(f"{result}: {counts[0]} positive, {counts[1]} negative, {counts[2]} ignored")
print(f"fastssd  {milliseconds(lambda: assigner.assign(pred_instances, gt_instances, ignored)):8.1f} ms")
if Theirs is not None:
    theirs = Theirs(**options)
    expected = theirs.assign(pred_instances, gt_instances, ignored)
    assert torch.equal(result.gt_inds, expected.gt_inds)
    assert torch.equal(result.labels, expected.labels)
    assert torch.equal(result.max_overlaps, expected.max_overlaps)
    print(f"mmdet    {milliseconds(lambda: theirs.assign(pred_instances, gt_instances, ignored)):8.1f} ms")

scores, classes = torch.rand(2000, generator=generator), torch.randint(0, 80, (2000,), generator=generator)
dets, keep = fast.batched_nms(priors[:2000], scores, classes, {"type": "nms", "iou_threshold": 0.5, "max_num": 100})
print(f"batched_nms keeps {len(keep)} of 2000, the best {dets[0, 4]:.3f}")
