"""KV cache of a sequence, with the suffixes that were cut off it."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama_chat.errors import is_out_of_memory
from llama_chat.generation.cache_rows import CacheRows, Segment
from llama_chat.kernels.forward import Buffers, NativeCache
from llama_chat.model.config import LlamaConfig

MAX_SUFFIXES = 16
"""Limit on the number of saved suffixes."""


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:  # the usual case, checked with one comparison
        return shorter
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


@dataclass(frozen=True, slots=True, eq=False)
class SavedSuffix:
    """Rows cut off the cache: those of ``ids[start:]``, computed after ``ids[:start]``."""

    ids: list[int]
    start: int
    rows: Buffers
    """The ``len(ids) - start`` rows, for each buffer and layer of the cache."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the rows."""
        return sum(rows.nbytes for each in self.rows for rows in each)


class RowCache(ABC):
    """Rows of a sequence as a forward pass uses them, with or without known tokens."""

    def __init__(self, rows: CacheRows) -> None:
        """Use ``rows`` as storage."""
        self.rows = rows
        """Storage of the rows."""
        self.max_length: int | None = None
        """Number of tokens that it will hold at most; None for the whole context."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Number of tokens stored."""

    @abstractmethod
    def commit(self, ids: Sequence[int]) -> None:
        """Add the tokens of the rows that a completed forward pass wrote."""

    def drop_suffixes(self) -> bool:
        """Free the memory of saved suffixes; return False if there are none."""
        return False

    def reserve(self, length: int) -> None:
        """Grow the buffers until ``length`` tokens fit.

        Raises:
            ValueError: if that is more than the context length of the model.
        """
        self.rows.reserve(length, self.length)

    @property
    def capacity(self) -> int:
        """Number of tokens that fit before the buffers must grow."""
        return self.rows.capacity

    @property
    def n_bytes(self) -> int:
        """Bytes of the buffers, without those of shared segments."""
        return self.rows.n_bytes

    @property
    def segments(self) -> Sequence[Segment]:
        """Segments with the first rows, which other sequences may read, too."""
        return self.rows.segments

    @property
    def buffer_sizes(self) -> dict[int, int]:
        """Bytes of the buffers, and of those of shared segments, by the address of the first."""
        return self.rows.buffer_sizes

    @property
    def buffers_id(self) -> tuple[int, ...]:
        """Identity of the buffers of all layers, which changes when these do, on all ranks alike.

        Addresses alone might be those of freed buffers, on one rank and not on another.
        """
        pointers = (buffer.data_ptr() for each in self.rows.buffers for buffer in each)
        return self.rows.buffers_id, *pointers

    @property
    def native(self) -> NativeCache:
        """Buffers for the kernels, which write the rows of new tokens there."""
        return self.rows.native

    def layer(self, layer: int) -> Sequence[Tensor]:
        """Return the whole buffers of one layer: keys, values, and for int8 their scales."""
        return [each[layer] for each in self.rows.buffers]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store rows past the end, without committing them, and return all rows with them.

        Args:
            layer: number of the layer.
            keys: ``(B, T, n_kv_heads, head_dim)``.
            values: the same shape.

        Returns:
            Keys and values, as ``read`` returns them.
        """
        self.rows.write(layer, self.length, keys, values)
        return self.read(layer, self.length + keys.shape[1], keys.dtype)

    def read(self, layer: int, end: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Read the keys and values of the first ``end`` rows of a layer.

        Returns:
            Both ``(B, n_kv_heads, end, head_dim)`` in ``dtype``.
        """
        return self.rows.read(layer, end, dtype)


