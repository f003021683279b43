"""Status below a reply while it is written."""

import os
import re
import signal
import time
from types import FrameType, TracebackType
from typing import IO, Any, cast

from prompt_toolkit.utils import get_cwidth
from rich.console import Console

from llama_chat.errors import counted

PERIOD_S = 0.25
"""Time between two drawings."""

_MARGIN = 8
"""Columns at the right edge that text must not come near while the status is shown: a cursor that
waits there to wrap cannot be moved and brought back in every terminal."""

_UNSURE = 0x1F000
"""First of the characters on whose width terminals disagree."""

_CONTROL_SEQUENCES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


class StatusLine:
    """Line below the cursor: tokens so far, their speed, and how to stop.

    It stands in for the console's file, and lies after all that is written there. It is erased
    before text can reach it, so that it is never scrolled; the text itself is passed on unchanged.
    """

    def __init__(self, console: Console, *, hidden: bool, colored: bool) -> None:
        """Begin at the start of a line.

        Args:
            console: where the reply is written.
            hidden: whether to show nothing.
            colored: whether the status may be dim.
        """
        self._console = console
        self._file = console.file
        self._hidden = hidden
        self._style = ("\x1b[0;2m", "\x1b[0m") if colored else ("", "")
        self._n_tokens = 0
        self._began = 0.0
        self._drawn_at = 0.0
        self._shown = False
        self._column = 0
        self._width = console.width
        self._is_sure = True
        """True if the column is known in every terminal."""
        self._on_suspend: Any = None

    def __enter__(self) -> "StatusLine":
        if not self._hidden:
            self._console.file = cast("IO[str]", self)
            self._on_suspend = signal.signal(signal.SIGTSTP, self._suspend)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._hidden:
            self._console.file = self._file
            signal.signal(signal.SIGTSTP, self._on_suspend)
            self._erase()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write text of the reply."""
        width = self._console.width
        self._is_sure &= width == self._width
        self._width = width
        before = self._column
        wraps = self._follow(text)
        if self._shown and (wraps or max(before, self._column) > width - _MARGIN):
            self._erase()
        return self._file.write(text)

    def count(self) -> None:
        """Count a token, and draw the status if it is time."""
        now = time.monotonic()
        self._began = self._began or now
        self._drawn_at = self._drawn_at or now
        self._n_tokens += 1
        if not self._hidden and now - self._drawn_at >= PERIOD_S:
            self._draw(now)

    def _draw(self, now: float) -> None:
        if not self._is_sure or self._column > self._width - _MARGIN:
            return
        speed = (self._n_tokens - 1) / (now - self._began)
        words = f"{counted(self._n_tokens, 'token')} · {speed:.1f} tok/s · Ctrl-C stops"
        on, off = self._style
        # A line down, which scrolls the last one, and up again: then there is one below.
        line = f"\x1b[B\r\x1b[2K{on}{words[: self._width - 2]}{off}"
        self._file.write(f"\x1bD\x1b[A\x1b7{line}\x1b8")
        self._file.flush()
        self._shown, self._drawn_at = True, now

    def _erase(self) -> None:
        if self._shown:
            self._shown = False
            self._file.write("\x1b[J")
            self._file.flush()

    def _follow(self, text: str) -> bool:
        """Move the column over ``text``; returns True if it begins a row."""
        if text.isascii() and text.isprintable() and self._column + len(text) <= self._width:
            self._column += len(text)
            return False
        wraps = False
        for character in _CONTROL_SEQUENCES.sub("", text):
            if character in "\n\r":
                wraps |= character == "\n"
                self._column, self._is_sure = 0, True
            elif character == "\t":
                self._column = min(self._column // 8 * 8 + 8, self._width - 1)
            else:
                width = get_cwidth(character)
                self._is_sure &= width > 0 and ord(character) < _UNSURE
                if self._column + width > self._width:
                    self._is_sure &= self._column == self._width
                    self._column, wraps = 0, True
                self._column += width
        return wraps

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Erase the status before Ctrl-Z gives the terminal to the shell."""
        self._erase()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._suspend)
