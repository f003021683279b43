"""stdin, stdout and stderr: terminal checks, reading and writing."""

import json
import os
import select
import sys
from typing import Any, NoReturn, TextIO, cast

from llama_chat.errors import ClosedPipe, LlamaChatError, SaveError, UsageError, reason
from llama_chat.files import MAX_PROMPT_BYTES, decode_text
from llama_chat.terminal.sanitizer import escaped, sanitize, sanitize_data

_STDIN_DELAY_S = 2.0


def is_terminal(stream: TextIO | None) -> bool:
    """True if ``stream`` is open and a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def is_dumb() -> bool:
    """True if nothing is known of the terminal: it may only print."""
    return os.environ.get("TERM") in ("dumb", "unknown")


def prepare() -> None:
    """Make all streams UTF-8 in every locale, without newline translation, and guard stdout."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace", newline="\n")
    if not isinstance(sys.stdout, _Output):
        sys.stdout = cast("TextIO", _Output(sys.stdout))


def end() -> None:
    """Discard what stderr did not take, which would change the exit status: see ``_discard``."""
    try:
        if sys.stderr is not None and not sys.stderr.closed:
            sys.stderr.flush()
    except OSError:
        _discard(2)


def _discard(descriptor: int) -> None:
    """Lose what is left for a descriptor: Python flushes at its end, which must not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


class _Output:
    """stdout for all who write to it, libraries too: a failure is an exception of ours.

    What is written is flushed at once.

    Raises:
        LlamaChatError: if stdout is closed.
        SaveError: if it cannot be written, as on a full disk.
        ClosedPipe: if the reader has gone.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def closed(self) -> bool:
        """True if there is no stream to write to."""
        return self._stream is None or self._stream.closed

    def isatty(self) -> bool:
        """True if it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        """Write and flush ``text``."""
        if self._stream is None or self._stream.closed:
            raise LlamaChatError("stdout", "closed", "the output would be lost: open it")
        if text == "":
            return 0  # libraries probe streams so; on a full disk even that would fail
        try:
            length = self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            self._fail(error)
        return length

    def flush(self) -> None:
        """Flush what was written to the stream below."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            self._fail(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _fail(self, error: OSError) -> NoReturn:
        """Raise the exception for ``error``, after discarding what could not be written."""
        _discard(1)
        if isinstance(error, BrokenPipeError):
            raise ClosedPipe from None
        raise SaveError("stdout", reason(error), "its output is lost: write it elsewhere") from None


def use_color(choice: str, stream: TextIO | None) -> bool:
    """Decide on colours by the flag, ``NO_COLOR``, ``FORCE_COLOR``, then the terminal."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return is_terminal(stream) and not is_dumb()


def read_stdin(*, quiet: bool = False, advice: str = "", must_fit: bool = True) -> str:
    """Read all of stdin as text.

    Args:
        quiet: whether to write nothing if nothing comes for two seconds.
        advice: the end of the line that is written then.
        must_fit: False for a text that need not fit in a context.

    Raises:
        UsageError: if it is closed, binary, not UTF-8 or too large.
        PromptTooLongError: if it ``must_fit``, and is too large.
    """
    if sys.stdin is None:
        raise UsageError("stdin", "closed", "pipe a text to it")
    if not quiet and not select.select([sys.stdin], [], [], _STDIN_DELAY_S)[0]:
        say(f"llama-chat: waiting for a text on stdin{advice}")
    return decode_text(sys.stdin.buffer, "stdin", MAX_PROMPT_BYTES, must_fit=must_fit)


def say(line: str) -> None:
    """Write one line to stderr; do nothing if that is closed."""
    if sys.stderr is None:  # for print, None is stdout
        return
    try:
        print(sanitize(line), file=sys.stderr, flush=True)  # noqa: T201 - the one place
    except (OSError, ValueError):
        return


def warn(line: str) -> None:
    """Write a warning to stderr."""
    say(f"llama-chat: warning: {one_line(line)}")


def fail(line: str) -> None:
    """Write the error that ends the program to stderr."""
    say(f"llama-chat: error: {one_line(line)}")


def confirm(question: str, *, by_enter: bool = True) -> bool:
    """Ask a yes-or-no question on stderr; Enter is yes if ``by_enter``, the end of input is no."""
    sys.stderr.write(f"{sanitize(question)} [{'Y/n' if by_enter else 'y/N'}] ")
    sys.stderr.flush()
    reply = sys.stdin.readline()
    agreeing = ("y", "yes", "") if by_enter else ("y", "yes")
    return reply.strip().lower() in agreeing and reply != ""


def one_line(text: str) -> str:
    """Return ``text`` with every run of white space made one space."""
    return " ".join(text.split())


class AnswerWriter:
    """Writer of an answer to stdout as it is generated, ended with exactly one newline."""

    def __init__(self, *, raw: bool = False) -> None:
        """Write to stdout; with ``raw`` every character unchanged, and none added."""
        sys.stdout.write("")  # if stdout is closed, that is an error before any work
        self._raw = raw
        self._is_shown = is_terminal(sys.stdout)
        self._sanitize = sanitize if self._is_shown else sanitize_data
        self._held = ""
        """Newlines at the end of what was written, or a carriage return."""
        self._empty = True

    def write(self, text: str) -> None:
        """Write a piece of the answer; newlines at its end are held until more text follows.

        On a terminal, blanks at the beginning of the answer are left out.
        """
        if not text:
            return
        if not self._raw:
            if self._is_shown and self._empty and not self._held:
                text = text.lstrip(" ")
            text = self._held + text
            body = text.rstrip("\r\n")
            self._held = text[len(body) :]
            text = self._sanitize(body)
        if text:
            self._empty = False
            sys.stdout.write(text)

    def finish(self) -> None:
        """End the answer."""
        if not self._raw:
            returns = self._sanitize(self._held).rstrip("\r\n")
            if returns or not self._empty:
                sys.stdout.write(returns + "\n")
        self._held, self._empty = "", True


def write_own(text: str) -> None:
    """Write text that is the program's own, with any escape sequences, to stdout."""
    AnswerWriter(raw=True).write(text)


def to_json(value: object, indent: int | None = None) -> str:
    """Return ``value`` as JSON, with readable text and all control characters escaped."""
    return escaped(json.dumps(value, ensure_ascii=False, indent=indent)) + "\n"


def write_json(value: object) -> None:
    """Write one line of JSON to stdout."""
    write_own(to_json(value))
