"""Time of decoding one token, split by the parts of a forward pass."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llama_chat.generation.backend import Backend
from llama_chat.generation.engine import Engine
from llama_chat.generation.native import NativeBackend
from llama_chat.generation.sampling import Sampler
from llama_chat.kernels.abi import PARTS
from llama_chat.model.transformer import Transformer

Seconds = dict[str, float]


def seconds_of_a_token(engine: Engine, sampler: Sampler, n: int) -> Seconds:
    """Measure the seconds of each part of decoding a token, averaged over ``n`` tokens.

    The tokens follow those of the cache. The parts are those of ``PARTS``, ``sampling``, and
    ``other``: the embedding lookup and the overhead of Python.
    """
    ids = list(engine.cache.ids)
    with timed_parts(engine.backend) as take:
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


@contextmanager
def timed_parts(backend: Backend) -> Iterator[Callable[[], Seconds]]:
    """Time forward passes; yields a function that returns and resets the seconds of each part."""
    if isinstance(backend, NativeBackend):
        kernels = backend.kernels
        yield lambda: kernels.take_times().seconds
        return
    watch = _Stopwatch(backend.model)
    try:
        yield watch.take
    finally:
        watch.remove()


class _Stopwatch:
    """Timer of the torch modules of a model, by forward hooks."""

    def __init__(self, model: Transformer) -> None:
        self._device = model.device
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._ended = 0.0
        self._hooks: list[Any] = []
        for block in model.blocks:
            attention = block.attention
            for linear in (attention.wq, attention.wk, attention.wv, attention.wo):
                self._time(linear, ("projections", 1), ("attention", -1))
            self._time(attention, ("attention", 1))
            self._time(block.feed_forward, ("feed_forward", 1))
        # The time after the last layer is that of the logits.
        self._hooks.append(model.blocks[-1].register_forward_hook(self._end_layers))
        self._hooks.append(model.register_forward_hook(self._end_pass))

    def take(self) -> Seconds:
        """See ``timed_parts``."""
        spent, self._spent = self._spent, dict.fromkeys(PARTS, 0.0)
        return spent

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _time(self, module: nn.Module, *counts: tuple[str, int]) -> None:
        began = 0.0

        def before(*_: object) -> None:
            nonlocal began
            began = self._now()

        def after(*_: object) -> None:
            for part, sign in counts:
                self._spent[part] += sign * (self._now() - began)

        self._hooks.append(module.register_forward_pre_hook(before))
        self._hooks.append(module.register_forward_hook(after))

    def _end_layers(self, *_: object) -> None:
        self._ended = self._now()

    def _end_pass(self, *_: object) -> None:
        self._spent["output"] += self._now() - self._ended
