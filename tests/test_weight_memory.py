"""Memory of packed weights: pieces of their own, aligned, and freed with the last of a chunk."""

import gc
import mmap
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_chat.kernels.pages import WeightMemory


@given(st.lists(st.integers(0, 3 * 2**20), min_size=1, max_size=30))
def test_each_weight_has_memory_of_its_own(sizes: list[int]) -> None:
    memory = WeightMemory()
    pieces = [memory.allocate(size) for size in sizes]
    assert [len(piece) for piece in pieces] == sizes
    assert all(piece.dtype == torch.uint8 for piece in pieces)
    spans = sorted((piece.data_ptr(), len(piece)) for piece in pieces if len(piece))
    assert all(start % 64 == 0 for start, _ in spans)
    ends = [start + size for start, size in spans]
    assert all(end <= start for end, (start, _) in zip(ends, spans[1:], strict=False))


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no large pages")
def test_a_chunk_ends_with_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped: list[weakref.ref[mmap.mmap]] = []

    class WatchedMap(mmap.mmap):
        def __init__(self, *_: object, **__: object) -> None:
            mapped.append(weakref.ref(self))

    monkeypatch.setattr(mmap, "mmap", WatchedMap)
    memory = WeightMemory()
    pieces = [memory.allocate(2**20) for _ in range(40)]
    assert len(mapped) == 3
    del pieces
    gc.collect()
    assert [each() is None for each in mapped] == [True, True, False]  # the last has a rest
