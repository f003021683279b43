"""Mapped files whose contents are lost while they are in use; see ``mapped_files.c``.

Without the C library such a file ends the program, with a SIGBUS.
"""

import ctypes
import mmap
import threading
import weakref

from llama_chat.errors import LlamaChatError, ModelError
from llama_chat.kernels import native

_lock = threading.RLock()
"""Reentrant, since a mapping may end wherever Python collects garbage."""


def watch(mapped: mmap.mmap) -> None:
    """Let a loss of pages of a mapping be noticed by ``check``, until it ends."""
    try:
        library = native.library()
    except (LlamaChatError, RuntimeError):
        return
    place = ctypes.addressof(ctypes.c_char.from_buffer(mapped)), len(mapped)
    with _lock:
        library.watch_mapping(*place)
    weakref.finalize(mapped, _unwatch, *place).atexit = False


def _unwatch(address: int, n_bytes: int) -> None:
    """Forget a mapping that has ended; one that has taken its place already may be as long."""
    with _lock:
        native.library().unwatch_mapping(address, n_bytes)


def check() -> None:
    """Check that all that was read of watched mappings was there.

    Raises:
        ModelError: if it was not; what was computed from it is wrong.
    """
    if native.is_loaded() and native.library().has_lost_pages():
        why = "one of its files was cut short, or cannot be read any more"
        raise ModelError("model", why, "restore the file, and start again")
