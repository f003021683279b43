"""Sampling of the next token from logits."""

import math
import secrets
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from llama_chat.errors import ModelError
from llama_chat.generation.logprobs import N_ALTERNATIVES, Alternatives
from llama_chat.settings.sampling import Sampling

REPEAT_WINDOW = 64
"""Number of last tokens that the repetition penalty applies to."""

RANKED_FIRST = 256
"""Number of most likely tokens that are ranked first; more only if top-p keeps all of them."""


_LEAST = 1e-30
"""Temperature below which float32 knows no other weights than 0 and 1."""

_BLOCK = 32
"""Numbers of which the largest is compared first; see ``largest``."""


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest of ``values`` ``(n,)``, from high to low, and their places.

    ``topk`` of a whole vocabulary takes as long as a layer of a small model. They are all in the
    ``k`` blocks of the largest maxima, though, and in the rest after the last whole block.
    """
    n_blocks = len(values) // _BLOCK
    if n_blocks <= k:
        found, places = values.topk(k)
        return found, places
    rest = values[n_blocks * _BLOCK :]
    blocks = values[: n_blocks * _BLOCK].view(n_blocks, _BLOCK)
    chosen = blocks.amax(1).topk(k).indices
    candidates = blocks.index_select(0, chosen).flatten()
    if len(rest):
        candidates = torch.cat((candidates, rest))
        chosen = torch.cat((chosen, torch.tensor([n_blocks])))
    found, order = candidates.topk(k)
    return found, chosen[order // _BLOCK] * _BLOCK + order % _BLOCK


def keep_likely(ranked: Iterable[float], top_p: float, min_p: float = 0.0) -> list[float]:
    """Keep the first of some probabilities.

    Nucleus sampling (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751) as in Meta's code: the
    token that crosses ``top_p`` is kept.

    Args:
        ranked: probabilities from high to low.
        top_p: keep a token if all before it add up to at most this.
        min_p: keep tokens at least so many times as likely as the first.
    """
    kept: list[float] = []
    before = 0.0
    for probability in ranked:
        if before > top_p or (kept and probability < min_p * kept[0]):
            break
        kept.append(probability)
        before += probability
    return kept


def penalise_repeats(logits: Tensor, recent: Sequence[int], penalty: float) -> Tensor:
    """Make ``recent`` tokens less likely (Keskar et al. 2019, https://arxiv.org/abs/1909.05858).

    Args:
        logits: ``(vocab_size,)``; not changed.
        recent: token ids, each counted once.
        penalty: above 1 discourages repetition, below 1 encourages it.
    """
    logits = logits.clone()
    ids = torch.tensor(sorted(set(recent)), dtype=torch.long, device=logits.device)
    scores = logits[ids]
    logits[ids] = torch.where(scores > 0, scores / penalty, scores * penalty)
    return logits


def keep_allowed(logits: Tensor, allowed: bytearray) -> Tensor:
    """Make all other tokens impossible.

    Args:
        logits: ``(vocab_size,)``; not changed.
        allowed: a byte for each token, not 0 for those to keep; tokens beyond its end are dropped.
    """
    mask = torch.zeros(len(logits), dtype=torch.uint8)
    mask[: len(allowed)] = torch.frombuffer(allowed, dtype=torch.uint8)[: len(logits)]
    return logits.masked_fill(mask == 0, -torch.inf)


class Choice(NamedTuple):
    """Chosen token; log-probabilities are those of the unchanged logits."""

    id: int
    logprob: float
    alternatives: Alternatives = ()
    """Most likely tokens at that position; empty without ``with_logprobs``."""


class Sampler:
    """Sampler of tokens under a ``Sampling``, with its own random generator."""

    def __init__(self, sampling: Sampling, *, with_logprobs: bool = False) -> None:
        """Seed from ``sampling.seed``, or from the system if it is None.

        Args:
            sampling: the sampling settings.
            with_logprobs: add the most likely tokens to each choice.
        """
        self._with_logprobs = with_logprobs
        self._sampling = sampling
        self._reseed()

    @property
    def sampling(self) -> Sampling:
        """The settings in force."""
        return self._sampling

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        """Change the settings; the generator is reseeded only if the seed changes."""
        before, self._sampling = self._sampling, sampling
        if sampling.seed != before.seed:
            self._reseed()

    @property
    def seed(self) -> int:
        """The seed in use, drawn or given."""
        return self._seed

    def _reseed(self) -> None:
        # A random seed of 32 bits is short enough to type.
        seed = self._sampling.seed
        self._seed = secrets.randbelow(2**32) if seed is None else seed
        self._random = Random(self._seed)  # noqa: S311 - the same on every machine

    def __call__(
        self, logits: Tensor, previous: Sequence[int], allowed: bytearray | None = None
    ) -> Choice:
        """Choose a token.

        Args:
            logits: ``(vocab_size,)`` in float32.
            previous: all tokens so far, for the repetition penalty.
            allowed: a byte for each token, 0 for those that may not be chosen; None if all may.

        Raises:
            ModelError: if the logits are not finite.
        """
        settings = self._sampling
        raw = logits.float().cpu()
        normaliser = float(raw.logsumexp(-1))
        if not math.isfinite(normaliser):
            raise ModelError(
                "model",
                "its output is not a number",
                "use --dtype float32; if that does not help the weights are damaged",
            )
        scores = raw
        if settings.repeat_penalty != 1 and previous:
            scores = penalise_repeats(raw, previous[-REPEAT_WINDOW:], settings.repeat_penalty)
        if allowed is not None:
            scores = keep_allowed(scores, allowed)
        token_id = int(scores.argmax()) if settings.temperature == 0 else self._draw(scores)
        logprob = float(raw[token_id]) - normaliser
        if not self._with_logprobs:
            return Choice(token_id, logprob)
        best, ids = largest(raw, min(N_ALTERNATIVES, len(raw)))
        logprobs = [each - normaliser for each in best.tolist()]
        return Choice(token_id, logprob, tuple(zip(ids.tolist(), logprobs, strict=True)))

    def _draw(self, scores: Tensor) -> int:
        """Draw one of the tokens that the settings keep, by the ``scores`` ``(vocab_size,)``."""
        settings, best = self._sampling, float(scores.max())
        keeps_all = settings.top_p == 1 and not (settings.top_k or settings.min_p)
        if keeps_all:
            whole = _weights(scores, best, settings.temperature).cumsum(-1, dtype=torch.float64)
            return int(torch.searchsorted(whole, self._place() * whole[-1]))
        ids, kept = self._ranked(scores, best)
        sums = list(accumulate(kept))
        return int(ids[bisect_left(sums, self._place() * sums[-1])])

    def _place(self) -> float:
        """Draw a number above 0, at most 1: so that no token of weight 0 is where it lies."""
        return 1 - self._random.random()

    def _ranked(self, scores: Tensor, best: float) -> tuple[Tensor, list[float]]:
        """Return the ids of the likeliest tokens, and the probabilities of those to keep."""
        settings, temperature = self._sampling, self._sampling.temperature
        n_ranked = min(settings.top_k or RANKED_FIRST, len(scores))
        total = 0.0 if settings.top_k else float(_weights(scores, best, temperature).sum())
        while True:
            values, ids = largest(scores, n_ranked)
            total = total or float(_weights(values, best, temperature).sum())
            ranked = (math.exp((value - best) / temperature) / total for value in values.tolist())
            kept = keep_likely(ranked, settings.top_p, settings.min_p)
            if settings.top_k or len(kept) < n_ranked or n_ranked == len(scores):
                return ids, kept
            n_ranked = min(16 * n_ranked, len(scores))


def _weights(scores: Tensor, best: float, temperature: float) -> Tensor:
    """Return ``exp((scores - best) / temperature)``, in proportion to which tokens are drawn.

    At most 1, so that no temperature overflows.
    """
    return ((scores - best) / max(temperature, _LEAST)).exp_()
