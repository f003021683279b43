"""KV cache of a sequence, with the suffixes that were cut off it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama_chat.errors import is_out_of_memory
from llama_chat.kernels.forward import NativeCache
from llama_chat.kernels.pages import allocate
from llama_chat.model.config import LlamaConfig

BLOCK = 256
"""Rows by which the cache grows: memory follows the sequence, not the context length."""

_MIN_SCALE = 1e-30
"""Least divisor: the scale of a head of zeros is 0."""

MAX_SUFFIXES = 16
"""Limit on the number of saved suffixes."""


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:  # the usual case, in one comparison
        return shorter
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def _allocate(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Allocate an uninitialised buffer of the type and on the device of ``like``."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    return allocate(math.prod(shape) * like.element_size()).view(like.dtype).view(shape)


@dataclass(frozen=True, slots=True, eq=False)
class SavedSuffix:
    """Rows cut off the cache: those of ``ids[start:]``, computed after ``ids[:start]``."""

    ids: list[int]
    start: int
    rows: Sequence[Sequence[Tensor]]
    """The ``len(ids) - start`` rows, for each buffer and layer of the cache."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the rows."""
        return sum(rows.nbytes for each in self.rows for rows in each)


class KVCache:
    """Keys and values of the tokens ``ids``, in buffers that grow by blocks.

    Invariant: ``ids`` are exactly the tokens whose rows are stored, in order. A forward pass writes
    rows past the end, which are not read until ``commit`` has added their tokens; an interrupt
    cannot divide that step.

    When a conversation switches to another branch, ``seek`` saves the suffix that it cuts off, and
    restores it if its tokens return, so that no forward pass is needed. Saved suffixes are only an
    optimization: they stay within ``max_saved_bytes``, and are dropped when memory runs out.
    """

    def __init__(
        self,
        config: LlamaConfig,
        dtype: torch.dtype,
        devices: Sequence[torch.device],
        max_saved_bytes: int | None = None,
    ) -> None:
        """Make an empty cache.

        Args:
            config: shape of the model.
            dtype: float32, bfloat16 or float16; or int8, with a scale for each head of a token.
            devices: device of each layer.
            max_saved_bytes: limit on the bytes of saved suffixes, which never exceed half of a
                full cache; None for no further limit.
        """
        self._row_bytes = config.kv_cache_bytes(1, dtype.itemsize)
        self._max_saved_bytes = config.context_length // 2 * self._row_bytes
        if max_saved_bytes is not None:
            self._max_saved_bytes = min(self._max_saved_bytes, max_saved_bytes)
        self.dtype = dtype
        self._ids: list[int] = []
        self._limit = config.context_length
        self._n_heads = config.n_heads
        self._trimmed: list[int] = []
        """Trimmed tokens whose rows are still intact past the end."""
        self._suffixes: list[SavedSuffix] = []
        """Least recently used first."""
        # (B, n_kv_heads, capacity, head_dim) for each layer
        shape = (1, config.n_kv_heads, 0, config.head_dim)
        kinds: list[tuple[tuple[int, ...], torch.dtype]] = [(shape, dtype)] * 2
        if dtype == torch.int8:
            kinds += [(shape[:3], torch.float32)] * 2
        self._buffers = [
            [torch.empty(size, dtype=kind, device=device) for device in devices]
            for size, kind in kinds
        ]
        """Keys and values, and for int8 their scales."""
        self._native: NativeCache | None = None

    @property
    def ids(self) -> Sequence[int]:
        """Tokens whose keys and values are stored; not to be changed by the caller."""
        return self._ids

    @property
    def length(self) -> int:
        """Number of tokens stored."""
        return len(self._ids)

    @property
    def capacity(self) -> int:
        """Number of tokens that fit before the buffers must grow."""
        return min((buffer.shape[2] for buffers in self._buffers for buffer in buffers), default=0)

    @property
    def n_bytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffers in self._buffers for buffer in buffers)

    @property
    def data_pointers(self) -> tuple[int, ...]:
        """Addresses of the buffers of all layers; they change when the buffers grow."""
        return tuple(buffer.data_ptr() for each in self._buffers for buffer in each)

    @property
    def native(self) -> NativeCache:
        """Buffers for the kernels, which write the rows of new tokens there."""
        if self._native is None:
            self._native = NativeCache(*self._buffers, n_heads=self._n_heads)
        return self._native

    def reserve(self, length: int) -> None:
        """Grow the buffers until ``length`` tokens fit.

        Raises:
            ValueError: if that is more than the context length of the model.
        """
        if length > self._limit:
            raise ValueError(f"{length} tokens exceed the context of {self._limit}")
        self._trimmed = []
        if length <= self.capacity:
            return
        self._native = None
        capacity = min(-(-length // BLOCK) * BLOCK, self._limit)
        for buffers in self._buffers:
            for layer, old in enumerate(buffers):
                if old.shape[2] >= capacity:  # grown already, before an interrupt
                    continue
                grown = _allocate((*old.shape[:2], capacity, *old.shape[3:]), old)
                grown[:, :, : self.length] = old[:, :, : self.length]
                buffers[layer] = grown

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store rows past the end, without committing them, and return all rows with them.

        Args:
            layer: number of the layer.
            keys: ``(B, T, n_kv_heads, head_dim)``.
            values: the same shape.

        Returns:
            Keys and values, as ``read`` returns them.
        """
        start, end = self.length, self.length + keys.shape[1]
        stored, scales = self._buffers[:2], self._buffers[2:] or (None, None)
        for rows, buffers, scale in zip((keys, values), stored, scales, strict=True):
            rows = rows.transpose(1, 2)  # (B, n_kv_heads, T, head_dim)
            if scale is not None:
                row_scales = rows.float().abs().amax(-1) / 127
                scale[layer][:, :, start:end] = row_scales
                rows = (rows / row_scales.clamp_min(_MIN_SCALE).unsqueeze(-1)).round()
            buffers[layer][:, :, start:end] = rows
        return self.read(layer, end, keys.dtype)

    def read(self, layer: int, end: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Read the keys and values of the first ``end`` rows of a layer.

        Returns:
            Both ``(B, n_kv_heads, end, head_dim)`` in ``dtype``; views of the buffers if these
            have that type.
        """
        keys, values, *scales = (buffer[:, :, :end] for buffer in self.layer(layer))
        if scales:
            keys, values = keys * scales[0].unsqueeze(-1), values * scales[1].unsqueeze(-1)
        return keys.to(dtype), values.to(dtype)

    def layer(self, layer: int) -> Sequence[Tensor]:
        """Return the whole buffers of one layer: keys, values, and for int8 their scales."""
        return [each[layer] for each in self._buffers]

    def commit(self, ids: Sequence[int]) -> None:
        """Add the tokens of the rows that a completed forward pass wrote."""
        self._ids.extend(ids)

    def trim(self, length: int) -> None:
        """Drop all tokens from ``length`` on; ``restore`` may bring them back."""
        trimmed, self._trimmed = self._ids[length:], []
        del self._ids[length:]
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
        # A suffix may continue another one, where branches have branches.
        while suffix := self._continuation(ids):
            self._restore_suffix(suffix, common_prefix(suffix.ids, ids))
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
            rows = [[buffer[:, :, start:end].clone() for buffer in each] for each in self._buffers]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.drop_suffixes()
        else:
            self._suffixes.append(SavedSuffix(ids, start, rows))

    @property
    def saved_bytes(self) -> int:
        """Bytes of the saved suffixes."""
        return sum(suffix.n_bytes for suffix in self._suffixes)

    def drop_suffixes(self) -> bool:
        """Free the memory of the saved suffixes; return False if there are none."""
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
        rows = slice(start - suffix.start, end - suffix.start)
        for buffers, saved in zip(self._buffers, suffix.rows, strict=True):
            for buffer, layer in zip(buffers, saved, strict=True):
                buffer[:, :, start:end] = layer[:, :, rows]
        self.commit(suffix.ids[start:end])
