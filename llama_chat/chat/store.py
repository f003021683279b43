"""Conversations on disk: one file each, a line of JSON for every change.

Lines are only ever added, so that a kill at any instant costs at most the line being written. The
first line says what the file is. Behind it ``{"number": …}`` lines are messages, of which a later
one replaces an earlier one of the same number, and ``{"head": …}`` lines say where the
conversation stands and what stands before it.
"""

import itertools
import os
import re
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from llama_chat.chat.conversation import Conversation, Message
from llama_chat.chat.locked_file import LockedFile
from llama_chat.chat.records import ModelTag, Snapshot, read_records, snapshot, to_lines
from llama_chat.errors import LlamaChatError, SaveError, UsageError, reason
from llama_chat.files import data_home, private_folder, write_atomically

MAX_BYTES = 256 * 2**20
"""More than any conversation takes; a larger file is a mistake."""

SUFFIX = ".jsonl"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A conversation read from a file."""

    conversation: Conversation
    tag: ModelTag
    n_bytes: int
    """Length of what could be read."""
    cut: bool
    """Whether a last line behind that was cut off, as a crash leaves it."""


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
    """Why it cannot be read, if so."""


def folder() -> Path:
    """Where conversations are saved."""
    return data_home() / "conversations"


def path_of(name: str) -> Path:
    """Where the conversation ``name`` is, or would be saved.

    Raises:
        UsageError: if it is no possible name.
    """
    if not _is_possible(name):
        raise UsageError(
            f"name {name[:40]!r}",
            "not a possible name",
            "use up to 100 letters, digits, spaces, - and _",
        )
    return folder() / f"{name}{SUFFIX}"


def _is_possible(name: str) -> bool:
    """Whether ``name`` stays in the folder, on one line, and as it is typed."""
    safe = name.isprintable() and "/" not in name and not name.startswith((".", "-"))
    return safe and name == name.strip() and 0 < len(name.encode()) <= 100


def names() -> list[str]:
    """The names of all saved conversations, the latest first.

    Raises:
        UsageError: if the folder cannot be looked into.
    """
    return [name for name, _ in dated_names()]


def dated_names() -> list[tuple[str, float]]:
    """The names of all saved conversations with their times in seconds since 1970, latest first.

    No file is opened.

    Raises:
        UsageError: if the folder cannot be looked into.
    """
    return [(path.stem, changed) for changed, path in _files() if _is_possible(path.stem)]


def find(wanted: str, *, whole: bool = False) -> Path:
    """The saved conversation of that name, or the only one whose name begins so.

    With ``whole`` only the whole name counts.

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
        raise UsageError(what, "more than one begins so", ", ".join(sorted(fitting)[:5]))
    raise UsageError(what, "none is saved by that name", "llama-chat sessions lists them")


def latest() -> Path:
    """The conversation that was saved last.

    Raises:
        UsageError: if none is saved.
    """
    known = names()
    if not known:
        raise UsageError("--continue", "no conversation is saved yet", "begin one: llama-chat")
    return path_of(known[0])


def entries() -> list[Entry]:
    """All saved conversations, the latest first; what cannot be read is among them.

    Raises:
        UsageError: if the folder cannot be looked into.
    """
    found = []
    for changed, path in _files():
        try:
            loaded = read(path_of(path.stem))
        except LlamaChatError as error:
            found.append(Entry(path.stem, path, changed, "", 0, "", error.why))
            continue
        messages = loaded.conversation.all
        title = messages[0].preview if messages else ""
        found.append(Entry(path.stem, path, changed, title, len(messages), loaded.tag.name))
    return found


def refuse_if_open(path: Path) -> None:
    """Make sure that no program follows the conversation.

    Raises:
        UsageError: if one does.
    """
    try:
        LockedFile(path).close()
    except BlockingIOError:
        what = f"conversation {path.stem[:40]!r}"
        raise UsageError(what, "a program has it open", "leave that first") from None
    except OSError:  # what cannot be opened is followed by nobody
        pass


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


def read(path: Path) -> Loaded:
    """Read a saved conversation; nothing in the file is believed before it is checked.

    Raises:
        UsageError: if it cannot be read, naming the line.
    """
    try:
        # A pipe of that name is not waited for.
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
            return _load(file, path)
    except OSError as error:
        raise _unreadable(path, reason(error)) from None


def _load(file: BinaryIO, path: Path) -> Loaded:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(path, "not a file")
    if status.st_size > MAX_BYTES:
        raise _unreadable(path, f"larger than {MAX_BYTES >> 20} MiB")
    try:
        conversation, tag, n_bytes = read_records(file)
    except ValueError as error:
        raise _unreadable(path, str(error)) from None
    except OSError as error:
        raise _unreadable(path, reason(error)) from None
    return Loaded(conversation, tag, n_bytes, cut=n_bytes < file.tell())


def _load_and_mend(file: LockedFile, path: Path) -> Loaded:
    """Read a file that nobody else adds to, and drop half a line at its end."""
    with file.reader() as reader:
        loaded = _load(reader, path)
        if loaded.cut:
            copy = path.with_name(f"{path.stem}.damaged-{time.time_ns()}")
            try:
                reader.seek(0)
                write_atomically(copy, reader.read())
                file.truncate(loaded.n_bytes)
            except OSError as error:
                raise SaveError.at(path, error, "check the file") from None
    return loaded


