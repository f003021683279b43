"""Lossless speculative decoding (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192).

A drafter guesses the next tokens of a text. One forward pass evaluates the last chosen token and
the draft, for little more than the cost of the token alone, since most of a pass is spent reading
the weights. Each token is then sampled from the logits at its position, as without drafts; if it
equals the drafted one, a pass is saved. So drafts change only the speed, and not one token, at any
temperature.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from llama_chat.generation.backend import Backend
from llama_chat.generation.kv_cache import KVCache
from llama_chat.model.transformer import InterruptedForward

DRAFT_LENGTHS = (1, 3, 7)
"""Lengths of drafts: with the token before them, the kernels multiply 2, 4 or 8 rows at a time."""

MIN_SPEEDUP = 1.1
"""Expected speedup that a draft must exceed; above 1, because the estimate is rough."""

EMA_WEIGHT = 1 / 12
"""Weight of the latest observation in an exponential moving average."""

_COST_DECAY = 0.998
"""Factor on the estimated cost of further rows after each pass, so that drafts are tried again."""


def moving_average(average: float | None, seconds: float) -> float:
    """Return the exponential moving average with a further time; an outlier is clipped."""
    average = average or seconds
    return average + EMA_WEIGHT * (min(seconds, 2 * average) - average)


class PassCost:
    """Cost of a pass over several tokens, relative to a pass over one; measured while decoding.

    It depends on the model and the machine, and grows with the text, since each row attends to all
    of it.
    """

    def __init__(self) -> None:
        self.one_row_seconds: float | None = None
        """Moving average of the seconds of a pass over one token; None before the first."""
        self._row_costs = {1 + n: 0.2 for n in DRAFT_LENGTHS}
        """Relative cost of each row after the first, by the number of rows."""

    def estimate(self, n_rows: int) -> float:
        """Estimate the relative cost of a pass over ``n_rows``: a token and its draft."""
        return 1 + self._row_costs[n_rows] * (n_rows - 1)

    def observe(self, n_rows: int, seconds: float) -> None:
        """Update the estimates with the time of a pass; outliers are clipped."""
        # Without the decay, a cost that was measured too high would never be measured again.
        self._row_costs = {n: cost * _COST_DECAY for n, cost in self._row_costs.items()}
        if n_rows == 1:
            self.one_row_seconds = moving_average(self.one_row_seconds, seconds)
        elif self.one_row_seconds is not None:
            cost = min(max((seconds / self.one_row_seconds - 1) / (n_rows - 1), 0.0), 1.0)
            self._row_costs[n_rows] += EMA_WEIGHT * (cost - self._row_costs[n_rows])


class DraftPlan(NamedTuple):
    """A draft that a drafter could make."""

    length: int
    speedup: float
    """Expected speedup over passes of one token."""


NO_DRAFT = DraftPlan(0, MIN_SPEEDUP)


def best_plan(
    hit_rates: Iterable[float], max_draft: int, cost: PassCost, token_cost: float = 0.0
) -> DraftPlan:
    """Return the draft with the highest expected speedup; ``NO_DRAFT`` if none is worth it.

    Args:
        hit_rates: probability that each drafted token is right, if all before it are.
        max_draft: limit on its length.
        cost: cost of evaluating it.
        token_cost: cost of drafting a token, relative to a pass of the model over one.
    """
    best = NO_DRAFT
    probability = expected = 1.0
    for n, hit_rate in zip(
        range(1, min(max_draft, DRAFT_LENGTHS[-1]) + 1), hit_rates, strict=False
    ):
        probability *= hit_rate
        expected += probability  # tokens that the pass yields on average
        if n in DRAFT_LENGTHS:
            speedup = expected / (cost.estimate(n + 1) + n * token_cost)
            best = max(best, DraftPlan(n, speedup), key=lambda plan: plan.speedup)
    return best


class Drafter(ABC):
    """Guesses of the next tokens of a text, as long as they are expected to save time."""

    @abstractmethod
    def set_ids(self, ids: Sequence[int]) -> None:
        """Replace the text, whose tokens the model did not choose."""

    @abstractmethod
    def append(self, token_id: int) -> None:
        """Add a sampled token, and learn from it how good the guesses are."""

    @abstractmethod
    def plan(self, max_draft: int) -> DraftPlan:
        """Return the best draft of at most ``max_draft`` tokens; it may be ``NO_DRAFT``."""

    @abstractmethod
    def draft(self, length: int, should_stop: Callable[[], bool] | None = None) -> list[int]:
        """Draft ``length`` tokens.

        Raises:
            InterruptedForward: if ``should_stop`` returned True.
        """


class DraftVerifier:
    """Evaluation of the sampled tokens of one generation, together with drafts of the next ones.

    After a pass over ``[token, *draft]`` only ``token`` is in the cache. The rows of the draft stay
    intact past its end until another pass overwrites them; each is restored when its token is
    sampled.
    """

    def __init__(
        self, backend: Backend, cache: KVCache, drafters: Sequence[Drafter], cost: PassCost
    ) -> None:
        """Append to ``cache``, with drafts of the ``drafters``."""
        self._backend = backend
        self._cache = cache
        self._drafters = drafters
        self._cost = cost
        self._prefetched: list[tuple[int, Tensor]] = []
        """Drafted tokens, each with the logits ``(vocab_size,)`` that follow it."""
        self._n_drafted = self._n_accepted = 0

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of drafted tokens and of accepted ones."""
        return self._n_drafted, self._n_accepted

    def set_ids(self, ids: Sequence[int]) -> None:
        """Replace the text, which the cache holds or is about to hold."""
        self._prefetched = []
        for drafter in self._drafters:
            drafter.set_ids(ids)

    def evaluate(
        self, token_id: int, max_draft: int, should_stop: Callable[[], bool] | None = None
    ) -> Tensor:
        """Append a sampled token to the cache, without a pass if it is the next drafted one.

        Args:
            token_id: the token.
            max_draft: limit on the tokens drafted after it.
            should_stop: called as in ``Transformer.forward``.

        Returns:
            Logits that follow the token, ``(vocab_size,)`` in float32.

        Raises:
            InterruptedForward: if ``should_stop`` returned True; the cache is unchanged.
        """
        for drafter in self._drafters:
            drafter.append(token_id)
        prefetched, self._prefetched = self._prefetched, []
        if prefetched and prefetched[0][0] == token_id:
            if should_stop is not None and should_stop():
                raise InterruptedForward
            if self._cache.restore(token_id):
                self._prefetched = prefetched[1:]
                self._n_accepted += 1
                return prefetched[0][1]
        return self._forward(token_id, max_draft, should_stop)

    def skip(self, ids: Sequence[int]) -> None:
        """Tell the drafters of tokens that are appended to the cache without ``evaluate``."""
        self._prefetched = []
        for token_id in ids:
            for drafter in self._drafters:
                drafter.append(token_id)

    def _forward(
        self, token_id: int, max_draft: int, should_stop: Callable[[], bool] | None
    ) -> Tensor:
        """Evaluate the token with a new draft, and keep the logits that follow the draft."""
        length = self._cache.length
        draft = self._draft(min(max_draft, self._backend.max_exact_batch - 1), should_stop)
        began = time.perf_counter()
        logits = self._backend.forward(
            [token_id, *draft], self._cache, should_stop=should_stop, all_logits=True
        )
        self._cost.observe(len(logits), time.perf_counter() - began)
        self._cache.trim(length + 1)
        self._n_drafted += len(draft)
        self._prefetched = list(zip(draft, logits[1:], strict=True))
        return logits[0]

    def _draft(self, max_draft: int, should_stop: Callable[[], bool] | None) -> list[int]:
        """Return the draft with the highest expected speedup; empty if none is worth it."""
        plans = [(drafter.plan(max_draft), drafter) for drafter in self._drafters]
        plan, drafter = max(plans, key=lambda each: each[0].speedup)
        return drafter.draft(plan.length, should_stop) if plan.length else []
