"""Requests to the fork server: a process to start, and the descriptors that it gets."""

import json
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

COMMAND = [sys.executable, "-m", "llama_chat"]
"""Command that starts the program."""

NUMBER = struct.Struct("i")
"""An answer of the server: first the pid; at the end the exit status and the peak memory."""

_N_DESCRIPTORS = 4
"""Most descriptors that a request sends: the pipe for answers, stdin, stdout and stderr."""

LENGTH_BYTES = 4
"""Bytes of the length before a text."""


@dataclass(frozen=True, slots=True)
class Request:
    """A process to start."""

    command: list[str]
    environment: dict[str, str]
    folder: str
    """Its working directory."""
    umask: int
    streams: list[int]
    """Open streams of the process, of 0, 1 and 2; their descriptors are sent in this order."""
    terminal: bool
    """True if stream 0 is a terminal: it becomes all three, and controls a new session."""
    cold: bool
    """True to start a new interpreter in any case."""


def send(requests: socket.socket, request: Request, descriptors: Sequence[int]) -> None:
    """Send a request; the first of ``descriptors`` is the pipe for the answers."""
    body = json.dumps(asdict(request)).encode()
    socket.send_fds(requests, [len(body).to_bytes(LENGTH_BYTES, "big")], descriptors)
    requests.sendall(body)


def receive(requests: socket.socket) -> tuple[Request, list[int]] | None:
    """Wait for a request and its descriptors; None once the client has closed its end."""
    body, descriptors = receive_body(requests)
    return (Request(**json.loads(body)), descriptors) if body else None


def receive_body(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Wait for a text with its length in front, and the descriptors that come with it."""
    length, descriptors, _, _ = socket.recv_fds(connection, LENGTH_BYTES, _N_DESCRIPTORS)
    return connection.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL), descriptors
