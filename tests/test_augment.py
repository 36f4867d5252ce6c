"""Augmentation: boxes stay on their objects, and crops have the chosen overlap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastssd.data import shapes_dataset
from fastssd.detection.preprocess import resize_image
from fastssd.ops import box_iou
from fastssd.training import Augment
from fastssd.training.augment import CROP_OVERLAPS, WHOLE, _crop
from fastssd.training.datasets import Cached, Item, TrainSet

NOTHING = Augment(flip=0, photometric=0, zoom=0, shift=0)
KINDS = {
    "default": Augment(),
    "crop": Augment(crop=1, zoom=0, shift=0),
    "zoom-out": Augment(zoom_out=1, zoom=0, shift=0),
    "all": Augment(vertical_flip=0.5, photometric=0.3, zoom=0.4, shift=0.2, crop=0.8, zoom_out=0.5, min_visible=0),
}


def square(height, width, box):
    """A black image with one white object."""
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    return image, np.array([box], np.float32) / np.array([width, height] * 2, np.float32), np.array([7])


def extent(image):
    """The box of the white object, xyxy."""
    y, x = np.nonzero(image.min(-1) > 150)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


@pytest.mark.parametrize("augment", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("size", [(128, 128), (96, 160), (300, 200)])
def test_boxes_follow_their_object(augment, size):
    height, width = size
    sample = square(height, width, (width // 5, height // 3, width // 2, height * 3 // 4))
    kept = 0
    for seed in range(40):
        image, boxes, labels = augment([sample], 128, np.random.default_rng(seed))
        assert image.shape == (128, 128, 3)
        assert image.dtype == np.uint8
        if len(labels):
            kept += 1
            assert (boxes >= 0).all()
            assert (boxes <= 1).all()
            np.testing.assert_allclose(boxes[0] * 128, extent(image), atol=1.6)
    assert kept > 30
    assert sample[0].max() == 255
    assert sample[0][0, 0, 0] == 0


def test_a_mosaic_shows_four_images():
    images = [square(64, 96, (20, 10, 80, 50))] * 4
    image, boxes, labels = NOTHING(images, 128, np.random.default_rng(0))
    assert labels.tolist() == [7] * 4
    for x1, y1, x2, y2 in (boxes * 128).round().astype(int):
        assert (image[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] == 255).all()
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum() * 128 * 128
    assert area == pytest.approx((image[..., 0] > 127).sum(), rel=0.05)


def test_the_last_epochs_have_no_mosaic():
    data = shapes_dataset(8, image_size=64)
    changed = TrainSet(Cached(data), replace(NOTHING, mosaic=1.0), seed=0, mosaic_epochs=1)
    plain = TrainSet(Cached(data), NOTHING, seed=0)
    for index in range(len(data)):
        first, last = changed[Item(0, index, 64)], changed[Item(1, index, 64)]
        np.testing.assert_array_equal(last.image, plain[Item(1, index, 64)].image)
        assert (first.image != last.image).any()


def test_without_augmentation_only_the_size_changes():
    rng = np.random.default_rng(0)
    image, boxes = rng.integers(0, 256, (90, 70, 3), np.uint8), np.array([[0.1, 0.2, 0.5, 0.9]], np.float32)
    same, kept, labels = NOTHING([(image, boxes, np.array([3]))], 64, rng)
    np.testing.assert_array_equal(same, resize_image(image, 64))
    np.testing.assert_array_equal(kept, boxes)
    assert labels.tolist() == [3]


def test_a_crop_has_the_drawn_overlap_with_one_box():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.8, (6, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.1, 0.2, (6, 2))], 1)
    boxes = np.concatenate([boxes, [[0.05, 0.05, 0.95, 0.9]]])  # large enough for every overlap
    overlaps = []
    for seed in range(200):
        window = _crop(boxes, np.random.default_rng(seed))
        if (window == WHOLE).all():
            continue
        overlaps.append(box_iou(window[None], boxes).max())
        drawn = np.random.default_rng(seed).choice(CROP_OVERLAPS)
        assert overlaps[-1] >= drawn
        x, y = (boxes[:, 0::2].mean(1), boxes[:, 1::2].mean(1))
        assert ((x > window[0]) & (x < window[2]) & (y > window[1]) & (y < window[3])).any()
    assert len(overlaps) > 150
    assert np.mean(np.array(overlaps) < 0.5) > 0.1  # some crops have a low overlap


def test_small_and_hidden_objects_are_left_out():
    image, boxes, _ = square(128, 128, (20, 40, 64, 90))
    tiny = np.array([[0.99, 0.02, 0.993, 0.024]], np.float32)
    augment = Augment(flip=0, photometric=0, zoom=0.1, shift=0)
    for seed in range(20):
        _, _, labels = augment(
            [(image, np.concatenate([boxes, tiny]), np.array([7, 8]))], 128, np.random.default_rng(seed)
        )
        assert labels.tolist() == [7]


def test_images_without_objects_are_augmented_too():
    image = np.zeros((50, 60, 3), np.uint8)
    no_objects = (image, np.empty((0, 4), np.float32), np.empty(0, np.int64))
    for seed in range(10):
        _, boxes, labels = KINDS["all"]([no_objects], 32, np.random.default_rng(seed))
        assert boxes.shape == (0, 4)
        assert labels.shape == (0,)


def test_a_probability_over_1_is_an_error():
    with pytest.raises(ValueError, match="crop"):
        Augment(crop=1.5)
