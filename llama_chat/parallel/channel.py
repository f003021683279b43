"""Connections of rank 0 with the other ranks: orders, answers, and the detection of losses.

Orders are a few numbers, and rare while the user types. Collectives would have to wait without a
timeout, and would not notice a killed rank until the next one. A connection that closes is noticed
at once, on all ranks; keep-alive probes notice a machine that lost power. Activations use the
collectives of torch.
"""

import json
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from selectors import EVENT_READ, DefaultSelector
from typing import Any

Message = list[Any]
"""A word and its arguments, as JSON has them."""

_PROBES = {"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 7000}
"""Keep-alive options: a machine that does not answer for seven seconds counts as gone."""

_CONNECT_S = 60.0
_MAX_HELLO = 256


class Gone(Exception):
    """The other end of a connection has closed it."""


class Connection:
    """Messages with another rank, each a line of JSON."""

    def __init__(self, ours: socket.socket) -> None:
        """Use a connected socket."""
        ours.settimeout(None)
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES.items():
            if hasattr(socket, name):  # macOS lacks some
                ours.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._socket = ours
        self._received: deque[Message] = deque()
        self._is_gone = False
        self._changed = threading.Condition()
        """Held while one of the two above is read or changed."""

    def listen(self, on_message: Callable[[Message], bool], on_gone: Callable[[], object]) -> None:
        """Read messages in a thread from now on.

        Args:
            on_message: takes a message that needs no ``receive``; returns False for the others.
            on_gone: called at the end of the connection.
        """

        def read() -> None:
            try:
                with suppress(OSError, ValueError), self._socket.makefile("rb") as lines:
                    for line in lines:
                        message = json.loads(line)
                        if not on_message(message):
                            with self._changed:
                                self._received.append(message)
                                self._changed.notify_all()
            finally:
                on_gone()
                with self._changed:
                    self._is_gone = True
                    self._changed.notify_all()

        threading.Thread(target=read, name="rank", daemon=True).start()

    def send(self, data: bytes) -> None:
        """Send an encoded message; a failure is noticed where messages are read."""
        with suppress(OSError):
            self._socket.sendall(data)

    def receive(self) -> Message:
        """Wait for the next message.

        Raises:
            Gone: at the end of the connection.
        """
        with self._changed:
            self._changed.wait_for(self._need_not_wait)
            if not self._received:
                raise Gone
            return self._received.popleft()

    def has_message(self, seconds: float) -> bool:
        """Wait at most ``seconds`` until ``receive`` need not wait."""
        with self._changed:
            return self._changed.wait_for(self._need_not_wait, max(seconds, 0.0))

    def _need_not_wait(self) -> bool:
        return bool(self._received) or self._is_gone

    def close(self) -> None:
        """End the connection, for both."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def encode(message: Sequence[Any]) -> bytes:
    """Encode a message as ``Connection.send`` takes it."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Listener:
    """Socket at which rank 0 waits for the others."""

    def __init__(self, *, local: bool) -> None:
        """Open the socket, to this machine only if ``local``."""
        if local:
            self._socket = socket.create_server(("127.0.0.1", 0))
        elif socket.has_dualstack_ipv6():
            self._socket = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True
            )
        else:
            self._socket = socket.create_server(("", 0))
        self._token = secrets.token_hex(16)

    @property
    def key(self) -> str:
        """Port and token for ``connect``."""
        return f"{self._socket.getsockname()[1]} {self._token}"

    def accept(self, found: dict[int, Connection], size: int, seconds: float = _CONNECT_S) -> None:
        """Accept the ranks 1 to ``size`` - 1, then close the socket; other clients are rejected.

        Args:
            found: the connections by rank, filled as ranks connect.
            size: number of ranks.
            seconds: longest time to wait for all of them.

        Raises:
            TimeoutError: if they do not connect in time.
        """
        until = time.monotonic() + seconds
        with self._socket, closing(_hellos(self._socket, until)) as hellos:
            for theirs, hello in hellos:
                rank = self._identify(hello)
                if rank in range(1, size) and rank not in found:
                    found[rank] = Connection(theirs)
                else:
                    theirs.close()
                if len(found) == size - 1:
                    return

    def _identify(self, hello: bytes) -> int:
        """Return the rank of a client with the right token; -1 for any other."""
        with suppress(ValueError):
            token, rank = hello.decode().split()
            if secrets.compare_digest(token.encode(), self._token.encode()):
                return int(rank)
        return -1


def _hellos(listener: socket.socket, until: float) -> Generator[tuple[socket.socket, bytes]]:
    """Yield those who connect, each with its first line, as these come: nobody waits for another.

    Raises:
        TimeoutError: at the time ``until``.
    """
    listener.setblocking(False)
    heard: dict[socket.socket, bytes] = {}
    with DefaultSelector() as selector:
        selector.register(listener, EVENT_READ, listener)
        try:
            while (left := until - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.data is listener:
                        with suppress(BlockingIOError, ConnectionAbortedError):  # it has gone
                            theirs, _ = listener.accept()
                            theirs.setblocking(False)
                            selector.register(theirs, EVENT_READ, theirs)
                            heard[theirs] = b""
                        continue
                    theirs = key.data
                    byte = _next_byte(theirs)
                    heard[theirs] += byte
                    if byte in (b"", b"\n") or len(heard[theirs]) == _MAX_HELLO:
                        selector.unregister(theirs)
                        yield theirs, heard.pop(theirs)
            raise TimeoutError
        finally:
            for theirs in heard:
                theirs.close()


def _next_byte(theirs: socket.socket) -> bytes:
    """Read one byte, since what follows a hello belongs to the connection; none at an end."""
    try:
        return theirs.recv(1)
    except OSError:
        return b""


def connect(address: str, key: str, rank: int) -> Connection:
    """Connect to the listener of rank 0.

    Raises:
        OSError: if that fails.
    """
    port, token = key.split()
    ours = socket.create_connection((address, int(port)), timeout=_CONNECT_S)
    ours.sendall(f"{token} {rank}\n".encode())
    return Connection(ours)
