"""Interfaces of the models that commands ask, here or on a server, and of their sessions.

Requests are opaque here: each model makes its own, and only that model takes them back.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from llama_chat.chat.choices import ReplyScorer
from llama_chat.errors import LlamaChatError
from llama_chat.generation.constraints import Grammar
from llama_chat.generation.events import Event, Hooks
from llama_chat.settings.settings import Settings

Key = TypeVar("Key")


class Scheduler(Protocol):
    """Requests that are answered at the same time."""

    @property
    def n_running(self) -> int:
        """Number of requests that are being answered."""

    @property
    def n_waiting(self) -> int:
        """Number of requests that wait for one of these to end."""


class AskedSession(ReplyScorer, Protocol):
    """A conversation that makes requests of messages."""

    def request(self, text: str, *, with_logprobs: bool = True) -> Any:
        """Return the request to answer a message; nothing is added to the conversation.

        Raises:
            LlamaChatError: if it cannot be asked.
        """


class AskedModel(Protocol):
    """A model, wherever it is computed."""

    @property
    def name(self) -> str:
        """Name for display."""

    def text_request(
        self,
        text: str,
        settings: Settings,
        *,
        grammar: Grammar | None = None,
        n_logprobs: int = 0,
    ) -> Any:
        """Return the request to continue a raw text.

        Raises:
            LlamaChatError: if it cannot be asked.
        """

    def generate_request(
        self, request: Any, hooks: Hooks | None = None, *, lookup: bool = True
    ) -> Iterator[Event]:
        """Yield the events of the answer to a request.

        Raises:
            LlamaChatError: if it is refused, or the answer breaks off.
        """

    def scheduler(self, parallel: int, *, notify: Callable[[str], None] | None = None) -> Scheduler:
        """Return a scheduler of up to ``parallel`` requests at a time."""

    def generate_all(
        self, scheduler: Any, requests: Iterator[tuple[Key, Any] | None]
    ) -> Iterator[tuple[Key, Event | LlamaChatError]]:
        """Yield the events of many answers, each with the key of its request.

        Args:
            scheduler: one of this model.
            requests: each with a key; None while none has come.
        """
