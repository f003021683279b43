"""States that a loss of power may leave of files, while a program in this process writes them.

What was flushed to the disk (``fsync``) stays. Of the sectors written since, any subset may be on
the disk; missing ones are zeros, and the file may have any length. Of the changes of names since
their folder was flushed, any subset may have happened.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

SECTOR = 512


class Disk:
    """Folder on a disk that may lose its power."""

    def __init__(self, root: Path) -> None:
        """Follow ``root``, in which there is no file yet."""
        self._root = str(root)
        self._held: dict[int, int] = {}
        """A descriptor of each file by its inode, whose number then is not used again."""
        self._flushed: dict[int, bytes] = {}
        self._names: dict[str, int] = {}
        """Inodes by flushed names."""
        self._changes: list[tuple[str, int | None]] = []
        """Names changed since: a name, and its new inode or none."""
        self._is_paused = False

    @contextmanager
    def recording(self, on_moment: Callable[[], None]) -> Iterator[None]:
        """Follow all calls of ``os``; ``on_moment`` is called after each that changes something."""
        real = {name: getattr(os, name) for name in ("open", "write", "ftruncate", "fsync")}
        real |= {name: getattr(os, name) for name in ("link", "unlink", "replace")}

        def wrap(name: str, after: Callable[..., None]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                result = real[name](*arguments, **options)
                if self._is_paused:
                    return result
                if name == "open":
                    after(result, *arguments)
                else:
                    after(*arguments)
                if name != "open" or arguments[1] & os.O_CREAT:
                    on_moment()
                return result

            return call

        try:
            os.open = wrap("open", self._open)
            os.write = wrap("write", lambda *arguments: None)
            os.ftruncate = wrap("ftruncate", lambda *arguments: None)
            os.fsync = wrap("fsync", self._fsync)
            os.link = wrap("link", lambda old, new: self._name(new, self._inode(old)))
            os.unlink = wrap("unlink", lambda name: self._name(name, None))
            os.replace = wrap("replace", self._replace)
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Ignore calls within the block, which are not the program's."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def leave(self, target: Path, random: Random) -> None:
        """Write one of the states that a loss of power may leave now to the folder ``target``."""
        names = dict(self._names)
        likelihood = random.choice((0.0, 0.5, 1.0))
        for name, inode in self._changes:
            if random.random() < likelihood:
                _set(names, name, inode)
        for name, inode in names.items():
            path = target / os.path.relpath(name, self._root)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_mixed(self._flushed[inode], self._read(inode), random))

    def close(self) -> None:
        """Forget all."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def _open(self, descriptor: int, path: str | Path, flags: int, *_: int) -> None:
        status = os.fstat(descriptor)
        inside = str(path).startswith(self._root) and stat.S_ISREG(status.st_mode)
        if inside and status.st_ino not in self._held:
            self._held[status.st_ino] = os.dup(descriptor)
            self._flushed[status.st_ino] = b""
            self._name(path, status.st_ino)

    def _fsync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISDIR(status.st_mode):
            self._flushed[status.st_ino] = self._read(status.st_ino)
            return
        kept = []
        for name, inode in self._changes:
            if os.path.samestat(Path(name).parent.stat(), status):
                _set(self._names, name, inode)
            else:
                kept.append((name, inode))
        self._changes = kept

    def _replace(self, old: str | Path, new: str | Path) -> None:
        self._name(new, self._inode(new))
        self._name(old, None)

    def _name(self, name: str | Path, inode: int | None) -> None:
        self._changes.append((str(name), inode))

    def _inode(self, path: str | Path) -> int:
        return Path(path).stat().st_ino

    def _read(self, inode: int) -> bytes:
        descriptor = self._held[inode]
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _set(names: dict[str, int], name: str, inode: int | None) -> None:
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode


def _mixed(old: bytes, new: bytes, random: Random) -> bytes:
    """Return ``old`` with some sectors as in ``new``, and a length between theirs."""
    shorter, longer = sorted((len(old), len(new)))
    result = bytearray(old.ljust(longer, b"\0"))
    likelihood, first = random.choice((0.0, 0.5, 1.0)), 0
    if random.random() < 0.5:  # the last ones alone
        likelihood, first = 1.0, random.randint(shorter, longer)
    for start in range(0, len(new), SECTOR):
        if start >= first and random.random() < likelihood:
            sector = new[start : start + SECTOR]
            result[start : start + len(sector)] = sector
    if new.startswith(old):  # a sector appended to keeps the bytes that were flushed
        result[: len(old)] = old
    return bytes(result[: random.choice((shorter, longer, random.randint(shorter, longer)))])
