"""Log-probabilities of the tokens of a reply, and of others at their positions."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

N_ALTERNATIVES = 10
"""Number of the most likely tokens kept for each position."""

Alternatives = tuple[tuple[int, float], ...]
"""Token ids with the natural logarithms of their probabilities, most likely first."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A continuation with the natural logarithm of the probability of each of its tokens."""

    ids: Sequence[int]
    logprobs: Sequence[float]

    @property
    def logprob(self) -> float:
        """Logarithm of the probability of all of it."""
        return sum(self.logprobs)


@dataclass(slots=True)
class TokenLogprobs:
    """Tokens of a reply with their most likely alternatives; about 100 bytes per token."""

    _ids: "array[int]" = field(default_factory=lambda: array("i"))
    _logprobs: "array[float]" = field(default_factory=lambda: array("f"))
    """Log-probabilities of each token, followed by those of its alternatives."""

    def add(self, token_id: int, logprob: float, alternatives: Alternatives) -> None:
        """Append a token with its alternatives, of which the first ``N_ALTERNATIVES`` are kept."""
        entries = [(token_id, logprob), *alternatives, *((-1, 0.0),) * N_ALTERNATIVES]
        ids, logprobs = zip(*entries[: N_ALTERNATIVES + 1], strict=True)
        self._ids.extend(ids)
        self._logprobs.extend(logprobs)

    def __len__(self) -> int:
        return len(self._ids) // (N_ALTERNATIVES + 1)

    def token(self, index: int) -> tuple[int, float]:
        """Return the id and the log-probability of the token at ``index``."""
        at = index * (N_ALTERNATIVES + 1)
        return self._ids[at], self._logprobs[at]

    def alternatives(self, index: int) -> Alternatives:
        """Return the most likely tokens at ``index``, which may include the token itself."""
        begin = index * (N_ALTERNATIVES + 1) + 1
        places = range(begin, begin + N_ALTERNATIVES)
        return tuple((self._ids[i], self._logprobs[i]) for i in places if self._ids[i] >= 0)
