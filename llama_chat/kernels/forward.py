"""Forward passes through all layers in C."""

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama_chat.kernels import native
from llama_chat.kernels.abi import (
    PARTS,
    CacheSegment,
    KVCacheView,
    LayerWeights,
    ModelWeights,
    PassRecord,
)
from llama_chat.kernels.matrix import FloatMatrix, NativeMatrix
from llama_chat.kernels.scratch import ScratchPool

_CACHE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float16: 3}
"""``FLOAT32``, ``BFLOAT16``, ``INT8`` and ``FLOAT16`` of ``attention.h``."""


Buffers = Sequence[Sequence[Tensor]]
"""Keys, values, and for int8 the scales of both, each of all layers: ``(1, n_kv_heads, capacity,
head_dim)`` in float32, bfloat16, float16 or int8, and the scales ``(1, n_kv_heads, capacity)`` in
float32."""


class NativeCache:
    """Pointers to the rows of a sequence, for C.

    The tensors must be contiguous and outlive this object.
    """

    def __init__(self, segments: Sequence[tuple[Buffers, int]], *, n_heads: int) -> None:
        """Collect the pointers.

        Args:
            segments: buffers, and the row of the sequence that is their first; in order. New rows
                go to the last.
            n_heads: number of query heads.
        """
        (keys, *_), _ = segments[0]
        _, n_kv_heads, _, head_dim = keys[0].shape
        self._segments = (CacheSegment * len(segments))(
            *(_segment(buffers, start) for buffers, start in segments)
        )
        self.view = KVCacheView(
            kind=_CACHE_KINDS[keys[0].dtype],
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            segments=self._segments,
            n_segments=len(segments),
        )


def _segment(buffers: Buffers, start: int) -> CacheSegment:
    pointers = [
        (ctypes.c_void_p * len(layers))(*(tensor.data_ptr() for tensor in layers))
        for layers in buffers
    ]
    scales = pointers[2:] or (None, None)
    return CacheSegment(*pointers[:2], *scales, buffers[0][0].shape[2], start)


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """The weights of one layer: norms in float32 ``(dim,)``, and the seven matrices."""

    attention_norm: Tensor
    ffn_norm: Tensor
    matrices: Sequence[NativeMatrix | FloatMatrix]
    """wq, wk, wv, wo, w1, w2, w3."""


@dataclass(frozen=True, slots=True)
class PassTimes:
    """Times of forward passes."""

    seconds: dict[str, float]
    """Seconds spent in each of ``PARTS``."""
    n_threads: int
    """Threads that took part in the latest pass; 0 if there was none."""


class _Recording(threading.local):
    """Record of the passes of each Python thread."""

    def __init__(self) -> None:
        self.record = PassRecord()


class NativeModel:
    """Pointers to the weights of a model, for C.

    Several Python threads may call it concurrently, each with its own cache. Args are as in
    ``LlamaConfig``; all tensors must outlive this object.
    """

    def __init__(
        self,
        *,
        dim: int,
        hidden_dim: int,
        norm_eps: float,
        layers: Sequence[LayerTensors],
        norm: Tensor,
        output: NativeMatrix | FloatMatrix,
    ) -> None:
        self._library = native.library()
        self.level = native.level_name()
        """Level to compute with, one of ``supported_levels()``."""
        self.n_layers = len(layers)
        self._kept = layers, norm, output
        self._layers = (LayerWeights * len(layers))(
            *(
                LayerWeights(
                    layer.attention_norm.data_ptr(),
                    layer.ffn_norm.data_ptr(),
                    *(matrix.matrix for matrix in layer.matrices),
                )
                for layer in layers
            )
        )
        self._vocab_size = output.matrix.n_rows
        matrices = [output.matrix, *(each.matrix for layer in layers for each in layer.matrices)]
        self.n_weights = sum(each.n_rows * each.n_columns for each in matrices)
        """Weights that each token is multiplied with."""
        self._model = ModelWeights(
            dim,
            len(layers),
            hidden_dim,
            norm_eps,
            self._layers,
            norm.data_ptr(),
            output.matrix,
        )
        self._address = ctypes.byref(self._model)
        self._scratch = ScratchPool()
        self._recording = _Recording()

    def forward(
        self,
        x: Tensor,
        sequences: Sequence[tuple[NativeCache, range]],
        cos: Tensor,
        sin: Tensor,
        *,
        layers: range,
        logit_rows: Sequence[int] = (),
        n_threads: int | None = None,
    ) -> Tensor | None:
        """Run tokens of some sequences through some layers, storing their keys and values.

        Args:
            x: the input of the first of these layers, ``(n, dim)`` in float32; overwritten by the
                output of the last. It has the tokens of one sequence after the other.
            sequences: the buffers of each, and the rows that its tokens take. Those of up to
                ``MAX_EXACT_BATCH`` tokens come first.
            cos: ``(n, head_dim // 2)`` in float32, contiguous.
            sin: the same.
            layers: the layers to run, in order.
            logit_rows: tokens of ``x`` to compute logits of; empty unless the last layer is
                included.
            n_threads: number of threads; None for as many as torch uses.

        Returns:
            Logits ``(len(logit_rows), vocab_size)`` in float32, or None if there are none.
        """
        level = native.level_number(self.level)
        n_threads = n_threads or torch.get_num_threads()
        views = (KVCacheView * len(sequences))(*(cache.view for cache, _ in sequences))
        first = 0
        for view, (_, rows) in zip(views, sequences, strict=True):
            view.n_new, view.length = len(rows), rows.start
            view.cos, view.sin = cos[first:].data_ptr(), sin[first:].data_ptr()
            first += len(rows)
        n_logits = len(logit_rows)
        logits = torch.empty(n_logits, self._vocab_size) if n_logits else None
        model = self._address, views, len(views)
        n_bytes = self._library.forward_scratch_bytes(*model, n_logits, level, n_threads)
        with self._scratch.borrow(n_bytes) as scratch:
            self._library.forward(
                *model,
                x.data_ptr(),
                layers.start,
                layers.stop,
                None if logits is None else logits.data_ptr(),
                (ctypes.c_int32 * n_logits)(*logit_rows),
                n_logits,
                scratch.data_ptr(),
                ctypes.byref(self._recording.record),
                level,
                n_threads,
            )
        return logits

    def take_times(self) -> PassTimes:
        """Return and reset the times of the passes of this Python thread."""
        record, self._recording.record = self._recording.record, PassRecord()
        return PassTimes({name: getattr(record, name) for name in PARTS}, record.n_threads)
