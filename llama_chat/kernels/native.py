"""The functions in C, if they were built when the package was installed."""

import contextlib
import ctypes
import mmap
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
"""Tokens that ``NativeModel.forward`` reads at a time."""

PARTS = ("projections", "attention", "feed_forward", "output")
"""Of a forward pass: matrices of attention, attention itself, feed-forward, and logits."""

_PANEL = 16
"""Rows that lie together; ``PANEL`` of ``packed.h``."""

_CACHE_LINE = 64

_LARGE_PAGE = 2**21


class _PackedMatrix(ctypes.Structure):
    """``packed_matrix`` of ``packed.h``."""

    _fields_ = (
        ("bits", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("has_mins", ctypes.c_int32),
        ("n_rows", ctypes.c_int64),
        ("n_columns", ctypes.c_int64),
        ("panels", ctypes.c_void_p),
    )


class _PackedRows(ctypes.Structure):
    """``packed_rows`` of ``panels.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("quants", "scales", "mins")),
        *(
            (f"{name}_{step}", ctypes.c_int64)
            for name in ("quants", "scales", "mins")
            for step in ("row", "group")
        ),
    )


class NativeMatrix:
    """A packed matrix ``(out, in)`` in the memory of the processor, laid out for the C functions.

    What it holds is what ``PackedWeight`` says, sixteen rows together; see ``packed.h``.
    """

    def __init__(
        self,
        bits: int,
        quants: Tensor,
        scales: Tensor,
        mins: Tensor | None,
        level: int | None = None,
    ) -> None:
        """Copy the tensors of a ``PackedWeight``.

        ``level`` is a number of ``LEVELS``, or None for the one in use.
        """
        self._library = _built()
        self._level = _level if level is None else level
        rows, n_groups, n_bytes = quants.shape
        self.bits = bits
        self.group = n_bytes * 8 // bits
        self.shape = rows, n_groups * self.group
        """``(out, in)``."""
        self.n_bytes = padded_rows(rows) * n_groups * (n_bytes + 2 + 2 * (mins is not None))
        """Bytes that it takes."""
        self._panels = _room(self.n_bytes)
        self.matrix = _PackedMatrix(
            bits, self.group, mins is not None, *self.shape, self._panels.data_ptr()
        )
        self._address = ctypes.byref(self.matrix)
        if quants.stride(2) != 1:
            raise ValueError("the quants of a group do not lie side by side")
        tensors = (quants, scales, scales if mins is None else mins)
        source = _PackedRows(
            quants.data_ptr(),
            scales.data_ptr(),
            None if mins is None else mins.data_ptr(),
            *(part.stride(axis) * part.element_size() for part in tensors for axis in (0, 1)),
        )
        self._library.pack_panels(self._address, ctypes.byref(source), self._panels.data_ptr())

    def multiply(self, x: Tensor) -> Tensor:
        """``x @ weights.T``: ``(n, in)`` in float32 or bfloat16 to ``(n, out)`` in the same type.

        ``x`` is rounded to 8 bits per group.
        """
        narrow, n = _narrow(x.dtype), len(x)
        x = x.contiguous()
        y = torch.empty(n, self.shape[0], dtype=x.dtype)
        row_bytes = self._library.rounded_bytes(self.shape[1], self.group)
        scratch = torch.empty(n * row_bytes, dtype=torch.uint8)
        self._library.multiply(
            self._address, x.data_ptr(), n, y.data_ptr(), narrow, scratch.data_ptr(), self._level
        )
        return y

    def unpack_rows(self, ids: Tensor, to: Tensor) -> Tensor:
        """Write some rows into ``to`` ``(n, in)``, float32 or bfloat16; returns it."""
        ids = ids.contiguous()
        self._library.unpack_rows(
            self._address, ids.data_ptr(), len(ids), to.data_ptr(), _narrow(to.dtype), self._level
        )
        return to


def _narrow(dtype: torch.dtype) -> bool:
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"{dtype} is neither float32 nor bfloat16")
    return dtype == torch.bfloat16


def padded_rows(n: int) -> int:
    """Rows that a ``NativeMatrix`` of ``n`` rows takes the room of: whole panels."""
    return -(-n // _PANEL) * _PANEL


def _room(n_bytes: int) -> Tensor:
    """Memory for weights, ``(n_bytes,)`` in uint8; in large pages where the system has them.

    Weights are read from front to back for each token: with small pages a good part of the time
    goes into finding them.
    """
    if n_bytes < _LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        memory = torch.empty(n_bytes + _CACHE_LINE, dtype=torch.uint8)
        start = -memory.data_ptr() % _CACHE_LINE
    else:
        # What is left over before and behind is never touched, and so takes no memory.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mapped = mmap.mmap(-1, n_bytes + _LARGE_PAGE, flags=private)
        memory = torch.frombuffer(mapped, dtype=torch.uint8)
        start = -memory.data_ptr() % _LARGE_PAGE
        with contextlib.suppress(OSError):  # a kernel may have been built without
            whole = n_bytes // _LARGE_PAGE * _LARGE_PAGE
            mapped.madvise(mmap.MADV_HUGEPAGE, start, whole)
    return memory[start : start + n_bytes]


class _LayerWeights(ctypes.Structure):
    """``layer_weights`` of ``forward.c``."""

    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("ffn_norm", ctypes.c_void_p),
        *((name, _PackedMatrix) for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3")),
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
        ("output", _PackedMatrix),
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
        self._library = _built()
        self.level = _level
        """A number of ``LEVELS``: how to compute."""
        self.n_layers = len(layers)
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
    integer = ctypes.c_int
    library.pack_panels.argtypes = (pointer, pointer, pointer)
    library.pack_panels.restype = None
    library.unpack_rows.argtypes = (pointer, pointer, ctypes.c_int64, pointer, integer, integer)
    library.unpack_rows.restype = None
    library.rounded_bytes.argtypes = (ctypes.c_int64, integer)
    library.rounded_bytes.restype = ctypes.c_int64
    library.multiply.argtypes = (pointer, pointer, integer, pointer, integer, pointer, integer)
    library.multiply.restype = None
    library.forward_scratch_bytes.argtypes = (pointer, pointer, integer, integer)
    library.forward_scratch_bytes.restype = ctypes.c_int64
    library.forward.argtypes = (
        *(pointer, pointer, pointer, integer, ctypes.c_int64, ctypes.c_int64),
        *(pointer, integer, pointer, pointer, integer),
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
