"""A model that a warm server has loaded.

Requests are texts, which the server encodes: neither torch nor a vocabulary is needed locally.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llama_chat.chat.conversation import Conversation, Example, Message
from llama_chat.errors import LlamaChatError
from llama_chat.generation.constraints import Grammar
from llama_chat.generation.events import Event, Finish, Hooks, Token
from llama_chat.generation.logprobs import Scored
from llama_chat.server.client import OWN_KEY, LostServer, events_of, stream
from llama_chat.settings.settings import Settings

if TYPE_CHECKING:
    import httpx2

    from llama_chat.endpoint.client import Client
    from llama_chat.endpoint.served_model import ConcurrentRequests

Key = TypeVar("Key")

_CHAT_ROUTE = "/v1/chat/completions"
_TEXT_ROUTE = "/v1/completions"


@dataclass(eq=False, slots=True)
class WarmRequest:
    """A request for one answer."""

    route: str
    body: dict[str, Any]
    _described: dict[str, Any] = field(default_factory=dict)
    """Description of the answer for its JSON, once it is complete."""

    def events(self, chunk: Any) -> Iterator[Event]:
        """Yield the events in a part of its answer; see ``events_of``."""
        for event in events_of(chunk):
            if isinstance(event, Finish):
                self._described = chunk[OWN_KEY].get("described", {})
            yield event

    def describe(self, tokens: Sequence[Token], finish: Finish) -> dict[str, Any]:
        """Return the description that the server gave of the answer; see ``receipts.Describe``."""
        return self._described


class WarmModel:
    """A model that a server has loaded."""

    def __init__(
        self, socket: Path, facts: dict[str, Any], *, n_logprobs: int = 0, receipts: bool = False
    ) -> None:
        """Ask the server on a Unix socket.

        Args:
            socket: the file.
            facts: what the server says of itself.
            n_logprobs: likely tokens at each position to ask for.
            receipts: True to ask for a receipt with each answer.
        """
        self.name = str(facts["model"])
        self._socket = socket
        self._facts = facts
        self._n_logprobs = n_logprobs
        self._receipts = receipts

    def settings(self, settings: Settings) -> Settings:
        """Return the settings with what the model suggests where nothing else sets a value."""
        suggested = self._facts.get("suggested", {})
        return settings.with_model(suggested.get("values", {}), suggested.get("where", ""))

    def chat(
        self, *, examples: Sequence[Example] = (), grammar: Grammar | None = None, **template: Any
    ) -> "WarmDialog":
        """Begin a dialog; ``template`` is ignored, since the server applies the same one."""
        return WarmDialog(self, examples, grammar)

    def text_request(
        self,
        text: str,
        settings: Settings,
        *,
        grammar: Grammar | None = None,
        n_logprobs: int = 0,
    ) -> WarmRequest:
        """Return the request to continue a raw text."""
        prompt = {"prompt": text, "logprobs": n_logprobs or None}
        return self._request(_TEXT_ROUTE, prompt, settings, grammar)

    def reply(
        self,
        messages: Sequence[Message],
        settings: Settings,
        *,
        grammar: Grammar | None = None,
        choices: Sequence[str] = (),
    ) -> WarmRequest:
        """Return the request to answer the last of some messages, or to score replies to it."""
        n, dialog = self._n_logprobs, [{"role": m.role, "content": m.text} for m in messages]
        prompt = {"messages": dialog, "logprobs": n > 0, "top_logprobs": n}
        return self._request(_CHAT_ROUTE, prompt, settings, grammar, choices)

    def _request(
        self,
        route: str,
        prompt: dict[str, Any],
        settings: Settings,
        grammar: Grammar | None,
        choices: Sequence[str] = (),
    ) -> WarmRequest:
        limits = {"max_tokens": settings.max_tokens, "stop": list(settings.stop)}
        own = {
            "receipt": self._receipts,
            "grammar": None if grammar is None else asdict(grammar),
            "choices": list(choices),
        }
        return WarmRequest(route, {**prompt, **asdict(settings.sampling), **limits, OWN_KEY: own})

    def generate_request(
        self, request: WarmRequest, hooks: Hooks | None = None, *, lookup: bool = True
    ) -> Iterator[Event]:
        """Ask for the answer to one request, and yield its events; the server has its own hooks.

        Raises:
            LlamaChatError: if the server refuses it.
            LostServer: if it goes away.
        """
        for chunk in stream(self._socket, request.route, request.body):
            yield from request.events(chunk)

    def scheduler(
        self, parallel: int, *, notify: Callable[[str], None] | None = None
    ) -> "ConcurrentRequests[Any]":
        """Return a scheduler of up to ``parallel`` requests."""
        from llama_chat.endpoint.served_model import (
            ConcurrentRequests,  # a slow import, not needed for one answer
        )

        return ConcurrentRequests(min(parallel, self._facts.get("max_requests", parallel)), notify)

    def generate_all(
        self,
        scheduler: "ConcurrentRequests[Key]",
        requests: Iterator[tuple[Key, WarmRequest] | None],
    ) -> Iterator[tuple[Key, Event | LlamaChatError]]:
        """Ask for many answers, as their requests come.

        Raises:
            LostServer: if the server goes away.
        """
        with closing(scheduler.generate(self, requests)) as events:
            for key, event in events:
                if isinstance(event, LostServer):
                    raise event
                yield key, event

    @cached_property
    def client(self) -> "Client":
        """Client for requests that are answered at the same time."""
        from llama_chat.server.answers import client_of

        return client_of(self._socket)

    async def answer(
        self,
        connections: "httpx2.AsyncClient",
        request: WarmRequest,
        notify: Callable[[str], None],
    ) -> AsyncIterator[Event]:
        """Yield the events of the answer to one of several requests."""
        from llama_chat.server.answers import chunks

        source = chunks(self.client, connections, request.route, request.body, notify)
        async with aclosing(source):
            async for chunk in source:
                for event in request.events(chunk):
                    yield event


class WarmDialog:
    """Questions to a model on a warm server, each after the same messages."""

    template = None
    """Chat template; the server has it."""
    _settings: Settings

    def __init__(
        self, model: WarmModel, examples: Sequence[Example], grammar: Grammar | None
    ) -> None:
        """Ask ``model`` after ``examples``, for answers that meet ``grammar``."""
        self.n_reused = 0
        self._model = model
        self._examples = examples
        self._grammar = grammar
        self._pieces: dict[str, str] = {}

    def configure(self, settings: Settings) -> None:
        """Apply the settings."""
        self._settings = settings

    def request(self, text: str, *, with_logprobs: bool = True) -> WarmRequest:
        """Return the request to answer a message; ``with_logprobs`` is that of the model."""
        return self._model.reply(self._asked(text), self._settings, grammar=self._grammar)

    def _asked(self, text: str) -> list[Message]:
        preface = Conversation(self._settings.system, self._examples).preface()
        return [*preface, Message("user", text)]

    def score(self, message: str, texts: Sequence[str], hooks: Hooks | None = None) -> list[Scored]:
        """Score replies to a message, each with the end of the turn.

        Raises:
            LostServer: if the server goes away.
        """
        request = self._model.reply(self._asked(message), self._settings, choices=texts)
        for event in self._model.generate_request(request):
            if isinstance(event, Finish):
                self.n_reused = event.usage.cached_tokens
                self._pieces |= request.describe((), event)["pieces"]
                return list(event.scored)
        raise LostServer

    def piece(self, token_id: int) -> str:
        """Return the name of a token of a reply that was scored."""
        return self._pieces[str(token_id)]
