"""Memory for weights, keys and values, all of which is read for every token.

In large pages if possible: with small ones, address translation takes a good part of the time.
"""

import contextlib
import mmap
import threading

import torch
from torch import Tensor

_CACHE_LINE = 64

LARGE_PAGE = 2**21
"""Bytes of a large page, from which on memory is allocated in such."""

_CHUNK = 2**24
"""Bytes in which memory for small weights is allocated."""


def allocate(n_bytes: int) -> Tensor:
    """Allocate ``(n_bytes,)`` in uint8, in large pages where the system has them."""
    if n_bytes < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        memory = torch.empty(n_bytes + _CACHE_LINE, dtype=torch.uint8)
        start = -memory.data_ptr() % _CACHE_LINE
    else:
        # The margins before and after are never touched, so they take no memory.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mapped = mmap.mmap(-1, n_bytes + LARGE_PAGE, flags=private)
        memory = torch.frombuffer(mapped, dtype=torch.uint8)
        start = -memory.data_ptr() % LARGE_PAGE
        with contextlib.suppress(OSError):  # the operating system may lack large pages
            whole = n_bytes // LARGE_PAGE * LARGE_PAGE
            mapped.madvise(mmap.MADV_HUGEPAGE, start, whole)
    return memory[start : start + n_bytes]


class WeightMemory:
    """Memory for weights, of which small ones share large pages.

    A chunk is freed with the last of its weights: those of a model, which end together.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rest = torch.empty(0, dtype=torch.uint8)
        """The unused end of the latest chunk."""

    def allocate(self, n_bytes: int) -> Tensor:
        """Allocate ``(n_bytes,)`` in uint8."""
        if n_bytes >= LARGE_PAGE:
            return allocate(n_bytes)
        with self._lock:
            if n_bytes > len(self._rest):
                self._rest = allocate(_CHUNK)
            taken = self._rest[:n_bytes]
            self._rest = self._rest[-(-n_bytes // _CACHE_LINE) * _CACHE_LINE :]
        return taken
