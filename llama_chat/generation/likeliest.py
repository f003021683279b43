"""The most likely tokens, and what their probabilities are computed from."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

from torch import Tensor

from llama_chat.errors import ModelError
from llama_chat.kernels.likeliest import Found, find_likeliest, is_supported

_MAX_FACTOR = 1e30
"""Factor above which all weights are 0 or 1 in float32."""


def not_a_number() -> ModelError:
    """Return the error about a model whose logits are not numbers."""
    return ModelError(
        "model",
        "its output is not a number",
        "use --dtype float32; if that does not help the weights are damaged",
    )


class Likeliest(NamedTuple):
    """The likeliest tokens of a vocabulary."""

    logits: Sequence[float]
    """Their logits, from the largest on."""
    ids: Sequence[int]
    """Their ids; the lower one first of tokens with equal logits."""
    normaliser: float
    """Log-sum-exp of the logits of the vocabulary: a logit minus this is a log-probability."""
    total: float
    """Sum of ``exp((logit - largest) / temperature)`` over the vocabulary."""

    def check(self) -> Self:
        """Check that tokens can be chosen from the logits, and return this.

        Raises:
            ModelError: if a logit is not a number or infinite, or all are minus infinity.
        """
        if not math.isfinite(self.normaliser):
            raise not_a_number()
        return self


class Search(NamedTuple):
    """A search for the likeliest tokens."""

    k: int
    """Number of tokens to find, at least 1; all of a vocabulary that has fewer."""
    temperature: float = 1.0
    """Temperature of the ``total``, above 0."""


def likeliest(logits: Tensor, search: Search) -> Likeliest:
    """Find the likeliest tokens.

    The kernels need a twentieth of a millisecond. A dozen operations of torch take as long as
    several layers of a small model, since each finds the CPU caches full of weights.

    Args:
        logits: ``(vocab_size,)`` in float32, on the CPU.
        search: what to find.

    Raises:
        ModelError: if a logit is not a number or infinite, or all are minus infinity.
    """
    return find_all([logits], search)[0].check()


def find_all(rows: Sequence[Tensor], search: Search) -> list[Likeliest]:
    """Find the likeliest tokens of several rows, which takes less time than one after the other.

    Args:
        rows: each ``(vocab_size,)`` in float32, on the CPU.
        search: what to find in each.

    Returns:
        The results, unchecked: an error in one row must not affect the others.
    """
    k, factor = min(search.k, len(rows[0])), min(1 / search.temperature, _MAX_FACTOR)
    find = find_likeliest if all(map(is_supported, rows)) else _find_in_torch
    return [Likeliest(*found) for found in find(rows, k, factor)]


def _find_in_torch(rows: Sequence[Tensor], k: int, factor: float) -> list[Found]:
    """Find what ``find_likeliest`` does, where no more than ``k`` logits are equal."""
    return [_find_in_row(logits, k, factor) for logits in rows]


def _find_in_row(logits: Tensor, k: int, factor: float) -> Found:
    values, places = logits.topk(k) if k > 1 else logits.max(0, keepdim=True)
    pairs = sorted(zip(values.tolist(), places.tolist(), strict=True), key=_by_logit)
    total = ((logits - values[0]) * factor).exp_().sum()
    first, ids = zip(*pairs, strict=True)
    return first, ids, float(logits.logsumexp(-1)), float(total)


def _by_logit(pair: tuple[float, int]) -> tuple[float, int]:
    logit, token_id = pair
    return -logit, token_id
