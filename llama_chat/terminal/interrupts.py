"""Handling of Ctrl-C while the input is closed."""

import signal
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """Raised when Ctrl-C ends a wait."""


class Interrupts:
    """SIGINT handler that sets a flag to poll, so that Ctrl-C never raises at an arbitrary point.

    The flag covers the time from sending a line until the next one can be typed.
    """

    def __init__(self) -> None:
        self.pending = False
        """True if Ctrl-C was pressed since the last ``take``."""
        self._previous_handler: Any = None

    def __enter__(self) -> None:
        """Install the handler."""
        self._previous_handler = signal.signal(signal.SIGINT, self._on_sigint)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._previous_handler)

    def take(self) -> bool:
        """Return ``pending`` and reset it."""
        pending, self.pending = self.pending, False
        return pending

    def _on_sigint(self, number: int, frame: FrameType | None) -> None:
        self.pending = True
