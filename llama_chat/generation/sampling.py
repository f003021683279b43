"""Sampling of the next token from logits."""

import secrets
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llama_chat.errors import ModelError
from llama_chat.generation.logprobs import N_ALTERNATIVES, Alternatives
from llama_chat.settings.sampling import Sampling

REPEAT_WINDOW = 64
"""Number of last tokens that the repetition penalty applies to."""

RANKED_FIRST = 256
"""Number of most likely tokens tried before the whole vocabulary is sorted."""


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


def keep_top_p(probs: Tensor, p: float) -> Tensor:
    """Keep each token for which the probability of all before it is at most ``p``.

    Nucleus sampling (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751) as in Meta's code: the
    token that crosses ``p`` is kept.

    Args:
        probs: probabilities sorted from high to low.
        p: above 0, at most 1.

    Returns:
        The same with 0 for dropped tokens; not normalised again.
    """
    before = probs.cumsum(-1) - probs
    return probs.masked_fill(before > p, 0.0)


def keep_min_p(probs: Tensor, p: float) -> Tensor:
    """Keep tokens at least ``p`` times as likely as the first of the sorted ``probs``."""
    return probs.masked_fill(probs < p * probs[0], 0.0)


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
        self._generator = torch.Generator()  # on the CPU: the same draws whatever the device
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
        return self._generator.initial_seed()

    def _reseed(self) -> None:
        # A random seed of 32 bits is short enough to type.
        seed = secrets.randbelow(2**32) if self._sampling.seed is None else self._sampling.seed
        self._generator.manual_seed(seed)

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
        normaliser = raw.logsumexp(-1)
        if not normaliser.isfinite():
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
        logprob = float(raw[token_id] - normaliser)
        if not self._with_logprobs:
            return Choice(token_id, logprob)
        best, ids = largest(raw, min(N_ALTERNATIVES, len(raw)))
        logprobs = (best - normaliser).tolist()
        return Choice(token_id, logprob, tuple(zip(ids.tolist(), logprobs, strict=True)))

    def _draw(self, scores: Tensor) -> int:
        settings = self._sampling
        # In float64 and at most 0, so that no temperature above 0 overflows.
        probs = ((scores - scores.max()).double() / settings.temperature).softmax(-1)
        ranked, ids = self._rank(probs)
        if settings.top_p < 1:
            ranked = keep_top_p(ranked, settings.top_p)
        if settings.min_p:
            ranked = keep_min_p(ranked, settings.min_p)
        return int(ids[torch.multinomial(ranked, 1, generator=self._generator)])

    def _rank(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Sort ``probs`` ``(vocab_size,)`` from high to low, as far as tokens may be kept."""
        settings = self._sampling
        if settings.top_k:
            ranked, ids = largest(probs, min(settings.top_k, len(probs)))
            return ranked / ranked.sum(), ids
        # Sorting a vocabulary costs as much as several layers of a small model. Tokens after those
        # that add up to more than top-p are dropped anyway.
        ranked, ids = largest(probs, min(RANKED_FIRST, len(probs)))
        if ranked.sum() > settings.top_p:
            return ranked, ids
        return probs.sort(descending=True)
