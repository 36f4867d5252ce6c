"""Two processes train together, on this machine by gloo: as one would, and never without one another."""

from __future__ import annotations

import contextlib
import csv
import multiprocessing
import os
import queue
import signal
import socket
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("lightning")

import torch

from fastssd.data import shapes_dataset
from fastssd.detection import TINYSSD, Criterion
from fastssd.training import TrainConfig, load_checkpoint, report, together, train
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


def _rank(rank, port, machines, jobs):
    place = {"LOCAL_RANK": rank % (2 // machines), "NODE_RANK": rank * (machines - 1)}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in a process that was started by a command
    for config, folder, options in jobs:
        try:
            half = replace(config, devices=2 // machines, num_nodes=machines, batch_size=config.batch_size // 2)
            _run(half, folder, **options)
        except _Failure:
            if options["failing"] == (1,):
                time.sleep(3600)  # the test will not wait for its end


@contextmanager
def _two_ranks(*jobs, machines=1):
    """Two processes, as if of so many machines, that do these runs one after the other, each with half of the batch."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = [context.Process(target=_rank, args=(rank, port, machines, jobs)) for rank in (0, 1)]
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


@pytest.mark.parametrize(("lost", "machines"), [(0, 1), (1, 1), (0, 2)])
def test_when_one_process_is_killed_the_other_ends(tmp_path, monkeypatch, lost, machines):
    (tmp_path / "key").write_text("k" * 32)
    monkeypatch.setenv("FASTSSD_KEY_FILE", str(tmp_path / "key"))
    config = replace(PLAIN, epochs=1000, num_workers=1, cache=False)  # a worker is a copy that holds all connections
    with _two_ranks((config, tmp_path / "run", {}), machines=machines) as ranks:
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


# --- who may connect to the first process ----------------------------------------------------------------------------


@pytest.fixture
def ranks(monkeypatch):
    """A function that makes two callbacks meet, as of two processes; and the list of those that ended their process."""
    made, ended = [], queue.Queue()
    monkeypatch.setattr(together.EndTogether, "_end", lambda callback: ended.put(callback))

    def meet(between=lambda port: None, num_nodes=1, keys=(b"", b"")):
        said = [Future() for _ in range(3)]  # what is broadcast, one after the other
        monkeypatch.setattr(together, "_key_of_file", lambda: keys[int(threading.current_thread().name)])

        def setup(rank, callback):
            turn = iter(said)

            def broadcast(value, source=0):
                future = next(turn)
                if rank == source:
                    future.set_result(value)
                value = future.result(HANGS)
                if rank == 1 and type(value) is int:
                    between(value)
                return value

            strategy = SimpleNamespace(
                broadcast=broadcast, cluster_environment=SimpleNamespace(main_address="localhost")
            )
            trainer = SimpleNamespace(
                world_size=2, num_nodes=num_nodes, global_rank=rank, is_global_zero=rank == 0, strategy=strategy
            )
            callback.setup(trainer, None, "fit")

        callbacks = together.EndTogether(), together.EndTogether()
        made.extend(callbacks)
        threads = [
            threading.Thread(target=setup, args=(rank, callback), name=str(rank), daemon=True)
            for rank, callback in enumerate(callbacks)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANGS)
        return callbacks

    yield meet, ended
    for callback in made:
        callback.leave()


def _is_sent_away(stranger):
    try:
        while stranger.recv(1000):
            pass
    except ConnectionError:
        pass
    return True


def test_strangers_are_sent_away_and_disturb_nobody(ranks):
    meet, ended = ranks
    silent, place = [], []

    def come(port):
        """Before the second process does."""
        place.append(("127.0.0.1", port))
        for words in ([], [b"x" * 64], [b"x" * 5000], [b"x", b"y" * 63], [b"."]):
            stranger = socket.create_connection(("127.0.0.1", port), timeout=HANGS)
            for word in words:
                with contextlib.suppress(OSError):  # it may be sent away already
                    stranger.sendall(word)
            with contextlib.suppress(OSError):
                stranger.shutdown(socket.SHUT_WR)
            assert _is_sent_away(stranger)
        silent.extend(socket.create_connection(("127.0.0.1", port), timeout=HANGS) for _ in range(100))

    first, second = meet(come)
    assert len(silent) == 100
    assert all(map(_is_sent_away, silent))
    assert len(first._connections) == len(second._connections) == 1
    with pytest.raises(ConnectionError):
        socket.create_connection(place[0], timeout=HANGS)
    assert ended.empty()
    second.on_exception(None, None, ValueError())
    assert ended.get(timeout=HANGS) in (first, second)


@pytest.mark.parametrize(
    ("keys", "found"),
    [((b"k" * 32, b"k" * 32), 1), ((b"k" * 32, b"other" * 8), 0), ((b"k" * 32, b""), 0), ((b"", b"k" * 32), 0)],
    ids=["one key", "two keys", "no key in the second", "no key in the first"],
)
def test_processes_of_several_machines_find_each_other_by_the_key_alone(ranks, keys, found):
    meet, ended = ranks
    first, second = meet(num_nodes=2, keys=keys)
    assert len(first._connections) == len(second._connections) == found
    assert ended.empty()


def test_a_recorded_answer_does_not_pass_for_the_first_process():
    key, number, earlier = b"k" * 32, b"n" * together.SIZE, b"e" * together.SIZE
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pretend():
            connection, _ = listener.accept()
            with connection:
                connection.sendall(number)
                connection.recv(2 * together.SIZE, socket.MSG_WAITALL)
                connection.sendall(together._proof(key, b"welcome", number + earlier))

        thread = threading.Thread(target=pretend, daemon=True)
        thread.start()
        with pytest.raises(ConnectionRefusedError):
            together._admitted(listener.getsockname(), key)
        thread.join(HANGS)


def test_without_a_key_nothing_listens_for_other_machines(ranks):
    meet, _ = ranks
    before = set(together._open)
    meet(num_nodes=2)
    assert together._open == before


def test_the_key_is_the_files_content(tmp_path, monkeypatch):
    for content, key in (("k" * 32 + "\n", b"k" * 32), ("short", b""), ("", b""), (None, b"")):
        path = tmp_path / f"{content}.key"
        if content is not None:
            path.write_text(content)
        monkeypatch.setenv("FASTSSD_KEY_FILE", str(path))
        assert together._key_of_file() == key
    monkeypatch.delenv("FASTSSD_KEY_FILE")
    assert together._key_of_file() == b""
