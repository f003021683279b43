"""The C library: loading, compatibility check, and choice of the instruction set ("level").

The library is loaded, and the environment read, at first use, not at import.
"""

import ctypes
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch  # noqa: F401 - before the library, which then shares its OpenMP

from llama_chat.errors import LlamaChatError, UsageError
from llama_chat.kernels.abi import ABI, MAX_EXACT_BATCH, PANEL, STRUCTS

LIBRARY = Path(__file__).with_name("_packed.so")
"""Shared library that the build writes."""

VARIABLE = "LLAMA_CHAT_KERNEL"
"""Environment variable that forces a level, or ``torch``."""

TORCH = "torch"
"""Name of the fallback without C."""

_MAX_DESCRIPTION = 4096
"""Size in bytes of the buffer for ``describe_library`` of ``library.c``."""

_POINTER, _INT, _INT64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64

SIGNATURES: dict[str, tuple[Any, Sequence[Any]]] = {
    "watch_mapping": (None, (_POINTER, _INT64)),
    "unwatch_mapping": (None, (_POINTER, _INT64)),
    "has_lost_pages": (_INT, ()),
    "packed_bytes": (_INT64, (_POINTER,)),
    "pack_panels": (None, (_POINTER, _POINTER, _POINTER)),
    "pack_blocks": (_INT, (_POINTER, _POINTER, _POINTER)),
    "dequantize_rows": (None, (_POINTER, _POINTER, _INT64, _POINTER, _INT, _INT, _INT)),
    "multiply_scratch_bytes": (_INT64, (_POINTER, _INT64)),
    "multiply": (None, (_POINTER, _POINTER, _INT, _POINTER, _INT, _POINTER, _INT, _INT)),
    "likeliest_scratch_bytes": (_INT64, (_INT64, _INT64, _INT)),
    "find_likeliest": (
        None,
        (
            *(_POINTER, _INT64, _INT64, _INT64, ctypes.c_float),
            *(_POINTER, _POINTER, _POINTER, _POINTER, _INT, _INT),
        ),
    ),
    "forward_scratch_bytes": (_INT64, (_POINTER, _POINTER, _INT, _INT, _INT, _INT)),
    "forward": (
        None,
        (
            *(_POINTER, _POINTER, _INT, _POINTER, _INT64, _INT64),
            *(_POINTER, _POINTER, _INT, _POINTER, _POINTER, _INT, _INT),
        ),
    ),
}
"""Result and argument types of the functions in C."""


@cache
def library() -> ctypes.CDLL:
    """Load and check the library.

    Raises:
        LlamaChatError: if it cannot be loaded, or was built from other sources.
        RuntimeError: if it was not built.
    """
    if not LIBRARY.exists():
        raise RuntimeError("the C kernels were not built")
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        reason = str(error).removeprefix(f"{LIBRARY}: ")
        raise _refusal(f"cannot be loaded ({reason})") from error
    _check(loaded)
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def is_loaded() -> bool:
    """True if the library was needed before."""
    return library.cache_info().currsize > 0


@cache
def describe() -> dict[str, Any]:
    """Return the description of the library; see ``describe_library`` in ``library.c``."""
    description: dict[str, Any] = _describe(library())
    return description


def is_available() -> bool:
    """True if packed weights are multiplied in C: it was built, and torch is not forced."""
    return level_name() != TORCH


def is_portable() -> bool:
    """True if the level in use is made for no instruction set, and may be slower than torch."""
    return is_available() and level_name() == supported_levels()[0]


def has_matrix_units() -> bool:
    """True if the level in use has tiles for prompts (AMX)."""
    return level_name() == "amx"


def multiplies_floats() -> bool:
    """True if floats are multiplied in C too; portable C would be slower than torch."""
    return is_available() and not is_portable()


@cache
def level_name() -> str:
    """Return the level in use: the one that the environment forces, or the fastest; or ``torch``.

    Raises:
        UsageError: if the environment forces one that this processor does not support.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == TORCH:
        return TORCH
    known = [TORCH, *supported_levels()]
    if wanted and wanted not in known:
        names = ", ".join([*known[1:], TORCH])
        raise UsageError(VARIABLE, f"{wanted[:40]!r} is not here", f"give one of {names}")
    fast = [name for name in known[1:] if not describe()["levels"][name]["is_slow"]]
    return wanted or [TORCH, *fast][-1]


def supported_levels() -> tuple[str, ...]:
    """List the levels that this processor supports; none if nothing was built.

    Each has the instructions of those before it, and is faster unless its ``is_slow`` is true.
    """
    if not LIBRARY.exists():
        return ()
    levels = describe()["levels"].items()
    return tuple(name for name, level in levels if level["is_supported"])


def level_number(name: str | None = None) -> int:
    """Return the number of a level in C; None for the one in use."""
    return list(describe()["levels"]).index(level_name() if name is None else name)


def _check(loaded: ctypes.CDLL) -> None:
    """Check that a library has the structs and constants of ``abi.py``.

    Raises:
        LlamaChatError: if they differ. Only ``describe_library`` is called before.
    """
    try:
        description = _describe(loaded)
        found = {**description, **description["structs"]}
        levels = description["levels"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _refusal("built from other sources (they do not describe themselves)") from error
    expected = {"abi": ABI, "panel": PANEL, "max_exact_batch": MAX_EXACT_BATCH}
    expected |= {name: ctypes.sizeof(struct) for name, struct in STRUCTS.items()}
    for name, value in expected.items():
        if found.get(name) != value:
            raise _refusal(f"built from other sources ({name} is {found.get(name)}, not {value})")
    if not levels:
        raise _refusal("built from other sources (they have no level)")


def _describe(loaded: ctypes.CDLL) -> Any:
    """Read the description of a library, without checking it."""
    function = loaded.describe_library
    function.restype, function.argtypes = None, (ctypes.c_char_p, _INT64)
    text = ctypes.create_string_buffer(_MAX_DESCRIPTION)
    function(text, len(text))
    return json.loads(text.value)


def _refusal(why: str) -> LlamaChatError:
    return LlamaChatError(f"C kernels {str(LIBRARY)!r}", why, "build them again with make chat")
