"""The user's editor, in the terminal of the program."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from llama_chat.errors import LlamaChatError, SaveError, UsageError, reason
from llama_chat.files import without_final_newline
from llama_chat.terminal import streams

_ADVICE = "name an editor in VISUAL or EDITOR"

_POLL_S = 0.2


def find_editor() -> list[str]:
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


def run_editor(
    command: Sequence[str], path: Path, should_stop: Callable[[], bool] = lambda: False
) -> None:
    """Run the editor to its end.

    Args:
        command: opens it; the path is appended.
        path: the file to edit.
        should_stop: asked often; the editor is ended once it is True.

    Raises:
        UsageError: if the editor cannot be started.
        LlamaChatError: if it fails.
    """
    what = f"editor {command[0]!r}"
    try:
        with _yielded_terminal(), subprocess.Popen([*command, str(path)]) as editor:
            try:
                status = _wait(editor, should_stop)
            except BaseException:  # a signal
                editor.kill()
                raise
    except (OSError, ValueError) as error:
        raise UsageError(what, reason(error), _ADVICE) from None
    if status:
        how = f"it ended with status {status}" if status > 0 else f"signal {-status} ended it"
        raise LlamaChatError(what, how, "nothing was changed")


def _wait(editor: "subprocess.Popen[bytes]", should_stop: Callable[[], bool]) -> int:
    while True:
        try:
            return editor.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            if should_stop():
                editor.terminate()


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


def edit_text(text: str, should_stop: Callable[[], bool]) -> str:
    """Let the user edit ``text``, and return it without the final newline that editors add.

    Bytes that are not UTF-8 become U+FFFD.

    Raises:
        UsageError: if there is no editor.
        LlamaChatError: if it fails.
        SaveError: if the text cannot be stored for it.
    """
    command = find_editor()
    before = text.encode("utf-8", "replace")
    try:
        # A folder, for what editors leave beside the file.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "message.md"
            path.write_bytes(before)
            run_editor(command, path, should_stop)
            after = path.read_bytes()
    except OSError as error:
        advice = "free space for temporary files, or set TMPDIR"
        raise SaveError("text for the editor", reason(error), advice) from None
    if after == before:
        return text
    return without_final_newline(after.decode("utf-8", "replace"))
