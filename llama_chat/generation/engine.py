"""Prefill and decode: ids in, tokens out, through one cache."""

import threading
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from llama_chat.checkpoints.generation_defaults import GenerationDefaults
from llama_chat.errors import PromptTooLongError, UsageError
from llama_chat.generation.backend import Backend, TorchBackend, prompt_chunks
from llama_chat.generation.constraints import Grammar
from llama_chat.generation.continuation import Continuation, Request
from llama_chat.generation.cuda_graph import GraphBackend
from llama_chat.generation.draft_model import ModelDrafter
from llama_chat.generation.end_tokens import end_tokens
from llama_chat.generation.events import (
    Event,
    Hooks,
)
from llama_chat.generation.kv_cache import KVCache
from llama_chat.generation.lookup import LookupDrafter
from llama_chat.generation.native import NativeBackend
from llama_chat.generation.sampling import Sampler
from llama_chat.generation.speculation import Drafter, DraftVerifier, PassCost
from llama_chat.model.transformer import InterruptedForward, Transformer
from llama_chat.tokenizers.base import AtLeast, Tokenizer
from llama_chat.tokenizers.streaming import Leading


def choose_backend(
    model: Transformer, cache_dtype: torch.dtype | None = None, threads: int | None = None
) -> Backend:
    """Choose the fastest backend that supports ``model`` with a cache of ``cache_dtype``.

    ``threads`` is the number of CPU threads; None for as many as torch uses.
    """
    on_gpu = GraphBackend.supports(model, cache_dtype or model.dtype)
    native = None if on_gpu else NativeBackend.create(model, threads)
    return native or choose_torch_backend(model, cache_dtype, threads)


def choose_torch_backend(
    model: Transformer, cache_dtype: torch.dtype | None = None, threads: int | None = None
) -> Backend:
    """Choose the fastest backend of torch modules for several ranks; see ``choose_backend``."""
    if GraphBackend.supports(model, cache_dtype or model.dtype):
        return GraphBackend(model, threads)
    return TorchBackend(model, threads)


def prompt_too_long(n_tokens: int, context: int) -> PromptTooLongError:
    """Return the error for a prompt of ``n_tokens``."""
    why = f"{n_tokens} tokens do not fit in the context of {context}"
    advice = "shorten it, or raise --context if the model allows"
    return PromptTooLongError("prompt", why, advice)


def check_least(n_tokens: int, context: int) -> None:
    """Check a lower bound of the tokens of a prompt.

    Raises:
        PromptTooLongError: if that alone exceeds the context.
    """
    if n_tokens > context:
        raise prompt_too_long(AtLeast(n_tokens), context)


def check_ids(ids: Sequence[int], backend: Backend) -> None:
    """Check the tokens of a prompt.

    Raises:
        ValueError: if there are none.
        PromptTooLongError: if they exceed the context.
        UsageError: if the model has no such token.
    """
    if not len(ids):
        raise ValueError("no tokens")
    if len(ids) > backend.context:
        raise prompt_too_long(len(ids), backend.context)
    for token_id in (min(ids), max(ids)):
        if not 0 <= token_id < backend.vocab_size:
            why = f"the model has those from 0 to {backend.vocab_size - 1}"
            raise UsageError(f"token {token_id}", why, "encode the text with its own vocabulary")


