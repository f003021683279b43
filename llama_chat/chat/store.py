"""Conversations on disk: one file each, a line of JSON for every change.

Lines are only ever added, so that a kill at any instant costs at most the line being written. The
first line says what the file is. Behind it ``{"number": …}`` lines are messages, of which a later
one replaces an earlier one of the same number, and ``{"head": …}`` lines say where the
conversation stands and what stands before it.
"""

import fcntl
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llama_chat.chat.conversation import Conversation
from llama_chat.chat.records import (
    FORMAT,
    VERSION,
    ModelTag,
    Record,
    from_lines,
    message_record,
    state_record,
    to_line,
)
from llama_chat.errors import LlamaChatError, SaveError, UsageError
from llama_chat.files import create_private_file, data_home, write_atomically

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
    usable = name.isprintable() and not name.startswith((".", "-")) and "/" not in name
    if not usable or not 0 < len(name.encode("utf-8", "replace")) <= 100:
        raise UsageError(
            f"name {name[:40]!r}",
            "not a possible name",
            "use up to 100 letters, digits, spaces, - and _",
        )
    return folder() / f"{name}{SUFFIX}"


def find(wanted: str) -> Path:
    """The saved conversation of that name, or the only one whose name begins so.

    Raises:
        UsageError: if there is none or more than one.
    """
    path = path_of(wanted)
    if path.is_file():
        return path
    names = [found.stem for found in _files()]
    fitting = [name for name in names if name.startswith(wanted)]
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
    files = _files()
    if not files:
        raise UsageError("--continue", "no conversation is saved yet", "begin one: llama-chat")
    return files[0]


def entries() -> list[Entry]:
    """All saved conversations, the latest first; what cannot be read is among them."""
    found = []
    for path in _files():
        changed = path.stat().st_mtime
        try:
            loaded = read(path)
        except LlamaChatError as error:
            found.append(Entry(path.stem, path, changed, "", 0, "", error.why))
            continue
        messages = loaded.conversation.all
        title = messages[0].preview if messages else ""
        found.append(Entry(path.stem, path, changed, title, len(messages), loaded.tag.name))
    return found


def remove(path: Path) -> None:
    """Delete a saved conversation.

    Raises:
        SaveError: if that cannot be done.
    """
    try:
        path.unlink()
    except OSError as error:
        reason = (error.strerror or "cannot be deleted").lower()
        raise SaveError(repr(str(path)), reason, "check the folder") from None


def read(path: Path) -> Loaded:
    """Read a saved conversation; nothing in the file is believed before it is checked.

    Raises:
        UsageError: if it cannot be read, naming the line.
    """
    what = f"conversation {path.stem[:40]!r}"
    advice = f"mend or remove {str(path)!r}"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(what, (error.strerror or "cannot be read").lower(), advice) from None
    if len(data) > MAX_BYTES:
        raise UsageError(what, f"larger than {MAX_BYTES >> 20} MiB", advice)
    if not data:
        raise UsageError(what, "it is empty", advice)
    whole = data.rfind(b"\n") + 1
    try:
        conversation, tag = from_lines(data[:whole].split(b"\n")[:-1])
    except ValueError as error:
        raise UsageError(what, str(error), advice) from None
    return Loaded(conversation, tag, whole, cut=whole < len(data))


def _files() -> list[Path]:
    """The files of all saved conversations, the latest first."""
    try:
        files = [path for path in folder().glob(f"*{SUFFIX}") if path.is_file()]
        return sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:  # it may not be looked into, or a file is just going away
        return []


