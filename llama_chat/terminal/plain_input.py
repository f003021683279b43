"""Input by readline, for screen readers and for terminals that only print."""

import fcntl
import os
import readline
import select
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prompt_toolkit.completion import CompleteEvent, Completer
from prompt_toolkit.document import Document
from prompt_toolkit.history import History

from llama_chat.terminal.raw_input import PAUSE_S
from llama_chat.terminal.sanitizer import restored, sanitize
from llama_chat.terminal.streams import write_own

_POLL_S = 0.1

_NEWLINE = r'"\C-v\C-j"'

_BINDINGS = (
    "tab: complete",
    "set enable-active-region off",  # it would write a paste twice
    rf'"\C-j": {_NEWLINE}',
    rf'"\e\C-m": {_NEWLINE}',
    # Enter with Shift, Ctrl or Alt, in the forms of CSI u and modifyOtherKeys.
    *(rf'"\e[13;{modifiers}u": {_NEWLINE}' for modifiers in range(2, 9)),
    *(rf'"\e[27;{modifiers};13~": {_NEWLINE}' for modifiers in range(2, 9)),
    r'"\e[": skip-csi-sequence',  # of keys that are not known
)


def _bracketed_paste() -> str:
    """Return the line that tells readline to mark pastes, which Python has turned off.

    Most terminals can, whatever their name; a shell within Emacs would show the sequence.
    """
    can = os.environ.get("TERM") != "dumb" or "INSIDE_EMACS" not in os.environ
    return f"set enable-bracketed-paste {'on' if can else 'off'}"


def _n_waiting() -> int:
    """Return the number of bytes that were typed and not read."""
    return int.from_bytes(fcntl.ioctl(sys.stdin, termios.FIONREAD, bytes(4)), sys.byteorder)


@contextmanager
def _echo() -> Iterator[None]:
    """Set the terminal to echo, which readline does only where it finds that.

    All else stays: readline changes it itself, and Enter typed before it does must stay Enter.
    """
    descriptor = sys.stdin.fileno()
    held = termios.tcgetattr(descriptor)
    echoing = termios.tcgetattr(descriptor)
    echoing[3] |= termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSANOW, echoing)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, held)


@contextmanager
def _polling(poll: Callable[[], None]) -> Iterator[None]:
    """Call ``poll`` often, also while readline waits for a key; it may raise.

    Readline notices a signal only if that comes while it waits, not just before.
    """
    signal.signal(signal.SIGALRM, lambda number, frame: poll())
    signal.setitimer(signal.ITIMER_REAL, _POLL_S, _POLL_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class PlainInput:
    """Input by readline: nothing is drawn that a screen reader would read again."""

    def __init__(
        self,
        history: History,
        completer: Callable[[], Completer],
        poll: Callable[[], None],
        *,
        vi: bool = False,
    ) -> None:
        """Create the input, closed.

        Args:
            history: earlier inputs.
            completer: returns one for Tab; called for each line.
            poll: raises what ends the input; called many times a second while it is open.
            vi: whether the keys are those of vi.
        """
        self._remembered: dict[str, str] = {}
        """Earlier inputs, by what is shown of them."""
        readline.clear_history()
        for line in reversed(list(history.load_history_strings())):
            self._remember(line)
        readline.set_auto_history(False)
        keys = f"set editing-mode {'vi' if vi else 'emacs'}"
        for line in (keys, _bracketed_paste(), *_BINDINGS):
            readline.parse_and_bind(line)
        readline.set_completer_delims("")  # what it completes is the line up to the cursor
        readline.set_completer(self._completion)
        self._new_completer = completer
        self._completions: list[str] = []
        self._history = history
        self._poll = poll
        self._at_end = False
        """True if Ctrl-D followed a line at once."""

    @property
    def text(self) -> str:
        """Empty text: the line is not known before it is sent."""
        return ""

    def read(self, default: str = "", *, selected: bool = False) -> str:
        """See ``Input``."""
        if self._at_end:
            raise EOFError
        try:
            with _echo(), _polling(self._poll):
                line = self._read(default)
        except (EOFError, KeyboardInterrupt) as error:
            if draft := readline.get_line_buffer():
                self._remember(draft)
                if isinstance(error, EOFError):  # of a signal: Ctrl-D ends an empty line
                    self._history.append_string(draft)
            write_own("\n")  # the cursor is still at the end of the typed line
            raise
        line = restored(line, self._remembered.get(line, default))
        if line.strip():
            self._history.append_string(line)
            self._remember(line)
        return line

    def _read(self, default: str) -> str:
        """Read a line, and those that follow at once: they belong to a paste."""
        self._completer = self._new_completer()
        n_early = _n_waiting()  # typed before the line was open, at an unknown speed
        readline.set_startup_hook(lambda: readline.insert_text(sanitize(default)))
        lines = [input("> ")]
        readline.set_startup_hook(None)
        if n_early <= len(lines[0].encode()) + 1:
            while select.select([sys.stdin], [], [], PAUSE_S)[0]:
                try:
                    lines.append(input())
                except EOFError:
                    self._at_end = True
                    break
        return "\n".join(lines)

    def _completion(self, line: str, number: int) -> str | None:
        """Return a completion of ``line``; None if there are no more."""
        if number == 0:
            asked = CompleteEvent(completion_requested=True)
            completed = [
                line[: len(line) + found.start_position] + found.text
                for found in self._completer.get_completions(Document(line), asked)
            ]
            # Readline writes them as they are.
            self._completions = [text for text in completed if sanitize(text) == text]
            if not line.startswith("/"):  # a tab in a paste that the terminal does not mark
                self._completions = [line + "\t"]
        return self._completions[number] if number < len(self._completions) else None

    def _remember(self, line: str) -> None:
        shown = sanitize(line)
        readline.add_history(shown)
        if shown != line:
            self._remembered[shown] = line

    def clear(self) -> None:
        """Do nothing: a line cannot be changed before it is sent."""

    def redraw(self) -> None:
        """Do nothing: there is no toolbar."""

    def call(self, act: Callable[[], object]) -> None:
        """Do nothing: background jobs are handled before the next line is read."""

    def write_above(self, write: Callable[[], None]) -> None:
        """Do nothing: a line that is being read must not be disturbed."""

    def close(self) -> None:
        """Do nothing: the terminal's mode is left after each line."""

    def end(self, error: BaseException) -> None:
        """Do nothing: ``read`` cannot be ended from outside."""
