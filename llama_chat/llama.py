"""A loaded model: generation, logits, chat sessions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from llama_chat.chat.conversation import Conversation, Example
from llama_chat.chat.local_session import LocalSession
from llama_chat.chat.templates import ChatTemplate, choose_template
from llama_chat.checkpoints.base import Checkpoint
from llama_chat.checkpoints.fingerprint import model_fingerprint
from llama_chat.checkpoints.generation_defaults import GenerationDefaults
from llama_chat.errors import LlamaChatError, UsageError
from llama_chat.generation.backend import Backend
from llama_chat.generation.batch import Key, Scheduler, generate_all
from llama_chat.generation.constraints import Grammar
from llama_chat.generation.continuation import Request
from llama_chat.generation.engine import Engine, check_ids, check_least, prompt_too_long
from llama_chat.generation.events import Event, Hooks
from llama_chat.generation.sampling import Sampler
from llama_chat.model.transformer import Transformer
from llama_chat.settings.sampling import Sampling
from llama_chat.settings.settings import Settings
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.streaming import Leading


class Llama:
    """A loaded model."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        backend: Backend,
        tokenizer: Tokenizer,
        *,
        cache_dtype: torch.dtype | None = None,
        max_saved_bytes: int | None = None,
        draft: "Llama | None" = None,
        warnings: Sequence[str] = (),
    ) -> None:
        """Combine the parts of a model.

        Args:
            checkpoint: the files it came from.
            backend: computes the weights.
            tokenizer: the vocabulary.
            cache_dtype: type of keys and values; None for that of the activations.
            max_saved_bytes: limit on the suffixes that a cache saves; see ``KVCache``.
            draft: a smaller model of the same vocabulary, whose guesses save passes.
            warnings: warnings for the user, one line each.
        """
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        self.backend = backend
        self.warnings = warnings
        self._cache_dtype = cache_dtype
        self._max_saved_bytes = max_saved_bytes
        self._draft = draft
        self._engine = self.engine()
        self._templates: dict[tuple[str, str | None], ChatTemplate] = {}

    @property
    def model(self) -> Transformer:
        """The weights; those of rank 0, if there are several."""
        return self.backend.model

    @property
    def name(self) -> str:
        """Name for display."""
        return self.checkpoint.name

    @cached_property
    def fingerprint(self) -> str:
        """Hash of header, vocabulary and samples of the weights; see ``model_fingerprint``."""
        return model_fingerprint(self.checkpoint, self.tokenizer)

    @property
    def kernel(self) -> str:
        """Name of the code that computes it, with the types of its matrices."""
        return self.backend.kernel_name

    @property
    def context(self) -> int:
        """Context length in tokens."""
        return self.model.config.context_length

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""
        return self._engine.end_ids

    @property
    def summary(self) -> str:
        """Type of the weights, their device, and the context, for display."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return f"{dtype} on {self.model.device} · context {self.context}"

    @property
    def defaults(self) -> GenerationDefaults:
        """Settings that the checkpoint suggests."""
        return self.checkpoint.generation

    @property
    def n_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return self.model.n_bytes

    @property
    def sampling(self) -> Sampling:
        """Sampling settings that the checkpoint suggests, and the defaults of the others."""
        suggested: Mapping[str, Any] = self.checkpoint.generation.sampling
        return Sampling(**suggested)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the logits at every position of ``ids``, ``(len(ids), vocab_size)`` in float32.

        Raises:
            ValueError: if there are none.
            PromptTooLongError: if they exceed the context.
            UsageError: if the model has no such token.
            LlamaChatError: if memory runs out.
        """
        return self._engine.logits(ids)

    def prompt_ids(self, text: str) -> list[int]:
        """Encode a raw prompt, between BOS and EOS if the checkpoint says so.

        An empty one is BOS, since a model needs a token to continue.

        Raises:
            PromptTooLongError: if it does not fit in the context.
            UsageError: if it is empty, and there is no BOS.
        """
        return prompt_ids(self.tokenizer, text, self.context)

    def generate(
        self,
        ids: Sequence[int],
        sampling: Sampling | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        lookup: bool = True,
        grammar: Grammar | None = None,
        logprobs: bool = False,
        hooks: Hooks | None = None,
    ) -> Iterator[Event]:
        """Continue ``ids``; see ``Engine.generate``. A cached prefix is not prefilled again.

        Without ``sampling`` that of the model is used. With ``logprobs`` each token has its most
        likely alternatives.

        Raises:
            ValueError: if there are no ``ids``, ``max_tokens`` is no whole number of at least 1, or
                ``stop`` is one text.
            PromptTooLongError: if they exceed the context.
            UsageError: if the model has no such token.
            LlamaChatError: later, if memory runs out, or no text can meet ``grammar``.
        """
        request = self.request(
            ids,
            sampling,
            max_tokens=max_tokens,
            stop=stop,
            grammar=grammar,
            logprobs=logprobs,
        )
        return self.generate_request(request, hooks, lookup=lookup)

    def text_request(
        self, text: str, settings: Settings, *, grammar: Grammar | None = None, n_logprobs: int = 0
    ) -> Request:
        """Return the request to continue a raw text.

        Raises:
            PromptTooLongError: if it does not fit in the context.
            UsageError: if it is empty, and there is no BOS.
        """
        return self.request(
            self.prompt_ids(text),
            settings.sampling,
            max_tokens=settings.max_tokens,
            stop=settings.stop,
            grammar=grammar,
            logprobs=n_logprobs > 0,
        )

    def generate_request(
        self, request: Request, hooks: Hooks | None = None, *, lookup: bool = True
    ) -> Iterator[Event]:
        """Continue the prompt of a request; see ``generate``."""
        return self._engine.generate_request(request, hooks, lookup=lookup)

    def request(
        self,
        ids: Sequence[int],
        sampling: Sampling | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        grammar: Grammar | None = None,
        logprobs: bool = False,
    ) -> Request:
        """Return the request that ``generate`` computes, for a scheduler.

        Raises:
            ValueError, PromptTooLongError, UsageError: as ``generate``.
        """
        check_ids(ids, self.backend)
        return Request(
            ids,
            Sampler(sampling or self.sampling, with_logprobs=logprobs),
            max_tokens,
            stop,
            leading=self.leading(ids),
            grammar=grammar,
        )

    def leading(self, ids: Sequence[int]) -> Leading:
        """Return how the white space before the continuation of a raw prompt is treated."""
        empty = len(ids) == 1 and ids[0] == self.tokenizer.bos_id
        return "dummy" if empty else "keep"

    def template(self, name: str = "auto", variant: str | None = None) -> ChatTemplate:
        """Return the chat template ``name``, or that of the checkpoint; see ``choose_template``.

        It is made once: that of a checkpoint may have a process of its own.
        """
        key = name, variant
        if key not in self._templates:
            source = self.checkpoint.templates
            self._templates[key] = choose_template(name, source, self.tokenizer, variant)
        return self._templates[key]

    def engine(self) -> Engine:
        """Return a new engine on this model, with a new KV cache."""
        cache = self.backend.new_cache(self._cache_dtype, self._max_saved_bytes)
        draft = None if self._draft is None else self._draft.backend
        return Engine(self.backend, self.tokenizer, cache, self.checkpoint.generation, draft)

    def scheduler(
        self,
        parallel: int,
        *,
        max_bytes: int | None = None,
        keeps_replies: bool = False,
        notify: Callable[[str], None] | None = None,
    ) -> Scheduler:
        """Return a scheduler of up to ``parallel`` sequences at a time; see ``Scheduler``.

        Without ``max_bytes`` their caches may take the memory of one full context, and half of what
        is free beside it; a quarter if they are kept, since that is for long.
        """
        limit = max_bytes
        if limit is None and self._max_saved_bytes is not None:
            limit = self.backend.new_cache(self._cache_dtype).row_bytes * self.context
            limit += self._max_saved_bytes // (4 if keeps_replies else 2)
        return Scheduler(
            self.backend,
            self.tokenizer,
            self.end_ids,
            max_parallel=parallel,
            cache_dtype=self._cache_dtype,
            max_bytes=limit,
            keeps_replies=keeps_replies,
            notify=notify,
        )

    def generate_all(
        self, scheduler: Scheduler, requests: Iterator[tuple[Key, Request] | None]
    ) -> Iterator[tuple[Key, Event | LlamaChatError]]:
        """Generate continuations of many requests, as they come; see ``batch.generate_all``."""
        return generate_all(scheduler, requests)

    def chat(
        self,
        system: str = "",
        sampling: Sampling | None = None,
        *,
        examples: Sequence[Example] = (),
        conversation: Conversation | None = None,
        template: str = "auto",
        template_name: str | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        drop_oldest: bool = True,
        lookup: bool = True,
        grammar: Grammar | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> LocalSession:
        """Begin or continue a conversation, with a new KV cache; see ``LocalSession``.

        Without ``sampling`` that of the model is used.

        Raises:
            ValueError: if ``conversation`` comes with ``system`` or ``examples``, which it has
                itself, or ``stop`` is one text.
        """
        if conversation is not None and (system or examples):
            raise ValueError("a conversation has its own system message and examples")
        return LocalSession(
            self.engine(),
            self.template(template, template_name),
            sampling or self.sampling,
            conversation=conversation or Conversation(system, examples),
            max_tokens=max_tokens,
            stop=stop,
            drop_oldest=drop_oldest,
            lookup=lookup,
            grammar=grammar,
            notify=notify,
        )


def prompt_ids(tokenizer: Tokenizer, text: str, context: int) -> list[int]:
    """Encode a raw prompt for a model of that ``context``; see ``Llama.prompt_ids``."""
    check_least(tokenizer.min_tokens(text), context)
    ids = tokenizer.encode(text)
    if tokenizer.bos_id is not None and (tokenizer.add_bos or not ids):
        ids.insert(0, tokenizer.bos_id)
    if tokenizer.eos_id is not None and tokenizer.add_eos:
        ids.append(tokenizer.eos_id)
    if not ids:
        why = "it is empty, and the model has no token to begin with"
        raise UsageError("prompt", why, "write a text to continue")
    if len(ids) > context:
        raise prompt_too_long(len(ids), context)
    return ids
