"""Folder of saved conversations: finding, reading, listing and removing them."""

import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llama_chat.chat.locked_file import LockedFile
from llama_chat.chat.records import Loaded, read_records
from llama_chat.errors import LlamaChatError, SaveError, UsageError, reason
from llama_chat.files import data_home

MAX_BYTES = 256 * 2**20
"""Larger than any conversation; larger files are refused."""

SUFFIX = ".jsonl"

TIME_IN_NAME = "%Y-%m-%d-%H%M%S"
"""Beginning of the name of a new conversation; see ``time.strftime``."""

_NEW_NAME = re.compile(r"\d{4}-\d\d-\d\d-\d{6}(-|$)")

_N_NAMED = 5
"""Number of conversations that an error names, if a prefix matches more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A saved conversation in a list."""

    name: str
    path: Path
    changed: float
    """Seconds since 1970."""
    title: str
    n_messages: int
    model: str
    problem: str = ""
    """Reason if it cannot be read, else empty."""

    @property
    def has_own_name(self) -> bool:
        """True unless its name is its time and first words, as that of a new conversation is."""
        return not _NEW_NAME.match(self.name)


def folder() -> Path:
    """Return the folder of saved conversations."""
    return data_home() / "conversations"


def path_of(name: str) -> Path:
    """Return the path of the conversation ``name``, which need not exist.

    Raises:
        UsageError: if the name is not allowed.
    """
    if not _is_valid_name(name):
        raise UsageError(
            f"name {name[:40]!r}",
            "not a possible name",
            "use letters, digits, spaces, - and _, up to 100 bytes of UTF-8",
        )
    return folder() / f"{name}{SUFFIX}"


def _is_valid_name(name: str) -> bool:
    """True for a printable file name of at most 100 bytes that does not begin with . or -."""
    safe = name.isprintable() and "/" not in name and not name.startswith((".", "-"))
    return safe and name == name.strip() and 0 < len(name.encode()) <= 100


def names() -> list[str]:
    """Return the names of all saved conversations, the latest first.

    Raises:
        UsageError: if the folder cannot be read.
    """
    return [name for name, _ in dated_names()]


def dated_names() -> list[tuple[str, float]]:
    """Return name and time in seconds since 1970 of all saved conversations, the latest first.

    No file is opened.

    Raises:
        UsageError: if the folder cannot be read.
    """
    return [(path.stem, changed) for changed, path in _files() if _is_valid_name(path.stem)]


def find(wanted: str, *, whole: bool = False) -> Path:
    """Return the path of the conversation ``wanted``, or of the only one with that prefix.

    With ``whole`` only the exact name counts.

    Raises:
        UsageError: if there is none or more than one.
    """
    path, known = path_of(wanted), names()
    if wanted in known:
        return path
    fitting = [name for name in known if name.startswith(wanted) and not whole]
    if len(fitting) == 1:
        return path_of(fitting[0])
    what = f"conversation {wanted[:40]!r}"
    if fitting:
        latest = [*fitting[:_N_NAMED], *(["…"] if len(fitting) > _N_NAMED else [])]
        raise UsageError(what, "more than one begins so", ", ".join(latest))
    raise UsageError(what, "none is saved by that name", "llama-chat sessions lists them")


def latest() -> Path:
    """Return the path of the conversation that was saved last.

    Raises:
        UsageError: if none is saved.
    """
    known = names()
    if not known:
        raise UsageError("--continue", "no conversation is saved yet", "begin one: llama-chat")
    return path_of(known[0])


def entries() -> list[Entry]:
    """List all saved conversations, the latest first, including unreadable ones.

    Raises:
        UsageError: if the folder cannot be read.
    """
    return [entry for entry, _ in read_all()]


def read_all(paths: Collection[Path] | None = None) -> Iterator[tuple[Entry, Loaded | None]]:
    """Read all conversations, or those at ``paths``, the latest first.

    Yields:
        Each, and what was read; None if it cannot be read.

    Raises:
        UsageError: if the folder cannot be read.
    """
    for changed, path in _files():
        if paths is not None and path not in paths:
            continue
        try:
            loaded = read(path_of(path.stem))
        except LlamaChatError as error:
            yield Entry(path.stem, path, changed, "", 0, "", error.why), None
            continue
        messages = loaded.conversation.all
        title = messages[0].preview if messages else ""
        yield Entry(path.stem, path, changed, title, len(messages), loaded.tag.name), loaded


def search(words: str) -> Iterator[tuple[Entry, str]]:
    """Find the conversations with a message that contains ``words``, in any case of letters.

    Yields:
        Each of them, the latest first, and its first message that does.

    Raises:
        UsageError: if the folder cannot be read.
    """
    wanted = " ".join(words.casefold().split())
    for entry, loaded in read_all():
        for message in loaded.conversation.all if loaded else ():
            if wanted in " ".join(message.text.casefold().split()):
                yield entry, message.text
                break


def refuse_if_open(path: Path) -> None:
    """Check that no program has the conversation open.

    Raises:
        UsageError: if one has.
    """
    try:
        LockedFile(path).close()
    except BlockingIOError:
        raise in_use(path) from None
    except OSError:  # no program can have opened it
        pass


def in_use(path: Path) -> UsageError:
    """Return the error for a conversation that a program has open."""
    return UsageError(
        f"conversation {path.stem[:40]!r}", "a program has it open", "leave that first"
    )


def remove(path: Path) -> None:
    """Delete a saved conversation.

    Raises:
        UsageError: if a program has it open.
        SaveError: if it cannot be deleted.
    """
    refuse_if_open(path)
    try:
        path.unlink()
    except OSError as error:
        raise SaveError.at(path, error, "check the folder") from None


def read(path: Path, *, salvage: bool = False) -> Loaded:
    """Read and validate a saved conversation; see ``read_records`` for ``salvage``.

    Raises:
        UsageError: if it cannot be read or is invalid; the message names the line.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not block.
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
            return read_open(file, path, salvage=salvage)
    except OSError as error:
        raise _unreadable(path, reason(error)) from None


def read_open(file: BinaryIO, path: Path, *, salvage: bool = False) -> Loaded:
    """Read a saved conversation from its open file; see ``read``."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(path, "not a file")
    if status.st_size > MAX_BYTES:
        raise _unreadable(path, f"larger than {MAX_BYTES >> 20} MiB")
    try:
        return read_records(file, salvage=salvage)
    except ValueError as error:
        raise _unreadable(path, str(error)) from None
    except OSError as error:
        raise _unreadable(path, reason(error)) from None


def _files() -> list[tuple[float, Path]]:
    """Return modification time and path of each conversation file, the latest first.

    Raises:
        UsageError: if the folder cannot be read.
    """
    found = []
    try:
        paths = [path for path in folder().iterdir() if path.suffix == SUFFIX]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(repr(str(folder())), reason(error), "check the folder") from None
    for path in paths:
        with suppress(OSError):  # removed meanwhile
            status = path.stat()
            if stat.S_ISREG(status.st_mode) and not path.name.startswith("."):
                found.append((status.st_mtime, path))
    return sorted(found, reverse=True)


def _unreadable(path: Path, why: str) -> UsageError:
    return UsageError(f"conversation {path.stem[:40]!r}", why, f"repair or remove {str(path)!r}")
