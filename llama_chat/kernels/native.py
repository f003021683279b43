"""The functions in C, if they were built when the package was installed."""

import ctypes
import os
from pathlib import Path

import torch  # noqa: F401 - before the library, which then shares its OpenMP

from llama_chat.errors import UsageError

LIBRARY = Path(__file__).with_name("_packed.so")
"""Where the build puts it."""

VARIABLE = "LLAMA_CHAT_KERNEL"
"""Environment variable that forces a path: one of ``LEVELS``, or ``torch``."""

LEVELS = ("portable", "avx2", "avx512", "avx512_bf16")
"""What the functions are compiled for, by their number in C."""


def built() -> ctypes.CDLL:
    """The library."""
    if _library is None or level is None:
        raise RuntimeError("the C functions were not built, or are not wanted")
    return _library


def name() -> str:
    """The path that is in use: one of ``LEVELS``, or ``torch``."""
    return "torch" if level is None else LEVELS[level]


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.best_level.argtypes = ()
    library.pack_panels.argtypes = (pointer, pointer, pointer)
    library.pack_panels.restype = None
    library.split_blocks.argtypes = (integer, pointer, ctypes.c_int64, pointer, pointer, pointer)
    library.split_blocks.restype = None
    library.dequantize_rows.argtypes = (
        *(pointer, pointer, ctypes.c_int64),
        *(pointer, integer, integer),
    )
    library.dequantize_rows.restype = None
    library.multiply_scratch_bytes.argtypes = (pointer, ctypes.c_int64)
    library.multiply_scratch_bytes.restype = ctypes.c_int64
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
level = _choose(_library)
"""The number of the level that is in use; None for plain torch."""
available = level is not None
