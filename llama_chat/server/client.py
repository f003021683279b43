"""A client of the server on the socket file, which needs neither torch nor a model."""

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_chat.documents import parse_json
from llama_chat.errors import LlamaChatError, error_of_facts

OWN_KEY = "llama_chat"
"""Key of what only this program's client sends and reads: see ``schema.Own``, ``replies.Format``
and ``replies.error_of``."""

_PATIENCE_S = 2.0
"""Longest wait for an answer about the server itself."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket file."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost")
        self._path = path
        self._patience = timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._patience)
        self.sock.connect(str(self._path))


def health(path: Path) -> dict[str, Any] | None:
    """Return what a server says of itself; None if there is none, or it is ending."""
    connection = _Connection(path, _PATIENCE_S)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        found = parse_json(response.read().decode())
        return found if response.status == 200 and isinstance(found, dict) else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def stream(path: Path, route: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Post a request, and yield the objects of the stream that answers it.

    Raises:
        LlamaChatError: the error that the server answers with.
        OSError: if the connection is lost.
    """
    connection = _Connection(path, None)
    try:
        data = json.dumps({**body, "stream": True}).encode()
        connection.request("POST", route, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise _error(response.status, response.read())
        for line in response:
            text = line.decode().strip()
            if text == "data: [DONE]":
                return
            if text.startswith("data: "):
                found = parse_json(text.removeprefix("data: "))
                if "error" in found:
                    raise _error(response.status, text.removeprefix("data: ").encode())
                yield found
        raise ConnectionResetError("the server went away")
    except (http.client.HTTPException, ValueError) as error:
        raise ConnectionResetError("the server does not speak HTTP") from error
    finally:
        connection.close()


def _error(status: int, body: bytes) -> LlamaChatError:
    try:
        answer = parse_json(body.decode())
        if OWN_KEY in answer:
            return error_of_facts(answer[OWN_KEY])
        why = str(answer["error"]["message"])
    except (ValueError, KeyError, TypeError):
        why = f"it answered with status {status}"
    return LlamaChatError("server", why, "try again, or --no-server")