class KVCache(RowCache):
    """Keys and values of the tokens ``ids``.

    Invariant: ``ids`` are exactly the tokens whose rows are stored, in order. A forward pass writes
    rows past the end, which are not read until ``commit`` has added their tokens; an interrupt
    cannot divide that step.

    When a conversation switches to another branch, ``seek`` saves the suffix that it cuts off, and
    restores it if its tokens return, so that no forward pass is needed. Saved suffixes are only an
    optimization: they stay within ``max_saved_bytes``, and are dropped when memory runs out.

    Sequences that begin alike share the rows of their prefix: see ``fork``.
    """

    def __init__(
        self,
        config: LlamaConfig,
        dtype: torch.dtype,
        devices: Sequence[torch.device],
        max_saved_bytes: int | None = None,
        rows: CacheRows | None = None,
    ) -> None:
        """Make an empty cache.

        Args:
            config: shape of the model.
            dtype: float32, bfloat16 or float16; or int8, with a scale for each head of a token.
            devices: device of each layer.
            max_saved_bytes: limit on the bytes of saved suffixes, which never exceed half of a
                full cache; None for no further limit.
            rows: empty storage of this type on these devices; None for new.
        """
        super().__init__(rows or CacheRows(config, dtype, devices))
        self._row_bytes = config.kv_cache_bytes(1, dtype.itemsize)
        self._max_saved_bytes = config.context_length // 2 * self._row_bytes
        if max_saved_bytes is not None:
            self._max_saved_bytes = min(self._max_saved_bytes, max_saved_bytes)
        self.dtype = dtype
        self._ids: list[int] = []
        self._trimmed: list[int] = []
        """Trimmed tokens whose rows are still intact past the end."""
        self._suffixes: list[SavedSuffix] = []
        """Least recently used first."""

    @property
    def ids(self) -> Sequence[int]:
        """Tokens whose keys and values are stored; not to be changed by the caller."""
        return self._ids

    @property
    def length(self) -> int:
        """Number of tokens stored."""
        return len(self._ids)

    @property
    def row_bytes(self) -> int:
        """Bytes of the rows of one token."""
        return self._row_bytes

    def reserve(self, length: int) -> None:
        """See the base class."""
        self._trimmed = []
        super().reserve(length)

    def fork(self, length: int, max_length: int | None = None) -> "KVCache":
        """Make a cache of the first ``length`` tokens, which reads their rows where they are.

        Either may be changed afterwards without an effect on the other. The new one will hold at
        most ``max_length`` tokens; None for the whole context.
        """
        other = copy.copy(self)
        other.max_length = max_length
        other._ids, other._trimmed, other._suffixes = self._ids[:length], [], []
        other.rows = self.rows.fork(length)
        return other

    def commit(self, ids: Sequence[int]) -> None:
        """See the base class."""
        self._ids.extend(ids)

    def trim(self, length: int) -> None:
        """Drop all tokens from ``length`` on; ``restore`` may bring them back."""
        trimmed, self._trimmed = self._ids[length:], []
        del self._ids[length:]
        if trimmed and self.rows.cut(length):
            self._trimmed = trimmed

    def restore(self, token_id: int) -> bool:
        """Append ``token_id`` if its row is still intact past the end; return False if not."""
        # An interrupt between any two of these statements loses trimmed rows at worst.
        trimmed, self._trimmed = self._trimmed, []
        found = trimmed[:1] == [token_id]
        if found:
            self._ids.append(token_id)
            self._trimmed = trimmed[1:]
        return found

    @torch.inference_mode()  # the rows are inference tensors
    def seek(self, ids: Sequence[int]) -> int:
        """Make the cache hold the longest prefix of ``ids`` that needs no forward pass.

        Tokens past the longest common prefix are cut off and their rows saved; saved suffixes that
        continue the prefix are restored.

        Returns:
            ``length``, the number of ``ids`` now stored.
        """
        shared = common_prefix(self._ids, ids)
        if shared < self.length:
            self._save_suffix(shared)
            self.trim(shared)
        try:
            # A suffix may continue another one: branches have branches.
            while suffix := self._continuation(ids):
                self._restore_suffix(suffix, common_prefix(suffix.ids, ids))
        except (MemoryError, RuntimeError, OSError) as error:
            self._drop_suffixes_after(error)
        return self.length

    def _save_suffix(self, start: int) -> None:
        """Copy the rows from ``start`` on, if there is memory for it.

        The least recently used suffixes are dropped for it.
        """
        end, ids = self.length, list(self._ids)
        for suffix in self._suffixes:
            if suffix.start <= start and suffix.ids[:end] == ids:  # saved already
                self._suffixes.remove(suffix)
                self._suffixes.append(suffix)
                return
        left = self._max_saved_bytes - (end - start) * self._row_bytes
        if left < 0:
            return
        self._suffixes = [
            suffix
            for suffix in self._suffixes
            if suffix.start < start or suffix.ids != ids[: len(suffix.ids)]  # else contained
        ]
        while len(self._suffixes) >= MAX_SUFFIXES or self.saved_bytes > left:
            del self._suffixes[0]
        try:
            # A copy, since new tokens will overwrite the buffers.
            rows = self.rows.copy(start, end)
        except (MemoryError, RuntimeError) as error:
            self._drop_suffixes_after(error)
        else:
            self._suffixes.append(SavedSuffix(ids, start, rows))

    def _drop_suffixes_after(self, error: Exception) -> None:
        """Drop the saved suffixes if memory ran out; they only save time. Raise other errors."""
        if not is_out_of_memory(error):
            raise error
        self.drop_suffixes()

    @property
    def saved_bytes(self) -> int:
        """Bytes of the saved suffixes."""
        return sum(suffix.n_bytes for suffix in self._suffixes)

    def drop_suffixes(self) -> bool:
        """See the base class."""
        found = bool(self._suffixes)
        self._suffixes = []
        return found

    def _continuation(self, ids: Sequence[int]) -> SavedSuffix | None:
        """Find the saved suffix that extends the stored prefix of ``ids`` furthest."""
        candidates = [
            (common_prefix(suffix.ids, ids), suffix)
            for suffix in self._suffixes
            if suffix.start <= self.length
        ]
        end, suffix = max(candidates, key=lambda candidate: candidate[0], default=(0, None))
        return suffix if end > self.length else None

    def _restore_suffix(self, suffix: SavedSuffix, end: int) -> None:
        """Append the rows of ``suffix`` up to token ``end``."""
        start = self.length
        self.reserve(end)
        self.rows.paste(start, suffix.rows, slice(start - suffix.start, end - suffix.start))
        self.commit(suffix.ids[start:end])
