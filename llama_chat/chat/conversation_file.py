"""File of a conversation, with a line of JSON for every change.

Lines are only appended, so that a kill at any time loses at most the save being written. A file
that lacks checksums, is damaged, or consists mostly of replaced lines is rewritten beside the
old one, and takes its place once it is durable.

The first line is a header. After it, ``{"number": …}`` lines are messages, of which a later one
replaces an earlier one of the same number, and ``{"head": …}`` lines give the head of the current
path, the system message, the examples and the model.
"""

import itertools
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from llama_chat.chat.conversation import Conversation, Message
from llama_chat.chat.locked_file import LockedFile
from llama_chat.chat.record_lines import to_lines
from llama_chat.chat.records import Loaded, ModelTag, Snapshot, changes, snapshot
from llama_chat.chat.store import TIME_IN_NAME, folder, in_use, path_of, read, read_open
from llama_chat.durable_files import publish, remove_leftovers, sync_folder, temporary_name
from llama_chat.errors import SaveError, UsageError, is_full_disk, reason
from llama_chat.files import private_folder, write_atomically

_MOST_REPLACED = 64
"""Number of replaced lines up to which no file is rewritten, however small it is."""


class ConversationFile:
    """The file that a conversation is saved to.

    It is created at the first save, and locked while it is open, so that two programs never write
    to the same file.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._file: LockedFile | None = None
        self._saved: Snapshot | None = None
        self._first: Message | None = None
        self._created = ""
        self._n_lines = 0
        self._lacks_checksums = False

    @property
    def name(self) -> str:
        """Name of the conversation; empty while there is no file."""
        return "" if self.path is None else self.path.stem

    def has_all_of(self, conversation: Conversation) -> bool:
        """True if the text of every message is saved."""
        saved = self._saved.messages.values() if self._saved else ()
        return [each.text for each in conversation.all] == [record["text"] for record in saved]

    def open(self, path: Path) -> Loaded:
        """Read a saved conversation, and save to its file from now on.

        Damaged lines, and a save that was cut off, are removed after the file is copied. If another
        program has the file open, it is only read, and the next save creates a new file.

        Raises:
            UsageError: if it cannot be read.
            SaveError: if it cannot be written to, or the damaged file cannot be copied. After
                either error the file that was open before stays open.
        """
        file = self._file
        if file is None or not file.is_at(path):
            try:
                file = LockedFile(path)
            except BlockingIOError:
                loaded = replace(read(path), cut=False)  # the last line is being written
                self.close()
                return loaded
            except OSError as error:
                read(path)  # raises UsageError if it cannot be read either
                raise SaveError.at(path, error, "check the file") from None
        try:
            file, loaded = _load_and_repair(file, path)
        except BaseException:
            if file is not self._file:
                file.close()
            raise
        self._follow(path, file, loaded.conversation, snapshot(loaded.conversation, loaded.tag))
        self._created, self._n_lines = loaded.created, loaded.n_lines
        self._lacks_checksums = loaded.n_sealed < loaded.n_lines and not loaded.damage
        return loaded

    def save(self, conversation: Conversation, tag: ModelTag, *, durable: bool = True) -> None:
        """Append the changes since the last save.

        If the file is gone, everything is written to a new one. A conversation with another first
        message is a different one, and gets a new file.

        Args:
            conversation: the conversation; no file is created while it has no messages.
            tag: the model it is held with.
            durable: True to wait until the data is on the disk (``fsync``).

        Raises:
            SaveError: if it cannot be written; the file is then unchanged.
        """
        if not conversation.all:
            return
        if self._first not in (None, conversation.all[0]):
            self.close()
        now = snapshot(conversation, tag)
        try:
            path, file = self._write(conversation, now, durable=durable)
        except ValueError as error:
            raise SaveError("conversation", str(error), "begin a new one") from None
        except OSError as error:
            where = repr(str(self.path or folder()))
            advice = "free space there" if is_full_disk(error) else "allow writing there"
            advice += "; the next turn tries again"
            raise SaveError(where, reason(error), advice) from None
        self._follow(path, file, conversation, now)

    def _write(
        self, conversation: Conversation, now: Snapshot, *, durable: bool
    ) -> tuple[Path, LockedFile]:
        """Append what has changed, or rewrite the file; returns the file and its path."""
        file = self._current()
        if file is None or self.path is None:
            records = changes(None, now)
            lines = to_lines(records, as_save=False)
            self._n_lines, self._created = len(records), records[0]["created"]
            self._lacks_checksums = False
            return self._create(_stem_for(conversation), b"".join(lines))
        if self._lacks_checksums or self._n_lines > 2 * len(now.messages) + _MOST_REPLACED:
            self._lacks_checksums = False
            with suppress(OSError, ValueError):  # if there is no room for all of it, a line may fit
                anew = _write_anew(self.path, now, self._created)
                self._n_lines = len(now.messages) + 2
                return self.path, anew
        lines = to_lines(changes(self._saved, now), as_save=True)
        file.append(b"".join(lines), durable=durable)
        self._n_lines += len(lines)
        return self.path, file

    def rename(self, name: str) -> None:
        """Give the conversation a name.

        Raises:
            UsageError: if the name is not allowed, or another conversation has it.
            SaveError: if nothing was saved yet, or the file cannot be renamed.
        """
        target = path_of(name)
        if self.path is None:
            raise SaveError(repr(name), "there is no message yet", "type a message first")
        if target == self.path:
            return
        if self._current() is None:
            gone = repr(str(self.path))
            raise SaveError(gone, "it is no longer there", "the next turn saves it again")
        try:
            publish(self.path, target)
        except FileExistsError:
            raise UsageError(
                f"name {name!r}", "there is a conversation of that name", "choose another"
            ) from None
        except OSError as error:
            raise SaveError.at(target, error, "choose another name") from None
        self.path = target

    def close(self) -> None:
        """Close the file; the conversation is no longer saved to it."""
        if self._file is not None:
            self._file.close()
        self.path = self._file = self._saved = self._first = None

    def _current(self) -> LockedFile | None:
        """Return the open file; None if it was removed or replaced, or there is none yet."""
        if self._file is None or self.path is None or not self._file.is_at(self.path):
            return None
        return self._file

    def _create(self, stem: str, data: bytes) -> tuple[Path, LockedFile]:
        """Create a file of ``data``, under the previous name if there is one and it is free."""
        numbered = (path_of(f"{stem}-{number}") for number in itertools.count(2))
        paths = itertools.chain([self.path] if self.path else [], [path_of(stem)], numbered)
        remove_leftovers(private_folder(folder()))
        with _temporary(folder() / stem, data) as (temporary, file):
            path = next(path for path in paths if _gets_name(temporary, path))
        return path, file

    def _follow(
        self, path: Path, file: LockedFile, conversation: Conversation, saved: Snapshot
    ) -> None:
        if file is not self._file:
            self.close()
        self._saved, self._first = saved, next(iter(conversation.all), None)
        self.path, self._file = path, file  # last: never set without the rest


def _stem_for(conversation: Conversation) -> str:
    """Return the name of a new conversation: the time, and the first words of its first message."""
    words = re.findall(r"[a-z0-9]+", conversation.all[0].text.lower())[:5]
    return "-".join([time.strftime(TIME_IN_NAME), *words])[:80]


def _gets_name(temporary: Path, path: Path) -> bool:
    """Give a complete file its name; False if that is taken."""
    try:
        publish(temporary, path)
    except FileExistsError:
        return False
    return True


def repair(path: Path) -> tuple[Loaded, Path | None]:
    """Rewrite a saved conversation with everything that can be read, and with checksums.

    Returns:
        What was read, and the copy of the damaged file, if it was damaged.

    Raises:
        UsageError: if nothing of it can be read, or a program has it open.
        SaveError: if it cannot be written.
    """
    try:
        file = LockedFile(path)
    except BlockingIOError:
        raise in_use(path) from None
    except OSError as error:
        raise SaveError.at(path, error, "check the file") from None
    try:
        with file.reader() as reader:
            loaded = read_open(reader, path, salvage=True)
            copy = _keep_copy(reader, path) if loaded.problem else None
        if loaded.problem or loaded.n_sealed < loaded.n_lines:
            _rewrite(path, loaded).close()
    except OSError as error:
        raise SaveError.at(path, error, "check the file") from None
    finally:
        file.close()
    return loaded, copy


def _load_and_repair(file: LockedFile, path: Path) -> tuple[LockedFile, Loaded]:
    """Read a locked file; if it is damaged, copy it and leave what can be read of it."""
    with file.reader() as reader:
        loaded = read_open(reader, path)
        if loaded.problem:
            try:
                _keep_copy(reader, path)
                if loaded.damage:
                    anew = _rewrite(path, loaded)
                    file.close()
                    return anew, loaded
                file.truncate(loaded.n_bytes)
            except OSError as error:
                raise SaveError.at(path, error, "check the file") from None
    return file, loaded


def _keep_copy(reader: BinaryIO, path: Path) -> Path:
    copy = path.with_name(f"{path.stem}.damaged-{time.time_ns()}")
    reader.seek(0)
    write_atomically(copy, reader.read())
    return copy


def _rewrite(path: Path, loaded: Loaded) -> LockedFile:
    """Rewrite a file with what was read of it."""
    now = snapshot(loaded.conversation, loaded.tag)
    try:
        return _write_anew(path, now, loaded.created)
    except ValueError as error:  # a line of an older program, which had no checksum
        raise SaveError(repr(str(path)), str(error), "it stays as it is") from None


def _write_anew(path: Path, now: Snapshot, created: str) -> LockedFile:
    """Replace a file by one with the same contents; returns that one, locked."""
    lines = to_lines(changes(None, now, created), as_save=False)
    with _temporary(path, b"".join(lines)) as (temporary, file):
        temporary.replace(path)
        sync_folder(path.parent)
    return file


@contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[tuple[Path, LockedFile]]:
    """Write a file beside ``path``, durably and locked; a failure removes it."""
    temporary = temporary_name(path)
    file = LockedFile(temporary, create=True)
    try:
        file.append(data, durable=True)
        yield temporary, file
    except BaseException:
        file.close()
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()
