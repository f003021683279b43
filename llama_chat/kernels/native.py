"""The C functions of ``packed.c``, if they were built when the package was installed."""

import ctypes
import os
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
        chosen = _level if level is None else level
        if _library is None or chosen is None:
            raise RuntimeError("the C functions were not built, or are not wanted")
        self._library = _library
        self._level = chosen
        self._shape = quants.shape[0], quants.shape[1] * 8 // bits
        self._matrix = _PackedMatrix(
            bits,
            group,
            *self._shape,
            quants.data_ptr(),
            scales.data_ptr(),
            None if mins is None else mins.data_ptr(),
        )
        self._address = ctypes.byref(self._matrix)

    def multiply(self, x: Tensor) -> Tensor:
        """``x @ weights.T`` for ``x`` ``(n, in)`` in float32, with n from 1 to ``MAX_ROWS``."""
        n = len(x)
        y = torch.empty(n, self._shape[0])
        scratch = torch.empty(self._library.scratch_bytes(self._address, n), dtype=torch.uint8)
        self._library.multiply(
            self._address, x.data_ptr(), n, y.data_ptr(), scratch.data_ptr(), self._level
        )
        return y

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The weights as ``dtype``, float32 or bfloat16: ``(out, in)``."""
        to = torch.empty(self._shape, dtype=dtype)
        self._library.unpack(self._address, to.data_ptr(), dtype == torch.bfloat16, self._level)
        return to


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
