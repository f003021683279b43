"""Chat sessions whose tokens a warm server generates, with the same facts as locally.

The server is one of this program, and has the same model and settings; see ``schema.Own``.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_chat.chat.context_use import Fit
from llama_chat.chat.conversation import Conversation, Message
from llama_chat.chat.templates import ChatTemplate, choose_template
from llama_chat.chat.token_session import TokenSession
from llama_chat.checkpoints.base import Checkpoint
from llama_chat.checkpoints.generation_defaults import GenerationDefaults
from llama_chat.endpoint.client import Client
from llama_chat.endpoint.stepping import run
from llama_chat.errors import CutOffError, LlamaChatError
from llama_chat.generation.events import Event, Finish, Hooks, Timings, Usage
from llama_chat.server.answers import chunks, client_of
from llama_chat.server.client import OWN_KEY, LostServer, events_of
from llama_chat.settings.sampling import Sampling
from llama_chat.settings.settings import Settings
from llama_chat.tokenizers.base import Tokenizer

_ROUTE = "/v1/completions"

_LOST = "/model NAME loads it here, or serve it again"


class WarmSession(TokenSession):
    """A conversation that is encoded locally, and whose tokens a warm server generates."""

    def __init__(
        self,
        client: Client,
        template: ChatTemplate,
        tokenizer: Tokenizer,
        context: int,
        **options: Any,
    ) -> None:
        """Begin or continue a conversation.

        Args:
            client: sends to the server.
            template: the chat template, which encodes messages.
            tokenizer: vocabulary of the model.
            context: context length in tokens.
            options: arguments of ``ChatSession``.
        """
        super().__init__(template, tokenizer, context, **options)
        self._client = client
        self._sampling = Sampling()
        self._seed: int | None = None
        self._cached: list[int] = []
        """Tokens of the last prompt and its reply, which the server keeps as long as it can."""
        self._n_reused = 0

    def configure(self, settings: Settings) -> None:
        """Apply the settings; earlier turns stay as they are."""
        super().configure(settings)
        self._sampling = settings.sampling

    @property
    def seed(self) -> int | None:
        """Seed of the last reply, drawn if none is given."""
        return self._seed if self._sampling.seed is None else self._sampling.seed

    @property
    def n_reused(self) -> int:  # type: ignore[override] # it changes
        """Number of tokens of the last prompt that needed no forward pass."""
        return self._n_reused

    def _cached_ids(self) -> Sequence[int]:
        return self._cached

    def next_prefix(self, attachments: Sequence[Any] = ()) -> list[int]:
        """Return nothing: the server evaluates a prompt when it is sent."""
        return []

    def prefill_next(self, prefix: Sequence[int] | None = None, hooks: Hooks | None = None) -> None:
        """Do nothing: the server keeps what it evaluated."""

    def _generate(self, fit: Fit, reply: Message, hooks: Hooks | None) -> Iterator[Event]:
        """Generate what follows ``reply``; a stop closes the connection, which ends it there."""
        ids = list(fit.ids)
        self._seed = seed = self._sampling.new_seed()
        own = {
            "tokens": True,
            "end_ids": sorted(self.template.end_ids),
            "n_begun": len(reply.ids or ()),
            "leading": self._begin(reply),
        }
        body = {
            "prompt": ids,
            "max_tokens": self.max_tokens,
            "stop": list(self.stop),
            **asdict(self._sampling),
            "seed": seed,
            OWN_KEY: own,
        }
        n_written = 0
        for event in run(self._events(body), None if hooks is None else hooks.should_stop):
            if isinstance(event, Finish):
                self._n_reused = event.usage.cached_tokens
            else:
                n_written += 1
                ids.append(event.id)
            self._cached = ids
            yield event
            if isinstance(event, Finish):
                return
        usage = Usage(len(fit.ids), 0, n_written)
        yield Finish("interrupted", "", usage, Timings(0.0, 0.0, 0.0), seed)

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[Event]:
        has_begun = False
        try:
            async with (
                self._client.open() as connections,
                aclosing(chunks(self._client, connections, _ROUTE, body)) as source,
            ):
                async for chunk in source:
                    for event in events_of(chunk):
                        has_begun = True
                        yield event
        except LlamaChatError as error:
            if not has_begun and not isinstance(error, LostServer):
                raise  # a refusal
            kind = CutOffError if has_begun else LlamaChatError
            raise kind(error.what, error.why, _LOST) from None


class WarmChatModel:
    """A model that a warm server has loaded, and its vocabulary here."""

    n_bytes = 0
    """Bytes of its weights here."""
    warnings: Sequence[str] = ()
    """Warnings for the user."""

    def __init__(
        self, client: Client, facts: dict[str, Any], checkpoint: Checkpoint, tokenizer: Tokenizer
    ) -> None:
        """Combine the parts.

        Args:
            client: sends to the server.
            facts: what the server says of itself.
            checkpoint: the same model; no weight of it is read.
            tokenizer: its vocabulary.
        """
        self.name = checkpoint.name
        self.tokenizer: Tokenizer | None = tokenizer
        self._client = client
        self._context = int(facts["context"])
        self._checkpoint = checkpoint
        self._vocabulary = tokenizer

    @property
    def summary(self) -> str:
        """Description of its place, for display."""
        return f"on the warm server · context {self._context}"

    @property
    def defaults(self) -> GenerationDefaults:
        """Settings that it suggests."""
        return self._checkpoint.generation

    def template(self, name: str = "auto", variant: str | None = None) -> ChatTemplate:
        """Return the chat template ``name``, or that of the checkpoint."""
        return choose_template(name, self._checkpoint.templates, self._vocabulary, variant)

    def chat(
        self,
        *,
        conversation: Conversation | None = None,
        template: str = "auto",
        template_name: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> WarmSession:
        """Begin or continue a conversation."""
        return WarmSession(
            self._client,
            self.template(template, template_name),
            self._vocabulary,
            self._context,
            conversation=conversation,
            notify=notify,
        )


@dataclass(frozen=True, slots=True)
class WarmPlan:
    """Plan to chat with the model of a warm server."""

    socket: Path
    facts: dict[str, Any]
    """Description that the server gives of itself."""
    model_path: Path

    def check_fit(self) -> None:
        """Do nothing: no memory is needed here."""

    def load(self, report: Callable[[int, int], None] | None = None) -> WarmChatModel:
        """Read the vocabulary.

        Raises:
            ModelError: if it cannot be read.
        """
        from llama_chat.loading.formats import load_tokenizer, open_checkpoint

        checkpoint = open_checkpoint(self.model_path)
        tokenizer = load_tokenizer(checkpoint)
        return WarmChatModel(client_of(self.socket), self.facts, checkpoint, tokenizer)
