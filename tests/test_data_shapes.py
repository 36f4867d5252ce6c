"""The generated shapes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")

from fastssd.data import available_splits, default_splits, load_dataset, shapes, shapes_dataset


def test_shapes_are_determined_by_seed_and_index() -> None:
    script = (
        "import sys; from fastssd.data import shapes_dataset; dataset = shapes_dataset(9, seed=5, image_size=64);"
        "samples = [dataset[index] for index in (7, 2)]; assert 'torch' not in sys.modules;"
        "sys.stdout.buffer.write(b''.join(array.tobytes() for sample in samples for array in sample[:3]))"
    )
    other = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout
    dataset = shapes_dataset(20, seed=5, image_size=64)
    mine = [dataset[index] for index in (2, 7)]
    assert other == b"".join(array.tobytes() for sample in reversed(mine) for array in sample[:3])
    assert not np.array_equal(mine[0].image, shapes_dataset(20, seed=6, image_size=64)[2].image)


@pytest.mark.parametrize("size", [32, 256])
def test_shapes_are_inside_the_image_and_have_the_promised_sizes(size: int) -> None:
    dataset = shapes_dataset(150, image_size=size)
    samples = [dataset[index] for index in range(len(dataset))]
    boxes = np.concatenate([sample.boxes for sample in samples])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert boxes.min() >= 0
    assert boxes.max() <= size
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert sides.max() <= 0.8 * size + 1
    assert sides.max() > 0.6 * size
    assert np.median(sides) < 0.6 * size
    assert {*np.concatenate([sample.labels for sample in samples])} == {*range(1, len(dataset.class_names) + 1)}
    assert all(1 <= len(sample.labels) <= shapes.MOST_OBJECTS for sample in samples)
    assert all(sample.image.shape == (size, size, 3) for sample in samples)


def test_shapes_boxes_are_tight_around_what_is_drawn() -> None:
    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(60):
        ground = shapes.draw_ground(rng, 256)
        canvas = ground.copy()
        boxes, labels = shapes.draw_objects(rng, canvas)
        if len(labels) == 1:
            drawn = np.linalg.norm(canvas - ground, axis=0) > shapes.CONTRAST / 2
            rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
            expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(boxes[0], expected, atol=1)
            checked += 1
    assert checked >= 5


def test_shapes_overlap_but_stay_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    kept: list[int] = []
    paint = shapes._paint

    def painted(rng: Any, under: Any, coverage: Any) -> bool:
        done = paint(rng, under, coverage)
        drawn.extend([int((coverage > 0.25).sum())] * done)
        return done

    monkeypatch.setattr(shapes, "_paint", painted)
    monkeypatch.setattr(shapes, "_bounds", lambda mask: kept.append(int(mask.sum())) or (0, 0, 1, 1))
    for index in range(40):
        shapes.draw_objects(np.random.default_rng(index), np.zeros((3, 128, 128), np.float32))
    shares = np.array(kept) / np.array(drawn)
    assert shares.min() >= 0.7
    assert (shares < 0.95).mean() > 0.1


def test_shapes_by_name() -> None:
    assert available_splits("shapes") == default_splits("shapes:7") == ("train", "test")
    assert (len(load_dataset("shapes")), len(load_dataset("shapes", "test"))) == (1000, 200)
    train, test = (load_dataset("shapes:10", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (10, 2)
    assert train.class_names == test.class_names == load_dataset("shapes", class_names=train.class_names).class_names
    assert train[0].image_id != test[0].image_id
    assert not np.array_equal(train[0].image, test[0].image)
    for arguments in ({"split": "val"}, {"class_names": ["cat"]}):
        with pytest.raises(ValueError, match=r"split|class_names"):
            load_dataset("shapes", **arguments)
    for arguments in ({"count": 0}, {"seed": -1}, {"image_size": 8}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            shapes_dataset(**arguments)
