"""The Unix socket of the server, and the lock that says whose it is."""

import errno
import fcntl
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llama_chat.durable_files import is_at, open_private
from llama_chat.errors import SaveError, UsageError, reason
from llama_chat.files import private_folder, runtime_home

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
"""Names of this machine for itself."""

_MAX_PATH_BYTES = 107 if sys.platform == "linux" else 103
"""Longest path of a socket file."""

_GLANCE_S = 0.02
"""Time after which ``holder_of`` in another process has released the lock."""


def default_socket() -> Path:
    """Return the path of the socket where no other is given."""
    return runtime_home() / "server.sock"


@dataclass(frozen=True, slots=True)
class Holder:
    """A server that has a Unix socket."""

    pid: int | None
    """Its process; None if the lock does not say."""
    listens: bool
    """False while it still loads its model."""


class SocketFile:
    """A Unix socket that this process alone may listen on, for the time of a ``with`` block.

    A lock beside it says so, which tells a running server from one that has died. It also holds
    the id of the process, and if it listens yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    def __enter__(self) -> "SocketFile":
        """Take the lock.

        Raises:
            UsageError: if a server has it, or it cannot be made.
        """
        try:
            _check_length(self.path)
            if self.path == default_socket():  # the folder of another is the user's
                private_folder(self.path.parent)
            self._lock = _open_locked(_lock_of(self.path))
        except BlockingIOError:
            raise _is_taken(self.path) from None
        except (SaveError, OSError) as error:
            raise self._refusal(error) from None
        self._note("loads")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            _lock_of(self.path).unlink()  # while it is locked: it is no other server's
        os.close(self._lock)

    @contextmanager
    def listening(self) -> Iterator[socket.socket]:
        """Listen on the file, which only its owner may open; it is gone afterwards.

        Raises:
            UsageError: if it cannot be made.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                _remove_socket(self.path)
                mask = os.umask(0o177)
                try:
                    listener.bind(str(self.path))
                finally:
                    os.umask(mask)
            except OSError as error:
                raise self._refusal(error) from None
            listener.listen(128)
            self._note("listens")
            try:
                yield listener
            finally:
                with suppress(OSError):
                    self.path.unlink()

    def _note(self, state: str) -> None:
        """Write into the lock, in one call, what ``holder_of`` reads."""
        with suppress(OSError):  # on a full disk clients take it for one that loads
            os.pwrite(self._lock, f"{os.getpid():<20} {state:<8}\n".encode(), 0)

    def _refusal(self, error: OSError | SaveError) -> UsageError:
        why = error.why if isinstance(error, SaveError) else reason(error)
        return UsageError(f"socket {str(self.path)!r}", why, "choose another with --socket")


def holder_of(path: Path) -> Holder | None:
    """Return the server that has a Unix socket; None if there is none."""
    try:
        lock = os.open(_lock_of(path), os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        pid, _, state = os.pread(lock, 100, 0).decode("ascii", "replace").partition(" ")
        return Holder(int(pid) if pid.isdecimal() else None, state.strip() == "listens")
    finally:
        os.close(lock)
    return None


def _open_locked(path: Path) -> int:
    """Open and lock a file, which is made if there is none, and return its descriptor.

    Raises:
        BlockingIOError: if a server has locked it.
        OSError: if that fails.
    """
    while True:
        descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
        try:
            _lock(descriptor)
            if is_at(descriptor, path):
                return descriptor
        except BaseException:  # Ctrl-C too
            os.close(descriptor)
            raise
        os.close(descriptor)  # the server that had it has removed it


def _lock(descriptor: int) -> None:
    """Lock a file, at the latest when ``holder_of`` in another process has let go of it."""
    for _ in range(3):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_GLANCE_S)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _check_length(path: Path) -> None:
    """Check that a socket file may have this path, which no call but ``bind`` does.

    Raises:
        OSError: if it is too long.
    """
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def _is_taken(path: Path) -> UsageError:
    why = "a server is running there already"
    advice = "use it, end it with serve stop, or --socket"
    return UsageError(f"socket {str(path)!r}", why, advice)


def _remove_socket(path: Path) -> None:
    """Remove the Unix socket of a server that has died.

    Raises:
        OSError: if it is another file, or cannot be removed.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "a file that is no socket is there")
        path.unlink()


@contextmanager
def listening_on_port(host: str, port: int) -> Iterator[socket.socket]:
    """Listen on a TCP port; 0 is any that is free.

    Raises:
        UsageError: if it cannot be had.
    """
    try:
        listener = _listen(host.removeprefix("[").removesuffix("]"), port)
    except (socket.gaierror, UnicodeError) as error:
        why = reason(error) if isinstance(error, OSError) else "not a name of a machine"
        raise UsageError(f"--host {host}", why, "give an address of this machine") from None
    except (OSError, OverflowError) as error:
        why = reason(error) if isinstance(error, OSError) else "not a port"
        raise UsageError(f"port {port} of {host}", why, "choose another with --port") from None
    with listener:
        yield listener


def _listen(host: str, port: int) -> socket.socket:
    """Listen at the first address of a host that this machine has.

    Raises:
        OSError, OverflowError, UnicodeError: if that fails.
    """
    lacks = OSError("no address")
    for family, kind, number, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        try:
            with ExitStack() as stack:
                listener = stack.enter_context(socket.socket(family, kind, number))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(128)
                stack.pop_all()
                return listener
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            lacks = error
    raise lacks
