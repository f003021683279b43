"""Earlier inputs, kept in a file."""

from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from llama_chat.chat.locked_file import LockedFile
from llama_chat.errors import LlamaChatError, reason
from llama_chat.files import create_private_file, state_home

_TIMEOUT_S = 2.0
"""Longest time to wait for other programs that write to it."""


def open_history(warn: Callable[[str], None], *, keep: bool) -> History:
    """Open the history of earlier sessions, a file that only the user may read.

    Without ``keep``, or if the file cannot be created, the history is in memory only.
    """
    if not keep:
        return InMemoryHistory()
    path = state_home() / "history"
    try:
        create_private_file(path)
    except LlamaChatError as error:
        warn(f"{error.what}: {error.why}: what you type is not remembered")
        return InMemoryHistory()
    return _KeptHistory(path, warn)


class _Draft(str):
    """Input of this session that was not sent."""

    __slots__ = ()


def put_aside(buffer: Buffer) -> None:
    """Delete the text of ``buffer``; Up brings it back in this session."""
    strings = buffer.history._loaded_strings
    if buffer.text.strip() and strings[:1] != [buffer.text]:  # one that was refused is there
        strings.insert(0, _Draft(buffer.text))
    buffer.reset()


def take_up(buffer: Buffer) -> None:
    """Forget the last draft if it is sent now: it becomes an input like all others."""
    strings = buffer.history._loaded_strings
    if strings and isinstance(strings[0], _Draft) and strings[0] == buffer.text:
        del strings[0]


class _KeptHistory(FileHistory):
    """History in a file; once that fails, it goes on in memory."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        super().__init__(path)
        self._path = path
        self._warn = warn
        self._failed = False

    def load_history_strings(self) -> Iterable[str]:
        """Read all inputs, the latest first."""
        try:
            return list(super().load_history_strings())
        except OSError as error:
            self._fail(error, "earlier inputs are not remembered")
            return []

    def store_string(self, string: str) -> None:
        """Append an input to the file."""
        if self._failed:
            return
        lines = "".join(f"+{line}\n" for line in string.split("\n"))
        entry = f"\n# {datetime.now()}\n{lines}".encode(errors="replace")
        try:
            # Locked, so that programs at the same time neither mix nor truncate their entries.
            file = LockedFile(self._path, is_any=True, timeout_s=_TIMEOUT_S)
            try:
                file.append(entry, durable=False)
            finally:
                file.close()
        except OSError as error:
            self._fail(error, "what you type from here on is not remembered")

    def _fail(self, error: OSError, effect: str) -> None:
        self._failed = True
        self._warn(f"{str(self._path)!r}: {reason(error)}: {effect}")
