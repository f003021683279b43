"""Ctrl-C while no key is being read."""

import signal
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """Ctrl-C, while something was waited for."""


class Interrupts:
    """Turns Ctrl-C into a question that can be asked, so that it never strikes half-way.

    It counts from when a line is sent until the next one can be typed, whatever goes on meanwhile.
    """

    def __init__(self) -> None:
        self.pending = False
        """Whether it was pressed since it was last taken."""
        self._before: Any = None

    def __enter__(self) -> None:
        """Ask from now on."""
        self._before = signal.signal(signal.SIGINT, self._note)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def take(self) -> bool:
        """Whether it was pressed; asked once more, it was not."""
        pending, self.pending = self.pending, False
        return pending

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.pending = True
