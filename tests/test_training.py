"""Training: what is learnt, what is reported, and what is on the disk whatever happens."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
import pickle
import signal
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("lightning")

import torch
from torch.utils.data import BatchSampler

from fastssd.data import Sample, shapes_dataset
from fastssd.detection import TINYSSD, Criterion, TinySSD, detect_batch
from fastssd.detection.preprocess import to_input
from fastssd.evaluation import GroundTruth, coco_metrics
from fastssd.training import (
    Augment,
    CheckpointError,
    NonFiniteLossError,
    TrainConfig,
    evaluate,
    load_checkpoint,
    report,
    train,
)
from fastssd.training.checkpoint import read_checkpoint, save_checkpoint
from fastssd.training.datasets import Cached, EpochSampler, train_loader
from fastssd.training.module import DetectorModule

TINY = replace(TINYSSD, image_size=64, grid_sizes=((8, 8), (4, 4), (2, 2), (1, 1), (1, 1)))
COLLATES = {64: Criterion().collate(TINY.anchors())}
CONFIG = TrainConfig(preset=TINY, epochs=3, batch_size=2, accelerator="cpu", num_workers=0)

pytestmark = pytest.mark.usefixtures("one_thread_of_torch")


@pytest.fixture
def undrawn(monkeypatch):
    """Runs without their pictures, which take longer to draw than such runs do to learn."""
    monkeypatch.setattr(report, "draw_curves", lambda *args: None)
    monkeypatch.setattr(report, "draw_predictions", lambda *args: None)


@pytest.fixture(scope="module")
def data():
    return shapes_dataset(7, seed=0, image_size=64), shapes_dataset(4, seed=1, image_size=64)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run from start to end, with what it said."""
    said = []
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return train(CONFIG, *data, folder, progress=False, report_line=said.append), said


def _weights(path):
    return load_checkpoint(path)[0].state_dict()


# --- learning ----------------------------------------------------------------------------------------------------


def test_one_batch_can_be_learnt_by_heart(data):
    torch.manual_seed(0)
    still = Augment(flip=0, photometric=0, zoom=0, shift=0)
    criterion = Criterion()
    loader = train_loader(Cached(data[0]), still, COLLATES, batch_size=7, seed=0, num_workers=0)
    (batch,) = loader
    model = TinySSD(len(data[0].class_names), TINY)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    images = to_input(batch.images)
    for _ in range(80):
        optimizer.zero_grad()
        criterion(*model(images), batch.targets).total.backward()
        optimizer.step()
    found = detect_batch(model.eval(), images, [(1, 1)] * 7)
    learnt = [loader.dataset[key] for key in loader.sampler]
    truths = [GroundTruth(sample.boxes, sample.labels, sample.difficult) for sample in learnt]
    assert coco_metrics(found, truths, data[0].class_names)["AP50"] > 0.9


def test_batches_depend_on_seed_and_epoch_alone(data):
    collates = {size: Criterion().collate(TINY.anchors()) for size in (64, 96)}

    def batches(num_workers, epoch, seed=0):
        augment = Augment(crop=0.7, zoom_out=0.5, mosaic=0.4)
        options = {"batch_size": 3, "seed": seed, "num_workers": num_workers}
        loader = train_loader(Cached(data[0]), augment, collates, **options)
        loader.sampler.set_epoch(epoch)
        return [(batch.image_ids, batch.images, *batch.targets) for batch in loader]

    def same(first, second):
        return all(a[0] == b[0] and all(map(torch.equal, a[1:], b[1:])) for a, b in zip(first, second, strict=True))

    assert same(batches(0, 4), batches(2, 4))
    assert not same(batches(0, 4), batches(0, 5))
    assert not same(batches(0, 4), batches(0, 4, seed=1))


def test_several_sizes_have_their_own_anchors(data):
    model = TinySSD(len(data[0].class_names), TINY)
    presets = {size: model.allow_size(size) for size in (64, 80, 96)}
    assert presets[64] == TINY
    collates = {size: Criterion().collate(preset.anchors()) for size, preset in presets.items()}
    loader = train_loader(Cached(data[0]), Augment(), collates, batch_size=1, seed=0)
    seen = set()
    for item, batch in zip(loader.sampler, loader, strict=True):
        assert batch.images.shape == (1, item.size, item.size, 3)
        sample = loader.dataset[item]
        anchors = torch.from_numpy(presets[item.size].anchors())
        ref = Criterion().match_targets(anchors, *([torch.from_numpy(part)] for part in (sample.boxes, sample.labels)))
        assert all(map(torch.equal, batch.targets, ref))
        logits, _ = model(to_input(batch.images))
        assert logits.shape[1] == len(anchors)
        seen.add(item.size)
    assert len(seen) > 1
    with pytest.raises(ValueError, match="32 x 32"):
        model.allow_size(32)
    with pytest.raises(ValueError, match="72 x 72"):
        model(torch.rand(1, 3, 72, 72))


