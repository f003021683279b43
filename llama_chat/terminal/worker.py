"""Background thread for one job at a time."""

import time
from collections.abc import Callable
from threading import Thread

from llama_chat.generation.events import Hooks

_STEPS = 20
"""Progress steps reported per job: each report redraws the toolbar."""


class Stopped(Exception):
    """Raised by a job that was asked to stop."""


class BackgroundWorker:
    """Runner of jobs in background threads, one after another."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        """Begin idle.

        Args:
            on_change: called in the thread of a job when it made progress, and when it has ended.
        """
        self.done, self.total = 0, 0
        """Progress of the job."""
        self._first_report = 0.0, 0
        """Time and progress of the first report of the job."""
        self.busy = False
        """True while a job runs."""
        self.error: BaseException | None = None
        """Error that ended the last job, if one did."""
        self._on_change = on_change
        self._thread: Thread | None = None
        self._stopping = False

    @property
    def rate(self) -> float:
        """Progress of the job a second, since its first report; 0 before the second one."""
        began, first = self._first_report
        return (self.done - first) / max(time.monotonic() - began, 1e-3)

    def start(self, job: Callable[[Hooks], None]) -> None:
        """Start ``job``, after stopping the one that runs.

        A job calls ``should_stop`` often, and reports its progress.
        """
        self.stop()
        self.done, self.total, self.error = 0, 0, None
        self._stopping, self.busy = False, True
        self._thread = Thread(target=self._run, args=(job,), name="worker")
        self._thread.start()

    def stop(self, *, wait: bool = True) -> None:
        """Ask the job to stop, and wait until it has."""
        self._stopping = True
        if wait:
            self.wait()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end of the job, at most ``seconds``; returns False if it still runs."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.busy

    def _run(self, job: Callable[[Hooks], None]) -> None:
        try:
            job(Hooks(lambda: self._stopping, self._report))
        except Stopped:
            pass
        except BaseException as error:
            self.error = error
        self.busy = False
        self._on_change()

    def _report(self, done: int, total: int) -> None:
        if not self.total:
            self._first_report = time.monotonic(), done
        moved = not self.total or _STEPS * done // total != _STEPS * self.done // self.total
        self.done, self.total = done, total
        if moved:
            self._on_change()
