"""A file that one program at a time adds to."""

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import BinaryIO


class LockedFile:
    """A file that is locked while it is open, and only ever added to.

    The lock goes with the process, whatever ends it.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Open a file, or with ``create`` make one that nobody else may read.

        Raises:
            BlockingIOError: if another program has locked it.
            FileExistsError: if it is to be made and something of that name is there.
            OSError: if it cannot be opened to read and write; a link is not followed.
        """
        # A pipe of that name is not waited for.
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._descriptor = os.open(path, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            self.close()
            raise OSError(errno.EINVAL, "not a file")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise
        except OSError:  # a file system without locks
            pass

    def is_at(self, path: Path) -> bool:
        """Whether it is open, and ``path`` is this file: somebody may have put another there."""
        try:
            return os.path.samestat(path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def reader(self) -> BinaryIO:
        """The same file for reading, from its beginning."""
        reader = open(self._descriptor, "rb", closefd=False)  # noqa: SIM115 - the caller closes it
        reader.seek(0)
        return reader

    def append(self, data: bytes, *, durable: bool) -> None:
        """Add ``data``, all of it or nothing.

        Args:
            data: what to add.
            durable: whether to wait until it is on the disk itself.

        Raises:
            OSError: if that cannot be done. If a part of it is there and cannot be taken back,
                the file is closed, so that nothing follows it.
        """
        size = os.fstat(self._descriptor).st_size
        try:
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
        """Keep the first ``size`` bytes."""
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        """Close and unlock it; once more does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