@pytest.mark.parametrize("length", [8, 13, 16, 23])
def test_processes_share_the_batches_of_one_with_larger_batches(length):
    def batches(batch_size, **place):
        sampler = EpochSampler(length, batch_size, (64, 96, 128), 3, **place)
        sampler.set_epoch(5)
        return list(BatchSampler(sampler, batch_size, drop_last=True))

    one = batches(8)
    first, second = (batches(4, rank=rank, world_size=2) for rank in (0, 1))
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(batch) for batch in one]


def test_processes_of_a_distributed_run_share_few_pictures():
    shares = [[item.sample for item in EpochSampler(5, 4, (64,), 0, rank, 2)] for rank in (0, 1)]
    assert [len(share) for share in shares] == [3, 3]
    assert set(shares[0]) | set(shares[1]) == set(range(5))


def test_difficult_boxes_are_not_learnt(data):
    class Hard:
        class_names, problems = ("thing",), ()

        def __len__(self):
            return 1

        def __getitem__(self, index):
            boxes = np.array([[0, 0, 30, 30], [5, 5, 20, 20]], np.float32)
            return Sample(np.zeros((64, 64, 3), np.uint8), boxes, np.array([1, 1]), "a", np.array([False, True]))

    still = Augment(flip=0, zoom=0, shift=0)
    loader = train_loader(Cached(Hard()), still, COLLATES, batch_size=1, seed=0)
    np.testing.assert_allclose(loader.dataset[0, 0, 64].boxes, np.array([[0, 0, 30, 30]]) / 64)


# --- the run -----------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_it_promises(run):
    result, said = run
    names = {path.relative_to(result.run_dir).as_posix() for path in result.run_dir.rglob("*")}
    assert {"config.json", "metrics.json", "metrics.csv", "curves.png", "predictions.png"} <= names
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "logs/version_0/metrics.csv"} <= names
    metrics = json.loads((result.run_dir / "metrics.json").read_text())
    assert metrics["best"] == result.best
    assert sum(metrics["timing"]["share"].values()) == pytest.approx(1)
    with open(result.run_dir / "metrics.csv") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [1, 2, 3]
    assert len(said) == CONFIG.epochs
    assert result.best["AP50"] == max(row["AP50"] for row in result.history)
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_evaluate_gives_what_the_run_reported(run, data):
    result, _ = run
    reported = {name: value for name, value in result.best.items() if name != "epoch"}
    assert evaluate(result.best_checkpoint, data[1]) == reported
    assert evaluate(result.run_dir, data[1]) == reported
    model, info = load_checkpoint(result.best_checkpoint)
    assert info.class_names == data[0].class_names
    assert info.preset == model.preset == TINY
    assert TrainConfig.from_dict(info.config) == CONFIG


class _Signalling:
    """A data set in whose `after`-th picture this process gets a signal."""

    def __init__(self, data, after, signum):
        self.data, self.after, self.signum = data, after, signum
        self.class_names, self.problems = data.class_names, ()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.after -= 1
        if self.after == 0:
            os.kill(os.getpid(), self.signum)
        return self.data[index]


@pytest.mark.parametrize(
    ("signum", "after", "num_workers", "place"),
    [(signal.SIGTERM, 3, 0, (0, 2)), (signal.SIGINT, 7, 2, (1, 1)), (signal.SIGTERM, 12, 0, (2, 0))],
)
def test_a_stopped_run_resumes_to_the_same_weights(undrawn, run, data, tmp_path, signum, after, num_workers, place):
    config = replace(CONFIG, cache=False)
    stopping = _Signalling(data[0], after, signum)
    before = signal.getsignal(signum)
    stopped = train(config, stopping, data[1], tmp_path / "run", progress=False, report_line=lambda line: None)
    assert signal.getsignal(signum) == before
    assert stopped.interrupted == signal.Signals(signum).name
    _, info = load_checkpoint(stopped.last_checkpoint)
    assert (info.epoch, info.batches) == place

    config = replace(config, num_workers=num_workers)
    resumed = train(config, *data, resume=tmp_path / "run", progress=False, report_line=lambda line: None)
    whole, _ = run
    assert resumed.run_dir == tmp_path / "run"
    assert resumed.best == whole.best
    for name in ("epoch", "loss", "AP50"):
        assert [row[name] for row in resumed.history] == pytest.approx([row[name] for row in whole.history])
    for name, value in _weights(whole.last_checkpoint).items():
        assert torch.equal(value, _weights(resumed.last_checkpoint)[name]), name


