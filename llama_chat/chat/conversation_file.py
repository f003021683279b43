"""Append-only file of a conversation, with a line of JSON for every change.

Lines are only appended, so that a kill at any time loses at most the line being written. The first
line is a header. After it, ``{"number": …}`` lines are messages, of which a later one replaces an
earlier one of the same number, and ``{"head": …}`` lines give the head of the current path, the
system message, the examples and the model.
"""

import itertools
import os
import re
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llama_chat.chat.conversation import Conversation, Message
from llama_chat.chat.locked_file import LockedFile
from llama_chat.chat.records import ModelTag, Snapshot, snapshot, to_lines
from llama_chat.chat.store import Loaded, folder, path_of, read, read_open
from llama_chat.errors import SaveError, UsageError, is_full_disk, reason
from llama_chat.files import private_folder, write_atomically


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

    @property
    def name(self) -> str:
        """Name of the conversation; empty while there is no file."""
        return "" if self.path is None else self.path.stem

    def open(self, path: Path) -> Loaded:
        """Read a saved conversation, and save to its file from now on.

        A last line that was cut off is removed, after the file is copied. If another program has
        the file open, it is only read, and the next save creates a new file.

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
            loaded = _load_and_repair(file, path)
        except BaseException:
            if file is not self._file:
                file.close()
            raise
        self._follow(path, file, loaded.conversation, snapshot(loaded.conversation, loaded.tag))
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
            where = repr(str(self.path or folder()))
            advice = "free space there" if is_full_disk(error) else "allow writing there"
            advice += "; the next turn tries again"
            raise SaveError(where, reason(error), advice) from None
        self._follow(path, file, conversation, now)

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
            raise SaveError(gone, "it is no longer there", "the next turn saves it anew")
        try:
            os.link(self.path, target)  # unlike a rename, never overwrites
            self.path.unlink()
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

    def _create(self, stem: str, data: bytes, *, durable: bool) -> tuple[Path, LockedFile]:
        """Create a file of ``data``, under the previous name if there is one and it is free."""
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
        self.path, self._file = path, file  # last: never set without the rest


def _stem_for(conversation: Conversation) -> str:
    """Return the name of a new conversation: the time, and the first words of its first message."""
    words = re.findall(r"[a-z0-9]+", conversation.all[0].text.lower())[:5]
    return "-".join([time.strftime("%Y-%m-%d-%H%M%S"), *words])[:80]


def _load_and_repair(file: LockedFile, path: Path) -> Loaded:
    """Read a locked file; if its last line was cut off, copy the file and remove that line."""
    with file.reader() as reader:
        loaded = read_open(reader, path)
        if loaded.cut:
            copy = path.with_name(f"{path.stem}.damaged-{time.time_ns()}")
            try:
                reader.seek(0)
                write_atomically(copy, reader.read())
                file.truncate(loaded.n_bytes)
            except OSError as error:
                raise SaveError.at(path, error, "check the file") from None
    return loaded
