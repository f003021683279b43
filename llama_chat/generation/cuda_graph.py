"""Decoding on a GPU by replaying CUDA graphs.

A GPU computes one token faster than Python can launch its kernels. Captured once as a graph
(https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/), the hundreds of kernels of a
forward pass are launched together. Shapes in a graph are fixed: token id and position are read from
memory, and attention covers a bucket of rows, masked past the last one, with a graph per bucket.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama_chat.errors import is_out_of_memory
from llama_chat.generation.backend import Extension, TorchBackend
from llama_chat.generation.cache_rows import BLOCK
from llama_chat.generation.kv_cache import RowCache
from llama_chat.model.attention import SequenceSpan
from llama_chat.model.transformer import Transformer

_WARM_UPS = 3
"""Passes before the capture, during which libraries allocate their workspaces."""


@dataclass(frozen=True, slots=True)
class _BucketCache:
    """View of the cache for passes of fixed shape."""

    cache: RowCache
    position: Tensor
    """Row to write, ``(1,)`` int64."""
    bucket: int
    """Number of rows attended to."""

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store one row, and return all rows of the bucket; see ``LayerCache.write``."""
        rows = []
        for buffer, new in zip(self.cache.layer(layer), (keys, values), strict=True):
            buffer.index_copy_(2, self.position, new.transpose(1, 2).to(buffer.dtype))
            rows.append(buffer[:, :, : self.bucket])
        return rows[0], rows[1]


class GraphBackend(TorchBackend):
    """Model on one GPU: decode by CUDA graphs, prefill by the torch modules."""

    def __init__(self, model: Transformer, threads: int | None = None) -> None:
        super().__init__(model, threads)
        device = model.device
        self._token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._rows = torch.empty(0, dtype=torch.int64, device=device)
        """Numbers of the rows of the cache."""
        self._graphs: dict[int, Callable[[], Tensor]] = {}
        """Function that runs the pass, for each bucket."""
        self._captured: tuple[int, ...] = ()
        """Buffers of the cache and data pointers of the rotary tables that the graphs use."""

    @staticmethod
    def supports(model: Transformer, cache_dtype: torch.dtype) -> bool:
        """True if all of the model is on one GPU, and the cache has the type of activations."""
        devices = {block.device for block in model.blocks} | {model.device}
        on_gpu = len(devices) == 1 and model.device.type == "cuda"
        return on_gpu and cache_dtype == model.dtype

    def _reserve(self, cache: RowCache, length: int) -> None:
        """Grow the buffers to all that they may hold, if memory allows: then graphs stay valid."""
        most = self.context if cache.max_length is None else cache.max_length
        if length <= cache.capacity or length > most:
            cache.reserve(length)
            return
        try:
            cache.reserve(most)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            cache.reserve(length)

    def _run(
        self, extensions: Sequence[Extension], should_stop: Callable[[], bool] | None
    ) -> list[Tensor]:
        new = extensions[0]
        # A graph belongs to the buffers of one cache.
        if len(extensions) > 1 or len(new.ids) > 1 or new.cache.segments:
            return super()._run(extensions, should_stop)
        return [self._decode(new.ids[0], new.cache)[: new.n_logits]]

    def _decode(self, token_id: int, cache: RowCache) -> Tensor:
        """Compute the logits ``(1, vocab_size)`` of one token, valid until the next call."""
        length, capacity = cache.length, cache.capacity
        tables = self.model.rotary(capacity, self.model.device)
        used = (*cache.buffers_id, *(table.data_ptr() for table in tables))
        if used != self._captured:  # they have grown, or it is another cache
            self._graphs.clear()
            self._captured = used
            self._rows = torch.arange(capacity, device=self.model.device)
        self._token.fill_(token_id)
        self._position.fill_(length)
        bucket = min(-(-(length + 1) // BLOCK) * BLOCK, capacity)
        if bucket not in self._graphs:
            # Memory that was never written may hold NaN, which a weight of 0 does not remove.
            for layer in range(self.model.config.n_layers):
                for buffer in cache.layer(layer):
                    buffer[:, :, length:bucket].zero_()
            self._graphs[bucket] = self._capture(_BucketCache(cache, self._position, bucket))
        return self._graphs[bucket]()

    def _capture(self, rows: _BucketCache) -> Callable[[], Tensor]:
        if self.model.device.type != "cuda":  # tests run the same pass without a graph
            return lambda: self._decode_bucket(rows)
        stream = torch.cuda.Stream(self.model.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):  # each writes the same row
                self._decode_bucket(rows)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._decode_bucket(rows)

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    def _decode_bucket(self, rows: _BucketCache) -> Tensor:
        mask = (self._rows[: rows.bucket] <= self._position).unsqueeze(0)  # (1, bucket)
        span = SequenceSpan(0, 1, rows.bucket, mask, rows)
        logits: Tensor = self.model(self._token, self._position, [span])
        return logits[0]