def test_an_average_of_weights_and_added_gradients_resume_too(undrawn, data, tmp_path):
    config = replace(CONFIG, cache=False, batch_size=1, accumulate=3, ema=0.9, schedule="step", epochs=2)
    options = {"progress": False, "report_line": lambda line: None}
    whole = train(config, *data, tmp_path / "whole", **options)
    # The signal comes with the fifth picture of seven; a step of the optimizer ends with the sixth.
    stopped = train(config, _Signalling(data[0], 5, signal.SIGTERM), data[1], tmp_path / "run", **options)
    _, info = load_checkpoint(stopped.last_checkpoint)
    assert (info.epoch, info.batches) == (0, 6)
    resumed = train(config, *data, resume=tmp_path / "run", **options)
    average, other = _weights(whole.last_checkpoint), _weights(resumed.last_checkpoint)
    assert all(torch.equal(value, other[name]) for name, value in average.items())
    learnt = read_checkpoint(whole.last_checkpoint)["current_model_state"]
    assert any(not torch.equal(value, learnt[f"model.{name}"]) for name, value in average.items())


@pytest.mark.parametrize(
    ("choices", "stops"),
    [({"multi_scale": (64, 80), "optimizer": "sgd"}, 20), ({"cache": False, "ema": 0.9, "accumulate": 2}, 10)],
    ids=["several sizes", "average and accumulation"],
)
def test_a_run_may_be_stopped_after_each_of_its_steps(undrawn, tmp_path, monkeypatch, choices, stops):
    """Two epochs of ten batches; each step is taken by another run, now with workers, now without."""
    data = shapes_dataset(10, seed=0, image_size=64), shapes_dataset(1, seed=1, image_size=64)
    config = replace(CONFIG, batch_size=1, epochs=2, eval_every=2, **choices)
    options = {"progress": False, "report_line": lambda line: None}

    def state(result):
        checkpoint = read_checkpoint(result.last_checkpoint)
        weights = checkpoint["state_dict"] | checkpoint.get("current_model_state", {})
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for _, value in sorted(weights.items())))
        losses = [(row["epoch"], row["loss"], row["loss_class"], row["loss_box"]) for row in result.history]
        return digest.hexdigest(), losses, result.best

    whole = train(config, *data, tmp_path / "whole", **options)
    record = DetectorModule._record

    def stopping(module, losses, batch, batch_idx):
        if batch_idx % config.accumulate == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        record(module, losses, batch, batch_idx)

    monkeypatch.setattr(DetectorModule, "_record", stopping)
    folder = {"run_dir": tmp_path / "run"}
    for stop in range(stops):
        stopped = train(replace(config, num_workers=2 if stop % 4 == 1 else 0), *data, **folder, **options)
        assert stopped.interrupted == "SIGTERM"
        folder = {"resume": tmp_path / "run"}
    assert train(config, *data, **folder, **options).interrupted is None  # there is nothing left to do
    assert state(stopped) == state(whole)


