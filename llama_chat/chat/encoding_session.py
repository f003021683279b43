"""Sessions that encode their messages locally, so that they know what fits in the context."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from llama_chat.chat.context_use import ContextRow, ContextUse, Fit, no_space
from llama_chat.chat.conversation import Attachment, Message
from llama_chat.chat.session import ChatSession
from llama_chat.chat.templates import ChatTemplate
from llama_chat.errors import PromptTooLongError, UsageError
from llama_chat.generation.kv_cache import common_prefix
from llama_chat.tokenizers.base import AtLeast, Tokenizer


class EncodingSession(ChatSession):
    """A conversation that a chat template encodes, for a context of known length."""

    template: ChatTemplate

    def __init__(
        self, template: ChatTemplate, tokenizer: Tokenizer, context: int, **options: Any
    ) -> None:
        """Begin or continue a conversation.

        Args:
            template: the chat template, which encodes messages.
            tokenizer: vocabulary of the model.
            context: context length in tokens.
            options: arguments of ``ChatSession``.
        """
        super().__init__(**options)
        self.template = template
        self._tokenizer = tokenizer
        self._context = context
        self._last_use: tuple[tuple[object, ...], ContextUse] | None = None

    @property
    def context(self) -> int:
        """Context length in tokens."""
        return self._context

    @property
    def tokenizer(self) -> Tokenizer:
        """Vocabulary of the model."""
        return self._tokenizer

    def _cached_ids(self) -> Sequence[int]:
        """Return the tokens that are known to be in a KV cache."""
        return ()

    @property
    def template_name(self) -> str:
        """Name of the chat template."""
        return self.template.name

    def piece(self, token_id: int) -> str:
        """Return the name of a token in the vocabulary."""
        return self.tokenizer.piece(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the text of a token in UTF-8; empty for a control token."""
        return self.tokenizer.token_bytes(token_id)

    @property
    def ids(self) -> list[int]:
        """Token ids of the conversation, without dropped turns."""
        return self.template.render(self.conversation.messages())

    def count(self, typed: str = "", attachments: Sequence[Attachment] = ()) -> int:
        """Return the number of tokens of the conversation, including the message being typed."""
        messages = self.conversation.messages()
        if typed or attachments:
            messages.append(Message("user", typed, attachments=tuple(attachments)))
        return self._excess(messages) or len(self.template.render(messages))

    def _excess(self, messages: Sequence[Message]) -> AtLeast | None:
        """Return a lower bound of the tokens of ``messages`` if that alone exceeds the context."""
        least = AtLeast(self.template.min_tokens(messages))
        return least if least > self.context else None

    def context_use(self, typed: str, attachments: Sequence[Attachment] = ()) -> ContextUse:
        """Return the context usage with ``typed`` as the next message.

        The last result is cached, since the toolbar asks at every redraw.
        """
        attachments = tuple(attachments)
        key = (typed, attachments, self._fit_key())
        if self._last_use is None or self._last_use[0] != key:
            self._last_use = key, self._context_use(typed, attachments)
        return self._last_use[1]

    def _context_use(self, typed: str, attachments: tuple[Attachment, ...]) -> ContextUse:
        n_tokens = 0
        try:
            n_tokens = self.count(typed, attachments)
            fit = self._fit(Message("user", typed, attachments=attachments))
        except PromptTooLongError:
            return ContextUse(n_tokens, None)
        except (
            UsageError
        ):  # the template refuses the conversation, which is reported when it is sent
            return ContextUse(n_tokens, 0)
        return ContextUse(n_tokens, fit.n_newly_dropped)

    def _fit_key(self) -> tuple[object, ...]:
        """Return everything that decides which turns fit, by value: messages change in place."""
        conversation = self.conversation
        messages = conversation.messages()
        shown = tuple((each.role, each.text, each.ids, each.attachments) for each in messages)
        return (shown, conversation.n_dropped, self.template, self.max_tokens, self.drop_oldest)

    def context_rows(self) -> list[ContextRow]:
        """Return the context usage of each message.

        A template may put the system message into a user message, whose row then counts both.

        Raises:
            PromptTooLongError: if they are so long that they cannot fit.
        """
        messages = self.conversation.messages()
        if excess := self._excess(messages):
            raise no_space(excess, self.context)
        ids = self.ids
        cached = common_prefix(self._cached_ids(), ids)
        turns = [message for message in messages if message.number]
        rows, start = [], 0
        for i, message in enumerate(messages, 1):
            # Common prefix, since a template may move the system message to the last turn.
            end = common_prefix(self.template.render(messages[:i]), ids)
            known = max(min(cached, end) - start, 0)
            # The last turn is never dropped.
            goes_next = self.drop_oldest and len(turns) > 2 and message in turns[:2]
            rows.append(ContextRow(message, ids[start:end], known, goes_next))
            start = end
        return rows

    def _open_reply(self, reply_prefix: str) -> Message:
        """Return a new reply, which holds only ``reply_prefix`` so far."""
        ids = self.template.encode_reply(reply_prefix) if reply_prefix else ()
        return Message("assistant", reply_prefix, ids, interrupted=True)

    def _fit(self, *new: Message) -> Fit:
        """Encode the path with ``new`` at its end, dropping oldest turns so that a reply fits."""
        context, conversation = self.context, self.conversation
        reply_budget = min(self.max_tokens or context, context // 4)
        preface, turns = conversation.preface(), [*conversation.path(), *new]

        def shown(n_dropped: int) -> list[Message]:
            return [*preface, *turns[2 * n_dropped :]]

        def encode(n_dropped: int) -> tuple[list[int], int]:
            """Return the ids and their number; only a bound if that exceeds the context."""
            messages = shown(n_dropped)
            if excess := self._excess(messages):
                return [], excess
            ids = self.template.render(messages, open_reply=True)
            return ids, len(ids)

        def fits(n_dropped: int) -> bool:
            return encode(n_dropped)[1] + reply_budget <= context

        n_dropped = conversation.n_dropped
        ids, n_all = encode(n_dropped)
        n_tokens = n_all
        if n_tokens + reply_budget > context and self.drop_oldest:
            # The last turn is never dropped. Fewer turns take fewer tokens, so bisection finds
            # the first number that fits.
            n_dropped += bisect_left(range(n_dropped, (len(turns) - 1) // 2), True, key=fits)
            ids, n_tokens = encode(n_dropped)
        if n_tokens >= context:
            raise no_space(n_tokens, context)
        n_newly_dropped = n_dropped - conversation.n_dropped
        n_dropped_tokens = type(n_all)(n_all - n_tokens)
        return Fit(ids, shown(n_dropped), n_dropped, n_newly_dropped, n_dropped_tokens)
