"""Editing of a settings file in the user's editor, without losing what was typed there."""

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from llama_chat.errors import LlamaChatError, SaveError, UsageError, reason
from llama_chat.files import write_atomically, write_new
from llama_chat.terminal import streams

_ADVICE = "name an editor in VISUAL or EDITOR"


def editor() -> list[str]:
    """Return the command that opens an editor: ``$VISUAL``, ``$EDITOR``, else nano or vi.

    Raises:
        UsageError: if there is none that could work.
    """
    for variable in ("VISUAL", "EDITOR"):
        try:
            words = shlex.split(os.environ.get(variable, ""))
        except ValueError:
            raise UsageError(variable, "a quote in it is never closed", _ADVICE) from None
        if words:
            return words
    found = shutil.which("nano") or shutil.which("vi")
    if found is None:
        raise UsageError("editor", "none is named, and neither nano nor vi is here", _ADVICE)
    # An editor that the user names may need no terminal; these do.
    if not streams.is_terminal(sys.stdin) or not streams.is_terminal(sys.stdout):
        raise UsageError("editor", f"none is named, and {found} needs a terminal", _ADVICE)
    return [found]


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
            _run(command, copy)
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


def _run(command: Sequence[str], path: Path) -> None:
    """Run the editor to its end."""
    what = f"editor {command[0]!r}"
    try:
        with _yielded_terminal():
            status = subprocess.run([*command, str(path)], check=False).returncode
    except OSError as error:
        raise UsageError(what, reason(error), _ADVICE) from None
    if status:
        how = f"it ended with status {status}" if status > 0 else f"signal {-status} ended it"
        raise LlamaChatError(what, how, "nothing was changed")


@contextmanager
def _yielded_terminal() -> Iterator[None]:
    """Leave Ctrl-C to another program in the terminal, and restore the terminal's mode after it."""
    terminal = sys.stdin if streams.is_terminal(sys.stdin) else None
    mode = termios.tcgetattr(terminal) if terminal else None
    handler = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if terminal and mode:
            with suppress(termios.error):  # it is closed
                termios.tcsetattr(terminal, termios.TCSADRAIN, mode)


def _ask_again(error: UsageError) -> bool:
    """Report an error and ask to edit again; returns False if there is no terminal."""
    if not streams.is_terminal(sys.stdin) or not streams.is_terminal(sys.stderr):
        return False
    streams.say(str(error))
    return streams.confirm("edit again?")
