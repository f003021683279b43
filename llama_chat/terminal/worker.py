"""Work that goes on while the input is open: loading the model, and reading ahead."""

from collections.abc import Callable
from threading import Thread

from llama_chat.generation.events import Watch

_STEPS = 20
"""How often progress is told: each time costs a redraw of the toolbar."""


class Stopped(Exception):
    """A job was given up because it was asked to."""


class Worker:
    """Does one job at a time, in a thread of its own."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        """Make an idle one.

        Args:
            on_change: told, in that thread, that progress was made or the job has ended.
        """
        self.done, self.total = 0, 0
        """How much of how much the job has done."""
        self.busy = False
        """Whether a job goes on."""
        self._on_change = on_change
        self._thread: Thread | None = None
        self.error: BaseException | None = None
        """Why the last job failed, if it did."""
        self._stopping = False

    def start(self, job: Callable[[Watch], None]) -> None:
        """Begin ``job``; one that still goes on is stopped first.

        The job is to ask ``should_stop`` often and to tell its progress.
        """
        self.stop()
        self.done, self.total, self.error = 0, 0, None
        self._stopping, self.busy = False, True
        self._thread = Thread(target=self._run, args=(job,), name="worker")
        self._thread.start()

    def stop(self) -> None:
        """Ask the job to end, and wait until it has."""
        self._stopping = True
        self.wait()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the job, at most so long; returns whether it has ended."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.busy

    def _run(self, job: Callable[[Watch], None]) -> None:
        try:
            job(Watch(lambda: self._stopping, self._report))
        except Stopped:
            pass
        except BaseException as error:
            self.error = error
        self.busy = False
        self._on_change()

    def _report(self, done: int, total: int) -> None:
        moved = not self.total or _STEPS * done // total != _STEPS * self.done // self.total
        self.done, self.total = done, total
        if moved:
            self._on_change()
