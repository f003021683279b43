"""The functions in C, if they were built when the package was installed."""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llama_chat.errors import UsageError

LIBRARY = Path(__file__).with_name("_packed.so")
"""Where the build puts it."""

VARIABLE = "LLAMA_CHAT_KERNEL"
"""Environment variable that forces a path: one of ``LEVELS``, or ``torch``."""

LEVELS = ("portable", "avx2", "avx512")
"""What the functions are compiled for, by their number in C."""

MAX_ROWS = 8
"""Rows of activations that ``multiply`` takes."""


class _PackedMatrix(ctypes.Structure):
    """``packed_matrix`` of ``packed.c``."""

    _fields_ = (
        ("bits", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("n_rows", ctypes.c_int64),
        ("n_columns", ctypes.c_int64),
        ("quants", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("mins", ctypes.c_void_p),
    )


class NativeMatrix:
    """A packed matrix in the memory of the processor, as C sees it.

    The tensors must be contiguous, of the types that ``PackedWeight`` says, and outlive this.
    """

    def __init__(
        self,
        bits: int,
        group: int,
        quants: Tensor,
        scales: Tensor,
        mins: Tensor | None,
        level: int | None = None,
    ) -> None:
        """See it; ``level`` is a number of ``LEVELS``, or None for the one in use."""
        self._library = _built()
        self._level = _level if level is None else level
        self._shape = quants.shape[0], quants.shape[1] * 8 // bits
        self.matrix = _PackedMatrix(
            bits,
            group,
            *self._shape,
            quants.data_ptr(),
            scales.data_ptr(),
            None if mins is None else mins.data_ptr(),
        )
        self._address = ctypes.byref(self.matrix)

    def multiply(self, x: Tensor) -> Tensor:
        """``x @ weights.T`` for ``x`` ``(n, in)`` in float32, with n from 1 to ``MAX_ROWS``."""
        n = len(x)
        y = torch.empty(n, self._shape[0])
        scratch = torch.empty(self._library.scratch_bytes(self._address, n), dtype=torch.uint8)
        self._library.multiply(
            self._address, x.data_ptr(), n, y.data_ptr(), scratch.data_ptr(), self._level
        )
        return y

    def unpack(self, to: Tensor) -> Tensor:
        """Write the weights ``(out, in)`` into ``to``, which is float32 or bfloat16; returns it."""
        self._library.unpack(self._address, to.data_ptr(), to.dtype == torch.bfloat16, self._level)
        return to


class _LayerWeights(ctypes.Structure):
    """``layer_weights`` of ``decode.c``."""

    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("ffn_norm", ctypes.c_void_p),
        *((name, _PackedMatrix) for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3")),
    )


class _ModelWeights(ctypes.Structure):
    """``model_weights`` of ``decode.c``."""

    _fields_ = (
        ("dim", ctypes.c_int64),
        ("n_layers", ctypes.c_int64),
        ("n_heads", ctypes.c_int64),
        ("n_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("hidden_dim", ctypes.c_int64),
        ("norm_eps", ctypes.c_float),
        ("narrow", ctypes.c_int32),
        ("layers", ctypes.POINTER(_LayerWeights)),
        ("norm", ctypes.c_void_p),
        ("output", _PackedMatrix),
    )


class _CacheView(ctypes.Structure):
    """``cache_view`` of ``decode.c``."""

    _fields_ = (
        ("keys", ctypes.POINTER(ctypes.c_void_p)),
        ("values", ctypes.POINTER(ctypes.c_void_p)),
        ("capacity", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
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
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        hidden_dim: int,
        norm_eps: float,
        layers: Sequence[LayerTensors],
        norm: Tensor,
        output: NativeMatrix,
        cache_dtype: torch.dtype,
    ) -> None:
        self._library = _built()
        self.level = _level
        """A number of ``LEVELS``: how to compute."""
        self._kept = layers, norm, output
        self._layers = (_LayerWeights * len(layers))(
            *(
                _LayerWeights(
                    layer.attention_norm.data_ptr(),
                    layer.ffn_norm.data_ptr(),
                    *(native.matrix for native in layer.matrices),
                )
                for layer in layers
            )
        )
        self._vocab_size = output.matrix.n_rows
        self._model = _ModelWeights(
            dim,
            len(layers),
            n_heads,
            n_kv_heads,
            head_dim,
            hidden_dim,
            norm_eps,
            cache_dtype == torch.bfloat16,
            self._layers,
            norm.data_ptr(),
            output.matrix,
        )
        self._address = ctypes.byref(self._model)
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def forward(
        self,
        x: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        length: int,
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        """Read 1 to ``MAX_ROWS`` tokens, writing their rows into the cache.

        Args:
            x: their embeddings ``(n, dim)`` in float32; overwritten.
            keys: the buffers of each layer, ``(1, n_kv_heads, capacity, head_dim)``.
            values: the same.
            length: rows in use; the new ones are written behind them.
            cos: ``(n, head_dim // 2)`` in float32, contiguous.
            sin: the same.

        Returns:
            Logits ``(n, vocab_size)`` in float32.
        """
        n = len(x)
        addresses = ctypes.c_void_p * len(keys)
        cache = _CacheView(
            addresses(*(tensor.data_ptr() for tensor in keys)),
            addresses(*(tensor.data_ptr() for tensor in values)),
            keys[0].shape[2],
            length,
            cos.data_ptr(),
            sin.data_ptr(),
        )
        n_bytes = self._library.forward_scratch_bytes(self._address, n, length)
        if len(self._scratch) < n_bytes:
            self._scratch = torch.empty(n_bytes, dtype=torch.uint8)
        logits = torch.empty(n, self._vocab_size)
        self._library.forward(
            self._address,
            ctypes.byref(cache),
            x.data_ptr(),
            n,
            logits.data_ptr(),
            self._scratch.data_ptr(),
            self.level,
        )
        return logits


def _built() -> ctypes.CDLL:
    if _library is None or _level is None:
        raise RuntimeError("the C functions were not built, or are not wanted")
    return _library


def name() -> str:
    """The path that is in use: one of ``LEVELS``, or ``torch``."""
    return "torch" if _level is None else LEVELS[_level]


def _load() -> ctypes.CDLL | None:
    # Loaded after torch, whose OpenMP this then shares: a second pool would fight the first.
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    pointer = ctypes.c_void_p
    library.best_level.argtypes = ()
    library.scratch_bytes.argtypes = (pointer, ctypes.c_int)
    library.scratch_bytes.restype = ctypes.c_int64
    library.multiply.argtypes = (pointer, pointer, ctypes.c_int, pointer, pointer, ctypes.c_int)
    library.multiply.restype = None
    library.unpack.argtypes = (pointer, pointer, ctypes.c_int, ctypes.c_int)
    library.unpack.restype = None
    library.forward_scratch_bytes.argtypes = (pointer, ctypes.c_int, ctypes.c_int64)
    library.forward_scratch_bytes.restype = ctypes.c_int64
    library.forward.argtypes = (
        *(pointer, pointer, pointer, ctypes.c_int, pointer, pointer),
        ctypes.c_int,
    )
    library.forward.restype = None
    return library


def _choose(library: ctypes.CDLL | None) -> int | None:
    """The number of the level in use; None for plain torch."""
    wanted = os.environ.get(VARIABLE, "")
    best = -1 if library is None else library.best_level()
    known = [*LEVELS[: best + 1], "torch"]
    if wanted and wanted not in known:
        raise UsageError(
            VARIABLE, f"{wanted[:40]!r} is not here", f"give one of {', '.join(known)}"
        )
    if wanted == "torch" or library is None:
        return None
    return LEVELS.index(wanted) if wanted else best


def levels() -> range:
    """The numbers of the levels that this machine can run; empty where nothing was built."""
    return range(0 if _library is None else _library.best_level() + 1)


_library = _load()
_level = _choose(_library)
available = _level is not None
