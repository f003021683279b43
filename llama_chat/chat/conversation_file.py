"""A conversation that is saved as it grows: one file, a line of JSON for every change.

Lines are only ever added, so that a kill at any instant costs at most the line being written. The
first line says what the file is. After it, ``{"number": …}`` lines are messages, of which a later
one replaces an earlier one of the same number, and ``{"head": …}`` lines give the head of the
current path, the system message and the examples.
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
from llama_chat.errors import SaveError, UsageError
from llama_chat.files import private_folder, write_atomically


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


def _load_and_mend(file: LockedFile, path: Path) -> Loaded:
    """Read a file that nobody else adds to, and drop half a line at its end."""
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
