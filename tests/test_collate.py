"""TargetCollate: the targets of assign_targets, in any process, and errors that name the sample."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch.utils.data import DataLoader, Dataset

import fastssd
from fastssd import ops
from fastssd.data import Sample
from fastssd.detection import TINYSSD, Criterion, TargetBatch

ANCHORS = TINYSSD.anchors()
SIZE = 16


class Images(Dataset):
    """Random images with boxes as fractions, some without boxes, in torchvision's layout."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        count = index % 4
        corner = torch.rand(count, 2, generator=generator) * 0.6
        boxes = torch.cat([corner, corner + 0.05 + torch.rand(count, 2, generator=generator) * 0.3], 1)
        labels = torch.randint(1, 4, (count,), generator=generator)
        return torch.rand(3, SIZE, SIZE, generator=generator), {"boxes": boxes, "labels": labels, "image_id": index}


class Broken(Images):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        if index == 7:
            target["boxes"][2, 2] = target["boxes"][2, 0]
        return image, target


def same(first: TargetBatch, second: TargetBatch) -> bool:
    tensors = zip((first.images, *first.targets), (second.images, *second.targets), strict=True)
    return first.image_ids == second.image_ids and all(torch.equal(a, b) for a, b in tensors)


def batches(dataset, **options) -> list[TargetBatch]:
    return list(DataLoader(dataset, 4, collate_fn=fastssd.TargetCollate(ANCHORS, num_classes=3), **options))


@pytest.fixture(scope="module")
def single_process() -> list[TargetBatch]:
    return batches(Images())


def test_targets_are_those_of_assign_targets(single_process):
    samples = [Images()[i] for i in range(11)]
    assert [i for batch in single_process for i in batch.image_ids] == list(range(11))
    boxes, labels = [t["boxes"] for _, t in samples], [t["labels"] for _, t in samples]
    ref = ops.assign_targets(torch.from_numpy(ANCHORS), boxes, labels)
    for part, expected in zip(zip(*(batch.targets for batch in single_process), strict=True), ref, strict=True):
        assert torch.equal(torch.cat(part), expected)
    images = torch.cat([batch.images for batch in single_process])
    assert torch.equal(images, torch.stack([image for image, _ in samples]))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_the_same(single_process, context):
    comp = batches(Images(), num_workers=2, multiprocessing_context=context)
    assert all(map(same, comp, single_process))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_named(workers):
    with pytest.raises(ValueError, match=r"\(7\)(.|\n)*box 2") as error:
        batches(Broken(), num_workers=workers)
    assert "image 3 of the batch" in str(error.value)


def test_a_pickled_batch_is_small_and_complete():
    collate = fastssd.TargetCollate(ANCHORS, background_threshold=0.4)
    batch = collate([Images()[i] for i in range(4)])
    assert (batch.targets.labels < 0).any()  # there are ignored anchors
    sent = pickle.dumps(batch)
    assert same(pickle.loads(sent), batch)
    assert len(sent) < 0.2 * sum(part.nbytes for part in batch.targets)


def test_layouts_of_a_sample():
    image, target = Images()[3]
    boxes, labels = target["boxes"], target["labels"]
    not_difficult = np.zeros(3, bool)
    array, pixels = np.zeros((SIZE, 2 * SIZE, 3), np.uint8), boxes * torch.tensor([2, 1, 2, 1]) * SIZE
    collate = fastssd.TargetCollate(torch.from_numpy(ANCHORS))
    ref = collate([(image, target)]).targets
    for sample in (
        (image, boxes, labels),
        [image, boxes.tolist(), labels.tolist()],
        {"image": image, **target},
        SimpleNamespace(image=image, boxes=boxes, labels=labels),
        Sample(array[:, :SIZE], boxes.numpy(), labels.numpy(), "a", not_difficult),
    ):
        batch = collate([sample])
        assert all(map(torch.equal, batch.targets, ref))
    assert batch.image_ids == ["a"]
    assert batch.images.shape == (1, SIZE, SIZE, 3)

    half_difficult = Sample(array, np.concatenate([boxes, boxes]), np.tile(labels, 2), "b", np.repeat([False, True], 3))
    assert all(map(torch.equal, collate([half_difficult]).targets, ref))
    in_pixels = fastssd.TargetCollate(ANCHORS, boxes_in_pixels=True)
    for wide_image in (array, torch.zeros(3, SIZE, 2 * SIZE)):
        targets = in_pixels([(wide_image, pixels, labels)]).targets
        assert torch.equal(targets.labels, ref.labels)
        torch.testing.assert_close(targets.deltas, ref.deltas)


IMAGE, BOX = torch.zeros(3, SIZE, SIZE), [[0.1, 0.1, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([(IMAGE, BOX, [1]), (IMAGE, [*BOX, [0, 0, np.nan, 1]], [1, 1])], ValueError, "image 1 .*box 1"),
        ([(IMAGE, BOX, [0])], ValueError, "box 0.*label 0"),
        ([(IMAGE, BOX, [4])], ValueError, "box 0.*label 4"),
        ([(IMAGE, BOX, [1, 2])], ValueError, "image 0 .*labels"),
        ([(IMAGE, BOX, [1.0])], TypeError, "image 0 .*labels"),
        ([(IMAGE, [[0, 0, 1]], [1])], ValueError, r"boxes.*\[G, 4\]"),
        ([(IMAGE, [], []), (IMAGE[:, 1:], [], [])], ValueError, "image 1 .*image"),
        ([(IMAGE, [], []), (IMAGE.byte(), [], [])], ValueError, "image 1 .*image"),
        ([("a.jpg", [], [])], TypeError, "image 0 .*image"),
        ([(IMAGE, {"boxes": BOX})], ValueError, "labels"),
        ([{"boxes": BOX, "labels": [1]}], ValueError, "image"),
        ([IMAGE], TypeError, "image 0"),
        ([], ValueError, "samples"),
    ],
)
def test_errors(samples, error, message):
    with pytest.raises(error, match=message):
        fastssd.TargetCollate(ANCHORS, num_classes=3)(samples)


@pytest.mark.parametrize(
    "arguments",
    [
        {"anchors": np.zeros((3, 4), np.float32)},
        {"iou_threshold": 1.5},
        {"background_threshold": 0.6},
        {"force_match": "all"},
        {"variances": (0.1, 0)},
        {"num_classes": 0},
    ],
)
def test_bad_arguments_raise_at_once(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=name):
        fastssd.TargetCollate(**{"anchors": ANCHORS} | arguments)


def test_the_collate_of_a_criterion_has_its_options_and_can_be_pickled():
    criterion = Criterion(iou_threshold=0.6, background_threshold=0.4, force_match="low_quality")
    image, target = Images()[3]
    collate = pickle.loads(pickle.dumps(criterion.collate(ANCHORS, (0.2, 0.3))))
    batch = collate([(image, target)]).to("cpu")
    ref = criterion.match_targets(torch.from_numpy(ANCHORS), [target["boxes"]], [target["labels"]], (0.2, 0.3))
    assert all(map(torch.equal, batch.targets, ref))
    logits, deltas = torch.zeros(1, len(ANCHORS), 4), torch.zeros(1, len(ANCHORS), 4)
    assert criterion(logits, deltas, batch.targets).total == criterion(logits, deltas, ref).total
