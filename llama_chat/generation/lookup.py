"""Speculation without a second model: where the same words stood before, the same may follow.

Prompt lookup (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding): the last tokens
of a text are looked up in what stands before them, and what followed them there is a draft of what
comes. One forward pass reads it together with the token that was chosen last, for little more than
that token alone would cost: most of the time of a pass goes into reading the weights. Then each
token is drawn from the logits of its own place, as it would be anyway. A draft that foretold it has
spared a pass. So drafts decide how soon a text is there, and never what it says.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from llama_chat.generation.backend import Backend
from llama_chat.generation.kv_cache import KVCache, common_prefix
from llama_chat.model.transformer import InterruptedForward

SIZES = (8, 4, 2)
"""Lengths of the n-grams that are looked up, the longest first."""

LONGEST = 16
"""How far back a match is followed: one that is longer is no better."""

DRAFTS = (1, 3, 7)
"""How many tokens a draft may have: the kernels multiply 1, 2, 4 or 8 rows at a time."""

WORTHWHILE = 1.1
"""How much faster than one by one a draft must promise to be: what it rests on is only guessed."""

_FORGETTING = 1 / 12
"""What the latest observation counts beside all earlier ones."""

_OPTIMISM = 0.998
"""By how much a row is believed to have become cheaper with each pass that did not try."""


class Match(NamedTuple):
    """An earlier place where a text ended as it ends now."""

    start: int
    """Where it went on from there."""
    length: int
    """How many tokens before it are the last ones of the text; ``LONGEST`` if there are more."""


class NGramIndex:
    """Where each n-gram of a text last stood; every token costs the same, however long the text."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._latest: dict[tuple[int, ...], int] = {}
        """For each n-gram the place behind its last occurrence that something follows."""
        self._earlier = array("q")
        """For each entry that was made, in order, the one that it replaced; 0 for none."""

    @property
    def ids(self) -> Sequence[int]:
        """The text; not to be changed by the caller."""
        return self._ids

    def follow(self, ids: Sequence[int]) -> None:
        """Hold exactly ``ids``, at the cost of what differs."""
        shared = common_prefix(self._ids, ids)
        while len(self._ids) > shared:
            self._pop()
        for token_id in ids[shared:]:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """Add a token: what stood last is now followed by something."""
        for gram in self._last():
            self._earlier.append(self._latest.get(gram, 0))
            self._latest[gram] = len(self._ids)
        self._ids.append(token_id)

    def _pop(self) -> None:
        self._ids.pop()
        for gram in reversed(self._last()):
            if earlier := self._earlier.pop():
                self._latest[gram] = earlier
            else:
                del self._latest[gram]

    def _last(self) -> list[tuple[int, ...]]:
        """The n-grams that end the text, the longest first."""
        return [tuple(self._ids[-n:]) for n in SIZES if n <= len(self._ids)]

    def find(self) -> Match | None:
        """The last occurrence of the longest n-gram that ends the text and stood before."""
        for gram in self._last():
            if start := self._latest.get(gram):
                return Match(start, self._length(start, len(gram)))
        return None

    def _length(self, start: int, known: int) -> int:
        """How many tokens before ``start`` end the text, where so many are known to."""
        ids, length = self._ids, known
        while length < min(start, LONGEST) and ids[start - 1 - length] == ids[-1 - length]:
            length += 1
        return length


class PassCost:
    """How long a pass over several tokens takes, in passes over one; learnt from all there were.

    It depends on the model and the machine, and grows with the text, to which each row attends for
    itself.
    """

    def __init__(self) -> None:
        self._one: float | None = None
        """Seconds of a pass over one token."""
        self._further = {1 + n: 0.2 for n in DRAFTS}
        """What each row but the first adds, as a part of that, by the number of rows."""

    def of(self, n_rows: int) -> float:
        """The cost of a pass over a draft of one of ``DRAFTS`` and the token before it."""
        return 1 + self._further[n_rows] * (n_rows - 1)

    def observe(self, n_rows: int, seconds: float) -> None:
        """Learn from a pass; one that something else held up for long counts as if for a while."""
        # Else a cost that was once found too high would never be measured again.
        self._further = {n: row * _OPTIMISM for n, row in self._further.items()}
        if n_rows == 1:
            one = self._one or seconds
            self._one = one + _FORGETTING * (min(seconds, 2 * one) - one)
        elif self._one is not None:
            row = min(max((seconds / self._one - 1) / (n_rows - 1), 0.0), 1.0)
            self._further[n_rows] += _FORGETTING * (row - self._further[n_rows])


