"""Stop long work at a signal, at a place from which it can be resumed."""

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
        """The exit status of a process that was ended by the signal."""
        return 128 + (self.signal or 0)

    def install(self) -> None:
        """Handle both signals from now on. Only the main thread can, because Python runs handlers there."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self)


@contextmanager
def stop_signals(after: str, *, install: bool = True) -> Iterator[StopSignal]:
    """In the block a signal is remembered, so that the work can stop after its current piece, of the kind `after`.

    The former handlers come back at the end. Without `install`, the work calls :meth:`StopSignal.install` itself.
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
