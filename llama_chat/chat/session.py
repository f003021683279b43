"""One conversation with one model, and the cache that follows it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from llama_chat.chat.conversation import Conversation, Message
from llama_chat.chat.prompt_files import Example
from llama_chat.chat.templates import ChatTemplate
from llama_chat.errors import PromptTooLongError, UsageError
from llama_chat.generation.engine import Engine, common_prefix
from llama_chat.generation.events import Event, Finish, Watch
from llama_chat.generation.sampling import Sampler, Sampling
from llama_chat.model.transformer import InterruptedForward


@dataclass(frozen=True, slots=True)
class ContextRow:
    """What one message takes of the context."""

    role: str
    tokens: int
    cached: int
    content: str


class ChatSession:
    """A conversation is a list of ids, and the cache follows it.

    Every command edits the conversation and nothing else; ``sync`` is the only way the cache
    changes, and it costs what differs.
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate,
        sampling: Sampling | None = None,
        *,
        system: str = "",
        examples: Sequence[Example] = (),
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        drop_oldest: bool = True,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        """Begin a conversation.

        Args:
            engine: the model; its cache is this session's from now on.
            template: how messages become ids.
            sampling: how tokens are chosen.
            system: the system message.
            examples: exchanges shown to the model before the first message.
            max_tokens: end a reply after so many tokens.
            stop: end a reply before any of these texts.
            drop_oldest: whether a full context drops the oldest turns, or raises.
            notify: told, in one line, what the session does that a person should know.
        """
        self.engine = engine
        self.template = template
        self.conversation = Conversation(system, examples)
        self.sampler = Sampler(sampling or Sampling())
        self.max_tokens = max_tokens
        self.stop = tuple(stop)
        self._drop_oldest = drop_oldest
        self._notify = notify

    def sync(self, ids: Sequence[int], watch: Watch | None = None) -> None:
        """Make the cache hold exactly ``ids``; see ``Engine.sync``."""
        self.engine.sync(ids, watch)

    @property
    def ids(self) -> list[int]:
        """The conversation as the model is shown it."""
        return self.template.render(self.conversation.messages())

    def count(self, typed: str = "") -> int:
        """How many tokens the conversation takes, with ``typed`` as the next message if any."""
        messages = self.conversation.messages()
        return len(self.template.render([*messages, Message("user", typed)] if typed else messages))

    def context_rows(self) -> list[ContextRow]:
        """What each message takes of the context, and how much of that is cached.

        A template may fold the system message into the first user message, which then has both.
        """
        messages = self.conversation.messages()
        cached = common_prefix(self.engine.cache.ids, self.ids)
        rows, start = [], 0
        for i, message in enumerate(messages, 1):
            end = len(self.template.render(messages[:i]))
            known = max(min(cached, end) - start, 0)
            rows.append(ContextRow(message.role, end - start, known, message.content))
            start = end
        return rows

    def send(self, text: str, watch: Watch | None = None) -> Iterator[Event]:
        """Say ``text`` and yield the reply as it comes.

        The reply is recorded however the generation ends; if the caller closes the generator it
        is marked as interrupted.

        Raises:
            PromptTooLongError: if it does not fit; the conversation is then as before.
        """
        if tags := self.template.find_tags(text):
            self._tell(f"{', '.join(tags)} in the message is passed on as plain text")
        self.conversation.add_user(text)
        try:
            ids = self._fit()
        except PromptTooLongError:
            self.conversation.undo()
            raise
        yield from self._reply(ids, watch)

    def retry(self, watch: Watch | None = None) -> Iterator[Event]:
        """Answer the last message once more; the earlier answer stays as a version.

        Raises:
            UsageError: if nothing was said yet.
        """
        if self.conversation.reopen() is None:
            raise UsageError("retry", "nothing was said yet", "type a message first")
        yield from self._reply(self._fit(), watch)

    def settle(self, watch: Watch | None = None) -> None:
        """Read what the next message will stand behind: examples, or the end of a reply.

        If it is stopped half-way, the next message reads the rest.
        """
        messages = self.conversation.messages()
        if not messages or messages[-1].role != "assistant":
            return
        ids = self.template.render(messages)
        if len(ids) <= self.engine.context and list(self.engine.cache.ids) != ids:
            with suppress(InterruptedForward):
                self.sync(ids, watch)

    def _reply(self, ids: list[int], watch: Watch | None) -> Iterator[Event]:
        """Generate behind ``ids``, record the reply, and read the end of the turn."""
        texts: list[str] = []
        reply: list[int] = []
        finish: Finish | None = None
        events = self.engine.generate(
            ids,
            self.sampler,
            max_tokens=self.max_tokens,
            stop=self.stop,
            leading="strip",
            watch=watch,
        )
        try:
            for event in events:
                texts.append(event.text)
                if isinstance(event, Finish):
                    finish = event
                else:
                    reply.append(event.id)
                    yield event
        finally:
            self.conversation.add_reply(
                "".join(texts),
                # Behind a stop string the ids say more than was shown: the text counts.
                reply if finish is None or finish.stopped_at is None else None,
                interrupted=finish is None or finish.reason == "interrupted",
            )
        if finish is None:
            return
        if reply or finish.reason != "interrupted":
            self.settle()
        yield finish

    def _fit(self) -> list[int]:
        """The ids to answer, with room for a reply; drops the oldest turns if that must be.

        Raises:
            PromptTooLongError: with the exact counts, if the policy or the last message forbids.
        """
        context, conversation = self.engine.context, self.conversation
        room = min(self.max_tokens or context, context // 4)
        ids, n_dropped = self.ids, conversation.n_dropped
        before = len(ids)
        while len(ids) + room > context and self._drop_oldest and conversation.drop_oldest():
            ids = self.ids
        if len(ids) >= context:
            conversation.n_dropped = n_dropped
            raise PromptTooLongError(
                "conversation",
                f"{len(ids)} tokens leave no room for a reply in the context of {context}",
                "shorten the message, or begin anew",
            )
        if dropped := conversation.n_dropped - n_dropped:
            turns = "turn is" if dropped == 1 else f"{dropped} turns are"
            self._tell(
                f"the context is full: the oldest {turns} no longer shown to the model "
                f"({before - len(ids)} tokens)"
            )
        return ids

    def _tell(self, line: str) -> None:
        if self._notify is not None:
            self._notify(line)
