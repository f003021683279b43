"""Scratch memory for calls into C."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from llama_chat.kernels import pages


class ScratchPool:
    """Buffers for concurrent calls, each of which borrows one.

    Newly allocated memory would cost as much time as using it, since the system maps it page by
    page. So buffers are kept, as many as there were calls at one time.
    """

    def __init__(self) -> None:
        self._idle: list[Tensor] = []  # appending and popping are atomic

    @contextmanager
    def borrow(self, n_bytes: int) -> Iterator[Tensor]:
        """Lend a buffer of at least ``n_bytes`` in uint8, until the block ends."""
        try:
            buffer = self._idle.pop()
        except IndexError:
            buffer = torch.empty(0, dtype=torch.uint8)
        if len(buffer) < n_bytes:
            buffer = pages.allocate(n_bytes)
        try:
            yield buffer
        finally:
            self._idle.append(buffer)
