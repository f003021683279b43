"""A model on a server, with the completions and chat sessions of ``llama.Llama``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_chat.chat.conversation import Conversation, Example
from llama_chat.chat.remote_session import RemoteSession
from llama_chat.chat.templates import ChatTemplate, choose_template
from llama_chat.checkpoints.generation_defaults import GenerationDefaults
from llama_chat.checkpoints.template_source import TemplateSource
from llama_chat.endpoint.answers import SeenTokens
from llama_chat.endpoint.served_model import TEXT_ROUTE, Call, ConcurrentRequests, Key, ServedModel
from llama_chat.errors import LlamaChatError, UsageError
from llama_chat.generation.events import Event, Hooks
from llama_chat.settings.settings import Settings
from llama_chat.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from llama_chat.generation.constraints import Grammar

_NO_GRAMMAR = "a server cannot be made to meet it"


@dataclass(frozen=True, slots=True)
class Encoding:
    """Template and vocabulary with which messages are encoded locally."""

    tokenizer: Tokenizer
    templates: TemplateSource
    context: int | None
    """Context length in tokens, as settings or files say it."""


class RemoteModel:
    """A model on a server."""

    n_bytes = 0
    """Bytes of its weights here."""

    def __init__(
        self,
        served: ServedModel,
        encoding: Encoding | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        """Combine the parts of a model.

        Args:
            served: sends the requests.
            encoding: encodes messages locally; None if the server does.
            warnings: warnings for the user, one line each.
        """
        if encoding is not None:
            served.seen = SeenTokens(encoding.tokenizer.vocab_size)
        self.served = served
        self.warnings = warnings
        self._encoding = encoding

    @property
    def name(self) -> str:
        """Name for display."""
        return "".join(c if c.isprintable() else "\ufffd" for c in self.served.name[:100])

    @property
    def summary(self) -> str:
        """Address, and the context if it is known, for display."""
        context = self._context
        known = "" if context is None else f" · context {context}"
        return f"on {self.served.client.address.title}{known}"

    @property
    def _context(self) -> int | None:
        here = None if self._encoding is None else self._encoding.context
        lengths = [n for n in (self.served.context, here) if n is not None]
        return min(lengths, default=None)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Vocabulary; None if only the server knows it."""
        return None if self._encoding is None else self._encoding.tokenizer

    @property
    def defaults(self) -> GenerationDefaults:
        """No suggestions: a server does not say what it has."""
        return GenerationDefaults()

    def template(self, name: str = "auto", variant: str | None = None) -> ChatTemplate:
        """Return the chat template ``name``, or that of the model whose template is used here.

        Raises:
            UsageError: if the server applies its own, or there is none of that name.
        """
        if self._encoding is None:
            why = "the server applies its own"
            raise UsageError("template", why, "--template-here MODEL applies one here")
        source, tokenizer = self._encoding.templates, self._encoding.tokenizer
        return choose_template(name, source, tokenizer, variant)

    def chat(
        self,
        *,
        examples: Sequence[Example] = (),
        conversation: Conversation | None = None,
        template: str = "auto",
        template_name: str | None = None,
        grammar: "Grammar | None" = None,
        notify: Callable[[str], None] | None = None,
    ) -> RemoteSession:
        """Begin or continue a conversation.

        Raises:
            UsageError: if the server cannot hold it as wanted.
        """
        if grammar is not None:
            raise UsageError(grammar.what, _NO_GRAMMAR, "use a local model")
        conversation = conversation or Conversation("", examples)
        if self._encoding is None:
            if template != "auto" or template_name is not None:
                self.template(template, template_name)
            return RemoteSession(self.served, conversation=conversation, notify=notify)
        from llama_chat.chat.encoding_remote_session import EncodingRemoteSession  # slow: torch

        context = self._context
        if context is None:
            why = "neither the server nor the model of the template says it"
            raise UsageError("context length", why, "give --context")
        return EncodingRemoteSession(
            self.served,
            self.template(template, template_name),
            self._encoding.tokenizer,
            context,
            conversation=conversation,
            notify=notify,
        )

    def piece(self, token_id: int) -> str:
        """Return a token that the server has named, as text."""
        return self.served.seen[token_id].decode("utf-8", "replace")

    def text_request(
        self,
        text: str,
        settings: Settings,
        *,
        grammar: "Grammar | None" = None,
        n_logprobs: int = 0,
    ) -> Call:
        """Return the request to continue a raw text.

        Raises:
            UsageError: if there is a grammar.
        """
        if grammar is not None:
            raise UsageError(grammar.what, _NO_GRAMMAR, "use a local model")
        return self.served.call(
            TEXT_ROUTE,
            {"prompt": text},
            settings.sampling,
            max_tokens=settings.max_tokens,
            stop=settings.stop,
            n_logprobs=n_logprobs,
        )

    def generate_request(
        self, request: Call, hooks: Hooks | None = None, *, lookup: bool = True
    ) -> Iterator[Event]:
        """Ask for the answer to a request; ``lookup`` is for local models."""
        return self.served.generate(request, hooks)

    def scheduler(
        self, parallel: int, *, notify: Callable[[str], None] | None = None
    ) -> ConcurrentRequests[Any]:
        """Return a scheduler of up to ``parallel`` requests."""
        return ConcurrentRequests(parallel, notify)

    def generate_all(
        self, scheduler: ConcurrentRequests[Key], requests: Iterator[tuple[Key, Call] | None]
    ) -> Iterator[tuple[Key, Event | LlamaChatError]]:
        """Ask for many answers, as their requests come."""
        return scheduler.generate(self.served, requests)
