"""A file or folder that appears whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llama_chat.errors import SaveError, UsageError


def check_free(target: Path, source: Path, *, force: bool) -> None:
    """Refuse a name that is taken.

    With ``force`` a file may be taken by a file, and a folder by a folder if that is empty or a
    model too: a mistyped name must not cost a person their own files.

    Raises:
        UsageError: if it is.
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
            raise UsageError(what, "it is a folder of other things", "choose another name")


def check_space(target: Path, n_bytes: int) -> None:
    """Refuse what does not fit on the disk.

    Raises:
        SaveError: if so many bytes do not, or there is no such folder.
    """
    try:
        free = shutil.disk_usage(target.parent).free
    except OSError as error:
        raise SaveError.at(target, error) from None
    if n_bytes > free:
        raise SaveError.at(target, f"it takes {n_bytes:,} bytes and {free:,} are free")


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A path beside ``target`` to make a file or folder at, which gets its name at the end.

    If anything goes wrong, what was made is removed, and what had the name still has it.

    Raises:
        SaveError: if it cannot be written.
    """
    temporary = _beside(target)
    try:
        yield temporary
        _sync(temporary)
        _take_place(temporary, target)
        _sync(target.parent, deep=False)
    except OSError as error:
        raise SaveError.at(target, _cause(error)) from None
    finally:
        _remove(temporary)


def _take_place(made: Path, target: Path) -> None:
    """Give what was made its name; only a file replaces another in one step."""
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
    # Not made from the name of the target, which may be as long as a name can be.
    return target.parent / f".{os.urandom(8).hex()}"


def _sync(path: Path, *, deep: bool = True) -> None:
    """Let a file, or a folder and all in it, reach the disk."""
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
        with suppress(OSError):  # where nothing can be made, there is nothing to remove
            path.unlink(missing_ok=True)


def _cause(error: OSError) -> OSError | str:
    # NumPy gives no number when a file takes less than all.
    return error if error.strerror else "no space left for all of it"
