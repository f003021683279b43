"""Mapped files whose contents are lost while they are in use; see ``mapped_files.c``.

Without the C library such a file ends the program, with a SIGBUS.
"""

import ctypes
import mmap
import threading

from llama_chat.errors import LlamaChatError, ModelError
from llama_chat.kernels import native

_lock = threading.Lock()


def watch(mapped: mmap.mmap) -> None:
    """Let a loss of pages of a mapping be noticed by ``check``."""
    try:
        library = native.library()
    except (LlamaChatError, RuntimeError):
        return
    first = ctypes.c_char.from_buffer(mapped)
    with _lock:
        library.watch_mapping(ctypes.addressof(first), len(mapped))


def check() -> None:
    """Check that all that was read of watched mappings was there.

    Raises:
        ModelError: if it was not; what was computed from it is wrong.
    """
    if native.is_loaded() and native.library().has_lost_pages():
        why = "one of its files was cut short, or cannot be read any more"
        raise ModelError("model", why, "restore the file, and start again")
