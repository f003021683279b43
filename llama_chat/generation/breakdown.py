"""Time of decoding one token, split by the parts of a forward pass."""

import time

from llama_chat.generation.engine import Engine
from llama_chat.generation.sampling import Sampler
from llama_chat.generation.stopwatch import Seconds


def seconds_of_a_token(engine: Engine, sampler: Sampler, n: int) -> Seconds:
    """Measure the seconds of each part of decoding a token, averaged over ``n`` tokens.

    The tokens follow those of the cache. The parts are those of ``PARTS``, ``sampling``, and
    ``other``: the embedding lookup and the overhead of Python.
    """
    ids = list(engine.cache.ids)
    with engine.backend.timed_parts() as take:
        logits = engine.prefill(ids)  # evaluates the last one again
        take()
        sampled, began = 0.0, time.perf_counter()
        for _ in range(n):
            before = time.perf_counter()
            ids.append(sampler(logits, ids).id)
            sampled += time.perf_counter() - before
            logits = engine.prefill(ids)
        whole = time.perf_counter() - began
        parts = {**take(), "sampling": sampled}
    parts["other"] = max(0.0, whole - sum(parts.values()))
    return {name: seconds / n for name, seconds in parts.items()}
