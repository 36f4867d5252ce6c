"""The models: their shapes, that they learn, and that they work with the options for speed."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from fastssd.detection import (  # noqa: E402
    MODELS,
    SSD,
    SSD512,
    TINYSSD,
    Criterion,
    Preset,
    build_model,
    detect_batch,
)
from fastssd.detection.weights import PUBLISHED  # noqa: E402

# SSD512 with about a quarter of the pixels: the smallest input that its feature maps allow.
SMALL_512 = replace(
    SSD512, image_size=272, grid_sizes=((34, 34), (17, 17), (9, 9), (5, 5), (3, 3), (2, 2), (1, 1)), steps=None
)

pytestmark = pytest.mark.usefixtures("one_thread_of_torch")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def small_model(name, num_classes=2):
    return build_model(name, num_classes, SMALL_512 if name == "ssd512_vgg16" else None)


def sample_images(model, count):
    """Two bright rectangles on noise, with their boxes and labels."""
    size = model.preset.image_size
    half, quarter = size // 2, size // 4
    images = 0.2 * torch.rand(count, 3, size, size)
    images[:, 0, quarter:half, quarter:half] = 1
    images[:, 2, half:, half:] = 0.9
    boxes, labels = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 1, 1]]), torch.tensor([1, 2])
    return images.contiguous(memory_format=torch.channels_last), [boxes] * count, [labels] * count


# --- shapes --------------------------------------------------------------------------------------------------------


def table():
    """The table in docs/models.md."""
    rows = [
        "| model | input | feature maps | anchors | parameters | published weights |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in MODELS.items():
        with torch.device("meta"):
            model = entry.make(90, entry.preset)
        maps = ", ".join(str(rows) for rows, _ in entry.preset.grid_sizes)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        weights = ", ".join(f"`{weights}`" for weights in PUBLISHED[name]) or "none"
        size = entry.preset.image_size
        anchors = len(entry.preset.anchors())
        rows.append(f"| `{name}` | {size} x {size} | {maps} | {anchors} | {parameters:,} | {weights} |")
    return "\n".join(rows)


def test_the_table_in_the_manual_is_true():
    assert table() in (Path(__file__).parents[1] / "docs" / "models.md").read_text()


def test_numbers_of_anchors_are_those_of_the_papers():
    anchors = {name: len(entry.preset.anchors()) for name, entry in MODELS.items()}
    assert (anchors["tinyssd"], anchors["ssd300_vgg16"], anchors["ssd512_vgg16"]) == (5444, 8732, 24564)


def test_old_presets_can_be_read_and_wrong_ones_are_errors():
    old = {key: value for key, value in TINYSSD.to_dict().items() if key not in ("steps", "clip", "topk")}
    assert Preset.from_dict(old) == TINYSSD
    with pytest.raises(ValueError, match="clip"):
        replace(TINYSSD, clip="corners")
    with pytest.raises(ValueError, match="steps"):
        replace(TINYSSD, steps=(8, 16))


def test_steps_of_equal_parts_change_no_anchor():
    steps = tuple(TINYSSD.image_size / rows for rows, _ in TINYSSD.grid_sizes)
    np.testing.assert_allclose(replace(TINYSSD, steps=steps).anchors(), TINYSSD.anchors(), rtol=0, atol=1e-6)
    clipped = replace(TINYSSD, clip="size", scales=((2.0, 3.0), *TINYSSD.scales[1:])).anchors()
    np.testing.assert_allclose(clipped[:2, 2:] - clipped[:2, :2], 1, atol=1e-6)


def test_missing_or_contradictory_class_counts_are_errors():
    with pytest.raises(ValueError, match="num_classes"):
        build_model("tinyssd")
    with pytest.raises(ValueError, match="class_names"):
        build_model("tinyssd", 3, class_names=("a", "b"))
    assert build_model("tinyssd", class_names=("a", "b")).num_classes == 2


# --- any backbone --------------------------------------------------------------------------------------------------


class _Levels(nn.Module):
    def __init__(self, container):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8, padding=1), nn.BatchNorm2d(8))
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.container = container

    def forward(self, x):
        x = self.first(x)
        return self.container([x, self.second(x)])


@pytest.mark.parametrize("container", [list, tuple, lambda maps: OrderedDict(enumerate(maps))])
def test_any_module_that_returns_feature_maps_is_a_backbone(container):
    backbone = _Levels(container)
    model = SSD(backbone, num_classes=3, image_size=64)
    assert model.preset.grid_sizes == ((8, 8), (4, 4))
    assert not backbone.first[1].num_batches_tracked  # finding the shapes has not changed its statistics
    logits, deltas = model(torch.rand(2, 3, 64, 64))
    assert logits.shape == (2, (64 + 16) * 6, 4)
    assert deltas.shape == (2, (64 + 16) * 6, 4)
    again = SSD(_Levels(container), num_classes=3, preset=Preset.from_dict(model.preset.to_dict()))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.anchors, model.anchors)


def test_backbones_of_timm():
    timm = pytest.importorskip("timm")
    backbone = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(2, 3, 4))
    model = SSD(backbone, num_classes=3, image_size=128)
    assert model.preset.grid_sizes == ((16, 16), (8, 8), (4, 4))
    logits, _ = model(torch.rand(1, 3, 128, 128))
    assert logits.shape == (1, len(model.anchors), 4)


def test_frozen_modules_stay_in_eval_mode():
    model = build_model("tinyssd", 1)
    model.freeze("backbone.0", "backbone.1.*")
    model.train()
    norms = [module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.training for norm in norms] == [False] * 8 + [True] * 4
    assert [norm.weight.requires_grad for norm in norms] == [False] * 8 + [True] * 4


# --- learning ------------------------------------------------------------------------------------------------------


def overfit(model, count, steps, lr):
    """The losses of some steps on one batch."""
    images, boxes, labels = sample_images(model, count)
    model.train().to(memory_format=torch.channels_last)
    criterion = Criterion()
    targets = criterion.match_targets(model.anchors, boxes, labels, model.preset.variances)
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    losses = []
    for _ in range(steps):
        loss = criterion(*model(images), targets).total
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("name", "steps"), [("tinyssd", 30), ("ssdlite320_mobilenet_v3_large", 30)])
def test_a_model_overfits_one_batch(name, steps):
    model = small_model(name)
    losses = overfit(model, 2, steps, lr=1e-3)
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("name", ["ssd300_vgg16", "ssd512_vgg16"])
def test_large_models_reduce_the_loss_in_four_steps(name):
    losses = overfit(small_model(name), 1, 4, lr=1e-4)
    assert losses[-1] < 0.5 * losses[0]


# --- speed ---------------------------------------------------------------------------------------------------------


# The two models on VGG16 have the same layers, so each slow option is tested on one of them.


@pytest.mark.parametrize("name", ["tinyssd", "ssd512_vgg16", "ssdlite320_mobilenet_v3_large"])
@torch.no_grad()
def test_layout_and_bfloat16_keep_the_outputs(name):
    model = small_model(name).eval()
    images, _, _ = sample_images(model, 1)
    ref = model(images.contiguous())
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images), ref, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(images)
        (found,) = detect_batch(model, images, [(100, 100)])
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - ref[0]).abs().max() < 0.2 * ref[0].std() + 0.05
    assert len(found.boxes) <= model.preset.max_detections


@pytest.mark.parametrize("name", ["tinyssd", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large"])
@torch.no_grad()
def test_a_model_compiles_to_one_graph(name):
    model = small_model(name).eval()
    images, _, _ = sample_images(model, 1)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # an error if it cannot be traced as one graph
    torch.testing.assert_close(compiled(images), model(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["tinyssd", "ssdlite320_mobilenet_v3_large"])
def test_gradients_flow_in_bfloat16(name):
    model = small_model(name).train().to(memory_format=torch.channels_last)
    images, boxes, labels = sample_images(model, 2)
    criterion = Criterion()
    targets = criterion.match_targets(model.anchors, boxes, labels, model.preset.variances)
    with torch.autocast("cpu", torch.bfloat16):
        loss = criterion(*model(images), targets).total
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
