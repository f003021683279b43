"""Editing of a settings file in the user's editor, without losing what was typed there."""

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llama_chat.errors import SaveError, UsageError, reason
from llama_chat.files import write_atomically, write_new
from llama_chat.terminal import streams
from llama_chat.terminal.editor import run_editor


def edit(path: Path, command: Sequence[str], check: Callable[[Path], object]) -> bool:
    """Let the user edit a copy of ``path``, which replaces it only once ``check`` accepts it.

    A symbolic link stays one: the file it points to is replaced.

    Args:
        path: the file.
        command: opens an editor; the path of the copy is appended.
        check: raises a UsageError if the copy is invalid.

    Returns:
        True if anything was changed.

    Raises:
        UsageError: if ``path`` cannot be read, or the copy is invalid.
        LlamaChatError: if the editor fails.
        SaveError: if the copy cannot be stored.
    """
    target = Path(os.path.realpath(path))
    before, mode = _read(target)
    with _copy_of(target, before) as copy:
        while True:
            run_editor(command, copy)
            after, _ = _read(copy)
            try:
                check(copy if after != before else path)
                break
            except UsageError as error:
                if not _ask_again(error):
                    raise
        if after == before:
            return False
        if _read(target)[0] != before:
            raise SaveError(repr(str(path)), "another program has changed it", "merge the two")
        write_atomically(target, after, mode)
    return True


def _read(path: Path) -> tuple[bytes, int]:
    """Read the bytes and the mode of a file."""
    what = f"file {str(path)!r}"
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UsageError(what, "not a file", "name one that can be edited")
        return path.read_bytes(), stat.S_IMODE(mode)
    except OSError as error:
        raise UsageError(what, reason(error), "check the path") from None


@contextmanager
def _copy_of(path: Path, data: bytes) -> Iterator[Path]:
    """Make a private copy beside ``path``; after a failure it is kept if it was changed."""
    copy = path.with_name(f"edited-{os.urandom(4).hex()}.toml")
    write_new(copy, data)
    try:
        yield copy
    except BaseException:
        if copy.is_file() and copy.read_bytes() != data:
            streams.say(f"what you wrote is kept in {copy}")
        else:
            copy.unlink(missing_ok=True)
        raise
    copy.unlink()


def _ask_again(error: UsageError) -> bool:
    """Report an error and ask to edit again; returns False if there is no terminal."""
    if not streams.is_terminal(sys.stdin) or not streams.is_terminal(sys.stderr):
        return False
    streams.say(str(error))
    return streams.confirm("edit again?")
