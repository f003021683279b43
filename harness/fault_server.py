"""An OpenAI-compatible server that fails as a script says, byte by byte."""

import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

TIMEOUT_S = 30.0


class Act(Enum):
    """Action of a script besides sending bytes."""

    HOLD = "send nothing more until the client has gone"
    RESET = "reset the connection"
    BARRIER = "wait until another request has come as far"


Script = Sequence[bytes | float | Act]
"""Bytes to send, pauses in seconds, and acts; at its end the connection is closed."""


@dataclass(frozen=True, slots=True)
class Received:
    """A request."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class FaultServer:
    """A server on loopback, and what it was asked."""

    port: int = 0
    scripts: list[Script] = field(default_factory=list)
    """Answers to the next requests for text; the last one is for all that follow."""
    tls: ssl.SSLContext | None = None
    """Certificate of a server that encrypts."""
    models: Script = ()
    """Answer to requests for the list of models; empty for one model named ``m``."""
    received: list[Received] = field(default_factory=list)
    """Requests for text."""
    authorized: set[str | None] = field(default_factory=set)
    """Keys of all requests."""
    gone_at: float = 0.0
    """Time at which a client went away while it was held."""
    gone: threading.Event = field(default_factory=threading.Event)
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))

    @property
    def url(self) -> str:
        """Address."""
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    def serve(self, listener: socket.socket) -> None:
        """Answer each connection in a thread, until the listener is closed."""
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError, threading.BrokenBarrierError):
            connection.settimeout(TIMEOUT_S)
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            request = _receive(connection)
            self.authorized.add(request.headers.get("authorization"))
            if request.method == "GET":
                script: Script = self.models or whole({"data": [{"id": "m"}]})
            else:
                script = self.scripts[min(len(self.received), len(self.scripts) - 1)]
                self.received.append(request)
            for step in script:
                self._play(connection, step)
            with suppress(OSError):  # a close with unread bytes would be a reset
                connection.shutdown(socket.SHUT_WR)

    def _play(self, connection: socket.socket, step: bytes | float | Act) -> None:
        match step:
            case bytes():
                connection.sendall(step)
            case float():
                time.sleep(step)
            case Act.HOLD:
                while connection.recv(2**16):
                    pass
                self.gone_at = time.monotonic()
                self.gone.set()
            case Act.RESET:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.close()
            case Act.BARRIER:
                self.barrier.wait(TIMEOUT_S)


def _receive(connection: socket.socket) -> Received:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(2**16) or _ended()
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(2**16) or _ended()
    method, path, _ = first.split(" ")
    return Received(method, path, headers, json.loads(body) if body else None)


def _ended() -> bytes:
    raise ValueError("the client went away")


@contextmanager
def fault_server(*scripts: Script) -> Iterator[FaultServer]:
    """Run a server with these answers until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = FaultServer(listener.getsockname()[1], list(scripts))
        threading.Thread(target=server.serve, args=(listener,), daemon=True).start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)


# ---- parts of scripts


def head(
    status: int = 200, kind: str = "text/event-stream", length: int | None = None, **headers: str
) -> bytes:
    """Return the head of an answer, whose body ends with the connection unless it has a length."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def whole(value: object, status: int = 200, **headers: str) -> Script:
    """Return an answer of JSON, or of bytes."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return [head(status, "application/json", len(body), **headers) + body]


def refusal(status: int, message: str = "no", code: str | None = None, **headers: str) -> Script:
    """Return an error in the usual shape."""
    return whole({"error": {"message": message, "code": code}}, status, **headers)


def event(value: object) -> bytes:
    """Return an event of a stream: JSON, or bytes as they are."""
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def part(text: object, reason: object = None, **more: object) -> bytes:
    """Return the event with a part of a reply."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason, **more}
    return event({"choices": [choice]})


DONE = event(b"[DONE]")


def answer(*texts: str, usage: object = None) -> Script:
    """Return a whole stream with a reply of these parts."""
    counts = [] if usage is None else [event({"choices": [], "usage": usage})]
    return stream(*map(part, texts), part(None, "stop"), *counts, DONE)


def stream(*events: bytes) -> Script:
    """Return a stream of these bytes, each sent by itself."""
    return [head(), *events]


def drip(data: bytes, seconds: float) -> Iterable[bytes | float]:
    """Return a script that sends each byte by itself, with pauses."""
    for i in range(len(data)):
        yield data[i : i + 1]
        yield seconds