class ConversationFile:
    """A file that follows a conversation.

    It is made when there is something to save, and locked while it is open, so that two programs
    never write into one; the lock goes with the process, whatever ends it.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._descriptor = -1
        self._written: dict[int, Record] = {}
        self._state: Record = {}

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
            SaveError: if the damaged file cannot be copied.
        """
        loaded = read(path)
        self.close()
        descriptor = _lock(path)
        if descriptor is None:
            return loaded
        if loaded.cut:
            damaged = path.with_name(f"{path.stem}.damaged-{time.time_ns()}")
            write_atomically(damaged, path.read_bytes())
            os.ftruncate(descriptor, loaded.n_bytes)
        self.path, self._descriptor = path, descriptor
        self._written = {m.number: message_record(m) for m in loaded.conversation.all}
        self._state = state_record(loaded.conversation, loaded.tag)
        return loaded

    def save(self, conversation: Conversation, tag: ModelTag, *, durable: bool = True) -> None:
        """Write what has changed since the last time.

        Args:
            conversation: what to save; one in which nothing was said makes no file.
            tag: with which model it is held.
            durable: whether to wait until it is on the disk itself.

        Raises:
            SaveError: if that cannot be done; the file is then as it was before.
        """
        if not conversation.all:
            return
        if self.path is None:
            self._create(_free_path(_stem_for(conversation)))
        elif not self._is_there(self.path):
            self._create(self.path if not self.path.exists() else _free_path(self.path.stem))
        changed = {
            message.number: record
            for message in conversation.all
            if (record := message_record(message)) != self._written.get(message.number)
        }
        records = list(changed.values())
        state = state_record(conversation, tag)
        # A message says by itself that the conversation stands at it.
        implied = self._state | {"head": max(changed)} if changed else self._state
        if state != implied:
            records.append(state)
        if records:
            self._append(b"".join(map(to_line, records)), durable=durable)
            self._written |= changed
            self._state = state

    def rename(self, name: str) -> None:
        """Give the conversation a name.

        Raises:
            UsageError: if it is no possible name, or there is another conversation of that name.
            SaveError: if nothing was saved yet, or the file cannot be renamed.
        """
        target = path_of(name)
        if self.path is None:
            raise SaveError(name, "nothing was said yet", "type a message first")
        if target == self.path:
            return
        try:
            os.link(self.path, target)  # unlike a rename, never over another
            self.path.unlink()
        except FileExistsError:
            raise UsageError(
                f"name {name!r}", "there is a conversation of that name", "choose another"
            ) from None
        except OSError as error:
            reason = (error.strerror or "cannot be renamed").lower()
            raise SaveError(repr(str(target)), reason, "choose another name") from None
        self.path = target

    def close(self) -> None:
        """Follow the conversation no longer."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self.path, self._descriptor = None, -1
        self._written, self._state = {}, {}

    def _create(self, path: Path) -> None:
        create_private_file(path)
        descriptor = _lock(path)
        if descriptor is None:
            raise SaveError(repr(str(path)), "another program writes it", "choose another name")
        self.close()
        self.path, self._descriptor = path, descriptor
        created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        header = {"format": FORMAT, "version": VERSION, "created": created}
        self._append(to_line(header), durable=False)

    def _is_there(self, path: Path) -> bool:
        """Whether the file is still the one that was opened: somebody may have removed it."""
        try:
            return os.path.samestat(path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def _append(self, data: bytes, *, durable: bool) -> None:
        size = os.fstat(self._descriptor).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            if durable:
                os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, size)
            reason = (error.strerror or "cannot be written").lower()
            raise SaveError(
                repr(str(self.path)), reason, "free space there; the next turn tries again"
            ) from None


def _lock(path: Path) -> int | None:
    """Open a file for adding to it, locked; None if another program has locked it.

    Raises:
        SaveError: if it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        reason = (error.strerror or "cannot be opened").lower()
        raise SaveError(repr(str(path)), reason, "check the file") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _stem_for(conversation: Conversation) -> str:
    """The name of a new conversation: the time, and the first words that were said."""
    words = re.findall(r"[a-z0-9]+", conversation.all[0].text.lower())[:5]
    return "-".join([time.strftime("%Y-%m-%d-%H%M%S"), *words])[:80]


def _free_path(stem: str) -> Path:
    """A path that nothing has yet."""
    path, number = path_of(stem), 1
    while path.exists():
        number += 1
        path = path_of(f"{stem}-{number}")
    return path
