"""Drafts from earlier text.

Prompt lookup (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding): the last tokens
of a text are searched for in the text before them, and the tokens that followed them there become
the draft.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llama_chat.generation.kv_cache import common_prefix
from llama_chat.generation.speculation import (
    EMA_WEIGHT,
    NO_DRAFT,
    Drafter,
    DraftPlan,
    PassCost,
    best_plan,
)

NGRAM_SIZES = (8, 4, 2)
"""Lengths of the n-grams that are looked up, the longest first."""

MAX_MATCH_LENGTH = 16
"""Tokens up to which the length of a match is measured: a longer one predicts no better."""


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


class LookupDrafter(Drafter):
    """Drafter of the tokens that followed the same words earlier.

    The probability that a drafted token is right depends mostly on the length of the match. It is
    estimated for each range of lengths from every sampled token, drafted or not, so that drafts
    stop where they are of no use and start again where they would have been.
    """

    def __init__(self, cost: PassCost) -> None:
        """Draft for passes of the given ``cost``."""
        self._cost = cost
        self._index = NGramIndex()
        self._match: Match | None = None
        # By ``_bucket``; the initial values are averages over replies of the starter model.
        self._hit_rates = {2: 0.5, 3: 0.65, 4: 0.85, 5: 0.95}

    def set_ids(self, ids: Sequence[int]) -> None:
        """See the base class."""
        self._index.set_ids(ids)
        self._match = self._index.find()

    def append(self, token_id: int) -> None:
        """See the base class; the hit rate of the match before the token is updated."""
        if self._match is not None:
            bucket = _bucket(self._match.length)
            hit = self._index.ids[self._match.start] == token_id
            self._hit_rates[bucket] += EMA_WEIGHT * (hit - self._hit_rates[bucket])
        self._index.append(token_id)
        self._match = self._index.find()

    def plan(self, max_draft: int) -> DraftPlan:
        """See the base class."""
        if self._match is None:
            return NO_DRAFT
        length = self._match.length
        rates = (self._hit_rates[_bucket(length + n)] for n in range(max_draft))
        return best_plan(rates, max_draft, self._cost)

    def draft(self, length: int, should_stop: Callable[[], bool] | None = None) -> list[int]:
        """See the base class."""
        if self._match is None:
            return []
        # A draft longer than the text after the match repeats that text.
        ids, start = self._index.ids, self._match.start
        return [ids[start + i % (len(ids) - start)] for i in range(length)]


def _bucket(length: int) -> int:
    """Group the lengths of matches that share a hit rate: from 2, 4, 8 and 16 tokens on."""
    return min(length, MAX_MATCH_LENGTH).bit_length()
