"""How processes that do one run together learn at once that one of them has ended, and end too.

Each holds a connection to the first one, which the system closes when its process dies, however that comes. Whoever
ends in an orderly way says first with which exit code, and in which words. A thread listens; so it is heard in the
midst of a long computation too, where no exchange between the processes would notice for a while.
"""

from __future__ import annotations

import _thread
import json
import os
import secrets
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Protocol

from ..errors import GraspruneError, ProcessEnded

GRACE = 0.5
"""Seconds in which an exchange that is under way fails by itself, before a computation is interrupted."""

LAST = 7.0
"""Seconds after which a process ends that cannot be interrupted, as where it waits for a GPU that waits for another."""

_KEY = "grasprune/watch"
_TO_SAY_WHO = 5.0
_KEEPALIVE = {"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 4}
"""So that a machine that is gone, and closes nothing, is noticed in seconds too."""


class Store(Protocol):
    """What torch's stores have that is needed here."""

    def set(self, key: str, value: str) -> None:
        """Have all processes know a value."""

    def get(self, key: str) -> bytes:
        """Such a value, once it is there."""


@dataclass(frozen=True)
class End:
    """How a process ended. code: its exit code; None where it is gone without a word.  line: its last words."""

    rank: int
    code: int | None = None
    line: str = ""

    def error(self, count: int) -> ProcessEnded:
        """What the others end by. count: of processes."""
        if self.code is not None:
            return ProcessEnded(self.line, self.code)
        return ProcessEnded(
            f"the process of rank {self.rank} of {count} is gone, without which the others cannot go on"
        )


class Watch:
    """Watches over the other processes of a run, and tells them how this one ends.

    end: how the first of them ended that did; None while all go on.
    """

    def __init__(self, rank: int, count: int, connections: Mapping[int, socket.socket]) -> None:
        self.rank, self.count, self._connections = rank, count, connections
        self.end: End | None = None
        self._heard, self._left = threading.Event(), threading.Event()
        self._raised, self._busy = False, threading.Lock()
        self._before = _on_signal(self._interrupt)
        threading.Thread(target=self._listen, name="grasprune watch", daemon=True).start()

    @classmethod
    def begun(cls, rank: int, count: int, store: Store, address: str, seconds: float) -> Watch:
        """Once all processes are connected. address: of the first one.  seconds: that they have for it.

        Raises GraspruneError, which names those that do not come.
        """
        if rank == 0:
            return cls(rank, count, _all_connected(count, store, address, time.monotonic() + seconds))
        port, token = store.get(_KEY).decode().split()
        connection = socket.create_connection((address, int(port)), timeout=seconds)
        connection.sendall(f"{token} {rank}\n".encode())
        return cls(rank, count, {0: _watched(connection)})

    @property
    def speaks(self) -> bool:
        """Whether this is the process that says how the run ended: the first one that is still there."""
        first_is_gone = self.end is not None and self.end.rank == 0 and self.end.code is None
        return self.rank == (1 if first_is_gone else 0)

    def check(self) -> None:
        """Raise `ProcessEnded` where a process has ended."""
        if self.end is not None:
            self._raised = True
            raise self.end.error(self.count)

    def failed(self, error: Exception) -> BaseException:
        """What an exchange failed by: the end of a process, or what it says where none ended."""
        if not self._heard.wait(LAST) or self.end is None:
            return error
        self._raised = True
        return self.end.error(self.count)

    def wait(self) -> None:
        """Until the first process is done; raises `ProcessEnded` where one ends before, or that one not well."""
        self._heard.wait()
        if self.end is None or self.end.code != 0:
            self.check()

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """What goes on in the block comes to its end, whatever happens to the others."""
        with self._busy:
            yield

    def leave(self, code: int | None, line: str = "") -> None:
        """Tell the others, once, how this process ends; from then on it may end, or go on by itself."""
        if self._left.is_set():
            return
        self._left.set()
        _on_signal(self._before)
        if self.end is None or self.rank == 0:
            self._tell(End(self.rank, code, line))

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            heard: dict[int, bytes] = {}
            for rank, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while self.end is None:
                for key, _ in selector.select():
                    received = _received(key.fileobj)  # type: ignore[arg-type]
                    heard[key.data] = heard.get(key.data, b"") + received
                    if not received or heard[key.data].endswith(b"\n"):
                        self.end = _end_in(heard[key.data]) or End(key.data)
                        break
        if self.rank == 0 and not self._left.is_set():
            self._tell(self.end)
        self._heard.set()
        self._press()

    def _tell(self, end: End) -> None:
        for rank, connection in self._connections.items():
            if rank != end.rank:
                with suppress(OSError):
                    connection.sendall(json.dumps(asdict(end)).encode() + b"\n")

    def _press(self) -> None:
        """See to it that this process ends too, whatever it is in the midst of."""
        with self._busy:
            if self._left.wait(GRACE) or self.end is None:
                return
        if not self._raised:
            _thread.interrupt_main(signal.SIGURG)
        if not self._left.wait(LAST):
            error = self.end.error(self.count)
            if self.speaks and str(error):
                os.write(2, f"{error}\n".encode())
            os._exit(error.code)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._left.is_set() and not self._raised:
            self.check()


def _all_connected(count: int, store: Store, address: str, deadline: float) -> dict[int, socket.socket]:
    """The connections of all ranks but the first, which this process is."""
    token, found = secrets.token_hex(16), dict[int, socket.socket]()
    with _listening(address) as server:
        store.set(_KEY, f"{server.getsockname()[1]} {token}")
        while len(found) < count - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = ", ".join(str(rank) for rank in range(1, count) if rank not in found)
                raise GraspruneError(
                    f"of the {count} processes of this run some did not come: rank {missing}"
                ) from None
            if (rank := _rank_of(connection, token)) is None:
                connection.close()
            else:
                found[rank] = _watched(connection)
    return found


def _rank_of(connection: socket.socket, token: str) -> int | None:
    """Who it is that connects; None for anybody else who looks what listens here."""
    connection.settimeout(_TO_SAY_WHO)
    try:
        with connection.makefile("rb") as incoming:
            given, _, rank = incoming.readline(100).partition(b" ")
    except OSError:
        return None
    return int(rank) if secrets.compare_digest(given, token.encode()) else None


def _listening(address: str) -> socket.socket:
    family, *_ = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    try:
        return socket.create_server((address, 0), family=family)
    except OSError:  # an address that leads here, but is not of this machine itself
        return socket.create_server(("", 0), family=family)


def _watched(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except OSError:
        return b""


def _end_in(message: bytes) -> End | None:
    """The first end that a message tells of; None where it breaks off."""
    line, newline, _ = message.partition(b"\n")
    return End(**json.loads(line)) if newline else None


def _on_signal(handler: object) -> object:
    """Have SIGURG, which means nothing to a process that does not ask for it, handled so. Returns what did before."""
    if threading.current_thread() is not threading.main_thread():
        return None
    before = signal.getsignal(signal.SIGURG)
    signal.signal(signal.SIGURG, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
    return before
