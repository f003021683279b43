"""Input by readline, for screen readers and for terminals that only print."""

import readline
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prompt_toolkit.history import History

from llama_chat.terminal.sanitizer import restored, sanitize

_POLL_S = 0.1


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

    def __init__(self, history: History, poll: Callable[[], None]) -> None:
        """Create the input, closed.

        Args:
            history: earlier inputs.
            poll: raises what ends the input; called many times a second while it is open.
        """
        self._remembered: dict[str, str] = {}
        """Earlier inputs, by what is shown of them."""
        readline.clear_history()
        for line in reversed(list(history.load_history_strings())):
            self._remember(line)
        readline.set_auto_history(False)
        readline.parse_and_bind(r'"\C-j": "\C-v\C-j"')
        self._history = history
        self._poll = poll

    @property
    def text(self) -> str:
        """Empty text: the line is not known before it is sent."""
        return ""

    def read(self, default: str = "") -> str:
        """See ``Input``."""
        readline.set_startup_hook(lambda: readline.insert_text(sanitize(default)))
        try:
            with _echo(), _polling(self._poll):
                line = input("> ")
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")  # the cursor is still at the end of the typed line
            raise
        line = restored(line, self._remembered.get(line, default))
        if line.strip():
            self._history.append_string(line)
            self._remember(line)
        return line

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

    def end(self, error: BaseException) -> None:
        """Do nothing: ``read`` cannot be ended from outside."""
