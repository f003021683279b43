"""Folders of the program; reading of text files, and atomic and private writing."""

import codecs
import errno
import os
import pwd
import select
import stat
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from llama_chat.durable_files import open_private, publish, sync_folder, temporary_file
from llama_chat.errors import (
    ModelError,
    PromptTooLongError,
    SaveError,
    UsageError,
    reason,
)

_PACKAGE = Path(__file__).resolve().parent

MAX_PROMPT_BYTES = 64 * 2**20
"""Size limit of a prompt, longer than any context; it also ends an endless input."""

_POLL_S = 0.5
"""Longest time until a signal is noticed while a pipe is waited for."""

_BYTES_OF_A_TOKEN = 4
"""Bytes of a token of usual text."""

_NOT_A_FILE = "it is not a file"

_LATEST = 253_400_000_000
"""Latest time in seconds since 1970: ``datetime`` ends at the year 9999, file times do not."""


def _xdg(variable: str, below_home: str) -> Path:
    """Return our folder below an XDG base folder; relative values are ignored, as XDG requires."""
    base = Path(os.environ.get(variable, ""))
    if base.is_absolute():
        return base / "llama-chat"
    home = Path(os.environ.get("HOME", ""))
    if not home.is_absolute():
        try:
            home = Path(pwd.getpwuid(os.getuid()).pw_dir)
        except KeyError:
            raise UsageError("home folder", "it is not known", f"set HOME or {variable}") from None
    return home / below_home / "llama-chat"


def config_home() -> Path:
    """Return the folder of settings and the user's own prompt files."""
    return _xdg("XDG_CONFIG_HOME", ".config")


def data_home() -> Path:
    """Return the folder of models and conversations."""
    return _xdg("XDG_DATA_HOME", ".local/share")


def cache_home() -> Path:
    """Return the folder of what can be computed again."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def state_home() -> Path:
    """Return the folder of the input history."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def runtime_home() -> Path:
    """Return the folder of the server's socket: that of the session, or one of the user's own."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    return runtime / "llama-chat" if runtime.is_absolute() else state_home()


def expand_user(path: str) -> Path:
    """Expand ``~`` and ``~name`` in ``path``; an unknown name stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def resource(name: str) -> Path:
    """Return the path of a file or folder of the program: ``prompts`` or ``config.toml``.

    It is in the installed package, or at the top of the source tree.
    """
    installed = _PACKAGE / name
    return installed if installed.exists() else _PACKAGE.parent / name


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read; a folder, pipe, socket or device is refused at once.

    Raises:
        OSError: if it is not a regular file, or cannot be opened.
        ValueError: if the path holds a NUL.
    """
    try:
        # O_NONBLOCK: opening a named pipe would wait for its writer. The descriptor is checked,
        # not the path, which may be replaced in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise OSError(errno.ENXIO, _NOT_A_FILE) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, _NOT_A_FILE)
    return os.fdopen(descriptor, "rb")


def read_start(path: Path, n_bytes: int) -> bytes:
    """Read the first bytes of a file; none if it is no regular one or cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(n_bytes)
    except (OSError, ValueError):
        return b""


def read_whole(path: Path, what: str, advice: str, max_bytes: int) -> bytes:
    """Read a file of a model.

    Raises:
        ModelError: about ``what``, if it cannot be read, or with ``advice`` if it is missing or
            larger than ``max_bytes``.
    """
    try:
        with open_regular(path) as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ModelError(what, "missing", advice) from None
    except (OSError, ValueError) as error:
        raise ModelError(what, reason(error), "check it") from None
    if len(data) > max_bytes:
        raise ModelError(what, f"larger than {max_bytes >> 20} MiB", advice)
    return data


def read_text(
    path: Path,
    what: str,
    advice: str,
    max_bytes: int,
    *,
    pipes: bool = True,
    must_fit: bool = False,
) -> str:
    """Read a text file, without a byte-order mark; line ends stay as they are.

    Args:
        path: the file.
        what: what it is, for errors.
        advice: what to do if it cannot be opened.
        max_bytes: its size limit.
        pipes: True to read a pipe too, such as the ``<(…)`` of a shell, until its writer closes it;
            only a signal whose handler raises ends that wait.
        must_fit: True for a text that must fit in a context.

    Raises:
        UsageError: about ``what``, if it cannot be read, is too large, binary or not UTF-8.
        PromptTooLongError: if it ``must_fit``, and is too large.
    """
    try:
        # Before it is opened: opening a pipe waits for its writer, and opening a device may act.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode) and not (pipes and stat.S_ISFIFO(mode)):
            raise UsageError(what, "not a file", "name a text file")
        with path.open("rb") as file:
            if stat.S_ISFIFO(mode):
                _wait_for_data(file)
            return decode_text(file, what, max_bytes, must_fit=must_fit)
    except (OSError, ValueError) as error:
        raise UsageError(what, reason(error), advice) from None


def _wait_for_data(pipe: BinaryIO) -> None:
    """Wait until a pipe has data or was closed; a signal that comes just before ends that too.

    One that comes between the last check of Python and a call that reads would be noticed only when
    that returns.
    """
    while not select.select([pipe], [], [], _POLL_S)[0]:
        pass


