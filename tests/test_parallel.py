"""The thread pool: it changes no result, survives fork, signals and exit, and releases the GIL."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastssd._C", reason="this build has no compiled kernels")

from fastssd.backends import cpp, threads

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and POSIX signals")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.fixture(autouse=True)
def default_threads() -> Iterator[None]:
    threads.choose(4)
    yield
    threads.choose(None)


def boxes(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner, size = rng.random((*shape, 2)), rng.random((*shape, 2)) / 8 + 0.01
    return np.concatenate([corner, corner + size], -1).astype(np.float32)


def iou_work(seed: int = 0) -> np.ndarray:
    """IoUs that take about 2 ms: enough work for several threads."""
    out = np.empty((2, 1500, 1000), np.float32)
    cpp.box_iou(boxes(2, 1500, seed=seed), boxes(2, 1000, seed=seed + 1), out)
    return out


def results() -> list[np.ndarray]:
    """The results of operators that run on several threads, each with enough work for them."""
    rng = np.random.default_rng(5)
    anchors, gt = boxes(5000), boxes(240, seed=1)
    gt_idx, iou = np.empty((8, 5000), np.int64), np.empty((8, 5000), np.float32)
    cpp.match_anchors(anchors, gt, np.arange(0, 241, 30), 0.5, 0.4, 1, gt_idx, iou)
    mined = np.empty((64, 5000), bool)
    loss = np.round(rng.random((64, 5000)) * 50).astype(np.float32)
    cpp.mine_hard_negatives(loss, rng.random((64, 5000)) < 0.02, 3.0, 1, mined)
    deltas = rng.standard_normal((8, 5000, 4)).astype(np.float32)
    decoded = np.empty_like(deltas)
    cpp.decode_boxes(deltas, anchors, 0.1, 0.2, decoded)
    logits = rng.standard_normal((8, 5000, 6)).astype(np.float32) * 2
    found: list[Any] = [np.empty((8, 100, 4), np.float32), np.empty((8, 100), np.float32)]
    found += [np.empty((8, 100), np.int64), np.empty((8, 100), np.int64), np.empty(8, np.int64)]
    cpp.postprocess_detections(logits, deltas, anchors, 0.3, 0.45, 200, np.inf, np.inf, 1, 0.1, 0.2, *found)
    return [iou_work(), gt_idx, iou, mined, decoded, *found]


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    threads.choose(1)
    ref = results()
    for count in (2, 5):
        threads.choose(count)
        for r, c in zip(ref, results(), strict=True):
            assert np.array_equal(r, c)


def test_python_threads_share_the_pool() -> None:
    ref = iou_work()
    with ThreadPoolExecutor(8) as executor:
        for comp in executor.map(lambda _: iou_work(), range(32)):
            assert np.array_equal(ref, comp)


def test_kernels_release_the_gil() -> None:
    def ticks_during_one_call(n: int) -> int:
        """How often this thread runs while another is in a kernel: at most twice if the kernel holds the GIL."""
        started, done = threading.Event(), threading.Event()
        arrays = boxes(n), np.linspace(1, 2, n, dtype=np.float32)
        keep, scores = np.empty(n, np.int64), np.empty(n, np.float32)

        def long_kernel() -> None:
            started.set()
            cpp.soft_nms(*arrays, 0, 0.3, 0.5, 0.0, keep, scores)
            done.set()

        thread = threading.Thread(target=long_kernel)
        thread.start()
        started.wait()
        ticks = 0
        while not done.is_set():
            time.sleep(0.001)
            ticks += 1
        thread.join()
        return ticks

    assert any(ticks_during_one_call(n) > 10 for n in (4_000, 16_000, 64_000))  # fast machines need more work


@posix
def test_fork_while_a_kernel_runs_in_another_thread() -> None:
    ref = iou_work()
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            iou_work()

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                os._exit(0 if all(np.array_equal(ref, iou_work()) for _ in range(3)) else 1)
            assert exit_status(child) == 0
    finally:
        stop.set()
        thread.join()


def exit_status(child: int, seconds: float = 300) -> int:
    """The child's exit status; a child that hangs is killed and fails the test."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the forked child hangs")


@posix
def test_multiprocessing_with_fork() -> None:
    ref = iou_work()  # starts the workers of the parent
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for comp in pool.map_async(iou_work, [0] * 4).get(timeout=300):
            assert np.array_equal(ref, comp)


HEAD = """
import os, resource, signal, sys, threading, time
import numpy as np
from fastssd.backends import cpp, threads

signal.signal(signal.SIGINT, signal.default_int_handler)  # processes in the background start with SIGINT ignored
rng = np.random.default_rng(0)
def boxes(n):
    corner = rng.random((n, 2))
    return np.concatenate([corner, corner + 0.01], -1).astype(np.float32)

class SerialKernel:  # quadratic: takes minutes
    def __init__(self, scale):
        n = 400_000
        self.arrays, self.kept_scores = (boxes(n), rng.random(n, np.float32)), np.empty(n, np.float32)
        self.out = np.full(n, -1)
    def __call__(self):
        cpp.soft_nms(*self.arrays, 0, 0.3, 0.5, 0.0, self.out, self.kept_scores)

class ParallelKernel:  # one arctangent per row
    def __init__(self, scale):
        self.tall, self.one = np.tile(boxes(4000), (1000 * scale, 1))[None], boxes(1)[None]
        self.out = np.full((1, self.tall.shape[1], 1), -1, np.float32)
    def __call__(self):
        cpp.complete_box_iou(self.tall, self.one, self.out)

def when_running(kernel, action):  # calls action() in another thread, as soon as the kernel has written a result
    def watch():
        while kernel.out.flat[0] == -1:
            pass
        action()
    kernel.out.fill(-1)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread

def is_unfinished(kernel):
    return bool((kernel.out == -1).any())

threads.choose(3)
"""


