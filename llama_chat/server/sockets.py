"""The socket file of the server, and the lock that says whose it is."""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llama_chat.durable_files import open_private
from llama_chat.errors import SaveError, UsageError, reason
from llama_chat.files import private_folder, runtime_home


def default_socket() -> Path:
    """Return the path of the socket where no other is given."""
    return runtime_home() / "server.sock"


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen on a socket file that only its owner may open; it is gone afterwards.

    A lock beside it tells a running server from one that has died, whose file is replaced.

    Raises:
        UsageError: if a server has it, or it cannot be made.
    """
    what = f"socket {str(path)!r}"
    try:
        private_folder(path.parent)
        lock = open_private(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT)
    except SaveError as error:
        raise UsageError(what, error.why, "choose another with --socket") from None
    except OSError as error:
        raise UsageError(what, reason(error), "choose another with --socket") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            why = "a server is running there already"
            raise UsageError(what, why, "use it, end it with serve stop, or --socket") from None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                _remove_socket(path)
                mask = os.umask(0o177)
                try:
                    listener.bind(str(path))
                finally:
                    os.umask(mask)
            except OSError as error:
                raise UsageError(what, reason(error), "choose another with --socket") from None
            listener.listen(128)
            try:
                yield listener
            finally:
                with suppress(OSError):
                    path.unlink()
    finally:
        os.close(lock)


def _remove_socket(path: Path) -> None:
    """Remove the socket file of a server that has died.

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
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, OverflowError) as error:
        why = reason(error) if isinstance(error, OSError) else "not a port"
        raise UsageError(f"port {port} of {host}", why, "choose another with --port") from None
    with listener:
        yield listener
