"""Forward passes through all layers in C."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama_chat.kernels import native
from llama_chat.kernels.matrix import NativeMatrix, PackedMatrix

MAX_ROWS = 8
"""Tokens that are read as a few, each as if it were alone; ``FEW_TOKENS`` of ``attention.h``."""

PARTS = ("projections", "attention", "feed_forward", "output")
"""Of a forward pass: matrices of attention, attention itself, feed-forward, and logits."""


class _LayerWeights(ctypes.Structure):
    """``layer_weights`` of ``forward.c``."""

    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("ffn_norm", ctypes.c_void_p),
        *((name, PackedMatrix) for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3")),
    )


class _ModelWeights(ctypes.Structure):
    """``model_weights`` of ``forward.c``."""

    _fields_ = (
        ("dim", ctypes.c_int64),
        ("n_layers", ctypes.c_int64),
        ("hidden_dim", ctypes.c_int64),
        ("norm_eps", ctypes.c_float),
        ("layers", ctypes.POINTER(_LayerWeights)),
        ("norm", ctypes.c_void_p),
        ("output", PackedMatrix),
    )


class _KVCache(ctypes.Structure):
    """``kv_cache`` of ``attention.h``."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("n_heads", ctypes.c_int64),
        ("n_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        *(
            (name, ctypes.POINTER(ctypes.c_void_p))
            for name in ("keys", "values", "key_scales", "value_scales")
        ),
        ("capacity", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
    )


class _Seconds(ctypes.Structure):
    """``seconds_of`` of ``forward.c``."""

    _fields_ = tuple((name, ctypes.c_double) for name in PARTS)


_CACHE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


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
        self.view = _KVCache(
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
        self._library = native.built()
        self.level = native.level
        """A number of ``LEVELS``: how to compute."""
        self.n_layers = len(layers)
        self._kept = layers, norm, output
        self._layers = (_LayerWeights * len(layers))(
            *(
                _LayerWeights(
                    layer.attention_norm.data_ptr(),
                    layer.ffn_norm.data_ptr(),
                    *(matrix.matrix for matrix in layer.matrices),
                )
                for layer in layers
            )
        )
        self._vocab_size = output.matrix.n_rows
        self._model = _ModelWeights(
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
        self._seconds = _Seconds()

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
        n, view = len(x), cache.view
        view.length, view.cos, view.sin = length, cos.data_ptr(), sin.data_ptr()
        library, cache_address = self._library, ctypes.byref(view)
        n_bytes = library.forward_scratch_bytes(self._address, cache_address, n, self.level)
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
            self.level,
        )
        return logits

    def take_seconds(self) -> dict[str, float]:
        """Seconds spent in each of ``PARTS`` since this was asked last."""
        spent = {name: getattr(self._seconds, name) for name in PARTS}
        self._seconds = _Seconds()
        return spent
