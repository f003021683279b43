"""Chat session with a model on a server."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

from llama_chat.chat.context_use import ContextRow, ContextUse, Fit
from llama_chat.chat.conversation import Attachment, Conversation, Message
from llama_chat.chat.session import ChatSession
from llama_chat.endpoint.served_model import CHAT_ROUTE, Call, ServedModel
from llama_chat.errors import PromptTooLongError, UsageError
from llama_chat.generation.events import Event, Finish, Hooks, Token
from llama_chat.generation.logprobs import Scored
from llama_chat.settings.sampling import Sampling
from llama_chat.settings.settings import Settings

_CHARACTERS_OF_A_TOKEN = 4.0
"""Assumed characters per token, until the server has counted tokens."""

_N_FIRST = 20
"""Likely first tokens of a reply that are asked for to choose between replies."""

_CONTINUES = {"continue_final_message": True, "add_generation_prompt": False}
"""Fields that make vLLM and others continue the last message; the rest do so anyway."""


def is_unknown_here(what: str) -> UsageError:
    """Return the error for a command that needs tokens which only the server knows."""
    why = "the server encodes the messages"
    return UsageError(what, why, "--template-here MODEL encodes them here")


class RemoteSession(ChatSession):
    """A conversation whose replies a server generates; it encodes the messages, too."""

    def __init__(
        self,
        model: ServedModel,
        *,
        conversation: Conversation | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        """Begin or continue a conversation.

        Args:
            model: the model on the server.
            conversation: the conversation to continue; a new one if None.
            notify: called with one-line notices for the user.
        """
        super().__init__(conversation, notify=notify)
        self.model = model
        self._sampling = Sampling()
        self._per_token = _CHARACTERS_OF_A_TOKEN
        self._n_reused = 0

    def configure(self, settings: Settings) -> None:
        """Apply the settings; earlier turns stay as they are."""
        super().configure(settings)
        self._sampling = settings.sampling

    @property
    def context(self) -> int | None:
        """Context length in tokens, if the server says it."""
        return self.model.context

    @property
    def seed(self) -> int | None:
        """Seed of the random numbers, if it is given."""
        return self._sampling.seed

    @property
    def template_name(self) -> str:
        """Text shown in place of the name, which only the server knows."""
        return "the server's"

    @property
    def n_reused(self) -> int:  # type: ignore[override] # it changes
        """Number of tokens of the last prompt that the server had cached, as it reports."""
        return self._n_reused

    def context_use(self, typed: str, attachments: Sequence[Attachment] = ()) -> ContextUse:
        """Estimate the context usage, from what the server counted last."""
        messages = [*self.conversation.messages()]
        if typed or attachments:
            messages.append(Message("user", typed, attachments=tuple(attachments)))
        n_tokens = math.ceil(_length(messages) / self._per_token)
        return ContextUse(n_tokens, 0, is_exact=False)

    def context_rows(self) -> list[ContextRow]:
        """Refuse, since the tokens of a message are not known here."""
        raise is_unknown_here("tokens of a message")

    def piece(self, token_id: int) -> str:
        """Return a token as text."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the text of a token that the server has named."""
        return self.model.seen[token_id]

    def request(self, text: str, *, with_logprobs: bool = True) -> Call:
        """Return the request of ``send``, to be sent elsewhere; nothing is recorded.

        Without ``with_logprobs`` it is asked for no likely alternatives of tokens.

        Raises:
            PromptTooLongError: if it does not fit.
        """
        reply = self._open_reply("")
        n_logprobs = None if with_logprobs else 0
        return self._call(self._fit(Message("user", text), reply), reply, n_logprobs=n_logprobs)

    def next_prefix(self, attachments: Sequence[Attachment] = ()) -> list[int]:
        """Return nothing, since no token is evaluated here."""
        return []

    def prefill_next(self, prefix: Sequence[int] | None = None, hooks: Hooks | None = None) -> None:
        """Do nothing: the server decides what it caches."""

    def score(self, message: str, texts: Sequence[str], hooks: Hooks | None = None) -> list[Scored]:
        """Score replies to a message by their first tokens.

        A reply whose first token is not among the likeliest gets the score of the least of those.
        """
        call = self._request_first(message)
        events = list(self.model.generate(call, hooks, self._tell))
        first = next((event for event in events if isinstance(event, Token)), None)
        if first is None or not first.alternatives:
            why = "the server gives no log-probabilities"
            raise UsageError("choices", why, "use a server that does, or a local model")
        found = [self._begins(text, first) for text in texts]
        tokens = [token_id for ids in found for token_id in ids]
        if not tokens:
            why = "the reply begins with none of them, as the server says"
            raise UsageError("choices", why, "ask for one of them in the question")
        if len(tokens) != len(set(tokens)):
            why = "two begin with the same token, and a server scores first tokens alone"
            raise UsageError("choices", why, "let them begin differently, or use a local model")
        known = dict(first.alternatives)
        least = min(known.values())
        return [
            Scored(ids[:1], [_log_sum([known[i] for i in ids])])
            if ids
            else Scored([self.model.seen.number(text.encode())], [least])
            for text, ids in zip(texts, found, strict=True)
        ]

    def _request_first(self, message: str) -> Call:
        """Return the request for the likeliest first tokens of the reply to a message."""
        reply = self._open_reply("")
        fit = self._fit(Message("user", message), reply)
        return self._call(fit, reply, max_tokens=1, n_logprobs=_N_FIRST)

    def _begins(self, text: str, first: Token) -> list[int]:
        """Return the likely first tokens that ``text`` begins with, with or without a space."""
        pieces = {i: self.model.seen[i].decode("utf-8", "replace") for i, _ in first.alternatives}
        return [
            i
            for i, piece in pieces.items()
            if (beginning := piece.lstrip(" ▁\n")) and text.startswith(beginning)
        ]

    def _call(
        self,
        fit: Fit,
        reply: Message,
        *,
        max_tokens: int | None = None,
        n_logprobs: int | None = None,
    ) -> Call:
        """Return the request for what follows ``reply``, which is the last message of ``fit``."""
        shown = fit.messages if reply.text else fit.messages[:-1]
        dialog = [{"role": each.role, "content": each.content} for each in shown]
        return self._continuing(
            CHAT_ROUTE,
            {"messages": dialog},
            max_tokens,
            n_logprobs,
            extra=_CONTINUES if reply.text else {},
        )

    def _continuing(
        self,
        route: str,
        prompt: dict[str, Any],
        max_tokens: int | None,
        n_logprobs: int | None,
        extra: dict[str, Any] | None = None,
        in_text: str | None = None,
    ) -> Call:
        """Return the request to continue a prompt with the settings of the session."""
        return self.model.call(
            route,
            prompt,
            self._sampling,
            max_tokens=self.max_tokens if max_tokens is None else max_tokens,
            stop=self.stop,
            n_logprobs=self.model.n_logprobs if n_logprobs is None else n_logprobs,
            extra=extra,
            in_text=in_text,
        )

    def _fit(self, *new: Message) -> Fit:
        """Return the path with ``new`` at its end; only the server knows what fits."""
        conversation = self.conversation
        n_dropped = conversation.n_dropped
        turns = [*conversation.path(), *new][2 * n_dropped :]
        return Fit([], [*conversation.preface(), *turns], n_dropped, 0, 0)

    def _generate(self, fit: Fit, reply: Message, hooks: Hooks | None) -> Iterator[Event]:
        """Generate what follows ``reply``, without the oldest turns that the server refuses."""
        for n_left_out in count():
            has_begun = False
            try:
                for event in self.model.generate(self._call(fit, reply), hooks, self._tell):
                    if not has_begun and n_left_out:
                        self._drop(fit, reply, n_left_out)
                    has_begun = True
                    if isinstance(event, Finish):
                        self._measure(fit, reply, event)
                    yield event
            except PromptTooLongError:
                shorter = None if has_begun else self._shorter(fit)
                if shorter is None:
                    raise
                fit = shorter
            else:
                return

    def _shorter(self, fit: Fit) -> Fit | None:
        """Return a conversation without its oldest turn; None if no turn may be dropped."""
        n_preface = len(self.conversation.preface())
        if not self.drop_oldest or len(fit.messages) - n_preface <= 2:
            return None
        kept = [*fit.messages[:n_preface], *fit.messages[n_preface + 2 :]]
        return Fit([], kept, fit.n_dropped + 1, fit.n_newly_dropped + 1, 0)

    def _drop(self, fit: Fit, reply: Message, n_turns: int) -> None:
        """Record that the oldest turns were not shown to the model, and say so."""
        reply.n_dropped = fit.n_dropped
        if reply.parent is not None:
            reply.parent.n_dropped = fit.n_dropped
        turns = "turn is" if n_turns == 1 else f"{n_turns} turns are"
        self._tell(f"the context is full: the oldest {turns} no longer shown to the model")

    def _measure(self, fit: Fit, reply: Message, finish: Finish) -> None:
        """Update the characters per token with the counts of the server."""
        usage = finish.usage
        self._n_reused = usage.cached_tokens
        n_tokens = usage.prompt_tokens + usage.completion_tokens
        if usage.counted_by == "server" and n_tokens:
            n_characters = _length(fit.messages[:-1]) + len(reply.text) + len(finish.text)
            self._per_token = max(n_characters / n_tokens, 1e-6)

    def _record(self, reply: Message, token: Token) -> None:
        """Add a token to ``reply``."""
        reply.ids = None
        if reply.logprobs is not None and token.id >= 0:
            reply.logprobs.add(token.id, token.logprob, token.alternatives)

    def _ended(self, reply: Message, finish: Finish) -> None:
        """Keep the reply as text."""
        reply.ids = None


def _length(messages: Sequence[Message]) -> int:
    """Return the characters of messages."""
    return sum(len(message.content) for message in messages)


def _log_sum(logprobs: Sequence[float]) -> float:
    """Return the logarithm of the sum of probabilities, given by their logarithms."""
    return math.log(min(sum(map(math.exp, logprobs)), 1.0) or 5e-324)
