"""The order of the network's outputs, and the criterion compared with a slow and simple version."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from fastssd.detection import TINYSSD, Criterion, Preset, TinySSD, build_model, detect  # noqa: E402
from fastssd.detection.parts import Head, down_sample_block  # noqa: E402
from fastssd.ops import encode_boxes, match_anchors  # noqa: E402
from fastssd.ops.matching import Targets  # noqa: E402

TINY = replace(TINYSSD, image_size=64, grid_sizes=((8, 8), (4, 4), (2, 2), (1, 1), (1, 1)))

pytestmark = pytest.mark.usefixtures("one_thread_of_torch")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_tinyssd_has_the_documented_shapes():
    model = TinySSD(num_classes=3)
    logits, deltas = model(torch.rand(2, 3, 256, 256))
    assert model.anchors.shape == (5444, 4)
    assert logits.shape == (2, 5444, 4)
    assert deltas.shape == (2, 5444, 4)


def test_every_channel_of_a_head_belongs_to_its_anchor():
    preset = Preset("small", 64, ((3, 5), (2, 1)), ((0.2, 0.3), (0.5,)), ((1.0, 2.0, 0.5), (1.0, 3.0)))
    head = Head((2, 2), preset.anchors_per_cell, num_columns=2)
    maps = []
    for (rows, columns), classes, boxes in zip(preset.grid_sizes, head.classes, head.boxes, strict=True):
        y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
        maps.append(torch.stack([x, y])[None])  # the features of a cell are its centre, and the heads return them:
        for conv, step in ((classes, 2), (boxes, 4)):
            torch.nn.init.zeros_(conv.weight)
            conv.weight.data[0::step, 0, 1, 1] = 1
            conv.weight.data[1::step, 1, 1, 1] = 1
            torch.nn.init.zeros_(conv.bias)
        for k, (scale, ratio) in enumerate(_shapes(preset, len(maps) - 1)):
            boxes.bias.data[4 * k + 2] = scale * math.sqrt(ratio)
            boxes.bias.data[4 * k + 3] = scale / math.sqrt(ratio)
    logits, deltas = head(maps)
    anchors = torch.from_numpy(preset.anchors())
    centre, size = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    torch.testing.assert_close(logits[0], centre)
    torch.testing.assert_close(deltas[0], torch.cat([centre, size], 1))


def _shapes(preset, level):
    scales, ratios = preset.scales[level], preset.aspect_ratios[level]
    return [(scale, ratios[0]) for scale in scales] + [(scales[0], ratio) for ratio in ratios[1:]]


def test_pooling_before_relu_changes_nothing():
    block = down_sample_block(3, 4)
    x, again = (torch.randn(2, 3, 8, 8, requires_grad=True) for _ in range(2))
    again.data.copy_(x.data)
    comp = block(x)
    conv1, norm1, relu, conv2, norm2, pool, _ = block
    ref = pool(F.relu(norm2(conv2(relu(norm1(conv1(again)))))))
    weight = torch.randn_like(ref)
    (comp * weight).sum().backward()
    (ref * weight).sum().backward()
    torch.testing.assert_close(comp, ref, rtol=0, atol=0)
    torch.testing.assert_close(x.grad, again.grad, rtol=0, atol=0)


def test_images_of_another_size_and_unknown_models_are_errors():
    with pytest.raises(ValueError, match="256 x 256"):
        TinySSD(1)(torch.rand(1, 3, 128, 128))
    with pytest.raises(ValueError, match="tinyssd"):
        build_model("tiny", 1)
    with pytest.raises(ValueError, match="num_classes"):
        TinySSD(0)


def test_a_preset_survives_json():
    assert Preset.from_dict(json.loads(json.dumps(TINYSSD.to_dict()))) == TINYSSD
    with pytest.raises(ValueError, match="preset"):
        Preset.from_dict({"name": "half"})


# --- criterion ---------------------------------------------------------------------------------------------------


def _batch(columns=4):
    """Three images, the last without objects, and random outputs of a network."""
    anchors = torch.from_numpy(TINY.anchors())
    gt_boxes = [
        torch.tensor([[0.1, 0.1, 0.5, 0.4], [0.3, 0.3, 0.9, 0.95], [0.02, 0.8, 0.08, 0.85]]),
        torch.tensor([[0.2, 0.5, 0.45, 0.75]]),
        torch.zeros(0, 4),
    ]
    gt_labels = [torch.tensor([1, 3, 2]), torch.tensor([2]), torch.zeros(0, dtype=torch.long)]
    logits = torch.randn(3, len(anchors), columns, requires_grad=True)
    deltas = torch.randn(3, len(anchors), 4, requires_grad=True)
    return anchors, gt_boxes, gt_labels, logits, deltas


def _slow_losses(criterion, anchors, gt_boxes, gt_labels, logits, deltas):
    """The losses, computed anchor by anchor."""
    positives, class_loss, box_loss = 0, 0.0, 0.0
    for image, (boxes, labels) in enumerate(zip(gt_boxes, gt_labels, strict=True)):
        gt_idx = match_anchors(
            anchors,
            boxes,
            iou_threshold=criterion.iou_threshold,
            background_threshold=criterion.background_threshold,
        ).gt_idx.tolist()
        negatives = []
        count = 0
        for anchor, matched in enumerate(gt_idx):
            if matched == -2:
                continue
            logit = logits[image, anchor]
            label = int(labels[matched]) if matched >= 0 else 0
            weight = criterion.class_weights[label - 1] if criterion.class_weights and label else 1.0
            if criterion.class_loss == "focal":
                for column in range(1, len(logit)):
                    p = torch.sigmoid(logit[column])
                    is_target = label == column
                    p, alpha = (p, criterion.focal_alpha) if is_target else (1 - p, 1 - criterion.focal_alpha)
                    class_loss = class_loss - weight * alpha * (1 - p) ** criterion.focal_gamma * p.log()
            else:
                loss = -logit.log_softmax(0)[label]
                if matched >= 0:
                    class_loss = class_loss + weight * loss
                else:
                    negatives.append(loss)
            if matched >= 0:
                count += 1
                target = encode_boxes(boxes[matched][None], anchors[anchor][None])[0]
                for error in (deltas[image, anchor] - target).abs():
                    beta = criterion.smooth_l1_beta if criterion.box_loss == "smooth_l1" else 0.0
                    box_loss = box_loss + (0.5 * error**2 / beta if error < beta else error - beta / 2)
        num_negatives = max(math.ceil(criterion.neg_pos_ratio * count), criterion.min_negatives)
        class_loss = class_loss + sum(sorted(negatives, key=torch.Tensor.item, reverse=True)[:num_negatives])
        positives += count
    return class_loss / max(positives, 1), box_loss / max(positives, 1), positives


@pytest.mark.parametrize(
    "criterion",
    [
        Criterion(),
        Criterion(neg_pos_ratio=1.5, min_negatives=10, box_loss="l1", box_weight=2.0),
        Criterion(background_threshold=0.3, smooth_l1_beta=0.1),
        Criterion(background_threshold=0.3, class_loss="focal"),
        Criterion(class_weights=(0.0, 3.0, 0.5)),
        Criterion(class_weights=(0.0, 3.0, 0.5), class_loss="focal"),
    ],
    ids=["default", "l1", "ignored", "focal", "weighted", "weighted focal"],
)
def test_losses_and_gradients_equal_the_slow_version(criterion):
    anchors, gt_boxes, gt_labels, logits, deltas = _batch()
    losses = criterion(logits, deltas, criterion.match_targets(anchors, gt_boxes, gt_labels))
    comp = torch.autograd.grad(losses.total, (logits, deltas))

    ref_class, ref_box, positives = _slow_losses(criterion, anchors, gt_boxes, gt_labels, logits, deltas)
    ref = torch.autograd.grad(ref_class + criterion.box_weight * ref_box, (logits, deltas))
    assert int(losses.num_positives) == positives
    torch.testing.assert_close(losses.classification, ref_class)
    torch.testing.assert_close(losses.box_regression, ref_box)
    torch.testing.assert_close(comp, ref)


def test_class_weights_are_those_of_torch():
    """The loss is torch's weighted cross entropy, summed over positives and mined negatives."""
    anchors, gt_boxes, gt_labels, logits, deltas = _batch()
    criterion = Criterion(class_weights=(0.2, 3.0, 7.0))
    targets = criterion.match_targets(anchors, gt_boxes, gt_labels)
    losses = criterion(logits, deltas, targets)
    (comp,) = torch.autograd.grad(losses.classification, logits)

    chosen = (targets.labels > 0) | losses.hard_negatives
    weight = torch.tensor([1.0, 0.2, 3.0, 7.0])
    ref = torch.nn.functional.cross_entropy(logits[chosen], targets.labels[chosen], weight, reduction="sum")
    ref = ref / losses.num_positives
    assert torch.equal(losses.hard_negatives, Criterion()(logits, deltas, targets).hard_negatives)
    torch.testing.assert_close(losses.classification, ref)
    torch.testing.assert_close(comp, *torch.autograd.grad(ref, logits))
    for wrong in ((1.0, 2.0), (1.0,) * 4):
        with pytest.raises(ValueError, match="class_weights"):
            replace(criterion, class_weights=wrong)(logits, deltas, targets)
    with pytest.raises(ValueError, match="class_weights"):
        Criterion(class_weights=(1.0, -1.0, 1.0))


