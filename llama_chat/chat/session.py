"""Chat session: a conversation, and the engine that generates its replies."""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from llama_chat.chat.context_use import ContextRow, ContextUse, Fit
from llama_chat.chat.conversation import Attachment, Conversation, Message
from llama_chat.chat.templates import ChatTemplate
from llama_chat.errors import NothingYetError, PromptTooLongError, UsageError, counted
from llama_chat.generation.constraints import Grammar
from llama_chat.generation.continuation import Request
from llama_chat.generation.engine import Engine
from llama_chat.generation.events import Event, Finish, Hooks
from llama_chat.generation.kv_cache import common_prefix
from llama_chat.generation.logprobs import TokenLogprobs
from llama_chat.generation.sampling import Sampler
from llama_chat.model.transformer import InterruptedForward
from llama_chat.settings.sampling import Sampling
from llama_chat.settings.settings import Settings
from llama_chat.tokenizers.base import AtLeast
from llama_chat.tokenizers.streaming import StreamingDecoder


def no_space(n_tokens: int, context: int) -> PromptTooLongError:
    """Return the error for a conversation of ``n_tokens``, after which no reply fits."""
    return PromptTooLongError(
        "conversation",
        f"{n_tokens} tokens leave no space for a reply in the context of {context}",
        "shorten the message, or begin anew",
    )


