"""The processes of a distributed run end together: when one is killed, the others do not wait for it for ever."""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import sys
import threading
from typing import Any

import lightning.pytorch as L

from fastssd.training.stopping import Stopped

GRACE = 2.0  # seconds in which a process may end by itself, with its own error
PATIENCE = 5.0  # seconds for a connection to be made
GOODBYE = b"."

_open: set[socket.socket] = set()


def _close_in_child() -> None:
    """A worker that reads pictures must not hold its parent's connections open when that one is gone."""
    for connection in list(_open):
        connection.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


class EndTogether(L.Callback):
    """Ends this process, with status 1, when another process of its run is gone.

    What they compute together would else wait: for half an hour with NCCL, and with gloo for as long as a worker that
    was forked holds the lost process's connections. So each process has one more connection with the first, over which
    nothing is said but goodbye. The system closes it when a process dies, however it dies.
    """

    def __init__(self) -> None:
        self._expected = 0  # processes that have not come to the listener yet
        self._done = threading.Event()
        self._connections: set[socket.socket] = set()
        self._selector = selectors.DefaultSelector()
        self._token = b""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        self._expected = trainer.world_size - 1
        listener = _listener() if trainer.is_global_zero else None
        strategy: Any = trainer.strategy
        offer = (listener.getsockname()[1], secrets.token_bytes(16)) if listener else None
        port, self._token = strategy.broadcast(offer)
        if listener:
            self._watch(listener)
        else:
            address = strategy.cluster_environment.main_address
            try:
                connection = socket.create_connection((address, port), timeout=PATIENCE)
                connection.sendall(self._token)
            except OSError as error:
                print(
                    f"process {trainer.global_rank} cannot watch the first, {address}:{port}: {error}", file=sys.stderr
                )
                return
            connection.settimeout(None)
            self._connections.add(connection)
            self._watch(connection)
        threading.Thread(target=self._run, args=(listener,), daemon=True, name="fastssd-together").start()

    def leave(self) -> None:
        """This process is done; the others may go on without it, and it without them."""
        self._done.set()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.sendall(GOODBYE)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """The others shall end now: this process may live on, in a notebook say, but not come back to them."""
        if isinstance(exception, Stopped):
            return
        self._done.set()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _watch(self, connection: socket.socket) -> None:
        _open.add(connection)
        self._selector.register(connection, selectors.EVENT_READ)

    def _forget(self, connection: Any) -> None:
        self._selector.unregister(connection)
        self._connections.discard(connection)
        _open.discard(connection)
        connection.close()

    def _run(self, listener: socket.socket | None) -> None:
        while self._selector.get_map():
            for key, _ in self._selector.select():
                connection: Any = key.fileobj
                if connection is listener:
                    self._accept(listener)
                elif self._says_goodbye(connection):
                    self._forget(connection)
                else:
                    for other in list(self._selector.get_map().values()):  # so that the others hear of it now
                        self._forget(other.fileobj)
                    self._end()
                    return

    def _accept(self, listener: socket.socket) -> None:
        """Take a process of this run; whoever else connects is sent away."""
        connection, _ = listener.accept()
        try:
            connection.settimeout(PATIENCE)
            known = connection.recv(len(self._token), socket.MSG_WAITALL) == self._token
        except OSError:
            known = False
        if not known:
            connection.close()
            return
        connection.settimeout(None)
        self._connections.add(connection)
        self._watch(connection)
        self._expected -= 1
        if not self._expected:
            self._forget(listener)

    def _says_goodbye(self, connection: socket.socket) -> bool:
        try:
            return connection.recv(1) == GOODBYE
        except OSError:
            return False

    def _end(self) -> None:
        if not self._done.wait(GRACE):
            os.write(2, b"another process of this run failed or is gone; this one ends too\n")
            os._exit(1)


def _listener() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)
