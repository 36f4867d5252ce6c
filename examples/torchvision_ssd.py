"""One line makes torchvision's SSD300 faster: `accelerate`. Losses, gradients and detections stay the same.

    python examples/torchvision_ssd.py

The weights are random; nothing is downloaded. The times are those of all steps after the network, which is not changed.
"""

from __future__ import annotations

import copy
import sys
import time

import torch

from fastssd.compat.torchvision import accelerate

try:
    from torchvision.models.detection import ssd300_vgg16
except ImportError:
    print("skipped: needs torchvision; install it with: pip install torchvision")
    sys.exit()


def best_time(call, model, rounds=3):
    """Seconds of the fastest of a few calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call(model)
        times.append(time.perf_counter() - start)
    return min(times)


def train(model, images, targets):
    """The losses of a step; its gradients are left in the parameters."""
    model.train().zero_grad()
    losses = model(images, targets)
    sum(losses.values()).backward()
    return losses


@torch.no_grad()
def detect(model, images):
    return model.eval()(images)


def main():
    torch.manual_seed(0)
    images = list(torch.rand(2, 3, 300, 300))
    targets = [{"boxes": torch.tensor([[30.0, 40, 150, 180], [90, 20, 280, 250]]), "labels": torch.tensor([1, 17])}] * 2
    before = ssd300_vgg16(weights=None, weights_backbone=None)
    after = accelerate(copy.deepcopy(before))  # <- the line

    torch.testing.assert_close(train(after, images, targets), train(before, images, targets))
    for parameter, other in zip(after.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(detect(after, images), detect(before, images))
    print("losses, gradients and detections are equal")

    with torch.no_grad():
        features = before.backbone(before.transform(images)[0].tensors)
        outputs = {name: value.requires_grad_() for name, value in before.head(list(features.values())).items()}
    # From here on the network returns saved outputs, so that only the steps after it are timed.
    for model in (before, after):
        model.backbone.forward = lambda pixels: features
        model.head.forward = lambda features: outputs
    for what, call in (
        ("loss and backward", lambda m: train(m, images, targets)),
        ("detect", lambda m: detect(m, images)),
    ):
        slow, fast = best_time(call, before), best_time(call, after)
        print(f"{what}: torchvision {slow * 1e3:.1f} ms, accelerated {fast * 1e3:.1f} ms ({slow / fast:.1f} x)")


if __name__ == "__main__":
    main()
