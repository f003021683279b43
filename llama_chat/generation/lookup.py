"""Speculative decoding without a draft model.

Prompt lookup (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding): the last tokens
of a text are searched for in the text before them, and the tokens that followed them there become
the draft. One forward pass evaluates the last chosen token and the draft, for little more than the
cost of the token alone, since most of a pass is spent reading the weights. Each token is then
sampled from the logits at its position, as without drafts; if it equals the drafted one, a pass
is saved. So drafts change the speed of a text, and not one token of it.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from llama_chat.generation.backend import Backend
from llama_chat.generation.kv_cache import KVCache, common_prefix
from llama_chat.model.transformer import InterruptedForward

NGRAM_SIZES = (8, 4, 2)
"""Lengths of the n-grams that are looked up, the longest first."""

MAX_MATCH_LENGTH = 16
"""Tokens up to which the length of a match is measured: a longer one predicts no better."""

DRAFT_LENGTHS = (1, 3, 7)
"""Lengths of drafts: with the token before them, the kernels multiply 2, 4 or 8 rows at a time."""

MIN_SPEEDUP = 1.1
"""Expected speedup that a draft must exceed; above 1, because the estimate is rough."""

_EMA_WEIGHT = 1 / 12
"""Weight of the latest observation in an exponential moving average."""

_COST_DECAY = 0.998
"""Factor on the estimated cost of further rows after each pass, so that drafts are tried again."""


class Match(NamedTuple):
    """An earlier occurrence of the tokens that end a text."""

    start: int
    """Index of the token that followed it."""
    length: int
    """Number of tokens that match, at most ``MAX_MATCH_LENGTH``."""


class NGramIndex:
    """Index of the last occurrence of each n-gram of a text, with constant cost per token."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._next_index: dict[tuple[int, ...], int] = {}
        """Index of the token after the last occurrence of each n-gram that a token follows."""
        self._replaced = array("q")
        """Undo log: the value that each new entry of ``_next_index`` replaced; 0 for none."""

    @property
    def ids(self) -> Sequence[int]:
        """The text; not to be changed by the caller."""
        return self._ids

    def set_ids(self, ids: Sequence[int]) -> None:
        """Replace the text; the cost is that of the tokens after the common prefix."""
        shared = common_prefix(self._ids, ids)
        while len(self._ids) > shared:
            self._pop()
        for token_id in ids[shared:]:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """Add a token, and index the n-grams that it follows."""
        for gram in self._last_ngrams():
            self._replaced.append(self._next_index.get(gram, 0))
            self._next_index[gram] = len(self._ids)
        self._ids.append(token_id)

    def _pop(self) -> None:
        self._ids.pop()
        for gram in reversed(self._last_ngrams()):
            if replaced := self._replaced.pop():
                self._next_index[gram] = replaced
            else:
                del self._next_index[gram]

    def _last_ngrams(self) -> list[tuple[int, ...]]:
        """The n-grams that end the text, the longest first."""
        return [tuple(self._ids[-n:]) for n in NGRAM_SIZES if n <= len(self._ids)]

    def find(self) -> Match | None:
        """Find the last earlier occurrence of the longest n-gram at the end of the text."""
        for gram in self._last_ngrams():
            if start := self._next_index.get(gram):
                return Match(start, self._match_length(start, len(gram)))
        return None

    def _match_length(self, start: int, known: int) -> int:
        """Count the tokens before ``start`` that equal the last of the text; ``known`` ones do."""
        ids, length = self._ids, known
        while length < min(start, MAX_MATCH_LENGTH) and ids[start - 1 - length] == ids[-1 - length]:
            length += 1
        return length


class PassCost:
    """Cost of a pass over several tokens, relative to a pass over one; measured while decoding.

    It depends on the model and the machine, and grows with the text, since each row attends to all
    of it.
    """

    def __init__(self) -> None:
        self._one_row_seconds: float | None = None
        """Moving average of the seconds of a pass over one token."""
        self._row_costs = {1 + n: 0.2 for n in DRAFT_LENGTHS}
        """Relative cost of each row after the first, by the number of rows."""

    def estimate(self, n_rows: int) -> float:
        """Estimate the relative cost of a pass over ``n_rows``: a token and its draft."""
        return 1 + self._row_costs[n_rows] * (n_rows - 1)

    def observe(self, n_rows: int, seconds: float) -> None:
        """Update the estimates with the time of a pass; outliers are clipped."""
        # Otherwise a cost once measured too high would never be measured again.
        self._row_costs = {n: cost * _COST_DECAY for n, cost in self._row_costs.items()}
        if n_rows == 1:
            one = self._one_row_seconds or seconds
            self._one_row_seconds = one + _EMA_WEIGHT * (min(seconds, 2 * one) - one)
        elif self._one_row_seconds is not None:
            cost = min(max((seconds / self._one_row_seconds - 1) / (n_rows - 1), 0.0), 1.0)
            self._row_costs[n_rows] += _EMA_WEIGHT * (cost - self._row_costs[n_rows])


