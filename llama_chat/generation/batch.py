"""Generation of many continuations at once (continuous batching).

Every step is one forward pass, with one token of each sequence that decodes and a chunk of the
prompts of those that prefill (Yu et al. 2022,
https://www.usenix.org/conference/osdi22/presentation/yu): the weights are read once for all of
them. Sequences join and leave at any step. The tokens of one do not depend on the others, except
for rounding in torch, where the kernels cannot be used.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from llama_chat.errors import ContextMemoryError, LlamaChatError
from llama_chat.generation.backend import (
    MIN_PROMPT_CHUNK,
    PREFILL_CHUNK,
    Backend,
    Extension,
    chunk_size,
)
from llama_chat.generation.cache_rows import BLOCK
from llama_chat.generation.choices import score_next
from llama_chat.generation.continuation import Continuation, Request
from llama_chat.generation.engine import prompt_too_long
from llama_chat.generation.events import Event, Token
from llama_chat.generation.kv_cache import KVCache, common_prefix
from llama_chat.generation.likeliest import Likeliest, Search, find_all
from llama_chat.generation.prefix_store import MIN_SHARED, PrefixStore, total_bytes
from llama_chat.kernels.likeliest import is_supported
from llama_chat.model.transformer import InterruptedForward
from llama_chat.tokenizers.base import Tokenizer

MIXED_CHUNK = 128
"""Prompt tokens of a step in which others are continued, so that these do not wait for long."""


@dataclass(eq=False, slots=True)
class BatchedSequence:
    """A request, and its progress."""

    text: Continuation
    cache: KVCache | None = None
    """Cache of its tokens; None while it waits, and when it has ended."""

    @property
    def is_prefilled(self) -> bool:
        """True if the next pass decodes a token of it."""
        return self.cache is not None and self.n_left == 1

    @property
    def n_left(self) -> int:
        """Tokens that are not in the cache yet."""
        return len(self.text.ids) - (self.cache.length if self.cache else 0)


Key = TypeVar("Key")

Update = tuple[BatchedSequence, Event | LlamaChatError]
"""An event of a sequence: a token, its last event, or the error that ended it."""


class Scheduler:
    """Sequences that share forward passes, and the rows of common prefixes."""

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        end_ids: frozenset[int],
        *,
        max_parallel: int,
        cache_dtype: torch.dtype | None = None,
        max_bytes: int | None = None,
        keeps_replies: bool = False,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        """Begin without sequences.

        Args:
            backend: computes the forward passes.
            tokenizer: of the same model.
            end_ids: tokens that end a generation.
            max_parallel: limit on the sequences that are computed at a time.
            cache_dtype: type of keys and values; None for that of the activations.
            max_bytes: limit on the memory of all caches; None for none.
            keeps_replies: keep the rows of sequences that have ended, for those that continue them.
            notify: called with one-line notices about waiting.
        """
        self.backend = backend
        self.tokenizer = tokenizer
        self.max_parallel = max_parallel
        self.store = PrefixStore()
        self._end_ids = end_ids
        self._cache_dtype = cache_dtype
        self._row_bytes = self._new_cache().row_bytes
        self._max_bytes = max_bytes
        self._keeps_replies = keeps_replies
        self._notify = notify
        self._has_told = False
        self._waiting: deque[BatchedSequence] = deque()
        self._running: list[BatchedSequence] = []
        self.n_evaluated = 0
        """Tokens evaluated so far."""

    @property
    def n_waiting(self) -> int:
        """Number of sequences that are not computed yet."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Number of sequences that are computed."""
        return len(self._running)

    @property
    def n_bytes(self) -> int:
        """Bytes of all caches."""
        return total_bytes([*self._caches, *self.store.caches])

    @property
    def _caches(self) -> list[KVCache]:
        return [sequence.cache for sequence in self._running if sequence.cache is not None]

    def add(self, request: Request) -> BatchedSequence:
        """Add a sequence, which waits until there is room for it.

        Raises:
            PromptTooLongError: if its prompt exceeds the context.
            LlamaChatError: if no text of this vocabulary can meet its grammar.
        """
        if not request.ids or not all(request.choices):
            raise ValueError("no tokens to prefill, or to score")
        context = self.backend.context
        length = len(request.ids) + max(map(len, request.choices), default=0)
        if length > context:
            raise prompt_too_long(length, context)
        text = Continuation(request, self.tokenizer, self._end_ids, context)
        sequence = BatchedSequence(text)
        self._waiting.append(sequence)
        return sequence

    def cancel(self, sequence: BatchedSequence) -> None:
        """End a sequence at once, without an event; one that has ended stays as it is."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        elif sequence in self._running:
            self._leave(sequence)

    def step(self, should_stop: Callable[[], bool] | None = None) -> list[Update]:
        """Run one forward pass, and return the events that follow.

        Args:
            should_stop: polled between layers; True ends the pass, and nothing has changed.

        Returns:
            The events; if memory ran out, even without the stored prefixes, the error of the one
            sequence that is given up for it.
        """
        self._admit()
        sequences, extensions = self._next_pass()
        if not extensions:
            return []
        try:
            logits = self._compute(extensions, should_stop)
        except InterruptedForward:
            return []
        except ContextMemoryError as error:
            error.__context__ = None  # its frames have the caches, as those of the error itself
            return [(self._give_up(sequences), error.with_traceback(None))]
        self.n_evaluated += sum(len(extension.ids) for extension in extensions)
        computed = zip(sequences, logits, strict=True)
        last = {sequence: rows[-1] for sequence, rows in computed if len(rows)}
        found = _find_likeliest(last)
        updates: list[Update] = []
        for sequence, row in last.items():
            updates += self._continue(sequence, row, found.get(sequence))
        return updates

    # ---- admission

    def _admit(self) -> None:
        """Begin waiting sequences, in their order, as far as there is room."""
        for sequence in list(self._waiting):
            if len(self._running) >= self.max_parallel:
                return
            ids = sequence.text.ids
            if self._is_prefix_pending(ids):
                continue
            if not self._make_room(sequence):
                self._tell_waiting()
                return
            sequence.cache = self.store.fork(ids) or self._new_cache()
            sequence.cache.max_length = sequence.text.max_length
            sequence.text.n_reused = sequence.cache.length
            self._waiting.remove(sequence)
            self._running.append(sequence)
        if not self._waiting:
            self._has_told = False

    def _tell_waiting(self) -> None:
        """Notify once per waiting period."""
        if self._notify is not None and not self._has_told:
            self._notify("not enough memory for more answers at once: others wait")
        self._has_told = True

    def _new_cache(self) -> KVCache:
        return self.backend.new_cache(self._cache_dtype, max_saved_bytes=0)

    def _is_prefix_pending(self, ids: Sequence[int]) -> bool:
        """True if a running prefill shares a longer prefix with ``ids`` than the store does."""
        stored = self.store.n_shared(ids)
        return any(
            common_prefix(other.text.ids, ids) >= stored + MIN_SHARED
            for other in self._running
            if not other.is_prefilled
        )

    def _make_room(self, sequence: BatchedSequence) -> bool:
        """Free memory for all that a sequence may need; return False if others must end first."""
        if self._max_bytes is None:
            return True
        while True:
            needed = self._bytes_to_come(sequence) + sum(map(self._bytes_to_come, self._running))
            if self.n_bytes + needed <= self._max_bytes:
                return True
            if not self.store.drop_oldest():
                return not self._running  # alone it may run, up to the end of memory

    def _bytes_to_come(self, sequence: BatchedSequence) -> int:
        """Bytes by which the cache of a sequence may grow."""
        cache, end, capacity = sequence.cache, sequence.text.max_length, 0
        end += BLOCK * len(sequence.text.choices)
        if cache is None:
            end -= self.store.n_shared(sequence.text.ids)
        else:
            capacity = cache.capacity
        return max(-(-end // BLOCK) * BLOCK - capacity, 0) * self._row_bytes

    # ---- passes

    def _next_pass(self) -> tuple[list[BatchedSequence], list[Extension]]:
        """Choose the tokens of the next pass: one of each decoding sequence, then of prompts."""
        sequences, extensions = [], []
        for sequence in self._running:
            if sequence.cache is not None and sequence.is_prefilled:
                sequences.append(sequence)
                extensions.append(Extension(sequence.text.ids[-1:], sequence.cache))
        room = MIXED_CHUNK if extensions else PREFILL_CHUNK
        for sequence in self._running:
            cache, n_left = sequence.cache, sequence.n_left
            if cache is None or n_left == 1:
                continue
            if n_left > room and room < 2 * MIN_PROMPT_CHUNK:  # too little to divide it
                break
            n_new = chunk_size(n_left, room)
            ids = sequence.text.ids[cache.length : cache.length + n_new]
            sequences.append(sequence)
            extensions.append(Extension(ids, cache, int(n_new == n_left)))
            room -= n_new
        return sequences, extensions

    def _compute(
        self, extensions: Sequence[Extension], should_stop: Callable[[], bool] | None
    ) -> list[Tensor]:
        """Run a pass; if memory runs out, again with fewer stored prefixes."""
        while True:
            try:
                return self.backend.forward_batch(extensions, should_stop)
            except ContextMemoryError:
                if not self.store.drop_oldest():
                    raise

    def _continue(
        self, sequence: BatchedSequence, logits: Tensor, found: Likeliest | None
    ) -> Iterator[Update]:
        """Sample the next token, with those that the grammar forces after it; or score choices."""
        text, cache = sequence.text, sequence.cache
        if cache is not None and len(text.ids) == text.n_prompt:
            self._store_prompt(text.ids, cache)
        try:
            if cache is not None and text.choices:
                text.choose(score_next(self.backend, cache, logits, text.choices))
            while text.reason is None and (token := text.sample(logits, found)) is not None:
                yield sequence, token
                if not text.is_forced:
                    break
        except LlamaChatError as error:
            self._leave(sequence)
            yield sequence, error
            return
        if text.reason is not None:
            self._leave(sequence)
            yield sequence, text.finish()

    def _store_prompt(self, ids: Sequence[int], cache: KVCache) -> None:
        """Store the cache of an evaluated prompt, unless most of it is stored already."""
        if len(ids) - self.store.n_shared(ids) >= MIN_SHARED:
            self.store.add(cache.fork(len(ids)))

    def _give_up(self, sequences: Sequence[BatchedSequence]) -> BatchedSequence:
        """Take the sequence of a pass out that memory ran out for, and return it.

        That is the last one of those that are not prefilled, which began when others had their
        memory; else the one with most to come.
        """
        begun = [sequence for sequence in sequences if not sequence.is_prefilled]
        given_up = begun[-1] if begun else max(sequences, key=self._bytes_to_come)
        self._running.remove(given_up)
        given_up.cache = None
        return given_up

    def _leave(self, sequence: BatchedSequence) -> None:
        """Remove a sequence; its rows are stored if later ones may continue it."""
        self._running.remove(sequence)
        if self._keeps_replies and sequence.cache is not None:
            self.store.add(sequence.cache)
        sequence.cache = None


def _find_likeliest(rows: Mapping[BatchedSequence, Tensor]) -> dict[BatchedSequence, Likeliest]:
    """Find the likeliest tokens among which the next ones are chosen, of all rows at once."""
    alike: dict[Search, list[BatchedSequence]] = {}
    for sequence, logits in rows.items():
        search = sequence.text.search
        if search is not None and is_supported(logits):
            alike.setdefault(search, []).append(sequence)
    return {
        sequence: found
        for search, members in alike.items()
        for sequence, found in zip(
            members, find_all([rows[each] for each in members], search), strict=True
        )
    }


def generate_all(
    scheduler: Scheduler, requests: Iterator[tuple[Key, Request] | None]
) -> Iterator[tuple[Key, Event | LlamaChatError]]:
    """Generate continuations of many requests, as they come.

    Args:
        scheduler: computes them; without other sequences.
        requests: each with a key of its own; None while none has come, which is asked for again
            after a pass.

    Yields:
        Each event with the key of its request; the order of different requests is arbitrary.
    """
    keys: dict[BatchedSequence, Key] = {}
    is_open = True
    try:
        while is_open or keys:
            while is_open and scheduler.n_waiting < scheduler.max_parallel:
                try:
                    arrived = next(requests)
                except StopIteration:
                    is_open = False
                    break
                if arrived is None:
                    break
                key, request = arrived
                try:
                    keys[scheduler.add(request)] = key
                except LlamaChatError as error:
                    yield key, error
            for sequence, event in scheduler.step():
                yield keys[sequence], event
                if not isinstance(event, Token):
                    del keys[sequence]
    finally:
        for sequence in keys:
            scheduler.cancel(sequence)
