"""Drafts of a smaller model with the same vocabulary."""

import time
from collections.abc import Callable, Sequence
from itertools import repeat

from torch import Tensor

from llama_chat.generation.backend import Backend, prompt_chunks
from llama_chat.generation.speculation import (
    EMA_WEIGHT,
    NO_DRAFT,
    Drafter,
    DraftPlan,
    PassCost,
    best_plan,
    moving_average,
)

_RETRY = 64
"""Sampled tokens after which a draft is tried again, and a pass without one is timed again, since
both estimates become outdated."""


class ModelDrafter(Drafter):
    """Drafter of the most likely tokens of a draft model.

    The probability that a drafted token is right is estimated from the drafts before, and the cost
    of drafting is measured, so that a model that agrees too seldom, or is too slow, drafts little.
    """

    def __init__(self, backend: Backend, n_tokens: int, cost: PassCost) -> None:
        """Begin with an empty cache of the draft model.

        Args:
            backend: computes the draft model.
            n_tokens: size of the vocabulary, which both models share; either may have more rows.
            cost: cost of passes of the model that the drafts are for.
        """
        self._backend = backend
        self._cache = backend.new_cache(max_saved_bytes=0)  # it follows the text, without branches
        self._n_tokens = n_tokens
        self._cost = cost
        self._ids: list[int] = []
        self._n_given = 0
        """Tokens of the text that the model did not choose."""
        self._expected: list[int] = []
        """Tokens of the last draft that no sampled token has been compared with."""
        self._hit_rate = 0.7
        self._token_seconds: float | None = None
        """Moving average of the seconds of drafting a token; None before the first draft."""
        self._n_since_draft = self._n_since_plain = 0
        """Sampled tokens since the last draft, and passes since the last one without a draft."""

    def set_ids(self, ids: Sequence[int]) -> None:
        """See the base class."""
        self._ids, self._n_given = list(ids), len(ids)
        self._expected = []

    def append(self, token_id: int) -> None:
        """See the base class."""
        self._n_since_draft += 1
        if self._expected:
            self._compare(self._expected[0], token_id)
            self._expected = self._expected[1:] if self._expected[0] == token_id else []
        self._ids.append(token_id)

    def plan(self, max_draft: int) -> DraftPlan:
        """See the base class."""
        max_draft = min(max_draft, self._backend.context - len(self._ids))
        if max_draft < 1 or self._cost.one_row_seconds is None or self._n_since_plain >= _RETRY:
            self._n_since_plain = 0
            return NO_DRAFT
        found = best_plan(repeat(self._hit_rate), max_draft, self._cost, self.token_cost())
        if not found.length and self._n_since_draft >= _RETRY:
            return DraftPlan(1, found.speedup)
        return found

    def draft(self, length: int, should_stop: Callable[[], bool] | None = None) -> list[int]:
        """See the base class."""
        self._n_since_draft = 0
        self._n_since_plain += 1
        drafted = [self._read(should_stop)]
        began = time.perf_counter()
        while len(drafted) < length:
            logits = self._backend.forward(drafted[-1:], self._cache, should_stop=should_stop)
            drafted += self._most_likely(logits)
        if length > 1:
            seconds = (time.perf_counter() - began) / (length - 1)
            self._token_seconds = moving_average(self._token_seconds, seconds)
        self._expected = drafted
        return drafted

    def token_cost(self) -> float:
        """Estimate the cost of drafting a token, relative to a pass of the model over one."""
        one = self._cost.one_row_seconds
        return 0.0 if self._token_seconds is None or one is None else self._token_seconds / one

    def _read(self, should_stop: Callable[[], bool] | None) -> int:
        """Make the cache hold the text, and return the most likely next token.

        The predictions of the model are compared with the text, at little cost, so that the hit
        rate is known even if nothing was drafted.
        """
        ids, cache = self._ids, self._cache
        cache.trim(min(cache.seek(ids), len(ids) - 1))
        for chunk in prompt_chunks(ids[cache.length : self._n_given - 1]):
            self._backend.forward(chunk, cache, should_stop=should_stop)
        while cache.length < len(ids):
            start = cache.length
            chunk = ids[start : start + _RETRY]
            logits = self._backend.forward(chunk, cache, all_logits=True, should_stop=should_stop)
            found = self._most_likely(logits)
            for guess, token_id in zip(found, ids[start + 1 :], strict=False):
                self._compare(guess, token_id)
        return found[-1]

    def _most_likely(self, logits: Tensor) -> list[int]:
        """Return the most likely token of each row, ``(rows, vocab_size)`` or a single one."""
        return logits.reshape(-1, logits.shape[-1])[:, : self._n_tokens].argmax(-1).tolist()

    def _compare(self, guess: int, token_id: int) -> None:
        self._hit_rate += EMA_WEIGHT * ((guess == token_id) - self._hit_rate)
