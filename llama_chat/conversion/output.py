"""Atomic creation of a file or folder."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llama_chat.conversion.target import GGUF, SAFETENSORS, WRITTEN_FILE, Target
from llama_chat.durable_files import sync_folder, temporary_name
from llama_chat.errors import SaveError, UsageError, reason
from llama_chat.files import read_start
from llama_chat.library.layouts import GGUF_MAGIC


def check_free(target: Target, source: Path, *, force: bool) -> None:
    """Check that the place of ``target`` is free, or with ``force`` that it may be replaced.

    A GGUF file may replace a GGUF file; a folder may replace one that is empty, or has the files of
    a conversion alone. So no other files are deleted.

    Raises:
        UsageError: if it is taken.
        SaveError: if its folder does not exist.
    """
    path, what = target.path, repr(str(target.path))
    if not os.path.lexists(path.parent):
        raise SaveError(what, "its folder does not exist", f"create {str(path.parent)!r}")
    if not os.path.lexists(path):
        return
    if target.format == GGUF and not path.is_file():
        raise UsageError(what, "it is no file, as a GGUF model is", "choose another name")
    if target.format == SAFETENSORS and not path.is_dir():
        raise UsageError(what, "it is no folder, as a safetensors model is", "choose another name")
    if not force:
        raise UsageError(what, "it is there already", "choose another name, or give --force")
    if source.resolve().is_relative_to(path.resolve()):
        raise UsageError(what, "the model itself is there", "choose another name")
    if path.is_file():
        if read_start(path, len(GGUF_MAGIC)) not in (b"", GGUF_MAGIC):
            raise UsageError(what, "it is a file of another kind", "choose another name")
        return
    try:
        names = [entry.name for entry in path.iterdir()]
    except OSError as error:
        raise UsageError(what, reason(error), "choose another name") from None
    others = [name for name in names if not WRITTEN_FILE.fullmatch(name)]
    has_weights = any(name.endswith(".safetensors") for name in names)
    if path.is_symlink() or others or (names and not has_weights):
        found = f", such as {others[0]!r}" if others else ""
        raise UsageError(what, f"it is a folder of other files{found}", "choose another name")


def check_space(target: Path, n_bytes: int) -> None:
    """Check that ``n_bytes`` fit on the disk.

    Raises:
        SaveError: if they do not, or the folder does not exist.
    """
    try:
        free = shutil.disk_usage(target.parent).free
    except OSError as error:
        raise SaveError.at(target, error) from None
    if n_bytes > free:
        raise SaveError.at(target, f"it takes {n_bytes:,} bytes and {free:,} are free")


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``, and rename it to ``target`` at the end.

    After an error the temporary file or folder is removed, and ``target`` is unchanged.

    Raises:
        SaveError: if it cannot be written.
    """
    temporary = temporary_name(target)
    try:
        yield temporary
        _sync(temporary)
        _replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise SaveError.at(target, _cause(error)) from None
    finally:
        _remove(temporary)


def _replace(made: Path, target: Path) -> None:
    """Rename ``made`` to ``target``; a folder cannot be replaced in one step.

    The system refuses to replace a folder by a file, and a file by a folder.
    """
    if not (made.is_dir() and target.is_dir()):
        made.replace(target)
        return
    old = temporary_name(target)
    target.rename(old)
    try:
        made.rename(target)
    except BaseException:
        old.rename(target)
        raise
    _remove(old)


def _sync(path: Path) -> None:
    """Flush a file, or a folder and all in it, to the disk (``fsync``)."""
    if path.is_dir():
        for entry in path.iterdir():
            _sync(entry)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with suppress(OSError):  # if it could not be created, there is nothing to remove
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _cause(error: OSError) -> OSError | str:
    # NumPy sets no errno after a short write.
    return error if error.strerror else "no space left for all of it"
