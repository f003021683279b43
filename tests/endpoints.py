"""Sessions with servers that fail, for tests."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.fault_server import FaultServer
from harness.program import CONTROLS, FORBIDDEN
from llama_chat.chat.remote_session import RemoteSession
from llama_chat.endpoint.address import parse_address
from llama_chat.endpoint.client import Client, Timeouts
from llama_chat.endpoint.served_model import ServedModel
from llama_chat.errors import LlamaChatError
from llama_chat.generation.events import Event, Finish, Hooks

KEY = "sk-secret-0123456789"


def served(server: FaultServer, silence_s: float = 20.0) -> ServedModel:
    client = Client(parse_address(server.url), KEY, Timeouts(2.0, silence_s))
    return ServedModel(client, "m")


def session(server: FaultServer, silence_s: float = 20.0, **options: Any) -> RemoteSession:
    return RemoteSession(served(server, silence_s), **options)


@dataclass
class Outcome:
    """Outcome of a message."""

    text: str = ""
    finish: Finish | None = None
    error: LlamaChatError | None = None


def outcome(events: Iterator[Event]) -> Outcome:
    found = Outcome()
    try:
        for event in events:
            found.text += event.text
            if isinstance(event, Finish):
                found.finish = event
    except LlamaChatError as error:
        found.error = error
    return found


def send(talk: RemoteSession, hooks: Hooks | None = None) -> Outcome:
    return outcome(talk.send("hello", hooks))


def assert_one_line(error: LlamaChatError, *parts: str) -> None:
    """Check that an error is one readable line, without the key."""
    line = str(error)
    assert line.count(": ") >= 2
    assert not CONTROLS & set(line)
    assert "\n" not in line
    assert len(line) < 600
    assert KEY not in line
    assert not any(word in line for word in FORBIDDEN)
    for part in parts:
        assert re.search(part, line), line
