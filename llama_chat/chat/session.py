"""Chat session: a conversation, and the generation of its replies, locally or on a server."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from llama_chat.chat.context_use import ContextRow, ContextUse, Fit
from llama_chat.chat.conversation import Attachment, Conversation, Message
from llama_chat.chat.templates import ChatTemplate
from llama_chat.checkpoints.generation_defaults import GenerationDefaults
from llama_chat.errors import NothingYetError, counted
from llama_chat.generation.events import Event, Finish, Hooks, Token
from llama_chat.generation.logprobs import TokenLogprobs
from llama_chat.generation.stopping import stop_strings
from llama_chat.settings.settings import Settings
from llama_chat.tokenizers.base import Tokenizer


class ChatSession(ABC):
    """A conversation, and the generation of its replies.

    Commands only edit the conversation; the session finds out what has changed.
    """

    template: ChatTemplate | None = None
    """Chat template that encodes messages; None if a server does that."""
    n_bytes = 0
    """Bytes of local memory that the session takes, beside the model."""
    n_evaluated: int | None = None
    """Number of tokens evaluated so far; None if it is not known."""
    n_reused = 0
    """Number of tokens of the last prompt that needed no forward pass."""

    def __init__(
        self,
        conversation: Conversation | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        drop_oldest: bool = True,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        """Begin or continue a conversation.

        Args:
            conversation: the conversation to continue; a new one if None.
            max_tokens: length limit of a reply in tokens.
            stop: stop strings; a reply ends before any of them.
            drop_oldest: True to drop the oldest turns when the context is full, False to raise.
            notify: called with one-line notices for the user.

        Raises:
            ValueError: if ``stop`` is one text.
        """
        self.conversation = conversation or Conversation()
        self.max_tokens = max_tokens
        self.stop, self.drop_oldest = stop_strings(stop), drop_oldest
        self._notify = notify

    def configure(self, settings: Settings) -> None:
        """Apply the settings; earlier turns stay as they are."""
        self.max_tokens = settings.max_tokens
        self.stop = settings.stop
        self.drop_oldest = settings.overflow == "drop-oldest"
        self.conversation.system = settings.system

    @property
    @abstractmethod
    def context(self) -> int | None:
        """Context length in tokens; None if it is not known."""

    @property
    @abstractmethod
    def seed(self) -> int | None:
        """Seed of the random numbers; None if it is drawn elsewhere."""

    @property
    @abstractmethod
    def template_name(self) -> str:
        """Name of the chat template, for display."""

    @abstractmethod
    def context_use(self, typed: str, attachments: Sequence[Attachment] = ()) -> ContextUse:
        """Return the context usage with ``typed`` as the next message; asked at every redraw."""

    @abstractmethod
    def context_rows(self) -> list[ContextRow]:
        """Return the context usage of each message.

        Raises:
            UsageError: if the tokens of a message are not known here.
            PromptTooLongError: if they are so long that they cannot fit.
        """

    @abstractmethod
    def piece(self, token_id: int) -> str:
        """Return the name of a token in the vocabulary."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """Return the text of a token in UTF-8; empty for a control token."""

    def send(
        self,
        text: str,
        hooks: Hooks | None = None,
        *,
        attachments: Sequence[Attachment] = (),
        reply_prefix: str = "",
    ) -> Iterator[Event]:
        """Send a user message, and yield the reply as it is generated.

        The reply is recorded however the generation ends; if the caller closes the generator, it
        is marked as interrupted. A failure before the first token leaves the conversation
        unchanged.

        Args:
            text: the message.
            hooks: hooks to follow and stop the generation.
            attachments: documents that precede the text.
            reply_prefix: text that the reply begins with; it is not yielded.

        Raises:
            PromptTooLongError: if it does not fit; the conversation is then unchanged.
        """
        conversation = self.conversation
        message = Message("user", text, attachments=tuple(attachments))
        reply = self._open_reply(reply_prefix)
        new = [message, reply]
        if conversation.head is not None and conversation.head.role == "user":
            # That message was never answered: an empty reply keeps the roles alternating.
            n_dropped = conversation.n_dropped
            new.insert(0, Message("assistant", "", (), interrupted=True, n_dropped=n_dropped))
        fit = self._fit(*new)
        if self.template and (tags := self.template.find_tags(message.content)):
            self._tell(f"{', '.join(tags)} in the message is passed on as plain text")
        self._tell_dropped(fit)
        message.n_dropped = reply.n_dropped = fit.n_dropped
        mark = conversation.mark()
        for added in new:
            conversation.add(added)
        yield from self._reply(fit, reply, hooks, lambda: conversation.reset(mark))

    def retry(self, hooks: Hooks | None = None, *, reply_prefix: str = "") -> Iterator[Event]:
        """Generate another reply to the last user message; the earlier one stays as a version.

        Raises:
            UsageError: if there is no message yet, or the template refuses the conversation.
            PromptTooLongError: if it does not fit; the conversation is then unchanged, as it is
                after any error before the first token.
        """
        conversation = self.conversation
        mark, question = conversation.mark(), conversation.question()
        if question is None:
            raise NothingYetError("retry")
        reply = self._open_reply(reply_prefix)
        try:
            conversation.head = question
            fit = self._fit(reply)
            self._tell_dropped(fit)
        except BaseException:
            conversation.reset(mark)
            raise
        reply.n_dropped = fit.n_dropped
        conversation.add(reply)
        yield from self._reply(fit, reply, hooks, lambda: conversation.reset(mark))

    def continue_reply(self, hooks: Hooks | None = None) -> Iterator[Event]:
        """Continue the last reply where it ended, or reply to a message that has no reply.

        Raises:
            UsageError: if there is no message yet.
            PromptTooLongError: if it does not fit.
        """
        reply = self.conversation.head
        if reply is None or reply.role == "user":
            yield from self.retry(hooks)
            return
        fit = self._fit()
        self._tell_dropped(fit)
        before = replace(reply)

        def undo() -> None:
            reply.text, reply.interrupted = before.text, before.interrupted
            reply.n_dropped, reply.logprobs = before.n_dropped, before.logprobs

        reply.n_dropped = fit.n_dropped
        yield from self._reply(fit, reply, hooks, undo)

    @abstractmethod
    def next_prefix(self, attachments: Sequence[Attachment] = ()) -> list[int]:
        """Token prefix shared by every possible next message; none if it is not known here."""

    @abstractmethod
    def prefill_next(self, prefix: Sequence[int] | None = None, hooks: Hooks | None = None) -> None:
        """Prefill the prefix of the next message, where that can be done."""

    @abstractmethod
    def _fit(self, *new: Message) -> Fit:
        """Prepare the path with ``new`` at its end, without the turns that do not fit.

        Raises:
            PromptTooLongError: if the last turn alone does not fit, or no turn may be dropped.
        """

    @abstractmethod
    def _generate(self, fit: Fit, reply: Message, hooks: Hooks | None) -> Iterator[Event]:
        """Generate what follows ``reply``; called before anything is yielded of it."""

    @abstractmethod
    def _record(self, reply: Message, token: Token) -> None:
        """Add a token to ``reply``, whose text already includes it."""

    @abstractmethod
    def _ended(self, reply: Message, finish: Finish) -> None:
        """Finish a reply."""

    def _open_reply(self, reply_prefix: str) -> Message:
        """Return a new reply, which holds only ``reply_prefix`` so far."""
        return Message("assistant", reply_prefix, interrupted=True)

    def _reply(
        self, fit: Fit, reply: Message, hooks: Hooks | None, undo: Callable[[], None]
    ) -> Iterator[Event]:
        """Generate into ``reply``.

        ``reply`` always holds what was yielded so far, and is interrupted until it is complete.

        Args:
            fit: the conversation, including what ``reply`` begins with.
            reply: the message to fill.
            hooks: hooks to follow and stop the generation.
            undo: restores the conversation, if anything fails before the first event.
        """
        reply.interrupted = True
        reply.logprobs = reply.logprobs or TokenLogprobs()
        try:
            events = self._generate(fit, reply, hooks)
            first = next(events)
        except BaseException:
            undo()
            raise
        for event in itertools.chain([first], events):
            reply.text += event.text
            if isinstance(event, Finish):
                reply.interrupted = event.reason == "interrupted"
                self._ended(reply, event)
            else:
                self._record(reply, event)
            yield event

    def _tell_dropped(self, fit: Fit) -> None:
        if fit.n_newly_dropped:
            turns = "turn is" if fit.n_newly_dropped == 1 else f"{fit.n_newly_dropped} turns are"
            self._tell(
                f"the context is full: the oldest {turns} no longer shown to the model "
                f"({counted(fit.n_dropped_tokens, 'token')})"
            )

    def _tell(self, line: str) -> None:
        if self._notify:
            self._notify(line)


class ChatModel(Protocol):
    """A model to chat with, local or on a server."""

    warnings: Sequence[str]
    """Warnings for the user, one line each."""

    @property
    def name(self) -> str:
        """Name for display."""

    @property
    def summary(self) -> str:
        """Description of its place and size, for display."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Vocabulary; None where it is not known here."""

    @property
    def defaults(self) -> GenerationDefaults:
        """Settings that it suggests."""

    @property
    def n_bytes(self) -> int:
        """Bytes of its weights in memory."""

    def template(self, name: str = "auto", variant: str | None = None) -> ChatTemplate:
        """Return the chat template ``name``.

        Raises:
            UsageError: if there is none, or it cannot be used.
        """

    def chat(
        self,
        *,
        conversation: Conversation | None = None,
        template: str = "auto",
        template_name: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> ChatSession:
        """Begin or continue a conversation."""
