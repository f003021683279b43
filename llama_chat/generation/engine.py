"""Prefill and decode: ids in, tokens out, through one cache."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llama_chat.errors import LlamaChatError, PromptTooLongError
from llama_chat.generation.events import (
    Event,
    Finish,
    FinishReason,
    Timings,
    Token,
    Usage,
    Watch,
)
from llama_chat.generation.lookup import Drafter, Lookahead
from llama_chat.generation.sampling import Sampler
from llama_chat.generation.stopping import StopStrings
from llama_chat.model.static_step import StaticStep
from llama_chat.model.transformer import InterruptedForward, Transformer
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.streaming import Leading, StreamingDecoder

PREFILL_CHUNK = 512
"""Tokens read in one forward pass: enough to keep matrix units busy, few enough for progress."""

END_TOKENS = (
    "</s>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
)
"""Control tokens by which models of the family end a turn or a text."""


@dataclass(slots=True)
class _Clock:
    """When the parts of one generation happened."""

    began: float = field(default_factory=time.perf_counter)
    prefilled: float | None = None
    first: float | None = None
    last: float = 0.0

    def sampled(self) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last

    def timings(self) -> Timings:
        prefilled = self.prefilled or time.perf_counter()
        first = self.first or prefilled
        return Timings(prefilled - self.began, max(self.last - first, 0.0), first - self.began)


class Engine:
    """A model with its tokenizer and the cache of what it has read."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.cache = model.new_cache()
        self._step = StaticStep(model) if StaticStep.fits(model) else None
        self.n_read = 0
        """How many tokens the model has read so far, those it wrote among them."""
        self._drafter = Drafter()
        names = {tokenizer.control_ids.get(name) for name in END_TOKENS} | {tokenizer.eos_id}
        self.end_ids = frozenset(token_id for token_id in names if token_id is not None)

    @property
    def context(self) -> int:
        """How many tokens fit."""
        return self.model.config.context_length

    def sync(self, ids: Sequence[int], watch: Watch | None = None) -> Tensor:
        """Make the cache hold exactly ``ids``, at the cost of what differs.

        What the cache holds beyond the longest common prefix is set aside, what was set aside
        earlier and fits comes back, and the rest of ``ids`` is read. If nothing is left to read,
        the last token is read again for its logits.

        Args:
            ids: at least one token.
            watch: how to follow and stop it.

        Returns:
            Logits behind the last token, ``(vocab_size,)`` in float32.

        Raises:
            PromptTooLongError: if ``ids`` exceed the context.
            InterruptedForward: if asked to stop; the cache then holds a prefix of ``ids``.
            LlamaChatError: if memory runs out; the same holds.
        """
        kept = self._rewind(ids)
        return self._read(ids[kept:], watch or Watch())

    def read_ahead(self, ids: Sequence[int], watch: Watch | None = None) -> None:
        """The same as ``sync`` for tokens behind which nothing is generated yet.

        No logits are wanted, so that nothing is read if the cache has it all.
        """
        kept = self._follow(ids)
        if kept < len(ids):
            self._read(ids[kept:], watch or Watch())

    def _follow(self, ids: Sequence[int]) -> int:
        """Let the cache hold of ``ids`` what it can without the model; see ``KVCache.follow``."""
        if len(ids) > self.context:
            raise PromptTooLongError(
                "prompt",
                f"{len(ids)} tokens do not fit in the context of {self.context}",
                "shorten it, or raise --context if the model allows",
            )
        with _memory_for(len(ids)):
            return self.cache.follow(ids)

    def _rewind(self, ids: Sequence[int]) -> int:
        """The same, but leave at least the last of ``ids`` to be read, for its logits."""
        if not ids:
            raise ValueError("there is nothing to read")
        kept = min(self._follow(ids), len(ids) - 1)
        self.cache.truncate(kept)
        return kept

    def _read(self, ids: Sequence[int], watch: Watch) -> Tensor:
        """Read ``ids`` behind what the cache holds, and return the logits behind the last."""
        for start in range(0, len(ids), PREFILL_CHUNK):
            chunk = ids[start : start + PREFILL_CHUNK]
            with _memory_for(self.cache.length + len(chunk)):
                logits = self._forward(chunk, watch)
            self.n_read += len(chunk)
            if watch.on_prefill is not None and len(ids) > 1:
                watch.on_prefill(start + len(chunk), len(ids))
        return logits

    def _forward(self, ids: Sequence[int], watch: Watch) -> Tensor:
        if self._step is None or len(ids) > 1:
            logits: Tensor = self.model(ids, self.cache, should_stop=watch.should_stop)
            return logits
        logits = self._step(ids[0], self.cache)
        self.cache.commit(ids)
        return logits

    def _read_chosen(
        self, token_id: int, ahead: Lookahead | None, room: int, watch: Watch
    ) -> Tensor:
        """Read one token; ``ahead`` may have done so already, and may read up to ``room`` more."""
        if ahead is None:
            return self._read([token_id], watch)
        with _memory_for(self.cache.length + 1):
            logits = ahead.read(token_id, room, watch.should_stop)
        self.n_read += 1
        return logits

    def generate(
        self,
        ids: Sequence[int],
        sampler: Sampler,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        n_begun: int = 0,
        leading: Leading = "keep",
        lookup: bool = True,
        watch: Watch | None = None,
    ) -> Iterator[Event]:
        """Continue ``ids`` token by token.

        Args:
            ids: the prompt, at least one token.
            sampler: chooses each token.
            max_tokens: end after so many; None leaves the context as the only limit.
            stop: end before any of these texts.
            n_begun: how many tokens at the end of ``ids`` begin the text that is continued. It is
                not yielded again; a character that they leave unfinished is.
            leading: what to do with white space in front, see ``StreamingDecoder``.
            lookup: whether a pass may read ahead what followed the same words before; the tokens
                are the same either way.
            watch: how to follow and stop it.

        Yields:
            A ``Token`` for each sampled id but an end token, and one ``Finish``. The caller may
            stop by closing the generator; the cache is valid at every instant.

        Raises:
            PromptTooLongError: if ``ids`` exceed the context.
        """
        watch = watch or Watch()
        clock = _Clock()
        ids = list(ids)
        n_prompt = len(ids)
        n_cached = self._rewind(ids)
        decoder = StreamingDecoder(self.tokenizer, leading)
        decoder.decode(ids[n_prompt - n_begun :])
        stops = StopStrings(stop)
        ahead = None
        if lookup and self.model.n_together > 1:
            self._drafter.follow(ids)
            ahead = Lookahead(self.model, self.cache, self._drafter)
        end = self.context if max_tokens is None else min(self.context, n_prompt + max_tokens)
        reason: FinishReason = "interrupted"
        stopped_at: str | None = None
        try:
            logits = self._read(ids[n_cached:], watch)
            clock.prefilled = time.perf_counter()
            while not (watch.should_stop is not None and watch.should_stop()):
                token_id, logprob, alternatives = sampler(logits, ids)
                clock.sampled()
                if token_id in self.end_ids:
                    reason = "stop"
                    break
                ids.append(token_id)
                text, stopped_at = stops.push(decoder.push(token_id))
                yield Token(token_id, text, logprob, alternatives)
                if stopped_at is not None:
                    reason = "stop"
                    break
                if max_tokens is not None and len(ids) - n_prompt >= max_tokens:
                    reason = "length"
                    break
                if len(ids) >= self.context:
                    reason = "context"
                    break
                logits = self._read_chosen(token_id, ahead, end - len(ids) - 1, watch)
        except InterruptedForward:
            pass
        held = ""
        if stopped_at is None:
            certain, stopped_at = stops.push(decoder.flush())
            held = certain + stops.flush()
        yield Finish(
            reason,
            held,
            Usage(n_prompt, n_cached, len(ids) - n_prompt, *(ahead.counts if ahead else (0, 0))),
            clock.timings(),
            sampler.seed,
            stopped_at,
        )

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits at every position of ``ids``, ``(len(ids), vocab_size)`` in float32.

        Reads them into a cache of its own, so the conversation is not disturbed.
        """
        cache = self.model.new_cache()
        chunks = [
            self.model(ids[start : start + PREFILL_CHUNK], cache, all_logits=True)
            for start in range(0, len(ids), PREFILL_CHUNK)
        ]
        return torch.cat(chunks)


@contextmanager
def _memory_for(n_tokens: int) -> Iterator[None]:
    """Say what it means if memory runs out; on a CPU torch has no class for that."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not re.search("not enough memory|allocate memory", str(error)):
            raise
        raise LlamaChatError(
            f"{n_tokens} tokens of context",
            "not enough memory",
            "use a smaller model or --context",
        ) from None
