"""The most likely tokens, and what their probabilities are computed from."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from llama_chat.errors import ModelError
from llama_chat.kernels.likeliest import find_likeliest, is_supported

_MAX_FACTOR = 1e30
"""Factor above which float32 knows no other weights than 0 and 1."""


class Likeliest(NamedTuple):
    """The likeliest tokens of a vocabulary."""

    logits: Sequence[float]
    """Their logits, from the largest on."""
    ids: Sequence[int]
    """Their ids; the lower one first of tokens with equal logits."""
    normaliser: float
    """Logarithm of the sum of ``exp(logit)`` over the vocabulary, by which logits exceed the
    logarithms of probabilities."""
    total: float
    """Sum of ``exp((logit - largest) / temperature)`` over the vocabulary."""


def likeliest(logits: Tensor, k: int, temperature: float = 1.0) -> Likeliest:
    """Find the ``k`` most likely tokens, or all of a vocabulary that has fewer.

    The kernels need a twentieth of a millisecond, where a dozen operations of torch take as long as
    several layers of a small model: each finds the caches full of weights.

    Args:
        logits: ``(vocab_size,)`` in float32, on the CPU.
        k: at least 1.
        temperature: above 0.

    Raises:
        ModelError: if a logit is not a number or infinite, or all are minus infinity.
    """
    k, factor = min(k, len(logits)), min(1 / temperature, _MAX_FACTOR)
    find = find_likeliest if is_supported(logits) else _find_in_torch
    found = Likeliest(*find(logits, k, factor))
    if not math.isfinite(found.normaliser):
        raise ModelError(
            "model",
            "its output is not a number",
            "use --dtype float32; if that does not help the weights are damaged",
        )
    return found


def _find_in_torch(
    logits: Tensor, k: int, factor: float
) -> tuple[Sequence[float], Sequence[int], float, float]:
    """Find what ``find_likeliest`` does, where no more than ``k`` logits are equal."""
    values, places = logits.topk(k) if k > 1 else logits.max(0, keepdim=True)
    pairs = sorted(zip(values.tolist(), places.tolist(), strict=True), key=_by_logit)
    total = ((logits - values[0]) * factor).exp_().sum()
    first, ids = zip(*pairs, strict=True)
    return first, ids, float(logits.logsumexp(-1)), float(total)


def _by_logit(pair: tuple[float, int]) -> tuple[float, int]:
    logit, token_id = pair
    return -logit, token_id