def decode_text(stream: BinaryIO, what: str, max_bytes: int, *, must_fit: bool = False) -> str:
    """Read ``stream`` to its end as UTF-8 text, without a byte-order mark.

    Raises:
        UsageError: about ``what``, if it cannot be read, is too large, binary or not UTF-8.
        PromptTooLongError: if it ``must_fit``, and is too large.
    """
    try:
        data = stream.read(max_bytes + 1)
    except OSError as error:
        raise UsageError(what, reason(error), "give UTF-8 text") from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(what, "it is UTF-16, not UTF-8", "save it as UTF-8 text")
    if b"\0" in data:
        raise UsageError(what, f"it is {_binary_kind(data) or 'binary'}", "give UTF-8 text")
    if len(data) > max_bytes:
        raise prompt_too_large(what) if must_fit else _too_large(what, max_bytes)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if kind := _binary_kind(data):
            raise UsageError(what, f"it is {kind}", "give UTF-8 text") from None
        where = f"byte {error.start} is not UTF-8"
        raise UsageError(what, where, "save it as UTF-8 text") from None


def _binary_kind(data: bytes) -> str:
    """Name what people take for a text now and then, by its first bytes; empty if it is another."""
    kinds = {
        "an image": (b"\x89PNG", b"\xff\xd8\xff", b"GIF8"),
        "a PDF": (b"%PDF",),
        "an archive or an office document": (b"PK\x03\x04",),
    }
    return next((kind for kind, starts in kinds.items() if data.startswith(starts)), "")


def _too_large(what: str, max_bytes: int) -> UsageError:
    limit = f"{max_bytes >> 20} MiB" if max_bytes >= 2**20 else f"{max_bytes >> 10} KiB"
    return UsageError(what, f"larger than {limit}", "give a shorter text")


def prompt_too_large(what: str) -> PromptTooLongError:
    """Return the error for a prompt of more than ``MAX_PROMPT_BYTES``."""
    n_tokens = MAX_PROMPT_BYTES // _BYTES_OF_A_TOKEN
    size = f"larger than {MAX_PROMPT_BYTES >> 20} MiB, some {n_tokens:,} tokens"
    return PromptTooLongError(what, f"{size}, which fit in no context", "give a shorter text")


def without_final_newline(text: str) -> str:
    """Return ``text`` without the one line end that editors and ``echo`` append."""
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def private_folder(path: Path) -> Path:
    """Create a folder and its missing parents, with access for the user only, and return it.

    Those of the program that exist are closed to others too. Any other keeps its mode, as does a
    link: what the user shares there is shared on purpose.

    Raises:
        SaveError: if it cannot be created.
    """
    ours = _homes()
    try:
        # Not mkdir(parents=True): that gives the mode to the last folder only.
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
                _change_mode(folder, 0o700)  # whatever the umask is
                sync_folder(folder.parent)
            elif any(home == folder or home in folder.parents for home in ours):
                _close_to_others(folder)
    except (OSError, ValueError) as error:
        raise SaveError.at(path, error) from None
    return path


def _homes() -> list[Path]:
    """Return the folders of the program, as far as they are known."""
    found = []
    for home in (config_home, data_home, cache_home, state_home, runtime_home):
        with suppress(UsageError):
            found.append(home())
    return found


def _close_to_others(folder: Path) -> None:
    """Take the permissions of others from a folder, unless it is a link or someone else's."""
    status = folder.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and status.st_mode & 0o077:
        _change_mode(folder, status.st_mode & 0o700)


def _change_mode(folder: Path, mode: int) -> None:
    with suppress(PermissionError):  # a file system without modes
        folder.chmod(mode)


def create_private_file(path: Path) -> None:
    """Create an empty file with access for the user only, unless it exists; then it gets that mode.

    Raises:
        SaveError: if it cannot be created, or is not a writable regular file.
    """
    private_folder(path.parent)
    # O_NONBLOCK: opening a named pipe must not block; it is refused below.
    flags = os.O_RDWR | os.O_NONBLOCK
    try:
        try:
            descriptor = open_private(path, flags | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            # Without O_CREAT, so that a dangling link creates no file elsewhere.
            descriptor = open_private(path, flags)
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        os.close(descriptor)
    except (OSError, ValueError) as error:
        raise SaveError.at(path, error) from None
    if not regular:
        raise SaveError(repr(str(path)), "not a file", "remove it")


def write_new(path: Path, data: bytes) -> None:
    """Write a new file with access for the user only; others see it once it is whole.

    Raises:
        UsageError: if the name is taken, even by a dangling link.
        SaveError: if it cannot be written.
    """
    private_folder(path.parent)
    try:
        with temporary_file(path, data, 0o600) as temporary:
            publish(temporary, path)
    except FileExistsError:
        raise UsageError(repr(str(path)), "it is there already", "edit or remove it") from None
    except (OSError, ValueError) as error:
        raise SaveError.at(path, error) from None


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write ``data`` to ``path`` by an atomic rename: readers see the old or the new content.

    Raises:
        SaveError: if it cannot be written; the old file is then unchanged.
    """
    try:
        with temporary_file(path, data, mode) as temporary:
            temporary.replace(path)
            sync_folder(path.parent)
    except (OSError, ValueError) as error:
        raise SaveError.at(path, error) from None


def remove_empty_folders(folder: Path, end: Path) -> None:
    """Remove a folder and those above it, below ``end``, as long as they are empty.

    Raises:
        OSError: if one cannot be removed.
    """
    while folder != end and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def readable_size(n_bytes: int) -> str:
    """Return a number of bytes with a decimal unit, such as ``4.1 GB``."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes / 1000:.0f} KB" if n_bytes >= 1000 else f"{n_bytes} bytes"


def local_time(seconds: float) -> datetime:
    """Convert seconds since 1970 to a time in the time zone of this machine."""
    return datetime.fromtimestamp(min(max(seconds, 0), _LATEST)).astimezone()


def readable_time(seconds: float) -> str:
    """Format seconds since 1970 to the minute, in local time."""
    return f"{local_time(seconds):%Y-%m-%d %H:%M}"