def _files() -> list[tuple[float, Path]]:
    """When each file of the folder was changed, and where it is; the latest first.

    Raises:
        UsageError: if the folder cannot be looked into.
    """
    found = []
    try:
        paths = [path for path in folder().iterdir() if path.suffix == SUFFIX]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(repr(str(folder())), reason(error), "check the folder") from None
    for path in paths:
        with suppress(OSError):  # it is just going away
            status = path.stat()
            if stat.S_ISREG(status.st_mode) and not path.name.startswith("."):
                found.append((status.st_mtime, path))
    return sorted(found, reverse=True)


class ConversationFile:
    """A file that follows a conversation.

    It is made when there is something to save, and locked while it is followed, so that two
    programs never write into one.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._file: LockedFile | None = None
        self._saved: Snapshot | None = None
        self._first: Message | None = None

    @property
    def name(self) -> str:
        """Its name for people; empty while there is no file."""
        return "" if self.path is None else self.path.stem

    def open(self, path: Path) -> Loaded:
        """Read a saved conversation, and follow it from now on.

        A last line that was cut off is dropped, once a copy of the file is kept beside it. If
        another program follows it already, it is read, and saved to a file of its own.

        Raises:
            UsageError: if it cannot be read.
            SaveError: if it cannot be written to, or the damaged file cannot be copied. Then, as
                when it cannot be read, what was followed before still is.
        """
        file = self._file
        if file is None or not file.is_at(path):
            try:
                file = LockedFile(path)
            except BlockingIOError:
                loaded = replace(read(path), cut=False)  # a line is being written
                self.close()
                return loaded
            except OSError as error:
                read(path)  # what cannot be read either says so
                raise SaveError.at(path, error, "check the file") from None
        try:
            loaded = _load_and_mend(file, path)
        except BaseException:
            if file is not self._file:
                file.close()
            raise
        self._follow(path, file, loaded.conversation, snapshot(loaded.conversation, loaded.tag))
        return loaded

    def save(self, conversation: Conversation, tag: ModelTag, *, durable: bool = True) -> None:
        """Write what has changed since the last time.

        If the file is gone, all is written anew. A conversation with another first message is
        another one, and gets a file of its own.

        Args:
            conversation: what to save; one in which nothing was said makes no file.
            tag: with which model it is held.
            durable: whether to wait until it is on the disk itself.

        Raises:
            SaveError: if that cannot be done; the file is then as it was before.
        """
        if not conversation.all:
            return
        if self._first not in (None, conversation.all[0]):
            self.close()
        now = snapshot(conversation, tag)
        file = self._current()
        try:
            lines = to_lines(None if file is None else self._saved, now)
        except ValueError as error:
            raise SaveError("conversation", str(error), "begin a new one") from None
        try:
            if file is None or self.path is None:
                path, file = self._create(_stem_for(conversation), b"".join(lines), durable=durable)
            else:
                path = self.path
                file.append(b"".join(lines), durable=durable)
        except OSError as error:
            advice = "free space or allow writing there; the next turn tries again"
            raise SaveError.at(self.path or folder(), error, advice) from None
        self._follow(path, file, conversation, now)

    def rename(self, name: str) -> None:
        """Give the conversation a name.

        Raises:
            UsageError: if it is no possible name, or there is another conversation of that name.
            SaveError: if nothing was saved yet, or the file cannot be renamed.
        """
        target = path_of(name)
        if self.path is None:
            raise SaveError(repr(name), "nothing was said yet", "type a message first")
        if target == self.path:
            return
        if self._current() is None:
            gone = repr(str(self.path))
            raise SaveError(gone, "it is no longer there", "the next turn saves it anew")
        try:
            os.link(self.path, target)  # unlike a rename, never over another
            self.path.unlink()
        except FileExistsError:
            raise UsageError(
                f"name {name!r}", "there is a conversation of that name", "choose another"
            ) from None
        except OSError as error:
            raise SaveError.at(target, error, "choose another name") from None
        self.path = target

    def close(self) -> None:
        """Follow the conversation no longer."""
        if self._file is not None:
            self._file.close()
        self.path = self._file = self._saved = self._first = None

    def _current(self) -> LockedFile | None:
        """The file; None if somebody has removed or replaced it, or there was none yet."""
        if self._file is None or self.path is None or not self._file.is_at(self.path):
            return None
        return self._file

    def _create(self, stem: str, data: bytes, *, durable: bool) -> tuple[Path, LockedFile]:
        """Make a file that begins with ``data``, of the name it had if nothing has that now."""
        numbered = (path_of(f"{stem}-{number}") for number in itertools.count(2))
        for path in itertools.chain([self.path] if self.path else [], [path_of(stem)], numbered):
            private_folder(path.parent)
            with suppress(FileExistsError, BlockingIOError):
                file = LockedFile(path, create=True)
                break
        try:
            file.append(data, durable=durable)
        except BaseException:
            path.unlink(missing_ok=True)
            file.close()
            raise
        return path, file

    def _follow(
        self, path: Path, file: LockedFile, conversation: Conversation, saved: Snapshot
    ) -> None:
        if file is not self._file:
            self.close()
        self._saved, self._first = saved, next(iter(conversation.all), None)
        self.path, self._file = path, file  # last, lest an interrupt leaves a file without the rest


def _stem_for(conversation: Conversation) -> str:
    """The name of a new conversation: the time, and the first words that were said."""
    words = re.findall(r"[a-z0-9]+", conversation.all[0].text.lower())[:5]
    return "-".join([time.strftime("%Y-%m-%d-%H%M%S"), *words])[:80]


def _unreadable(path: Path, why: str) -> UsageError:
    return UsageError(f"conversation {path.stem[:40]!r}", why, f"mend or remove {str(path)!r}")