class Script:
    """A Python process that runs `code` after HEAD. It and its children are killed at the end of the test."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HEAD + textwrap.dedent(code)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> subprocess.Popen[str]:
        return self.process

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    @property
    def words(self) -> list[str]:
        """The words that it has printed when it ends."""
        with self as process:
            output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return output.split()


# The kernel must still be running when the signal arrives. On a fast machine it is made larger until it is.
SCALES = "(1, 2, 4, 8, 16)"


@posix
@pytest.mark.parametrize("kernel", ["SerialKernel", "ParallelKernel"])
def test_ctrl_c_stops_a_running_kernel(kernel: str) -> None:
    script = Script(f"""
        for scale in {SCALES}:
            kernel = {kernel}(scale)
            try:
                watcher = when_running(kernel, lambda: os.kill(os.getpid(), signal.SIGINT))
                kernel()
                watcher.join()
                time.sleep(3600)
            except KeyboardInterrupt:
                if is_unfinished(kernel):
                    break
        print(is_unfinished(kernel))
        many, small = boxes(500)[None], np.full((1, 500, 500), np.nan, np.float32)
        cpp.box_iou(many, many, small)
        print(not np.isnan(small).any())
    """)
    assert script.words == ["True", "True"]


@posix
def test_a_signal_handler_may_call_kernels() -> None:
    script = Script(f"""
        many = boxes(900)[None]
        calls, inside = [], []
        def handler(*_):
            inside.append(is_unfinished(kernel))
            small = np.empty((1, 900, 900), np.float32)
            cpp.box_iou(many, many, small)
            calls.append(small)
        signal.signal(signal.SIGALRM, handler)
        for scale in {SCALES}:
            kernel = ParallelKernel(scale)
            watcher = when_running(kernel, lambda: os.kill(os.getpid(), signal.SIGALRM))
            kernel()
            watcher.join()
            if inside[-1:] == [True]:
                break
        interrupted = kernel.out.copy()
        kernel()
        print(inside[-1], np.array_equal(kernel.out, interrupted), all(np.array_equal(calls[0], c) for c in calls))
    """)
    assert script.words == ["True"] * 3


@posix
def test_a_signal_handler_that_forks_ends_the_kernel_in_the_child_only() -> None:
    script = Script(f"""
        children, inside = [], []
        def handler(*_):
            inside.append(is_unfinished(kernel))
            children.append(os.fork())
        signal.signal(signal.SIGALRM, handler)
        for scale in {SCALES}:
            kernel = ParallelKernel(scale)
            watcher = when_running(kernel, lambda: os.kill(os.getpid(), signal.SIGALRM))
            try:
                kernel()
            except RuntimeError:
                os._exit(7)
            if children[-1:] == [0]:
                os._exit(0)
            watcher.join()
            if inside[-1:] == [True]:
                break
        print(inside[-1], os.waitstatus_to_exitcode(os.waitpid(children[-1], 0)[1]), is_unfinished(kernel))
    """)
    assert script.words == ["True", "7", "False"]


@posix
@pytest.mark.parametrize("kernel", ["SerialKernel", "ParallelKernel"])
def test_exit_while_a_daemon_thread_is_in_a_kernel(kernel: str) -> None:
    script = Script(f"""
        kernel = {kernel}(1)
        def forever():
            while True:
                kernel()
        watcher = when_running(kernel, lambda: None)
        threading.Thread(target=forever, daemon=True).start()
        watcher.join()
    """)
    assert script.words == []


@linux
def test_without_memory_for_threads_the_caller_works_alone_and_without_memory_it_is_an_error() -> None:
    script = Script("""
        a = boxes(1000)[None]
        ref, comp = np.empty((1, 1000, 1000), np.float32), np.empty((1, 1000, 1000), np.float32)
        n = 4_000_000
        large, scores, keep = boxes(n), np.zeros(n, np.float32), np.empty(n, np.int64)
        threads.choose(1)
        cpp.box_iou(a, a, ref)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), resource.RLIM_INFINITY))
        threads.choose(3)
        cpp.box_iou(a, a, comp)
        print(np.array_equal(ref, comp))
        try:
            cpp.nms(large, scores, 0.5, keep)
        except MemoryError:
            print("MemoryError")
    """)
    assert script.words == ["True", "MemoryError"]


@linux
def test_workers_leave_signals_to_the_program() -> None:
    script = Script("""
        own = set(os.listdir("/proc/self/task"))
        ParallelKernel(1)()
        for worker in set(os.listdir("/proc/self/task")) - own:
            status = dict(line.split(":\\t", 1) for line in open(f"/proc/self/task/{worker}/status"))
            print(int(status["SigBlk"], 16) >> (signal.SIGINT - 1) & 1)
    """)
    assert script.words == ["1", "1"]