def test_only_positives_and_mined_negatives_get_gradients():
    criterion = Criterion(background_threshold=0.3)
    anchors, gt_boxes, gt_labels, logits, deltas = _batch()
    targets = criterion.match_targets(anchors, gt_boxes, gt_labels)
    losses = criterion(logits, deltas, targets)
    losses.total.backward()
    positive, ignored = targets.labels > 0, targets.labels < 0
    assert ignored.any()
    assert not (losses.hard_negatives & (positive | ignored)).any()
    assert torch.equal(deltas.grad.ne(0).any(-1), positive)
    assert torch.equal(logits.grad.ne(0).any(-1), positive | losses.hard_negatives)


def test_a_nan_in_the_outputs_reaches_the_loss():
    anchors, gt_boxes, gt_labels, logits, deltas = _batch()
    criterion = Criterion()
    targets = criterion.match_targets(anchors, gt_boxes, gt_labels)
    background = int((targets.labels[0] == 0).nonzero()[0])
    with torch.no_grad():
        logits[0, background] = torch.nan
    assert criterion(logits, deltas, targets).total.isnan()


def test_half_precision_outputs_and_unknown_options():
    anchors, gt_boxes, gt_labels, logits, deltas = _batch()
    criterion = Criterion()
    targets = criterion.match_targets(anchors, gt_boxes, gt_labels)
    assert isinstance(targets, Targets)
    assert criterion(logits.bfloat16(), deltas.bfloat16(), targets).total.dtype == torch.float32
    with pytest.raises(ValueError, match="class_loss"):
        Criterion(class_loss="hinge")


