"""A client of the server on the Unix socket, which needs neither torch nor a model."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from llama_chat.documents import parse_json
from llama_chat.errors import LlamaChatError, PromptTooLongError, error_of_facts
from llama_chat.generation.events import Event, Token, finish_of, token_of

OWN_KEY = "llama_chat"
"""Key of what only this program's client sends and reads: see ``schema.Own``, ``replies.Format``
and ``replies.error_of``."""

CLOSING = "shutting_down"
"""Code of the error of a server that ends, in place of an answer or of its rest."""

MAX_SCORED = 1024
"""Most replies that a request may ask the scores of."""

_TIMEOUT_S = 2.0
"""Longest wait for an answer about the server itself."""

_WAIT_S, _MAX_WAIT_S = 0.5, 60.0
"""Waits for a full server: each one, and in total."""

SILENCE_S = 600.0
"""Longest wait for a part of another answer: a prompt of a large model can take minutes."""


class LostServer(LlamaChatError):
    """The server went away, or is not one of this program."""

    def __init__(
        self,
        why: str = "the connection was lost",
        advice: str = "try again, or --no-server",
    ) -> None:
        super().__init__("server", why, advice)


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost")
        self._path = path
        self._timeout = timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout)
        self.sock.connect(str(self._path))


def health(path: Path) -> dict[str, Any] | None:
    """Return what a server says of itself; None if there is none, or it is ending."""
    connection = _Connection(path, _TIMEOUT_S)
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
        LostServer: if the connection is lost.
    """
    connection = _Connection(path, SILENCE_S)
    try:
        response = _posted(connection, route, json.dumps({**body, "stream": True}).encode())
        if response.status != 200:
            raise error_in(parse_json(response.read().decode()), response.status)
        for line in response:
            text = line.decode().strip()
            if text == "data: [DONE]":
                return
            if text.startswith("data: "):
                yield parse_json(text.removeprefix("data: "))
        raise LostServer
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise LostServer from error
    finally:
        connection.close()


def _posted(connection: _Connection, route: str, data: bytes) -> http.client.HTTPResponse:
    """Post a request, repeatedly while the server is full, and return the answer."""
    began = time.monotonic()
    while True:
        connection.request("POST", route, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        is_full = response.status == HTTPStatus.TOO_MANY_REQUESTS
        if not is_full or time.monotonic() - began > _MAX_WAIT_S:
            return response
        response.read()
        time.sleep(_WAIT_S)


def events_of(chunk: Any) -> Iterator[Event]:
    """Yield the events in a part of an answer.

    Raises:
        LlamaChatError: the error that ended the answer.
        LostServer: if it is no part of one.
    """
    try:
        if "error" in chunk:
            raise error_in(chunk)
        own, choice = chunk.get(OWN_KEY) or {}, chunk["choices"][0]
        text = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
        if "finish" in own:
            yield finish_of(own["finish"], text)
        elif "token" in own:
            yield token_of(own["token"])
        elif text:
            yield Token(-1, text, 0.0)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise LostServer from error


def error_in(answer: Any, status: int = 500) -> LlamaChatError:
    """Return the error that a server of this program answers with."""
    try:
        if OWN_KEY in answer:
            return error_of_facts(answer[OWN_KEY])
        why = str(answer["error"]["message"])
        if answer["error"].get("code") == CLOSING:
            return LostServer(why)
    except (AttributeError, KeyError, TypeError):
        why = f"it answers with status {status}"
    match status:
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return PromptTooLongError("prompt", why, "shorten it")
        case HTTPStatus.SERVICE_UNAVAILABLE:
            return LostServer(why)
    return LlamaChatError("server", why, "try again, or --no-server")
