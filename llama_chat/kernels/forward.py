"""Forward passes through all layers in C."""

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama_chat.kernels import native
from llama_chat.kernels.abi import PARTS, KVCache, LayerWeights, ModelWeights, PassRecord
from llama_chat.kernels.matrix import FloatMatrix, NativeMatrix
from llama_chat.kernels.scratch import ScratchPool

_CACHE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float16: 3}
"""``FLOAT32``, ``BFLOAT16``, ``INT8`` and ``FLOAT16`` of ``attention.h``."""


class NativeCache:
    """Pointers to the buffers of a cache, for C.

    The tensors hold, for each layer, ``(1, n_kv_heads, capacity, head_dim)`` in float32, bfloat16,
    float16 or int8, and for int8 the scales ``(1, n_kv_heads, capacity)`` in float32. They must be
    contiguous and outlive this object.
    """

    def __init__(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        key_scales: Sequence[Tensor] = (),
        value_scales: Sequence[Tensor] = (),
        *,
        n_heads: int,
    ) -> None:
        addresses = ctypes.c_void_p * len(keys)
        _, n_kv_heads, capacity, head_dim = keys[0].shape
        self.view = KVCache(
            _CACHE_KINDS[keys[0].dtype],
            n_heads,
            n_kv_heads,
            head_dim,
            *(
                addresses(*(tensor.data_ptr() for tensor in tensors)) if tensors else None
                for tensors in (keys, values, key_scales, value_scales)
            ),
            capacity,
        )


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
        cache: NativeCache,
        length: int,
        cos: Tensor,
        sin: Tensor,
        *,
        layers: range,
        n_logits: int,
        n_threads: int | None = None,
    ) -> Tensor | None:
        """Run tokens through some layers, storing their keys and values in the cache.

        Args:
            x: the input of the first of these layers, ``(n, dim)`` in float32; overwritten by the
                output of the last.
            cache: the buffers for keys and values.
            length: rows in use; the new ones are stored after them.
            cos: ``(n, head_dim // 2)`` in float32, contiguous.
            sin: the same.
            layers: the layers to run, in order.
            n_logits: number of last tokens to compute logits of; 0 unless the last layer is
                included.
            n_threads: number of threads; None for as many as torch uses.

        Returns:
            Logits ``(n_logits, vocab_size)`` in float32, or None if ``n_logits`` is 0.
        """
        n, view, level = len(x), cache.view, native.level_number(self.level)
        n_threads = n_threads or torch.get_num_threads()
        view.length, view.cos, view.sin = length, cos.data_ptr(), sin.data_ptr()
        model = self._address, ctypes.byref(view)
        n_bytes = self._library.forward_scratch_bytes(*model, n, level, n_threads)
        logits = torch.empty(n_logits, self._vocab_size) if n_logits else None
        with self._scratch.borrow(n_bytes) as scratch:
            self._library.forward(
                *model,
                x.data_ptr(),
                n,
                layers.start,
                layers.stop,
                None if logits is None else logits.data_ptr(),
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
