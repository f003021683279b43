"""One conversation with one model, and the cache that follows it."""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from llama_chat.chat.conversation import Attachment, Conversation, Message
from llama_chat.chat.templates import ChatTemplate
from llama_chat.errors import PromptTooLongError, UsageError
from llama_chat.generation.engine import Engine
from llama_chat.generation.events import Event, Finish, Hooks
from llama_chat.generation.kv_cache import common_prefix
from llama_chat.generation.logprobs import TokenLogprobs
from llama_chat.generation.sampling import Sampler
from llama_chat.model.transformer import InterruptedForward
from llama_chat.settings.definitions import Sampling, Settings
from llama_chat.tokenizers.streaming import StreamingDecoder


@dataclass(frozen=True, slots=True)
class ContextRow:
    """What one message takes of the context."""

    message: Message
    ids: Sequence[int]
    """Its tokens with those of the template around it."""
    cached: int
    """How many of them are in the cache."""
    goes_next: bool
    """Whether it is of the oldest turn, which is dropped first when the context is full."""


@dataclass(frozen=True, slots=True)
class ContextUse:
    """Part of the context that a conversation takes, with a message that may be sent next."""

    n_tokens: int
    n_dropped: int | None
    """Turns that sending the message would drop; None if it does not fit at all."""


class ChatSession:
    """A conversation is a list of ids, and the cache follows it.

    Every command edits the conversation and nothing else; the engine prefills what differs.
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
        notify: Callable[[str], None] | None = None,
    ) -> None:
        """Begin or go on with a conversation.

        Args:
            engine: the model; its cache is this session's from now on.
            template: how messages become ids.
            sampling: how tokens are chosen.
            conversation: what has been said; a new one if None.
            max_tokens: end a reply after so many tokens.
            stop: end a reply before any of these texts.
            drop_oldest: whether a full context drops the oldest turns, or raises.
            lookup: whether drafts make replies faster; see ``Engine.generate``.
            notify: told, in one line, what the session does that a person should know.
        """
        self.engine = engine
        self.template = template
        self.conversation = conversation or Conversation()
        self.sampler = Sampler(sampling or Sampling(), with_logprobs=True)
        self.max_tokens = max_tokens
        self.stop = tuple(stop)
        self.drop_oldest = drop_oldest
        self.lookup = lookup
        self._notify = notify
        self._last_use: tuple[tuple[object, ...], ContextUse] | None = None

    def configure(self, settings: Settings) -> None:
        """Follow the settings; earlier messages stay as they are."""
        self.sampler.sampling = settings.sampling
        self.max_tokens = settings.max_tokens
        self.stop = settings.stop
        self.drop_oldest = settings.overflow == "drop-oldest"
        self.lookup = settings.lookup
        self.conversation.system = settings.system

    @property
    def ids(self) -> list[int]:
        """The conversation as the model is shown it."""
        return self.template.render(self.conversation.messages())

    def count(self, typed: str = "", attachments: Sequence[Attachment] = ()) -> int:
        """How many tokens the conversation takes, with what is typed as the next message if any."""
        messages = self.conversation.messages()
        if typed or attachments:
            messages.append(Message("user", typed, attachments=tuple(attachments)))
        return len(self.template.render(messages))

    def context_use(self, typed: str, attachments: Sequence[Attachment] = ()) -> ContextUse:
        """Part of the context that the conversation takes with ``typed`` as its next message.

        The last answer is kept: a toolbar asks again whenever it is drawn.
        """
        attachments = tuple(attachments)
        question = (typed, attachments, self._fit_key())
        if self._last_use is None or self._last_use[0] != question:
            self._last_use = question, self._context_use(typed, attachments)
        return self._last_use[1]

    def _context_use(self, typed: str, attachments: tuple[Attachment, ...]) -> ContextUse:
        n_tokens = self.count(typed, attachments)
        try:
            fit = self._fit(Message("user", typed, attachments=attachments))
        except PromptTooLongError:
            return ContextUse(n_tokens, None)
        return ContextUse(n_tokens, fit.n_turns)

    def _fit_key(self) -> tuple[object, ...]:
        """All that decides which turns fit, by value: messages change in place."""
        conversation = self.conversation
        messages = conversation.messages()
        shown = tuple((each.role, each.text, each.ids, each.attachments) for each in messages)
        return (shown, conversation.n_dropped, self.template, self.max_tokens, self.drop_oldest)

    def context_rows(self) -> list[ContextRow]:
        """What each message takes of the context, and how much of that is cached.

        A template may fold the system message into a user message, which then has both.
        """
        messages = self.conversation.messages()
        ids = self.ids
        cached = common_prefix(self.engine.cache.ids, ids)
        turns = [message for message in messages if message.number]
        rows, start = [], 0
        for i, message in enumerate(messages, 1):
            # Not all that stands there: a template may move the system message to the last turn.
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
        """Say ``text`` and yield the reply as it comes.

        The reply is recorded however the generation ends; if the caller closes the generator it
        is marked as interrupted. Whatever fails before the first token leaves the conversation as
        it was.

        Args:
            text: the message.
            hooks: how to follow and stop it.
            attachments: texts in front of it.
            reply_prefix: text that the reply begins with; it is not yielded.

        Raises:
            PromptTooLongError: if it does not fit; the conversation is then as before.
        """
        conversation = self.conversation
        message = Message("user", text, attachments=tuple(attachments))
        reply = self._open_reply(reply_prefix)
        new = [message, reply]
        if conversation.head is not None and conversation.head.role == "user":
            # One that was never answered: roles alternate all the same.
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

    def retry(self, hooks: Hooks | None = None, *, reply_prefix: str = "") -> Iterator[Event]:
        """Answer the last message once more; the earlier answer stays as a version.

        Raises:
            UsageError: if nothing was said yet.
            PromptTooLongError: if it does not fit; the conversation is then as before.
        """
        conversation = self.conversation
        mark, question = conversation.mark(), conversation.question()
        if question is None:
            raise UsageError("retry", "nothing was said yet", "type a message first")
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
        """Go on with the last reply where it ended, from the very same cache.

        Raises:
            UsageError: if nothing was said yet.
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
        """Token prefix shared by every possible next message with these attachments."""
        messages = self.conversation.messages()
        if messages and messages[-1].role == "assistant" and not attachments:
            return self.template.render(messages)
        # Whatever a template puts around a message, it is the same around any two of them.
        probes = [Message("user", text, attachments=tuple(attachments)) for text in "A7"]
        one, other = (self.template.render([*messages, probe]) for probe in probes)
        return one[: common_prefix(one, other)]

    def prefill_next(self, prefix: Sequence[int] | None = None, hooks: Hooks | None = None) -> None:
        """Prefill the prefix of the next message; if stopped, that message prefills the rest.

        Args:
            prefix: what ``next_prefix`` returned; None for that without attachments.
            hooks: hooks to follow and stop it.
        """
        prefix = self.next_prefix() if prefix is None else prefix
        if len(prefix) <= self.engine.context:
            with suppress(InterruptedForward):
                self.engine.prefill_cached(prefix, hooks)

    def _open_reply(self, reply_prefix: str) -> Message:
        """A reply that is still to be written, but for the words it begins with."""
        ids = self.template.encode_reply(reply_prefix) if reply_prefix else ()
        return Message("assistant", reply_prefix, ids, interrupted=True)

    def _reply(
        self, ids: list[int], reply: Message, hooks: Hooks | None, undo: Callable[[], None]
    ) -> Iterator[Event]:
        """Generate what follows ``ids`` into ``reply``, and prefill the end of the turn.

        At every instant ``reply`` holds what was yielded, and is interrupted until it is complete.

        Args:
            ids: the conversation, up to the words that the reply begins with.
            reply: the message to fill.
            hooks: hooks to follow and stop the generation.
            undo: restores the conversation, if anything fails before the first event.
        """
        reply.interrupted = True
        reply.logprobs = reply.logprobs or TokenLogprobs()
        if reply.ids is not None:
            # Less what stood for a character that was cut in half.
            reply.text = StreamingDecoder(self.engine.tokenizer, "strip").decode(reply.ids)
        events = self.engine.generate(
            ids,
            self.sampler,
            max_tokens=self.max_tokens,
            stop=self.stop,
            n_begun=len(reply.ids or ()),
            # One known only as text goes on behind its last character.
            leading="keep" if reply.ids is None else "strip",
            lookup=self.lookup,
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
        """Record how a reply ended, and read the end of the turn."""
        reply.interrupted = finish.reason == "interrupted"
        if finish.stopped_at is not None:
            reply.ids = None  # they say more than was shown: the text counts
        if finish.usage.completion_tokens or not reply.interrupted:
            self.prefill_next()

    def _fit(self, *new: Message) -> "_Fit":
        """Path with ``new`` at its end, less the oldest turns if a reply would not fit after it.

        Raises:
            PromptTooLongError: with the exact counts, if the policy or the last message forbids.
        """
        context, conversation = self.engine.context, self.conversation
        reply_budget = min(self.max_tokens or context, context // 4)
        preface, turns = conversation.preface(), [*conversation.path(), *new]

        def render(n_dropped: int) -> list[int]:
            return self.template.render([*preface, *turns[2 * n_dropped :]], open_reply=True)

        def fits(n_dropped: int) -> bool:
            return len(render(n_dropped)) + reply_budget <= context

        n_dropped = conversation.n_dropped
        ids = all_ids = render(n_dropped)
        if len(ids) + reply_budget > context and self.drop_oldest:
            # The last turn is never dropped. Fewer turns take fewer tokens, so bisection finds
            # the first number that fits.
            n_dropped += bisect_left(range(n_dropped, (len(turns) - 1) // 2), True, key=fits)
            ids = render(n_dropped)
        if len(ids) >= context:
            raise PromptTooLongError(
                "conversation",
                f"{len(ids)} tokens leave no room for a reply in the context of {context}",
                "shorten the message, or begin anew",
            )
        return _Fit(ids, n_dropped, n_dropped - conversation.n_dropped, len(all_ids) - len(ids))

    def _tell_dropped(self, fit: "_Fit") -> None:
        if fit.n_turns:
            turns = "turn is" if fit.n_turns == 1 else f"{fit.n_turns} turns are"
            self._tell(
                f"the context is full: the oldest {turns} no longer shown to the model "
                f"({fit.n_tokens} tokens)"
            )

    def _tell(self, line: str) -> None:
        if self._notify is not None:
            self._notify(line)


@dataclass(frozen=True, slots=True)
class _Fit:
    """A conversation that fits, and what was left out for that."""

    ids: list[int]
    n_dropped: int
    """Turns left out of the path, now and earlier."""
    n_turns: int
    """Turns left out now."""
    n_tokens: int
    """Their tokens."""