def test_the_learning_rate_falls_where_it_is_said():
    steps = TrainConfig(schedule="step", warmup=0.1, milestones=(0.5, 0.75))
    assert [steps.lr_factor(step, 100) for step in (0, 9, 10, 49, 50, 74, 75, 99)] == pytest.approx(
        [1 / 11, 10 / 11, 1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    with pytest.raises(ValueError, match="milestones"):
        TrainConfig(milestones=(0.8, 0.5))


def test_a_run_that_is_resumed_keeps_its_choices(run, data):
    result, _ = run
    with pytest.raises(ValueError, match="lr"):
        train(replace(CONFIG, lr=1.0), *data, resume=result.run_dir)
    with pytest.raises(ValueError, match="holds a run"):
        train(CONFIG, *data, result.run_dir)
    with pytest.raises(ValueError, match="class_weights") as caught:
        train(replace(CONFIG, criterion=Criterion(class_weights=(2.0,) * 6)), *data, resume=result.run_dir)
    assert "box_loss" not in str(caught.value)  # which is as it was
    with pytest.raises(FileNotFoundError):
        train(None, *data, resume=result.run_dir / "elsewhere")


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    config = replace(CONFIG, lr=1e30, gradient_clip=0.0, warmup=0.0)
    with pytest.raises(NonFiniteLossError) as caught:
        train(config, *data, tmp_path / "run", progress=False, report_line=lambda line: None)
    message = str(caught.value)
    assert "epoch 1, batch 2" in message
    assert sum(data[0][i].image_id in message for i in range(len(data[0]))) == CONFIG.batch_size


def test_a_run_ends_early_without_progress(data, tmp_path):
    class Bare(_Signalling):
        def __getitem__(self, index):
            sample = self.data[index]
            return sample._replace(boxes=sample.boxes[:0], labels=sample.labels[:0], difficult=sample.difficult[:0])

    config = replace(CONFIG, epochs=9, early_stop=1)
    nothing_to_find = Bare(data[1], 0, 0)
    result = train(config, data[0], nothing_to_find, tmp_path / "run", progress=False, report_line=lambda line: None)
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert result.best == {"epoch": 1, **evaluate(result.run_dir, nothing_to_find)}


def test_other_choices_give_what_was_reported_too(data, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else real(name))
    config = replace(
        CONFIG, criterion=Criterion(class_loss="focal"), precision="bf16-mixed", optimizer="sgd", eval_every=2
    )
    said = []
    result = train(config, *data, tmp_path / "run", progress=False, report_line=said.append)
    assert any("fastssd[train]" in line for line in said)  # no TensorBoard, no logs of it
    assert [row["AP50"] is None for row in result.history] == [True, False, True]
    assert result.best["epoch"] == 2
    assert {"epoch": 2, **evaluate(result.best_checkpoint, data[1])} == result.best


@pytest.mark.parametrize(
    "wrong", [{"optimizer": "lamb"}, {"epochs": 0}, {"warmup": 1.0}, {"eval_every": 9, "epochs": 3}, {"colour": 1}]
)
def test_a_wrong_choice_is_an_error(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainConfig.from_dict(wrong)


def test_options_of_the_command_reach_the_configuration():
    typer = pytest.importorskip("typer")
    from fastssd.cli.train import changed, class_weights_in

    names = ("RBC", "WBC", "a = b")
    assert class_weights_in("WBC=0.5, a = b=3", names) == (1.0, 0.5, 3.0)
    config = changed(CONFIG, {"multi_scale": "64,96", "class_weights": (1.0, 0.5, 3.0)})
    assert config.multi_scale == (64, 96)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for wrong in ("Platelets=3", "WBC", "WBC=much", "", "WBC=1,"):
        with pytest.raises(typer.BadParameter):
            class_weights_in(wrong, names)
    for wrong in ({"multi_scale": "64x96"}, {"multi_scale": "64,64"}, {"multi_scale": "0"}, {"class_weights": (-1,)}):
        with pytest.raises(typer.BadParameter):
            changed(CONFIG, wrong)


def test_choices_that_the_data_or_the_network_cannot_have_are_errors(data, tmp_path):
    for wrong, message in (
        ({"multi_scale": (32, 64)}, "32 x 32"),
        ({"criterion": Criterion(class_weights=(1,))}, "weig"),
        ({"strategy": "ddp_fork", "devices": 2}, "ddp_fork"),
    ):
        with pytest.raises(ValueError, match=message):
            train(replace(CONFIG, **wrong), *data, tmp_path / "run", progress=False, report_line=lambda line: None)
    assert not (tmp_path / "run").exists()


# --- checkpoints -------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_not_saved(run, tmp_path):
    checkpoint = read_checkpoint(run[0].last_checkpoint)
    save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    next(iter(checkpoint["state_dict"].values()))[0] = torch.inf
    with pytest.raises(CheckpointError, match="finite"):
        save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    load_checkpoint(tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


class _Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_and_not_executed(run, tmp_path, zipped):
    checkpoint = read_checkpoint(run[0].last_checkpoint) | {"extra": _Malicious(tmp_path / "executed")}
    path = tmp_path / "evil.ckpt"
    if zipped:
        torch.save(checkpoint, path)
    else:
        path.write_bytes(pickle.dumps(checkpoint, protocol=2))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_damaged_and_foreign_files_are_told_apart_from_checkpoints(run, tmp_path):
    whole = run[0].last_checkpoint.read_bytes()
    path = tmp_path / "x.ckpt"
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.ckpt"):
            load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="fastssd"):
        load_checkpoint(path)
    checkpoint = read_checkpoint(run[0].last_checkpoint)
    checkpoint["fastssd"]["class_names"] = ["one"]
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match="fit"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.ckpt")
