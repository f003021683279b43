"""Append-only file that only one program at a time may open."""

import errno
import fcntl
import os
import stat
import time
from pathlib import Path
from typing import BinaryIO

from llama_chat.durable_files import is_at, open_private

_POLL_S = 0.002


class LockedFile:
    """Append-only file that is locked while it is open.

    The system releases the lock when the process ends, whatever ends it. File systems without
    locks are accepted.
    """

    def __init__(
        self, path: Path, *, create: bool = False, is_any: bool = False, timeout_s: float = 0
    ) -> None:
        """Open a file, or with ``create`` create one; only its owner may read it from then on.

        Args:
            path: the file.
            create: True to create it.
            is_any: True to accept links, and files that are not regular.
            timeout_s: longest time to wait for another program to unlock it.

        Raises:
            BlockingIOError: if another program has locked it.
            FileExistsError: with ``create``, if the name is taken.
            OSError: if it cannot be opened for reading and writing, or is a link or no regular
                file, unless ``is_any``.
        """
        # O_NONBLOCK: opening a named pipe must not block.
        flags = os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | (0 if is_any else os.O_NOFOLLOW)
        flags |= os.O_CREAT | os.O_EXCL if create else 0
        self._descriptor = -1
        self._is_durable = True
        while self._descriptor < 0:
            self._descriptor = open_private(path, flags)
            try:
                if not (is_any or stat.S_ISREG(os.fstat(self._descriptor).st_mode)):
                    raise OSError(errno.EINVAL, "not a file")
                self._lock(time.monotonic() + timeout_s)
                if not create and not self.is_at(path):
                    self.close()  # another program has replaced it in between
            except BaseException:
                self.close()
                raise

    def _lock(self, until: float) -> None:
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
                time.sleep(_POLL_S)
            except OSError:  # a file system without locks
                return
            else:
                return

    def is_at(self, path: Path) -> bool:
        """True if the file is open and still the one at ``path``."""
        return is_at(self._descriptor, path)

    def reader(self) -> BinaryIO:
        """Return a reader at the beginning of the file."""
        reader = open(self._descriptor, "rb", closefd=False)  # noqa: SIM115 - the caller closes it
        reader.seek(0)
        return reader

    def append(self, data: bytes, *, durable: bool) -> None:
        """Append ``data`` completely or not at all.

        What was appended before is durable first, so that only the last append can be lost.

        Args:
            data: bytes to append.
            durable: True to wait until they are on the disk (``fsync``).

        Raises:
            OSError: if it cannot be written. If a partial write cannot be truncated either, the
                file is closed, so that nothing is appended after it.
        """
        size = os.fstat(self._descriptor).st_size
        try:
            if not self._is_durable:
                os.fsync(self._descriptor)
            self._is_durable = durable
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            if durable:
                os.fsync(self._descriptor)
        except BaseException:  # Ctrl-C too
            try:
                self.truncate(size)
            except OSError:
                self.close()
            raise

    def truncate(self, size: int) -> None:
        """Truncate the file to ``size`` bytes."""
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        """Close and unlock the file; does nothing if it is closed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
