"""The keys and values of everything the model has read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llama_chat.kernels.forward import NativeCache
from llama_chat.kernels.pages import allocate
from llama_chat.model.config import LlamaConfig

BLOCK = 256
"""Rows by which the cache grows. Memory follows the conversation, not the context limit."""

_LEAST_SCALE = 1e-30
"""For a head of zeros, by whose scale none divides."""

MAX_TAILS = 16
"""How many tails that were cut off are kept, so that going back to them costs nothing."""


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens ``a`` and ``b`` share from the beginning."""
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:  # the usual case, compared in one go
        return shorter
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Room for rows, of the type and on the device of ``like``."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    return allocate(math.prod(shape) * like.element_size()).view(like.dtype).view(shape)


@dataclass(frozen=True, slots=True, eq=False)
class _Tail:
    """Rows that were cut off the cache: those of ``ids[start:]``, as they were behind the rest."""

    ids: list[int]
    start: int
    rows: Sequence[Sequence[Tensor]]
    """As ``KVCache`` has them, ``len(ids) - start`` of them."""


class Rows(Protocol):
    """Where a layer puts the keys and values of new tokens."""

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store them and return all that may be attended to; see ``KVCache.write``."""


class KVCache:
    """Keys and values of the tokens ``ids``, in buffers that grow by blocks.

    The invariant: ``ids`` are exactly the tokens whose rows are stored, in order. A forward pass
    writes rows past the end and nobody reads those until ``commit`` has named their tokens, in one
    step that an interrupt cannot divide.

    A conversation that turns to another branch leaves its own tail behind: rows that ``follow``
    cuts off are set aside, and found again when their tokens come back.
    """

    def __init__(
        self, config: LlamaConfig, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> None:
        """Make an empty cache.

        Args:
            config: of the model.
            dtype: float32, bfloat16 or float16; or int8, with a scale for each head of a token.
            devices: where the rows of each layer lie.
        """
        self._ids: list[int] = []
        self._limit = config.context_length
        self._n_heads = config.n_heads
        self._cut: list[int] = []
        """Tokens that were cut off, whose rows still lie behind the end."""
        self._tails: list[_Tail] = []
        """The latest last."""
        # (B, n_kv_heads, capacity, head_dim) for each layer
        shape = (1, config.n_kv_heads, 0, config.head_dim)
        kinds: list[tuple[tuple[int, ...], torch.dtype]] = [(shape, dtype)] * 2
        if dtype == torch.int8:
            kinds += [(shape[:3], torch.float32)] * 2
        self._buffers = [
            [torch.empty(size, dtype=kind, device=device) for device in devices]
            for size, kind in kinds
        ]
        """Keys and values, and of int8 their scales."""
        self._native: NativeCache | None = None

    @property
    def ids(self) -> Sequence[int]:
        """The tokens whose keys and values are stored; not to be changed by the caller."""
        return self._ids

    @property
    def length(self) -> int:
        """How many tokens are stored."""
        return len(self._ids)

    @property
    def capacity(self) -> int:
        """How many tokens fit before the buffers must grow."""
        return min((buffer.shape[2] for buffers in self._buffers for buffer in buffers), default=0)

    @property
    def n_bytes(self) -> int:
        """Bytes that the buffers take."""
        return sum(buffer.nbytes for buffers in self._buffers for buffer in buffers)

    @property
    def native(self) -> NativeCache:
        """The buffers with their room as C sees them, for whoever writes the next rows there."""
        if self._native is None:
            self._native = NativeCache(*self._buffers, n_heads=self._n_heads)
        return self._native

    def reserve(self, length: int) -> None:
        """Grow the buffers until ``length`` tokens fit, to be written behind the end.

        Raises:
            ValueError: if that is more than the context length of the model.
        """
        if length > self._limit:
            raise ValueError(f"{length} tokens exceed the context of {self._limit}")
        self._cut = []
        if length <= self.capacity:
            return
        self._native = None
        capacity = min(-(-length // BLOCK) * BLOCK, self._limit)
        for buffers in self._buffers:
            for layer, old in enumerate(buffers):
                if old.shape[2] >= capacity:  # grown already, before an interrupt
                    continue
                grown = _empty((*old.shape[:2], capacity, *old.shape[3:]), old)
                grown[:, :, : self.length] = old[:, :, : self.length]
                buffers[layer] = grown

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store rows behind the ``length`` known ones and return all rows up to theirs.

        Args:
            layer: which layer's buffers.
            keys: ``(B, T, n_kv_heads, head_dim)``.
            values: the same shape.

        Returns:
            Keys and values, as ``read`` has them.
        """
        start, end = self.length, self.length + keys.shape[1]
        stored, scales = self._buffers[:2], self._buffers[2:] or (None, None)
        for rows, buffers, scale in zip((keys, values), stored, scales, strict=True):
            rows = rows.transpose(1, 2)  # (B, n_kv_heads, T, head_dim)
            if scale is not None:
                steps = rows.float().abs().amax(-1) / 127
                scale[layer][:, :, start:end] = steps
                rows = (rows / steps.clamp_min(_LEAST_SCALE).unsqueeze(-1)).round()
            buffers[layer][:, :, start:end] = rows
        return self.read(layer, end, keys.dtype)

    def read(self, layer: int, end: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of the first ``end`` rows of a layer, written or committed.

        Returns:
            Both ``(B, n_kv_heads, end, head_dim)`` in ``dtype``; views of the buffers where these
            have that type.
        """
        keys, values, *scales = (buffer[:, :, :end] for buffer in self.layer(layer))
        if scales:
            keys, values = keys * scales[0].unsqueeze(-1), values * scales[1].unsqueeze(-1)
        return keys.to(dtype), values.to(dtype)

    def layer(self, layer: int) -> Sequence[Tensor]:
        """The buffers of one layer with all their room: keys, values, and of int8 their scales."""
        return [each[layer] for each in self._buffers]

    def commit(self, ids: Sequence[int]) -> None:
        """Count the rows just written as those of ``ids``: the forward pass has returned."""
        self._ids.extend(ids)

    def truncate(self, length: int) -> None:
        """Forget all tokens from ``length`` on; ``regain`` brings back what is not written over."""
        cut, self._cut = self._ids[length:], []
        del self._ids[length:]
        self._cut = cut

    def regain(self, token_id: int) -> bool:
        """Count the row behind the end again if it is still that of ``token_id``; says whether."""
        # An interrupt between any two of these steps may lose what was cut off, and no more.
        cut, self._cut = self._cut, []
        found = cut[:1] == [token_id]
        if found:
            self._ids.append(token_id)
            self._cut = cut[1:]
        return found

    @torch.inference_mode()  # the rows were made under it
    def follow(self, ids: Sequence[int]) -> int:
        """Hold as much of ``ids`` as can be had without the model, and nothing else.

        What is stored beyond the longest common prefix is set aside, and rows set aside earlier
        come back as far as they continue it.

        Returns:
            ``length``: how many of ``ids`` are stored now.
        """
        shared = common_prefix(self._ids, ids)
        if shared < self.length:
            self._set_aside(shared)
            self.truncate(shared)
        # One tail may begin where another leaves off, when branches have branches.
        while tail := self._continuation(ids):
            self._take_back(tail, common_prefix(tail.ids, ids))
        return self.length

    def _set_aside(self, start: int) -> None:
        """Keep a copy of the rows from ``start`` on, in the place of the oldest ones."""
        end, ids = self.length, list(self._ids)
        for tail in self._tails:
            if tail.start <= start and tail.ids[:end] == ids:  # they are kept already
                self._tails.remove(tail)
                self._tails.append(tail)
                return
        # A copy: the buffers are about to be written over.
        rows = [[buffer[:, :, start:end].clone() for buffer in each] for each in self._buffers]
        self._tails = [
            tail
            for tail in self._tails
            if tail.start < start or tail.ids != ids[: len(tail.ids)]  # else the new one holds it
        ]
        self._tails.append(_Tail(ids, start, rows))
        # Together at most half of a full cache, so that memory stays in proportion to it.
        n_rows = sum(len(tail.ids) - tail.start for tail in self._tails)
        while n_rows > self._limit // 2 or len(self._tails) > MAX_TAILS:
            oldest = self._tails.pop(0)
            n_rows -= len(oldest.ids) - oldest.start

    def _continuation(self, ids: Sequence[int]) -> _Tail | None:
        """The tail that continues what is stored furthest into ``ids``, if one does."""
        fitting = [
            (common_prefix(tail.ids, ids), tail)
            for tail in self._tails
            if tail.start <= self.length
        ]
        end, tail = max(fitting, key=lambda found: found[0], default=(0, None))
        return tail if end > self.length else None

    def _take_back(self, tail: _Tail, end: int) -> None:
        """Store the rows of ``tail`` up to ``end`` behind the known ones again."""
        start = self.length
        self.reserve(end)
        rows = slice(start - tail.start, end - tail.start)
        for buffers, kept in zip(self._buffers, tail.rows, strict=True):
            for buffer, layer in zip(buffers, kept, strict=True):
                buffer[:, :, start:end] = layer[:, :, rows]
        self.commit(tail.ids[start:end])
