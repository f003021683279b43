"""Timing of the parts of a forward pass in torch modules."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llama_chat.kernels.abi import PARTS
from llama_chat.model.transformer import Transformer

Seconds = dict[str, float]
"""Seconds by the name of the part."""


@contextmanager
def timed_modules(model: Transformer) -> Iterator[Callable[[], Seconds]]:
    """Time the forward passes of a model; see ``Backend.timed_parts``."""
    watch = _Stopwatch(model)
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
        """Return and reset the seconds of each part."""
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
