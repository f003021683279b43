"""Atomic creation of a file or folder."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llama_chat.errors import SaveError, UsageError


def check_free(target: Path, source: Path, *, force: bool) -> None:
    """Check that ``target`` is free, or with ``force`` that it may be replaced.

    A file may be replaced; a folder only if it is empty or has a ``config.json``, so that a
    mistyped name deletes no folder of other files.

    Raises:
        UsageError: if it is taken.
    """
    what = repr(str(target))
    if not os.path.lexists(target):
        return
    if not force:
        raise UsageError(what, "it is there already", "choose another name, or give --force")
    if source.resolve().is_relative_to(target.resolve()):
        raise UsageError(what, "the model itself is there", "choose another name")
    if target.is_dir():
        ours = (target / "config.json").is_file() or not any(target.iterdir())
        if target.is_symlink() or not ours:
            raise UsageError(what, "it is a folder of other files", "choose another name")


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
    temporary = _beside(target)
    try:
        yield temporary
        _sync(temporary)
        _replace(temporary, target)
        _sync(target.parent, deep=False)
    except OSError as error:
        raise SaveError.at(target, _cause(error)) from None
    finally:
        _remove(temporary)


def _replace(made: Path, target: Path) -> None:
    """Rename ``made`` to ``target``; a folder cannot be replaced in one step."""
    if not target.is_dir():
        made.replace(target)
        return
    old = _beside(target)
    target.rename(old)
    try:
        made.rename(target)
    except BaseException:
        old.rename(target)
        raise
    _remove(old)


def _beside(target: Path) -> Path:
    # Not derived from the name of the target, which may have the maximum length.
    return target.parent / f".{os.urandom(8).hex()}"


def _sync(path: Path, *, deep: bool = True) -> None:
    """Flush a file, or with ``deep`` a folder and all in it, to the disk (``fsync``)."""
    if deep and path.is_dir():
        for entry in path.iterdir():
            _sync(entry)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # if it could not be created, there is nothing to remove
            path.unlink(missing_ok=True)


def _cause(error: OSError) -> OSError | str:
    # NumPy sets no errno after a short write.
    return error if error.strerror else "no space left for all of it"
