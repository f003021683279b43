"""Chat session with a model that is loaded here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from llama_chat.chat.choices import reply_ids
from llama_chat.chat.context_use import Fit
from llama_chat.chat.conversation import Attachment, Conversation, Message
from llama_chat.chat.templates import ChatTemplate
from llama_chat.chat.token_session import TokenSession
from llama_chat.errors import UsageError
from llama_chat.generation.choices import score
from llama_chat.generation.constraints import Grammar
from llama_chat.generation.continuation import Request
from llama_chat.generation.engine import Engine, check_least
from llama_chat.generation.events import Event, Finish, Hooks
from llama_chat.generation.kv_cache import common_prefix
from llama_chat.generation.logprobs import Scored
from llama_chat.generation.sampling import Sampler
from llama_chat.model.transformer import InterruptedForward
from llama_chat.settings.sampling import Sampling
from llama_chat.settings.settings import Settings


class LocalSession(TokenSession):
    """A conversation, and the engine whose KV cache holds its tokens.

    The engine prefills the tokens that differ from those of its cache.
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
        """Begin or continue a conversation; see ``ChatSession`` for the other arguments.

        Args:
            engine: the model; its cache is this session's from now on.
            template: the chat template, which encodes messages.
            sampling: the sampling settings.
            conversation: the conversation to continue; a new one if None.
            max_tokens: length limit of a reply in tokens.
            stop: stop strings.
            drop_oldest: True to drop the oldest turns when the context is full.
            lookup: True to draft tokens from earlier text; see ``Engine.generate``.
            grammar: grammar that every reply must meet.
            notify: called with one-line notices for the user.
        """
        super().__init__(
            template,
            engine.tokenizer,
            engine.context,
            conversation=conversation,
            max_tokens=max_tokens,
            stop=stop,
            drop_oldest=drop_oldest,
            notify=notify,
        )
        self.engine = engine
        self.sampler = Sampler(sampling or Sampling(), with_logprobs=True)
        self.lookup = lookup
        self.grammar = grammar
        self.prompt_ids: list[int] = []  # of the last reply

    def configure(self, settings: Settings) -> None:
        """Apply the settings; earlier turns stay as they are."""
        super().configure(settings)
        self.sampler.sampling = settings.sampling
        self.lookup = settings.lookup

    @property
    def seed(self) -> int:
        """Seed of the random numbers."""
        return self.sampler.seed

    @property
    def n_bytes(self) -> int:  # type: ignore[override] # it grows
        """Bytes of the KV cache."""
        return self.engine.cache.n_bytes

    @property
    def n_evaluated(self) -> int:  # type: ignore[override] # it grows
        """Number of tokens evaluated so far."""
        return self.engine.n_evaluated

    @property
    def n_reused(self) -> int:  # type: ignore[override] # it changes
        """Number of tokens of the last prompt that needed no forward pass."""
        return self.engine.n_reused

    def _cached_ids(self) -> Sequence[int]:
        return self.engine.cache.ids

    def request(self, text: str, *, with_logprobs: bool = True) -> Request:
        """Encode a message as ``send`` would, to be generated elsewhere; nothing is recorded.

        Without ``with_logprobs`` the tokens have no likely alternatives, which take time.

        Raises:
            PromptTooLongError: if it does not fit.
        """
        check_least(self.tokenizer.min_tokens(text.strip()), self.context)
        fit = self._fit(Message("user", text), self._open_reply(""))
        return Request(
            fit.ids,
            Sampler(self.sampler.sampling, with_logprobs=with_logprobs),
            self.max_tokens,
            self.stop,
            self.template.end_ids,
            leading="strip",
            grammar=self.grammar,
        )

    def score(self, message: str, texts: Sequence[str], hooks: Hooks | None = None) -> list[Scored]:
        """Score replies to a message, each with the end of the turn."""
        prompt = self.request(message).ids
        asked = [*self.conversation.messages(), Message("user", message)]
        ends = self.engine.end_ids | self.template.end_ids
        replies = [reply_ids(self.template, asked, text, len(prompt), ends) for text in texts]
        return score(self.engine, prompt, replies, hooks)

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

    def _generate(self, fit: Fit, reply: Message, hooks: Hooks | None) -> Iterator[Event]:
        """Generate what follows ``reply``."""
        self.prompt_ids = fit.ids
        leading = self._begin(reply)
        return self.engine.generate(
            fit.ids,
            self.sampler,
            max_tokens=self.max_tokens,
            stop=self.stop,
            end_ids=self.template.end_ids,
            n_begun=len(reply.ids or ()),
            leading=leading,
            lookup=self.lookup,
            grammar=self.grammar,
            hooks=hooks,
        )

    def _ended(self, reply: Message, finish: Finish) -> None:
        """Prefill the end of the turn."""
        super()._ended(reply, finish)
        if finish.usage.completion_tokens or not reply.interrupted:
            self.prefill_next()
