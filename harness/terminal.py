"""Pseudo-terminal with an emulated screen."""

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

TIMEOUT_S = 60.0

LEAVING_S = 10.0
"""Longest time that a program may take to end once its window is closed."""

READY = r"template \w+\n›"
"""Pattern of the text once the model is loaded and the input is open."""

_FRAME_S = 1 / 30
"""Time between two drawings of a window."""

OPENS = b"\x1b[?7l\x1b[0m\x1b[K"
"""Beginning of the first drawing of an input, and of no other."""

ESCAPE, CTRL_C, CTRL_D, CTRL_G, CTRL_J, CTRL_L, CTRL_R = "\x1b\x03\x04\x07\n\x0c\x12"
UP = "\x1b[A"


def new_modes() -> list[object]:
    """Return the modes of a new terminal, which a program may change as soon as it is started."""
    ours, theirs = os.openpty()
    try:
        return termios.tcgetattr(ours)
    finally:
        os.close(ours)
        os.close(theirs)


class Terminal:
    """Terminal in which the program, or another one, runs."""

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
        """Text of the rows of the scrollback, which no longer change."""
        self._last_scrolled: Mapping[int, Char] | None = None
        """Last of these rows, as pyte holds it."""
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
        """Text of scrollback and screen, without trailing blanks."""
        history = self.screen.history.top
        n_known = len(self._scrolled)
        if n_known and (len(history) < n_known or history[n_known - 1] is not self._last_scrolled):
            self._scrolled.clear()  # it was cleared, or its oldest rows have gone
        self._scrolled += [row(cells) for cells in islice(history, len(self._scrolled), None)]
        self._last_scrolled = history[-1] if history else None
        return "\n".join([*self._scrolled, self.shown])

    @property
    def shown(self) -> str:
        """Text of the screen, without trailing blanks."""
        buffer = self.screen.buffer
        return "\n".join(row(buffer[y]) for y in range(self.screen.lines))

    def resize(self, columns: int, lines: int) -> None:
        """Make the window larger or smaller."""
        self.screen.resize(lines, columns)
        termios.tcsetwinsize(self.descriptor, (lines, columns))

    def paste(self, text: str) -> None:
        """Paste, as a terminal does in bracketed paste mode."""
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
        """Paste a line once the input is open, press Enter, and wait until the input has closed.

        A paste is one event; typed keys take half a millisecond each.
        """
        toolbar = re.compile(r"context \d+/\d+")
        self._wait(lambda: bool(toolbar.search(self.shown)), "toolbar")
        self.paste(text)
        self.type("\r")
        self._wait(lambda: not toolbar.search(self.shown), "end of the input")

    def no_echo(self) -> None:
        """Turn off echo, as for a password."""
        modes = termios.tcgetattr(self.descriptor)
        modes[3] &= ~termios.ECHO
        termios.tcsetattr(self.descriptor, termios.TCSANOW, modes)

    def skim(self) -> None:
        """Read output until the input opens, and draw it only then.

        Drawing takes as much CPU time as a small model, and so does waking up for each of its
        tokens: so output is read only as often as a window is drawn.
        """
        data = b""
        while OPENS not in data:
            time.sleep(_FRAME_S)
            data += self._take(TIMEOUT_S) or b""
        self._draw(data)

    def take_until(self, end: bytes) -> bytes:
        """Read output up to ``end``, and perhaps more, without drawing it."""
        data = b""
        while end not in data:
            data += self._take(TIMEOUT_S) or b""
        return data

    def wait_for(self, pattern: str) -> str:
        """Wait until the text matches ``pattern``, and return the text."""
        self._wait(lambda: bool(re.search(pattern, self.text)), repr(pattern))
        return self.text

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"no {what} in:\n{self.text}")
            self._read()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Draw output until ``condition`` holds."""
        self._wait(condition, "change")

    def watch_for(self, seconds: float) -> bytes:
        """Read and draw output for ``seconds``, and return it."""
        before, end = len(self.raw), time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._read(min(left, 0.2))
        return self.raw[before:]

    def wait_until_asleep(self) -> None:
        """Wait until the program's main thread sleeps, as while it waits for a key."""
        stat = Path(f"/proc/{self.child.pid}/stat")
        self._wait(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "rest")

    def wait_for_quiet(self) -> None:
        """Wait until the program has written nothing for half a second."""
        while self.watch_for(0.5):
            pass

    def ask(self, line: str, answer: str) -> str:
        """Send a line, and return the text below it up to the end of a match of ``answer``."""
        below = re.compile(rf"^› {re.escape(line)}\n((?:(?!\n› )[\s\S])*?(?:{answer}))", re.M)
        before = len(below.findall(self.text))
        self.line(line)
        self._wait(lambda: len(below.findall(self.text)) > before, f"{line!r}: {answer!r}")
        *_, last = below.finditer(self.text)
        return last[1]

    def refuse(self, line: str, why: str) -> str:
        """Send a line that is refused, check that it stays in the input, and clear it."""
        error = self.ask(line, why)
        self.wait_for(rf"› {re.escape(line)}\s*\Z|› {re.escape(line)}\n(?=\n* .*temp)")
        self.type(CTRL_C)
        self.wait_for(r"›\n(?=\n* .*temp)")
        return error

    def vanish(self, timeout_s: float | None = None) -> None:
        """Close the window while the program runs, and wait until the program has ended.

        Raises:
            TimeoutError: if it does not end within ``timeout_s``, or else ``LEAVING_S``.
        """
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        self.child.wait(LEAVING_S if timeout_s is None else timeout_s)

    def wait_for_end(self) -> int:
        """Wait until the program has ended, and return its exit status as a shell reports it."""
        while self._read():
            pass
        status = self.child.wait(TIMEOUT_S)
        return status if status >= 0 else 128 - status

    def _read(self, timeout_s: float = 0.2) -> bool:
        """Read and draw output that arrives within ``timeout_s``; False at the end."""
        data = self._take(timeout_s)
        if data:
            self._draw(data)
        return data is not None

    def _take(self, timeout_s: float) -> bytes | None:
        """Read output that arrives within ``timeout_s``; None at the end."""
        if not select.select([self.descriptor], [], [], timeout_s)[0]:
            return b""
        try:
            return os.read(self.descriptor, 65536) or None
        except OSError:  # EIO: no program holds the terminal open any more
            return None

    def _draw(self, data: bytes) -> None:
        self.raw += data
        self._stream.feed(data)
        # The input asks for the position of the cursor; a terminal answers.
        if b"\x1b[6n" in data:
            cursor = self.screen.cursor
            self.type(f"\x1b[{cursor.y + 1};{cursor.x + 1}R")


def row(cells: Mapping[int, Char]) -> str:
    """Return the text of a row, without trailing blanks.

    It is called after every read; ``screen.display`` would take longer than the model.
    """
    return "".join([cells[x].data for x in range(max(cells, default=-1) + 1)]).rstrip()