class Drafter:
    """Prompt-lookup drafter, whose drafts are as long as they are expected to save time.

    The probability that a drafted token is right depends mostly on the length of the match. It is
    estimated for each range of lengths from every sampled token, drafted or not, so that drafts
    stop where they are of no use and start again where they would have been.
    """

    def __init__(self) -> None:
        self.cost = PassCost()
        self._index = NGramIndex()
        self._match: Match | None = None
        # By ``_bucket``; the initial values are averages over replies of the starter model.
        self._hit_rates = {2: 0.5, 3: 0.65, 4: 0.85, 5: 0.95}

    def set_ids(self, ids: Sequence[int]) -> None:
        """Replace the text, but not the hit rates: the model did not choose these tokens."""
        self._index.set_ids(ids)
        self._match = self._index.find()

    def append(self, token_id: int) -> None:
        """Add a sampled token, and update the hit rate of the match before it."""
        if self._match is not None:
            bucket = _bucket(self._match.length)
            hit = self._index.ids[self._match.start] == token_id
            self._hit_rates[bucket] += _EMA_WEIGHT * (hit - self._hit_rates[bucket])
        self._index.append(token_id)
        self._match = self._index.find()

    def draft(self, max_draft: int) -> list[int]:
        """Draft at most ``max_draft`` tokens; none if no draft is expected to save time."""
        if self._match is None:
            return []
        start, length = self._match
        n_best, best = 0, MIN_SPEEDUP
        probability = expected = 1.0
        for n in range(1, min(max_draft, DRAFT_LENGTHS[-1]) + 1):
            probability *= self._hit_rates[_bucket(length + n - 1)]
            expected += probability  # tokens that the pass yields on average
            if n in DRAFT_LENGTHS and (speedup := expected / self.cost.estimate(n + 1)) > best:
                n_best, best = n, speedup
        # A draft longer than the text after the match repeats that text.
        ids = self._index.ids[start:]
        return [ids[i % len(ids)] for i in range(n_best)]


def _bucket(length: int) -> int:
    """Group the lengths of matches that share a hit rate: from 2, 4, 8 and 16 tokens on."""
    return min(length, MAX_MATCH_LENGTH).bit_length()


class DraftVerifier:
    """Evaluation of the sampled tokens of one generation, together with drafts of the next ones.

    After a pass over ``[token, *draft]`` only ``token`` is in the cache. The rows of the draft stay
    intact past its end until another pass overwrites them; each is restored when its token is
    sampled.
    """

    def __init__(self, backend: Backend, cache: KVCache, drafter: Drafter) -> None:
        """Append to ``cache``; the ``drafter`` holds the same text."""
        self._backend = backend
        self._cache = cache
        self._drafter = drafter
        self._prefetched: list[tuple[int, Tensor]] = []
        """Drafted tokens, each with the logits ``(vocab_size,)`` that follow it."""
        self._n_drafted = self._n_accepted = 0

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of drafted tokens and of accepted ones."""
        return self._n_drafted, self._n_accepted

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
        self._drafter.append(token_id)
        prefetched, self._prefetched = self._prefetched, []
        if prefetched and prefetched[0][0] == token_id:
            if should_stop is not None and should_stop():
                raise InterruptedForward
            if self._cache.restore(token_id):
                self._prefetched = prefetched[1:]
                self._n_accepted += 1
                return prefetched[0][1]
        return self._forward(token_id, max_draft, should_stop)

    def _forward(
        self, token_id: int, max_draft: int, should_stop: Callable[[], bool] | None
    ) -> Tensor:
        """Evaluate the token with a new draft, and keep the logits that follow the draft."""
        length = self._cache.length
        draft = self._drafter.draft(min(max_draft, self._backend.max_exact_batch - 1))
        began = time.perf_counter()
        logits = self._backend.forward(
            [token_id, *draft], self._cache, should_stop=should_stop, all_logits=True
        )
        self._drafter.cost.observe(len(logits), time.perf_counter() - began)
        self._cache.trim(length + 1)
        self._n_drafted += len(draft)
        self._prefetched = list(zip(draft, logits[1:], strict=True))
        return logits[0]
