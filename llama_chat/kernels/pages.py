"""Memory for what is read from front to back for each token: weights, keys and values.

With small pages a good part of the time goes into finding them.
"""

import contextlib
import mmap

import torch
from torch import Tensor

_CACHE_LINE = 64

_LARGE_PAGE = 2**21


def room(n_bytes: int) -> Tensor:
    """Memory of the processor, ``(n_bytes,)`` in uint8; in large pages if there are any."""
    if n_bytes < _LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        memory = torch.empty(n_bytes + _CACHE_LINE, dtype=torch.uint8)
        start = -memory.data_ptr() % _CACHE_LINE
    else:
        # What is left over before and behind is never touched, and so takes no memory.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mapped = mmap.mmap(-1, n_bytes + _LARGE_PAGE, flags=private)
        memory = torch.frombuffer(mapped, dtype=torch.uint8)
        start = -memory.data_ptr() % _LARGE_PAGE
        with contextlib.suppress(OSError):  # a kernel may have been built without
            whole = n_bytes // _LARGE_PAGE * _LARGE_PAGE
            mapped.madvise(mmap.MADV_HUGEPAGE, start, whole)
    return memory[start : start + n_bytes]
