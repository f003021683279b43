"""Scores of given continuations: how likely the model is to write each of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llama_chat.generation.backend import Backend, Extension
from llama_chat.generation.engine import Engine, prompt_too_long
from llama_chat.generation.events import Hooks
from llama_chat.generation.kv_cache import KVCache
from llama_chat.generation.likeliest import not_a_number
from llama_chat.generation.logprobs import Scored

_MAX_TOKENS = 512
"""Most tokens of continuations in one pass."""


def score(
    engine: Engine,
    ids: Sequence[int],
    continuations: Sequence[Sequence[int]],
    hooks: Hooks | None = None,
) -> list[Scored]:
    """Score continuations of ``ids``, each at least one token.

    The prompt is evaluated once, and the continuations together, on caches that share its rows.

    Raises:
        PromptTooLongError: if one does not fit in the context.
        ModelError: if the logits are not finite.
        InterruptedForward: if ``hooks`` stop it.
    """
    longest = max(map(len, continuations))
    if len(ids) + longest > engine.context:
        raise prompt_too_long(len(ids) + longest, engine.context)
    logits = engine.prefill(ids, hooks)
    should_stop = None if hooks is None else hooks.should_stop
    return score_next(engine.backend, engine.cache, logits, continuations, should_stop)


@torch.inference_mode()
def score_next(
    backend: Backend,
    cache: KVCache,
    logits: Tensor,
    continuations: Sequence[Sequence[int]],
    should_stop: Callable[[], bool] | None = None,
) -> list[Scored]:
    """Score continuations of the tokens in a cache, which ``logits`` follow; see ``score``."""
    first = _logprobs(logits.unsqueeze(0))
    scored = [[float(first[0, each[0]])] for each in continuations]
    left = [i for i, each in enumerate(continuations) if len(each) > 1]
    while left:
        batch = [left.pop(0)]
        n_tokens = len(continuations[batch[0]])
        while left and n_tokens + len(continuations[left[0]]) <= _MAX_TOKENS:
            n_tokens += len(continuations[left[0]])
            batch.append(left.pop(0))
        extensions = []
        for i in batch:
            ids = continuations[i][:-1]
            fork = cache.fork(cache.length, cache.length + len(ids))
            extensions.append(Extension(ids, fork, len(ids)))
        found = backend.forward_batch(extensions, should_stop)
        for i, logits in zip(batch, found, strict=True):
            following = torch.tensor(continuations[i][1:]).unsqueeze(1)
            scored[i] += _logprobs(logits).gather(1, following).squeeze(1).tolist()
    return [Scored(*each) for each in zip(continuations, scored, strict=True)]


def _logprobs(logits: Tensor) -> Tensor:
    """Return log-probabilities for logits ``(n, vocab_size)``."""
    found = logits.float().cpu().log_softmax(-1)
    if not found.isfinite().any(-1).all():
        raise not_a_number()
    return found