class Engine:
    """A model with its tokenizer and a KV cache."""

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        cache: KVCache | None = None,
        defaults: GenerationDefaults | None = None,
        draft: Backend | None = None,
    ) -> None:
        """Begin with an empty cache.

        Args:
            backend: computes the forward passes.
            tokenizer: of the same model.
            cache: an empty one; None for one of the type of the activations.
            defaults: what the checkpoint says about generation.
            draft: computes a smaller model of the same vocabulary, whose guesses save passes.
        """
        self.backend = backend
        self.tokenizer = tokenizer
        self.cache = backend.new_cache() if cache is None else cache
        self.n_evaluated = 0
        """Tokens evaluated so far, including sampled ones, without rejected drafts."""
        self.n_reused = 0
        """Tokens of the last prefill that the cache already held."""
        self._lock = threading.RLock()
        """Held while the cache changes: generations of several threads take turns at each token."""
        self._owner: Continuation | None = None
        """The generation whose tokens the cache holds; None if it was last used otherwise."""
        self._pass_cost = PassCost()
        self._lookup = LookupDrafter(self._pass_cost)
        self.draft_model: ModelDrafter | None = None
        if draft is not None:
            self.draft_model = ModelDrafter(draft, tokenizer.vocab_size, self._pass_cost)
        self.end_ids = frozenset(end_tokens(tokenizer, defaults or GenerationDefaults()))
        """Tokens that end a generation."""

    @property
    def context(self) -> int:
        """Context length in tokens."""
        return self.backend.context

    def prefill(self, ids: Sequence[int], hooks: Hooks | None = None) -> Tensor:
        """Make the cache hold exactly ``ids``, and compute the logits that follow them.

        The longest prefix that the cache holds or has saved is reused; the rest is evaluated, at
        least the last token, for its logits.

        Args:
            ids: at least one token.
            hooks: to observe and to stop it.

        Returns:
            Logits ``(vocab_size,)`` in float32.

        Raises:
            PromptTooLongError: if ``ids`` exceed the context.
            InterruptedForward: if asked to stop; the cache then holds a prefix of ``ids``.
            LlamaChatError: if memory runs out; the same holds.
        """
        if not ids:
            raise ValueError("no tokens to prefill")
        with self._lock:
            self.n_reused = min(self._seek(ids), len(ids) - 1)
            self.cache.trim(self.n_reused)
            return self._append(ids[self.n_reused :], hooks or Hooks())

    def prefill_cached(self, ids: Sequence[int], hooks: Hooks | None = None) -> None:
        """Make the cache hold exactly ``ids``, as ``prefill`` does, without logits.

        Nothing is evaluated if the cache has all of them.
        """
        with self._lock:
            self.n_reused = self._seek(ids)
            if self.n_reused < len(ids):
                self._append(ids[self.n_reused :], hooks or Hooks())

    def _seek(self, ids: Sequence[int]) -> int:
        """Reuse the longest cached prefix of ``ids``, and return its length."""
        if len(ids) > self.context:
            raise prompt_too_long(len(ids), self.context)
        self._owner = None
        return self.cache.seek(ids)

    def _append(self, ids: Sequence[int], hooks: Hooks) -> Tensor:
        """Evaluate ``ids`` in chunks, and return the logits that follow the last."""
        done = 0
        for chunk in prompt_chunks(ids):
            logits = self.backend.forward(chunk, self.cache, should_stop=hooks.should_stop)
            done += len(chunk)
            self.n_evaluated += len(chunk)
            if hooks.on_progress is not None and len(ids) > 1:
                hooks.on_progress(done, len(ids))
        return logits

    def _begin(self, text: Continuation, hooks: Hooks) -> Tensor:
        """Prefill the prompt of a generation, which then owns the cache."""
        with self._lock:
            self.n_reused = 0
            try:
                return self.prefill(text.ids, hooks)
            finally:
                text.n_reused = self.n_reused
                self._owner = text

    def _return_to(self, text: Continuation, ends: Sequence[int], hooks: Hooks) -> None:
        """Restore the cache as a generation left it, after the engine was used otherwise.

        Tokens that were neither kept nor saved are evaluated in the same passes as before, since
        the number of tokens of a pass decides how its results are rounded.

        Args:
            text: the generation, which then owns the cache.
            ends: lengths of the cache before its first pass and after each of them.
            hooks: to stop it.
        """
        ids = text.ids[: ends[-1]]
        start = self._seek(ids)
        start = max((end for end in ends if end <= start), default=start)
        self.cache.trim(start)
        for end in ends:
            if end > start:
                self._append(ids[start:end], Hooks(hooks.should_stop))
                start = end
        self._owner = text

    def _append_chosen(
        self, ids: Sequence[int], verifier: DraftVerifier | None, max_draft: int, hooks: Hooks
    ) -> Tensor:
        """Append the tokens chosen last; a single one may be evaluated already, in a draft."""
        if verifier is None or len(ids) > 1:
            if verifier is not None:
                verifier.skip(ids)
            return self._append(ids, Hooks(hooks.should_stop))
        logits = verifier.evaluate(ids[0], max_draft, hooks.should_stop)
        self.n_evaluated += 1
        return logits

    def generate(
        self,
        ids: Sequence[int],
        sampler: Sampler,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        end_ids: Iterable[int] = (),
        n_begun: int = 0,
        leading: Leading = "keep",
        lookup: bool = True,
        grammar: Grammar | None = None,
        hooks: Hooks | None = None,
    ) -> Iterator[Event]:
        """Continue ``ids`` token by token.

        Args:
            ids: the prompt, at least one token.
            sampler: chooses each token.
            max_tokens: end after so many; None leaves the context as the only limit.
            stop: end before any of these texts, in which control tokens may stand as well; one that
                is a control token counts as an end token.
            end_ids: end tokens in addition to those of the engine.
            n_begun: number of tokens at the end of ``ids`` that begin the text to continue. Their
                text is not yielded again, except for a character that they leave incomplete.
            leading: treatment of leading white space, see ``StreamingDecoder``.
            lookup: draft from earlier text, too; the tokens are the same either way.
            grammar: grammar that the text must meet, unless it is cut off; leading white space
                stays then.
            hooks: to observe and to stop it.

        Yields:
            A ``Token`` for each sampled id except an end token, then one ``Finish``. The caller
            may stop by closing the generator; the cache is valid at every instant. Several
            generations may take turns, in one thread or many, at the cost of seeking at each.

        Raises:
            PromptTooLongError: if ``ids`` exceed the context.
            LlamaChatError: if no text of this vocabulary can meet ``grammar``.
            ValueError: if ``max_tokens`` is no whole number of at least 1.
        """
        request = Request(ids, sampler, max_tokens, stop, end_ids, n_begun, leading, grammar)
        return self.generate_request(request, hooks, lookup=lookup)

    def generate_request(
        self, request: Request, hooks: Hooks | None = None, *, lookup: bool = True
    ) -> Iterator[Event]:
        """Continue the prompt of a request; see ``generate``."""
        hooks = hooks or Hooks()
        text = Continuation(request, self.tokenizer, self.end_ids, self.context)
        verifier = None
        if drafters := self._drafters(lookup):
            verifier = DraftVerifier(self.backend, self.cache, drafters, self._pass_cost)
            verifier.set_ids(text.ids)
        chosen: list[int] = []  # tokens that are not in the cache yet
        try:
            logits = self._begin(text, hooks)
            ends = [text.n_reused, len(text.ids)]
            while not (hooks.should_stop is not None and hooks.should_stop()):
                token = text.sample(logits)
                if token is None:
                    break
                yield token  # the engine may be used otherwise before the next token is asked for
                if text.reason is not None:
                    break
                chosen.append(token.id)
                if text.is_forced:
                    continue
                with self._lock:
                    if self._owner is not text:
                        self._return_to(text, ends, hooks)
                        if verifier is not None:
                            verifier.set_ids(text.ids[: ends[-1]])
                    n_left = text.max_length - len(text.ids)
                    logits = self._append_chosen(chosen, verifier, n_left - 1, hooks)
                    ends.append(len(text.ids))
                    chosen = []
        except InterruptedForward:
            pass
        yield text.finish(*(verifier.counts if verifier else ()))

    def _drafters(self, lookup: bool) -> list[Drafter]:
        """Return the drafters to use: none if a pass over a draft may change the logits."""
        if self.backend.max_exact_batch == 1:
            return []
        model = [] if self.draft_model is None else [self.draft_model]
        return [self._lookup, *model] if lookup else [*model]

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """Compute the logits at every position of ``ids``, ``(len(ids), vocab_size)`` in float32.

        They are evaluated in a new cache; the one of the conversation is not changed.

        Raises:
            ValueError, PromptTooLongError, UsageError: as ``check_ids``.
            LlamaChatError: if memory runs out.
        """
        check_ids(ids, self.backend)
        cache = self.backend.new_cache(self.cache.dtype)
        chunks = prompt_chunks(ids)
        return torch.cat([self.backend.forward(each, cache, all_logits=True) for each in chunks])
