"""What a model might have written instead: the likeliest tokens at each place of a reply."""

from array import array
from dataclasses import dataclass, field

N_ALTERNATIVES = 10
"""How many of the likeliest tokens are kept for each place."""

Alternatives = tuple[tuple[int, float], ...]
"""Ids and the natural logarithms of their probabilities, likeliest first."""


@dataclass(slots=True)
class TokenLogprobs:
    """The tokens of a reply with the likeliest in place of each: about 100 bytes a token."""

    _ids: "array[int]" = field(default_factory=lambda: array("i"))
    _logprobs: "array[float]" = field(default_factory=lambda: array("f"))
    """Of the token itself, behind it those of the alternatives."""

    def add(self, token_id: int, logprob: float, alternatives: Alternatives) -> None:
        """Append a token; every one with ``N_ALTERNATIVES``, or fewer of a small vocabulary."""
        entries = [(token_id, logprob), *alternatives, *((-1, 0.0),) * N_ALTERNATIVES]
        for other_id, other_logprob in entries[: N_ALTERNATIVES + 1]:
            self._ids.append(other_id)
            self._logprobs.append(other_logprob)

    def __len__(self) -> int:
        return len(self._ids) // (N_ALTERNATIVES + 1)

    def token(self, index: int) -> tuple[int, float]:
        """The id and the log probability of the token at ``index``."""
        at = index * (N_ALTERNATIVES + 1)
        return self._ids[at], self._logprobs[at]

    def alternatives(self, index: int) -> Alternatives:
        """The likeliest tokens in that place, the token itself among them or not."""
        begin = index * (N_ALTERNATIVES + 1) + 1
        places = range(begin, begin + N_ALTERNATIVES)
        return tuple((self._ids[i], self._logprobs[i]) for i in places if self._ids[i] >= 0)