class Drafter:
    """Foretells how a text goes on, as far as that is worth the time to read it.

    How likely a draft is right depends above all on how long the text has been the same as where it
    was found. How likely for each length is learnt from every token of the text, read ahead or not:
    so drafts end where they are of no use, and begin again once they would have been.
    """

    def __init__(self) -> None:
        self.cost = PassCost()
        self._index = NGramIndex()
        self._match: Match | None = None
        # By ``_bucket``; to begin with, what replies of the starter model give on the whole.
        self._chances = {2: 0.5, 3: 0.65, 4: 0.85, 5: 0.95}

    def follow(self, ids: Sequence[int]) -> None:
        """Go on with ``ids``, of which nothing is learnt: the model did not choose them."""
        self._index.follow(ids)
        self._match = self._index.find()

    def append(self, token_id: int) -> None:
        """Add the token that was chosen, and learn whether it was foretold."""
        if self._match is not None:
            bucket = _bucket(self._match.length)
            hit = self._index.ids[self._match.start] == token_id
            self._chances[bucket] += _FORGETTING * (hit - self._chances[bucket])
        self._index.append(token_id)
        self._match = self._index.find()

    def draft(self, room: int) -> list[int]:
        """At most ``room`` tokens that are worth reading together with the last one; maybe none."""
        if self._match is None:
            return []
        start, length = self._match
        n_best, best = 0, WORTHWHILE
        chance = expected = 1.0
        for n in range(1, min(room, DRAFTS[-1]) + 1):
            chance *= self._chances[_bucket(length + n - 1)]
            expected += chance  # tokens that the pass yields, its own among them
            if n in DRAFTS and (speed := expected / self.cost.of(n + 1)) > best:
                n_best, best = n, speed
        # Where the match reaches to the end of the text, a draft goes round and round in it.
        ids = self._index.ids[start:]
        return [ids[i % len(ids)] for i in range(n_best)]


def _bucket(length: int) -> int:
    """Which matches are thought to be as good as one of ``length``: 2, 4, 8 and 16 begin others."""
    return min(length, LONGEST).bit_length()


class Lookahead:
    """Reads the tokens of one generation, and with them what may follow.

    A pass that reads ``[token, draft, …]`` leaves the token alone in the cache. The rows of the
    draft lie behind its end until another pass writes over them; each is counted once its token was
    chosen.
    """

    def __init__(self, backend: Backend, cache: KVCache, drafter: Drafter) -> None:
        """Begin behind ``cache``; the ``drafter`` follows the same text."""
        self._backend = backend
        self._cache = cache
        self._drafter = drafter
        self._ahead: list[tuple[int, Tensor]] = []
        """Drafted tokens that are read, with the logits ``(vocab_size,)`` behind each."""
        self._n_drafted = self._n_accepted = 0

    @property
    def counts(self) -> tuple[int, int]:
        """How many tokens were drafted, and how many of those were chosen then."""
        return self._n_drafted, self._n_accepted

    def read(
        self, token_id: int, room: int, should_stop: Callable[[], bool] | None = None
    ) -> Tensor:
        """Add the token that was chosen to the cache, and read it if no earlier pass has.

        Args:
            token_id: what follows the cache.
            room: how many tokens behind it are of use.
            should_stop: asked as in ``Transformer.forward``.

        Returns:
            Logits behind it, ``(vocab_size,)`` in float32.

        Raises:
            InterruptedForward: if ``should_stop`` said so; the cache is as it was.
        """
        self._drafter.append(token_id)
        ahead, self._ahead = self._ahead, []
        if ahead and ahead[0][0] == token_id:
            if should_stop is not None and should_stop():
                raise InterruptedForward
            if self._cache.restore(token_id):
                self._ahead = ahead[1:]
                self._n_accepted += 1
                return ahead[0][1]
        return self._pass(token_id, room, should_stop)

    def _pass(self, token_id: int, room: int, should_stop: Callable[[], bool] | None) -> Tensor:
        length = self._cache.length
        drafts = self._drafter.draft(min(room, self._backend.max_exact_batch - 1))
        began = time.perf_counter()
        logits = self._backend.forward(
            [token_id, *drafts], self._cache, should_stop=should_stop, all_logits=True
        )
        self._drafter.cost.observe(len(logits), time.perf_counter() - began)
        self._cache.trim(length + 1)
        self._n_drafted += len(drafts)
        self._ahead = list(zip(drafts, logits[1:], strict=True))
        return logits[0]
