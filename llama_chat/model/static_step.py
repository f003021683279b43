"""Decoding one token with shapes that never change, so that a GPU can replay it as one graph.

A GPU does the arithmetic of one token faster than Python can ask for it. Captured once
(https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/), the hundreds of kernels of a
forward pass are started together. What changes from token to token, its id and its position, lies
in memory that the kernels read; rows of the cache are attended to in buckets, masked behind the
last, and there is a graph for each bucket.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llama_chat.model.kv_cache import BLOCK, KVCache
from llama_chat.model.rope import rotary_tables
from llama_chat.model.transformer import Transformer

_WARM_UPS = 3
"""Passes before the capture, in which libraries set aside what memory they need."""


@dataclass(frozen=True, slots=True)
class _BucketRows:
    """The cache as a pass of fixed shape sees it."""

    cache: KVCache
    position: Tensor
    """``(1,)`` int64: the row to be written."""
    bucket: int
    """How many rows are attended to."""

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store one row, and return all of the bucket; see ``KVCache.write``."""
        rows = []
        for buffer, new in zip(self.cache.layer(layer), (keys, values), strict=True):
            buffer.index_copy_(2, self.position, new.transpose(1, 2).to(buffer.dtype))
            rows.append(buffer[:, :, : self.bucket])
        return rows[0], rows[1]


class StaticStep:
    """Reads single tokens for one model: on a GPU by replaying graphs, else as they are."""

    def __init__(self, model: Transformer) -> None:
        config, device = model.config, model.device
        self._model = model
        self._token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._rotary = rotary_tables(config.rope_frequencies(), config.context_length, device)
        self._rows = torch.arange(config.context_length, device=device)
        self._graphs: dict[int, Callable[[], Tensor]] = {}
        """How to run a pass over each bucket."""
        self._captured: tuple[int, ...] = ()
        """Where the buffers lie that the graphs know."""

    @staticmethod
    def fits(model: Transformer) -> bool:
        """Whether a model decodes so: all of it on one GPU, and the cache in its own type."""
        devices = {block.device for block in model.blocks} | {model.device}
        return (
            len(devices) == 1 and model.device.type == "cuda" and model.cache_dtype == model.dtype
        )

    @torch.inference_mode()
    def __call__(self, token_id: int, cache: KVCache) -> Tensor:
        """Read one token behind ``cache``; the caller commits it.

        Returns:
            Logits in float32, ``(vocab_size,)``, good until the next call.
        """
        length = cache.length
        cache.reserve(length + 1)
        addresses = tuple(buffer.data_ptr() for buffer in cache.layer(0))
        if addresses != self._captured:  # the cache has grown, or is another one
            self._graphs.clear()
            self._captured = addresses
        self._token.fill_(token_id)
        self._position.fill_(length)
        bucket = min(-(-(length + 1) // BLOCK) * BLOCK, cache.capacity)
        if bucket not in self._graphs:
            # What was never written may be no number, and that times a weight of 0 is none either.
            for layer in range(self._model.config.n_layers):
                for buffer in cache.layer(layer):
                    buffer[:, :, length:bucket].zero_()
            self._graphs[bucket] = self._prepare(_BucketRows(cache, self._position, bucket))
        return self._graphs[bucket]()

    def _prepare(self, rows: _BucketRows) -> Callable[[], Tensor]:
        if self._model.device.type != "cuda":
            return lambda: self._run(rows)
        stream = torch.cuda.Stream(self._model.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):  # each writes the same row
                self._run(rows)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._run(rows)

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    def _run(self, rows: _BucketRows) -> Tensor:
        """The arithmetic of ``Transformer.forward`` for one token."""
        model = self._model
        cos, sin = (table.index_select(0, self._position) for table in self._rotary)
        mask = (self._rows[: rows.bucket] <= self._position).unsqueeze(0)  # (1, bucket)
        x: Tensor = model.tok_embeddings(self._token, model.dtype)  # (1, 1, dim)
        for block in model.blocks:
            x = block(x, cos, sin, mask, rows)
        return model.logits_of(x)[0, 0]
