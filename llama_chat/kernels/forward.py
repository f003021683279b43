"""Forward passes through all layers in C."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama_chat.kernels import native
from llama_chat.kernels.abi import PARTS, KVCache, LayerWeights, ModelWeights, PassRecord
from llama_chat.kernels.matrix import NativeMatrix

_CACHE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""``FLOAT32``, ``BFLOAT16`` and ``INT8`` of ``attention.h``."""


class NativeCache:
    """The cache as C sees it.

    The tensors hold, for each layer, ``(1, n_kv_heads, capacity, head_dim)`` in float32, bfloat16
    or int8, and of int8 the scales ``(1, n_kv_heads, capacity)`` in float32. They must be
    contiguous and outlive this.
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
    matrices: Sequence[NativeMatrix]
    """wq, wk, wv, wo, w1, w2, w3."""


class NativeModel:
    """All layers of a model whose matrices are packed, as C sees them.

    Args are as in ``LlamaConfig``; all tensors must outlive this.
    """

    def __init__(
        self,
        *,
        dim: int,
        hidden_dim: int,
        norm_eps: float,
        layers: Sequence[LayerTensors],
        norm: Tensor,
        output: NativeMatrix,
    ) -> None:
        self._library = native.library()
        self.level = native.level_name()
        """One of ``supported_levels()``, to compute with."""
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
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._seconds = PassRecord()

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
    ) -> Tensor | None:
        """Take tokens through some layers, writing their rows into the cache.

        Args:
            x: what goes into the first of them, ``(n, dim)`` in float32; what comes out of the
                last is there afterwards.
            cache: where keys and values are.
            length: rows in use; the new ones are written behind them.
            cos: ``(n, head_dim // 2)`` in float32, contiguous.
            sin: the same.
            layers: which, one after the other.
            n_logits: of how many tokens, the last ones, the logits are wanted; 0 unless these are
                the last layers.

        Returns:
            Logits ``(n_logits, vocab_size)`` in float32; None of 0.
        """
        n, view, level = len(x), cache.view, native.level_number(self.level)
        view.length, view.cos, view.sin = length, cos.data_ptr(), sin.data_ptr()
        library, cache_address = self._library, ctypes.byref(view)
        n_bytes = library.forward_scratch_bytes(self._address, cache_address, n, level)
        if len(self._scratch) < n_bytes:
            self._scratch = torch.empty(n_bytes, dtype=torch.uint8)
        logits = torch.empty(n_logits, self._vocab_size) if n_logits else None
        library.forward(
            self._address,
            cache_address,
            x.data_ptr(),
            n,
            layers.start,
            layers.stop,
            None if logits is None else logits.data_ptr(),
            n_logits,
            self._scratch.data_ptr(),
            ctypes.byref(self._seconds),
            level,
        )
        return logits

    def take_seconds(self) -> dict[str, float]:
        """Seconds spent in each of ``PARTS`` since this was asked last."""
        spent = {name: getattr(self._seconds, name) for name in PARTS}
        self._seconds = PassRecord()
        return spent
