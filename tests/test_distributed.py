"""Two processes train together, on this machine by gloo: as one would, and never without one another."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import socket
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

pytest.importorskip("lightning")

import torch

from fastssd.data import shapes_dataset
from fastssd.detection import TINYSSD, Criterion
from fastssd.training import TrainConfig, load_checkpoint, report, train
from fastssd.training.module import DetectorModule

TINY = replace(TINYSSD, image_size=64, grid_sizes=((8, 8), (4, 4), (2, 2), (1, 1), (1, 1)))
PLAIN = TrainConfig(preset=TINY, epochs=2, batch_size=4, accelerator="cpu", num_workers=0, optimizer="sgd")
# Without the statistics of a batch, which each process has of its own.
STILL = replace(
    PLAIN,
    freeze=("backbone.0.*.1", "backbone.0.*.4", "backbone.[1-3].1", "backbone.[1-3].4"),
    multi_scale=(64, 80),
    criterion=Criterion(class_weights=(3.0, 1.0, 1.0, 0.5, 1.0, 2.0)),
)

# Ranks are forked from a process that has imported this module and done nothing else.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__])
HANGS = 600  # seconds, after which a process hangs: torch's own limit is half an hour


class _Failure(Exception):
    pass


def _run(config, folder, stop_at=None, fail_at=None, failing=(), **options):
    """A run; at a step of the second process that one gets a signal, or those that are `failing` fail."""
    torch.set_num_threads(1)
    report.draw_curves = report.draw_predictions = lambda *args: None
    record, steps = _record, iter(range(1, 1000))

    def stopping(module, *args):
        step = next(steps)
        if module.global_rank == 1 and step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if module.global_rank in failing and step == fail_at:
            raise _Failure
        record(module, *args)

    DetectorModule._record = stopping
    data = shapes_dataset(21, seed=0, image_size=64), shapes_dataset(3, seed=1, image_size=64)
    train(config, *data, folder, progress=False, report_line=lambda line: None, **options)


_record = DetectorModule._record


def _rank(rank, port, jobs):
    place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in a process that was started by a command
    for config, folder, options in jobs:
        try:
            _run(replace(config, devices=2, batch_size=config.batch_size // 2), folder, **options)
        except _Failure:
            if options["failing"] == (1,):
                time.sleep(3600)  # the test will not wait for its end


@contextmanager
def _two_ranks(*jobs):
    """Two processes that do these runs one after the other, each with half of the batch."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = [context.Process(target=_rank, args=(rank, port, jobs)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of what one process and what two have done."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = [
        (STILL, folder / "two still", {}),
        (PLAIN, folder / "two plain", {}),
        (PLAIN, folder / "two stopped", {"stop_at": 7}),
        (PLAIN, None, {"resume": folder / "two stopped"}),
    ]
    with _two_ranks(*jobs) as ranks:
        alone = context.Process(target=_all, args=([(STILL, folder / "one still"), (PLAIN, folder / "one plain")],))
        alone.start()
        for process in (*ranks, alone):
            process.join(HANGS)
        assert [process.exitcode for process in (*ranks, alone)] == [0, 0, 0]
    return folder


def _all(jobs):
    for job in jobs:
        _run(*job)


def _curve(folder, name):
    with open(folder / "logs" / "version_0" / "metrics.csv") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_two_processes_learn_what_one_does_with_the_joined_batch(runs):
    for name in ("loss", "loss_class", "loss_box"):
        one, two = _curve(runs / "one still", name), _curve(runs / "two still", name)
        assert len(one) == 10
        assert two == pytest.approx(one, rel=1e-5)
    one, two = (load_checkpoint(runs / folder / "checkpoints" / "last.ckpt") for folder in ("one still", "two still"))
    torch.testing.assert_close(two[0].state_dict(), one[0].state_dict(), rtol=1e-4, atol=1e-5)
    assert [row["loss"] for row in two[1].history] == pytest.approx([row["loss"] for row in one[1].history], rel=1e-5)


def test_statistics_of_half_a_batch_are_a_little_different(runs):
    one, two = _curve(runs / "one plain", "loss"), _curve(runs / "two plain", "loss")
    assert two == pytest.approx(one, rel=0.05)  # 1 % where it was measured
    assert two[-1] < two[0]


def test_a_signal_to_one_process_stops_both_and_their_history_goes_on_exactly(runs):
    whole, resumed = (
        load_checkpoint(runs / name / "checkpoints" / "last.ckpt") for name in ("two plain", "two stopped")
    )
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, resumed[0].state_dict()[name]), name
    for name in ("epoch", "loss", "loss_class", "loss_box"):
        assert [row[name] for row in resumed[1].history] == [row[name] for row in whole[1].history]
    assert (runs / "two stopped" / "logs" / "version_1").exists()


@pytest.mark.parametrize("lost", [0, 1])
def test_when_one_process_is_killed_the_other_ends(tmp_path, lost):
    config = replace(PLAIN, epochs=1000, num_workers=1, cache=False)  # a worker is a copy that holds all connections
    with _two_ranks((config, tmp_path / "run", {})) as ranks:
        last, limit = tmp_path / "run" / "checkpoints" / "last.ckpt", time.monotonic() + HANGS
        while not last.exists() and time.monotonic() < limit:
            time.sleep(0.05)
        ranks[lost].kill()
        ranks[1 - lost].join(HANGS)
        assert ranks[1 - lost].exitcode == 1
        load_checkpoint(last)


def test_a_process_that_fails_and_lives_on_ends_the_other_unless_that_failed_too(tmp_path):
    both, one = ((PLAIN, tmp_path / f"{ranks}", {"fail_at": 7, "failing": ranks}) for ranks in ((0, 1), (1,)))
    with _two_ranks(both, one) as ranks:
        ranks[0].join(HANGS)
        assert ranks[0].exitcode == 1
        assert ranks[1].is_alive()
    load_checkpoint(tmp_path / "(1,)" / "checkpoints" / "last.ckpt")
