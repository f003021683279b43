"""A real pseudo-terminal with a screen that can be read."""

import os
import re
import select
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType

import pyte
from pyte.screens import Char

from harness.process import Process
from harness.program import COMMAND, environment

PATIENCE_S = 60.0

LEAVING_S = 10.0
"""How long a program may take to end once its window is closed."""

READY = r"template \w+\n›"
"""The model is there, and the input open."""

ESCAPE, CTRL_C, CTRL_D, CTRL_G, CTRL_J, CTRL_L, CTRL_R = "\x1b\x03\x04\x07\n\x0c\x12"
UP = "\x1b[A"


class Terminal:
    """The program, or another one, in a terminal of its own."""

    def __init__(
        self,
        *arguments: str | Path,
        home: Path,
        size: tuple[int, int] = (160, 40),
        command: Sequence[str] = COMMAND,
        **env: str,
    ) -> None:
        columns, lines = size
        self.screen = pyte.HistoryScreen(columns, lines, history=5000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self._scrolled: list[str] = []
        """The text of the rows of the scrollback, which no longer change."""
        self._last_scrolled: Mapping[int, Char] | None = None
        """The last of these rows."""
        self.raw = b""
        self.descriptor, theirs = os.openpty()
        try:
            termios.tcsetwinsize(theirs, (lines, columns))
            self.child = Process(
                [*command, *map(str, arguments)],
                environment(home, **env),
                {0: theirs},
                terminal=True,
            )
        finally:
            os.close(theirs)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(TimeoutError):
            self.vanish()
        self.child.end()

    @property
    def text(self) -> str:
        """Scrollback and screen, without the blanks at the right."""
        history = self.screen.history.top
        n_known = len(self._scrolled)
        if n_known and (len(history) < n_known or history[n_known - 1] is not self._last_scrolled):
            self._scrolled.clear()  # it was cleared, or its oldest rows have gone
        self._scrolled += [row(cells) for cells in islice(history, len(self._scrolled), None)]
        self._last_scrolled = history[-1] if history else None
        return "\n".join([*self._scrolled, self.shown])

    @property
    def shown(self) -> str:
        """The screen alone."""
        buffer = self.screen.buffer
        return "\n".join(row(buffer[y]) for y in range(self.screen.lines))

    def resize(self, columns: int, lines: int) -> None:
        """Make the window larger or smaller."""
        self.screen.resize(lines, columns)
        termios.tcsetwinsize(self.descriptor, (lines, columns))

    def paste(self, text: str) -> None:
        """Paste, as terminals do where the program asked them to tell."""
        self.type(f"\x1b[200~{text}\x1b[201~")

    def type(self, keys: str) -> None:
        """Press keys."""
        data = keys.encode()
        while data:
            data = data[os.write(self.descriptor, data) :]

    def line(self, text: str) -> None:
        """Type a line and press Enter."""
        self.type(text + "\r")

    def send(self, text: str) -> None:
        """Paste a line once the input is open, send it, and wait until the input has closed.

        Each key that is typed takes the program half a millisecond.
        """
        toolbar = re.compile(r"context \d+/\d+")
        self._wait(lambda: bool(toolbar.search(self.shown)), "toolbar")
        self.paste(text)
        self.type("\r")
        self._wait(lambda: not toolbar.search(self.shown), "end of the input")

    def no_echo(self) -> None:
        """Do not show what is typed, as for a password."""
        modes = termios.tcgetattr(self.descriptor)
        modes[3] &= ~termios.ECHO
        termios.tcsetattr(self.descriptor, termios.TCSANOW, modes)

    def skim(self) -> None:
        """Take what arrives until the input opens, and draw it only then.

        Drawing takes as much of a processor as a small model does.
        """
        self._draw(self.take_until(b"\x1b[?2004h"))

    def take_until(self, end: bytes) -> bytes:
        """Take what arrives up to ``end``, and perhaps more, without drawing it."""
        data = b""
        while end not in data:
            data += self._take(PATIENCE_S) or b""
        return data

    def wait_for(self, pattern: str) -> str:
        """Wait until the text matches ``pattern``, and return the text."""
        self._wait(lambda: bool(re.search(pattern, self.text)), repr(pattern))
        return self.text

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"no {what} in:\n{self.text}")
            self._read()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true of the text."""
        self._wait(condition, "change")

    def watch_for(self, seconds: float) -> bytes:
        """Take what arrives in so many seconds, and return it."""
        before, end = len(self.raw), time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._read(min(left, 0.2))
        return self.raw[before:]

    def wait_until_asleep(self) -> None:
        """Wait until the program's first thread waits for something, such as a key."""
        stat = Path(f"/proc/{self.child.pid}/stat")
        self._wait(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "rest")

    def wait_for_quiet(self) -> None:
        """Wait until the program does nothing more of its own."""
        while self.watch_for(0.5):
            pass

    def ask(self, line: str, answer: str) -> str:
        """Send a line, and return what is written below it up to and with ``answer``."""
        below = re.compile(rf"^› {re.escape(line)}\n((?:(?!\n› )[\s\S])*?(?:{answer}))", re.M)
        before = len(below.findall(self.text))
        self.line(line)
        self._wait(lambda: len(below.findall(self.text)) > before, f"{line!r}: {answer!r}")
        *_, last = below.finditer(self.text)
        return last[1]

    def refuse(self, line: str, why: str) -> str:
        """Send a line that is refused: it stays in the input, and Ctrl-C clears it."""
        error = self.ask(line, why)
        self.wait_for(rf"› {re.escape(line)}\s*\Z|› {re.escape(line)}\n(?=\n* .*temp)")
        self.type(CTRL_C)
        self.wait_for(r"›\n(?=\n* .*temp)")
        return error

    def vanish(self) -> None:
        """Close the window while the program runs, and wait until that has ended.

        Raises:
            TimeoutError: if it does not end.
        """
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        self.child.wait(LEAVING_S)

    def wait_for_end(self) -> int:
        """Wait until the program has ended, and return its status as a shell tells it."""
        while self._read():
            pass
        status = self.child.wait(PATIENCE_S)
        return status if status >= 0 else 128 - status

    def _read(self, patience_s: float = 0.2) -> bool:
        """Take what has arrived, waiting a moment, and draw it; False at the end."""
        data = self._take(patience_s)
        if data:
            self._draw(data)
        return data is not None

    def _take(self, patience_s: float) -> bytes | None:
        """Take what has arrived, waiting a moment; None at the end."""
        if not select.select([self.descriptor], [], [], patience_s)[0]:
            return b""
        try:
            return os.read(self.descriptor, 65536) or None
        except OSError:  # EIO: no program holds the terminal open any more
            return None

    def _draw(self, data: bytes) -> None:
        self.raw += data
        self._stream.feed(data)
        # The prompt asks where the cursor is; a terminal answers.
        if b"\x1b[6n" in data:
            cursor = self.screen.cursor
            self.type(f"\x1b[{cursor.y + 1};{cursor.x + 1}R")


def row(cells: Mapping[int, Char]) -> str:
    """The text of a row, without the blanks at the right.

    Not ``screen.display``, which takes longer than the model: this is asked after every read.
    """
    return "".join([cells[x].data for x in range(max(cells, default=-1) + 1)]).rstrip()
