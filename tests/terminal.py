"""A real pseudo-terminal with a screen that can be read."""

import re
import time
from pathlib import Path
from types import TracebackType

import pexpect
import pyte

from tests.program import COMMAND, environment

PATIENCE_S = 60.0


class Terminal:
    """The program in a terminal of its own."""

    def __init__(
        self, *arguments: str | Path, home: Path, size: tuple[int, int] = (100, 40), **env: str
    ) -> None:
        columns, lines = size
        self.screen = pyte.HistoryScreen(columns, lines, history=5000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.child = pexpect.spawn(
            COMMAND[0],
            [*COMMAND[1:], *map(str, arguments)],
            env=environment(home, **env),
            dimensions=(lines, columns),
            timeout=PATIENCE_S,
        )
        self.child.delaybeforesend = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.child.close(force=True)

    @property
    def text(self) -> str:
        """Scrollback and screen, without the blanks at the right."""
        gone = [
            "".join(line[x].data for x in range(self.screen.columns))
            for line in self.screen.history.top
        ]
        return "\n".join(line.rstrip() for line in [*gone, *self.screen.display])

    def type(self, keys: str) -> None:
        """Press keys."""
        self.child.send(keys)

    def line(self, text: str) -> None:
        """Type a line and press Enter."""
        self.type(text + "\r")

    def wait_for(self, pattern: str) -> str:
        """Wait until the text matches ``pattern``, and return the text."""
        end = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.text):
            if time.monotonic() > end:
                raise AssertionError(f"no {pattern!r} in:\n{self.text}")
            self._read()
        return self.text

    def wait_for_end(self) -> int:
        """Wait until the program has ended, and return its status as a shell tells it."""
        while self._read():
            pass
        self.child.wait()
        if self.child.signalstatus is not None:
            return 128 + int(self.child.signalstatus)
        return int(self.child.exitstatus)

    def _read(self) -> bool:
        """Take what has arrived, waiting a moment; False at the end."""
        try:
            data = self.child.read_nonblocking(65536, timeout=0.2)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        # The prompt asks where the cursor is; a terminal answers.
        if b"\x1b[6n" in data:
            cursor = self.screen.cursor
            self.child.send(f"\x1b[{cursor.y + 1};{cursor.x + 1}R")
        return True
