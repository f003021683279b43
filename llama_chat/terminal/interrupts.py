"""Handling of the signals that stop a reply or end the chat."""

import os
import signal
import time
from collections.abc import Callable
from threading import Timer
from types import FrameType, TracebackType
from typing import Any

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that end the chat: of other programs, of a window that closes, and of Ctrl-\\."""

_TIMEOUT_S = 5.0
"""Time in which the chat must have ended once a signal asked for it."""

_REPEAT_S = 1.0
"""Time after which another signal ends it at once; a window that closes sends several."""


class Interrupted(Exception):
    """Raised when Ctrl-C ends a wait."""


class Interrupts:
    """Handlers of SIGINT, and of signals that end the chat, that set flags to poll.

    An exception at an arbitrary point would leave the terminal half set up, cut off a save, or be
    lost in a callback. The flags cover all the time but that in which the input takes keys.
    """

    def __init__(self, exit_at_once: Callable[[int], object] = os._exit) -> None:
        """Watch for nothing before ``with``; ``exit_at_once`` ends a chat that does not end."""
        self._exit_at_once = exit_at_once
        self.status = 0
        """Exit status with which the chat is to end, once a signal has asked for that; else 0."""
        self.on_end: Callable[[], None] = lambda: None
        """Called when that comes, at an arbitrary point of the main thread."""
        self._pressed = False
        self._previous_handlers: dict[int, Any] = {}
        self._ended_at = 0.0
        self._watchdog: Timer | None = None
        """Ends the process if it does not end by itself."""

    def __enter__(self) -> "Interrupts":
        """Install the handlers."""
        for number in (signal.SIGINT, *_ENDING):
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # by nohup
                self._previous_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Restore the handlers; once the chat is to end, the terminal may be gone: no error is."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if self._watchdog is not None:
            self._watchdog.cancel()
        return self.status != 0 and isinstance(error, Exception)

    @property
    def pending(self) -> bool:
        """True if Ctrl-C was pressed since the last ``take``, or the chat is to end."""
        return self._pressed or self.status != 0

    def take(self) -> bool:
        """Return ``pending``, and forget a Ctrl-C."""
        pending, self._pressed = self.pending, False
        return pending

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._pressed = True
        elif not self.status:
            self.status = 128 + number
            self._ended_at = time.monotonic()
            self._watchdog = Timer(_TIMEOUT_S, self._exit_at_once, [self.status])
            self._watchdog.daemon = True
            self._watchdog.start()
            self.on_end()
        elif time.monotonic() - self._ended_at > _REPEAT_S:
            self._exit_at_once(self.status)
