"""Store of caches of earlier sequences, so that new ones can share the rows of a prefix."""

from collections.abc import Iterable, Sequence

from llama_chat.generation.backend import MIN_PROMPT_CHUNK
from llama_chat.generation.kv_cache import KVCache, common_prefix

MIN_SHARED = 16
"""Shortest common prefix in tokens that is worth a shared segment."""

MAX_PREFIXES = 128
"""Limit on the number of stored caches: each prompt is compared with all of them, and these are
several times as many as sequences are computed at a time."""


class PrefixStore:
    """Caches that are read and not extended, the least recently used first.

    They only save time, and are dropped when memory is needed.
    """

    def __init__(self) -> None:
        self._caches: list[KVCache] = []

    def __len__(self) -> int:
        return len(self._caches)

    @property
    def caches(self) -> Sequence[KVCache]:
        """The stored caches."""
        return self._caches

    def add(self, cache: KVCache) -> None:
        """Store a cache in place of those that hold a part of the same tokens.

        One that is too short to be forked is not stored.
        """
        if cache.length < MIN_SHARED:
            return
        self._caches = [each for each in self._caches if cache.ids[: each.length] != each.ids]
        self._caches = [*self._caches[1 - MAX_PREFIXES :], cache]

    def n_shared(self, ids: Sequence[int]) -> int:
        """Return the length of the longest prefix of ``ids`` that a stored cache has."""
        return max((common_prefix(cache.ids, ids) for cache in self._caches), default=0)

    def fork(self, ids: Sequence[int]) -> KVCache | None:
        """Make a cache of the longest stored prefix of ``ids``, except the last few of them.

        The last tokens are evaluated as the prompt would be without the store. None if the prefix
        is too short to be worth it. A cache that ``ids`` only extend is moved out of the store: so
        a dialog that grows turn by turn stays in one piece.
        """
        best = max(self._caches, key=lambda cache: common_prefix(cache.ids, ids), default=None)
        if best is None:
            return None
        length = min(common_prefix(best.ids, ids), len(ids) - MIN_PROMPT_CHUNK)
        if length < MIN_SHARED:
            return None
        self._caches.remove(best)
        if length == best.length:
            return best
        self._caches.append(best)
        return best.fork(length)

    def drop_oldest(self) -> bool:
        """Free the least recently used cache; return False if there is none."""
        return bool(self._caches) and bool(self._caches.pop(0))


def total_bytes(caches: Iterable[KVCache]) -> int:
    """Bytes of all buffers of the ``caches``, each counted once."""
    sizes: dict[int, int] = {}
    for cache in caches:
        sizes |= cache.buffer_sizes
    return sum(sizes.values())
