"""Files that appear whole or not at all, survive a loss of power, and are closed to others."""

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_DAY_S = 86_400


def open_private(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a file as ``os.open`` does; one that is ours gets ``mode``, whatever the umask is."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            with suppress(PermissionError):  # a file system without modes
                os.fchmod(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_at(descriptor: int, path: Path) -> bool:
    """True if an open file is still the one at ``path``."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable (``fsync``), where the file system can do that."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def temporary_file(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    """Write a file beside ``path``, durably; it is removed at the end unless it was renamed."""
    temporary = temporary_name(path)
    try:
        descriptor = open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


def publish(temporary: Path, path: Path) -> None:
    """Give a complete file its name, durably, unless that is taken.

    Raises:
        FileExistsError: if it is taken, even by a dangling link.
        OSError: if it cannot be given.
    """
    try:
        os.link(temporary, path, follow_symlinks=False)  # unlike a rename, never overwrites
    except FileExistsError:
        raise
    except OSError:
        if not temporary.exists() or os.path.lexists(path):
            raise
        temporary.replace(path)  # a file system without links
    with suppress(OSError):  # it has its name already
        temporary.unlink()
    sync_folder(path.parent)


def temporary_name(path: Path) -> Path:
    """Return a new name beside ``path``; not derived from its name, which may be of full length."""
    return path.parent / f".{os.urandom(8).hex()}"


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a kill left in ``folder``, once they are a day old."""
    with suppress(OSError):
        for path in folder.iterdir():
            age_s = time.time() - path.lstat().st_mtime
            if re.fullmatch(r"\.[0-9a-f]{16}", path.name) and age_s > _DAY_S:
                path.unlink()
