"""The processes of a distributed run end together: when one is killed, the others do not wait for it for ever.

Who may connect. On one machine the first process listens at 127.0.0.1, and the key is random; torch's process group
carries it, inside the machine. Between machines the process group is neither encrypted nor authenticated (PyTorch's
security policy says so; torchrun gives no secret), so a key that is sent over it would not be secret. There the key is
the content of a file, which the environment variable FASTSSD_KEY_FILE names on each machine, and the first process
listens at the rendezvous address only. Without such a file it does not listen, says so, and the run continues without
this watch.

The key is never sent. Each side chooses a random number, and proves by an HMAC of both numbers that it has the key; so
an answer of an earlier run proves nothing. ``multiprocessing.connection`` does the same, but it waits without limit for
a stranger that says nothing, so it is not used here.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import selectors
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from fastssd.training.stopping import Stopped

GRACE = 2.0  # seconds in which a process may end by itself, with its own error
PATIENCE = 60.0  # seconds for the first process to answer, also on a busy machine
GOODBYE = b"."
KEY_FILE = "FASTSSD_KEY_FILE"
SHORTEST_KEY = 16  # bytes: a shorter one can be guessed from a handshake that somebody listened to
SIZE = 32  # bytes of a random number, and of a proof
STRANGERS = 64  # connections that have shown no key yet, at most, besides those of the run's processes

_open: set[socket.socket] = set()


def _close_in_child() -> None:
    """A worker that reads images must not hold its parent's connections open when that one is gone."""
    for connection in list(_open):
        connection.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


class EndTogether(L.Callback):
    """Ends this process, with status 1, when another process of its run is gone.

    Otherwise the collective operations of the others would wait: for half an hour with NCCL, and with gloo for as long
    as a forked worker holds the lost process's connections. So each process has one more connection with the first,
    over which nothing is said but goodbye. The system closes it when a process dies, however it dies.
    """

    def __init__(self) -> None:
        self._expected = 0  # processes that have not come to the listener yet
        self._done = threading.Event()
        self._connections: set[socket.socket] = set()
        self._strangers: dict[socket.socket, tuple[bytes, bytes]] = {}  # our number, and what came of the answer
        self._selector = selectors.DefaultSelector()
        self._key = b""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        strategy: Any = trainer.strategy
        host, self._key = "127.0.0.1", secrets.token_bytes(SIZE)
        if trainer.num_nodes > 1:
            # As the last machine resolves it: on the first one its own name may stand for 127.0.1.1.
            host = strategy.broadcast(_resolved(strategy.cluster_environment.main_address), trainer.world_size - 1)
            self._key = _key_of_file()
        listener = _listener(host) if trainer.is_global_zero and self._key else None
        port = strategy.broadcast(listener.getsockname()[1] if listener else None)
        if trainer.num_nodes == 1:
            self._key = strategy.broadcast(self._key)
        if listener:
            self._expected = trainer.world_size - 1
            self._watch(listener)
        elif port is None or not self._key:
            if not self._key and (trainer.is_global_zero or port is not None):
                _say(f"process {trainer.global_rank} does not watch those of other machines: {KEY_FILE} names no key")
            return
        else:
            try:
                connection = _admitted((host, port), self._key)
            except OSError as error:
                _say(f"process {trainer.global_rank} cannot watch the first, {host}:{port}: {error}")
                return
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
        """End the others now: this process may live on, in a notebook say, but it does not come back to them."""
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
        self._strangers.pop(connection, None)
        _open.discard(connection)
        connection.close()

    def _run(self, listener: socket.socket | None) -> None:
        while self._selector.get_map():
            for key, _ in self._selector.select():
                connection: Any = key.fileobj
                if connection.fileno() < 0:  # forgotten in this round
                    continue
                if connection is listener:
                    self._accept(listener)
                elif connection in self._strangers:
                    self._examine(connection, listener)
                elif self._says_goodbye(connection):
                    self._forget(connection)
                else:
                    for other in list(self._selector.get_map().values()):  # so that the others hear of it now
                        self._forget(other.fileobj)
                    self._end()
                    return

    def _accept(self, listener: socket.socket) -> None:
        """Send a random number. This never waits: a stranger must not keep the watch from a process that dies."""
        number = secrets.token_bytes(SIZE)
        try:
            connection, _ = listener.accept()
        except OSError:  # it left before
            return
        try:
            connection.setblocking(False)
            connection.send(number)
        except OSError:
            connection.close()
            return
        self._strangers[connection] = number, b""
        self._watch(connection)
        if len(self._strangers) > self._expected + STRANGERS:
            self._forget(next(iter(self._strangers)))  # a process of the run answers at once, so it is not the oldest

    def _examine(self, connection: socket.socket, listener: Any) -> None:
        """Take in a process of this run, by its answer; anyone else is sent away."""
        number, answer = self._strangers[connection]
        try:
            part = connection.recv(2 * SIZE - len(answer))
            answer += part
            self._strangers[connection] = number, answer
            if part and len(answer) < 2 * SIZE:
                return
            numbers = number + answer[:SIZE]
            if not hmac.compare_digest(answer[SIZE:], _proof(self._key, b"join", numbers)):
                self._forget(connection)
                return
            connection.setblocking(True)
            self._connections.add(connection)  # before the other side can know that it has been taken in
            connection.sendall(_proof(self._key, b"welcome", numbers))
        except BlockingIOError:  # nothing there after all
            return
        except OSError:
            self._forget(connection)
            return
        del self._strangers[connection]
        self._expected -= 1
        if not self._expected:
            for other in (listener, *self._strangers):
                self._forget(other)

    def _says_goodbye(self, connection: socket.socket) -> bool:
        try:
            return connection.recv(1) == GOODBYE
        except OSError:
            return False

    def _end(self) -> None:
        if not self._done.wait(GRACE):
            os.write(2, b"another process of this run failed or is gone; this one ends too\n")
            os._exit(1)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _resolved(name: str) -> str:
    """The address of a machine; its name if it has no address."""
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return name


def _key_of_file() -> bytes:
    """The content of the key file, without white space around it; nothing if it cannot be used."""
    name = os.environ.get(KEY_FILE)
    if not name:
        return b""
    try:
        key = Path(name).read_bytes().strip()
    except OSError as error:
        _say(f"{KEY_FILE}: {error}")
        return b""
    if len(key) < SHORTEST_KEY:
        _say(f"{KEY_FILE}: {name} holds {len(key)} bytes, expected at least {SHORTEST_KEY}")
        return b""
    return key


def _listener(host: str) -> socket.socket | None:
    try:
        return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
    except OSError as error:
        _say(f"the first process cannot listen at {host}: {error}")
        return None


def _admitted(address: tuple[str, int], key: bytes) -> socket.socket:
    """A connection with the first process, once both have shown that they have the key.

    Raises:
        OSError: there is none, or the other side has another key.
    """
    connection = socket.create_connection(address, timeout=PATIENCE)
    try:
        own = secrets.token_bytes(SIZE)
        numbers = _receive(connection) + own
        connection.sendall(own + _proof(key, b"join", numbers))
        if not hmac.compare_digest(_receive(connection), _proof(key, b"welcome", numbers)):
            raise ConnectionRefusedError("it has another key")
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


def _proof(key: bytes, word: bytes, numbers: bytes) -> bytes:
    return hmac.digest(key, word + numbers, "sha256")


def _receive(connection: socket.socket) -> bytes:
    """A random number or a proof; fewer bytes only at the end of the connection."""
    data = b""
    while len(data) < SIZE and (part := connection.recv(SIZE - len(data))):
        data += part
    return data
