"""Hostile calls, each in a forked child: ``python -m tests.sanitize.hostile [--only TEXT] [--list]``.

Every call must end in time with a right result or with an error that a caller expects (``PROPER``). What ends with a
signal, a report of a sanitizer, another error or a result that is not the reference's is printed with its name, and
the command fails. A name says all that is needed to make the call again: ``--only`` takes any part of it. The calls are
those of :mod:`tests.sanitize.hostile_calls`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

import fastssd
import tests.sanitize
from tests.operators import difference
from tests.sanitize.hostile_calls import SECONDS, Call, all_calls
from tests.sanitize.hostile_values import Unmade, torch

PROPER = (ValueError, TypeError, RuntimeError, MemoryError, NotImplementedError)
PER_CHILD = 300  # calls: a fork beside torch costs far more than a call
MEMORY = 6 << 30  # that a child may ask for beyond what it has


def has_memory(value: Any) -> bool:
    """Whether there are numbers to compare: not in fake tensors, nor in those of the meta device."""
    if isinstance(value, tuple):
        return all(has_memory(each) for each in value)
    return isinstance(value, np.ndarray) or (type(value) is torch.Tensor and value.device.type == "cpu")


def plain(value: Any) -> Any:
    """Tensors as arrays, for comparing."""
    if isinstance(value, tuple):
        return tuple(plain(each) for each in value)
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    return (value.float() if value.dtype is torch.bfloat16 else value).detach().numpy()


def outcome(call: Call) -> str:
    """ "" where all is well, else what is wrong. In the child."""

    def attempt() -> tuple[str, Any]:
        try:
            return "", call.run()
        except PROPER as error:
            return type(error).__name__, None
        except OverflowError:
            if not call.name.startswith("torch.ops."):  # there torch itself asks before we do
                raise
            return "OverflowError", None
        # anything else goes on

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            raised, found = attempt()
            if call.operator is None or tests.sanitize.LIBRARY:  # which looks for other things, and takes longer
                return ""
            with fastssd.use_backend("reference"):
                ref_raised, ref = attempt()
        except Unmade:
            return ""
        except BaseException as error:
            return f"{type(error).__module__}.{type(error).__qualname__}: {str(error)[:300]}"
        if raised or ref_raised:
            return (
                "" if raised == ref_raised else f"{raised or 'a result'}, and the reference: {ref_raised or 'a result'}"
            )
        if not (has_memory(found) and has_memory(ref)):
            return ""
        problem = difference(call.operator, plain(ref), plain(found))
        return f"differs from the reference: {problem}" if problem else ""


class Child:
    """A forked process that makes one call after the other and says how each ended."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls, self.done, self.said, self.heard = calls, 0, b"", time.monotonic()
        self.report = tempfile.TemporaryFile()  # noqa: SIM115  closed by end()
        self.pipe, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()  # so that what it starts can be ended with it
            os.close(self.pipe)
            for stream in (1, 2):
                os.dup2(self.report.fileno(), stream)
            for call in calls:
                os.write(theirs, json.dumps(outcome(call)).encode() + b"\n")
            os._exit(0)
        os.close(theirs)

    def listen(self) -> Iterator[tuple[Call, str]]:
        """The calls that have ended since, and what went wrong with them ("" if nothing)."""
        chunk = os.read(self.pipe, 1 << 20)
        self.heard = time.monotonic()
        *lines, self.said = (self.said + chunk).split(b"\n")
        for line in lines:
            self.done += 1
            yield self.calls[self.done - 1], json.loads(line)
        if not chunk:
            yield from self.end("")

    def end(self, why: str) -> Iterator[tuple[Call, str]]:
        """Closes everything; the call in which the process ended, or which `why` stopped, went wrong."""
        os.close(self.pipe)
        with contextlib.suppress(ProcessLookupError):
            if why or self.done < len(self.calls):
                os.killpg(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.report.seek(0)
        report = self.report.read().decode(errors="replace")[:3000]
        self.report.close()
        if self.done < len(self.calls):
            died = f"ends with {signal.Signals(-status).name}" if status < 0 else f"ends with status {status}"
            yield self.calls[self.done], f"{why or died}\n{report}"
            self.done += 1


def limit_memory() -> None:
    """Of children: an output that is too large is to be an error, not the end of the machine."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def run(calls: list[Call], at_once: int) -> dict[str, str]:
    """The calls that went wrong, and how.

    What went wrong is tried once more in a process of its own: a call may only have found what one before it broke.
    """
    wrong = _run(calls, at_once, PER_CHILD)
    if not wrong:
        return {}
    print("once more, each alone:", flush=True)
    again = _run([call for call in calls if call.name in wrong], at_once, 1)
    return {n: again.get(n) or f"after others in the same process: {problem}" for n, problem in wrong.items()}


def _run(calls: list[Call], at_once: int, per_child: int) -> dict[str, str]:
    wrong: dict[str, str] = {}
    waiting = [calls[i : i + per_child] for i in range(0, len(calls), per_child)]
    children: dict[int, Child] = {}
    while waiting or children:
        while waiting and len(children) < at_once:
            child = Child(waiting.pop(0))
            children[child.pipe] = child
        ready, _, _ = select.select(list(children), [], [], 1.0)
        for pipe, child in list(children.items()):
            if pipe in ready:
                ended = list(child.listen())
            elif time.monotonic() - child.heard > SECONDS:
                ended = list(child.end(f"hangs: not done after {SECONDS:.0f} s"))
            else:
                continue
            for call, problem in ended:
                if problem:
                    wrong[call.name] = problem
                    print(f"{call.name}: {problem}", flush=True)
            if child.report.closed:
                del children[pipe]
                if child.calls[child.done :]:
                    waiting.insert(0, child.calls[child.done :])
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="calls whose name has this in it")
    parser.add_argument("--list", action="store_true", help="print the names of the calls")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    sanitized = tests.sanitize.LIBRARY is not None
    calls = [call for call in all_calls() if options.only in call.name and not (sanitized and call.large)]
    if options.list:
        print("\n".join(call.name for call in calls))
        return 0
    if torch is not None:
        torch.set_num_threads(1)  # a pool of OpenMP's does not survive a fork
    if not sanitized:
        limit_memory()
    started = time.monotonic()
    wrong = run(calls, options.jobs)
    kinds = Counter(problem.splitlines()[0].split(":")[0] for problem in wrong.values())
    print(f"{len(calls)} hostile calls in {time.monotonic() - started:.0f} s, {len(wrong)} went wrong. {dict(kinds)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
