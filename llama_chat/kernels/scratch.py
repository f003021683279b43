"""Scratch memory for calls into C."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class ScratchPool:
    """Buffers that calls in flight borrow, so that no two of them share one.

    Fresh memory would cost as much time as using it, since the system hands it out page by page. So
    buffers are kept: as many as there have been calls at one time, however many there were in all.
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
            buffer = torch.empty(n_bytes, dtype=torch.uint8)
        try:
            yield buffer
        finally:
            self._idle.append(buffer)

    @property
    def n_idle(self) -> int:
        """Buffers that nobody borrows at the moment."""
        return len(self._idle)