class ChatSession:
    """A conversation, and the engine whose KV cache holds its tokens.

    Every command edits only the conversation; the engine then prefills the tokens that differ.
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate,
        sampling: Sampling | None = None,
        *,
        conversation: Conversation | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        drop_oldest: bool = True,
        lookup: bool = True,
        grammar: Grammar | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        """Begin or continue a conversation.

        Args:
            engine: the model; its cache is this session's from now on.
            template: the chat template, which encodes messages.
            sampling: the sampling settings.
            conversation: the conversation to continue; a new one if None.
            max_tokens: length limit of a reply in tokens.
            stop: stop strings; a reply ends before any of them.
            drop_oldest: True to drop the oldest turns when the context is full, False to raise.
            lookup: True to draft tokens from earlier text; see ``Engine.generate``.
            grammar: grammar that every reply must meet.
            notify: called with one-line notices for the user.
        """
        self.engine = engine
        self.template = template
        self.conversation = conversation or Conversation()
        self.sampler = Sampler(sampling or Sampling(), with_logprobs=True)
        self.max_tokens = max_tokens
        self.stop, self.drop_oldest = tuple(stop), drop_oldest
        self.lookup = lookup
        self.grammar = grammar
        self._notify = notify
        self.prompt_ids: list[int] = []  # of the last reply
        self._last_use: tuple[tuple[object, ...], ContextUse] | None = None

    def configure(self, settings: Settings) -> None:
        """Apply the settings; earlier turns stay as they are."""
        self.sampler.sampling = settings.sampling
        self.max_tokens = settings.max_tokens
        self.stop = settings.stop
        self.drop_oldest = settings.overflow == "drop-oldest"
        self.lookup = settings.lookup
        self.conversation.system = settings.system

    @property
    def ids(self) -> list[int]:
        """Token ids of the conversation, without dropped turns."""
        return self.template.render(self.conversation.messages())

    def count(self, typed: str = "", attachments: Sequence[Attachment] = ()) -> int:
        """Return the number of tokens of the conversation, including the message being typed."""
        messages = self.conversation.messages()
        if typed or attachments:
            messages.append(Message("user", typed, attachments=tuple(attachments)))
        return self._length(messages)

    def _length(self, messages: Sequence[Message], *, open_reply: bool = False) -> int:
        """Return the number of tokens of ``messages``, or their excess."""
        return self._excess(messages) or len(self.template.render(messages, open_reply=open_reply))

    def _excess(self, messages: Sequence[Message]) -> AtLeast | None:
        """Return a lower bound of the tokens of ``messages`` if that alone exceeds the context."""
        least = AtLeast(self.template.min_tokens(messages))
        return least if least > self.engine.context else None

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
        except UsageError:  # the template refuses the conversation; it is said when that is sent
            return ContextUse(n_tokens, 0)
        return ContextUse(n_tokens, fit.n_turns)

    def _fit_key(self) -> tuple[object, ...]:
        """Return all that decides which turns fit, by value, since messages change in place."""
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
            raise no_space(excess, self.engine.context)
        ids = self.ids
        cached = common_prefix(self.engine.cache.ids, ids)
        turns = [message for message in messages if message.number]
        rows, start = [], 0
        for i, message in enumerate(messages, 1):
            # Common prefix, since a template may move the system message to the last turn.
            end = common_prefix(self.template.render(messages[:i]), ids)
            known = max(min(cached, end) - start, 0)
            # The last turn is never dropped.
            goes_next = len(turns) > 2 and message in turns[:2]
            rows.append(ContextRow(message, ids[start:end], known, goes_next))
            start = end
        return rows

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
        if tags := self.template.find_tags(message.content):
            self._tell(f"{', '.join(tags)} in the message is passed on as plain text")
        self._tell_dropped(fit)
        message.n_dropped = reply.n_dropped = fit.n_dropped
        mark = conversation.mark()
        for added in new:
            conversation.add(added)
        yield from self._reply(fit.ids, reply, hooks, lambda: conversation.reset(mark))

    def request(self, text: str) -> Request:
        """Encode a message as ``send`` would, to be generated elsewhere; nothing is recorded.

        Raises:
            PromptTooLongError: if it does not fit.
        """
        fit = self._fit(Message("user", text), self._open_reply(""))
        return Request(
            fit.ids,
            Sampler(self.sampler.sampling, with_logprobs=True),
            self.max_tokens,
            self.stop,
            self.template.end_ids,
            leading="strip",
            grammar=self.grammar,
        )

    def retry(self, hooks: Hooks | None = None, *, reply_prefix: str = "") -> Iterator[Event]:
        """Generate another reply to the last user message; the earlier one stays as a version.

        Raises:
            UsageError: if there is no message yet.
            PromptTooLongError: if it does not fit; the conversation is then unchanged.
        """
        conversation = self.conversation
        mark, question = conversation.mark(), conversation.question()
        if question is None:
            raise NothingYetError("retry")
        reply = self._open_reply(reply_prefix)
        conversation.head = question
        try:
            fit = self._fit(reply)
        except PromptTooLongError:
            conversation.reset(mark)
            raise
        self._tell_dropped(fit)
        reply.n_dropped = fit.n_dropped
        conversation.add(reply)
        yield from self._reply(fit.ids, reply, hooks, lambda: conversation.reset(mark))

    def resume(self, hooks: Hooks | None = None) -> Iterator[Event]:
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
        yield from self._reply(fit.ids, reply, hooks, undo)

    def next_prefix(self, attachments: Sequence[Attachment] = ()) -> list[int]:
        """Token prefix shared by every possible next message with these attachments.

        It is that without attachments, or none, if no such message can fit.
        If the template refuses the conversation, it is what the cache has.
        """
        messages = self.conversation.messages()
        # Two messages without a common beginning share only what the template puts before them.
        probes = [Message("user", text, attachments=tuple(attachments)) for text in "A7"]
        try:
            if self._excess([*messages, probes[0]]):
                return self.next_prefix() if attachments else []
            if messages and messages[-1].role == "assistant" and not attachments:
                return self.template.render(messages)
            one, other = (self.template.render([*messages, probe]) for probe in probes)
        except UsageError:
            return list(self.engine.cache.ids)
        return one[: common_prefix(one, other)]

    def prefill_next(self, prefix: Sequence[int] | None = None, hooks: Hooks | None = None) -> None:
        """Prefill the prefix of the next message; if stopped, that message prefills the rest.

        Args:
            prefix: result of ``next_prefix``; None for that without attachments.
            hooks: hooks to follow and stop it.
        """
        prefix = self.next_prefix() if prefix is None else prefix
        if len(prefix) <= self.engine.context:
            with suppress(InterruptedForward):
                self.engine.prefill_cached(prefix, hooks)

    def _open_reply(self, reply_prefix: str) -> Message:
        """Return a new reply, which holds only ``reply_prefix`` so far."""
        ids = self.template.encode_reply(reply_prefix) if reply_prefix else ()
        return Message("assistant", reply_prefix, ids, interrupted=True)

    def _reply(
        self, ids: list[int], reply: Message, hooks: Hooks | None, undo: Callable[[], None]
    ) -> Iterator[Event]:
        """Generate after ``ids`` into ``reply``, and prefill the end of the turn.

        ``reply`` always holds what was yielded so far, and is interrupted until it is complete.

        Args:
            ids: the conversation, including what ``reply`` begins with.
            reply: the message to fill.
            hooks: hooks to follow and stop the generation.
            undo: restores the conversation, if anything fails before the first event.
        """
        self.prompt_ids = ids
        reply.interrupted = True
        reply.logprobs = reply.logprobs or TokenLogprobs()
        if reply.ids is not None:
            # Without the U+FFFD of a character that was cut off.
            reply.text = StreamingDecoder(self.engine.tokenizer, "strip").decode(reply.ids)
        events = self.engine.generate(
            ids,
            self.sampler,
            max_tokens=self.max_tokens,
            stop=self.stop,
            end_ids=self.template.end_ids,
            n_begun=len(reply.ids or ()),
            # A reply known only as text continues directly after its last character.
            leading="keep" if reply.ids is None else "strip",
            lookup=self.lookup,
            grammar=self.grammar,
            hooks=hooks,
        )
        try:
            first = next(events)
        except BaseException:
            undo()
            raise
        for event in itertools.chain([first], events):
            reply.text += event.text
            if isinstance(event, Finish):
                self._end(reply, event)
            else:
                reply.ids = None if reply.ids is None else (*reply.ids, event.id)
                reply.logprobs.add(event.id, event.logprob, event.alternatives)
            yield event

    def _end(self, reply: Message, finish: Finish) -> None:
        """Record how a reply ended, and prefill the end of the turn."""
        reply.interrupted = finish.reason == "interrupted"
        if finish.stopped_at is not None:
            reply.ids = None  # they reach into the stop string, the text does not
        if finish.usage.completion_tokens or not reply.interrupted:
            self.prefill_next()

    def _fit(self, *new: Message) -> Fit:
        """Encode the path with ``new`` at its end, dropping oldest turns so that a reply fits.

        Raises:
            PromptTooLongError: if the last turn alone does not fit, or no turn may be dropped.
        """
        context, conversation = self.engine.context, self.conversation
        reply_budget = min(self.max_tokens or context, context // 4)
        preface, turns = conversation.preface(), [*conversation.path(), *new]

        def shown(n_dropped: int) -> list[Message]:
            return [*preface, *turns[2 * n_dropped :]]

        def length(n_dropped: int) -> int:
            return self._length(shown(n_dropped), open_reply=True)

        def fits(n_dropped: int) -> bool:
            return length(n_dropped) + reply_budget <= context

        n_dropped = conversation.n_dropped
        n_tokens = n_all = length(n_dropped)
        if n_tokens + reply_budget > context and self.drop_oldest:
            # The last turn is never dropped. Fewer turns take fewer tokens, so bisection finds
            # the first number that fits.
            n_dropped += bisect_left(range(n_dropped, (len(turns) - 1) // 2), True, key=fits)
            n_tokens = length(n_dropped)
        if n_tokens >= context:
            raise no_space(n_tokens, context)
        ids, n_left_out = self.template.render(shown(n_dropped), open_reply=True), n_all - n_tokens
        return Fit(ids, n_dropped, n_dropped - conversation.n_dropped, type(n_all)(n_left_out))

    def _tell_dropped(self, fit: Fit) -> None:
        if fit.n_turns:
            turns = "turn is" if fit.n_turns == 1 else f"{fit.n_turns} turns are"
            self._tell(
                f"the context is full: the oldest {turns} no longer shown to the model "
                f"({counted(fit.n_tokens, 'token')})"
            )

    def _tell(self, line: str) -> None:
        if self._notify:
            self._notify(line)
