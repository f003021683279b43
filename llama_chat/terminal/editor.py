"""The user's editor, in the terminal of the program."""

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from llama_chat.errors import LlamaChatError, SaveError, UsageError, is_full_disk, reason
from llama_chat.files import without_final_newline
from llama_chat.terminal import streams
from llama_chat.terminal.foreground import run_foreground

_ADVICE = "name an editor in VISUAL or EDITOR"


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
        status = run_foreground([*command, str(path)], should_stop)
    except (OSError, ValueError) as error:
        raise UsageError(what, reason(error), _ADVICE) from None
    if status:
        how = f"it ended with status {status}" if status > 0 else f"signal {-status} ended it"
        raise LlamaChatError(what, how, "nothing was changed")


def edit_text(text: str, should_stop: Callable[[], bool]) -> str:
    """Let the user edit ``text``, and return it without the final newline that editors add.

    Text that was written but cannot be returned stays in its file, which the error names. Once
    ``should_stop`` is True, the text as it is in the file is returned.

    Raises:
        UsageError: if there is no editor, or the text is not UTF-8.
        LlamaChatError: if the editor fails.
        SaveError: if the text cannot be stored for it, or is gone.
    """
    command = find_editor()
    before = text.encode("utf-8", "replace")
    try:
        folder = Path(tempfile.mkdtemp())  # for the editor's own files, too
        path, keeps = folder / "message.md", False
        try:
            path.write_bytes(before)
            run_editor(command, path, should_stop)
            after = path.read_bytes()
            return text if after == before else without_final_newline(after.decode("utf-8"))
        except (LlamaChatError, UnicodeDecodeError) as error:
            after = path.read_bytes() if path.exists() else before
            if should_stop():
                return without_final_newline(after.decode("utf-8", "replace"))
            keeps = after != before
            raise _failure(error, path if keeps else None) from None
        finally:
            if not keeps:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        free = "free space for temporary files, or " if is_full_disk(error) else ""
        raise SaveError("text for the editor", reason(error), f"{free}set TMPDIR") from None


def _failure(error: LlamaChatError | UnicodeDecodeError, kept: Path | None) -> LlamaChatError:
    """Return the error to report, which names the file that is kept, if one is."""
    if isinstance(error, UnicodeDecodeError):
        why = f"byte {error.start} is not UTF-8"
        return UsageError("text of the editor", why, f"it is kept in {kept}")
    if kept is None or isinstance(error, UsageError):
        return error
    return LlamaChatError(error.what, error.why, f"what you wrote is kept in {kept}")
