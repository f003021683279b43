"""Ctrl-C ends what is awaited from a server, at any instant."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from llama_chat.endpoint.stepping import Stepper, run


class PressedAtDeath:
    """An object that is interrupted in its finalizer, where exceptions are lost."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def limited(n_polls: int = 40) -> Callable[[], bool]:
    """Return what ends a wait that nothing else has ended."""
    polls = iter(range(n_polls))
    return lambda: next(polls, None) is None


async def interrupted_while_running() -> AsyncIterator[int]:
    PressedAtDeath()
    yield 1
    await asyncio.Event().wait()


async def interrupted_at_its_end(held: PressedAtDeath) -> AsyncIterator[int]:
    yield 1


def test_ctrl_c_in_a_finalizer_of_the_loop_is_raised() -> None:
    with pytest.raises(KeyboardInterrupt):
        list(run(interrupted_while_running(), limited()))


def test_ctrl_c_in_a_finalizer_of_a_task_is_raised() -> None:
    stepper: Stepper[int, int] = Stepper()
    stepper.start(1, interrupted_at_its_end(PressedAtDeath()))

    def wait() -> None:
        while stepper.n_running:
            list(stepper.step())
            stepper.ended()

    with pytest.raises(KeyboardInterrupt):
        wait()
    stepper.close()


def test_ctrl_c_while_connections_close_is_raised_when_they_are() -> None:
    closed = []

    async def source() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            PressedAtDeath()
            await asyncio.sleep(0)
            closed.append(True)

    events: Iterator[int] = run(source())
    assert next(events) == 1
    with pytest.raises(KeyboardInterrupt):
        events.close()  # type: ignore[attr-defined] # it is a generator
    assert closed


def test_a_second_ctrl_c_ends_a_closing_that_hangs() -> None:
    async def source() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            signal.raise_signal(signal.SIGINT)
            asyncio.get_running_loop().call_later(0.01, signal.raise_signal, signal.SIGINT)
            await asyncio.Event().wait()

    events: Iterator[int] = run(source())
    assert next(events) == 1
    with pytest.raises(KeyboardInterrupt):
        events.close()  # type: ignore[attr-defined] # it is a generator


def test_a_handler_of_the_caller_stays() -> None:
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        assert list(run(interrupted_while_running(), limited(3))) == [1]
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed == [signal.SIGINT]
