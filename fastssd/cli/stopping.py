"""Ending long work at a signal, where it can be taken up again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignal:
    """Remembers the first SIGINT or SIGTERM; a second one interrupts at once."""

    signal: int | None = None

    def __init__(self, after: str) -> None:
        self._text = f"\nstopping after this {after}; once more to stop at once\n".encode()

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signum
        os.write(2, self._text)

    @property
    def status(self) -> int:
        """The exit status of a process that a signal has ended."""
        return 128 + (self.signal or 0)


@contextmanager
def stop_signals(after: str) -> Iterator[StopSignal]:
    """Signals end the work inside after the piece at hand, of the kind `after`, if it asks for them."""
    stop = StopSignal(after)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
