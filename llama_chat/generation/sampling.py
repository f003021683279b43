"""Sampling of the next token from logits."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from llama_chat.generation.likeliest import Likeliest, Search, likeliest
from llama_chat.generation.logprobs import N_ALTERNATIVES, Alternatives
from llama_chat.settings.sampling import Sampling

REPEAT_WINDOW = 64
"""Number of last tokens that the repetition penalty applies to."""

RANKED_FIRST = 256
"""Number of most likely tokens to rank at first; more are ranked if top-p keeps all of them."""


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
    """Set the logits of disallowed tokens to minus infinity.

    Args:
        logits: ``(vocab_size,)``; not changed.
        allowed: a byte for each token, not 0 for those to keep; tokens beyond its end are dropped.
    """
    mask = torch.zeros(len(logits), dtype=torch.uint8)
    mask[: len(allowed)] = torch.frombuffer(allowed, dtype=torch.uint8)[: len(logits)]
    return logits.masked_fill(mask == 0, -torch.inf)


class SampledToken(NamedTuple):
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
        self._seed = self._sampling.new_seed()
        self._random = Random(self._seed)  # noqa: S311 - the same on every machine

    @property
    def _n_shown(self) -> int:
        """Number of likely tokens whose log-probabilities are wanted."""
        return N_ALTERNATIVES if self._with_logprobs else 1

    @property
    def search(self) -> Search:
        """The likeliest tokens among which one is chosen."""
        settings, temperature = self._sampling, self._sampling.temperature
        n_ranked = (settings.top_k or RANKED_FIRST) if temperature else 1
        return Search(max(n_ranked, self._n_shown), temperature or 1.0)

    def __call__(
        self,
        logits: Tensor,
        previous: Sequence[int],
        allowed: bytearray | None = None,
        found: Likeliest | None = None,
    ) -> SampledToken:
        """Choose a token.

        Args:
            logits: ``(vocab_size,)`` in float32.
            previous: all tokens so far, for the repetition penalty.
            allowed: a byte for each token, 0 for those that may not be chosen; None if all may.
            found: what ``search`` finds in the logits, if that is known already.

        Raises:
            ModelError: if the logits are not finite.
        """
        settings = self._sampling
        raw = logits.float().cpu()
        scores = raw
        if settings.repeat_penalty != 1 and previous:
            scores = penalise_repeats(raw, previous[-REPEAT_WINDOW:], settings.repeat_penalty)
        if allowed is not None:
            scores = keep_allowed(scores, allowed)
        if found is None:
            found = likeliest(raw, self.search if scores is raw else Search(self._n_shown))
        ranked = found.check() if scores is raw else likeliest(scores, self.search)
        token_id = self._draw(scores, ranked) if settings.temperature else ranked.ids[0]
        logprob = float(raw[token_id]) - found.normaliser
        if not self._with_logprobs:
            return SampledToken(token_id, logprob)
        logprobs = [logit - found.normaliser for logit in found.logits[: self._n_shown]]
        return SampledToken(token_id, logprob, tuple(zip(found.ids, logprobs, strict=False)))

    def _draw(self, scores: Tensor, ranked: Likeliest) -> int:
        """Draw one of the tokens that the settings keep.

        Args:
            scores: of the vocabulary, ``(vocab_size,)``.
            ranked: the likeliest of them; all that may be kept, if there is a ``top_k``.
        """
        settings, best = self._sampling, ranked.logits[0]
        if settings.top_p == 1 and not (settings.top_k or settings.min_p):  # keep all
            weights = ((scores - best).double() / settings.temperature).exp()
            whole = weights.cumsum(-1)
            return int(torch.searchsorted(whole, self._place() * whole[-1]))
        while True:
            kept = self._kept(ranked)
            n_ranked = len(ranked.ids)
            if settings.top_k or len(kept) < n_ranked or n_ranked == len(scores):
                break
            ranked = likeliest(scores, Search(16 * n_ranked, settings.temperature))
        sums = list(accumulate(kept))
        return ranked.ids[bisect_left(sums, self._place() * sums[-1])]

    def _place(self) -> float:
        """Draw a number above 0, at most 1, so that it never selects a token of weight 0."""
        return 1 - self._random.random()

    def _kept(self, ranked: Likeliest) -> list[float]:
        """Return the probabilities of the likeliest tokens that the settings keep."""
        settings, best, total = self._sampling, ranked.logits[0], ranked.total
        # At most 1, so that no temperature above 0 overflows.
        weights: Iterable[float] = (
            math.exp((logit - best) / settings.temperature) for logit in ranked.logits
        )
        if settings.top_k:
            weights = list(islice(weights, settings.top_k))
            total = sum(weights)
        return keep_likely((weight / total for weight in weights), settings.top_p, settings.min_p)