def test_focal_presets_start_with_a_low_probability_of_objects():
    logits, _ = TinySSD(2, replace(TINY, activation="sigmoid"))(torch.rand(1, 3, 64, 64))
    assert logits[..., 1:].sigmoid().mean().item() == pytest.approx(0.01, rel=0.3)


# --- detection ---------------------------------------------------------------------------------------------------


class _FixedOutputs(TinySSD):
    """Detects class 2 at one anchor of each image: at anchor 5 in the first of a batch, 6 in the second, ..."""

    def forward(self, images):
        batch, anchors = len(images), len(self.anchors)
        logits = torch.zeros(batch, anchors, 3)
        logits[..., 0] = 10
        logits[torch.arange(batch), 5 + torch.arange(batch), 2] = 20
        return logits, torch.zeros(batch, anchors, 4)


def test_detections_are_in_the_pixels_of_each_image():
    model = _FixedOutputs(2, TINY)
    sizes = [(50, 80), (64, 64), (30, 10)]
    found = detect(model, [np.zeros((*size, 3), np.uint8) for size in sizes], batch_size=2)
    assert model.training
    for (height, width), anchor, detections in zip(sizes, (5, 6, 5), found, strict=True):
        expected = TINY.anchors()[anchor].clip(0, 1) * np.array([width, height, width, height])
        np.testing.assert_allclose(detections.boxes, expected[None], rtol=1e-5, atol=1e-4)
        assert detections.names(("cat", "dog")) == ["dog"]
        assert detections.scores[0] > 0.99
    assert detect(model, []) == []
    with pytest.raises(ValueError, match="image"):
        detect(model, [np.zeros((8, 8), np.uint8)])
