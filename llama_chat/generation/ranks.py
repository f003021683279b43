"""Forward passes of a model that is divided among ranks.

Rank 0 makes all decisions and gives orders; the others carry them out on their part of the weights
and of the rows of each cache. Only rank 0 has a ``KVCache``, with tokens and saved suffixes; the
others hold its rows under a number.
"""

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import torch
from torch import Tensor

from llama_chat.errors import is_out_of_memory
from llama_chat.generation.backend import Backend, Extension
from llama_chat.generation.cache_rows import CacheRows
from llama_chat.generation.kv_cache import RowCache
from llama_chat.generation.stopwatch import Seconds
from llama_chat.kernels.forward import Buffers
from llama_chat.model.config import LlamaConfig
from llama_chat.model.transformer import InterruptedForward
from llama_chat.parallel.ranks import Orders, Ranks

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8)
}
"""Types by their names in orders."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type in orders."""
    return str(dtype).removeprefix("torch.")


class _Leader:
    """Orders about rows, which the other ranks free when rank 0 has no more use for them."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._numbers = itertools.count()
        self._freed: deque[int] = deque()

    def number(self, owner: object) -> int:
        """Return a new number for rows that exist as long as ``owner``."""
        number = next(self._numbers)
        # Garbage may be collected in any thread, even within an order: so this one is given later.
        weakref.finalize(owner, self._freed.append, number).atexit = False
        return number

    def give(self, *order: Any) -> None:
        """Give an order, after the one to free rows that have no owner any more."""
        with self.ranks.lock:  # not within a pass of another thread
            freed = [self._freed.popleft() for _ in range(len(self._freed))]
            if freed:
                self.ranks.give("free", freed)
            self.ranks.give(*order)

    def give_for_memory(self, do: Callable[[], None], *order: Any) -> None:
        """Give an order that allocates memory, and ``do`` it here.

        Raises:
            MemoryError: if it runs out on any rank.
        """
        with self.ranks.lock:
            self.give(*order)
            failure: Exception | None = None
            try:
                do()
            except (MemoryError, RuntimeError, OSError) as error:
                failure = error
            done = [answer[0] for answer in self.ranks.answers()]
        if failure is not None:
            raise failure
        if not all(done):
            raise MemoryError


class _CopiedRows(list[list[Tensor]]):
    """Copied rows of rank 0, with the number of those of the others."""

    number = -1


class _LeadingRows(CacheRows):
    """Rows of rank 0, whose changes are those of all ranks."""

    def __init__(
        self,
        config: LlamaConfig,
        dtype: torch.dtype,
        devices: Sequence[torch.device],
        memory: int | None,
        leader: _Leader,
    ) -> None:
        super().__init__(config, dtype, devices, memory)
        self._leader = leader
        self.number = leader.number(self)
        leader.give("new", self.number, dtype_name(dtype))

    def reserve(self, length: int, used: int) -> None:
        """See the base class."""
        if self.capacity < length <= self._limit:
            self._leader.give_for_memory(
                lambda: CacheRows.reserve(self, length, used), "reserve", self.number, length, used
            )
        else:
            super().reserve(length, used)

    def cut(self, length: int) -> bool:
        """See the base class."""
        self._leader.give("cut", self.number, length)
        return super().cut(length)

    def fork(self, length: int) -> Self:
        """See the base class."""
        other = super().fork(length)
        other.number = self._leader.number(other)
        self._leader.give("fork", self.number, other.number, length)
        return other

    def copy(self, start: int, end: int) -> Buffers:
        """See the base class."""
        copied = _CopiedRows()
        copied.number = self._leader.number(copied)
        self._leader.give_for_memory(
            lambda: copied.extend(map(list, CacheRows.copy(self, start, end))),
            *("copy", self.number, copied.number, start, end),
        )
        return copied

    def paste(self, start: int, rows: Buffers, which: slice) -> None:
        """See the base class."""
        if not isinstance(rows, _CopiedRows):
            raise TypeError("rows that the other ranks do not have")
        self._leader.give("paste", self.number, start, rows.number, which.start, which.stop)
        super().paste(start, rows, which)


class RankedBackend(Backend):
    """Forward passes of all ranks, on rank 0."""

    def __init__(self, inner: Backend, whole: LlamaConfig, ranks: Ranks) -> None:
        """Lead the other ranks.

        Args:
            inner: computes the part of rank 0.
            whole: hyperparameters of the whole model.
            ranks: the others, which have loaded theirs.
        """
        super().__init__(inner.model, inner.threads)
        self._inner, self._whole = inner, whole
        self._leader = _Leader(ranks)
        self.ranks = ranks

    @property
    def vocab_size(self) -> int:
        """See the base class."""
        return self._whole.vocab_size

    @property
    def kernel_name(self) -> str:
        """See the base class."""
        return f"{self._inner.kernel_name}, {self.ranks.world.size} ranks"

    def timed_parts(self) -> AbstractContextManager[Callable[[], Seconds]]:
        """See the base class: the parts are those of rank 0."""
        return self._inner.timed_parts()

    def _new_rows(
        self, config: LlamaConfig, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> CacheRows:
        return _LeadingRows(config, dtype, devices, self.memory, self._leader)

    def _reserve(self, cache: RowCache, length: int) -> None:
        self._inner._reserve(cache, length)

    def _is_short(self, extensions: Sequence[Extension]) -> bool:
        is_one_token = sum(len(new.ids) for new in extensions) == 1  # a poll is a message to all
        return is_one_token or self._inner._is_short(extensions)

    def _run(
        self, extensions: Sequence[Extension], should_stop: Callable[[], bool] | None
    ) -> list[Tensor]:
        ranks, is_polled = self.ranks, should_stop is not None

        def poll() -> bool:
            stops = should_stop is not None and should_stop()
            ranks.give(stops)
            return stops

        passed = [[_number(new), new.cache.length, [*new.ids], new.n_logits] for new in extensions]
        with ranks.lock:
            self._leader.give("pass", passed, is_polled)
            try:
                return self._inner._run(extensions, poll if is_polled else None)
            except InterruptedForward:
                raise
            except Exception as error:
                raise ranks.fail(error) from error


def _number(new: Extension) -> int:
    rows = new.cache.rows
    if not isinstance(rows, _LeadingRows):
        raise TypeError("a cache that the other ranks do not have")
    return rows.number


class _FollowingCache(RowCache):
    """Rows of another rank; only rank 0 knows their tokens."""

    def __init__(self, rows: CacheRows) -> None:
        super().__init__(rows)
        self.n_tokens = 0

    @property
    def length(self) -> int:
        """See the base class."""
        return self.n_tokens

    def commit(self, ids: Sequence[int]) -> None:
        """See the base class."""
        self.n_tokens += len(ids)


class Follower:
    """Another rank with its part of a model, which carries out the orders of rank 0."""

    def __init__(self, backend: Backend, orders: Orders) -> None:
        """Begin without caches.

        Args:
            backend: computes its part.
            orders: those of rank 0.
        """
        self._backend, self._orders = backend, orders
        self._caches: dict[int, _FollowingCache] = {}
        self._copies: dict[int, Buffers] = {}

    def obey(self, name: str, *arguments: Any) -> None:
        """Carry out an order about rows, or a pass."""
        getattr(self, f"_{name}")(*arguments)

    def _new(self, number: int, dtype: str) -> None:
        model = self._backend.model
        devices = [block.device for block in model.blocks]
        rows = CacheRows(model.config, DTYPES[dtype], devices)
        self._caches[number] = _FollowingCache(rows)

    def _free(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._caches.pop(number, None)
            self._copies.pop(number, None)

    def _try(self, do: Callable[[], object]) -> None:
        """Run what allocates memory, and answer True, or False if memory runs out."""
        try:
            do()
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            self._orders.answer(False)
        else:
            self._orders.answer(True)

    def _reserve(self, number: int, length: int, used: int) -> None:
        self._try(lambda: self._caches[number].rows.reserve(length, used))

    def _copy(self, number: int, copy: int, start: int, end: int) -> None:
        rows = self._caches[number].rows

        def do() -> None:
            self._copies[copy] = rows.copy(start, end)

        self._try(do)

    def _cut(self, number: int, length: int) -> None:
        self._caches[number].rows.cut(length)

    def _fork(self, number: int, fork: int, length: int) -> None:
        self._caches[fork] = _FollowingCache(self._caches[number].rows.fork(length))

    def _paste(self, number: int, start: int, copy: int, first: int, last: int) -> None:
        self._caches[number].rows.paste(start, self._copies[copy], slice(first, last))

    def _pass(self, passed: Sequence[Any], is_polled: bool) -> None:
        extensions = []
        for number, length, ids, n_logits in passed:
            cache = self._caches[number]
            cache.n_tokens = length
            extensions.append(Extension(ids, cache, n_logits))

        def stops() -> bool:
            return bool(self._orders.receive()[0])

        try:
            self._backend.run_pass(extensions, stops if is_polled else None)
        except InterruptedForward:
            return
