"""The keys and values of everything the model has read."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llama_chat.model.config import LlamaConfig

BLOCK = 256
"""Rows by which the cache grows. Memory follows the conversation, not the context limit."""


class KVCache:
    """Keys and values of the tokens ``ids``, in buffers that grow by blocks.

    The invariant: ``ids`` are exactly the tokens whose rows are stored, in order. A forward pass
    writes rows past the end and nobody reads those until ``commit`` has named their tokens, in one
    step that an interrupt cannot divide.
    """

    def __init__(
        self, config: LlamaConfig, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> None:
        """Make an empty cache; ``devices`` holds the device of each layer."""
        self._ids: list[int] = []
        self._limit = config.context_length
        # (B, n_kv_heads, capacity, head_dim) for each layer
        shape = (1, config.n_kv_heads, 0, config.head_dim)
        self._keys = [torch.empty(shape, dtype=dtype, device=device) for device in devices]
        self._values = [torch.empty(shape, dtype=dtype, device=device) for device in devices]

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
        return min((keys.shape[2] for keys in self._keys), default=0)

    def reserve(self, length: int) -> None:
        """Grow the buffers until ``length`` tokens fit.

        Raises:
            ValueError: if that is more than the context length of the model.
        """
        if length > self._limit:
            raise ValueError(f"{length} tokens exceed the context of {self._limit}")
        if length <= self.capacity:
            return
        capacity = min(-(-length // BLOCK) * BLOCK, self._limit)
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                if old.shape[2] >= capacity:  # grown already, before an interrupt
                    continue
                grown = old.new_empty((1, old.shape[1], capacity, old.shape[3]))
                grown[:, :, : self.length] = old[:, :, : self.length]
                buffers[layer] = grown

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store rows behind the ``length`` known ones and return all rows up to theirs.

        Args:
            layer: which layer's buffers.
            keys: ``(B, T, n_kv_heads, head_dim)``.
            values: the same shape.

        Returns:
            Keys and values, views of shape ``(B, n_kv_heads, length + T, head_dim)``.
        """
        end = self.length + keys.shape[1]
        stored_keys, stored_values = self._keys[layer], self._values[layer]
        stored_keys[:, :, self.length : end] = keys.transpose(1, 2)
        stored_values[:, :, self.length : end] = values.transpose(1, 2)
        return stored_keys[:, :, :end], stored_values[:, :, :end]

    def commit(self, ids: Sequence[int]) -> None:
        """Count the rows just written as those of ``ids``: the forward pass has returned."""
        self._ids.extend(ids)

    def truncate(self, length: int) -> None:
        """Forget all tokens from ``length`` on."""
        del self._ids[length:]
