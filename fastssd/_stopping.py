"""Ending long work at a signal, where it can be taken up again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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

    def install(self) -> None:
        """Be the handler of both from here on; signals reach the main thread alone."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self)


@contextmanager
def stop_signals(after: str, *, install: bool = True) -> Iterator[StopSignal]:
    """Signals end the work inside after the piece at hand, of the kind `after`, if it asks for them.

    The handlers of before come back at the end. Without `install`, the work installs the signal itself.
    """
    stop = StopSignal(after)
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        if install:
            stop.install()
        yield stop
    finally:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in before.items():
                signal.signal(signum, handler)
