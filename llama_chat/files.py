"""Where things are on disk; reading and writing them so that nothing is lost or seen."""

import codecs
import os
import pwd
import stat
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from llama_chat.errors import SaveError, UsageError, reason

_PACKAGE = Path(__file__).resolve().parent

MAX_PROMPT_BYTES = 64 * 2**20
"""More than any context holds; a larger text is a mistake, and an endless one never ends."""

_LATEST = 253_400_000_000
"""In seconds since 1970; in the year 10000 dates end, but the time of a file may be later."""


def _xdg(variable: str, below_home: str) -> Path:
    """A folder of ours below an XDG base folder; relative values are ignored, as XDG says."""
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
    """Settings and a person's own prompt files."""
    return _xdg("XDG_CONFIG_HOME", ".config")


def data_home() -> Path:
    """Models and conversations."""
    return _xdg("XDG_DATA_HOME", ".local/share")


def state_home() -> Path:
    """History."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def expand_user(path: str) -> Path:
    """``path`` with ``~`` and ``~name`` as home folders; that of nobody stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def resource(name: str) -> Path:
    """A file or folder that comes with the program: ``prompts`` or ``config.toml``.

    It lies in the installed package, or at the top of the source tree.
    """
    installed = _PACKAGE / name
    return installed if installed.exists() else _PACKAGE.parent / name


def read_start(path: Path, n_bytes: int) -> bytes:
    """First bytes of a file; none if it is no regular one or cannot be read."""
    try:
        # Opening a named pipe would wait for its writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            return file.read(n_bytes) if regular else b""
    except (OSError, ValueError):
        return b""


def read_text(path: Path, what: str, advice: str, max_bytes: int) -> str:
    """Text of a file or pipe, without a byte-order mark; line ends stay as they are.

    Raises:
        UsageError: about ``what``, if it cannot be read, is too large, binary or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
                raise UsageError(what, "not a file", "name a text file")
            return decode_text(file, what, max_bytes)
    except (OSError, ValueError) as error:
        raise UsageError(what, reason(error), advice) from None


def decode_text(stream: BinaryIO, what: str, max_bytes: int) -> str:
    """Read ``stream`` to its end as UTF-8 text.

    Raises:
        UsageError: about ``what``, if it cannot be read, is too large, binary or not UTF-8.
    """
    try:
        data = stream.read(max_bytes + 1)
    except OSError as error:
        raise UsageError(what, reason(error), "give UTF-8 text") from None
    if len(data) > max_bytes:
        raise UsageError(what, f"larger than {max_bytes >> 20} MiB", "give a shorter text")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(what, "it is UTF-16, not UTF-8", "save it as UTF-8 text")
    if b"\0" in data:
        raise UsageError(what, "it is binary", "give UTF-8 text")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is not UTF-8"
        raise UsageError(what, where, "save it as UTF-8 text") from None


def without_final_newline(text: str) -> str:
    """``text`` without the one line end that editors and ``echo`` append."""
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def private_folder(path: Path) -> Path:
    """Create a folder that nobody else may look into, and its parents likewise.

    One that is there keeps its mode.

    Raises:
        SaveError: if that cannot be done.
    """
    try:
        # Not mkdir(parents=True): that gives the mode to the last folder only.
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SaveError.at(path, error) from None
    return path


def create_private_file(path: Path) -> None:
    """Create an empty file that nobody else may read, unless it is there.

    Raises:
        SaveError: if that cannot be done, or what is there is no file that can be written.
    """
    private_folder(path.parent)
    # A pipe of that name is to be refused, not waited for.
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            # Without O_CREAT, so that a link to nowhere makes no file elsewhere.
            descriptor = os.open(path, flags)
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        os.close(descriptor)
    except (OSError, ValueError) as error:
        raise SaveError.at(path, error) from None
    if not regular:
        raise SaveError(repr(str(path)), "not a file", "remove it")


def write_new(path: Path, data: bytes) -> None:
    """Write a file that is not there yet, and that nobody else may read.

    Raises:
        UsageError: if something of that name is there, be it a link to nowhere.
        SaveError: if it cannot be written.
    """
    private_folder(path.parent)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError:
        raise UsageError(repr(str(path)), "it is there already", "edit or remove it") from None
    except (OSError, ValueError) as error:
        raise SaveError.at(path, error) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise SaveError.at(path, error) from None


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` by a file of ``data``: readers see the old file or the new one, whole.

    Raises:
        SaveError: if that cannot be done; the old file is then as it was.
    """
    # Not made from the name of the file, which may be as long as a name can be.
    temporary = path.parent / f".{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise SaveError.at(path, error) from None


def readable_size(n_bytes: int) -> str:
    """Bytes in the unit that people read."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes / 1000:.0f} KB"


def local_time(seconds: float) -> datetime:
    """A time in seconds since 1970, with the time zone of this machine."""
    return datetime.fromtimestamp(min(max(seconds, 0), _LATEST)).astimezone()


def readable_time(seconds: float) -> str:
    """A time in seconds since 1970, to the minute, in local time."""
    return f"{local_time(seconds):%Y-%m-%d %H:%M}"
