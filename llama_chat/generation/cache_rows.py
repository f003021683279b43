"""Storage of the KV cache: the rows of a sequence, in buffers that sequences may share."""

import copy
import itertools
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from llama_chat.kernels.forward import Buffers, NativeCache
from llama_chat.kernels.pages import LARGE_PAGE, allocate
from llama_chat.memory import require
from llama_chat.model.config import LlamaConfig

BLOCK = 256
"""Rows by which buffers grow: memory follows the sequence, not the context length."""

_buffer_ids = itertools.count()

_MIN_SCALE = 1e-30
"""Least divisor: the scale of a head of zeros is 0."""


def _allocate(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Allocate an uninitialised buffer of the type and on the device of ``like``."""
    n_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or n_bytes < LARGE_PAGE:
        return like.new_empty(shape)
    return allocate(n_bytes).view(like.dtype).view(shape)


def _empty_like(buffers: Buffers) -> list[list[Tensor]]:
    """Make buffers without rows, of the same types and on the same devices."""
    return [
        [old.new_empty((*old.shape[:2], 0, *old.shape[3:])) for old in layers] for layers in buffers
    ]


def _n_bytes(buffers: Buffers) -> int:
    """Bytes of buffers, all layers of which are alike."""
    return sum(layers[-1].nbytes * len(layers) for layers in buffers if layers)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Segment:
    """Rows that the caches of several sequences read; none of these rows is written again."""

    buffers: Buffers
    start: int
    """Row of the sequence that is the first of the buffers."""


class CacheRows:
    """Keys and values of the tokens of a sequence, in all layers.

    The first rows may lie in segments that other sequences read, too; those from ``start`` on lie
    in buffers of its own. ``fork`` lends these to another sequence, and whichever of the two then
    needs other rows in their place continues in new buffers.
    """

    def __init__(
        self,
        config: LlamaConfig,
        dtype: torch.dtype,
        devices: Sequence[torch.device],
        memory: int | None = None,
    ) -> None:
        """Begin without rows; arguments as of ``KVCache``.

        They do not grow where this process would then use more than ``memory`` bytes in all.
        """
        self._memory = memory
        self._limit = config.context_length
        self._n_heads = config.n_heads
        # (B, n_kv_heads, capacity, head_dim) for each layer
        shape = (1, config.n_kv_heads, 0, config.head_dim)
        kinds: list[tuple[tuple[int, ...], torch.dtype]] = [(shape, dtype)] * 2
        if dtype == torch.int8:
            kinds += [(shape[:3], torch.float32)] * 2
        self.buffers = [
            [torch.empty(size, dtype=kind, device=device) for device in devices]
            for size, kind in kinds
        ]
        """Keys and values, and for int8 their scales: of the rows from ``start`` on."""
        self.buffers_id = next(_buffer_ids)
        """Number of the buffers, which none before them had."""
        self.start = 0
        self.segments: list[Segment] = []
        """The rows before ``start``: each segment up to where the next one begins."""
        self._lent: weakref.ref[Segment] | None = None
        """The buffers as the forks have them, which read the rows before ``_lent_end``."""
        self._lent_end = 0
        self._native: NativeCache | None = None

    @property
    def capacity(self) -> int:
        """Number of rows that fit before the buffers must grow."""
        last = self.buffers[-1][-1:]  # the last to grow, if an interrupt comes in between
        return self.start + (last[0].shape[2] if last else 0)

    @property
    def n_bytes(self) -> int:
        """Bytes of the buffers, without those of segments."""
        return _n_bytes(self.buffers)

    @property
    def buffer_sizes(self) -> dict[int, int]:
        """Bytes of the buffers, and of those of each segment, by the address of the first."""
        everything = [self.buffers, *(segment.buffers for segment in self.segments)]
        return {
            layers[0].data_ptr(): _n_bytes(buffers)
            for buffers in everything
            if (layers := buffers[0])
        }

    @staticmethod
    def _growth(buffer: Tensor, capacity: int) -> int:
        """Bytes of main memory by which a buffer grows to ``capacity`` rows."""
        if buffer.device.type != "cpu" or buffer.shape[2] >= capacity:
            return 0
        shape = (*buffer.shape[:2], capacity - buffer.shape[2], *buffer.shape[3:])
        return int(math.prod(shape) * buffer.element_size())

    @property
    def native(self) -> NativeCache:
        """Buffers for the kernels, which write the rows of new tokens there."""
        if self._native is None:
            pieces = [(segment.buffers, segment.start) for segment in self.segments]
            pieces.append((self.buffers, self.start))
            self._native = NativeCache(pieces, n_heads=self._n_heads)
        return self._native

    def reserve(self, length: int, used: int) -> None:
        """Grow the buffers until ``length`` rows fit, keeping the first ``used``.

        Raises:
            ValueError: if that is more than the context length of the model.
        """
        if length > self._limit:
            raise ValueError(f"{length} tokens exceed the context of {self._limit}")
        if length <= self.capacity:
            return
        if self._is_lent(self.start):
            self._leave_buffers(used)
        self._native, self.buffers_id = None, next(_buffer_ids)
        capacity = min(-(-length // BLOCK) * BLOCK, self._limit) - self.start
        kept = used - self.start
        growth = sum(self._growth(old, capacity) for layers in self.buffers for old in layers)
        require(growth, self._memory)
        for layers in self.buffers:
            for layer, old in enumerate(layers):
                if old.shape[2] >= capacity:  # grown already, before an interrupt
                    continue
                grown = _allocate((*old.shape[:2], capacity, *old.shape[3:]), old)
                if kept:  # copying nothing takes as long as allocating
                    grown[:, :, :kept] = old[:, :, :kept]
                layers[layer] = grown

    def cut(self, length: int) -> bool:
        """Make room for other rows from ``length`` on; return True if the old ones are intact."""
        if self._is_lent(length):
            self._leave_buffers(length)
        elif length < self.start:
            self._begin_at(length)
        else:
            return True
        return False

    def fork(self, length: int) -> Self:
        """Make storage that begins with the first ``length`` rows of this one, without a copy."""
        other = copy.copy(self)
        other.buffers, other._lent = _empty_like(self.buffers), None
        other.buffers_id = next(_buffer_ids)
        if length > self.start:
            lent = None if self._lent is None else self._lent()
            if lent is None:
                lent = Segment([list(layers) for layers in self.buffers], self.start)
                self._lent, self._lent_end = weakref.ref(lent), 0
            self._lent_end = max(self._lent_end, length)
            other.segments = [*self.segments, lent]
        other._begin_at(length)
        return other

    def _is_lent(self, length: int) -> bool:
        """True if forks read rows of the buffers from ``length`` on."""
        return self._lent is not None and self._lent() is not None and length < self._lent_end

    def _leave_buffers(self, length: int) -> None:
        """Leave the buffers to the forks, and store the rows from ``length`` on in new ones."""
        if self._lent is not None and (lent := self._lent()) is not None:
            self.segments = [*self.segments, lent]
        self._lent, self.buffers = None, _empty_like(self.buffers)
        self.buffers_id = next(_buffer_ids)
        self._begin_at(length)

    def _begin_at(self, length: int) -> None:
        """Store the rows from ``length`` on in the buffers, and read those before in segments."""
        self.segments = [segment for segment in self.segments if segment.start < length]
        self.start, self._native = length, None

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Store rows of a layer from ``start`` on.

        Args:
            layer: number of the layer.
            start: the first row, one of those in the buffers.
            keys: ``(B, T, n_kv_heads, head_dim)``.
            values: the same shape.
        """
        at = slice(start - self.start, start - self.start + keys.shape[1])
        stored, scales = self.buffers[:2], self.buffers[2:] or (None, None)
        for rows, buffers, scale in zip((keys, values), stored, scales, strict=True):
            rows = rows.transpose(1, 2)  # (B, n_kv_heads, T, head_dim)
            if scale is not None:
                row_scales = rows.float().abs().amax(-1) / 127
                scale[layer][:, :, at] = row_scales
                rows = (rows / row_scales.clamp_min(_MIN_SCALE).unsqueeze(-1)).round()
            buffers[layer][:, :, at] = rows

    def read(self, layer: int, end: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Read the keys and values of the first ``end`` rows of a layer.

        Returns:
            Both ``(B, n_kv_heads, end, head_dim)`` in ``dtype``; views of the buffers if these
            have that type, and there are no segments.
        """
        kinds = range(len(self.buffers))
        keys, values, *scales = (self._rows(kind, layer, 0, end) for kind in kinds)
        if scales:
            keys, values = keys * scales[0].unsqueeze(-1), values * scales[1].unsqueeze(-1)
        return keys.to(dtype), values.to(dtype)

    def copy(self, start: int, end: int) -> Buffers:
        """Copy the rows from ``start`` to ``end``, exclusive."""
        return [
            [self._rows(kind, layer, start, end).clone() for layer in range(len(layers))]
            for kind, layers in enumerate(self.buffers)
        ]

    def paste(self, start: int, rows: Buffers, which: slice) -> None:
        """Store some of the copied ``rows`` from ``start`` on; there is space for them."""
        at = slice(start - self.start, start - self.start + which.stop - which.start)
        for layers, copied in zip(self.buffers, rows, strict=True):
            for buffer, layer in zip(layers, copied, strict=True):
                buffer[:, :, at] = layer[:, :, which]

    def _rows(self, kind: int, layer: int, start: int, end: int) -> Tensor:
        """Return rows of one buffer of a layer: a view, if they lie in one piece."""
        pieces = [
            buffers[kind][layer][:, :, max(start - first, 0) : last - first]
            for buffers, first, last in self._pieces(end)
            if last > start
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)

    def _pieces(self, end: int) -> Iterator[tuple[Buffers, int, int]]:
        """Yield buffers with the first and the last, exclusive, of their rows before ``end``."""
        pieces = [(segment.buffers, segment.start) for segment in self.segments]
        pieces.append((self.buffers, self.start))
        ends = [*(first for _, first in pieces[1:]), end]
        for (buffers, first), last in zip(pieces, ends, strict=True):
            if first < end or not first:
                yield buffers, first, min(last, end)
