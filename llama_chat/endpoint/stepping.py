"""Asynchronous generators, run in steps by a synchronous caller.

Network I/O can thus be cancelled at any point, in the thread that asked for it.
"""

import asyncio
import signal
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")

_POLL_S = 0.05
"""Longest time until the caller is asked whether to stop."""


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end of the block if Ctrl-C is pressed within it.

    In a callback of a weak reference, or a finalizer, the exception would be lost, and in the event
    loop a task would never be resumed. A second Ctrl-C is raised where it finds the program.
    """
    is_pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal is_pressed
        is_pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if is_pressed:
            raise KeyboardInterrupt


class _Loop(asyncio.SelectorEventLoop):
    """Event loop whose clock stands still while it does not run.

    So no timeout passes because the caller does something else, such as waiting for a pager.
    """

    def __init__(self) -> None:
        super().__init__()
        self._left_at = time.monotonic()
        self._pauses_s = 0.0

    def time(self) -> float:
        """Return the time of the clock."""
        return super().time() - self._pauses_s

    def run(self, awaited: Coroutine[Any, Any, None]) -> None:
        """Run until ``awaited`` has ended."""
        with self._going():
            self.run_until_complete(awaited)

    def run_for(self, seconds: float) -> None:
        """Run until ``stop`` is called, at most for ``seconds``.

        It needs no coroutine: Ctrl-C could leave one behind that has not begun.
        """
        with self._going():
            end = self.call_later(seconds, self.stop)
            try:
                self.run_forever()
            finally:
                end.cancel()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report an error, unless the loop is closed: Ctrl-C may have left a task behind."""
        if not self.is_closed():
            super().call_exception_handler(context)

    @contextmanager
    def _going(self) -> Iterator[None]:
        """Let the clock run within the block."""
        self._pauses_s += time.monotonic() - self._left_at
        try:
            yield
        finally:
            self._left_at = time.monotonic()


class Stepper(Generic[Key, Item]):
    """An event loop that runs only while its caller waits."""

    def __init__(self) -> None:
        """Begin with no generator; ``close`` must follow."""
        self._loop = _Loop()
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._arrived: deque[tuple[Key, Item]] = deque()
        self._waits = False
        """True while the caller waits, so that a change must wake it."""

    @property
    def n_running(self) -> int:
        """Number of generators whose end the caller has not taken yet."""
        return len(self._tasks)

    @_interrupts_deferred()
    def start(self, key: Key, source: AsyncIterator[Item]) -> None:
        """Run ``source`` beside the others."""
        self._tasks[key] = self._loop.create_task(self._pump(key, source))

    async def _pump(self, key: Key, source: AsyncIterator[Item]) -> None:
        try:
            async for item in source:
                self._arrived.append((key, item))
                self._wake()
        finally:
            self._wake()

    def _wake(self) -> None:
        if self._waits:
            self._loop.stop()

    def step(self) -> Iterator[tuple[Key, Item]]:
        """Wait a moment for items, and yield those that have arrived."""
        if not self._arrived and not any(task.done() for task in self._tasks.values()):
            self._wait()
        while self._arrived:
            yield self._arrived.popleft()

    @_interrupts_deferred()
    def _wait(self) -> None:
        self._waits = True
        try:
            self._loop.run_for(_POLL_S)
        finally:
            self._waits = False

    @_interrupts_deferred()
    def ended(self) -> list[tuple[Key, BaseException | None]]:
        """Return the generators that have ended since, each with its error if it failed."""
        ended = [key for key, task in self._tasks.items() if task.done()]
        return [(key, self._tasks.pop(key).exception()) for key in ended]

    @_interrupts_deferred()
    def close(self, *closing: Coroutine[Any, Any, None]) -> None:
        """Cancel all generators, then run ``closing``, which closes connections."""
        steps = self._cancel(), *closing, self._loop.shutdown_asyncgens()
        try:
            for step in steps:
                self._loop.run(step)
        finally:
            for step in steps:
                step.close()  # those that Ctrl-C has left out
            self._loop.close()

    async def _cancel(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


def run(
    source: AsyncIterator[Item], should_stop: Callable[[], bool] | None = None
) -> Iterator[Item]:
    """Yield what ``source`` yields, until ``should_stop``; closing this ends it too."""
    stepper: Stepper[None, Item] = Stepper()
    try:
        stepper.start(None, source)
        while stepper.n_running:
            if should_stop is not None and should_stop():
                return
            for _, item in stepper.step():
                yield item
            if should_stop is not None and should_stop():
                return
            for _, error in stepper.ended():
                if error is not None:
                    raise error
    finally:
        stepper.close()
